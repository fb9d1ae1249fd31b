"""Geiping, Fowl et al., breaching: a framework of attacks, 2021; its default rule."""

import numpy as np

from gi_jax.attacks.labels.counts import allocate
from gi_jax.attacks.labels.head import LazyDummies, find_head
from gi_jax.threat import AttackProblem


def bias_corrected(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """Classes with a negative bias gradient once each; the rest where, at the mean share of a picture, most is left.

    Args:
      problem: with a bias.
      dummies: unused.

    Returns:
      Counts [classes].
    """
    del dummies
    head = find_head(problem)
    gradient = head.bias_gradient
    negative = gradient < 0
    if not negative.any():
        return allocate(-gradient, head.batch_size)
    impact = gradient[negative].sum() / head.batch_size
    return allocate(gradient / impact, head.batch_size, negative)
