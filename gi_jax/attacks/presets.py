"""Published attacks by name: short assemblies of the parts."""

from collections.abc import Callable
from typing import NamedTuple

from gi_jax import checks
from gi_jax.attacks.base import Attack
from gi_jax.attacks.gradient_descent import GradientDescent
from gi_jax.objectives import BatchNormPrior, GradientMatching, Objective, TotalVariation


def inverting_gradients(*, tv: float = 0.1, learning_rate: float = 0.1, num_steps: int = 4800) -> Attack:
    """Cosine distance and total variation; signed Adam with step decay (Geiping et al. 2020, published code)."""
    parts = {"matching": GradientMatching(), "tv": TotalVariation(weight=tv)}
    return GradientDescent(objective=Objective(parts=parts), learning_rate=learning_rate, num_steps=num_steps)


def evaluation(
    *, tv: float = 0.05, bn_prior: float = 1e-3, learning_rate: float = 0.1, num_steps: int = 10_000
) -> Attack:
    """The same with the statistics prior: Eq. 3 and section 5.1 of Huang et al. (2021); tv is theirs for pruning."""
    parts = {
        "matching": GradientMatching(),
        "tv": TotalVariation(weight=tv),
        "bn_prior": BatchNormPrior(weight=bn_prior),
    }
    return GradientDescent(objective=Objective(parts=parts), learning_rate=learning_rate, num_steps=num_steps)


class Entry(NamedTuple):
    """A row of the table of attacks."""

    make: Callable[..., Attack]
    about: str
    paper: str


ATTACKS = {
    "inverting_gradients": Entry(
        inverting_gradients,
        "cosine matching, total variation, signed Adam",
        "Geiping et al. 2020, arXiv 2003.14053",
    ),
    "gradient_inversion_evaluation": Entry(
        evaluation, "the same with the BatchNorm statistics prior", "Huang et al. 2021, arXiv 2112.00059"
    ),
}


def create(name: str, **settings) -> Attack:
    """The attack called `name`, with some of its published settings replaced.

    Raises:
      InputError: for an unknown name, with the nearest one.
    """
    return ATTACKS[checks.one_of("attack", name, ATTACKS)].make(**settings)
