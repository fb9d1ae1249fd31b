"""Ma et al., Instance-wise Batch Label Restoration via Gradients in Federated Learning, ICLR 2023: iLRG."""

import numpy as np

from gi_jax.attacks.labels.counts import allocate
from gi_jax.attacks.labels.head import LazyDummies, find_head, softmax
from gi_jax.threat import AttackProblem


def ilrg(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """Counts from a linear system, with the mean features of each class read off the gradient.

    Row i of the kernel's gradient over entry i of the bias gradient estimates the features of pictures of class i, the
    network's own head turns them into probabilities P[j, i], and the counts n solve

        sum_j n_j P[j, i] - n_i = n * (bias gradient)_i for all i,      sum_j n_j = n

    in least squares.

    Args:
      problem: with a bias.
      dummies: unused.

    Returns:
      Counts [classes].
    """
    del dummies
    head = find_head(problem)
    gradient = head.bias_gradient
    safe = np.where(np.abs(gradient) < 1e-10, 1e-10, gradient)
    features = (head.kernel_gradient / safe).T
    probabilities = softmax(features @ head.kernel + head.bias)
    system = np.vstack([probabilities.T - np.eye(len(gradient)), np.ones(len(gradient))])
    values = np.linalg.lstsq(system, head.batch_size * np.append(gradient, 1), rcond=None)[0]
    return allocate(values, head.batch_size)
