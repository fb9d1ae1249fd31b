"""Zhao et al., iDLG: Improved Deep Leakage from Gradients, 2020."""

import numpy as np

from gi_jax.attacks.labels.head import LazyDummies, find_head
from gi_jax.threat import AttackProblem


def idlg(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """The class whose row has no positive inner product with any other: of one picture, its label.

    Rows of the gradient are (p_i - y_i) h, and p_i - y_i is negative for the label only. This is the paper's rule, for
    features of any sign; its published code takes the smallest row sum, which needs features that are not negative.
    With two classes the two rows are opposite, and the smaller sum decides.

    Args:
      problem: one picture.
      dummies: unused.

    Returns:
      Counts [classes].
    """
    del dummies
    rows = find_head(problem).kernel_gradient.T
    if len(rows) == 2:
        return np.eye(2)[np.argmin(rows.sum(1))]
    products = rows @ rows.T
    np.fill_diagonal(products, -np.inf)
    return np.eye(len(rows))[np.argmin(products.max(1))]
