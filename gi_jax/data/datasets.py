"""The data sets by name: `load("photos")`, `load("cifar10")`, `load("folder:PATH")`."""

import dataclasses
from pathlib import Path

import numpy as np

from gi_jax.checks import InputError, counts, one_of
from gi_jax.data.cifar10 import load_cifar10
from gi_jax.data.dataset import Dataset, rank_in_class
from gi_jax.data.folder import SPLITS, load_folder
from gi_jax.data.photos import load_photos, load_photos_large
from gi_jax.data.pictures import resize

__all__ = ["DATASETS", "Dataset", "load"]

DATASETS: dict[str, tuple[str, str]] = {
    "photos": (
        "thumbnails of ten photographs, one class each, inside the package: no download",
        "public domain and CC0 photographs, listed in gi_jax/data/PHOTOS.md",
    ),
    "photos_large": (
        "the same ten photographs at 224 x 224 pixels, one picture each",
        "as photos",
    ),
    "cifar10": (
        "50,000 + 10,000 pictures of 32 x 32 pixels in ten classes",
        "Krizhevsky 2009, Learning multiple layers of features from tiny images",
    ),
    "folder:PATH": (
        "your own pictures, in PATH/<class>/ or PATH/<split>/<class>/, or in PATH, each a class of its own; or a tar "
        "archive of these",
        "any format that Pillow reads; what is transparent shows white",
    ),
}
"""Name to what it is and where it comes from."""


def load(
    name: str,
    split: str = "train",
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    per_class: int | None = None,
) -> Dataset:
    """Loads a data set into memory.

    Args:
        name: a key of `DATASETS`, with a path for `PATH`.
        split: `"train"` or `"test"`.
        data_dir: where a copy of CIFAR-10 lies, see `load_cifar10`; None lets tensorflow-datasets find or
            download one.
        image_size: height and width to resize to; None keeps the data set's own; a folder is resized to
            32 without it.
        per_class: keep no more than that many pictures of each class, the first ones in scan order.

    Returns:
        The pictures in scan order: the original one, or round robin over the classes for class folders.

    Raises:
        InputError: unknown name or split, or data that is missing, damaged or unreachable.
    """
    kind, _, path = name.partition(":")
    one_of("data set", "folder:PATH" if kind == "folder" else name, DATASETS)
    one_of("split", split, SPLITS)
    counts(**{key: n for key, n in (("image_size", image_size), ("per_class", per_class)) if n is not None})
    if data_dir is not None and kind != "cifar10":
        raise InputError(f"data_dir={data_dir}: {name} takes none; leave it away or choose cifar10")
    if kind == "folder" and not path:
        raise InputError(f"data set {name!r} names no folder; expected folder:PATH, for example folder:pictures")

    if kind == "folder":
        dataset = load_folder(path, split, image_size, per_class)
    elif kind == "cifar10":
        dataset = load_cifar10(split, data_dir, per_class)
    else:
        dataset = (load_photos if name == "photos" else load_photos_large)(split)
    if per_class is not None:
        dataset = dataset.take(np.flatnonzero(rank_in_class(dataset.labels) < per_class))
    if image_size is not None and dataset.images.shape[1] != image_size:
        dataset = dataclasses.replace(dataset, images=resize(dataset.images, image_size))
    return dataset
