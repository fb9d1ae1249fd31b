"""Distances between the imagined gradient and the observed one: scalars of two pytrees of one structure."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.models import is_factored
from gi_jax.objectives.kinks import absolute
from gi_jax.threat import AttackProblem, Update
from gi_jax.types import Gradients


def _total(terms) -> jax.Array:
    # A matmul, because XLA fuses a chain of additions into each of the loops that its derivatives are factors in, and
    # adds up again for every number.
    terms = jnp.stack(jax.tree.leaves(terms))
    return jnp.dot(terms, jnp.ones_like(terms), precision="highest")


def _cosine(dot, square_a, square_b) -> jax.Array:
    # A gradient of norm zero has no direction: distance 1 and derivative 0. One that holds NaN stays NaN. The squares
    # are not multiplied, because the product of two small ones is 0 in float32.
    undirected = (square_a == 0) | (square_b == 0)
    scale_a, scale_b = (jax.lax.rsqrt(jnp.where(undirected, 1.0, square)) for square in (square_a, square_b))
    return jnp.where(undirected, 1.0, 1.0 - (dot * scale_a) * scale_b)


def squared_distance(imagined: Gradients, observed: Gradients, layer_weights: Gradients) -> jax.Array:
    """sum_l w_l ||g_l - g*_l||^2 (Zhu et al. 2019)."""
    return _total(jax.tree.map(lambda a, b, w: w * jnp.sum(jnp.square(a - b)), imagined, observed, layer_weights))


def absolute_distance(imagined: Gradients, observed: Gradients, layer_weights: Gradients) -> jax.Array:
    """sum_l w_l ||g_l - g*_l||_1: the likelihood under Laplacian noise, up to a constant."""
    return _total(jax.tree.map(lambda a, b, w: w * jnp.sum(absolute(a - b)), imagined, observed, layer_weights))


def _inner(a, b: jax.Array) -> jax.Array:
    # Inner products as such, not as sums of products: lanes that share `observed` then never copy it.
    return a.inner(b) if is_factored(a) else jnp.vdot(a, b, precision="highest")


def _square(a) -> jax.Array:
    return a.square() if is_factored(a) else jnp.vdot(a, a, precision="highest")


def _map(function, imagined, *others):
    return jax.tree.map(function, imagined, *others, is_leaf=is_factored)


def cosine_distance(imagined: Gradients, observed: Gradients, layer_weights: Gradients) -> jax.Array:
    """1 - <g, g*> / (||g|| ||g*||) over all tensors as one vector (Geiping et al. 2020, Eq. 4).

    Layer weights weigh the inner product: sum_l w_l <g_l, g*_l>.
    """
    dot = _total(_map(lambda a, b, w: w * _inner(a, b), imagined, observed, layer_weights))
    square_a = _total(_map(lambda a, w: w * _square(a), imagined, layer_weights))
    square_b = _total(_map(lambda b, w: w * _square(b), observed, layer_weights))
    return _cosine(dot, square_a, square_b)


def cosine_distance_per_layer(imagined: Gradients, observed: Gradients, layer_weights: Gradients) -> jax.Array:
    """sum_l w_l (1 - cos(g_l, g*_l)) / sum_l w_l, one cosine a tensor."""
    terms = _map(
        lambda a, b, w: w * _cosine(_inner(a, b), _square(a), _square(b)),
        imagined,
        observed,
        layer_weights,
    )
    return _total(terms) / _total(layer_weights)


DISTANCES: dict[str, Callable[[Gradients, Gradients, Gradients], jax.Array]] = {
    "cosine": cosine_distance,
    "cosine-per-layer": cosine_distance_per_layer,
    "squared": squared_distance,
    "absolute": absolute_distance,
}


_BY_INNER_PRODUCTS = ("cosine", "cosine-per-layer")
"""The distances that need no more of the imagined gradient than inner products."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GradientMatching:
    """L_grad: how far the imagined gradient is from the observed one.

    Attributes:
      distance: a key of `DISTANCES`; static.
      masked: compare only where the observed gradient is not zero, against pruned gradients; static.
      weight: of this term.
      layer_weights: a scalar a tensor, in the structure of the parameters; None for all ones.
    """

    distance: str = field(default="cosine", metadata={"static": True})
    masked: bool = field(default=False, metadata={"static": True})
    weight: jax.Array | float = 1.0
    layer_weights: Gradients | None = None

    def __post_init__(self):
        checks.one_of("distance", self.distance, DISTANCES)

    def __call__(self, problem: AttackProblem, candidate, update: Update) -> jax.Array:
        del candidate  # the update is what it imagines
        imagined, observed = update.factored, problem.observed
        if self.masked or self.distance not in _BY_INNER_PRODUCTS:
            imagined = update.gradients
        if self.masked:
            imagined = jax.tree.map(lambda a, b: jnp.where(b != 0, a, 0.0), imagined, observed)
        weights = self.layer_weights
        if weights is None:
            weights = jax.tree.map(lambda _: 1.0, observed)
        return DISTANCES[self.distance](imagined, observed, weights)
