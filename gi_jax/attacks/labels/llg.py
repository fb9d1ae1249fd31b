"""Wainakh et al., User-Level Label Leakage from Gradients in Federated Learning, PETS 2022: LLG."""

import numpy as np

from gi_jax.attacks.labels.counts import allocate
from gi_jax.attacks.labels.head import LazyDummies, find_head
from gi_jax.threat import AttackProblem


def llg(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """Classes of negative row sum once each; the rest by the impact of a picture, estimated from the gradient alone.

    impact = (1 + 1/C) / n * (sum of the negative row sums), of C classes.

    Args:
      problem: features that are not negative.
      dummies: unused.

    Returns:
      Counts [classes].
    """
    del dummies
    head = find_head(problem)
    sums = head.kernel_gradient.sum(0)
    negative = sums < 0
    if not negative.any():
        return allocate(-sums, head.batch_size)
    impact = sums[negative].sum() * (1 + 1 / len(sums)) / head.batch_size
    return allocate(sums / impact, head.batch_size, negative)
