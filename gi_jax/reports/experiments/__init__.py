"""Reports of experiments: what is asked, what came out, beside what was published. A file an experiment."""

from collections.abc import Callable, Sequence

from gi_jax import checks
from gi_jax.experiments import published
from gi_jax.reports.experiments import (
    alpha_bn,
    deviations,
    figure1,
    figure2,
    figure3,
    protocol,
    provenance,
    table1,
    table2,
    table3,
    tradeoff,
)
from gi_jax.reports.experiments.found import Found
from gi_jax.reports.page import Notes, Page, Section
from gi_jax.words import counted

BUILDERS: dict[str, Callable[[Sequence[Found], str], tuple[Section, ...]]] = {
    "table1": table1.build,
    "figure1": figure1.build,
    "figure2": figure2.build,
    "table2": table2.build,
    "tradeoff": tradeoff.build,
    "figure3": figure3.build,
    "table3": table3.build,
    "alpha_bn": alpha_bn.build,
    "protocol": protocol.build,
}

WITH_PUBLISHED_ATTACKS = ("figure1", "figure2", "table2", "tradeoff", "figure3", "table3", "alpha_bn", "protocol")
"""Experiments whose attacks are the paper's: what differs is said first."""


def report(name: str, title: str, about: str, found: Sequence[Found], scale: str) -> Page:
    """The report of an experiment, from whatever was run so far; missing cells are shown as missing.

    Args:
      name: a key of `BUILDERS`.
      title: of the page.
      about: a sentence or two on the experiment, which lead in.
      found: all cells of the experiment, those that have not run without a row.
      scale: at which it was run.

    Raises:
      InputError: for an unknown experiment.
    """
    build = BUILDERS[checks.one_of("experiment", name, BUILDERS)]
    ran = sum(one.row is not None for one in found)
    state = f"Scale {scale}: {ran} of {counted(len(found), 'cell')} run."
    differs = deviations.sentences(name, found) if name in WITH_PUBLISHED_ATTACKS else []
    first = (Section("Not as in the paper", (Notes(tuple(differs)),)),) if differs else ()
    notes = [note for table in (published.table2(), published.table3()) for note in (table.source, *table.notes)]
    notes += published.settings()["notes"]
    return Page(title, (about, state), (*first, *build(found, scale), provenance.section(found, notes)))
