"""Table 1 of Huang et al. (2021): what attacks assume, and what that is worth by running."""

from collections.abc import Sequence

from gi_jax.experiments import published
from gi_jax.reports.experiments import leakage
from gi_jax.reports.experiments.found import Found, values
from gi_jax.reports.page import Cell, Column, Section, Table, Text

STATISTICS = {"none": "network without BatchNorm", "given": "given", "unknown": "unknown"}
LABELS = {"known": "known", "auto": "read from the gradient", "optimize": "optimized with the pictures"}


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, the published table beside ours, and what running says."""
    paper = published.table1()
    introduction = Section(
        "What is asked",
        (
            Text(
                "Attacks are often shown with help: the attacker is told the BatchNorm statistics of the private "
                "batch, or the labels. The first table says what each published attack assumes, as the paper sees it, "
                "and what the threat model grants it here. The second gives attacks more or less help: if an "
                "assumption matters, the pictures get worse without it."
            ),
            Text(leakage.SCALE),
        ),
    )
    columns = (
        Column("attack"),
        *(
            Column(whose, group=what)
            for what in ("knows BatchNorm statistics", "knows private labels")
            for whose in ("published", "here")
        ),
        Column("remark", group=" "),
    )
    rows = tuple(
        (Cell(name, one.paper), one.statistics, here[0], one.labels, here[1], one.remark)
        for name, one in paper.attacks.items()
        for here in [granted(found, name)]
    )
    assumptions = Section("What attacks assume, as published", (Table(columns, rows, paper.source),))
    return (introduction, assumptions, _checked(found, paper))


def granted(found: Sequence[Found], attack: str) -> tuple[str | None, str | None]:
    """Whether statistics and labels are given to the attack in its first cell, in the words of the published table."""
    where = next((one.where for one in found if one.where.get("attack") == attack), None)
    if where is None:
        return None, None
    statistics = {"none": "not applicable", "given": "yes", "unknown": "no"}[where["statistics"]]
    return statistics, "yes" if where["labels"] == "known" else "no"


def _checked(found, paper):
    columns = (
        Column("attack"),
        Column("statistics"),
        Column("labels"),
        Column("average", "{:.2f}", "LPIPS"),
        Column("best", "{:.2f}", "LPIPS"),
        Column("change", "{:+.2f}", "LPIPS"),
        Column("average", "{:.1f}", "PSNR, dB"),
        Column("right counts of labels, %", "{:.0f}", " "),
        Column("n", "{:.0f}", " "),
    )
    rows, losses, failed = [], {}, []
    attacks = [name for name in dict.fromkeys([*paper.attacks, *values(found, "attack")])]
    for attack in attacks:
        cells = sorted((one for one in found if one.where.get("attack") == attack), key=_rank)
        base = {}
        for one in cells:
            ran = None if one.row is None else one
            lpips, psnr = leakage.own(ran), leakage.own(ran, "psnr")
            mean = leakage.comparable(lpips)
            # The change is against the most help with the same network: with and without BatchNorm are two networks.
            network = one.where["statistics"] == "none"
            change = leakage.difference(mean, base.get(network))
            if change is not None:
                losses[attack, one.where["statistics"], one.where["labels"]] = change
            base.setdefault(network, mean)
            if leakage.failed_words(lpips):
                failed.append(_named(attack, one.where["statistics"], one.where["labels"]))
            overlap = None if ran is None else one.row["result"]["labels"].get("count_overlap")
            rows.append(
                (
                    attack,
                    STATISTICS[one.where["statistics"]],
                    LABELS[one.where["labels"]],
                    leakage.shown(lpips, "mean"),
                    leakage.shown(lpips, "best"),
                    "-" if change is None else change,
                    leakage.shown(psnr, "mean"),
                    "-" if overlap is None else 100 * overlap,
                    leakage.count_cell(lpips or psnr),
                )
            )
    caption = (
        "Change: against the row of the same attack and network with the most help, the first of its kind; none where "
        "pictures failed, which an average leaves out. A positive one says that the help mattered. Statistics given to "
        "inverting_gradients are taken as the paper words it, as constants: the client's gradient also flows through "
        "its statistics, so that not even the true picture explains it fully, and this help is smaller than it could "
        "be."
    )
    blocks = (Text(_words(losses, failed)), *((Table(columns, tuple(rows), caption),) if rows else ()))
    return Section("Checked by running", blocks)


def _rank(one):
    where = one.where
    return (list(STATISTICS).index(where["statistics"]), list(LABELS).index(where["labels"]))


def _named(attack, statistics, labels):
    return f"{attack} with statistics {STATISTICS[statistics]} and labels {LABELS[labels]}"


def _words(losses, failed):
    end = leakage.left_out_words(failed)
    if not losses:
        have = "has an average of all pictures" if failed else "was run"
        return f"What came out: no attack {have} both with and without help yet.{end}"
    most = max(losses, key=losses.get)
    return (
        f"What came out: {len(losses)} attacks with less help were run. The largest change of average LPIPS is "
        f"{losses[most]:+.2f}, of {_named(*most)}; "
        f"{sum(loss <= 0.01 for loss in losses.values())} change it by no more than 0.01 to the worse.{end}"
    )
