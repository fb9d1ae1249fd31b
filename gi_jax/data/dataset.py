"""A labeled set of pictures in memory, the form in which every loader hands over what it read."""

import dataclasses

import numpy as np

from gi_jax.checks import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures with their labels, in scan order.

    Attributes:
        name: what the user asked for, e.g. `"cifar10"`.
        images: uint8 [n, h, w, c], 0 to 255.
        labels: int32 [n], indices into `class_names`.
        class_names: one name per class.
        mean: per-channel normalization mean, in units of [0, 1] pictures.
        std: per-channel normalization standard deviation, in the same units.
        note: a sentence for reports about where the pixels come from; may be empty.
        left_out: words on pictures that lie there and are not in it; may be empty. The note has them too.

    Raises:
        InputError: pictures, labels or constants that do not fit these words or each other.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""
    left_out: str = ""

    def __post_init__(self):
        for name in ("images", "labels"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        images, labels, channels = self.images, self.labels, len(self.mean)
        if images.dtype != np.uint8:
            raise InputError(f"{self.name}: images of type {images.dtype}; expected uint8, 0 to 255")
        if images.ndim != 4 or images.shape[-1] != channels or len(self.std) != channels:
            raise InputError(
                f"{self.name}: images of shape {images.shape} with {channels} means and {len(self.std)} deviations; "
                "expected [n, h, w, c] and one of each a channel; try images.transpose(0, 2, 3, 1)"
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(
                f"{self.name}: labels of type {labels.dtype} and shape {labels.shape} for {len(images)} pictures; "
                "expected one whole number each"
            )
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if outside.size:
            raise InputError(f"{self.name}: label {outside[0]}; expected 0 to {self.num_classes - 1}, as class_names")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes, of which a selection of pictures may show only some."""
        return len(self.class_names)

    def as_float(self) -> np.ndarray:
        """The pictures as float32 [n, h, w, c] in [0, 1]."""
        return self.images.astype(np.float32) / np.float32(255)

    def take(self, indices: np.ndarray) -> "Dataset":
        """The pictures at `indices`, int [m], in that order."""
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices])


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many earlier items carry the same label, int [n]: the first of each class has rank 0.

    Args:
        labels: int [n].
    """
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return ranks
