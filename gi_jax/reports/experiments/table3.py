"""Table 3 of Huang et al. (2021): hours to recover one picture, published, computed again, with our own speed."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from gi_jax.experiments import published
from gi_jax.experiments.cost import days_of_year, instahide_cost, years
from gi_jax.reports.experiments.found import Found, select
from gi_jax.reports.page import Cell, Column, Section, Table, Text

HOURS = "{:,.2f}"


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, the published estimate, its years, and ours."""
    paper = published.table3()
    assumed = paper.assumptions
    share_of_hour = Fraction(assumed.combinatorial_hours).limit_denominator(100)
    introduction = Section(
        "What is asked",
        (
            Text(
                "How long would one graphics card need to recover a single private picture? Without a defense, or with "
                "pruning, inverting one gradient is enough. Under InstaHide an attacker first inverts the gradients of "
                f"{assumed.epochs:g} epochs, then trains a network that finds encodings of the same picture, and then "
                "runs a combinatorial algorithm whose time grows with the square of the number of encodings."
            ),
            Text(
                f"With N pictures, T = {assumed.epochs:g} epochs, b = {assumed.batch_size:g} pictures a gradient, t "
                f"hours an inversion ({assumed.attack_hours:g} for {paper.attack_iterations:,} iterations on the "
                f"paper's card) and n = {assumed.similarity_encodings:,.0f} encodings for the network, the estimate is "
                f"(N T / b) t + (n / b) t + {assumed.similarity_hours:g} + {share_of_hour} (N T / "
                f"{assumed.combinatorial_encodings:,.0f})^2 hours. It is arithmetic: nothing of it is an attack that "
                "was run from end to end."
            ),
        ),
    )
    return (introduction, _recomputed(paper), _years(paper), _measured(found, paper))


def _recomputed(paper):
    rows = []
    for row in paper.instahide:
        cost = instahide_cost(row.pictures, paper.assumptions)
        rows.append((float(row.pictures), row.hours, cost.total, cost.total - row.hours, *cost))
    columns = (
        Column("N", "{:,.0f}"),
        Column("published", HOURS, "hours in all"),
        Column("computed", HOURS, "hours in all"),
        Column("difference", "{:+.2f}", "hours in all"),
        *(
            Column(heading, HOURS, "of which")
            for heading in ("inverting", "collecting encodings", "similarity network", "combinatorial step")
        ),
    )
    worst = max(abs(row[3]) for row in rows)
    ratio = paper.instahide[0].hours / paper.undefended_hours
    words = (
        f"What came out: the published hours follow from the formula; the largest difference is {worst:.3f} hours, "
        f"which is rounding. The smallest estimate is {ratio:,.0f} times the {paper.undefended_hours:g} hours without "
        f"a defense; under pruning the paper has {paper.prune_hours:g} hours."
    )
    return Section("InstaHide: published and computed", (Text(words), Table(columns, tuple(rows), paper.source)))


def _years(paper):
    printed = [row for row in paper.instahide if row.years is not None]
    largest = printed[-1]
    days = round(days_of_year(largest.hours, largest.years))
    columns = (
        Column("N", "{:,.0f}"),
        Column("published hours", HOURS),
        Column("published years", "{:.1f}"),
        Column("years of 365 days", "{:.2f}"),
        Column(f"years of {days} days", "{:.2f}"),
    )
    rows = tuple((float(r.pictures), r.hours, r.years, years(r.hours), years(r.hours, days)) for r in printed)
    words = (
        f"What came out: {largest.hours:,.2f} hours are {years(largest.hours):.1f} years of 365 days, not the printed "
        f"{largest.years:g}. The printed years follow from a year of {days} days, so the slip is in the conversion; "
        "the hours stand."
    )
    return Section("The years beside the hours", (Text(words), Table(columns, rows)))


def _measured(found, paper):
    rows, totals = [], []
    for one in select(found, what="attack"):
        speed = one.row["timing"].get("image_iterations_per_second")
        pictures = one.row["spec"]["batch_size"]
        if not speed:
            continue
        environment, model = one.row["environment"], one.row["spec"]["model"]
        name, devices = environment["device"], environment.get("devices", 1)
        for batch in dict.fromkeys((pictures, int(paper.assumptions.batch_size))):
            seconds = batch / speed
            attack_hours = seconds * paper.attack_iterations / 3600
            assumed = dataclasses.replace(paper.assumptions, attack_hours=attack_hours)
            cost = [instahide_cost(row.pictures, assumed).total for row in paper.instahide]
            how = "as measured" if batch == pictures else f"scaled from batch size {pictures}"
            rows.append(
                (
                    Cell(f"{devices} x {name}" if devices > 1 else name, f"{environment['processor']}; {model}"),
                    Cell(float(batch), how),
                    seconds,
                    attack_hours,
                    *cost,
                )
            )
            totals.append((attack_hours, batch, f"of {model} on {environment['processor']}, device {name},"))
    if not rows:
        return Section("With our measured speed", (Text("What came out: no attack was timed yet."),))
    baseline = paper.assumptions.attack_hours * 3600 / paper.attack_iterations
    published_row = (
        Cell("published", "NVIDIA GeForce RTX 2080 Ti; ResNet-18"),
        "any",
        baseline,
        paper.assumptions.attack_hours,
        *(row.hours for row in paper.instahide),
    )
    columns = (
        Column("machine"),
        Column("pictures a gradient", "{:.0f}"),
        Column("seconds an iteration", "{:.3g}"),
        Column("t, hours", "{:.3g}"),
        *(Column(f"N = {row.pictures:,}", HOURS, "hours under InstaHide") for row in paper.instahide),
    )
    fastest, batch, where = min(totals)
    largest = paper.instahide[-1]
    share = instahide_cost(largest.pictures, paper.assumptions).combinatorial / largest.hours
    words = (
        f"What came out: at batch size {batch} an inversion {where} takes {fastest:.3g} hours for "
        f"{paper.attack_iterations:,} iterations. The published {paper.assumptions.attack_hours:g} are of ResNet-18 on "
        f"a graphics card: compare them with hours of that network only. For N = {largest.pictures:,} "
        f"the combinatorial step is {100 * share:.1f} % of the published hours, which a faster attack does not change."
    )
    caption = (
        "Seconds an iteration: pictures of a gradient over image-iterations a second, with as many attacks side by "
        "side as the run had. The paper says that the batch size hardly matters for the time; scaled rows take it to "
        "be proportional, so the two bracket the truth. The network is that of the cell (see below)."
    )
    return Section("With our measured speed", (Text(words), Table(columns, (published_row, *rows), caption)))
