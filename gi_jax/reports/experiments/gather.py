"""The cells of an experiment with what a store has of each."""

from gi_jax.experiments.catalogue import placed
from gi_jax.experiments.store import Store
from gi_jax.reports.experiments.found import Found


def gather(name: str, scale: str, store: Store) -> list[Found]:
    """Every cell of an experiment at a scale, those that have not run without a row."""
    return [_found(one.where, store.get(one.cell.id), store) for one in placed(name, scale)]


def _found(where, row, store):
    if row is None:
        return Found(where, None)
    kept = row["pictures"]
    if not kept:
        return Found(where, row)
    decoded = store.pictures(kept.get("decoded"), kept.get("decoded_count", 1))
    originals = "originals" if decoded is None else "decoded_originals"
    count = kept["count"] if decoded is None else kept["decoded_count"]
    return Found(
        where=where,
        row=row,
        originals=store.pictures(kept[originals], count),
        reconstructions=store.pictures(kept["reconstructions"], kept["count"]),
        decoded=decoded,
    )
