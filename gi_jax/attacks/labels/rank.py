"""How many pictures are behind a gradient: that of a linear layer is a sum of one outer product for each."""

from typing import NamedTuple

import jax
import numpy as np

from gi_jax import checks
from gi_jax.threat import AttackProblem, Clipped, Fact, Mixed, Zeroed

TOLERANCE = 16 * np.finfo(np.float32).eps
"""Singular values below this share of the largest are rounding."""


class NumImages(NamedTuple):
    """An estimate of the batch size.

    Attributes:
      at_least: the largest rank of a linear layer's gradient; never too large where nothing changed single entries.
      limited: whether that rank is as large as the layer allows, so that there may be more.
    """

    at_least: int
    limited: bool


def estimate_num_images(problem: AttackProblem) -> NumImages:
    """The largest rank among the gradients of linear layers (all kernels with two axes, applied once a picture).

    The rank is at most the number of pictures, and equal to it, as a rule, while it is below the layer's own limit:
    inputs, outputs, and for the head one less than the classes, because its columns sum to zero.

    Args:
      problem: the observed gradient, as a client sent it. A sum under secure aggregation and the difference of two
        models are rounded far more coarsely than by `TOLERANCE`: their rank is that of the rounding.

    Returns:
      The estimate; (0, True) if no layer is linear; under a defense that is known to change entries one by one, which
      raises the rank; and after local steps: every step then adds its own outer products, and the difference of two
      models the rank of its rounding.

    Raises:
      InputError: for a gradient that is not finite.
    """
    checks.all_finite("observed gradient", problem.observed)
    if problem.local is not None or any(_raises_the_rank(fact) for fact in problem.known):
        return NumImages(0, True)
    found = NumImages(0, True)
    for gradient in jax.tree.leaves(problem.observed):
        if gradient.ndim != 2:
            continue
        limit = min(gradient.shape)
        if gradient.shape[1] == problem.num_classes:
            limit = min(limit, problem.num_classes - 1)
        values = np.linalg.svd(np.asarray(gradient, np.float64), compute_uv=False)
        rank = int(np.sum(values > TOLERANCE * values[0]))
        found = max(found, NumImages(min(rank, limit), rank >= limit), key=lambda one: (one.at_least, not one.limited))
    return found


def _raises_the_rank(fact: Fact) -> bool:
    # Scaling does not, nor do mixtures, nor rows of a layer that are zeroed as a whole, as Soteria does.
    return not isinstance(fact, Clipped | Mixed) and not (isinstance(fact, Zeroed) and fact.tensors)
