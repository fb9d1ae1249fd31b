"""The sign of the bias gradient: Geiping et al. 2020; Fowl et al. 2022 (known there as analytic)."""

import numpy as np

from gi_jax.attacks.labels.counts import allocate
from gi_jax.attacks.labels.head import LazyDummies, find_head
from gi_jax.threat import AttackProblem


def bias_sign(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """Classes with a negative bias gradient: each of them is in the batch for certain, whatever the network.

    (1/n) (sum_k p_k[i] - n_i) is negative only if n_i is above 0. The converse fails for a class of fewer pictures than
    the network expects. The method knows no counts: what is left of the batch is spread evenly over the classes found.

    Args:
      problem: with a bias.
      dummies: unused.

    Returns:
      Counts [classes].
    """
    del dummies
    head = find_head(problem)
    evidence = -head.bias_gradient
    found = evidence > 0
    if not found.any():  # rounding, or a defense
        found = evidence == evidence.max()
    # Equal shares, the stronger evidence first where they do not come out even.
    values = np.where(
        found, head.batch_size / found.sum() + 1e-3 * evidence / max(np.abs(evidence).max(), 1e-30), -np.inf
    )
    return allocate(values, head.batch_size, found)
