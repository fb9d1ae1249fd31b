"""What the labels say of the pictures: a scalar of a candidate."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gi_jax.objectives.candidate import Candidate
from gi_jax.threat import AttackProblem, Update


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LabelConsistency:
    """||softmax(f(x)) - y||^2, mean over the batch: the label regularizer of Wei et al. (2020).

    Pictures that the network classifies as their labels say; on an untrained network the truth is not among them.
    """

    weight: jax.Array | float = 1.0

    def __call__(self, problem: AttackProblem, candidate: Candidate, update: Update) -> jax.Array:
        del update
        images, labels = candidate.batch(problem)
        given = {} if problem.statistics is None else problem.statistics

        def logits_of(given, images):
            return problem.network(problem.params, given, images, problem.normalize)[0]

        if problem.clients > 1:  # each normalizes its own pictures
            own = images.reshape(problem.clients, -1, *images.shape[1:])
            logits = jax.vmap(logits_of)(given, own).reshape(labels.shape)
        else:
            logits = logits_of(given, images)
        return jnp.mean(jnp.sum(jnp.square(jax.nn.softmax(logits) - labels), axis=-1))
