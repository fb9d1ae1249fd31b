"""The loop of training: the order of the pictures, and steps in chunks that a caller can look at and end."""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.models import Network
from gi_jax.training.recipe import Recipe
from gi_jax.training.step import Pool, TrainState, train_step

CHUNK_SECONDS = 0.5
"""Steps are not waited for one by one; this is about how long until the next look."""
LONGEST_CHUNK = 64


class Progress(NamedTuple):
    """Where a training stands after a chunk of steps.

    Attributes:
      step: steps done.
      state: given away with the next chunk; take what you need before.
      losses: float [chunk], of each step's batch.
      correct: int [chunk], correctly classified pictures of each batch.
      seconds: of the chunk; the first one's includes compilation.
    """

    step: int
    state: TrainState
    losses: np.ndarray
    correct: np.ndarray
    seconds: float


def index_batches(count: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Batches int32 [batch_size] of 0 to count - 1, without end: one shuffled epoch after the other.

    A batch may lie across the border of two epochs, so that all batches are full and no picture is left out.
    """
    waiting = np.zeros(0, np.int32)
    epoch = 0
    while True:
        while len(waiting) < batch_size:
            order = np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)
            waiting, epoch = np.concatenate([waiting, order]), epoch + 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def epoch_ends(count: int, batch_size: int, epochs: float) -> list[int]:
    """The number of steps done at the end of each epoch, the last of which may be a fraction.

    Args:
      count: pictures.
      batch_size: pictures a step.
      epochs: how often every picture is seen, such as 0.5.
    """
    total = max(1, round(epochs * count / batch_size))
    whole = [math.ceil(epoch * count / batch_size) for epoch in range(1, math.floor(epochs) + 1)]
    return sorted({end for end in whole if end < total} | {total})


def advance(
    network: Network, recipe: Recipe, state: TrainState, pool: Pool, *, ends: list[int], seed: int
) -> Iterator[Progress]:
    """Trains from the first step to the last of `ends`, in chunks that none of them lies inside of.

    Args:
      network, recipe: static.
      state: of `start`; given away.
      pool: the pictures.
      ends: step numbers, increasing.
      seed: of the order of the pictures and of their augmentation.

    Raises:
      InputError: as soon as a loss is not finite.
    """
    checks.non_negative(seed=seed)
    total, step, chunk = ends[-1], 0, 1
    batches = index_batches(len(pool.labels), recipe.batch_size, seed)
    key = jax.random.key(seed)
    for end in ends:
        while step < end:
            began = time.monotonic()
            taken = []
            for number in range(step, min(end, step + chunk)):
                rate = jnp.float32(recipe.rate(number, total))
                state, *metrics = train_step(network, recipe, state, pool, next(batches), rate, key)
                taken.append(metrics)
            losses, correct = (np.array(values) for values in zip(*jax.device_get(taken), strict=True))
            seconds = time.monotonic() - began
            if not np.isfinite(losses).all():
                bad = step + int(np.argmin(np.isfinite(losses)))
                raise checks.InputError(
                    f"the loss is {losses[bad - step]} at step {bad + 1} of {total}; expected a finite number: lower "
                    f"the learning rate (now {recipe.learning_rate:g})"
                )
            step += len(taken)
            yield Progress(step, state, losses, correct, seconds)
            per_step = seconds / len(taken)
            chunk = max(1, min(2 * chunk, LONGEST_CHUNK, int(CHUNK_SECONDS / max(per_step, 1e-9))))
