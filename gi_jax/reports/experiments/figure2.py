"""Figure 2 of Huang et al. (2021): how labels repeat in a batch, and attacks with and without private labels."""

from collections.abc import Sequence

from gi_jax.experiments import published
from gi_jax.reports.experiments import leakage
from gi_jax.reports.experiments.found import Found, first, values
from gi_jax.reports.experiments.grids import picture_grid
from gi_jax.reports.labels import distribution_figure
from gi_jax.reports.page import Cell, Column, Plot, Section, Table, Text

LABELS = {
    "known": "granted to the attacker",
    "optimize": "unknown; guessed together with the pictures",
    "auto": "unknown; read from the gradient of the last layer first",
}


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, the distribution, and the attacks."""
    introduction = Section(
        "What is asked",
        (
            Text(
                "An attack is easier if the attacker knows which classes the private pictures have. Published methods "
                "read the labels from the gradient, but only if all pictures of a batch have different ones. So two "
                "questions: how often do labels repeat in a batch, and how much does an attack lose if it has to find "
                "the labels itself?"
            ),
        ),
    )
    return (introduction, _distribution(first(found, what="distribution")), _attacks(found))


def _distribution(one):
    heading = "(a) How labels repeat in a batch"
    if one is None:
        return Section(heading, (Text("What came out: not run yet."),))
    result = one.row["result"]
    rows = tuple((float(row["batch_size"]), row["classes"], 100 * row["shared_by"]["1"]) for row in result["rows"])
    columns = (
        Column("batch size", "{:.0f}"),
        Column("different labels, on average", "{:.1f}"),
        Column("pictures that are alone with their label, %", "{:.0f}"),
    )
    first_half = next((size for size, _, alone in rows if alone < 50), None)
    words = (
        "in no batch size shown do most pictures share their label with another one"
        if first_half is None
        else f"from batch size {first_half:.0f} on, more than half of the pictures share their label with another one"
    )
    about = f"Share of pictures whose label is carried by so many pictures of the batch, {result['data']}"
    return Section(
        heading,
        (
            Text(f"What came out: {words}. The shares are exact expectations for random batches, nothing is drawn."),
            Plot(distribution_figure(result), about),
            Table(columns, rows),
        ),
    )


def _attacks(found):
    kinds = list(dict.fromkeys(["known", "optimize", *values(found, "labels")]))
    cells = {kind: first(found, what="attack", labels=kind) for kind in kinds}
    rows = []
    for kind, one in cells.items():
        lpips, psnr = leakage.own(one), leakage.own(one, "psnr")
        labels = {} if one is None else one.row["result"]["labels"]
        # What was granted has no overlap; what was not run has none yet.
        overlaps = (labels.get(name) for name in ("set_overlap", "count_overlap"))
        missing = "-" if "from" in labels else None
        rows.append(
            (
                Cell(kind, LABELS.get(kind, "")),
                leakage.shown(lpips, "mean"),
                leakage.shown(lpips, "best"),
                leakage.shown(leakage.reference(one), "mean"),
                leakage.shown(psnr, "mean"),
                *(missing if overlap is None else 100 * overlap for overlap in overlaps),
                leakage.count_cell(lpips or psnr),
            )
        )
    columns = (
        Column("labels"),
        Column("average LPIPS", "{:.2f}"),
        Column("best LPIPS", "{:.2f}"),
        Column("LPIPS, paper's scoring", "{:.2f}"),
        Column("average PSNR, dB", "{:.1f}"),
        Column("right classes, %", "{:.0f}"),
        Column("right counts, %", "{:.0f}"),
        Column("n", "{:.0f}"),
    )
    blocks = [Text(_words(cells)), Text(leakage.SCALE), Table(columns, tuple(rows))]
    grid = picture_grid(
        [(f"labels: {kind}", one) for kind, one in cells.items()], "One batch, by what is known of labels"
    )
    return Section("(b) Attacks with and without private labels", tuple(blocks if grid is None else [*blocks, grid]))


def _words(cells):
    pictures = published.settings()["figure2"]["pictures"]
    means = {kind: leakage.comparable(leakage.own(one)) for kind, one in cells.items()}
    known = means.pop("known", None)
    losses = {kind: value - known for kind, value in means.items() if value is not None and known is not None}
    paper = f"The paper shows a batch of {pictures} without numbers and finds that the quality drops."
    missing = leakage.missing_words({f"labels {kind}": one for kind, one in cells.items()})
    if not losses:
        return f"What came out: attacks with and without labels cannot be compared yet: {missing}. {paper}"
    text = "; ".join(f"labels {kind}: {value:+.2f}" for kind, value in losses.items())
    text += f"; {missing}" if missing else ""
    return f"What came out: average LPIPS with known labels is {known:.2f}, and without changes by: {text}. {paper}"
