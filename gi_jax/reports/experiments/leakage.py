"""How much leaked, read from a row of an attack: by the paper's scoring, by this library's, and after decoding."""

import math
from collections.abc import Mapping, Sequence

from gi_jax.experiments import published
from gi_jax.reports.experiments.found import Found, values
from gi_jax.reports.experiments.names import defense_name
from gi_jax.reports.page import NOT_RUN, Cell

LPIPS = "lpips_vgg"
SCALE = (
    "LPIPS (VGG) is the perceptual distance of a picture from the original: 0 is identical, and a higher value means "
    "that less leaked. The best value is that of the picture that leaked most."
)

TOLD_APART = (
    "Two averages are told apart where they differ by more than two standard errors of the difference, pictures taken "
    "as independent."
)
FEWEST = 3
"""Defenses that are compared at least before one is named; two where a scale has no more."""


def columns(found: Sequence[Found], **where) -> tuple[list[str], list[str]]:
    """Columns of Table 2: those of the cells at these coordinates, run or not, and those of the paper that none has.

    The latter are not part of the scale. Without cells the former are the paper's.
    """
    paper = published.table2().columns
    there = values([one for one in found if where.items() <= one.where.items()], "column") or paper
    ordered = dict.fromkeys([*(column for column in paper if column in there), *there])
    return list(ordered), [column for column in paper if column not in there]


def outside_words(outside: Sequence[str]) -> str:
    """Names what a scale leaves out, for the end of a paragraph; empty if that is nothing."""
    return f" Not in this scale: {'; '.join(map(defense_name, outside))}." if outside else ""


def decoded(row: dict, decoder: str, encodings: str) -> dict | None:
    """The block of a decoder (`paper`, or anything else for the better one) on `recovered` or `true` encodings."""
    for block in row["result"].get("decoded", ()):
        if (block["decoder"] == "paper") == (decoder == "paper") and block["encodings"] == encodings:
            return block
    return None


def own(found: Found | None, metric: str = LPIPS) -> dict | None:
    """Summary of a metric by this library's scoring: mean, best, std, count and failed; None if it is missing."""
    return None if found is None else found.row["result"]["summary"].get(metric)


def reference(found: Found | None, metric: str = LPIPS) -> dict | None:
    """Summary by the scoring of the paper's code."""
    return None if found is None else found.row["result"].get("reference_summary", {}).get(metric)


def protocol_block(found: Found | None) -> dict | None:
    """The block whose pictures count under the published protocol: the attack's, or that of the paper's decoder."""
    if found is None:
        return None
    return decoded(found.row, "paper", "recovered") if "decoded" in found.row["result"] else found.row["result"]


def strongest_block(found: Found | None) -> dict | None:
    """The block of what leaked most by this library's scoring: the attack's, or that of its best decoder."""
    if found is None or "decoded" not in found.row["result"]:
        return protocol_block(found)
    recovered = [block for block in found.row["result"]["decoded"] if block["encodings"] == "recovered"]
    means = [number(block["summary"].get(LPIPS), "mean") for block in recovered]
    order = [math.inf if mean is None else mean for mean in means]
    return recovered[order.index(min(order))] if recovered else None


def least_leaked(cells: Mapping[str, Found | None]) -> list[str]:
    """The column under which least leaks to the strongest decoder, and those not told apart from it (`TOLD_APART`).

    Of those whose averages are `comparable`; empty where these are too few to name one, see `FEWEST`.

    Args:
      cells: by column, those that have not run as None.
    """
    summaries = {column: _leaked(one) for column, one in cells.items()}
    ran = {column: summary for column, summary in summaries.items() if summary is not None}
    defended = len(ran.keys() - {"none"})
    if defended < FEWEST and not (defended >= 2 and len(ran) == len(cells)):
        return []
    first = max(ran, key=lambda column: ran[column]["mean"])
    same = (column for column in ran if column != first and not _told_apart(ran[first], ran[column]))
    return [first, *sorted(same, key=lambda column: -ran[column]["mean"])]


