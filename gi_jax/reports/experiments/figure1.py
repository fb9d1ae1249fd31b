"""Figure 1 of Huang et al. (2021): attacks that know more or less of the BatchNorm statistics."""

from collections.abc import Sequence

from gi_jax.experiments import published
from gi_jax.reports.experiments import leakage
from gi_jax.reports.experiments.found import Found, first, values
from gi_jax.reports.experiments.grids import picture_grid
from gi_jax.reports.page import Cell, Column, Section, Table, Text

KNOWLEDGE = {
    "exact": "knows the exact statistics of the private batch",
    "infer": "infers them, drawn to the running averages by a prior",
    "proxy": "takes the running averages for them",
}


UNTRAINED = (
    "The network is at its initialization, where running averages are mean 0 and variance 1: those who infer the "
    "statistics or take these for them have nothing to go by, and the order says little."
)


LARGE = (
    "The picture is an embedded photograph in place of one of ImageNet, of which the paper says only that it is not "
    "recognizable where statistics are inferred."
)


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, and a section a panel."""
    settings = published.settings()["figure1"]
    introduction = Section(
        "What is asked",
        (
            Text(
                "BatchNorm normalizes with the mean and the variance of the private batch. Published attacks assume "
                "that the attacker is given these numbers. How much worse does the attack become without them?"
            ),
            Text(
                "Rows of pictures: the originals, then what three attackers rebuild who know less and less: exact "
                f"{KNOWLEDGE['exact']}; infer {KNOWLEDGE['infer']}; proxy {KNOWLEDGE['proxy']}. The paper shows "
                "pictures without numbers, and reports that infer is much better than proxy and worse than exact on "
                f"small pictures, and not recognizable on a large one. {leakage.SCALE}"
            ),
        ),
    )
    panels = values(found, "panel") or settings["pictures"]
    return (introduction, *(_panel(found, panel, settings) for panel in panels))


def _panel(found, panel, settings):
    kinds = list(
        dict.fromkeys([*settings["order"], *(one.where["bn"] for one in found if one.where.get("panel") == panel)])
    )
    cells = {kind: first(found, panel=panel, bn=kind) for kind in kinds}
    columns = (
        Column("attacker"),
        Column("average LPIPS", "{:.2f}"),
        Column("best LPIPS", "{:.2f}"),
        Column("LPIPS, paper's scoring", "{:.2f}"),
        Column("average PSNR, dB", "{:.1f}"),
        Column("n", "{:.0f}"),
    )
    rows = []
    for kind, one in cells.items():
        lpips, psnr = leakage.own(one), leakage.own(one, "psnr")
        rows.append(
            (
                Cell(kind, KNOWLEDGE.get(kind, "")),
                leakage.shown(lpips, "mean"),
                leakage.shown(lpips, "best"),
                leakage.shown(leakage.reference(one), "mean"),
                leakage.shown(psnr, "mean"),
                leakage.count_cell(lpips or psnr),
            )
        )
    ordered = settings["order"] if panel != "large" else None
    blocks = [Text(_words(cells, ordered)), Table(columns, tuple(rows))]
    if panel == "large":
        blocks.insert(0, Text(LARGE))
    if any(one is not None and one.row["network"] is None for one in cells.values()):
        blocks.insert(0, Text(UNTRAINED))
    grid = picture_grid(list(cells.items()), f"Attackers on {panel}")
    return Section(f"Panel {panel}", tuple(blocks if grid is None else [*blocks, grid]))


def _words(cells, order):
    """What came out, beside the order of the paper if it has one."""
    means = {kind: leakage.comparable(leakage.own(one)) for kind, one in cells.items()}
    means = {kind: value for kind, value in means.items() if value is not None}
    missing = leakage.missing_words(cells)
    if not means:
        return f"What came out: no average LPIPS to compare yet: {missing}."
    text = ", ".join(f"{kind} {value:.2f}" for kind, value in means.items())
    if missing:
        return f"What came out: average LPIPS {text}; {missing}."
    ranked = sorted(means, key=means.get)
    words = f"What came out: average LPIPS {text}. From most to least leaked: {', '.join(ranked)}"
    if order is None:
        return f"{words}."
    agrees = "the order of the paper" if ranked == order else f"not the order of the paper, which is {', '.join(order)}"
    return f"{words}; this is {agrees}."
