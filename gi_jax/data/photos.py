"""Ten photographs inside the package, as 32 x 32 thumbnails and large: something to attack without any download."""

import dataclasses
import importlib.resources
import io

import numpy as np
from PIL import Image

from gi_jax.checks import InputError
from gi_jax.data.dataset import Dataset


def load_photos(split: str) -> Dataset:
    """Loads the thumbnails, in round robin order; the first ten show each subject as a whole.

    A class is one photograph and its pictures are crops of it, so that pictures of a class are correlated,
    and so are the two splits. `PHOTOS.md` lists sources and licenses.

    Args:
        split: `"train"` or `"test"`.

    Returns:
        The thumbnails, normalized by the mean and standard deviation of the train split.
    """
    with importlib.resources.files("gi_jax.data").joinpath("photos.npz").open("rb") as file:
        arrays = np.load(file)
        return Dataset(
            name="photos",
            images=arrays[f"{split}_images"],
            labels=arrays[f"{split}_labels"],
            class_names=tuple(arrays["class_names"].tolist()),
            mean=tuple(arrays["mean"].tolist()),
            std=tuple(arrays["std"].tolist()),
            note="crops of ten photographs, one class each: pictures of a class are correlated",
        )


def load_photos_large(split: str) -> Dataset:
    """Loads the subjects of the ten photographs at 224 x 224 pixels, one a class, with the thumbnails' constants.

    Raises:
        InputError: for another split than `train`.
    """
    if split != "train":
        raise InputError(f"split {split!r} is missing in photos_large: expected train, its only one")
    thumbnails = load_photos("train")
    with importlib.resources.files("gi_jax.data").joinpath("photos_large.npz").open("rb") as file:
        files = np.load(file)
        images = [np.asarray(Image.open(io.BytesIO(files[name].tobytes()))) for name in thumbnails.class_names]
    return dataclasses.replace(
        thumbnails,
        name="photos_large",
        images=np.stack(images),
        labels=np.arange(len(images), dtype=np.int32),
        note="subjects of ten photographs, one class each",
    )
