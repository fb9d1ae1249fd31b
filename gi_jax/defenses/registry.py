"""Defenses by name, as they are written on the command line, and their composition."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import optax

from gi_jax import checks
from gi_jax.defenses.batch import Mixing, inter_instahide, intra_instahide, mixup
from gi_jax.defenses.gradients import add_gaussian_noise, add_laplacian_noise, prune_by_magnitude
from gi_jax.threat import Fact, Noisy, Zeroed
from gi_jax.types import Gradients, Key


class Entry(NamedTuple):
    """A row of the table of defenses: `make(key, **parameters)` gives the optax transformation.

    `known(sent, **parameters)` gives what an adversary that knows the defense can say of what was sent.
    """

    make: Callable[..., optax.GradientTransformation]
    known: Callable[..., tuple[Fact, ...]]
    parameters: dict[str, str]
    about: str
    paper: str
    mixing: Callable[..., Mixing] | None = None


def _encodes(mixing: Callable[..., Mixing], **row) -> Entry:
    """The row of a defense that encodes pictures and leaves the gradient alone: `mixing(**parameters)` says how."""

    def make(key, **values):
        mixing(**values)  # refuses values out of range
        return optax.identity()

    return Entry(make, lambda sent, **values: (mixing(**values).known(),), mixing=mixing, **row)


DEFENSES = {
    "prune": Entry(
        lambda key, p: prune_by_magnitude(p),
        lambda sent, p: (Zeroed(),) if p > 0 else (),
        {"p": "fraction set to zero in each tensor, in [0, 1)"},
        "keeps the largest entries of each tensor",
        "Zhu et al. 2019, arXiv 1906.08935",
    ),
    "gaussian": Entry(
        lambda key, sigma: add_gaussian_noise(sigma, key),
        lambda sent, sigma: (Noisy(distribution="gaussian", scale=sigma),) if sigma > 0 else (),
        {"sigma": "standard deviation, 0 or above"},
        "adds normal noise to every entry",
        "Zhu et al. 2019; Wei et al. 2020, arXiv 2004.10397",
    ),
    "laplacian": Entry(
        lambda key, scale: add_laplacian_noise(scale, key),
        lambda sent, scale: (Noisy(distribution="laplacian", scale=scale),) if scale > 0 else (),
        {"scale": "mean absolute value, 0 or above"},
        "adds Laplacian noise to every entry",
        "Zhu et al. 2019",
    ),
    "mixup": _encodes(
        mixup,
        parameters={"k": "pictures in a mixture, 1 or above"},
        about="trains on mixtures of the client's pictures, with mixed labels",
        paper="Zhang et al. 2018, arXiv 1710.09412; Huang et al. 2021, arXiv 2112.00059",
    ),
    "intra_instahide": _encodes(
        intra_instahide,
        parameters={"k": "pictures in a mixture, 1 or above"},
        about="mixup, then a random sign for each value",
        paper="Huang et al. 2020, arXiv 2010.02772",
    ),
    "inter_instahide": _encodes(
        inter_instahide,
        parameters={"k": "pictures in a mixture, two of them private, 3 or above"},
        about="two private pictures mixed with public ones, then a random sign for each value",
        paper="Huang et al. 2020, arXiv 2010.02772",
    ),
}


@dataclass(frozen=True)
class Defense:
    """A chain of named defenses, in the order in which they are applied. No stage is no defense.

    The first stage may encode the client's pictures (`mixing`); what comes after is done to its gradient. Called with
    the client's key it is the optax transformation of the gradient. Equal stages are equal defenses.

    Attributes:
      stages: ((name, ((parameter, value), ...)), ...).
    """

    stages: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()

    def __post_init__(self):
        for name, _ in self.stages[1:]:
            if name in DEFENSES and DEFENSES[name].mixing is not None:
                raise checks.InputError(
                    f"defense {name!r} after {self.stages[0][0]!r}: pictures are encoded once, before there is a "
                    "gradient; expected it first"
                )
        for name, parameters in self.stages:
            entry = DEFENSES[checks.one_of("defense", name, DEFENSES)]
            given = dict(parameters)
            for number, (parameter, _) in enumerate(parameters):
                checks.one_of(f"parameter of defense {name!r}", parameter, entry.parameters)
                if parameter in dict(parameters[:number]):
                    raise checks.InputError(f"defense {name!r} has {parameter} twice; expected it once")
            for parameter in entry.parameters.keys() - given.keys():
                raise checks.InputError(
                    f"defense {name!r} needs {parameter} ({entry.parameters[parameter]}): try {name}:{parameter}=..."
                )
            entry.make(jax.random.key(0), **given)  # refuses values out of range here, at the door

    def __call__(self, key: Key) -> optax.GradientTransformation:
        stages = [
            DEFENSES[name].make(jax.random.fold_in(key, number), **dict(values))
            for number, (name, values) in enumerate(self.stages)
        ]
        return optax.chain(optax.identity(), *stages)

    @property
    def mixing(self) -> Mixing | None:
        """How the client encodes its pictures before it computes a gradient; None if it does not."""
        if not self.stages or DEFENSES[self.stages[0][0]].mixing is None:
            return None
        name, values = self.stages[0]
        return DEFENSES[name].mixing(**dict(values))

    def known(self, sent: Gradients) -> tuple[Fact, ...]:
        """What an adversary that knows the defense can say of what was sent, in the order of the stages."""
        return tuple(fact for name, values in self.stages for fact in DEFENSES[name].known(sent, **dict(values)))

    def __str__(self) -> str:
        written = (f"{name}:{','.join(f'{k}={_shortest(v)}' for k, v in values)}" for name, values in self.stages)
        return " + ".join(written) or "none"


def _shortest(value: float) -> str:
    # Parsed again, it is the same number.
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def chain(*defenses: Defense) -> Defense:
    """The first, then the second, and so on."""
    return Defense(tuple(stage for defense in defenses for stage in defense.stages))


identity = Defense()
"""No defense."""


def parse(text: str) -> Defense:
    """A defense from `name:parameter=value,...`; several joined by `+`; `none` for none.

    Raises:
      InputError: for an unknown name or parameter, or a value that is not a number or out of range.
    """
    if text.strip() == "none":
        return identity
    stages = re.split(r"(?<![\d.][eE])\+", text)  # the plus of 1e+3 joins no stages
    return chain(*(Defense((_parse_stage(stage.strip()),)) for stage in stages))


def _parse_stage(text: str):
    name, _, rest = text.partition(":")
    parameters = []
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise checks.InputError(f"defense {text!r}: expected name:parameter=number, such as prune:p=0.9")
        parameters.append((key.strip(), number))
    return name, tuple(parameters)
