"""The scatter plots under Table 2 of Huang et al. (2021): leakage against accuracy, published and ours."""

from collections.abc import Sequence

from gi_jax.experiments import published
from gi_jax.reports.experiments import leakage
from gi_jax.reports.experiments.found import Found, first, values
from gi_jax.reports.experiments.names import defense_name, family, parameters
from gi_jax.reports.experiments.table2 import tested_words, trainings
from gi_jax.reports.figures import Point, scatter
from gi_jax.reports.page import NONE, Column, Plot, Section, Text, compact

CASES = {"mean": ("Average", "average case"), "best": ("Best", "worst case for the client")}


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, and a section a batch size."""
    sizes = sorted(values(found, "batch_size") or published.table2().batch_sizes, reverse=True)
    introduction = Section(
        "What is asked",
        (
            Text(
                "A defense is worth having if it hides pictures without spoiling the network. Each point is a defense: "
                "to the right the network classifies better, and higher up less leaks, so the good corner is the upper "
                "right one. The upper of the two plots of a batch size shows the average picture, the lower one the "
                "picture that leaked most, which is what a client has to fear."
            ),
            Text(
                f"{leakage.SCALE} On the left the paper's points, on the right ours; the axes are the same. A point of "
                "ours needs both a training (its accuracy) and an attack (its LPIPS)."
            ),
        ),
    )
    return (introduction, *(_section(found, batch_size) for batch_size in sizes))


def _section(found, batch_size):
    paper = published.table2()
    columns, outside = leakage.columns(found, what="attack", batch_size=batch_size)
    placed, _ = leakage.columns(found, what="training")
    trained = {column: trainings(found, column) for column in columns}
    accuracy = {column: trained[column].accuracy for column in columns}
    summaries = {
        column: leakage.published_protocol(first(found, what="attack", column=column, batch_size=batch_size))
        for column in columns
    }
    plots, rows = [], []
    for field, (name, case) in CASES.items():
        known = [
            _point(column, paper.test_accuracy[column], getattr(lpips, field))
            for (column, size), lpips in paper.lpips.items()
            if size == batch_size
        ]
        ours = {column: leakage.number(summaries[column], field) for column in columns}
        points = [
            _point(column, accuracy[column], ours[column])
            for column in columns
            if accuracy[column] is not None and ours[column] is not None
        ]
        title = f"{name} LPIPS against accuracy ({case}), batch size {batch_size}"
        figure = scatter(known, points, "test accuracy, %", f"{name.lower()} LPIPS (VGG)", title)
        plots.append(Plot(figure, title, f"{len(known)} published points, {len(points)} of ours."))
    for column in columns:
        lpips = paper.lpips.get((column, batch_size))
        rows.append(
            (
                defense_name(column),
                paper.test_accuracy.get(column, NONE),
                trained[column].shown(accuracy[column]) if column in placed else "not in this scale",
                *(
                    value
                    for field in CASES
                    for value in (
                        NONE if lpips is None else getattr(lpips, field),
                        leakage.shown(summaries[column], field),
                    )
                ),
            )
        )
    heads = (
        Column("defense"),
        *(
            Column(heading, form, group)
            for group, form in (("accuracy, %", "{:.2f}"), ("average LPIPS", "{:.2f}"), ("best LPIPS", "{:.2f}"))
            for heading in ("published", "ours")
        ),
    )
    words = _words(columns, accuracy, summaries, batch_size) + leakage.outside_words(outside)
    return Section(f"Batch size {batch_size}", (Text(words), *plots, compact(heads, rows, tested_words(found))))


def _words(columns, accuracy, summaries, batch_size):
    paper = published.table2()
    lpips = {column: leakage.comparable(summaries[column]) for column in columns}
    ours = {c: (accuracy[c], lpips[c]) for c in columns if accuracy[c] is not None and lpips[c] is not None}
    known = {c: (paper.test_accuracy[c], one.mean) for (c, size), one in paper.lpips.items() if size == batch_size}
    fronts = [
        f"{who} {'; '.join(map(defense_name, _front(points)))}"
        for who, points in (("Published:", known), ("Ours:", ours))
        if points
    ]
    failed = [defense_name(column) for column in columns if leakage.failed_words(summaries[column])]
    end = leakage.left_out_words(failed)
    if not fronts:
        return f"What came out: nothing to compare yet.{end}"
    return (
        "What came out. Defenses that no other beats in accuracy and average LPIPS at once (by the published scoring "
        f"and the paper's decoder; a high score after it is no protection): {'. '.join(fronts)}.{end}"
    )


def _front(points: dict[str, tuple[float, float]]) -> list[str]:
    """The names of points that none other equals or beats in both numbers and beats in one."""
    return [
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]


def _point(column, x, y):
    return Point(parameters(column), family(column), x, y)
