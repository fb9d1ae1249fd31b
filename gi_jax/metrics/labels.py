"""Recovered labels against the true ones, as counts of pictures a class: their order in the batch means nothing."""

import numpy as np

PRESENT = 0.01
"""A class counts as present above this: recovered soft labels carry rounding."""


def set_overlap(counts: np.ndarray, truth: np.ndarray) -> float:
    """Classes that are in both batches over classes that are in either, in [0, 1].

    Args:
      counts: recovered, [classes]; or the largest share of each class in any picture.
      truth: the same of the private batch, [classes].
    """
    found, there = counts > PRESENT, truth > PRESENT
    return float(np.sum(found & there) / np.sum(found | there))


def count_overlap(counts: np.ndarray, truth: np.ndarray) -> float:
    """sum_i min(found_i, true_i) over the batch size: the share of pictures whose label was recovered, in [0, 1]."""
    return float(np.minimum(counts, truth).sum() / np.sum(truth))


def label_overlaps(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Both overlaps of a batch whose labels were recovered picture by picture, hard or soft.

    Where the true labels are hard, so is the answer: each picture counts for its most probable class, since all the
    others have a little of it, which adds up over a batch. Of mixed labels a class is there if one picture has it.

    Args:
      found: class probabilities [n, classes]; NaN, of attacks that failed, count for no class.
      truth: of the private batch, [n, classes], in any order.
    """
    found = np.nan_to_num(found)
    if np.allclose(truth.max(1), 1, atol=PRESENT):
        found, truth = (np.eye(labels.shape[1])[labels.argmax(1)] * labels.any(1)[:, None] for labels in (found, truth))
    return {
        "set_overlap": set_overlap(found.max(0), truth.max(0)),
        "count_overlap": count_overlap(found.sum(0), truth.sum(0)),
    }
