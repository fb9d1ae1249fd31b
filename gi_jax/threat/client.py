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
from gi_jax.models import Network, Normalize
from gi_jax.types import BatchStats, Gradients, Images, Labels, Params


class Batch(NamedTuple):
    """What one step is computed on: images [n, h, w, c] in the network's units, class probabilities [n, classes]."""

    images: Images
    labels: Labels


class Update(NamedTuple):
    """What one step yields: the gradient, and the batch's own statistics at the input of every normalization layer."""

    gradients: Gradients
    statistics: BatchStats


def cross_entropy(logits: jax.Array, labels: Labels) -> jax.Array:
    """Mean over the batch of -sum_c labels_c log softmax(logits)_c; with soft labels, that of the mixed target."""
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))


def _derivatives(network, normalize, inputs, probe):
    """Derivative of loss + <probe, statistics> in all inputs; at probe 0 the first entry is the client's gradient."""

    def probed_loss(params, batch_stats, batch):
        logits, statistics = network(params, batch_stats, batch.images, normalize)
        loss = cross_entropy(logits, batch.labels)
        return loss + sum(jax.tree.leaves(jax.tree.map(jnp.vdot, probe, statistics))), statistics

    return jax.grad(probed_loss, argnums=(0, 1, 2), has_aux=True)(*inputs)


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
    _, statistics = jax.eval_shape(lambda: network(params, batch_stats, batch.images, normalize))
    probe = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), statistics)

    def derivatives(weights, probe):
        return _derivatives(network, normalize, (weights, batch_stats, batch), probe)

    (gradients, statistics), along = jax.linearize(derivatives, params, probe)
    return Update(gradients[0], statistics), along


def _backward(network, normalize, along, cotangent: Update):
    # d/d(inputs) of <g, v> + <statistics, w>: second derivatives commute, so it is the tangent, along (v, w), of the
    # derivative in the inputs. What the caller does not differentiate is dead code and never runs.
    (tangents, _) = along(cotangent.gradients, cotangent.statistics)
    return tangents


client_update.defvjp(_forward, _backward)


class ClientStep(NamedTuple):
    """The client's step with everything that it is computed from: what a defense that runs on the client may look at.

    Attributes: the arguments of `client_update`.
    """

    network: Network
    normalize: Normalize
    params: Params
    batch_stats: BatchStats
    batch: Batch

    def update(self) -> Update:
        """What the client would send without a defense."""
        return client_update(*self)

    def gradient_per_example(self) -> Gradients:
        """The gradient of each example's own loss, with a leading axis [n]; their mean is that of `update`.

        Raises:
          InputError: if the batch is normalized with its own statistics: examples then have no gradients of their own.
        """
        if self.normalize != Normalize.GIVEN:
            raise checks.InputError(
                "gradients per example with batch statistics: one example changes the gradients of all others; "
                "expected client_bn running, or a network without BatchNorm (such as one with GroupNorm)"
            )

        def gradient(image, label):
            return self._replace(batch=Batch(image[None], label[None])).update().gradients

        return jax.vmap(gradient)(*self.batch)
