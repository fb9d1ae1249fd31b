"""How many local steps an update is made of, where nobody says: short attacks under several numbers, and what fits."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax.attacks.gradient_descent import GradientDescent
from gi_jax.attacks.loop import reconstruct
from gi_jax.threat import AttackProblem, Batch
from gi_jax.types import Key

SHORT = 100
"""Steps of a short attack, at most."""


def estimate_num_steps(
    assume: Callable[[int], AttackProblem], candidates: Sequence[int], attack: GradientDescent, key: Key
) -> tuple[int, dict[int, float]]:
    """The number of local steps under which a short attack explains an update best.

    Each attack minimizes its own objective; compared is the misfit ||g - g*||^2 / (||g|| ||g*||) of what it imagines in
    the end. A cosine, as a rule the objective, would be blind to most of what there is to see: of a model that moved by
    d, m steps say that their mean gradient had length d / (rate * m), and pictures have gradients of a typical length.
    Relative to both lengths, too long and too short count alike. All attacks have one guess of each picture and the
    same order in all epochs, so that more steps do not come with more unknowns.

    Args:
      assume: from a number of steps to the problem as it looks under that assumption.
      candidates: numbers of steps.
      attack: the one that follows; at most `SHORT` steps of it are taken.
      key: of the starts, the same for all candidates.

    Returns:
      The number, and the misfit of each.
    """
    short = dataclasses.replace(attack, num_steps=min(int(attack.num_steps), SHORT))
    misfits = {}
    for steps in candidates:
        problem = assume(steps)
        if problem.copies > 1:
            problem = dataclasses.replace(problem, order=problem.local.same_order(problem.image_shape[0]))
        found = reconstruct(short, problem, key)
        batch = Batch(problem.space.normalize(jnp.asarray(found.images)), jnp.asarray(found.labels))
        misfit = float(_misfit(problem, batch))
        misfits[steps] = misfit if np.isfinite(misfit) else np.inf  # the imagined client's training blew up
    return min(misfits, key=misfits.get), misfits


@jax.jit
def _misfit(problem, batch):
    pairs = (problem.imagine(batch).gradients, problem.observed)
    squares = jax.tree.map(lambda a, b: jnp.stack([jnp.sum(jnp.square(x)) for x in (a - b, a, b)]), *pairs)
    distance, imagined, observed = sum(jax.tree.leaves(squares))
    return distance / (jnp.sqrt(imagined) * jnp.sqrt(observed))
