"""Geng et al., Towards General Deep Leakage in Federated Learning, 2021, on the bias instead of the row sums."""

import numpy as np

from gi_jax.attacks.labels.counts import allocate
from gi_jax.attacks.labels.geng import bias_by_rows
from gi_jax.attacks.labels.head import LazyDummies, find_head
from gi_jax.threat import AttackProblem, Noisy, Rounded, Zeroed

REACH = {"gaussian": 3.0, "laplacian": 5.9}
"""Scales by which noise is below zero with a probability of 0.00135, by distribution."""


def bias_counts(problem: AttackProblem, dummies: LazyDummies) -> np.ndarray:
    """n_i = n (p[i] - (bias gradient)_i), with the mean probabilities p of random pictures.

    Where labels sum to s, the bias gradient over s, for it is that of s p - y (see `Head.label_sum`).
    The bias is a feature that is 1 for every picture, so that no assumption on features is needed. What the signs of
    the gradient prove present is counted once at least (not in the paper): a class of negative bias gradient, and one
    with a negative entry in its row if no feature is negative. Noise voids the latter where it is known, or shows by
    classes that are more than the pictures, and it can be taken for the former within its `REACH`. Where a
    client sets entries to zero, those that are, or may be within noise, are unknown, and what the rows tell is in their
    place, as in `geng` (not in the paper either).

    Args:
      problem: with a bias.
      dummies: random pictures, see `gi_jax.attacks.labels.simulate`.

    Returns:
      Counts [classes].
    """
    head = find_head(problem)
    probabilities, features = dummies()
    reaches = [_reach(fact) / head.label_sum for fact in problem.known if isinstance(fact, Noisy | Rounded)]
    present = head.bias_gradient < -sum(reaches)
    by_rows = present | (head.kernel_gradient.min(0) < 0)
    if features.min() >= 0 and not reaches and by_rows.sum() <= head.batch_size:
        present = by_rows
    gradient = head.bias_gradient
    if any(isinstance(fact, Zeroed) and fact.holds_for("head/bias") for fact in problem.known):
        unknown = np.abs(gradient) <= sum(reaches)
        if unknown.any():
            gradient = np.where(unknown, bias_by_rows(head, features.mean(0), features.min() >= 0), gradient)
    values = head.batch_size * (probabilities.mean(0) - gradient)
    return allocate(values, head.batch_size, present)


def _reach(fact: Noisy | Rounded) -> float:
    return float(fact.scale) * REACH[fact.distribution if isinstance(fact, Noisy) else "gaussian"]
