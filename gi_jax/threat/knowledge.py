"""What the adversary is told about how the update was made: facts, in the order in which the client applied them.

A defense that is safe only while nobody knows of it is not safe, so by default the adversary knows which defense runs
and its public parameters; never its random choices. Each fact is a frozen pytree: its kind is structure, its numbers
are leaves. `gi_jax.attacks.adaptive` turns facts into the objective that fits them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import jax
import numpy as np

from gi_jax import checks
from gi_jax.types import Gradients


def _static(**options):
    return field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Zeroed:
    """Entries that are exactly zero were set to zero by the client: what they were is unknown.

    Attributes:
      tensors: prefixes of the paths (`head/kernel`) of the tensors that this holds for; empty for all. Static.
      bound: no entry that was set to zero was larger in magnitude, as where the largest are kept; a scalar, or a scalar
        a tensor in the structure of the gradient. None if that is not known.
      kept: share of their entries that were not set to zero, in [0, 1]; a scalar, or a scalar a tensor. It counts where
        noise on top hides which they are, as the odds of an entry. Of one threshold over all tensors it is the mean
        over all, in which those that never left the client may have had another share.
    """

    tensors: tuple[str, ...] = _static(default=())
    bound: Gradients | jax.Array | float | None = None
    kept: Gradients | jax.Array | float = 0.5

    def holds_for(self, name: str) -> bool:
        """Whether it is of the tensor of this name."""
        return not self.tensors or name.startswith(self.tensors)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Noisy:
    """Independent noise was added to every entry.

    Attributes:
      distribution: `gaussian` or `laplacian`; static.
      scale: standard deviation, or mean absolute value, in the units of the gradient; a scalar.
    """

    distribution: str = _static()
    scale: jax.Array | float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Signs:
    """Only the sign of every entry is meaningful."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Every entry was rounded.

    Attributes:
      width: the true entry is less than this far from the value; a scalar, or a scalar a tensor in the structure of the
        gradient.
    """

    width: Gradients | jax.Array | float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Every entry was rounded up or down at random to a multiple of its tensor's spacing, without bias.

    Attributes:
      spacing: a scalar, or a scalar a tensor in the structure of the gradient; infinite where it is not known.
      scale: standard deviation of what that added to an entry, in the units of the gradient; a scalar.
    """

    spacing: Gradients | jax.Array | float
    scale: jax.Array | float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Clipped:
    """The gradient was scaled down, as a whole or an example's at a time: its length says nothing.

    Attributes:
      bound: the largest l2 norm that was let through; a scalar.
    """

    bound: jax.Array | float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Mixed:
    """The private batch was encoded: what the gradient holds are mixtures of pictures.

    Attributes:
      k: pictures in a mixture; static.
      flipped: every pixel's sign was drawn at random (InstaHide); static.
      label_sum: what the label of a mixture sums to, below 1 where public pictures, which have no label, have a fixed
        share; a scalar. None where that share is drawn.
    """

    k: int = _static()
    flipped: bool = _static(default=False)
    label_sum: jax.Array | float | None = 1.0


Fact = Zeroed | Noisy | Signs | Quantized | Rounded | Clipped | Mixed

BY_TENSOR: dict[type, dict[str, float]] = {
    Zeroed: {"bound": math.inf, "kept": 1.0},
    Quantized: {"width": math.inf},
    Rounded: {"spacing": math.inf},
}
"""What of a fact may be a scalar a tensor, and the one that says nothing of that tensor."""


def by_tensor(fact: Fact, like: Gradients) -> Fact:
    """The fact with a scalar a tensor of `like` in the place of a scalar for all."""

    def spread(value):
        return jax.tree.map(lambda _: value, like) if jax.tree_util.all_leaves([value]) else value

    return replace(fact, **{name: spread(getattr(fact, name)) for name in BY_TENSOR.get(type(fact), {})})


RANGES = {
    "kept": (0, 1),
    "bound": (0, math.inf),
    "width": (0, math.inf),
    "spacing": (0, math.inf),
    "scale": (0, float(np.finfo(np.float32).max)),
    "label_sum": (0, 1),
}
"""From where to where the numbers of facts go, both included."""


def _check_numbers(fact):
    if isinstance(fact, Noisy):
        checks.one_of("distribution", fact.distribution, ["gaussian", "laplacian"])
    for name, (low, high) in RANGES.items():
        for value in jax.tree.leaves(getattr(fact, name, None)):
            if not isinstance(value, jax.core.Tracer) and not np.all((low <= value) & (value <= high)):
                raise checks.InputError(
                    f"{name} of {type(fact).__name__} is {value}: expected a number from {low:g} to {high:g}"
                )


def check_facts(facts: Sequence[Fact], like: Gradients) -> None:
    """Refuses what are no facts about an update of the structure of `like`.

    Raises:
      InputError: naming the fact, and the tensor for which it has no number, or a number that it cannot have.
    """
    if not isinstance(facts, tuple | list):
        raise checks.InputError(f"known {type(facts).__name__}: expected a tuple of facts; try (fact,)")
    scalars = jax.tree.map(lambda _: 0.0, like)
    for fact in facts:
        if not isinstance(fact, Fact):
            kinds = ", ".join(kind.__name__ for kind in get_args(Fact))
            raise checks.InputError(f"unknown fact {fact!r}: expected one of {kinds}")
        spread = by_tensor(fact, like)
        for name in BY_TENSOR.get(type(fact), {}):
            if (numbers := getattr(spread, name)) is not None:
                checks.same_structure(f"{name} of {type(fact).__name__}", numbers, scalars)
        _check_numbers(fact)
