"""A page as one HTML file that needs nothing else: pictures inside, no script, for light and dark screens."""

import base64
import itertools
from html import escape

from gi_jax.reports.page import Code, Details, Notes, Page, PictureGrid, Plot, Section, Table, Text, written
from gi_jax.reports.raster import png_of, png_of_figure, width_of

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #d9dee6; --ground: #fff; --band: #f4f6f9;
  --accent: #1f5fbf; --mark: #fff0c2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b5; --line: #353d4a; --ground: #14181f;
  --band: #1c222b; --accent: #7fb0ff; --mark: #4a3d10; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue",
  Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p, ul { max-width: 46rem; margin: .6rem 0; }
ul { padding-left: 1.2rem; }
nav { margin: 1.4rem 0 0; padding: .7rem 1rem; background: var(--band); border-radius: 8px; font-size: .92rem; }
nav a { margin-right: 1.3rem; white-space: nowrap; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
figure { margin: 1.1rem 0; }
figcaption { max-width: 46rem; margin-top: .45rem; color: var(--soft); font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; }
thead th { border-bottom: 2px solid var(--line); }
thead tr.groups th { border-bottom: 0; padding-bottom: 0; color: var(--soft); font-weight: 500; text-align: center; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
td:first-child:not(.number) { min-width: 10rem; }
.first { border-left: 1px solid var(--line); }
tbody tr:hover { background: var(--band); }
td.missing { color: var(--soft); font-style: italic; font-size: .86em; }
td.marked { background: var(--mark); font-weight: 600; }
small { display: block; color: var(--soft); font-size: .82em; line-height: 1.3; white-space: normal; }
table.pictures { font-size: .8rem; }
table.pictures th, table.pictures td { border: 0; padding: 2px 3px; text-align: center; }
table.pictures tbody th { text-align: right; padding-right: .8rem; min-width: 8rem; vertical-align: middle;
  position: sticky; left: 0; background: var(--ground); font-weight: 500; }
table.pictures tbody tr:hover { background: none; }
table.pictures img { width: 84px; image-rendering: pixelated; border-radius: 3px; display: block; margin: 0 auto; }
table.pictures td.missing { min-width: 84px; }
img.plot { max-width: max(100%, 44rem); height: auto; border: 1px solid var(--line); border-radius: 8px;
  background: #fff; }
pre { overflow-x: auto; padding: .7rem .9rem; background: var(--band); border-radius: 8px; font-size: .84rem;
  line-height: 1.45; }
details { margin: 1rem 0; padding: .1rem 1rem; border: 1px solid var(--line); border-radius: 8px; }
details[open] { padding-bottom: .6rem; }
summary { padding: .5rem 0; cursor: pointer; font-weight: 600; }
@media print { main { max-width: none; } nav { display: none; } img.plot { max-width: 100%; } }
"""


def render(page: Page) -> str:
    """The text of the file."""
    links = "".join(
        f'<a href="#s{number}">{escape(section.heading)}</a> ' for number, section in enumerate(page.sections)
    )
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            f"<h1>{escape(page.title)}</h1>",
            *(f"<p>{escape(text)}</p>" for text in page.lead),
            f"<nav>{links}</nav>" if len(page.sections) > 1 else "",
            *(_section(number, section) for number, section in enumerate(page.sections)),
            "</main>\n</body>\n</html>\n",
        )
    )


def _section(number: int, section: Section) -> str:
    return f'<h2 id="s{number}">{escape(section.heading)}</h2>\n{_blocks(section.blocks)}'


def _blocks(blocks) -> str:
    return "\n".join(_block(block) for block in blocks)


def _block(block) -> str:
    match block:
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Notes(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Table():
            return _figure(f'<div class="scroll">{_table(block)}</div>', block.caption)
        case PictureGrid():
            return _figure(f'<div class="scroll">{_pictures(block)}</div>', block.caption)
        case Plot(figure, about, caption):
            png = _embedded(png_of_figure(figure))
            plot = f'<img class="plot" width="{width_of(figure)}" src="{png}" alt="{escape(about)}">'
            return _figure(f'<div class="scroll">{plot}</div>', caption)
        case Details(title, inner):
            return f"<details><summary>{escape(title)}</summary>\n{_blocks(inner)}\n</details>"


def _figure(inner: str, caption: str) -> str:
    under = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{inner}{under}</figure>"


def _table(table: Table) -> str:
    groups = [(group, len(list(same))) for group, same in itertools.groupby(column.group for column in table.columns)]
    starts = set(itertools.accumulate((length for _, length in groups), initial=0)) if len(groups) > 1 else set()
    kinds = [
        " ".join(["number"] * (column.form is not None) + ["first"] * (number in starts and number > 0))
        for number, column in enumerate(table.columns)
    ]
    over = ""
    if any(group for group, _ in groups):
        cells = (
            f'<th colspan="{length}"{_class("first" if number else "")}>{escape(group)}</th>'
            for number, (group, length) in enumerate(groups)
        )
        over = f'<tr class="groups">{"".join(cells)}</tr>'
    headings = "".join(
        f"<th{_class(kind)}>{escape(column.heading)}</th>" for kind, column in zip(kinds, table.columns, strict=True)
    )
    rows = "\n".join(
        f"<tr>{''.join(_cell(*one) for one in zip(table.columns, kinds, row, strict=True))}</tr>" for row in table.rows
    )
    return f"<table><thead>{over}<tr>{headings}</tr></thead>\n<tbody>{rows}</tbody></table>"


def _cell(column, kind, cell) -> str:
    kind += " missing" * (cell.value is None) + " marked" * cell.marked
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f"<td{_class(kind)}>{escape(written(column, cell))}{note}</td>"


def _class(names: str) -> str:
    return f' class="{names.strip()}"' if names.strip() else ""


def _pictures(grid: PictureGrid) -> str:
    headings = "".join(f"<th>{escape(column)}</th>" for column in grid.columns)
    rows = "\n".join(
        f"<tr><th>{escape(label)}</th>{''.join(_tile(label, tile) for tile in tiles)}</tr>"
        for label, tiles in zip(grid.rows, grid.tiles, strict=True)
    )
    return f'<table class="pictures"><thead><tr><td></td>{headings}</tr></thead>\n<tbody>{rows}</tbody></table>'


def _tile(label, tile) -> str:
    if tile is None:
        return '<td class="missing">-</td>'
    caption = f"<small>{escape(tile.caption)}</small>" if tile.caption else ""
    alt = escape(f"{label} {tile.caption}".strip())
    return f'<td><img src="{_embedded(png_of(tile.image))}" alt="{alt}">{caption}</td>'


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
