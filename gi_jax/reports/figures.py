"""Figures of reports. Colors are those of Okabe and Ito (2008), which stay apart for color-blind readers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from adjustText import adjust_text
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class Point(NamedTuple):
    """A point of `scatter`: what is written beside it, its kind, which is its color, and its place."""

    name: str
    kind: str
    x: float
    y: float


def scatter(published: Sequence[Point], ours: Sequence[Point], x_label: str, y_label: str, title: str) -> Figure:
    """Published points on the left and ours on the right, on the same axes; the color is the kind."""
    figure = Figure(figsize=(10.2, 4.4), layout="constrained")
    kinds = list(dict.fromkeys(point.kind for point in [*published, *ours]))
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, points, name in zip(axes, (published, ours), ("published", "ours"), strict=True):
        _prepare(axis)
        for number, kind in enumerate(kinds):
            places = [(point.x, point.y) for point in points if point.kind == kind] or [(np.nan, np.nan)]
            label = kind if axis is axes[0] else None
            axis.scatter(*zip(*places, strict=True), 46, color=COLORS[number % len(COLORS)], label=label, zorder=2)
        _label(axis, x_label, y_label if axis is axes[0] else "", name)
        axis.margins(x=0.1, y=0.1)
    if kinds:
        figure.legend(loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.draw_without_rendering()  # the layout, which names are moved in
    figure.set_layout_engine("none")
    for axis, points in zip(axes, (published, ours), strict=True):
        names = [axis.text(point.x, point.y, point.name, fontsize=7.5) for point in points]
        if names:
            adjust_text(names, ax=axis, expand=(1.4, 2.4), iter_lim=50)
    return figure


class Strip(NamedTuple):
    """A line of `strips`: its name, a value a picture (may be empty), and the published mean and best, or None."""

    name: str
    values: Sequence[float]
    mean: float | None
    best: float | None


def strips(lines: Sequence[Strip], x_label: str, title: str) -> Figure:
    """A dot a picture, a bar at our mean; a hollow diamond at the published mean, a hollow triangle at its best."""
    figure, axis = _one_axis(7.4, 0.9 + 0.33 * len(lines))
    jitter = np.random.default_rng(0)
    for height, line in enumerate(lines):
        if line.mean is not None:
            axis.scatter(line.mean, height, 42, marker="D", facecolors="none", edgecolors=COLORS[1], zorder=4)
        if line.best is not None:
            axis.scatter(line.best, height, 42, marker="<", facecolors="none", edgecolors=COLORS[1], zorder=4)
        if len(line.values):
            heights = height + jitter.uniform(-0.22, 0.22, len(line.values))
            axis.scatter(line.values, heights, 11, color=COLORS[0], alpha=0.45, linewidths=0, zorder=2)
            axis.vlines(np.mean(line.values), height - 0.36, height + 0.36, color=COLORS[0], linewidth=2.2, zorder=3)
    axis.scatter([], [], 14, color=COLORS[0], label="a picture of ours")
    axis.plot([], [], color=COLORS[0], linewidth=2.2, label="our mean")
    axis.scatter([], [], 42, marker="D", facecolors="none", edgecolors=COLORS[1], label="published mean")
    axis.scatter([], [], 42, marker="<", facecolors="none", edgecolors=COLORS[1], label="published best")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    axis.set_yticks(range(len(lines)), [line.name for line in lines], fontsize=8.5)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    _label(axis, x_label, "", title)
    return figure


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    y_label: str,
    x_label: str,
    title: str,
    marked: tuple[int, int] | None = None,
) -> Figure:
    """Numbers [rows, columns] as shades, NaN left white; one of them in a frame."""
    figure, axis = _one_axis(1.8 + 0.8 * len(columns), 1.3 + 0.42 * len(rows))
    image = axis.imshow(np.ma.masked_invalid(values), cmap="viridis", aspect="auto")
    middle = np.mean(image.get_clim())
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value < middle else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=color)
    if marked is not None:
        axis.scatter(marked[1], marked[0], 900, marker="s", facecolors="none", edgecolors=COLORS[1], linewidths=2.4)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(visible=False)
    _label(axis, x_label, y_label, title)
    return figure


def _one_axis(width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, _prepare(figure.subplots())


def _prepare(axis):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e3e6ea", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5)
    return axis


def _label(axis, x_label, y_label, title):
    axis.set_xlabel(x_label, fontsize=9)
    axis.set_ylabel(y_label, fontsize=9)
    axis.set_title(title, fontsize=10, loc="left")
