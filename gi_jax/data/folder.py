"""Class folders of picture files, in a directory or a tar archive: one folder per class, or pictures without folders.

Scan order: round robin over the classes. Files of a class are sorted by name; the order of the whole is
(rank of the file within its class, class). So any prefix holds the classes in equal shares.
"""

from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

from gi_jax.checks import InputError
from gi_jax.data.dataset import Dataset
from gi_jax.data.files import read_files
from gi_jax.data.pictures import decode, is_picture
from gi_jax.words import counted

SPLITS = ("train", "test")

# The usual constants for natural pictures. They are public: nothing about the pictures in the folder,
# which may play the private ones, is used to normalize them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_folder(path: str | Path, split: str, image_size: int | None, per_class: int | None) -> Dataset:
    """Reads `path/<split>/<class>/*` or `path/<class>/*`, possibly below one more folder, or `path/*`.

    Class folders without a split folder above them are the train split, and so are pictures without class folders,
    each of which is a class of its own: two at least, as one class has no gradient. Files whose suffix is none of a
    picture format are skipped, and so are pictures that lie elsewhere, which the note counts. Class names are those of
    all splits, so that labels agree between splits.

    Args:
        path: directory or tar archive.
        split: `"train"` or `"test"`.
        image_size: height and width of the pictures in the data set; 32 if None.
        per_class: read no more than that many pictures of each class.

    Returns:
        The pictures in round robin order, normalized by the ImageNet constants.

    Raises:
        InputError: missing path, no class folders, no such split, or a damaged file.
    """
    path = Path(path).expanduser()
    names, files = read_files(path, folder_of_picture(split), per_class)
    folders = {_parents(name) for name in names if is_picture(name)}
    if folders == {()} and sum(map(is_picture, names)) > 1:
        if split != "train":
            raise InputError(
                f"split {split!r} is missing in {path}: pictures without class folders are all of split 'train'"
            )
        by_class, of_its_own, left_out = {name: [name] for name in sorted(files)}, ", each a class of its own", ""
    else:
        classes = _classes(folders, split, path)
        by_class, of_its_own, left_out = _by_class(files, classes, split), "", _left_out(names, classes)
    images, labels = decode_round_robin(by_class, files, path, image_size or 32)
    note = f"{len(images)} pictures of {path}{of_its_own}, center square; normalized by the ImageNet constants"
    note += f"; {left_out}" if left_out else ""
    return Dataset(f"folder:{path}", images, labels, tuple(by_class), IMAGENET_MEAN, IMAGENET_STD, note, left_out)


def _by_class(files, classes, split) -> dict[str, list[str]]:
    """Class name to the files of a split, for the classes of all splits."""
    by_class = {name: [] for name in sorted({name for _, name in classes.values()})}
    for name in files:
        folder_split, class_name = classes.get(_parents(name), (None, None))
        if folder_split == split:
            by_class[class_name].append(name)
    return by_class


def _left_out(names, classes) -> str:
    """Words on the pictures that lie in no class folder of any split; empty if there are none."""
    count = sum(is_picture(name) and _parents(name) not in classes for name in names)
    verb = "is" if count == 1 else "are"
    return f"{counted(count, 'picture')} beside or below the class folders {verb} left out" if count else ""


def folder_of_picture(split: str) -> Callable[[str], Hashable | None]:
    """The grouping for `read_files`: the folder a picture lies in, or itself; None below another split's folder."""

    def group(name: str) -> Hashable | None:
        parents = _parents(name)
        other_split = len(parents) > 1 and parents[-2] in SPLITS and parents[-2] != split
        return None if other_split or not is_picture(name) else parents or name

    return group


def decode_round_robin(
    by_class: dict[str, list[str]], files: dict[str, Callable[[], bytes]], path: Path, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the pictures of all classes in round robin order.

    Args:
        by_class: the file names of each class, the classes in label order.
        files: reads a file, by name.
        path: the directory or archive they lie in, for error messages.
        size: height and width of the pictures.

    Returns:
        Images, uint8 [n, size, size, 3], and labels, int32 [n].

    Raises:
        InputError: a damaged picture.
    """
    entries = sorted(
        (rank, label, name) for label, names in enumerate(by_class.values()) for rank, name in enumerate(sorted(names))
    )
    images = np.empty((len(entries), size, size, 3), np.uint8)
    for index, (_, _, name) in enumerate(entries):
        images[index] = decode(files[name](), f"{path}/{name}", size)
    return images, np.array([label for _, label, _ in entries], np.int32)


def _parents(name: str) -> tuple[str, ...]:
    return tuple(name.split("/")[:-1])


def _classes(folders, split, path) -> dict[tuple[str, ...], tuple[str, str]]:
    """Maps each class folder to its split and class name."""
    split_folders = {
        folder: (folder[-2], folder[-1]) for folder in folders if len(folder) in (2, 3) and folder[-2] in SPLITS
    }
    if not split_folders:
        nested = len({folder[:1] for folder in folders}) == 1 and all(len(folder) == 2 for folder in folders)
        depth = 2 if nested else 1
        split_folders = {folder: ("train", folder[-1]) for folder in folders if len(folder) == depth}
    found = {folder_split for folder_split, _ in split_folders.values()}
    if not found:
        raise InputError(
            f"{path} holds no class folders with pictures, nor two pictures; "
            f"expected {path}/<class>/*.png, {path}/{split}/<class>/*.png or {path}/*.png (any format Pillow reads)"
        )
    if split not in found:
        raise InputError(
            f"split {split!r} is missing in {path}: expected pictures in {path}/{split}/<class>/; "
            f"choose split {found.pop()!r} or add that folder"
        )
    return split_folders
