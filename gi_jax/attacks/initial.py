"""Where an attack starts: functions of (key, problem) to images in the network's units."""

import jax

from gi_jax.threat import AttackProblem
from gi_jax.types import Images, Key


def normal(key: Key, problem: AttackProblem) -> Images:
    """Independent N(0, 1) in the network's units (Zhu et al. 2019; Geiping et al. 2020)."""
    return jax.random.normal(key, problem.image_shape)


def uniform(key: Key, problem: AttackProblem) -> Images:
    """Independent, uniform over the pictures in [0, 1]."""
    return problem.space.normalize(jax.random.uniform(key, problem.image_shape))
