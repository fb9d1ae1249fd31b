"""An epoch on the device: the order of its pictures, their encodings if there are any, and its steps as one loop."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gi_jax.threat import Batch
from gi_jax.training.augment import crop_and_flip
from gi_jax.training.step import AUGMENT, EPOCH, Pool, Setup, TrainState, to_floats, train_step
from gi_jax.types import Images, Key, Labels

LONGEST_CHUNK = 1024
"""Steps of one launch at most."""


class Epoch(NamedTuple):
    """What an epoch is computed on.

    Attributes:
      order: int32 [steps, size], the pictures of each step.
      counted: bool [steps, size], False for padding; None if there is none.
      images, labels: encodings float32 [n, h, w, c] in the network's units and their soft labels [n, classes]; None
        without a defense that encodes.
    """

    order: jax.Array
    counted: jax.Array | None
    images: Images | None
    labels: Labels | None


def over_lanes(function, *trees):
    """`jax.vmap(function)(*trees)`; a lane that is alone runs without, in the program of a single training."""
    if jax.tree.leaves(trees)[0].shape[0] > 1:
        return jax.vmap(function)(*trees)
    return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], trees)))


@partial(jax.jit, static_argnames="setup")
def draw_epoch(setup: Setup, pool: Pool, keys: Key, number: jax.Array) -> Epoch:
    """Shuffles the pictures; if the defense encodes, augments the whole pool afresh and encodes it, in one pass.

    Every batch is full: what remains after the last one is left out, other pictures in every epoch.

    Args:
      setup: static.
      pool: all pictures.
      keys: [lanes], of each training.
      number: of the epoch, from 0.

    Returns:
      `Epoch`, each array with a leading axis [lanes].
    """
    count, size = len(pool.labels), setup.recipe.batch_size
    steps = count // size

    def lane(key):
        key_order, key_augment, key_public, key_mixing = jax.random.split(_fold(key, EPOCH, number), 4)
        if setup.sampling is None:
            order, counted = jax.random.permutation(key_order, count)[: steps * size].reshape(steps, size), None
        else:
            sample = lax.map(lambda key: setup.sampling(key, count), jax.random.split(key_order, steps))
            order, counted = sample.indices, sample.chosen
        if setup.defense.mixing is None:
            return Epoch(order, counted, None, None)
        images, public = pool.images, pool.public
        if setup.recipe.augment:
            images = crop_and_flip(key_augment, images)
            public = None if public is None else crop_and_flip(key_public, public)
        units = pool.space.normalize
        public = None if public is None else units(public)
        encoded = setup.defense.mixing(key_mixing, units(to_floats(images)), pool.labels, public)
        return Epoch(order, counted, encoded.images, encoded.labels)

    return over_lanes(lane, keys)


@partial(jax.jit, static_argnames="setup", donate_argnames="state")
def run_steps(
    setup: Setup,
    state: TrainState,
    pool: Pool,
    epoch: Epoch,
    keys: Key,
    first: jax.Array,
    count: jax.Array,
    rates: jax.Array,
    scale: jax.Array,
    active: jax.Array | None = None,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """`count` steps in one launch, from step `first` of the epoch. How many is a number: one program for all.

    A loop costs nothing on a CPU either, since the convolutions of `gi_jax.models` are fast inside loops. Milliseconds
    a step in a loop, and dispatched one by one (two busy cores, median of 4): `convnet` at batch 64: 94, 129 (with
    `lax` convolutions, which must not be in a loop, 112); `resnet18` at batch 16: 690, 750 (770); at batch 64: 4,100,
    4,700.

    Args:
      setup: static.
      state: [lanes]; overwritten, use the one that is returned.
      pool: all pictures, of all lanes.
      epoch: of `draw_epoch`.
      keys: [lanes], of each training.
      first, count: int32.
      rates: float32 [LONGEST_CHUNK], learning rates, of all lanes.
      scale: float32 [lanes], a factor of the rate.
      active: bool [lanes], the state of the others stays; None for all.

    Returns:
      The state, and mean loss and number of correctly classified pictures of each batch, [lanes, LONGEST_CHUNK].
    """

    def lane(state, epoch, key, scale, active):
        def body(i, carry):
            state, losses, correct = carry
            batch = _take(setup, pool, epoch, first + i, _fold(key, AUGMENT, state.step))
            state, loss, hits = train_step(setup, state, batch, scale * rates[i], key)
            return state, losses.at[i].set(loss), correct.at[i].set(hits)

        empty = jnp.zeros(LONGEST_CHUNK), jnp.zeros(LONGEST_CHUNK, jnp.int32)
        return lax.fori_loop(0, count if active is None else jnp.where(active, count, 0), body, (state, *empty))

    return over_lanes(lane, state, epoch, keys, scale, active)


def _fold(key: Key, *numbers) -> Key:
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def _take(setup: Setup, pool: Pool, epoch: Epoch, row: jax.Array, key: Key) -> Batch:
    chosen = epoch.order[row]
    if epoch.images is not None:
        return Batch(epoch.images[chosen], epoch.labels[chosen])
    images, labels = pool.images[chosen], pool.labels[chosen]
    if setup.recipe.augment:
        images = crop_and_flip(key, images)
    if epoch.counted is not None:
        labels = labels * epoch.counted[row][:, None]
    return Batch(pool.space.normalize(to_floats(images)), labels)
