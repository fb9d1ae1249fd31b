"""Table 2 of Huang et al. (2021): what each defense costs, and how much still leaks, published and ours."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from gi_jax import defenses
from gi_jax.experiments import published
from gi_jax.reports import short
from gi_jax.reports.experiments import deviations, leakage
from gi_jax.reports.experiments.found import Found, first, select, values
from gi_jax.reports.experiments.names import defense_name
from gi_jax.reports.figures import Strip, strips
from gi_jax.reports.page import NONE, Cell, Column, Plot, Section, Table, Text, compact
from gi_jax.words import counted

FIELDS = (("mean", "average LPIPS"), ("best", "best LPIPS"), ("std", "std of LPIPS"))
LPIPS_FORM, DIFFERENCE = "{:.2f}", "{:+.2f}"


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, accuracy and time, and a section a batch size."""
    sizes = values(found, "batch_size") or list(published.table2().batch_sizes)
    return (_introduction(found), _utility(found), *(_leakage(found, batch_size) for batch_size in sizes))


class Trainings(NamedTuple):
    """Trainings of a column.

    Attributes:
      accuracies: per cent, of each seed that did not diverge.
      ratios: times of a step over that without a defense, as often as it was measured.
      diverged: how many did.
    """

    accuracies: list[float]
    ratios: list[float]
    diverged: int

    @property
    def accuracy(self) -> float | None:
        """Mean over seeds, per cent; None if no seed reached one."""
        return float(np.mean(self.accuracies)) if self.accuracies else None

    def shown(self, number: float | None) -> float | str | None:
        """A number of theirs for a table, where trainings that all diverged are no missing ones."""
        return "diverged" if number is None and self.diverged and not self.accuracies else number


def trainings(found: Sequence[Found], column: str) -> Trainings:
    """Those of a column that ran."""
    rows = [one.row for one in select(found, what="training", column=column)]
    # Seeds that were trained together were timed once.
    ratios = sorted({row["timing"]["ratio"] for row in rows if row["timing"].get("ratio") is not None})
    accuracies = [row["result"]["test_accuracy"] for row in rows]
    reached = [100 * accuracy for accuracy in accuracies if accuracy is not None]
    return Trainings(reached, [1.0] if rows and column == "none" else ratios, len(rows) - len(reached))


def tested_words(found: Sequence[Found]) -> str:
    """On how many pictures our accuracies are, in a sentence; empty where no row says it, as older ones do not."""
    rows = [one.row for one in select(found, what="training")]
    counts = sorted({row["result"]["pictures"]["test"] for row in rows if "pictures" in row["result"]})
    words = " or ".join(f"{count:,}" for count in counts)
    return f"Our accuracies are those on {words} held-out pictures." if counts else ""


def _introduction(found):
    ran = len(select(found, what="attack"))
    return Section(
        "What is asked",
        (
            Text(
                "A client trains a classifier and sends gradients. Each row of the tables is a defense it may use. Two "
                "questions: what does the defense cost (test accuracy and training time), and how close to the private "
                "pictures does an attacker come who sees the gradient and is granted the labels and the normalization "
                "statistics of the private batch?"
            ),
            Text(
                f"How to read it: {leakage.SCALE} Published numbers are those of Table 2 of the paper; a difference is "
                "ours minus published, so a negative one says that more leaked here. n is the number of pictures. Read "
                "down a column first: the order of the defenses tells more than any single value."
            ),
            Text(f"{ran} attacks of this table were run." if ran else "No attack of this table was run yet."),
        ),
    )


def _utility(found):
    paper = published.table2()
    columns, outside = leakage.columns(found, what="training")
    comparable = deviations.accuracies_comparable(found)
    rows = []
    for column in columns:
        trained = trainings(found, column)
        ratio = float(np.mean(trained.ratios)) if trained.ratios else None
        known, time = paper.test_accuracy.get(column), paper.time_ratio.get(column)
        rows.append(
            (
                defense_name(column),
                _known(known),
                Cell(trained.shown(trained.accuracy), _spread(trained.accuracies, "{:.2f}")),
                _known(leakage.difference(trained.accuracy, known) if comparable else None),
                _known(time),
                Cell(trained.shown(ratio), _spread(trained.ratios, "{:.2f}")),
                _known(leakage.difference(ratio, time) if comparable else None),
                Cell(float(len(trained.accuracies)), f"{trained.diverged} diverged" if trained.diverged else ""),
            )
        )
    heads = (
        Column("defense"),
        Column("published", "{:.2f}", "test accuracy, %"),
        Column("ours", "{:.2f}", "test accuracy, %"),
        Column("difference", "{:+.2f}", "test accuracy, %"),
        Column("published", "{:.2f}", "training time, times that without a defense"),
        Column("ours", "{:.2f}", "training time, times that without a defense"),
        Column("difference", "{:+.2f}", "training time, times that without a defense"),
        Column("seeds", "{:.0f}", " "),
    )
    caption = (
        "Ours: mean over seeds, with the standard deviation over seeds under it (divided by n - 1); the time is "
        "measured once for seeds that were trained together. "
        f"Published: means of {published.settings()['training_runs']} runs. {tested_words(found)}"
    ).strip()
    words = _utility_words(found, columns) + leakage.outside_words(outside)
    return Section("Utility: accuracy and time", (Text(words), compact(heads, rows, caption)))


