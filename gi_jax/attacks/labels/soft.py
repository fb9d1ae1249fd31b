"""The label of one picture, hard or mixed: MixUp, InstaHide, label smoothing."""

import numpy as np

from gi_jax.attacks.labels.head import Head, LazyDummies, find_head, softmax
from gi_jax.threat import AttackProblem


def soft(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """The label y of one picture, exactly: y = s p - (bias gradient), with p from the picture's own features.

    s is what the label sums to: 1, or what the adversary is told of public pictures (see `Head.label_sum`). Of y / s,
    which is returned, the same holds with the gradient over s.

    Entries that a client set to zero are what its other entries tell, by the same product (see `Head`).

    The kernel's gradient is the outer product of features and bias gradient, so the features follow by division, and
    the probabilities p from them. Without a bias the size of the features is searched for, so that the lower half of
    the label's entries are equal, as they are for mixtures of up to half of the classes and for smoothed labels. Of
    fewer than six classes that is two entries, which other sizes make equal, too.

    Args:
      problem: one picture.
      dummies: unused.

    Returns:
      The label [classes] over s, which sums to 1.
    """
    del dummies
    head = find_head(problem)
    label = _by_the_bias(head) if head.has_bias else _by_search(head)
    shares = np.clip(label, 0, 1)
    if not shares.any():  # noise
        return np.eye(len(label))[np.argmax(label)]
    return shares / shares.sum()


def _by_the_bias(head: Head) -> np.ndarray:
    gradient = head.bias_gradient
    return softmax(head.features_of_one @ head.kernel + head.bias) - gradient


def _by_search(head: Head) -> np.ndarray:
    # Features are r / u, with r the longest row and u its factor p - y, which lies in [-1, 1] and nowhere near 0.
    rows = head.kernel_gradient.T
    row = rows[np.argmax(np.linalg.norm(rows, axis=1))]
    along = rows @ row / (row @ row)  # (p_i - y_i) / u
    bias = np.zeros(len(rows)) if head.bias is None else head.bias

    def labels(u):
        return softmax(np.outer(1 / u, row @ head.kernel) + bias) - np.outer(u, along)

    def spread(u):
        return np.sort(labels(u), axis=1)[:, : max(2, len(rows) // 2)].var(1) / u**2  # else low near u = 0

    sizes = np.geomspace(1e-3, 1, 2000)
    grid = np.concatenate([-sizes[::-1], sizes])
    for _ in range(6):
        best = np.argmin(spread(grid))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        grid = np.linspace(low, high, 200)
    return labels(grid[[np.argmin(spread(grid))]])[0]
