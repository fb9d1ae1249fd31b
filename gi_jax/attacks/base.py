"""What an attack is: a pair of pure functions. Everything that loops over them is in `loop.py`."""

from typing import Any, NamedTuple, Protocol

import jax

from gi_jax.objectives import Candidate
from gi_jax.threat import AttackProblem
from gi_jax.types import Key


class AttackInfo(NamedTuple):
    """What a person wants to see of one step; all scalars.

    Attributes:
      loss: the objective at the candidate before the step.
      parts: its unweighted parts by name.
    """

    loss: jax.Array
    parts: dict[str, jax.Array]


class AttackState(NamedTuple):
    """What the next step needs.

    Attributes:
      step: how many steps were taken.
      candidate: where the attack is.
      optimizer: the optimizer's own state.
      best, best_loss: the candidate of the lowest finite loss so far, and that loss.
      alive: False once a loss or derivative was not finite; the lane then stays where it is.
      info: of the last evaluation.
      seed: of whatever the attack draws on its way, a uint32.
    """

    step: jax.Array
    candidate: Candidate
    optimizer: Any
    best: Candidate
    best_loss: jax.Array
    alive: jax.Array
    info: AttackInfo
    seed: jax.Array


class Attack(Protocol):
    """A pytree whose leaves are numbers that may be swept and whose structure is the program.

    A scalar leaf is common to all lanes; a vector [w] makes w lanes (`gi_jax.attacks.loop`). `num_steps` is the number
    of steps after which `step` only evaluates.
    """

    num_steps: Any

    def check(self, problems: AttackProblem) -> None:
        """Raises an `InputError` for a stack of problems (with a leading victim axis) that it cannot attack."""
        ...

    def init(self, key: Key, problem: AttackProblem) -> AttackState: ...

    def step(self, problem: AttackProblem, state: AttackState) -> AttackState: ...
