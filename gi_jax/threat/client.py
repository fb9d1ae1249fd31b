"""The client's step: one differentiable function that the client runs and the adversary imagines.

The adversary needs d/dx D(g(x), g*), a second derivative. `jax.grad` of a function of `jax.grad` (reverse over reverse)
makes programs that are slower than they have to be. With v = dD/dg and symmetric second derivatives,

    d/dx <g(x), v> = d/de [ d/dx loss(params + e v, x) ]  at e = 0:

forward over reverse, the tangent along v of the client's own backward pass, which `jax.linearize` shares with the
gradient itself: seven passes through the network in all. `custom_vjp` hides this here, so that an objective reads like
its equation and `jax.grad` of it is fast.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.models import Factored, Network, Normalize, dense, is_factored, probed
from gi_jax.types import BatchStats, Gradients, Images, Labels, Params


class Batch(NamedTuple):
    """What one step is computed on: images [n, h, w, c] in the network's units, class probabilities [n, classes]."""

    images: Images
    labels: Labels


class Update(NamedTuple):
    """What one step yields: the gradient, and the batch's own statistics at the input of every normalization layer.

    Attributes:
      factored: the gradient, where it is smaller as a pair of factors (`gi_jax.models.Factored`) for some kernels.
      statistics: mean, biased variance and count a layer.
    """

    factored: Gradients
    statistics: BatchStats

    @property
    def gradients(self) -> Gradients:
        """The gradient in the structure of the parameters."""
        return dense(self.factored)


def cross_entropy(logits: jax.Array, labels: Labels) -> jax.Array:
    """Mean over the batch of -sum_c labels_c log softmax(logits)_c; with soft labels, that of the mixed target."""
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))


class _Probes(NamedTuple):
    """Zeros whose derivatives are what an update is made of, or which make derivatives flow into it.

    Attributes:
      params: the weights whose gradient is not in factors; None in the place of the others.
      outputs: added to the outputs of the others' matmuls; the derivative is the cotangent factor.
      rows, statistics: directions of the inputs of those matmuls, and of the statistics, in which the loss is tilted.
    """

    params: Params
    outputs: dict
    rows: dict
    statistics: BatchStats


def _derivatives(network, normalize, inputs, probes: _Probes):
    """Derivatives of the loss, tilted by <probes, rows> + <probes, statistics>, in all inputs and in the outputs."""

    def tilted_loss(params, batch_stats, batch, outputs):
        logits, statistics, rows = probed(network, params, batch_stats, batch.images, normalize, outputs)
        tilt = jax.tree.map(jnp.vdot, (probes.rows, probes.statistics), (rows, statistics))
        return cross_entropy(logits, batch.labels) + sum(jax.tree.leaves(tilt)), (rows, statistics)

    (*derivatives, outputs), aux = jax.grad(tilted_loss, argnums=(0, 1, 2, 3), has_aux=True)(*inputs, probes.outputs)
    return tuple(derivatives), outputs, aux


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def client_update(
    network: Network, normalize: Normalize, params: Params, batch_stats: BatchStats, batch: Batch
) -> Update:
    """One FedSGD step: the gradient of the mean cross-entropy with respect to `params`.

    Args:
      network: the pure function; static.
      normalize: how the normalization layers run; static.
      params: weights.
      batch_stats: the numbers that `Normalize.GIVEN` and `STRAIGHT_THROUGH` hand to the layers.
      batch: images in the network's units, class probabilities.

    Returns:
      The `Update`, differentiable in `params`, `batch_stats` and `batch` (reverse mode, forward over reverse inside).
    """
    update, _ = _forward(network, normalize, params, batch_stats, batch)
    return update


