"""What a run looks like on a terminal: a table, and lists of what there is."""

from rich.console import Console
from rich.table import Table

from gi_jax.experiments.spec import Run
from gi_jax.reports.short import MEANING, fell_short

COLUMNS = (
    ("psnr", "PSNR, dB", "{:.1f}"),
    ("ssim", "SSIM", "{:.2f}"),
    ("lpips_vgg", "LPIPS VGG", "{:.2f}"),
    ("lpips_alex", "LPIPS Alex", "{:.2f}"),
)


def print_runs(console: Console, runs: list[dict]) -> None:
    """A row a run: mean over pictures, and in parentheses the picture that leaked most.

    Columns that would say nothing are left out: what the labels are from where all runs have the same, how well they
    were recovered where all were known, and how well restarts agree where there is one.
    """
    metrics = [column for column in COLUMNS if column[0] in runs[0]["summary"]]
    labels = [run["labels"] for run in runs]
    compared, recovered = len({one["from"] for one in labels}) > 1, any("set_overlap" in one for one in labels)
    restarted = any("confidence" in run for run in runs)
    heading = "mean (most leaked picture)"
    heading += "; overlap of recovered labels with the truth: classes, counts" if recovered else ""
    table = Table(title=heading, title_justify="left")
    table.add_column("defense", overflow="fold")
    if compared:
        table.add_column("labels", overflow="fold")
    for _, heading, _ in metrics:
        table.add_column(heading, justify="right")
    for heading in (*restarted * ["agreement, dB"], *recovered * ["overlap"], "pictures", "image-it/s"):
        table.add_column(heading, justify="right")
    for run in runs:
        cells = [run["defense"], *([run["labels"]["from"]] if compared else [])]
        cells += [_cell(run["summary"][name], form) for name, _, form in metrics]
        cells += [_agreement(run)] if restarted else []
        cells += [_overlap(run["labels"])] if recovered else []
        rate = run["timing"]["image_iterations_per_second"]
        table.add_row(*cells, str(len(run["images"])), f"{rate:.0f}")
    console.print(table)
    short = {Run(run["defense"], run["labels"]["from"]).title: fell_short(run["images"]) for run in runs}
    short = {title: found for title, found in short.items() if found is not None and found.count}
    if short:
        words = "; ".join(f"{title} {found}" for title, found in short.items())
        console.print(f"attacks that fell short ({MEANING}): {words}", highlight=False)
    if restarted:
        words = "; ".join(f"{Run(run['defense'], run['labels']['from']).title} {_confidence(run)}" for run in runs)
        console.print(
            f"rank correlation of agreement with PSNR over pictures, of spread with error over pixels: {words}",
            highlight=False,
        )


def _agreement(run):
    values = [row["agreement"] for row in run["images"] if row.get("agreement") is not None]
    return f"{sum(values) / len(values):.1f}" if values else "-"


def _overlap(labels):
    if "set_overlap" not in labels:
        return "-"
    return f"{100 * labels['set_overlap']:.0f}, {100 * labels['count_overlap']:.0f} %"


def _confidence(run):
    """How well restarts that agree predicted a small error: 1 is perfect, 0 is chance."""
    found = (run.get("confidence", {}).get(of) for of in ("pictures", "pixels"))
    return " and ".join("-" if value is None else f"{value:.2f}" for value in found)


DECODED = (
    ("correlation", "correlation", "{:.3f}"),
    ("correlation_any_sign", "up to sign", "{:.3f}"),
    *COLUMNS[:3],
)


def print_decoded(console: Console, runs: list[dict]) -> None:
    """A row a defense, source and decoder: mean over pictures. True encodings give the decoder's floor."""
    metrics = [column for column in DECODED if column[0] in runs[0]["summary"]]
    same = len({run["defense"] for run in runs}) == 1
    under = f" under {runs[0]['defense']}" if same else ""
    title = f"decoded pictures{under}: mean (most leaked picture)"
    inferred = any("mapping_right" in run for run in runs)
    table = Table(title=title, title_justify="left")
    for heading in (*["defense"] * (not same), "encodings", *["mapping"] * inferred, "decoder"):
        table.add_column(heading, overflow="fold")
    for _, heading, _ in metrics:
        table.add_column(heading, justify="right", min_width=len(heading))
    table.add_column("pictures", justify="right")
    for run in runs:
        source = f"{run['count']} {source_of(run)}"
        cells = [_cell(run["summary"][name], form) for name, _, form in metrics]
        names = (*[run["defense"]] * (not same), source, *[mapping_of(run)] * inferred, run["decoder"])
        table.add_row(*names, *cells, str(len(run["images"])))
    console.print(table)


def source_of(run: dict) -> str:
    """Where the encodings of a block of decoding are from."""
    if run["encodings"] == "true":
        return "true" if "mapping_right" in run else "true (floor)"
    how = run["labels"]["from"]
    return "recovered" if how == "known" else f"recovered, labels {how}"


def mapping_of(run: dict) -> str:
    """Where the mapping of a block of decoding is from."""
    return f"inferred, {run['mapping_right']:.0%} right" if "mapping_right" in run else "granted"


def _cell(summary: dict, form: str) -> str:
    if summary["mean"] is None:
        return "diverged"
    failed = f", {summary['failed']} failed" if summary["failed"] else ""
    return f"{form.format(summary['mean'])} ({form.format(summary['best'])}{failed})"


def print_table(console: Console, title: str, rows: list[dict[str, str]]) -> None:
    """A list of things with the same fields, such as all attacks."""
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
