"""Zhao et al., iDLG: Improved Deep Leakage from Gradients, 2020."""

import numpy as np

from gi_jax.attacks.labels.head import LazyDummies, find_head
from gi_jax.threat import AttackProblem


def idlg(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """The class whose row opposes all others: of one picture, its label.

    Rows of the gradient are (p_i - y_i) h, and p_i - y_i is negative for the label only. This is the paper's rule, for
    features of any sign; its published code takes the smallest row sum, which needs features that are not negative.
    As p_i - y_i sum to 0, no row is longer than the label's. Only rows of half the greatest length at least are asked
    for, and of equally good ones the longest is taken (not in the paper): a row that a defense zeroed opposes all
    others, too. With two classes the two rows are opposite: the sign of the bias gradient decides, or without one the
    smaller sum, if no feature is negative. (The opposite label with the opposite features has the same rows.)

    Args:
      problem: one picture.
      dummies: unused.

    Returns:
      Counts [classes].
    """
    del dummies
    head = find_head(problem)
    rows = head.kernel_gradient.T
    if len(rows) == 2:
        return np.eye(2)[np.argmin(head.bias_gradient if head.has_bias else rows.sum(1))]
    lengths = np.linalg.norm(rows, axis=1)
    products = rows @ rows.T
    np.fill_diagonal(products, -np.inf)
    worst = np.where(lengths < lengths.max() / 2, np.inf, products.max(1))
    return np.eye(len(rows))[np.lexsort((-lengths, worst))[0]]
