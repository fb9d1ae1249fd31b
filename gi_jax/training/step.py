"""One compiled step of training: pictures drawn from the device's own copy, gradient, velocity, running averages."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gi_jax.models import Network, Normalize
from gi_jax.threat import ImageSpace, cross_entropy
from gi_jax.threat.batch_norm import running_average
from gi_jax.training.augment import crop_and_flip
from gi_jax.training.recipe import Recipe
from gi_jax.types import BatchStats, Key, Params


class Pool(NamedTuple):
    """The data set on the device.

    Attributes:
      images: uint8 [n, h, w, c], 0 to 255: a quarter of the memory of floats.
      labels: int32 [n].
      space: the units that the network expects.
    """

    images: jax.Array
    labels: jax.Array
    space: ImageSpace


class TrainState(NamedTuple):
    """What the next step needs. `step` counts those taken, int32."""

    params: Params
    batch_stats: BatchStats
    velocity: Any
    step: jax.Array


def start(recipe: Recipe, params: Params, batch_stats: BatchStats) -> TrainState:
    """The state before the first step. It takes a copy, since the first step is given the state to overwrite."""
    params, batch_stats = jax.tree.map(jnp.array, (params, batch_stats))
    return TrainState(params, batch_stats, recipe.optimizer().init(params), jnp.int32(0))


def to_floats(images: jax.Array) -> jax.Array:
    """uint8 of 0 to 255 as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


@partial(jax.jit, static_argnames=("network", "recipe"), donate_argnames="state")
def train_step(
    network: Network, recipe: Recipe, state: TrainState, pool: Pool, chosen: jax.Array, rate: jax.Array, key: Key
) -> tuple[TrainState, jax.Array, jax.Array]:
    """One step on the pictures `chosen`. The client's own loss, in training mode, without a second derivative.

    Args:
      network, recipe: static.
      state: overwritten; use the one that is returned.
      pool: all pictures.
      chosen: int32 [batch], which of them.
      rate: learning rate.
      key: of the whole training; the number of the step is folded in.

    Returns:
      The state, the mean loss of the batch before the step, and how many of it were classified correctly.
    """
    images, labels = to_floats(pool.images[chosen]), pool.labels[chosen]
    if recipe.augment:
        images = crop_and_flip(jax.random.fold_in(key, state.step), images)
    images = pool.space.normalize(images)

    def loss_of(params):
        logits, statistics = network(params, state.batch_stats, images, Normalize.BATCH)
        loss = cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
        return loss, (statistics, jnp.sum(logits.argmax(-1) == labels))

    (loss, (statistics, correct)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    velocities, velocity = recipe.optimizer().update(gradients, state.velocity, state.params)
    params = optax.apply_updates(state.params, jax.tree.map(lambda leaf: -rate * leaf, velocities))
    batch_stats = running_average(state.batch_stats, statistics)
    return TrainState(params, batch_stats, velocity, state.step + 1), loss, correct