def least_words(cells: Mapping[str, Found | None]) -> str:
    """What `least_leaked` found, in a sentence or two."""
    shown = {column: f"{defense_name(column)} ({_leaked(cells[column])['mean']:.2f})" for column in least_leaked(cells)}
    if not shown:
        ran = sum(column != "none" and _leaked(one) is not None for column, one in cells.items())
        text = f"{ran} defense{' was' if ran == 1 else 's were'} scored: too few to say under which least leaks."
    else:
        first, *same = shown.values()
        text = f"By this library's scoring, and the strongest decoder of what was encoded, least leaks under {first}"
        text += f"; not told apart from it: {', '.join(same)}." if same else "."
    failed = [defense_name(column) for column, one in cells.items() if failed_words(_summary(strongest_block(one)))]
    return text + left_out_words(failed)


def _leaked(found):
    """Summary of LPIPS of `strongest_block`; None where its average is not `comparable`."""
    summary = _summary(strongest_block(found))
    return None if comparable(summary) is None else summary


def _summary(block):
    return None if block is None else block["summary"].get(LPIPS)


def _told_apart(one, other):
    if min(one["count"], other["count"]) < 2:
        return False
    error = math.hypot(*(summary["std"] / math.sqrt(summary["count"] - 1) for summary in (one, other)))
    return abs(one["mean"] - other["mean"]) > 2 * error


def published_protocol(found: Found | None) -> dict | None:
    """Summary of LPIPS that compares with the paper's tables.

    That is the paper's scoring of what was attacked; where pictures were encoded, of what the paper's decoder made of
    the recovered encodings, against the original of the same index.
    """
    block = protocol_block(found)
    return None if block is None else block.get("reference_summary", {}).get(LPIPS)


def per_picture(block: dict | None) -> list[float]:
    """LPIPS of each picture of a block, those that failed left out."""
    rows = [] if block is None else block["images"]
    return [row[LPIPS] for row in rows if row.get(LPIPS) is not None]


def number(summary: dict | None, field: str) -> float | None:
    """A field of a summary; None where anything is missing."""
    return None if summary is None else summary[field]


def shown(summary: dict | None, field: str) -> float | str | None:
    """The same for a table, where a run all of whose pictures failed is no missing run."""
    return "diverged" if summary is not None and summary[field] is None else number(summary, field)


def comparable(summary: dict | None) -> float | None:
    """The average, for comparing it with others: None where pictures failed, as it leaves these out."""
    return None if failed_words(summary) else number(summary, "mean")


def left_out_words(names: Sequence[str]) -> str:
    """Names what is not `comparable`, for the end of a paragraph; empty if that is nothing."""
    return f" Not compared, as pictures failed: {'; '.join(names)}." if names else ""


def failed_words(summary: dict | None) -> str:
    """How many pictures have no score, for beside a mean, which leaves them out; empty if there are none."""
    failed = 0 if summary is None else summary.get("failed", 0)
    return f"{failed} failed" if failed else ""


def count_cell(summary: dict | None) -> Cell:
    """How many pictures a mean is of, and under it how many failed."""
    return Cell(0.0 if summary is None else float(summary["count"]), failed_words(summary))


def missing_words(cells: Mapping[str, Found | None]) -> str:
    """Names the cells without a `comparable` average LPIPS, each with the reason; empty if all have one."""
    missing = {name: one for name, one in cells.items() if comparable(own(one)) is None}
    return ", ".join(f"{name} {_reason(one)}" for name, one in missing.items())


def _reason(found):
    """Why a cell has no average LPIPS that can be compared."""
    summary = own(found)
    if found is None:
        return NOT_RUN
    if summary is None:
        return "without LPIPS"
    return "diverged" if summary["mean"] is None else f"not compared ({failed_words(summary)})"


def difference(value: float | None, other: float | None) -> float | None:
    """value - other; None where one is missing."""
    return None if value is None or other is None else value - other


def tile_captions(found: Found, count: int) -> list[str]:
    """LPIPS of the first `count` pictures that `found.pictures` shows, or that they diverged; empty where unknown."""
    block = protocol_block(found)
    rows = [] if block is None else block["images"][:count]
    texts = [_tile_caption(row) for row in rows]
    return texts + [""] * (count - len(texts))


def _tile_caption(row):
    if row.get(LPIPS) is not None:
        return f"{row[LPIPS]:.2f}"
    failed = any(metric in row and row[metric] is None for metric in (LPIPS, "psnr"))
    return "diverged" if failed else ""
