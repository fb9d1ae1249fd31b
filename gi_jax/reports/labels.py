"""Label recovery on a terminal, and the distribution of labels in a batch as a picture."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from gi_jax.words import counted

SMALLEST_WRITTEN = 5
"""Per cent of a bar: a smaller part has no room for its number."""


def print_methods(console: Console, result: dict) -> None:
    """A row a method of `gi_jax.experiments.labels.run_labels`, means over the batches."""
    console.print(f"- {result['network']}", highlight=False)
    batches = len(result["true_counts"])
    table = Table(title=f"{counted(batches, 'batch')} of {result['batch_size']}, mean overlap with the truth")
    table.title_justify = "left"
    for heading in ("method", "classes", "counts", "all right"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    table.add_column("why, or what is missing", overflow="fold")
    for row in result["methods"]:
        if "missing" in row:
            table.add_row(row["method"], "-", "-", "-", f"needs {' and '.join(row['missing'])}")
        else:
            shares = (row["set_overlap"], row["count_overlap"], row["all_counts_right"])
            table.add_row(row["method"], *(f"{100 * share:.0f} %" for share in shares), row["why"])
    console.print(table)
    sizes = sorted({(one["at_least"], one["limited"]) for one in result["num_images"] if one["at_least"]})
    words = ", ".join(f"{size} or more" if limited else str(size) for size, limited in sizes) or "nothing to tell from"
    console.print(f"batch size by the rank of the gradient: {words}", highlight=False)


def _groups(found):
    lows = list(found["rows"][0]["shared_by"])
    ends = [str(int(high) - 1) for high in lows[1:]] + [None]
    names = [
        low if low == end else f"{low} or more" if end is None else f"{low} to {end}"
        for low, end in zip(lows, ends, strict=True)
    ]
    return dict(zip(lows, names, strict=True))


def print_distribution(console: Console, found: dict) -> None:
    """A row a batch size."""
    table = Table(title="share of pictures whose label is carried by so many pictures of the batch")
    table.title_justify = "left"
    groups = _groups(found)
    for heading in ("batch size", "different labels", *groups.values()):
        table.add_column(heading, justify="right")
    for row in found["rows"]:
        shares = (f"{100 * row['shared_by'][low]:.0f} %" for low in groups)
        table.add_row(str(row["batch_size"]), f"{row['classes']:.1f}", *shares)
    console.print(table)


def draw_distribution(path: Path, found: dict) -> None:
    """Writes `distribution_figure` as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = distribution_figure(found)
    FigureCanvasAgg(figure)
    figure.savefig(path)


def distribution_figure(found: dict):
    """A matplotlib figure: a stacked bar a batch size, pictures that are alone with their label at the bottom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), dpi=110, layout="constrained")
    axis = figure.subplots()
    rows = found["rows"]
    below = [0.0] * len(rows)
    groups = _groups(found)
    for number, (low, name) in enumerate(groups.items()):
        shares = [100 * row["shared_by"][low] for row in rows]
        shade = 0.85 - 0.8 * number / max(1, len(groups) - 1)
        color = (shade, shade, 1 - 0.4 * (1 - shade))
        bars = axis.bar(
            range(len(rows)), shares, 0.86, below, label=name, color=color, edgecolor="white", linewidth=0.6
        )
        written = [f"{share:.0f}" if share >= SMALLEST_WRITTEN else "" for share in shares]
        axis.bar_label(bars, written, label_type="center", fontsize=8, color="black" if shade > 0.6 else "white")
        below = [a + b for a, b in zip(below, shares, strict=True)]
    ticks = [f"{row['batch_size']}\n({row['classes']:.1f})" for row in rows]
    axis.set_xticks(range(len(rows)), ticks, fontsize=9)
    axis.set_xlabel("batch size (different labels in a batch, on average)", fontsize=9)
    axis.set_ylabel("pictures of a batch, %", fontsize=9)
    axis.set_ylim(0, 100)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"How labels repeat in random batches of {found['data']} ({found['split']})", fontsize=10)
    # In the order of the bars, from the top.
    handles, names = (reversed(part) for part in axis.get_legend_handles_labels())
    title = "pictures of the batch\nwith the same label,\nitself included"
    figure.legend(list(handles), list(names), title=title, loc="outside right center", fontsize=8, title_fontsize=8)
    return figure
