"""The cells of an experiment with what a store has of each."""

from itertools import product
from typing import NamedTuple

from gi_jax.experiments.catalogue import placed
from gi_jax.experiments.store import Store
from gi_jax.reports.experiments.found import Found


class Count(NamedTuple):
    """How much of an experiment a store has at a scale."""

    scale: str
    ran: int
    total: int

    @property
    def share(self) -> float:
        """Of its cells, 0 to 1."""
        return self.ran / self.total


def count(name: str, scale: str, store: Store) -> Count:
    """How many cells of an experiment a store has at a scale."""
    cells = [one.cell.id for one in placed(name, scale)]
    return Count(scale, sum(cell in store for cell in cells), len(cells))


def gather(name: str, scale: str, store: Store, *, pictures: bool = True) -> list[Found]:
    """Every cell of an experiment at a scale, those that have not run without a row; with or without pictures."""
    return [_found(one.where, store.get(one.cell.id), store, pictures) for one in placed(name, scale)]


FIELDS = ("kind", "spec", "network", "result", "timing", "environment", "pictures")
"""What reports read of a row."""

NEEDED = {"attack": ("attack", "defense", "summary"), "training": ("test_accuracy",)}
"""What reports read of the result of a row of a kind, whatever else they find there."""


SUMMARY = ("mean", "best", "std", "count")
"""What reports read of the summary of a metric."""


def _found(where, row, store, pictures):
    if row is None:
        return Found(where, None)
    try:
        _check(row)
        return Found(where, row, *(_pictures(row["pictures"], store) if pictures and row["pictures"] else ()))
    except KeyError as error:
        raise store.damaged(row["cell"], f"no {error}") from error
    except (TypeError, AttributeError) as error:
        raise store.damaged(row["cell"], error) from error


def _check(row):
    """KeyError for what reports read and a row lacks."""
    for name in FIELDS:
        row[name]
    for name in NEEDED.get(row["kind"], ()):
        row["result"][name]
    for block in (row["result"], *row["result"].get("decoded", ()), *row["result"].get("runs", ())):
        summaries = (block.get("summary", {}), block.get("reference_summary", {}))
        for summary in (*summaries, *block.get("mended_summaries", {}).values()):
            for metric, field in product(summary.values(), SUMMARY):
                metric[field]


def _pictures(kept, store):
    """Originals, reconstructions and what was decoded, as `Found` holds them; none where decoded ones are missing."""
    if "decoded" not in kept:
        return tuple(store.pictures(kept[name], kept["count"]) for name in ("originals", "reconstructions"))
    decoded = store.pictures(kept["decoded"], kept["decoded_count"])
    if decoded is None:  # encodings are not what its captions speak of
        return ()
    originals = store.pictures(kept["decoded_originals"], kept["decoded_count"])
    return originals, store.pictures(kept["reconstructions"], kept["count"]), decoded
