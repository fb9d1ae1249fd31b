"""Weights of total variation and of the statistics prior: how much the attack depends on them."""

from collections.abc import Sequence

import numpy as np

from gi_jax.experiments import published
from gi_jax.reports.experiments import leakage
from gi_jax.reports.experiments.found import Found, first, select, values
from gi_jax.reports.figures import heat_map
from gi_jax.reports.page import Cell, Column, Plot, Section, Table, Text
from gi_jax.words import counted


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, and a section for what is known of the statistics."""
    settings = published.settings()
    introduction = Section(
        "What is asked",
        (
            Text(
                "The attack minimizes the distance of two gradients plus two priors: total variation (neighboring "
                "pixels are alike) and the statistics prior (the BatchNorm statistics of the guess are those that are "
                "known). Their weights are chosen by trying. How sensitive is the result, and where is the best pair?"
            ),
            Text(
                f"Published choices: statistics prior {settings['bn_prior']:g}; total variation "
                f"{', '.join(f'{weight:g} for {name}' for name, weight in settings['tv'].items())}. "
                f"{leakage.SCALE} Here low is a strong attack; the best pair is marked, of those "
                "without failed pictures if there are any."
            ),
        ),
    )
    kinds = values(found, "bn") or ["exact"]
    return (introduction, *(_section(found, kind) for kind in kinds))


def _section(found, kind):
    heading = f"Statistics: {kind}"
    cells = select(found, bn=kind)
    rows, columns = (
        sorted({one.where[name] for one in found if one.where.get("bn") == kind}) for name in ("tv", "bn_prior")
    )
    if not cells:
        return Section(heading, (Text("What came out: nothing was run yet."),))
    grid = [[leakage.own(first(found, bn=kind, tv=tv, bn_prior=prior)) for prior in columns] for tv in rows]
    means = np.array([[np.nan if s is None or s["mean"] is None else s["mean"] for s in line] for line in grid])
    heads = (
        Column("total variation", "{:g}"),
        *(Column(f"{prior:g}", "{:.2f}", "statistics prior") for prior in columns),
    )
    if np.isnan(means).all():
        return Section(heading, (Text("What came out: no cell has a finite LPIPS."),))
    ranked = _ranked(grid, means)
    best = tuple(int(index) for index in np.unravel_index(np.nanargmin(ranked), means.shape))
    table = Table(
        heads,
        tuple(
            (
                float(tv),
                *(
                    Cell(leakage.shown(summary, "mean"), _note(summary), marked=(row, column) == best)
                    for column, summary in enumerate(line)
                ),
            )
            for row, (tv, line) in enumerate(zip(rows, grid, strict=True))
        ),
        "Average LPIPS by this library's scoring; under it the best picture's, n, and how many failed, if any did.",
    )
    title = f"Average LPIPS, statistics {kind}"
    figure = heat_map(
        means,
        [f"{tv:g}" for tv in rows],
        [f"{prior:g}" for prior in columns],
        "weight of total variation",
        "weight of the statistics prior",
        title,
        best,
    )
    failed = leakage.failed_words(grid[best[0]][best[1]])
    words = (
        f"What came out: {len(cells)} of {means.size} pairs were run. The attack is strongest with total variation "
        f"{rows[best[0]]:g} and statistics prior {columns[best[1]]:g} (average LPIPS {means[best]:.2f}"
        f"{f', {failed}' if failed else ''}), weakest at {np.nanmax(ranked):.2f}.{_left_out(grid, ranked)}"
    )
    return Section(
        heading, (Text(words), Plot(figure, title, "Dark: much leaked. White: not run, or diverged."), table)
    )


def _ranked(grid, means):
    """The averages to compare: those without failed pictures, which other averages leave out; all if there are none."""
    failed = np.array([[bool(leakage.failed_words(summary)) for summary in line] for line in grid])
    whole = np.where(failed, np.nan, means)
    return means if np.isnan(whole).all() else whole


def _left_out(grid, ranked):
    """How many pairs were run and not compared, in a sentence."""
    ran = np.array([[summary is not None for summary in line] for line in grid])
    count = int((ran & np.isnan(ranked)).sum())
    return f" Not compared: {counted(count, 'pair')} with failed pictures." if count else ""


def _note(summary):
    if summary is None or summary["best"] is None:
        return leakage.failed_words(summary)
    parts = (f"best {summary['best']:.2f}", f"n {summary['count']}", leakage.failed_words(summary))
    return ", ".join(filter(None, parts))
