"""One picture of a run: originals on top, a row of reconstructions for each defense."""

from pathlib import Path

import numpy as np

MAX_COLUMNS = 8


def draw(
    path: Path, originals: np.ndarray, reconstructions: list[np.ndarray], runs: list[dict], names: list[str]
) -> None:
    """Writes a PNG: at most eight columns, LPIPS (VGG) and PSNR under each tile.

    Args:
      path: where to.
      originals: [n, h, w, c] in [0, 1].
      reconstructions: the same for each run; a run that was interrupted may hold fewer.
      runs: blocks of `result.json`.
      names: of the classes of the originals, [n].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(originals), MAX_COLUMNS)
    rows = 1 + len(runs)
    figure = Figure(figsize=(1.35 + 1.35 * columns, 1.6 * rows + 0.1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for column in range(columns):
        _tile(axes[0, column], originals[column], names[column])
        for row, (images, run) in enumerate(zip(reconstructions, runs, strict=True), start=1):
            if column < len(images):
                _tile(axes[row, column], images[column], _caption(run["images"][column]))
    for row, text in enumerate(["original", *(_row_name(run["defense"]) for run in runs)]):
        axes[row, 0].set_ylabel(text, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)
    lpips = "LPIPS (VGG, 0 is identical) / " if runs[0]["images"][0].get("lpips_vgg") is not None else ""
    figure.supxlabel(f"under each reconstruction: {lpips}PSNR", fontsize=8)
    figure.savefig(path)


def _tile(axis, image, caption):
    axis.imshow(image if image.shape[-1] == 3 else image[..., 0], vmin=0, vmax=1, cmap="gray", interpolation="nearest")
    axis.set_xlabel(caption, fontsize=8)


def _row_name(defense):
    return "no defense" if defense == "none" else defense.replace(" + ", "\n+ ").replace(":", "\n", 1)


def _caption(row):
    parts = []
    if row.get("lpips_vgg") is not None:
        parts.append(f"{row['lpips_vgg']:.2f}")
    parts.append("diverged" if row["psnr"] is None else f"{row['psnr']:.1f} dB")
    return " / ".join(parts)
