"""Geng et al., Towards General Deep Leakage in Federated Learning, 2021; for local steps as Dimitrov et al. 2022."""

import numpy as np

from gi_jax.attacks.labels.counts import allocate
from gi_jax.attacks.labels.head import Head, LazyDummies, find_head
from gi_jax.threat import AttackProblem


def geng(problem: AttackProblem, dummies: LazyDummies, *, dummies_after: LazyDummies | None = None) -> np.ndarray:
    """Counts from row sums, with probabilities and features as random pictures have them.

    Summed over the features, row i of the gradient is (1/n) sum_k (p_k[i] - y_k[i]) o_k with o_k the sum of h_k. With
    means p and o over random pictures in place of p_k and o_k: n_i = n p[i] - n (row sum i) / o.

    Features of both signs may sum to nothing. They are then weighed by their mean over the random pictures before they
    are summed, here and in the gradient, which keeps the rule and makes o a sum of squares (not in the paper).

    After several local steps, `problem.observed` is the mean gradient of the steps, (before - after) / (rate * steps),
    and probabilities and features are means over the models before and after (Dimitrov et al. 2022).

    Args:
      problem: any network with a linear head.
      dummies: random pictures, see `gi_jax.attacks.labels.simulate`.
      dummies_after: the same with the client's model after its local steps; None for one step.

    Returns:
      Counts [classes].
    """
    head = find_head(problem)
    models = [dummies()] if dummies_after is None else [dummies(), dummies_after()]
    features = np.mean([one.features.mean(0) for one in models], 0)
    probabilities = np.mean([one.probabilities.mean(0) for one in models], 0)
    nonnegative = min(one.features.min() for one in models) >= 0
    return allocate(head.batch_size * (probabilities - bias_by_rows(head, features, nonnegative)), head.batch_size)


def bias_by_rows(head: Head, features: np.ndarray, nonnegative: bool) -> np.ndarray:
    """The gradient of a bias [classes] that row sums tell of, from the mean features [features] of random pictures."""
    weights = np.ones_like(features) if nonnegative else features
    return weights @ head.kernel_gradient / (weights @ features)
