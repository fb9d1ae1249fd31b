"""Published attacks by name: short assemblies of the parts, with their published settings as defaults."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

from gi_jax import checks
from gi_jax.attacks import initial, schedules
from gi_jax.attacks.analytic import phong
from gi_jax.attacks.base import Attack
from gi_jax.attacks.gradient_descent import GradientDescent
from gi_jax.attacks.optimizers import lbfgs, noisy_adam, soft_signed_adam
from gi_jax.attacks.rgap import rgap
from gi_jax.objectives import (
    BatchNormPrior,
    GradientMatching,
    GroupConsistency,
    LabelConsistency,
    Objective,
    SquaredNorm,
    TotalVariation,
)


def inverting_gradients(*, tv: float = 0.1, learning_rate: float = 0.1, num_steps: int = 4800) -> Attack:
    """Cosine distance and total variation; signed Adam with step decay (Geiping et al. 2020).

    Signs are those of the paper; its published code, whose defaults are the numbers here, leaves them off.
    """
    parts = {"matching": GradientMatching(), "tv": TotalVariation(weight=tv)}
    return GradientDescent(objective=Objective(parts=parts), learning_rate=learning_rate, num_steps=num_steps)


def evaluation(
    *, tv: float = 0.05, bn_prior: float = 1e-3, learning_rate: float = 0.1, num_steps: int = 10_000
) -> Attack:
    """The same with the statistics prior: Eq. 3 and section 5.1 of Huang et al. (2021); tv is theirs for pruning."""
    parts = {
        "matching": GradientMatching(),
        "tv": TotalVariation(weight=tv),
        **_statistics_prior(bn_prior),
    }
    return GradientDescent(objective=Objective(parts=parts), learning_rate=learning_rate, num_steps=num_steps)


def layerwise(*, tv: float = 0.5, bn_prior: float = 0.03, learning_rate: float = 1.0, num_steps: int = 1000) -> Attack:
    """One cosine a tensor, a strong statistics prior, and a rate of 1 that falls along a cosine (this project).

    For clients that normalize with their batch's statistics, where one cosine over all tensors is the last layers' and
    hardly tells a picture from noise. The first layer's statistics, which hold color and contrast, count ten times.
    """
    parts = {
        "matching": GradientMatching(distance="cosine-per-layer"),
        "tv": TotalVariation(weight=tv),
        **_statistics_prior(bn_prior, first_layer=10.0),
    }
    return GradientDescent(
        objective=Objective(parts=parts),
        learning_rate=learning_rate,
        num_steps=num_steps,
        schedule=schedules.cosine_decay,
    )


def dlg(*, num_steps: int = 6000) -> Attack:
    """Squared distance by L-BFGS, labels optimized with the images (Zhu et al. 2019; 300 x 20 iterations there).

    Asks for a network that is twice differentiable, such as `lenet`, and for restarts: some starts fail.
    """
    return _quasi_newton({}, num_steps, optimize_labels=True)


def idlg(*, num_steps: int = 6000) -> Attack:
    """The same with the labels of the problem (Zhao et al. 2020, who infer that of a single picture)."""
    return _quasi_newton({}, num_steps)


def cpl(*, label_prior: float = 1.0, num_steps: int = 6000) -> Attack:
    """The same from a patterned start, with the label regularizer (Wei et al. 2020; weight of re-implementations)."""
    parts = {"label_prior": LabelConsistency(weight=label_prior)}
    return _quasi_newton(parts, num_steps, initialize=initial.patterned(16))


def grad_inversion(
    *,
    tv: float = 1e-4,
    bn_prior: float = 0.1,
    group: float = 0.01,
    noise: float = 0.2,
    learning_rate: float = 0.1,
    num_steps: int = 20_000,
) -> Attack:
    """Squared distance, statistics prior, noise, and restarts that agree on a registered mean (Yin et al. 2021).

    Noise is the paper's; it leaves the weights open, so they are those of re-implementations, which found 0.01 enough
    noise. Restarts make the group: eight in the paper. Other than there, mean squares stand for the norms of pictures
    and group, registration is by shifts, and labels are known unless they are asked for; other than in
    re-implementations, the first layer's statistics count as the others'.
    """
    parts = {
        "matching": GradientMatching(distance="squared", weight=1e-4),
        "tv": TotalVariation(weight=tv),
        "norm": SquaredNorm(weight=1e-6),
        "group": GroupConsistency(registered=True, weight=group),
        **_statistics_prior(bn_prior),
    }
    return GradientDescent(
        objective=Objective(parts=parts),
        learning_rate=learning_rate,
        num_steps=num_steps,
        optimizer=noisy_adam(noise),
        schedule=schedules.warm_up(schedules.cosine_decay, 50 / 20_000),
    )


def modern(*, tv: float = 0.1, learning_rate: float = 0.1, num_steps: int = 24_000) -> Attack:
    """Cosine distance, soft signs, warm-up, variation of the colors too; the default of the toolbox breaching.

    Without its regularizer on features.
    """
    parts = {"matching": GradientMatching(), "tv": TotalVariation(isotropic=True, opponents=True, weight=tv)}
    return GradientDescent(
        objective=Objective(parts=parts),
        learning_rate=learning_rate,
        num_steps=num_steps,
        optimizer=soft_signed_adam(),
        schedule=schedules.warm_up(schedules.cosine_decay, 50 / 24_000),
        initialize=initial.patterned(4),
    )


def _quasi_newton(parts, num_steps, **options):
    return GradientDescent(
        objective=Objective(parts={"matching": GradientMatching(distance="squared"), **parts}),
        learning_rate=1.0,
        num_steps=num_steps,
        optimizer=lbfgs(),
        schedule=schedules.constant,
        boxed=False,
        **options,
    )


def _statistics_prior(weight, **options):
    # No part at all at weight 0: a network without BatchNorm has no statistics to compute it from.
    absent = isinstance(weight, int | float) and weight == 0
    return {} if absent else {"bn_prior": BatchNormPrior(weight=weight, **options)}


class Entry(NamedTuple):
    """A row of the table of attacks.

    Attributes:
      make: from settings to the attack.
      about, paper: for people.
      labels: what the published attack has of them: `known`, or `optimize` for those it optimizes with the pictures.
    """

    make: Callable[..., Attack]
    about: str
    paper: str
    labels: str = "known"

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of what `make` lets one replace."""
        return tuple(self.published)

    @property
    def published(self) -> dict[str, float]:
        """The same with their published values."""
        return {name: one.default for name, one in inspect.signature(self.make).parameters.items()}

    @property
    def closed_form(self) -> bool:
        """Whether it solves for the pictures behind the gradient of one model, instead of optimizing them."""
        return "num_steps" not in self.settings


