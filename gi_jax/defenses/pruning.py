"""Sparse updates: the entries of largest magnitude are sent, the others are zero. Counts are exact, ties included."""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from gi_jax import checks
from gi_jax.types import Gradients


def prune_by_magnitude(p: float) -> optax.GradientTransformation:
    """Keeps the ceil((1 - p) n) entries of largest magnitude of each tensor and sets the others to zero.

    The ratio is exact: of equal magnitudes those that come first are kept. (The published code of Huang et al. 2021
    keeps what is not below an interpolated quantile: up to one entry a tensor more or less.)

    Args:
      p: the fraction set to zero, in [0, 1). For ratios that are traced: `keep_largest`.

    Raises:
      InputError: for p outside [0, 1).

    Reference: Zhu et al., Deep Leakage from Gradients, 2019, section 5.2.
    """
    checks.in_range(0, 1, p=p)
    return optax.stateless(lambda gradients, params: _keep_largest(gradients, keep_counts(p, gradients)))


def prune_globally(p: float) -> optax.GradientTransformation:
    """Keeps the ceil((1 - p) N) entries of largest magnitude among all N entries of the update.

    One threshold for all tensors: those with small gradients may lose everything. Exact as `prune_by_magnitude`.

    Args:
      p: the fraction set to zero, in [0, 1). For ratios that are traced: `keep_largest_overall`.

    Raises:
      InputError: for p outside [0, 1).

    Reference: Wei et al., A Framework for Evaluating Gradient Leakage Attacks, 2020 (gradient compression).
    """
    checks.in_range(0, 1, p=p)
    return optax.stateless(
        lambda gradients, params: _keep_largest_overall(gradients, keep_count(p, optax.tree.size(gradients)))
    )


def keep_largest_overall(count: int) -> optax.GradientTransformation:
    """Keeps the `count` entries of largest magnitude of the whole update (top-k), or all if there are fewer.

    Args:
      count: 1 or above; may be traced.

    Reference: Aji and Heafield, Sparse Communication for Distributed Gradient Descent, 2017; Stich et al. 2018.
    """
    checks.positive(count=count)
    return optax.stateless(lambda gradients, params: _keep_largest_overall(gradients, count))


def keep_count(p: float, size: int) -> int:
    """How many of `size` entries pruning keeps: ceil((1 - p) size), with p in [0, 1) as it is written.

    In binary, 0.29 * 100 is below 29; here it is 29.
    """
    checks.in_range(0, 1, p=p)
    return math.ceil((1 - Fraction(str(p))) * size)


def keep_counts(p: float, gradients: Gradients) -> Gradients:
    """The `keep_count` of every tensor. Those of several ratios, stacked, are what a `vmap` over ratios takes:

        counts = jax.tree.map(lambda *each: jnp.array(each), *(keep_counts(p, gradients) for p in ratios))
        jax.vmap(lambda counts: keep_largest(counts).update(gradients, state)[0])(counts)

    Args:
      p: the fraction set to zero, in [0, 1).
      gradients: arrays, or anything that has a size in their place.

    Returns:
      An integer a tensor, in the structure of `gradients`.
    """
    return jax.tree.map(lambda gradient: keep_count(p, gradient.size), gradients)


def keep_largest(counts: Gradients) -> optax.GradientTransformation:
    """Keeps so many entries of largest magnitude of each tensor, the first of equal ones.

    Args:
      counts: an integer a tensor, 1 or above, in the structure of the gradient; may be traced.
    """
    return optax.stateless(lambda gradients, params: _keep_largest(gradients, counts))


def _keep_largest(gradients, counts):
    return jax.tree.map(lambda gradient, count: jnp.where(largest(gradient, count), gradient, 0), gradients, counts)


def _keep_largest_overall(gradients, count):
    flat, unravel = ravel_pytree(gradients)
    return unravel(jnp.where(largest(flat, count), flat, 0))


@partial(jax.jit, inline=True)  # jaxlib 0.7.0 takes the result of a call for one of another layout, seen on a CPU
def largest(values: jax.Array, count: jax.Array | int) -> jax.Array:
    """True for the `count` entries of largest magnitude; of equal ones for those that come first.

    Bisects for the threshold instead of sorting: magnitudes are ordered as the integers with the same bits, so each
    pass over the array settles one bit. On a CPU that is more than ten times faster than a sort.

    Args:
      values: floating point, any shape.
      count: may be traced; from `values.size` on, all are true.

    Returns:
      Booleans in the shape of `values`.
    """
    width = jnp.finfo(values.dtype).bits
    unsigned = jnp.dtype(f"uint{width}")
    magnitude = lax.bitcast_convert_type(jnp.abs(values).reshape(-1), unsigned)

    def settle_bit(place, threshold):
        raised = threshold | (unsigned.type(1) << (width - 1 - place).astype(unsigned))
        return jnp.where(jnp.sum(magnitude >= raised) >= count, raised, threshold)

    threshold = lax.fori_loop(0, width, settle_bit, unsigned.type(0))  # the magnitude of the last one that is kept
    above, equal = magnitude > threshold, magnitude == threshold
    return (above | (equal & (jnp.cumsum(equal) <= count - jnp.sum(above)))).reshape(values.shape)


def smallest_kept(sent: Gradients) -> Gradients:
    """The smallest magnitude above 0 of each tensor: nothing that was dropped from it, tensor by tensor, was larger.

    Infinite for a tensor of zeros, of which nothing can be said.
    """
    return jax.tree.map(lambda tensor: jnp.min(jnp.abs(tensor), where=tensor != 0, initial=jnp.inf), sent)


def smallest_kept_overall(sent: Gradients) -> Gradients:
    """The same for one threshold over all tensors: the smallest magnitude above 0 of the whole update, for each."""
    smallest = jnp.min(jnp.stack(jax.tree.leaves(smallest_kept(sent))))
    return jax.tree.map(lambda _: smallest, sent)
