"""What a run looks like on a terminal: a table, and lists of what there is."""

from rich.console import Console
from rich.table import Table

COLUMNS = (
    ("psnr", "PSNR, dB", "{:.1f}"),
    ("ssim", "SSIM", "{:.2f}"),
    ("lpips_vgg", "LPIPS VGG", "{:.2f}"),
    ("lpips_alex", "LPIPS Alex", "{:.2f}"),
)


def print_runs(console: Console, runs: list[dict]) -> None:
    """A row a defense: mean over pictures, and in parentheses the picture that leaked most."""
    metrics = [column for column in COLUMNS if column[0] in runs[0]["summary"]]
    table = Table(title="mean (most leaked picture)", title_justify="left")
    table.add_column("defense")
    for _, heading, _ in metrics:
        table.add_column(heading, justify="right")
    table.add_column("pictures", justify="right")
    table.add_column("image-it/s", justify="right")
    for run in runs:
        cells = [_cell(run["summary"][name], form) for name, _, form in metrics]
        rate = run["timing"]["image_iterations_per_second"]
        table.add_row(run["defense"], *cells, str(len(run["images"])), f"{rate:.0f}")
    console.print(table)


DECODED = (
    ("correlation", "correlation", "{:.3f}"),
    ("correlation_any_sign", "up to sign", "{:.3f}"),
    *COLUMNS[:3],
)


def print_decoded(console: Console, runs: list[dict]) -> None:
    """A row a defense, source and decoder: mean over pictures. True encodings give the decoder's floor."""
    metrics = [column for column in DECODED if column[0] in runs[0]["summary"]]
    table = Table(title="decoded pictures: mean (most leaked picture)", title_justify="left")
    for heading in ("defense", "encodings", "decoder"):
        table.add_column(heading)
    for _, heading, _ in metrics:
        table.add_column(heading, justify="right")
    table.add_column("pictures", justify="right")
    for run in runs:
        source = f"{run['count']} {run['encodings']}" + (" (floor)" if run["encodings"] == "true" else "")
        cells = [_cell(run["summary"][name], form) for name, _, form in metrics]
        table.add_row(run["defense"], source, run["decoder"], *cells, str(len(run["images"])))
    console.print(table)


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
