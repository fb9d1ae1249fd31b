"""Attacks that fell short of what they looked for: the objective is lower at the truth than where they ended."""

from collections.abc import Sequence
from typing import NamedTuple


class Short(NamedTuple):
    """How many attacks fell short, of those of which it is known."""

    count: int
    of: int

    def __str__(self):
        return f"{self.count} of {self.of}"


MEANING = "the objective is lower at the true pictures than where they ended: a better search would find more"
"""Of attacks that fell short."""


def fell_short(images: Sequence[dict]) -> Short | None:
    """Counts updates by the rows of their pictures; None where the objective at the truth was not evaluated."""
    updates = {row["batch"]: (row.get("loss"), row.get("loss_at_truth")) for row in images if "batch" in row}
    known = [(loss, truth) for loss, truth in updates.values() if None not in (loss, truth)]
    return Short(sum(truth < loss for loss, truth in known), len(known)) if known else None
