"""The attacker that knows the defense: from the facts that a problem holds to the objective that fits them."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from gi_jax import checks
from gi_jax.attacks.base import Attack
from gi_jax.attacks.gradient_descent import GradientDescent
from gi_jax.objectives import GradientLikelihood, GradientMatching, NoisePrior, TotalVariation
from gi_jax.threat import AttackProblem, Clipped, Fact, Mixed, Noisy, Quantized, Rounded, Signs, Zeroed

Parts = dict[str, object]
"""The parts of an `Objective`, by name."""

Facts = tuple[Fact, ...]


class Adaptation(NamedTuple):
    """What an attack makes of a kind of fact: `change(parts, fact, known)` gives the parts that fit it, one of all that
    are `known`; `words` says how."""

    change: Callable[[Parts, Fact, Facts], Parts]
    words: str


def _of_kind(kind: type, change: Callable, parts: Parts) -> Parts:
    return {name: change(part) if isinstance(part, kind) else part for name, part in parts.items()}


def _likelihood(parts: Parts, fact: Fact, known: Facts) -> Parts:
    return _of_kind(GradientMatching, lambda part: GradientLikelihood(weight=_relative_weight(part)), parts)


def _relative_weight(part: GradientMatching):
    # A likelihood is relative to the energy of the gradient, as cosines are; weights of other distances are not.
    return part.weight if part.distance.startswith("cosine") else 1.0


def _zeroed(parts: Parts, fact: Zeroed, known: Facts) -> Parts:
    scarce = _of_kind(TotalVariation, lambda part: dataclasses.replace(part, scarce=True), parts)
    return _likelihood(scarce, fact, known)


def _noisy(parts: Parts, fact: Noisy | Rounded, known: Facts) -> Parts:
    flipped = any(isinstance(one, Mixed) and one.flipped for one in known)
    return _likelihood(parts, fact, known) | {"noise_prior": NoisePrior(magnitude=flipped)}


def _signs(parts: Parts, fact: Signs, known: Facts) -> Parts:
    at_least = lambda part: dataclasses.replace(part, weight=jnp.maximum(part.weight, 0.01))  # noqa: E731
    return _of_kind(TotalVariation, at_least, _likelihood(parts, fact, known))


def _mixed(parts: Parts, fact: Mixed, known: Facts) -> Parts:
    if not fact.flipped:
        return parts  # a mixture is as smooth as a picture
    return _of_kind(TotalVariation, lambda part: dataclasses.replace(part, magnitude=True), parts)


ADAPTATIONS: dict[type, Adaptation] = {
    Zeroed: Adaptation(
        _zeroed,
        "it compares zeroed entries with the bound that the kept ones give, if any, and smooths the more, the fewer "
        "it sees",
    ),
    Noisy: Adaptation(_noisy, "it weighs gradient and smoothness by the law and the scale of the noise"),
    Quantized: Adaptation(_likelihood, "it accepts every entry that rounds to what was sent"),
    Rounded: Adaptation(_noisy, "it weighs gradient and smoothness by the odds of the rounding"),
    Clipped: Adaptation(
        _likelihood,
        "it clips what it imagines to the length that was sent, the mean where examples were clipped one by one",
    ),
    Signs: Adaptation(_signs, "it compares signs only"),
    Mixed: Adaptation(
        _mixed, "it takes the private pictures for mixtures, of smooth magnitude where signs are flipped"
    ),
}
"""What an attack makes of each kind of fact."""


def adapt(attack: Attack, problem: AttackProblem) -> Attack:
    """The attack with the objective that fits what `problem.known` says of the client's defense.

    - Facts about the gradient (all but `Mixed`) replace `GradientMatching`, its layer weights included, by
      `GradientLikelihood`, which reads them all in order (`gi_jax.objectives.channel`), at the weight of a cosine, or
      at 1 in place of a distance in the gradient's own units.
    - `Zeroed` makes total variation count the more, the fewer entries are seen; `Noisy` and `Rounded` add `NoisePrior`,
      a posterior together with a likelihood of weight 1, beside which the attack's own priors stay; `Signs` takes a
      weight of total variation of at least 0.01 (best of 0.0003 to 0.03 on three photographs).
    - `Mixed` takes total variation of |x| where signs are flipped, that of `NoisePrior` too. Weights stay: the 0.1 that
      Huang et al. (2021) found best for MixUp, on a trained network with batch statistics, costs 21 dB on the
      photographs.

    The facts' numbers stay in the problem: one adapted attack serves a stack of problems that differ in them, and the
    same program serves a new scale.

    Args:
      attack: any; one that is not a `GradientDescent`, and so has no parts to adapt, is returned as it is.
      problem: one, or a stack.

    Raises:
      InputError: for a fact of an unknown kind.
    """
    if not isinstance(attack, GradientDescent):
        return attack
    parts = attack.objective.parts
    for fact in problem.known:
        parts = _adaptation(fact).change(parts, fact, problem.known)
    return dataclasses.replace(attack, objective=dataclasses.replace(attack.objective, parts=parts))


def adaptation_words(known: Facts) -> tuple[str, ...]:
    """How an adapted attack uses the facts, a clause a kind, in their order."""
    return tuple(dict.fromkeys(_adaptation(fact).words for fact in known))


def _adaptation(fact: Fact) -> Adaptation:
    if type(fact) not in ADAPTATIONS:
        kinds = ", ".join(kind.__name__ for kind in ADAPTATIONS)
        raise checks.InputError(f"unknown fact {fact!r}: expected one of {kinds}")
    return ADAPTATIONS[type(fact)]
