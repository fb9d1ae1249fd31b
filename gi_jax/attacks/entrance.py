"""What may be handed to an attack's loop: kinds and numbers, refused in a line before anything is compiled."""

import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.attacks.base import Attack
from gi_jax.attacks.gradient_descent import GradientDescent
from gi_jax.objectives import Objective
from gi_jax.threat import AttackProblem
from gi_jax.types import Key

MOST_STEPS = 2**31 - 2
"""Counted in int32, with one evaluation after the last step."""


def check_call(attack: Attack, problems: Sequence[AttackProblem], key: Key, num_restarts: int) -> None:
    """Refuses arguments of the wrong kind, numbers that no attack can have, and to be traced.

    Raises:
      InputError: naming the argument.
    """
    check_attack(attack)
    if not isinstance(problems, Sequence) or not problems:
        raise checks.InputError(f"problems {type(problems).__name__}: expected a list of one or more; try [problem]")
    for problem in problems:
        if not isinstance(problem, AttackProblem):
            raise checks.InputError(
                f"problem of type {type(problem).__name__}: expected an AttackProblem, what gi_jax.observe returns, as "
                "in reconstruct(attack, problem, key)"
            )
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((attack, list(problems), key))):
        raise checks.InputError(
            "reconstruct is a loop on the host, so jit, vmap and grad cannot trace it: give swept numbers as vectors, "
            "and many problems as a list, to reconstruct_all"
        )
    _check_key(key)
    if not isinstance(num_restarts, numbers.Integral):
        raise checks.InputError(f"num_restarts={num_restarts!r}: expected a whole number")
    checks.positive(num_restarts=num_restarts)


def _check_key(key):
    if not isinstance(key, jax.Array):
        raise checks.InputError(f"key of type {type(key).__name__}: expected a random key; try jax.random.key(0)")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not (typed and key.ndim == 0 or key.dtype == jnp.uint32 and key.shape == (2,)):
        raise checks.InputError(
            f"key of type {key.dtype} and shape {key.shape}: expected one random key; try jax.random.key(0)"
        )


def check_attack(attack: Attack) -> None:
    """Refuses what is no attack, parts that are none, and numbers that no attack can have. Skips traced numbers.

    Raises:
      InputError: naming the part or the number.
    """
    if isinstance(attack, type) or not all(hasattr(attack, name) for name in ("num_steps", "check", "init", "step")):
        hint = "reconstruct(attack, problem, key)" if isinstance(attack, AttackProblem) else "attacks.create('modern')"
        what = repr(attack) if isinstance(attack, str | type) else type(attack).__name__
        raise checks.InputError(f"attack {what}: expected an attack; try {hint}")
    if isinstance(attack, GradientDescent):
        _check_parts(attack)
    for path, leaf in jax.tree_util.tree_leaves_with_path(attack):
        if not isinstance(leaf, jax.core.Tracer):
            _check_numbers([str(getattr(step, "name", getattr(step, "key", step))) for step in path], leaf)


def _check_parts(attack):
    if not all(callable(getattr(attack.optimizer, name, None)) for name in ("init", "update")):
        name = getattr(attack.optimizer, "__name__", type(attack.optimizer).__name__)
        raise checks.InputError(f"optimizer {name}: expected an optax transformation; try {name}()")
    if not isinstance(attack.objective, Objective):
        raise checks.InputError(
            f"objective of type {type(attack.objective).__name__}: expected gi_jax.Objective(parts={{name: part}})"
        )
    if not attack.objective.parts:
        raise checks.InputError("objective without parts: expected one or more; try GradientMatching()")
    for name, part in attack.objective.parts.items():
        if not hasattr(part, "weight"):
            raise checks.InputError(
                f"part {name!r} of type {type(part).__name__}: expected a frozen dataclass with a weight, such as "
                "TotalVariation()"
            )


def _check_numbers(path: list[str], leaf):
    if len(path) > 1 and path[-2] in ("learning_rate", "num_steps", "weight"):
        raise checks.InputError(f"{path[-2]} is a list: expected a number, or a vector to sweep; try jnp.array([...])")
    name = "/".join(path[-2:])
    try:
        kind = jax.dtypes.result_type(leaf)
    except TypeError:
        kind = None
    if kind is None or not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
        raise checks.InputError(f"{name}={leaf!r}: expected a number, or a vector of numbers to sweep")
    for value in np.ravel(leaf).tolist():
        if path[-1] == "weight":
            checks.non_negative(**{name: value})
        if path[-1] in ("learning_rate", "num_steps"):
            checks.positive(**{name: value})
        if path[-1] == "num_steps" and checks.whole(name, value) > MOST_STEPS:
            raise checks.InputError(f"{name}={value}: expected a whole number up to {MOST_STEPS}")