def _forward(network, normalize, params, batch_stats, batch):
    def run(outputs):
        return probed(network, params, batch_stats, batch.images, normalize, outputs)

    _, statistics, rows = jax.eval_shape(run, {})
    kernels = _pick(params, rows)
    outputs = jax.tree.map(lambda row, kernel: jnp.zeros((*row.shape[:-1], kernel.shape[-1]), row.dtype), rows, kernels)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (rows, statistics))

    def derivatives(probes):
        weights = jax.tree.map(lambda own, all_: all_ if own is None else own, probes.params, params, is_leaf=_missing)
        return _derivatives(network, normalize, (weights, batch_stats, batch), probes)

    probes = _Probes(_put(params, jax.tree.map(lambda _: None, rows)), outputs, *zeros)
    (gradients, cotangents, (rows, statistics)), along = jax.linearize(derivatives, probes)
    factored = jax.tree.map(lambda row, own, kernel: Factored(row, own, kernel.shape), rows, cotangents, kernels)
    return Update(_put(gradients[0], factored), statistics), (along, rows)


def _backward(network, normalize, residuals, cotangent: Update):
    # d/d(inputs) of <g, v> + <statistics, w>: second derivatives commute, so it is the tangent, along (v, w), of the
    # derivative in the inputs. For a gradient in factors, <rows, v> is a tilt and <cotangents, w> a move of the
    # outputs. What the caller does not differentiate is dead code and never runs.
    along, rows = residuals
    factored = _pick(cotangent.factored, rows)
    unfactored = _put(cotangent.factored, jax.tree.map(lambda _: None, rows))
    tilts, moves = (jax.tree.map(lambda leaf, n=n: getattr(leaf, n), factored, is_leaf=is_factored) for n in _FACTORS)
    (tangents, _, _) = along(_Probes(unfactored, moves, tilts, cotangent.statistics))
    return tangents


_FACTORS = ("rows", "cotangents")


def _missing(leaf) -> bool:
    return leaf is None


def _pick(tree, names):
    """The part of a tree of dictionaries that `names`, a smaller tree of dictionaries, has leaves for."""
    if not isinstance(names, dict):
        return tree
    return {name: _pick(tree[name], inner) for name, inner in names.items()}


def _put(tree, parts):
    """The tree of dictionaries with `parts`, a smaller one, in place of what is there."""
    if not isinstance(parts, dict):
        return parts
    return {name: _put(leaf, parts[name]) if name in parts else leaf for name, leaf in tree.items()}


client_update.defvjp(_forward, _backward)


class ClientStep(NamedTuple):
    """The client's step with everything that it is computed from: what a defense that runs on the client may look at.

    Attributes: the arguments of `client_update`, at the first step, and how many `steps` the update was made of.
    """

    network: Network
    normalize: Normalize
    params: Params
    batch_stats: BatchStats
    batch: Batch
    steps: int = 1

    def update(self) -> Update:
        """The update of the first step: what the client would send without a defense if it takes one."""
        return client_update(*self[:5])

    def check_one_step(self, what: str) -> None:
        """Refuses what is made of the gradients of examples, of which there are others in every local step.

        Raises:
          InputError: for a client of several steps.
        """
        if self.steps > 1:
            raise checks.InputError(
                f"{what} with {self.steps} local steps: it is defined on the examples of one step; expected one step, "
                "or a defense of the whole update, such as clip, gaussian or prune"
            )

    def gradient_per_example(self) -> Gradients:
        """The gradient of each example's own loss, with a leading axis [n]; their mean is that of `update`.

        Raises:
          InputError: if the batch is normalized with its own statistics: examples then have no gradients of their own;
            and for a client of several steps.
        """
        self.check_one_step("gradients per example")
        if self.normalize != Normalize.GIVEN and jax.eval_shape(lambda: self.update().statistics):
            raise checks.InputError(
                "gradients per example with batch statistics: one example changes the gradients of all others; "
                "expected client_bn running, or a network without BatchNorm (such as one with GroupNorm)"
            )

        def gradient(image, label):
            return self._replace(batch=Batch(image[None], label[None])).update().gradients

        return jax.vmap(gradient)(*self.batch)
