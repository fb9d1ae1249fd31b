"""Defenses as values: chains of rows of the table, and how they are written."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import optax

from gi_jax import checks
from gi_jax.defenses import privacy
from gi_jax.defenses.batch import Mixing
from gi_jax.defenses.registry import DEFENSES, Kind
from gi_jax.threat import Fact
from gi_jax.threat.knowledge import check_facts
from gi_jax.types import Gradients, Key


@dataclass(frozen=True)
class Defense:
    """A chain of named defenses, in the order in which they are applied. No stage is no defense.

    The first stage may encode the client's pictures (`mixing`); what follows is done to its gradient. Called with the
    client's key it is the optax transformation of the gradient. Equal stages are equal defenses.

    Attributes:
      stages: ((name, ((parameter, value), ...)), ...), the parameters in the order of the table.
    """

    stages: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(_checked(name, values) for name, values in self.stages))
        for name, _ in self.stages[1:]:
            if DEFENSES[name].mixing is not None:
                raise checks.InputError(
                    f"defense {name!r} after {self.stages[0][0]!r}: pictures are encoded once, before there is a "
                    "gradient; expected it first"
                )
        for name, _ in self.gradient_stages if self.mixing is not None else ():
            if DEFENSES[name].kind == Kind.DP:
                raise checks.InputError(
                    f"defense {name!r} after {self.stages[0][0]!r}: a picture is in several mixtures, so a bound for "
                    "one mixture is none for a picture; expected one or the other"
                )
        first, *later = (name for name, _ in self.gradient_stages) if self.gradient_stages else (None,)
        for name in later:
            if DEFENSES[name].first:
                raise checks.InputError(
                    f"defense {name!r} after {first!r}: it starts from the gradients of the examples and "
                    f"would undo what comes before; expected it first"
                )
        _check_legible(self.gradient_stages)
        _check_private([name for name, _ in self.stages])

    def __call__(self, key: Key) -> optax.GradientTransformation:
        stages = [
            DEFENSES[name].make(jax.random.fold_in(key, number), **dict(values))
            for number, (name, values) in enumerate(self.stages)
        ]
        return optax.chain(optax.identity(), *stages)

    @property
    def mixing(self) -> Mixing | None:
        """How the client encodes its pictures before it computes a gradient; None if it does not."""
        name, values = self.stages[0] if self.stages else (None, ())
        if name is None or DEFENSES[name].mixing is None:
            return None
        return DEFENSES[name].mixing(**dict(values))

    @property
    def gradient_stages(self) -> tuple:
        """The stages that change the gradient: all but one that encodes pictures."""
        return self.stages if self.mixing is None else self.stages[1:]

    @property
    def of_examples(self) -> bool:
        """Whether some stage looks at the single examples of a step, which several local steps do not have."""
        return any(DEFENSES[name].of_examples for name, _ in self.stages)

    def known(self, sent: Gradients, batch_size: int) -> tuple[Fact, ...]:
        """What an adversary that knows the defense can say of what was sent, in the order of the stages.

        Args:
          sent: the update after the last stage.
          batch_size: of the private batch, which the adversary is assumed to know.
        """
        facts = (DEFENSES[name].known(sent, batch_size, **dict(values)) for name, values in self.stages)
        return tuple(fact for of_stage in facts for fact in of_stage)

    def words(self) -> tuple[str, ...]:
        """What each stage promises, in sentences. Only differential privacy has an epsilon."""
        return tuple(_promise(name, **dict(values)) for name, values in self.stages)

    def __str__(self) -> str:
        return " + ".join(_write(name, values) for name, values in self.stages) or "none"


_FUNCTION = ("a function", ())
"""Stands for a stage that is no row of the table, of which nothing is known."""


def _check_legible(stages):
    """Refuses a stage whose facts are read off what was sent where a later one changes that."""
    for number, (name, values) in enumerate(stages):
        if name not in DEFENSES or not DEFENSES[name].estimated(**dict(values)):
            continue
        others = (later for later, _ in stages[number + 1 :] if later not in DEFENSES[name].withstands)
        later = next(others, None)
        if later is not None and (later not in DEFENSES or not DEFENSES[later].overrules):
            raise checks.InputError(
                f"defense {name!r} before {later!r}: what an adversary can say of it is read off what was sent, "
                f"which {later!r} changes; expected it last"
            )


def _check_private(names):
    """Refuses a look at the private pictures after a bound on what leaks of them."""
    kinds = [DEFENSES[name].kind if name in DEFENSES else None for name in names]
    private = kinds.index(Kind.DP) if Kind.DP in kinds else len(names)
    for name in names[private + 1 :]:
        if name in DEFENSES and DEFENSES[name].of_examples:
            raise checks.InputError(
                f"defense {name!r} after {names[private]!r}: it looks at the private pictures once more, which the "
                "bound does not cover; expected what reads the update only, such as prune or clip"
            )


def _checked(name, values):
    """The stage in its one spelling: the table's order, whole numbers as int."""
    entry = DEFENSES[checks.one_of("defense", name, DEFENSES)]
    for number, (parameter, _) in enumerate(values):
        checks.one_of(f"parameter of defense {name!r}", parameter, entry.parameters)
        if parameter in dict(values[:number]):
            raise checks.InputError(f"defense {name!r} has {parameter} twice; expected it once")
    given = {}
    for parameter, (about, kind, required) in entry.parameters.items():
        value = dict(values).get(parameter)
        if value is None and required:
            raise checks.InputError(f"defense {name!r} needs {parameter} ({about}): try {name}:{parameter}=...")
        if value is not None:
            given[parameter] = checks.whole(parameter, value) if kind is int else value
    entry.make(jax.random.key(0), **given)  # refuses values out of range here, at the door
    return name, tuple(given.items())


