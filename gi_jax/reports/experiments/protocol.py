"""Switches between the published code's protocol and a corrected one, a switch at a time."""

from collections.abc import Sequence

from gi_jax.reports.experiments import leakage
from gi_jax.reports.experiments.found import Found, first
from gi_jax.reports.page import Cell, Column, Section, Table, Text

BASE = "all"
SWITCHES = {
    BASE: "Every flaw of this attack and its scoring at once: box, bn_var and lpips_range. In batches of one picture "
    "match does nothing, and the others need running averages, a defense or a decoder.",
    "box": "The published attack clips to a box of other constants than the data were normalized with, so that very "
    "dark and very light pixels cannot be reached.",
    "bn_var": "The published target is the unbiased variance, while normalization uses the biased one.",
    "bn_stats": "Published running averages hold a tenth of the private batch, which the threat model forbids.",
    "lpips_range": "The published scoring feeds normalized values to LPIPS, which expects [-1, 1].",
    "match": "The published scoring lets every reconstruction take the nearest original, so that one that leaked can "
    "count for all; corrected: one to one.",
    "mix_index": "The published code encodes the last, smaller batch with the wrong rows of the mapping.",
    "decode": "The published InstaHide decoder cannot recover signs; corrected: sign-aware.",
    "mask_pruned": "The published attack does not use that pruned entries are visible as zeros; corrected: it compares "
    "them with the bound that the kept ones give, by a likelihood in place of the cosine, and smooths the more, the "
    "fewer entries it sees.",
}
SCORED_ONLY = ("lpips_range", "match")
"""Switches of the paper's scoring, which this library's does not have."""
DECODED_ONLY = ("mix_index", "decode")
"""Switches of decoding, which the paper scores by the index of the picture, as this library does."""
OWN, PAPER = "LPIPS, this library's scoring", "LPIPS, the paper's scoring"


def _scores(found, switch, value):
    """Summaries of LPIPS by scoring for one position of a switch; None where it has not run or says nothing."""
    base = first(found, switch=BASE, value="reference")
    match switch, value:
        case _, "corrected" if switch == BASE:
            one = first(found, switch=BASE, value="corrected")
            return {OWN: leakage.own(one), PAPER: _mended(one, "lpips_range")}
        case (("lpips_range" | "match"), _):
            # The same reconstructions, scored in two ways; whom they are matched with shows in batches of several.
            one = base if switch == "lpips_range" else first(found, switch=switch)
            return {OWN: None, PAPER: leakage.reference(one) if value == "reference" else _mended(one, switch)}
        case "decode", _:
            one = first(found, switch=switch)
            return {OWN: _decoder(one, paper=value == "reference"), PAPER: None}
        case "mix_index", _:
            return {OWN: _decoder(first(found, switch=switch, value=value), paper=True), PAPER: None}
        case _, "reference":
            has_own = any(one.where["switch"] == switch and one.where["value"] == value for one in found)
            one = first(found, switch=switch, value=value) if has_own else base
        case _:
            one = first(found, switch=switch, value="corrected")
    return {OWN: leakage.own(one), PAPER: leakage.reference(one)}


def _mended(found, flaw):
    """Summary by the paper's scoring with a flaw of it mended."""
    blocks = {} if found is None else found.row["result"].get("mended_summaries", {})
    return blocks.get(flaw, {}).get(leakage.LPIPS)


def _decoder(found, *, paper):
    """Summary of what a decoder makes of true encodings."""
    blocks = [] if found is None else found.row["result"]["runs"]
    return next((one["summary"].get(leakage.LPIPS) for one in blocks if (one["decoder"] == "paper") == paper), None)


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, and a row a switch."""
    introduction = Section(
        "What is asked",
        (
            Text(
                "The published code differs from what the paper says, and has flaws, in a handful of places. Each is a "
                "switch here with two positions, reference (as published) and corrected. How much does each one move "
                "the result? All other switches stay at reference, but in the rows all and decode; in the latter "
                "mix_index is corrected."
            ),
            Text(
                f"{leakage.SCALE} A positive difference: less seems to leak after the correction. Small differences "
                "compared with the standard deviation over pictures should not be read."
            ),
        ),
    )
    rows, moves, failed = [], {OWN: {}, PAPER: {}}, []
    for switch in SWITCHES:
        before, after = (_scores(found, switch, value) for value in ("reference", "corrected"))
        row = [Cell(switch, SWITCHES[switch])]
        for scoring in (OWN, PAPER):
            pair = before[scoring], after[scoring]
            change = leakage.difference(*(leakage.comparable(one) for one in reversed(pair)))
            applies = switch not in (SCORED_ONLY if scoring == OWN else DECODED_ONLY)
            row += [*(_mean(one) if applies else "-" for one in pair), "-" if change is None else change]
            if change is not None and switch != BASE:
                moves[scoring][switch] = change
        summaries = [one for one in (*after.values(), *before.values()) if one is not None]
        if any(map(leakage.failed_words, summaries)):
            failed.append(switch)
        rows.append((*row, leakage.count_cell(min(summaries, key=lambda one: one["count"], default=None))))
    columns = (
        Column("switch"),
        *(
            Column(heading, "{:+.2f}" if heading == "difference" else "{:.2f}", group)
            for group in (OWN, PAPER)
            for heading in ("reference", "corrected", "difference")
        ),
        Column("n", "{:.0f}", " "),
    )
    caption = (
        "Averages over pictures, the standard deviation over pictures and how many failed under them; n is that of the "
        "average of fewest. No difference where pictures failed, which an average leaves out."
    )
    return (introduction, Section("Each switch", (*_words(moves, failed), Table(columns, tuple(rows), caption))))


def _mean(summary):
    value = leakage.shown(summary, "mean")
    if not isinstance(value, float):
        return value
    failed = leakage.failed_words(summary)
    return Cell(value, f"± {summary['std']:.2f}" + (f", {failed}" if failed else ""))


def _words(moves, failed):
    if not any(moves.values()):
        have = "has averages of all pictures" if failed else "was run"
        yield Text(f"What came out: no switch {have} in both positions yet.")
    for scoring, changes in moves.items():
        if changes:
            most = max(changes, key=lambda switch: abs(changes[switch]))
            few = sum(abs(change) < 0.01 for change in changes.values())
            yield Text(
                f"What came out, by {scoring.removeprefix('LPIPS, ')}: of {len(changes)} switches, {most} moves the "
                f"average LPIPS most, by {changes[most]:+.2f}; {few} move it by less than 0.01."
            )
    if failed:
        yield Text(f"Not compared, as pictures failed in one position or both: {', '.join(failed)}.")
