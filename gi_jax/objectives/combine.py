"""The objective: a weighted sum of named parts, as one scalar of (problem, candidate)."""

from dataclasses import dataclass

import jax

from gi_jax import checks
from gi_jax.objectives.candidate import Candidate
from gi_jax.threat import AttackProblem


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Objective:
    """L_grad + sum_i alpha_i R_i (Eq. 1 to 3 of Huang et al. 2021).

    A pytree: weights are leaves, so they can be swept by `vmap` and changed without recompiling; which parts there are
    and how each is computed is structure.

    Attributes:
      parts: name to part. A part is a frozen dataclass with a `weight`, registered as a pytree
        (`jax.tree_util.register_dataclass`), called with (problem, candidate, update).

    Raises:
      InputError: for parts without names, and for a part that is no pytree.
    """

    parts: dict[str, object]

    def __post_init__(self):
        if not isinstance(self.parts, dict):
            raise checks.InputError(f"parts of type {type(self.parts).__name__}: expected a dictionary, {{name: part}}")
        for name, part in self.parts.items():
            if hasattr(part, "weight") and jax.tree_util.all_leaves([part]):
                raise checks.InputError(
                    f"part {name!r}: {type(part).__name__} is no pytree, so its weight could be no leaf; expected "
                    "@jax.tree_util.register_dataclass above @dataclass(frozen=True)"
                )

    def __call__(self, problem: AttackProblem, candidate: Candidate) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted sum, and the unweighted value of each part by name."""
        update = problem.imagine(candidate.batch(problem))
        values = {name: part(problem, candidate, update) for name, part in self.parts.items()}
        return sum(part.weight * values[name] for name, part in self.parts.items()), values
