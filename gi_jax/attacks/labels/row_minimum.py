"""Yin et al., See through Gradients, 2021, Eq. 6."""

import numpy as np

from gi_jax.attacks.labels.counts import allocate
from gi_jax.attacks.labels.head import LazyDummies, find_head
from gi_jax.threat import AttackProblem


def row_minimum(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """The n classes whose rows have the smallest minimum: labels that do not repeat, features that are not negative.

    Args:
      problem: no more pictures than classes.
      dummies: unused.

    Returns:
      Counts [classes], 0 or 1.
    """
    del dummies
    head = find_head(problem)
    smallest = head.kernel_gradient.min(0)
    return allocate(-smallest, head.batch_size, np.ones(len(smallest), bool))
