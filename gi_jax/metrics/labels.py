"""Recovered labels against the true ones, as counts of pictures a class."""

import numpy as np

PRESENT = 0.01
"""A class counts as present above this: recovered soft labels carry rounding."""


def set_overlap(counts: np.ndarray, truth: np.ndarray) -> float:
    """Classes that are in both batches over classes that are in either, in [0, 1].

    Args:
      counts: recovered, [classes].
      truth: of the private batch, [classes].
    """
    found, there = counts > PRESENT, truth > PRESENT
    return float(np.sum(found & there) / np.sum(found | there))


def count_overlap(counts: np.ndarray, truth: np.ndarray) -> float:
    """sum_i min(found_i, true_i) over the batch size: the share of pictures whose label was recovered, in [0, 1]."""
    return float(np.minimum(counts, truth).sum() / np.sum(truth))
