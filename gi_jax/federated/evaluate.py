"""Accuracy on held-out pictures: of the server's model, or of every client's where they differ."""

import jax
import numpy as np

from gi_jax.federated.batch_norm import Policy
from gi_jax.federated.federation import Federation
from gi_jax.federated.rounds import State
from gi_jax.training import Pool, Score, evaluate


def accuracies(federation: Federation, state: State, pool: Pool) -> np.ndarray:
    """The share of a pool's pictures that is classified correctly, 0 to 1, with running averages.

    Returns:
      float [1] of the server's model; where BatchNorm stays with the clients, which makes models of their own,
      float [num_clients].
    """
    return np.array([score.accuracy for score in scores(federation, state, pool)])


def scores(federation: Federation, state: State, pool: Pool) -> list[Score]:
    """The same with the losses: of the server's model or of every client's."""
    if federation.batch_norm == Policy.SHARED:
        models = [state.model]
    else:
        num_clients = len(jax.tree.leaves(state.own)[0])
        models = [state.client(number) for number in range(num_clients)]
    return [evaluate(federation.network, *model, pool) for model in models]
