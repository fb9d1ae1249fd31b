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
    sizes = values(found, "batch_size") or list(published.table2().batch_sizes)
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
    return (introduction, *(_section(found, batch_size) for batch_size in sizes))


def _section(found, batch_size):
    columns, outside = leakage.columns(found, what="attack", batch_size=batch_size)
    cells = {column: first(found, what="attack", column=column, batch_size=batch_size) for column in columns}
    words = Text(_words(cells) + leakage.outside_words(outside))
    grid = picture_grid([(defense_name(column), one) for column, one in cells.items()], f"Batch size {batch_size}")
    return Section(f"Batch size {batch_size}", (words,) if grid is None else (words, grid))


def _words(cells):
    ran = sum(one is not None for one in cells.values())
    if not ran:
        return "What came out: nothing was run yet."
    return f"What came out: {ran} of {len(cells)} columns were run. {leakage.least_words(cells)}"