def _utility_words(found, columns):
    paper = published.table2()
    base = trainings(found, "none").accuracy
    losses = {column: trainings(found, column).accuracy for column in columns if column != "none"}
    losses = {column: base - value for column, value in losses.items() if value is not None} if base is not None else {}
    if not losses:
        return "What came out: no accuracy of a defense beside that of the undefended network yet."
    most = max(losses, key=losses.get)
    known = {column: paper.test_accuracy["none"] - value for column, value in paper.test_accuracy.items()}
    comparable = deviations.accuracies_comparable(found)
    published_words = f" (published: {known[most]:.2f})" if comparable and most in known else ""
    words = (
        f"What came out: the undefended network reaches {base:.2f} %. Of {counted(len(losses), 'defense')} that "
        "reached an accuracy, "
        f"{defense_name(most)} costs most, {losses[most]:.2f} points of accuracy{published_words}."
    )
    if not comparable:
        words += (
            " These are not the published trainings; short ones, and few test pictures, say little of what a defense "
            "costs in the end."
        )
    return words


def _leakage(found, batch_size):
    columns, outside = leakage.columns(found, what="attack", batch_size=batch_size)
    cells = {column: first(found, what="attack", column=column, batch_size=batch_size) for column in columns}
    comparable = deviations.comparable(found)
    words = _leakage_words(cells, batch_size, comparable) + leakage.outside_words(outside)
    blocks = [Text(words), _comparison(cells, batch_size, comparable)]
    if any(cells.values()):
        blocks += [_figure(cells, batch_size), _own(cells)]
    if any(one is not None and one.row["result"].get("decoded") for one in cells.values()):
        blocks.append(_decoders(cells))
    return Section(f"Leakage at batch size {batch_size}", tuple(blocks))


def _leakage_words(cells, batch_size, comparable):
    paper = published.table2()
    ran = sum(one is not None for one in cells.values())
    if not ran:
        return f"What came out: nothing was run at batch size {batch_size} yet."
    words = f"What came out: {ran} of {len(cells)} columns were run. {leakage.least_words(cells)}"
    if not comparable:
        return f"{words} The threat model or the data are not the paper's, so nothing is compared with its numbers."
    ours = {column: leakage.comparable(leakage.published_protocol(one)) for column, one in cells.items()}
    both = [column for column in ours if ours[column] is not None and (column, batch_size) in paper.lpips]
    known = {column: paper.lpips[column, batch_size].mean for column in both}
    if known:
        gap = float(np.mean([abs(ours[column] - known[column]) for column in both]))
        words += (
            f" By the published scoring and the paper's decoder our averages are {gap:.2f} from the published ones on "
            f"average over {len(both)} columns"
        )
        if len(both) > 2 and len(set(known.values())) > 1 and len({ours[column] for column in both}) > 1:
            agreement = spearmanr([ours[column] for column in both], [known[column] for column in both]).statistic
            words += f"; the rank correlation of the two orders is {agreement:.2f} (1: the same order)"
        words += "."
    return words


def _comparison(cells, batch_size, comparable):
    paper = published.table2()
    summaries = {column: leakage.published_protocol(one) for column, one in cells.items()}
    rows = []
    for column, summary in summaries.items():
        known = paper.lpips.get((column, batch_size))
        row = [defense_name(column)]
        for field, _ in FIELDS:
            value = leakage.number(summary, field)
            of_paper = None if known is None else getattr(known, field)
            gap = leakage.difference(value, of_paper) if comparable else None
            row += [_known(of_paper), leakage.shown(summary, field), _known(gap)]
        rows.append((*row, leakage.count_cell(summary)))
    heads = (
        Column("defense"),
        *(
            Column(heading, DIFFERENCE if heading == "difference" else LPIPS_FORM, group)
            for _, group in FIELDS
            for heading in ("published", "ours", "difference")
        ),
        Column("n", "{:.0f}", " "),
    )
    caption = (
        "By the published scoring (each reconstruction takes the nearest original of its "
        "batch; picture values as the network sees them). MixUp and InstaHide: what the paper's decoder makes of the "
        "recovered encodings, in [-1, 1], against the original of the same index as the network sees it. For "
        "comparison with the paper only: a high score after that decoder is no protection."
    )
    return compact(heads, rows, caption)


