"""Every epoch of a client's local training sees the same pictures: guesses of different epochs agree, in any order."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gi_jax.objectives.candidate import Candidate
from gi_jax.threat import AttackProblem, Update


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class EpochConsistency:
    """R_epochs: how far what does not depend on the order differs between the epochs of a candidate.

    Two features of an epoch's guesses x_k with labels y_k: the sums by class, sum_k y_k[c] x_k, and the largest value
    of each pixel over all k. Each is compared by its variance over the epochs (half the mean squared distance of two
    epochs), a mean over pixels and, for the sums, over pictures, so that 1 means one unit of the network's input. The
    prior is 0 if and, up to what the features miss, only if every epoch holds the same pictures of every class.

    Dimitrov et al. (2022, "Data Leakage in Federated Averaging") take the mean over all pictures, or their
    maximum. Labels stand at the same places in every epoch here, so that sums may go by class, which is strictly more:
    with one picture a class it compares picture by picture. If all pictures have one label, it is their mean.

    Attributes:
      weight: of this term.
    """

    weight: jax.Array | float = 0.1

    def __call__(self, problem: AttackProblem, candidate: Candidate, update: Update) -> jax.Array:
        del update
        images, labels = (leaf.reshape(problem.copies, -1, *leaf.shape[1:]) for leaf in candidate.batch(problem))
        sums = jnp.einsum("enc,en...->ec...", labels, images)
        of_sums = _variance_over_epochs(sums) / images.shape[1]
        return jnp.sum(jnp.mean(of_sums, (1, 2, 3))) + jnp.mean(_variance_over_epochs(jnp.max(images, axis=1)))


def _variance_over_epochs(features: jax.Array) -> jax.Array:
    mean = jnp.mean(features, axis=0, keepdims=True)
    return jnp.sum(jnp.square(features - mean), axis=0) / max(1, len(features) - 1)
