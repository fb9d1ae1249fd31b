"""The loop of training: epochs in chunks of steps that a caller can look at and end."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.training.epoch import LONGEST_CHUNK, draw_epoch, run_steps
from gi_jax.training.step import Pool, Setup, TrainState
from gi_jax.types import Key

CHUNK_SECONDS = 0.5
"""Steps are not waited for one by one; this is about how long until the next look."""


class Diverged(checks.InputError):
    """The loss of every training side by side is not a finite number any more; `steps` says of each since when."""

    def __init__(self, message: str, steps: list[int]):
        super().__init__(message)
        self.steps = steps


class Progress(NamedTuple):
    """Where a training stands after a chunk of steps.

    Attributes:
      step: steps done.
      state: [lanes]; given away with the next chunk; take what you need before.
      losses: float [lanes, chunk], of each step's batch; not finite from the step on where a lane diverged.
      correct: int [lanes, chunk], correctly classified pictures of each batch.
      seconds: of the chunk; the first one's includes compilation.
    """

    step: int
    state: TrainState
    losses: np.ndarray
    correct: np.ndarray
    seconds: float


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Full batches in `count` pictures.

    Raises:
      InputError: if there is none.
    """
    if count < batch_size:
        raise checks.InputError(
            f"batch_size={batch_size} with {count} pictures to train on: expected no more than there are; try a "
            f"batch size of {count}"
        )
    return count // batch_size


def epoch_ends(per_epoch: int, epochs: float, others: Iterable[float] = ()) -> list[int]:
    """The number of steps done at the end of each epoch, the last of which may be a fraction, and at other times.

    Args:
      per_epoch: steps of an epoch.
      epochs: how many, such as 0.5.
      others: in epochs too; those after the end are left out.
    """
    total = step_of(per_epoch, epochs)
    times = [*range(1, math.floor(epochs) + 1), *others]
    return sorted({step for step in (step_of(per_epoch, time) for time in times) if step < total} | {total})


def step_of(per_epoch: int, epochs: float) -> int:
    """The number of steps in so many epochs, 1 or above."""
    return max(1, round(epochs * per_epoch))


def training_keys(seeds: Iterable[int]) -> Key:
    """The key of each training, [lanes]."""
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def advance(
    setup: Setup,
    state: TrainState,
    pool: Pool,
    keys: Key,
    *,
    ends: list[int],
    step: int = 0,
    scale: Callable[[], jax.Array] | None = None,
    active: Callable[[], jax.Array] | None = None,
) -> Iterator[Progress]:
    """Trains to the last of `ends`, in chunks that none of them, and no end of an epoch, lies inside of.

    How the steps fall into chunks changes no bit of the weights.

    Args:
      setup: static.
      state: of `start`, with a leading axis [lanes]; given away.
      pool: the pictures.
      keys: [lanes], of each training.
      ends: step numbers, increasing.
      step: those done before.
      scale, active: asked before every chunk; see `run_steps`. None: 1, and all.

    Raises:
      Diverged: as soon as no lane has finite losses.
    """
    total, chunk, epoch, current = ends[-1], 1, None, None
    per_epoch = steps_per_epoch(len(pool.labels), setup.recipe.batch_size)
    rates = np.append(setup.recipe.rates(total, per_epoch), np.zeros(LONGEST_CHUNK, np.float32))
    while step < total:
        began = time.monotonic()
        number, first = divmod(step, per_epoch)
        if number != current:
            epoch = None  # two epochs of encodings need not be in memory
            epoch, current = draw_epoch(setup, pool, keys, jnp.int32(number)), number
        count = min(chunk, (number + 1) * per_epoch - step, next(end for end in ends if end > step) - step)
        state, losses, correct = run_steps(
            setup,
            state,
            pool,
            epoch,
            keys,
            jnp.int32(first),
            jnp.int32(count),
            rates[step : step + LONGEST_CHUNK],
            jnp.ones(len(keys)) if scale is None else scale(),
            None if active is None else active(),
        )
        losses, correct = (values[:, :count] for values in jax.device_get((losses, correct)))
        seconds = time.monotonic() - began
        finite = np.isfinite(losses)
        if not finite.all(1).any():
            bad = finite.argmin(1)
            lane = int(bad.argmax())
            raise Diverged(
                f"the loss is {losses[lane, bad[lane]]} at step {step + bad[lane] + 1} of {total}; expected a finite "
                f"number: lower the learning rate (now {setup.recipe.learning_rate:g})",
                (step + bad + 1).tolist(),
            )
        step += count
        yield Progress(step, state, losses, correct, seconds)
        chunk = max(1, min(2 * chunk, LONGEST_CHUNK, int(CHUNK_SECONDS * count / max(seconds, 1e-9))))
