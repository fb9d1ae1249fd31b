"""Grids of pictures: originals, and what was made of them in several cells."""

from collections.abc import Sequence

import numpy as np

from gi_jax.reports.experiments.found import Found
from gi_jax.reports.experiments.leakage import tile_captions
from gi_jax.reports.page import PictureGrid, Tile

MOST = 8
"""Pictures in a row."""


def picture_grid(cells: Sequence[tuple[str, Found | None]], about: str) -> PictureGrid | None:
    """A row a cell, by its label, under the originals; LPIPS under each picture. None if no cell has pictures.

    Args:
      cells: label and cell; those without pictures are named in the caption.
      about: begins the caption.
    """
    shown = [(label, one) for label, one in cells if one is not None and one.pictures is not None]
    if not shown:
        return None
    rows, last = [], None
    for label, one in shown:
        originals = None if one.originals is None else one.originals[:MOST]
        if originals is not None and (last is None or not np.array_equal(originals, last)):
            rows.append(("original", [Tile(image) for image in originals]))
            last = originals
        images = one.pictures[:MOST]
        captions = tile_captions(one, len(images))
        rows.append((label, [Tile(*pair) for pair in zip(images, captions, strict=True)]))
    width = max(len(tiles) for _, tiles in rows)
    missing = [label for label, one in cells if (label, one) not in shown]
    caption = f"{about}; under each picture its LPIPS (0 is identical), by this library's scoring."
    caption += f" The first {width} pictures." * any(len(one.pictures) > width for _, one in shown)
    caption += f" Not run, or without pictures: {'; '.join(missing)}." if missing else ""
    return PictureGrid(
        rows=tuple(label for label, _ in rows),
        columns=tuple(str(number + 1) for number in range(width)),
        tiles=tuple((*tiles, *[None] * (width - len(tiles))) for _, tiles in rows),
        caption=caption,
    )