_PROMISES = {
    Kind.HEURISTIC: "{} is a heuristic: nothing is proved about what it lets through.",
    Kind.CRYPTOGRAPHIC: "{} is cryptography: to whoever holds no key, what is sent says nothing by itself.",
    Kind.DP: "{} is differentially private; for the epsilon of a whole training, give q, steps and delta.",
}


def _promise(name, **values):
    kind = DEFENSES[name].kind
    if kind == Kind.DP and not values["sigma"]:
        return f"{name} without noise (sigma 0) is clipping alone: nothing is proved about what it lets through."
    if kind != Kind.DP or "q" not in values:
        return _PROMISES[kind].format(name)
    training = dict(sampling_probability=values["q"], steps=values["steps"], delta=values["delta"])
    tight, usual = (
        privacy.epsilon(noise_multiplier=values["sigma"], **training, accountant=accountant)
        for accountant in privacy.ACCOUNTANTS
    )
    return (
        f"{name} is differentially private: epsilon {tight:.3g} (PLD; {usual:.3g} by RDP) at delta "
        f"{values['delta']:g} for one example more or less, over {values['steps']} steps with Poisson sampling of "
        f"probability {values['q']:g}."
    )


def _write(name, values):
    return f"{name}:{','.join(f'{key}={_shortest(value)}' for key, value in values)}" if values else name


def _shortest(value: float) -> str:
    # Parsed again, it is the same number.
    if isinstance(value, int):
        return str(value)
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def make(name: str, *unnamed: float, **parameters: float) -> Defense:
    """The defense called `name`: `make("prune", p=0.9)`. `gi_jax.defenses.prune(p=0.9)` is the same.

    Raises:
      InputError: for an unknown name or parameter, a value out of range or without the name of its parameter.
    """
    if unnamed:
        names = DEFENSES[checks.one_of("defense", name, DEFENSES)].parameters
        hint = f"; try {name}({next(iter(names))}={unnamed[0]!r})" if names else ""
        raise checks.InputError(f"defense {name!r} with a bare {unnamed[0]!r}: expected parameters by name{hint}")
    return Defense(((name, tuple(parameters.items())),))


