"""The cells of an experiment with what a store has of each."""

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


def _found(where, row, store, pictures):
    if row is not None:
        missing = next((name for name in FIELDS if name not in row), None)
        if missing is not None:
            raise store.damaged(row["cell"], f"no {missing!r}")
        missing = next((name for name in NEEDED.get(row["kind"], ()) if name not in row["result"]), None)
        if missing is not None:
            raise store.damaged(row["cell"], f"no {missing!r} in its result")
    if row is None or not pictures or not row["pictures"]:
        return Found(where, row)
    kept = row["pictures"]
    decoded = store.pictures(kept.get("decoded"), kept.get("decoded_count", 1))
    if decoded is None and "decoded" in kept:  # its file is missing; encodings are not what its captions speak of
        return Found(where, row)
    originals = "originals" if decoded is None else "decoded_originals"
    count = kept["count"] if decoded is None else kept["decoded_count"]
    return Found(
        where=where,
        row=row,
        originals=store.pictures(kept[originals], count),
        reconstructions=store.pictures(kept["reconstructions"], kept["count"]),
        decoded=decoded,
    )
