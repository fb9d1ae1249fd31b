"""A page as Markdown, with its pictures as files beside it."""

import hashlib
import html
import re
from pathlib import Path

import numpy as np

from gi_jax.experiments.checkpoint import write_atomically
from gi_jax.reports.page import Code, Details, Notes, Page, PictureGrid, Plot, Table, Text, written
from gi_jax.reports.raster import png_of, png_of_figure

PICTURES = "pictures"
TILE = 96
"""Pixels of the longer side of a tile, at least: small pictures are enlarged by whole factors, so that pixels stay."""

Files = dict[str, bytes]


def write(page: Page, path: Path) -> None:
    """Writes a page to `path`, in an existing folder, and its pictures to `pictures/*.png` beside it.

    Pictures that only an earlier page at `path` showed are removed: they may be private.
    """
    text, files = render(page)
    folder = path.parent / PICTURES
    if files:
        folder.mkdir(exist_ok=True)
    for name, png in files.items():
        write_atomically(folder / name, png)
    others = map(_shown, (other for other in path.parent.glob("*.md") if other != path))
    for name in _shown(path).difference(files, *others):
        (folder / name).unlink(missing_ok=True)
    write_atomically(path, text)


def _shown(path: Path) -> set[str]:
    """The names of the pictures that a page, if there is one, refers to."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return set(re.findall(rf"\]\({PICTURES}/([0-9a-f]{{16}}\.png)\)", text))


def render(page: Page) -> tuple[str, Files]:
    """The text, and the content of its pictures by file name, which follows from the content."""
    files: Files = {}
    parts = [f"# {_escaped(page.title)}", *map(_escaped, page.lead)]
    for section in page.sections:
        parts += [f"## {_escaped(section.heading)}", *(_block(block, files) for block in section.blocks)]
    return "\n\n".join(parts) + "\n", files


def _block(block, files: Files) -> str:
    match block:
        case Text(text):
            return _escaped(text)
        case Notes(items):
            return "\n".join(f"- {_escaped(item)}" for item in items)
        case Code(text):
            return f"```\n{text}\n```"
        case Table():
            return _captioned(_table(block), block.caption)
        case PictureGrid():
            return _captioned(_grid(block, files), block.caption)
        case Plot(figure, about, caption):
            return _captioned(_picture(about, png_of_figure(figure), files), caption)
        case Details(title, inner):
            body = "\n\n".join(_block(one, files) for one in inner)
            return f"<details><summary>{html.escape(title)}</summary>\n\n{body}\n\n</details>"


def _captioned(text, caption):
    return f"{text}\n\n*{_escaped(caption)}*" if caption else text


def _table(table: Table) -> str:
    lines = [_row(_escaped(column.full) for column in table.columns)]
    lines.append(_row("---" if column.form is None else "---:" for column in table.columns))
    for row in table.rows:
        lines.append(_row(_cell(column, cell) for column, cell in zip(table.columns, row, strict=True)))
    return "\n".join(lines)


def _cell(column, cell) -> str:
    text = _escaped(written(column, cell))
    return _noted(f"**{text}**" if cell.marked else text, cell.note)


def _grid(grid: PictureGrid, files: Files) -> str:
    lines = [_row(["", *map(_escaped, grid.columns)]), _row(["---"] * (1 + len(grid.columns)))]
    for label, tiles in zip(grid.rows, grid.tiles, strict=True):
        lines.append(_row([_escaped(label), *(_tile(label, tile, files) for tile in tiles)]))
    return "\n".join(lines)


def _tile(label, tile, files) -> str:
    if tile is None:
        return "-"
    return _noted(_picture(label, png_of(_enlarged(tile.image)), files), tile.caption)


def _noted(text, note):
    return f"{text}<br>{_escaped(note)}" if note else text


def _row(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _enlarged(image: np.ndarray) -> np.ndarray:
    factor = max(1, -(-TILE // max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _picture(about: str, png: bytes, files: Files) -> str:
    name = f"{hashlib.sha256(png).hexdigest()[:16]}.png"
    files[name] = png
    return f"![{_escaped(about)}]({PICTURES}/{name})"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text).replace("\n", " ")
