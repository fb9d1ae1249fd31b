"""Group consistency: restarts that are drawn to what they have in common (Yin et al. 2021, section 3.3)."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from gi_jax.objectives.candidate import Candidate
from gi_jax.objectives.registration import estimate_shift, translate
from gi_jax.threat import AttackProblem, Update
from gi_jax.types import Images

RESTARTS = "restarts"
"""The name of the axis of the restarts of one victim and sweep point, in the loop's innermost `vmap`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GroupConsistency:
    """R_group: mean of (x - E)^2, where E is the consensus of all restarts and a constant to the derivative.

    Only defined among restarts, that is in the loop of `gi_jax.attacks`; one restart alone agrees with itself. Restarts
    are then no longer independent. The paper takes the norm instead of the mean square and publishes no weight.

    Attributes:
      registered: E is the mean of the restarts after each was shifted onto their pixel-wise mean, instead of that mean
        itself (the paper registers by RANSAC-Flow, here it is phase correlation); static.
      weight: of this term.
    """

    registered: bool = field(default=False, metadata={"static": True})
    weight: jax.Array | float = 0.01

    def __call__(self, problem: AttackProblem, candidate: Candidate, update: Update) -> jax.Array:
        del problem, update
        images = jax.lax.stop_gradient(candidate.images)
        consensus = _mean_over_restarts(images)
        if self.registered:
            consensus = _mean_over_restarts(translate(images, estimate_shift(images, consensus)))
        return jnp.mean(jnp.square(candidate.images - consensus))


def _mean_over_restarts(images: Images) -> Images:
    # A restart that is not finite takes no part; one that diverged since counts with the last finite pictures it had.
    whole = jnp.all(jnp.isfinite(images))
    total, count = jax.lax.psum((jnp.where(whole, images, 0.0), jnp.float32(whole)), RESTARTS)
    return total / jnp.maximum(count, 1.0)
