"""Accuracy on held-out pictures, with running averages."""

from functools import partial

import jax
import jax.numpy as jnp

from gi_jax.models import Network, Normalize
from gi_jax.training.step import Pool, to_floats
from gi_jax.types import BatchStats, Params


def accuracy(network: Network, params: Params, batch_stats: BatchStats, pool: Pool, *, batch_size: int = 250) -> float:
    """The share of a pool's pictures whose largest logit is that of their class, in evaluation mode, 0 to 1.

    Args:
      network, params, batch_stats: the model; normalizes with `batch_stats`.
      pool: held-out pictures.
      batch_size: pictures looked at together; changes no number.
    """
    count = len(pool.labels)
    size = min(batch_size, count)
    correct = 0
    for first in range(0, count, size):
        # All batches have one size and share a program: the last one starts earlier, and counts its new pictures.
        begin = min(first, count - size)
        hits = _hits(network, params, batch_stats, pool, jnp.int32(begin), size)
        correct += int(hits[first - begin :].sum())
    return correct / count


@partial(jax.jit, static_argnames=("network", "size"))
def _hits(network, params, batch_stats, pool, begin, size):
    images, labels = (jax.lax.dynamic_slice_in_dim(leaf, begin, size) for leaf in (pool.images, pool.labels))
    logits, _ = network(params, batch_stats, pool.space.normalize(to_floats(images)), Normalize.GIVEN)
    return logits.argmax(-1) == labels
