"""What a defense costs: seconds per step with and without it, measured in turns."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax.training.epoch import LONGEST_CHUNK, draw_epoch, run_steps
from gi_jax.training.loop import steps_per_epoch
from gi_jax.training.step import Pool, Setup, start
from gi_jax.types import BatchStats, Key, Params

BLOCKS = 5
BLOCK_SECONDS = 0.2


def measure(setups: list[Setup], params: Params, batch_stats: BatchStats, pool: Pool, key: Key) -> dict:
    """Times set-ups against the last of them, in blocks of steps that take turns, after a warm-up, waited for.

    A step has its share of what is done once an epoch: its order, and the encoding of the pool.

    Args:
      setups: what is compared; of equal ones, one is timed.
      params, batch_stats: where the steps start; with learning rate 0, so they stay there.
      pool: the pictures.
      key: of the draws.

    Returns:
      `seconds` and `epoch_seconds` (of which, once an epoch) of each set-up, as `{"median", "lowest", "highest"}` over
      the blocks; `ratio` of the first to the last, of blocks side by side; `blocks`, `steps_per_block`.
    """
    keys = key[None]
    rates = np.zeros(LONGEST_CHUNK, np.float32)
    states = [jax.tree.map(lambda leaf: leaf[None], start(setup, key, params, batch_stats)) for setup in setups]
    per_epoch = steps_per_epoch(len(pool.labels), setups[0].recipe.batch_size)

    def run(number, count):
        """Draws an epoch, then runs steps: the seconds of both."""
        began = time.perf_counter()
        epoch = jax.block_until_ready(draw_epoch(setups[number], pool, keys, jnp.int32(0)))
        drawn = time.perf_counter()
        steps = jnp.int32(0), jnp.int32(count), rates, jnp.ones(1)
        states[number], *_ = jax.block_until_ready(run_steps(setups[number], states[number], pool, epoch, keys, *steps))
        return drawn - began, time.perf_counter() - drawn

    for number in range(len(setups)):
        run(number, 1)
    slowest = max(run(number, 1)[1] for number in range(len(setups)))
    count = max(1, min(per_epoch, LONGEST_CHUNK, int(BLOCK_SECONDS / slowest)))
    blocks = np.array([[run(number, count) for number in range(len(setups))] for _ in range(BLOCKS)])
    epochs, steps = blocks[..., 0], blocks[..., 1] / count
    seconds = steps + epochs / per_epoch
    return {
        "seconds": [spread(column) for column in seconds.T],
        "epoch_seconds": [spread(column) for column in epochs.T],
        "ratio": spread(seconds[:, 0] / seconds[:, -1]),
        "blocks": BLOCKS,
        "steps_per_block": count,
    }


def spread(values) -> dict[str, float]:
    """Median and extremes."""
    values = [float(value) for value in values]
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
