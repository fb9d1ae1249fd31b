"""Checks at the door. Every message names the value, what was expected, and what to try. Floor 0."""

import difflib
import operator
from collections.abc import Iterable

import jax
import numpy as np

from gi_jax.errors import InputError


def one_of(kind: str, name: str, choices: Iterable[str]) -> str:
    """Returns `name` if it is among `choices`; the error suggests the nearest one."""
    choices = list(choices)
    if name in choices:
        return name
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    rest = f"choose from {', '.join(choices)}" if choices else "there is none"
    raise InputError(f"unknown {kind} {name!r}: {hint}{rest}")


def _known(values: dict[str, float]) -> Iterable[tuple[str, float]]:
    # A traced number has no value yet, so whoever traces it answers for it.
    return ((name, value) for name, value in values.items() if not isinstance(value, jax.core.Tracer))


def distinct(what: str, values: Iterable[str]) -> None:
    """Raises if a value is there twice: `distinct("labels", labels)`."""
    values = list(values)
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise InputError(f"{what} has {twice!r} twice: expected different ones; leave out the repetition")


def positive(**values: float) -> None:
    """Raises unless every value is a finite number above zero: `positive(num_steps=num_steps)`. Skips traced ones."""
    for name, value in _known(values):
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name}={value}: expected a number above 0")


def counts(**values: int) -> None:
    """Raises unless every value is a whole number above zero, and of a whole type, as sizes are. Skips traced ones."""
    positive(**values)
    for name, value in _known(values):
        try:
            operator.index(value)
        except TypeError:
            raise InputError(f"{name}={value}: expected a whole number above 0, of type int") from None


def non_negative(**values: float) -> None:
    """Raises unless every value is a finite number, zero or above. Skips traced ones."""
    for name, value in _known(values):
        if not (np.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value}: expected a number that is 0 or above")


def seed(name: str, value: int) -> None:
    """Raises unless `value` is a seed that every generator takes."""
    if not 0 <= value < 2**32:
        raise InputError(f"{name}={value}: expected a whole number from 0 to {2**32 - 1}")


def in_range(low: float, high: float, **values: float) -> None:
    """Raises unless every value lies in the half-open interval [low, high). Skips traced ones."""
    for name, value in _known(values):
        if not low <= value < high:
            raise InputError(f"{name}={value}: expected a number in [{low:g}, {high:g})")


def within(low: float, high: float, **arrays) -> None:
    """Raises unless all numbers of every array lie in [low, high], within rounding. Skips traced ones."""
    for name, array in _known(arrays):
        numbers = np.asarray(array)  # JAX would trace it
        least, most = float(numbers.min()), float(numbers.max())
        if np.isnan(least):
            raise InputError(f"{name}: NaN among them; expected numbers in [{low:g}, {high:g}]")
        if not (low - 1e-3 <= least and most <= high + 1e-3):
            hint = "; divide by 255" if low == 0 and high == 1 and 1 < most <= 255 and least >= 0 else ""
            raise InputError(f"{name} from {least:g} to {most:g}: expected numbers in [{low:g}, {high:g}]{hint}")


def whole(name: str, value: float) -> int:
    """Returns a whole number as an integer; raises for any other."""
    if not float(value).is_integer():
        raise InputError(f"{name}={value}: expected a whole number")
    return int(value)


def exactly_one(what: str, **values: float | None) -> None:
    """Raises unless exactly one of the values is given, the others being None."""
    given = [name for name, value in values.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"{what} takes exactly one of {', '.join(values)}; got {' and '.join(given) or 'none'}")


def all_finite(what: str, tree) -> None:
    """Raises if any array of `tree` holds a NaN or an infinity, naming the first such leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        bad = int(np.size(leaf) - np.sum(np.isfinite(np.asarray(leaf))))
        if bad:
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
            raise InputError(
                f"{what}: {name} holds {bad} values that are NaN or infinite; expected finite numbers only"
            )


def all_floating(what: str, tree) -> None:
    """Raises if an array of `tree` is of whole numbers, which have no derivatives, naming the first such leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jax.dtypes.result_type(leaf)
        if not jax.dtypes.issubdtype(dtype, np.floating):
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
            raise InputError(f"{what}: {name} is of type {dtype}; expected floating-point numbers; try float32")


def same_structure(what: str, tree, like) -> None:
    """Raises unless `tree` has the structure and the shapes of `like`, naming the first difference."""
    named = dict(jax.tree_util.tree_leaves_with_path(tree))
    expected = dict(jax.tree_util.tree_leaves_with_path(like))
    for path in expected | named:  # in the order of the network, what is missing first: a set has no order
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if path not in named:
            raise InputError(f"{what}: {name} is missing; expected shape {np.shape(expected[path])}")
        if path not in expected:
            raise InputError(f"{what}: {name} is not part of the network; remove it")
        if np.shape(named[path]) != np.shape(expected[path]):
            raise InputError(f"{what}: {name} has shape {np.shape(named[path])}; expected {np.shape(expected[path])}")
