"""Figure 3 of Huang et al. (2021): what is rebuilt under each defense, in pictures."""

from collections.abc import Sequence

from gi_jax.experiments import published
from gi_jax.reports.experiments import leakage
from gi_jax.reports.experiments.found import Found, first, values
from gi_jax.reports.experiments.grids import picture_grid
from gi_jax.reports.experiments.names import defense_name
from gi_jax.reports.page import Section, Text


def build(found: Sequence[Found], scale: str) -> tuple[Section, ...]:
    """What is asked, and a grid a batch size."""
    paper = published.table2()
    columns = list(dict.fromkeys([*paper.columns, *values(found, "column")]))
    sizes = values(found, "batch_size") or list(paper.batch_sizes)
    introduction = Section(
        "What is asked",
        (
            Text(
                "Numbers say little about whether a person would recognize a picture. Here are the pictures "
                "themselves: the first row are the private originals, each further row what the attacker has in the "
                "end under a defense. Under MixUp and InstaHide that is what the paper's decoder makes of the "
                "recovered encodings."
            ),
            Text(f"{leakage.SCALE} The larger the batch, the more pictures share one gradient."),
        ),
    )
    return (introduction, *(_section(found, columns, batch_size) for batch_size in sizes))


def _section(found, columns, batch_size):
    cells = {column: first(found, what="attack", column=column, batch_size=batch_size) for column in columns}
    grid = picture_grid([(defense_name(column), one) for column, one in cells.items()], f"Batch size {batch_size}")
    return Section(f"Batch size {batch_size}", (Text(_words(cells)),) if grid is None else (Text(_words(cells)), grid))


def _words(cells):
    values = {column: leakage.per_picture(leakage.protocol_block(one)) for column, one in cells.items()}
    means = {column: sum(lpips) / len(lpips) for column, lpips in values.items() if lpips}
    if not means:
        return "What came out: nothing was run yet."
    most, least = min(means, key=means.get), max(means, key=means.get)
    if most == least:
        return f"What came out: only {defense_name(most)} was run, average LPIPS {means[most]:.2f}."
    return (
        f"What came out: of {len(means)} defenses, most leaks under {defense_name(most)} (average LPIPS "
        f"{means[most]:.2f}), least under {defense_name(least)} ({means[least]:.2f})."
    )
