"""Learning rates as a function of progress: from the fraction of the attack that is done, in [0, 1], to a factor.

Being functions of the fraction, they need no number of steps, and so no recompilation when it changes.
"""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp

from gi_jax import checks

Schedule = Callable[[jax.Array], jax.Array]


def constant(progress: jax.Array) -> jax.Array:
    """1 throughout."""
    return jnp.ones_like(progress)


def step_decay(progress: jax.Array) -> jax.Array:
    """Times 0.1 at 3/8, 5/8 and 7/8 of the attack (Geiping et al. 2020; Huang et al. 2021, section 5.1)."""
    passed = jnp.sum(progress >= jnp.array([3 / 8, 5 / 8, 7 / 8]))
    return 0.1 ** passed.astype(jnp.float32)


def cosine_decay(progress: jax.Array) -> jax.Array:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


@lru_cache
def warm_up(schedule: Schedule, fraction: float) -> Schedule:
    """From 0 to `schedule` in a straight line, over the first `fraction` of the attack, then `schedule`.

    Built once for given arguments: an attack compares its schedule by identity.
    """
    checks.positive(fraction=fraction)
    return lambda progress: jnp.minimum(1.0, progress / fraction) * schedule(progress)
