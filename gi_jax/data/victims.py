"""Which pictures are attacked: the first of each class, a seeded choice, and their batches."""

import numpy as np

from gi_jax.checks import InputError, counts, non_negative
from gi_jax.data.dataset import Dataset, rank_in_class
from gi_jax.words import counted


def first_per_class(dataset: Dataset, n: int) -> Dataset:
    """The first `n` pictures of each class, in scan order.

    Raises:
        InputError: some class has fewer than `n`, or none.
    """
    counts(first=n)
    there = np.bincount(dataset.labels, minlength=dataset.num_classes)
    if there.min() < n:
        short, fewest = dataset.class_names[int(there.argmin())], int(there.min())
        if not fewest:
            raise InputError(
                f"first={n}: {dataset.name} has no picture of class {short!r}; expected some of each class: add "
                "pictures or remove the class"
            )
        raise InputError(
            f"first={n}: {dataset.name} has {counted(fewest, 'picture')} of class {short!r}; "
            f"lower --first to {fewest} or fewer"
        )
    return dataset.take(np.flatnonzero(rank_in_class(dataset.labels) < n))


def choose(dataset: Dataset, count: int, seed: int) -> Dataset:
    """`count` pictures at random, none twice, in the order drawn; the same ones for the same seed.

    Raises:
        InputError: there are fewer than `count`, or the seed is negative.
    """
    counts(count=count)
    non_negative(seed=seed)
    if count > len(dataset):
        raise InputError(f"count={count}: {dataset.name} has {len(dataset)} pictures; choose fewer")
    return dataset.take(np.random.default_rng(seed).choice(len(dataset), count, replace=False))


def batches(dataset: Dataset, batch_size: int, num_batches: int) -> list[Dataset]:
    """`num_batches` consecutive batches of exactly `batch_size` pictures, from the first picture on.

    Raises:
        InputError: there are fewer than `batch_size * num_batches` pictures.
    """
    counts(batch_size=batch_size, num_batches=num_batches)
    needed = batch_size * num_batches
    if needed > len(dataset):
        raise InputError(
            f"batch_size={batch_size} times num_batches={num_batches} needs {needed} pictures, there are "
            f"{len(dataset)}: raise --first (pictures per class) or lower --batch-size or --num-batches"
        )
    return [dataset.take(np.arange(start, start + batch_size)) for start in range(0, needed, batch_size)]
