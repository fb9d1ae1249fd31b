"""What an attack optimizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.threat import AttackProblem, Batch
from gi_jax.types import Images


class Candidate(NamedTuple):
    """A guess of the private batch.

    Attributes:
      images: float32 [n, h, w, c] in the network's units (normalized); n is that of the private batch, times
        `problem.copies` where every epoch of local training has guesses of its own, one epoch after the other.
      label_logits: [n, num_classes], n as of the images, where labels are optimized jointly, else None. The labels
        are `problem.label_sum` times their softmax.
    """

    images: Images
    label_logits: jax.Array | None = None

    def batch(self, problem: AttackProblem) -> Batch:
        """The batch that the client would have had: the candidate's own labels, or those that the problem knows.

        The latter are the same in every epoch.

        Raises:
          InputError: if neither has any.
        """
        if self.label_logits is not None:
            return Batch(self.images, problem.label_sum * jax.nn.softmax(self.label_logits))
        if problem.labels is None:
            raise checks.InputError(
                "labels are unknown: expected known labels in the problem, or an attack that optimizes them"
            )
        if problem.copies == 1:
            return Batch(self.images, problem.labels)
        return Batch(self.images, jnp.tile(problem.labels, (problem.copies, 1)))
