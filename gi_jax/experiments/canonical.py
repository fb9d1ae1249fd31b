"""Numbers of a specification as its fields have them, so that 2 and 2.0 are one specification with one fingerprint."""

import dataclasses
from numbers import Real

from gi_jax import checks


def numbers(spec) -> None:
    """Makes the numbers of a frozen value those of the types of its fields, float or int.

    Raises:
      InputError: for a fraction where a whole number belongs.
    """
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, Real) and field.type in (float, float | None):
            object.__setattr__(spec, field.name, float(value))
        elif isinstance(value, Real) and field.type in (int, int | None):
            object.__setattr__(spec, field.name, checks.whole(field.name, value))
