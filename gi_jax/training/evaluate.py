"""Loss and accuracy on held-out pictures, with running averages."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gi_jax.models import Network, Normalize
from gi_jax.training.step import Pool, to_floats
from gi_jax.types import BatchStats, Params


class Score(NamedTuple):
    """How a network does on a pool.

    Attributes:
      loss: mean cross-entropy, in nats.
      accuracy: share of pictures whose largest logit is that of their class, 0 to 1.
    """

    loss: float
    accuracy: float


_PIXELS = 250 * 32 * 32  # looked at together


def evaluate(
    network: Network, params: Params, batch_stats: BatchStats, pool: Pool, *, batch_size: int | None = None
) -> Score:
    """Scores a network in evaluation mode, on pictures as they are: not encoded, not cropped.

    Args:
      network, params, batch_stats: the model; normalizes with `batch_stats`.
      pool: held-out pictures.
      batch_size: pictures looked at together; None for 250 of 32x32, and as many fewer as they are larger.
    """
    count, height, width, _ = pool.images.shape
    if batch_size is None:
        batch_size = min(250, max(1, _PIXELS // (height * width)))
    size = min(batch_size, count)
    losses = hits = 0
    for first in range(0, count, size):
        # All batches have one size and share a program: the last one starts earlier, and counts its new pictures.
        begin = min(first, count - size)
        loss, hit = _score(network, params, batch_stats, pool, jnp.int32(begin), size)
        losses, hits = losses + loss[first - begin :].sum(), hits + hit[first - begin :].sum()
    return Score(float(losses) / count, int(hits) / count)


@jax.jit
def is_finite(tree) -> jax.Array:
    """Whether all numbers of a tree of arrays are finite, such as a model before its loss is asked for."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


@partial(jax.jit, static_argnames=("network", "size"))
def _score(network, params, batch_stats, pool, begin, size):
    images, labels = (jax.lax.dynamic_slice_in_dim(leaf, begin, size) for leaf in (pool.images, pool.labels))
    logits, _ = network(params, batch_stats, pool.space.normalize(to_floats(images)), Normalize.GIVEN)
    return -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1), logits.argmax(-1) == labels.argmax(-1)
