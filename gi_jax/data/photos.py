"""Ten photographs inside the package, as 32 x 32 thumbnails: something to attack without any download."""

import importlib.resources

import numpy as np

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