def chain(*defenses: "Defense | FunctionDefense | Chained") -> "Defense | Chained":
    """The first, then the second, and so on: `chain(prune(p=0.9), gaussian(sigma=1e-3))`.

    Raises:
      InputError: for what is no defense, and for named ones in an order that cannot be.
    """
    for defense in defenses:
        if not isinstance(defense, Defense | FunctionDefense | Chained):
            hint = "wrap an optax transformation in gi_jax.defenses.FunctionDefense(lambda key: ...)"
            hint = f"try gi_jax.defenses.parse({defense!r})" if isinstance(defense, str) else hint
            raise checks.InputError(f"{type(defense).__name__} in a chain: expected defenses; {hint}")
    if all(isinstance(defense, Defense) for defense in defenses):
        return Defense(tuple(stage for defense in defenses for stage in defense.stages))
    parts = (part for defense in defenses for part in getattr(defense, "parts", (defense,)))
    return Chained(tuple(part for part in parts if part != identity))


identity = Defense()
"""No defense."""


@dataclass(frozen=True)
class FunctionDefense:
    """Any optax transformation as a defense: your own, or one whose numbers are traced, such as those of a sweep.

        noisy = lambda sigma: FunctionDefense(lambda key: add_gaussian_noise(sigma, key))
        jax.vmap(lambda sigma: observe(victim, RUNNING, noisy(sigma), key).observed)(sigmas)

    Attributes:
      make: from the client's key to the transformation.
      facts: from what was sent to what an adversary that knows the defense can say of it; nothing unless given.

    Raises:
      InputError: for functions of no or several arguments, and when called, for what is no optax transformation.
    """

    make: Callable[[Key], optax.GradientTransformation]
    facts: Callable[[Gradients], tuple[Fact, ...]] = lambda sent: ()

    def __post_init__(self):
        for name, argument, hint in (("make", "key", ""), ("facts", "sent", "; try lambda sent: (...,)")):
            if not _takes_one(getattr(self, name)):
                raise checks.InputError(
                    f"{name} of a defense: expected a function of one argument, {argument}{hint or _MADE}"
                )

    def __call__(self, key: Key) -> optax.GradientTransformation:
        made = self.make(key)
        if not all(callable(getattr(made, name, None)) for name in ("init", "update")):
            raise checks.InputError(
                f"defense {self} makes a {type(made).__name__}: expected an optax transformation{_MADE}"
            )
        return made

    @property
    def mixing(self) -> None:
        """A transformation of the gradient encodes no pictures."""
        return None

    def __str__(self) -> str:
        return _called(self.make)

    def known(self, sent: Gradients, batch_size: int) -> tuple[Fact, ...]:
        """The facts."""
        facts = self.facts(sent)
        check_facts(facts, sent)
        return tuple(facts)


_MADE = "; try lambda key: optax.stateless(lambda gradient, params: ...)"


def _takes_one(function) -> bool:
    try:
        inspect.signature(function).bind("argument")
    except TypeError:
        return False
    except ValueError:  # it does not say what it takes
        pass
    return True


def _called(function) -> str:
    name = getattr(function, "__name__", "<>")
    return _FUNCTION[0] if name.startswith("<") else name


@dataclass(frozen=True)
class Chained:
    """Defenses one after the other of which some are functions; made by `chain`."""

    parts: tuple[Defense | FunctionDefense, ...]

    def __post_init__(self):
        stages = [stage for part in self.parts for stage in getattr(part, "gradient_stages", (_FUNCTION,))]
        _check_legible(stages)
        _check_private([name for name, _ in stages])
        named = [name for part in self.parts[1:] for name, _ in getattr(part, "stages", ())]
        late = next((name for name in named if DEFENSES[name].first or DEFENSES[name].mixing is not None), None)
        if late is not None:
            raise checks.InputError(
                f"defense {late!r} after another: it starts from the pictures or the gradients of the examples and "
                "would undo what comes before; expected it first"
            )

    def __call__(self, key: Key) -> optax.GradientTransformation:
        keys = [jax.random.fold_in(key, number) for number in range(len(self.parts))]
        return optax.chain(*(part(own) for part, own in zip(self.parts, keys, strict=True)))

    @property
    def mixing(self) -> Mixing | None:
        """As of a `Defense`."""
        return getattr(self.parts[0], "mixing", None)

    def known(self, sent: Gradients, batch_size: int) -> tuple[Fact, ...]:
        """What is known of all, in their order."""
        return tuple(fact for part in self.parts for fact in part.known(sent, batch_size))

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


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
