"""Wainakh et al., User-Level Label Leakage from Gradients in Federated Learning, PETS 2022: LLG+, with the model."""

import numpy as np

from gi_jax.attacks.labels.counts import allocate
from gi_jax.attacks.labels.head import LazyDummies, find_head
from gi_jax.threat import AttackProblem


def llg_plus(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """LLG with the impact of a picture, and what absent classes add to a row, measured on random pictures.

    Of dummies that all have class i, the row sum i gives the impact; of dummies that do not, its offset. Both are means
    over dummies of (p[i] - 1) and p[i] times the sum of the features, so that one forward pass serves all classes.

    Args:
      problem: features that are not negative.
      dummies: random pictures, see `gi_jax.attacks.labels.simulate`.

    Returns:
      Counts [classes].
    """
    head = find_head(problem)
    probabilities, features = dummies()
    sizes = features.sum(1, keepdims=True)
    offset = np.mean(probabilities * sizes, 0)
    impact = np.mean((probabilities - 1) * sizes) * (1 + 1 / len(offset)) / head.batch_size
    sums = head.kernel_gradient.sum(0)
    return allocate((sums - offset) / impact, head.batch_size, sums < 0)