def _figure(cells, batch_size):
    paper = published.table2()
    lines = []
    for column, one in cells.items():
        known = paper.lpips.get((column, batch_size))
        picture_values = leakage.per_picture(leakage.protocol_block(one))
        lines.append(Strip(defense_name(column), picture_values, known and known.mean, known and known.best))
    return Plot(
        strips(
            lines, "LPIPS (VGG) of a picture; further right: less leaked", f"Every picture, batch size {batch_size}"
        ),
        f"LPIPS of every picture by defense at batch size {batch_size}",
        "Ours by this library's scoring (optimal matching within a batch, values in [-1, 1]), of what the paper's "
        "decoder made of encoded ones; so means may differ from those of the tables.",
    )


def _own(cells):
    rows, least = [], leakage.least_leaked(cells)
    fell_short = {column: _short(one) for column, one in cells.items()}
    known = any(value != NONE for value in fell_short.values())
    for column, one in cells.items():
        block = leakage.strongest_block(one) or {}
        lpips, psnr, ssim = (block.get("summary", {}).get(metric) for metric in (leakage.LPIPS, "psnr", "ssim"))
        rows.append(
            (
                Cell(defense_name(column), f"decoder: {block['decoder']}" if "decoder" in block else ""),
                Cell(leakage.shown(lpips, "mean"), marked=column in least),
                *(leakage.shown(lpips, field) for field in ("best", "std")),
                *(leakage.shown(psnr, field) for field in ("mean", "best")),
                *(leakage.shown(ssim, field) for field in ("mean", "best")),
                leakage.count_cell(lpips or psnr),
                *([fell_short[column]] if known else []),
            )
        )
    heads = (
        Column("defense"),
        *(Column(name, LPIPS_FORM, "LPIPS") for name in ("average", "best", "std")),
        *(Column(name, "{:.1f}", "PSNR, dB") for name in ("average", "best")),
        *(Column(name, "{:.2f}", "SSIM") for name in ("average", "best")),
        Column("n", "{:.0f}", " "),
        *([Column("fell short", group=" ")] if known else []),
    )
    caption = (
        "By this library's scoring: every reconstruction is matched to one original, no two to the same, decoded "
        "pictures to that of their index; LPIPS on values in [-1, 1]. Encoded pictures by the decoder of recovered "
        "encodings to which most leaks. Conclusions should rest on this table."
    )
    if known:
        caption += f" Fell short: attacks of which {short.MEANING}; they themselves do not know the truth."
    if least:
        caption += (
            f" Marked: the column under which least leaked, and those not told apart from it. {leakage.TOLD_APART}"
        )
    return Table(heads, tuple(rows), caption)


def _short(found):
    """Of the attacks of a column, before any decoding."""
    counted = None if found is None or found.row is None else short.fell_short(found.row["result"].get("images", ()))
    return NONE if counted is None else str(counted)


def _decoders(cells):
    kinds = (("paper", "recovered"), ("better", "recovered"), ("paper", "true"), ("better", "true"))
    rows = []
    for column, one in cells.items():
        if defenses.parse(column).mixing is None or one is None:
            continue
        blocks = [leakage.decoded(one.row, *kind) for kind in kinds]
        summaries = [None if block is None else block["summary"].get(leakage.LPIPS) for block in blocks]
        better = blocks[1] or blocks[3]
        notes = ["", better["decoder"] if better else ""] * 2
        rows.append(
            (
                defense_name(column),
                *(Cell(leakage.shown(s, "mean"), note) for s, note in zip(summaries, notes, strict=True)),
                leakage.count_cell(next((s for s in summaries if s), None)),
            )
        )
    heads = (
        Column("defense"),
        Column("the paper's decoder", LPIPS_FORM, "from recovered encodings"),
        Column("a better decoder", LPIPS_FORM, "from recovered encodings"),
        Column("the paper's decoder", LPIPS_FORM, "from true encodings: the floor"),
        Column("a better decoder", LPIPS_FORM, "from true encodings: the floor"),
        Column("n", "{:.0f}", " "),
    )
    caption = (
        "Average LPIPS after decoding. From true encodings no gradient had to be inverted, so this is the floor: a "
        "score that is high there is a weakness of the decoder, not a merit of the defense. All decoders are granted "
        "which pictures were mixed in which shares."
    )
    return Table(heads, tuple(rows), caption)


def _known(value):
    """A published number, or a difference from one: where there is none, that is no missing run."""
    return NONE if value is None else value


def _spread(numbers, form):
    return f"± {form.format(np.std(numbers, ddof=1))}" if len(numbers) > 1 else ""
