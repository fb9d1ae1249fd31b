"""A cell of an experiment as reports get it, and how they look for cells."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Found(NamedTuple):
    """What is known of a cell.

    Attributes:
      where: its coordinates in the experiment.
      row: what its run left, as JSON; None if it has not run.
      originals: private pictures, uint8 [n, h, w, c], or None.
      reconstructions: what the attack made of them, in their order; of encodings under a defense that encodes.
      decoded: what the paper's decoder made of the recovered encodings, in the order of the originals.
    """

    where: dict
    row: dict | None
    originals: np.ndarray | None = None
    reconstructions: np.ndarray | None = None
    decoded: np.ndarray | None = None

    @property
    def pictures(self) -> np.ndarray | None:
        """What the adversary has in the end: decoded pictures where there are any, else reconstructions."""
        return self.reconstructions if self.decoded is None else self.decoded


def select(found: Sequence[Found], **where) -> list[Found]:
    """The cells that ran and have these coordinates, whatever their others are."""
    return [one for one in found if one.row is not None and where.items() <= one.where.items()]


def first(found: Sequence[Found], **where) -> Found | None:
    """The first of them; None if there is none."""
    return next(iter(select(found, **where)), None)


def values(found: Sequence[Found], coordinate: str) -> list:
    """The different values of a coordinate over all cells, in the order in which they come, whether they ran or not."""
    return list(dict.fromkeys(one.where[coordinate] for one in found if coordinate in one.where))
