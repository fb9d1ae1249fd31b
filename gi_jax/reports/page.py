"""A report as a value: pages of sections of blocks. `gi_jax.reports.html` and `markdown` write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from gi_jax import checks

NOT_RUN = "not run"
NONE = "-"
"""In the place of a number that there cannot be, such as one that was not published."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Notes:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines to be kept as they are: commands, settings."""

    text: str


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      heading: over it.
      form: of its numbers, such as `{:.2f}`; they stand on the right. None: words, on the left.
      group: over the headings of neighbors with the same one; may be empty.
    """

    heading: str
    form: str | None = None
    group: str = ""

    @property
    def full(self) -> str:
        """Heading with its group, on one line."""
        return f"{self.group}: {self.heading}" if self.group.strip() else self.heading


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      value: a number, written as its column says, or words; None where nothing was run.
      note: in small print under it; may be empty.
      marked: stands out, as the best of its kind.
    """

    value: float | str | None
    note: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells; a bare number, words or None stand for the `Cell` of that value.

    Raises:
      InputError: for a row that has not a cell a column.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell | float | str | None, ...], ...]
    caption: str = ""

    def __post_init__(self):
        rows = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in self.rows)
        object.__setattr__(self, "rows", rows)
        for number, row in enumerate(rows):
            if len(row) != len(self.columns):
                raise checks.InputError(
                    f"row {number} of a table has {len(row)} cells; expected one for each of its {len(self.columns)} "
                    "columns"
                )


def compact(columns: Sequence[Column], rows: Sequence[Sequence[Cell | float | str | None]], caption: str = "") -> Table:
    """A table without the columns in which every row says `NONE`."""
    table = Table(tuple(columns), tuple(map(tuple, rows)), caption)
    kept = [n for n in range(len(columns)) if any(row[n].value != NONE for row in table.rows) or not table.rows]
    return Table(tuple(columns[n] for n in kept), tuple(tuple(row[n] for n in kept) for row in table.rows), caption)


@dataclass(frozen=True)
class Tile:
    """A picture, uint8 [h, w, c] of 1 or 3 channels, with a caption under it.

    Raises:
      InputError: for any other array.
    """

    image: np.ndarray
    caption: str = ""

    def __post_init__(self):
        image = self.image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise checks.InputError(
                f"picture of {image.dtype} {list(image.shape)}: expected uint8 [h, w, c] with 1 or 3 channels"
            )


@dataclass(frozen=True)
class PictureGrid:
    """Rows of pictures; None where there is none.

    Attributes:
      rows: labels on the left.
      columns: labels on top.
      tiles: rows of as many as there are columns.
      caption: under the grid.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    tiles: tuple[tuple[Tile | None, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure, what it shows in a sentence for those who cannot see it, and its caption."""

    figure: Figure
    about: str
    caption: str = ""


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away under a title."""

    title: str
    blocks: tuple[Block, ...]


Block = Text | Notes | Code | Table | PictureGrid | Plot | Details


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A report: a title, paragraphs that lead in, and sections."""

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


def written(column: Column, cell: Cell) -> str:
    """The words of a cell, without its note."""
    if cell.value is None:
        return NOT_RUN
    if isinstance(cell.value, str):
        return cell.value
    text = (column.form or "{}").format(cell.value)
    rounds_to_zero = text.startswith("-") and not re.search("[1-9]", text)
    return (column.form or "{}").format(0.0) if rounds_to_zero else text
