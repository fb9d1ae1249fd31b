"""The numbers of Huang et al. (2021), arXiv 2112.00059, as data: JSON files with provenance, and their readers.

Every file has `paper`, `place` and `notes`, sentences on readings that are uncertain.
"""

import json
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from typing import NamedTuple

from gi_jax.experiments.cost import Assumptions


class Lpips(NamedTuple):
    """LPIPS (VGG) over the attacked pictures: mean, best (the most leaked picture) and standard deviation."""

    mean: float
    best: float
    std: float


@dataclass(frozen=True)
class Table2:
    """Utility and leakage of 13 columns, which are defenses as `gi_jax.defenses.parse` writes them.

    Attributes:
      columns: in the order of the paper.
      batch_sizes: of the attack.
      test_accuracy: column -> per cent, mean of five runs.
      time_ratio: column -> training time over that without a defense.
      lpips: (column, batch size) -> `Lpips`; higher means that less leaked.
      source: paper and place in one line.
      notes: on uncertain readings.
    """

    columns: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    test_accuracy: dict[str, float]
    time_ratio: dict[str, float]
    lpips: dict[tuple[str, int], Lpips]
    source: str
    notes: tuple[str, ...]


class Assumed(NamedTuple):
    """What an attack assumes: `yes`, `no` or `not applicable`, with a remark that may be empty."""

    paper: str
    statistics: str
    labels: str
    remark: str


@dataclass(frozen=True)
class Table1:
    """Assumptions of attacks: name of the attack in this library -> `Assumed`."""

    attacks: dict[str, Assumed]
    source: str


class InstaHideCost(NamedTuple):
    """A row of Table 3: pictures of the client, GPU hours, and the GPU years printed beside them (None: none)."""

    pictures: int
    hours: float
    years: float | None


@dataclass(frozen=True)
class Table3:
    """GPU hours of recovering one picture.

    Attributes:
      undefended_hours, prune_hours: without a defense, and under gradient pruning.
      assumptions: of the estimate for InstaHide.
      attack_iterations: of the attack that takes `assumptions.attack_hours`.
      instahide: a row a size of the data.
      source, notes: where the numbers are from.
    """

    undefended_hours: float
    prune_hours: float
    assumptions: Assumptions
    attack_iterations: int
    instahide: tuple[InstaHideCost, ...]
    source: str
    notes: tuple[str, ...]


def table1() -> Table1:
    """Table 1."""
    content = _read("table1")
    return Table1({name: Assumed(**row) for name, row in content["attacks"].items()}, _source(content))


def table2() -> Table2:
    """Table 2."""
    content = _read("table2")
    columns = content["columns"]
    lpips = {
        (column, int(batch_size)): Lpips(*values)
        for batch_size, block in content["lpips"].items()
        for column, *values in zip(columns, *(block[name] for name in Lpips._fields), strict=True)
    }
    return Table2(
        columns=tuple(columns),
        batch_sizes=tuple(int(batch_size) for batch_size in content["lpips"]),
        test_accuracy=dict(zip(columns, content["test_accuracy_percent"], strict=True)),
        time_ratio=dict(zip(columns, content["training_time_ratio"], strict=True)),
        lpips=lpips,
        source=_source(content),
        notes=tuple(content["notes"]),
    )


def table3() -> Table3:
    """Table 3."""
    content = _read("table3")
    return Table3(
        undefended_hours=content["undefended_hours"],
        prune_hours=content["prune_hours"],
        assumptions=Assumptions(**{name: float(Fraction(value)) for name, value in content["assumptions"].items()}),
        attack_iterations=content["attack_iterations"],
        instahide=tuple(InstaHideCost(**row) for row in content["instahide"]),
        source=_source(content),
        notes=tuple(content["notes"]),
    )


def settings() -> dict:
    """The settings of the experiments, as in `settings.json`."""
    return _read("settings")


def _read(name: str) -> dict:
    return json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))


def _source(content: dict) -> str:
    return f"{content['place']} of {content['paper']}"
