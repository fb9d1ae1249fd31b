"""Switches between the published code's protocol and a corrected one, a switch at a time."""

from collections.abc import Sequence

from gi_jax.reports.experiments import leakage
from gi_jax.reports.experiments.found import Found, first, values
from gi_jax.reports.page import Cell, Column, Section, Table, Text

BASE = "all"
SWITCHES = {
    BASE: "everything at once",
    "box": "The published attack clips to a box of other constants than the data were normalized with, so that very "
    "dark and very light pixels cannot be reached.",
    "bn_mode": "The published code uses the private statistics as the target of a prior only; the paper says that they "
    "normalize.",
    "bn_var": "The published target is the unbiased variance, while normalization uses the biased one.",
    "bn_stats": "Published running averages hold a tenth of the private batch, which the threat model forbids.",
    "lpips_range": "The published scoring feeds normalized values to LPIPS, which expects [-1, 1].",
    "match": "The published scoring lets every reconstruction take the nearest original, so that one that leaked can "
    "count for all; corrected: one to one.",
    "last_batch": "50 pictures leave a smaller last batch, which the published protocol counts as a full one.",
    "mix_index": "The published code encodes the last, smaller batch with the wrong rows of the mapping.",
    "decode": "The published InstaHide decoder cannot recover signs; corrected: sign-aware.",
    "freeze_T": "The published 20 epochs all attack the same frozen weights.",
    "mask_pruned": "The published attack does not use that pruned entries are visible as zeros.",
}
SCORINGS = {"LPIPS, this library's scoring": leakage.own, "LPIPS, the paper's scoring": leakage.reference}


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, and a row a switch."""
    introduction = Section(
        "What is asked",
        (
            Text(
                "The published code differs from what the paper says, and has flaws, in a handful of places. Each is a "
                "switch here with two positions, reference (as published) and corrected. How much does each one move "
                "the result? All other switches stay at reference."
            ),
            Text(
                f"{leakage.SCALE} A positive difference: less seems to leak after the correction. Small differences "
                "compared with the standard deviation over pictures should not be read."
            ),
        ),
    )
    switches = list(dict.fromkeys([BASE, *values(found, "switch")]))
    rows, moves = [], {}
    for switch in switches:
        reference = first(found, switch=switch, value="reference") or first(found, switch=BASE, value="reference")
        corrected = first(found, switch=switch, value="corrected")
        row = [Cell(switch, SWITCHES.get(switch, ""))]
        for read in SCORINGS.values():
            before, after = (read(one) for one in (reference, corrected))
            change = leakage.difference(leakage.number(after, "mean"), leakage.number(before, "mean"))
            row += [_mean(before), _mean(after), "-" if change is None else change]
            if read is leakage.own and change is not None:
                moves[switch] = change
        summary = leakage.own(corrected) or leakage.own(reference)
        rows.append((*row, float(summary["count"]) if summary else 0.0))
    columns = (
        Column("switch"),
        *(
            Column(heading, "{:+.2f}" if heading == "difference" else "{:.2f}", group)
            for group in SCORINGS
            for heading in ("reference", "corrected", "difference")
        ),
        Column("n", "{:.0f}", " "),
    )
    caption = "Averages over pictures, the standard deviation over pictures under them."
    return (introduction, Section("Each switch", (Text(_words(moves)), Table(columns, tuple(rows), caption))))


def _mean(summary):
    value = leakage.shown(summary, "mean")
    return Cell(value, f"± {summary['std']:.2f}") if isinstance(value, float) else value


def _words(moves):
    moves = {switch: change for switch, change in moves.items() if switch != BASE}
    if not moves:
        return "What came out: no switch was run in both positions yet."
    most = max(moves, key=lambda switch: abs(moves[switch]))
    return (
        f"What came out: of {len(moves)} switches, {most} moves the average LPIPS most, by {moves[most]:+.2f}; "
        f"{sum(abs(change) < 0.01 for change in moves.values())} move it by less than 0.01."
    )
