"""What recovering one picture costs under InstaHide: the estimate of Table 3 of Huang et al. (2021), section 5.4."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from gi_jax import checks


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the estimate rests on; the paper's values are `gi_jax.experiments.published.table3().assumptions`.

    Attributes:
      epochs: T, epochs of training whose gradients are inverted.
      batch_size: b, pictures behind a gradient.
      attack_hours: t, hours to invert one gradient.
      similarity_encodings: n, recovered encodings that the similarity network is trained on.
      similarity_hours: hours of that training.
      combinatorial_hours, combinatorial_encodings: the combinatorial algorithm takes so long with that many encodings,
        and grows with their square.
    """

    epochs: float
    batch_size: float
    attack_hours: float
    similarity_encodings: float
    similarity_hours: float
    combinatorial_hours: float
    combinatorial_encodings: float

    def __post_init__(self):
        checks.positive(**dataclasses.asdict(self))


class Cost(NamedTuple):
    """Hours of each step.

    Attributes:
      invert: inverting the gradients of T epochs, (N T / b) t; batches may be fractions.
      collect: inverting those for the similarity network, (n / b) t.
      similarity: training it.
      combinatorial: assigning N T encodings to pictures.
    """

    invert: float
    collect: float
    similarity: float
    combinatorial: float

    @property
    def total(self) -> float:
        """Their sum."""
        return sum(self)


def instahide_cost(pictures: int, assumed: Assumptions) -> Cost:
    """Hours to recover one picture, and with it all, of a client that trains on InstaHide encodings.

    Args:
      pictures: N, size of the client's data.
      assumed: everything else.
    """
    checks.positive(pictures=pictures)
    encodings = pictures * assumed.epochs
    return Cost(
        invert=encodings / assumed.batch_size * assumed.attack_hours,
        collect=assumed.similarity_encodings / assumed.batch_size * assumed.attack_hours,
        similarity=assumed.similarity_hours,
        combinatorial=assumed.combinatorial_hours * (encodings / assumed.combinatorial_encodings) ** 2,
    )


def years(hours: float, days: float = 365) -> float:
    """Hours as years of so many days."""
    return hours / (24 * days)


def days_of_year(hours: float, printed_years: float) -> float:
    """How many days a year must have for so many hours to be the printed years."""
    return hours / (24 * printed_years)
