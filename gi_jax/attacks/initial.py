"""Where an attack starts: functions of (key, problem) to images in the network's units.

Those with a parameter come from a function that makes them once for given arguments: an attack compares its start by
identity.
"""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.threat import AttackProblem
from gi_jax.types import Images, Key

Start = Callable[[Key, AttackProblem], Images]


def normal(key: Key, problem: AttackProblem) -> Images:
    """Independent N(0, 1) in the network's units (Zhu et al. 2019; Geiping et al. 2020)."""
    return jax.random.normal(key, problem.image_shape)


def uniform(key: Key, problem: AttackProblem) -> Images:
    """Independent, uniform over the pictures in [0, 1]."""
    return problem.space.normalize(jax.random.uniform(key, problem.image_shape))


@lru_cache
def patterned(side: int) -> Start:
    """A patch of side x side pixels of N(0, 1), repeated over the picture, a new one for each (Wei et al. 2020)."""
    checks.counts(side=side)

    def start(key, problem):
        n, height, width, channels = problem.image_shape
        patch = jax.random.normal(key, (n, side, side, channels))
        return jnp.tile(patch, (1, -(-height // side), -(-width // side), 1))[:, :height, :width]

    return start


@lru_cache
def constant(*color: float) -> Start:
    """One color everywhere, in the units of pictures, [0, 1]: a gray, or a value a channel (Wei et al. 2020)."""
    if not all(0 <= value <= 1 for value in color):
        raise checks.InputError(f"color={color}: expected values from 0 to 1")

    def start(key, problem):
        del key
        if len(color) not in (1, problem.image_shape[-1]):
            raise checks.InputError(f"color={color}: expected one value, or {problem.image_shape[-1]}, one a channel")
        return problem.space.normalize(jnp.full(problem.image_shape, jnp.array(color)))

    return start


@lru_cache
def low_resolution(factor: int) -> Start:
    """N(0, 1) at 1 / factor of the height and width, enlarged by cubic interpolation (Yue et al. 2023, ROG)."""
    checks.counts(factor=factor)

    def start(key, problem):
        n, height, width, channels = problem.image_shape
        coarse = jax.random.normal(key, (n, -(-height // factor), -(-width // factor), channels))
        return jax.image.resize(coarse, problem.image_shape, "cubic")

    return start


def given(pictures: Images) -> Start:
    """The same pictures in [0, 1] in every lane: a guess from elsewhere.

    Args:
      pictures: of the shape `problem.candidate_shape`: [n, h, w, c], and where every epoch of local training has
        guesses of its own those of one epoch after the other.
    """

    def start(key, problem):
        del key
        if jnp.shape(pictures) != problem.image_shape:
            raise checks.InputError(
                f"start of shape {jnp.shape(pictures)}: expected {problem.image_shape}, that of problem.candidate_shape"
            )
        return problem.space.normalize(jnp.asarray(pictures, jnp.float32))

    return start
