"""One picture of a run: originals on top, a row for each of what was made of them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gi_jax.reports.terminal import mapping_of, source_of

MOST = 16
"""Pictures that are shown."""
IN_A_ROW = 8
"""Of them at most; the others follow under all rows of these."""
LONGEST = 24
"""Characters of a line beside a row of tiles, which takes its room from them; longer ones end at each comma."""


class Row(NamedTuple):
    """A row of tiles.

    Attributes:
      title: stands on the left.
      images: [n, h, w, c] in [0, 1]; rows may hold fewer than the first one.
      captions: of the tiles, [n], or empty for none.
    """

    title: str
    images: np.ndarray
    captions: list[str] = []


def draw(
    path: Path,
    originals: np.ndarray,
    reconstructions: list[np.ndarray],
    runs: list[dict],
    names: list[str],
    encodings: list[np.ndarray | None],
) -> None:
    """Writes a PNG of an attack: the first 16 pictures, LPIPS (VGG) and PSNR under each tile.

    Args:
      path: where to.
      originals: [n, h, w, c] in [0, 1].
      reconstructions: the same for each run; a run that was interrupted may hold fewer.
      runs: blocks of `result.json`.
      names: of the classes of the originals, [n].
      encodings: for each run what the client trained on in place of the originals, or None.
    """
    rows = [Row("original", originals, names)]
    compared = len({run["labels"]["from"] for run in runs}) > 1
    shown = None
    for images, run, encoded in zip(reconstructions, runs, encodings, strict=True):
        if encoded is not None and run["defense"] != shown:
            rows.append(Row("encoding", encoded))
        shown = run["defense"]
        labels = f"\nlabels: {run['labels']['from']}" if compared else ""
        rows.append(Row(_row_name(shown) + labels, images, [_caption(row) for row in run["images"]]))
    lpips = "LPIPS (VGG, 0 is identical) / " if runs[0]["images"][0].get("lpips_vgg") is not None else ""
    _draw_rows(path, rows, f"under each reconstruction: {lpips}PSNR")


def draw_decoded(
    path: Path,
    originals: np.ndarray,
    names: list[str],
    runs: list[dict],
    decoded: list[np.ndarray],
    encodings: dict[str, np.ndarray],
) -> None:
    """Writes a PNG of what decoders made of encodings: the first 16 pictures, correlation and PSNR under each tile.

    Args:
      path: where to.
      originals: [n, h, w, c] in [0, 1].
      names: of their classes, [n].
      runs: blocks of `result.json`.
      decoded: [n, h, w, c] in [0, 1] for each block.
      encodings: an epoch of true encodings [n, h, w, c] in [0, 1] for each defense.
    """
    rows = [Row("original", originals, names)]
    shown = None
    for run, images in zip(runs, decoded, strict=True):
        if run["defense"] != shown:
            shown = run["defense"]
            rows.append(Row(f"{_row_name(shown)}\nencoding", encodings[shown]))
        captions = [
            "diverged" if row["psnr"] is None else f"{row['correlation']:.2f} / {row['psnr']:.1f} dB"
            for row in run["images"]
        ]
        source = source_of(run) + (f", mapping {mapping_of(run)}" if "mapping_right" in run else "")
        rows.append(Row(f"from {source}:\n{run['decoder']}".replace(", ", ",\n"), images, captions))
    _draw_rows(path, rows, "under each decoded picture: correlation with the original / PSNR")


def draw_found(path: Path, images: np.ndarray, labels: np.ndarray, agreements: list[float | None]) -> None:
    """Writes a PNG of what was found where nobody knows the truth: class and agreement of starts under each tile.

    Args:
      path: where to.
      images: [n, h, w, c] in [0, 1].
      labels: class probabilities [n, num_classes].
      agreements: decibels, [n]; None where there is one start only.
    """
    captions = [
        f"class {label.argmax()}" + ("" if value is None else f" / {value:.1f} dB")
        for label, value in zip(labels, agreements, strict=True)
    ]
    _draw_rows(path, [Row("found", images, captions)], "under each: class / agreement of starts")


def _draw_rows(path, rows, footnote):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(len(rows[0].images), MOST)
    columns = -(-count // -(-count // IN_A_ROW))  # as many in all rows, or nearly
    lines = [(row, first) for first in range(0, count, columns) for row in rows]
    figure = Figure(figsize=(1.35 + 1.35 * columns, 1.6 * len(lines) + 0.1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(lines), columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for line, (row, first) in zip(axes, lines, strict=True):
        for axis, number in zip(line, range(first, min(count, len(row.images))), strict=False):
            _tile(axis, row.images[number], row.captions[number] if row.captions else "")
        line[0].set_ylabel(row.title, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)
    cut = f"; the first {count} of {len(rows[0].images)} pictures" if count < len(rows[0].images) else ""
    figure.supxlabel(footnote + cut, fontsize=8)
    figure.savefig(path)


def _tile(axis, image, caption):
    axis.imshow(image if image.shape[-1] == 3 else image[..., 0], vmin=0, vmax=1, cmap="gray", interpolation="nearest")
    axis.set_xlabel(caption, fontsize=8)


def _row_name(defense):
    if defense == "none":
        return "no defense"
    lines = defense.replace(" + ", "\n+ ").replace(":", "\n", 1).split("\n")
    return "\n".join(line.replace(",", ",\n") if len(line) > LONGEST else line for line in lines)


def _caption(row):
    parts = []
    if row.get("lpips_vgg") is not None:
        parts.append(f"{row['lpips_vgg']:.2f}")
    parts.append("diverged" if row["psnr"] is None else f"{row['psnr']:.1f} dB")
    return " / ".join(parts)
