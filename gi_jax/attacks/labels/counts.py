"""From real numbers to whole pictures of each class, and from those to labels."""

import numpy as np


def allocate(values: np.ndarray, total: int, present: np.ndarray | None = None) -> np.ndarray:
    """Whole counts, 0 or above, that sum to `total` and are nearest to `values` in the sum of squares.

    Pictures are given out one at a time to the class that lacks most, which is optimal because the cost of each further
    picture of a class grows.

    Args:
      values: [classes], any real numbers; -inf for a class that must stay empty.
      total: how many pictures.
      present: booleans [classes]; these classes get a picture each first, the largest values first.

    Returns:
      float64 [classes].
    """
    counts = np.zeros(len(values))
    if present is not None:
        first = np.argsort(np.where(present, -values, np.inf), kind="stable")[: min(total, int(present.sum()))]
        counts[first] = 1
    for _ in range(total - int(counts.sum())):
        counts[np.argmax(values - counts)] += 1
    return counts


def assign(counts: np.ndarray, batch_size: int) -> np.ndarray:
    """Class probabilities [batch_size, classes] with these counts, in the order of the classes.

    Which picture of a batch has which label is not to be known, and does not matter: the gradient is the same (but for
    steps and clients of their own, over which `AttackProblem.with_labels` spreads them). One picture may have a soft
    label, and its counts are that label.

    Args:
      counts: [classes] that sum to `batch_size`; whole numbers unless there is one picture.
    """
    if batch_size == 1:
        return counts[None] / counts.sum()
    return np.eye(len(counts))[np.repeat(np.arange(len(counts)), counts.astype(int))]