ATTACKS = {
    "inverting_gradients": Entry(
        inverting_gradients,
        "cosine matching, total variation, signed Adam",
        "Geiping et al. 2020, arXiv 2003.14053",
    ),
    "gradient_inversion_evaluation": Entry(
        evaluation, "the same with the BatchNorm statistics prior", "Huang et al. 2021, arXiv 2112.00059"
    ),
    "layerwise": Entry(
        layerwise,
        "cosine per layer, strong statistics prior, rate 1: for clients with batch statistics",
        "this project",
    ),
    "dlg": Entry(
        dlg, "squared distance, L-BFGS, labels optimized jointly", "Zhu et al. 2019, arXiv 1906.08935", "optimize"
    ),
    "idlg": Entry(idlg, "squared distance, L-BFGS, labels known", "Zhao et al. 2020, arXiv 2001.02610"),
    "cpl": Entry(
        cpl, "squared distance, L-BFGS, patterned start, label regularizer", "Wei et al. 2020, arXiv 2004.10397"
    ),
    "grad_inversion": Entry(
        grad_inversion,
        "squared distance, statistics prior, noise; restarts drawn to a registered mean",
        "Yin et al. 2021, arXiv 2104.07586",
    ),
    "modern": Entry(
        modern, "cosine matching, soft signs, warm-up, variation of the colors", "Geiping et al., breaching (software)"
    ),
    "phong": Entry(phong, "closed form of a linear first layer", "Phong et al. 2018, ePrint 2017/715"),
    "rgap": Entry(rgap, "layer by layer in closed form, for rgap_cnn", "Zhu & Blaschko 2021, arXiv 2010.07733"),
}


def create(name: str, **settings) -> Attack:
    """The attack called `name`, with some of its published settings replaced.

    Raises:
      InputError: for an unknown name or setting, with the nearest one.
    """
    entry = ATTACKS[checks.one_of("attack", name, ATTACKS)]
    for setting in settings:
        checks.one_of(f"setting of {name}", setting, entry.settings)
    return entry.make(**settings)
