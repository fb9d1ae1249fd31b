"""CIFAR-10 from whatever copy there is: prepared, original batches, class folders, or the network."""

import dataclasses
from pathlib import Path

import numpy as np

from gi_jax.checks import InputError
from gi_jax.data.cifar10_batches import BINARY_FILES, PYTHON_FILES, parse_batches
from gi_jax.data.dataset import Dataset, rank_in_class
from gi_jax.data.files import archives_in, read_files
from gi_jax.data.folder import decode_round_robin, folder_of_picture
from gi_jax.data.pictures import decode

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

# The constants of the reference experiments.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


def load_cifar10(split: str, data_dir: str | Path | None, per_class: int | None) -> Dataset:
    """Loads CIFAR-10 in its original order, or class folders of it in round robin order.

    A `data_dir` may be, or hold: a copy prepared by tensorflow-datasets (array_record), the original python
    batches, the original binary batches, or class folders `<split>/<class>/*`; all but the first also in a
    tar archive. Without one, tensorflow-datasets finds its prepared copy or downloads and prepares it.

    Args:
        split: `"train"` or `"test"`.
        data_dir: directory or tar archive; None for tensorflow-datasets.
        per_class: decode no more than that many pictures of each class.

    Returns:
        The pictures, 32 x 32.

    Raises:
        InputError: nothing usable in `data_dir`, a damaged file, no network, or no tensorflow-datasets.
    """
    if data_dir is None:
        tfds = _tfds()
        directory = tfds.default_directory()
        return _from_prepared(_find_prepared(directory) or tfds.prepare(directory), split, per_class)
    path = Path(data_dir).expanduser()
    prepared = _find_prepared(path)
    if prepared:
        return _from_prepared(prepared, split, per_class)
    for source in [path, *archives_in(path)]:
        dataset = _from_files(source, split, per_class)
        if dataset:
            return dataset
    raise InputError(
        f"{path} holds no {split} pictures of CIFAR-10; expected a copy prepared by tensorflow-datasets, "
        f"{PYTHON_FILES[split][0]}, {BINARY_FILES[split][0]}, or {split}/<class>/ folders for all of "
        f"{', '.join(CLASS_NAMES)}, as files or in a tar archive: see what --data-dir points to"
    )


def _tfds():
    try:
        from gi_jax.data import cifar10_tfds  # takes half a second to import
    except ImportError as error:
        raise InputError(
            f"cifar10 without --data-dir, or from a prepared copy, needs tensorflow-datasets ({error}): pip install "
            "tensorflow-datasets, or give --data-dir with cifar-10-batches-py"
        ) from error
    return cifar10_tfds


def _find_prepared(directory: Path) -> Path | None:
    for pattern in ("dataset_info.json", "*/dataset_info.json", "cifar10/*/dataset_info.json"):
        found = sorted(directory.glob(pattern))
        if found:
            return found[-1].parent
    return None


def _from_prepared(directory: Path, split: str, per_class: int | None) -> Dataset:
    pictures, labels, class_names = _tfds().read_prepared(directory, split)
    if class_names != CLASS_NAMES:
        raise InputError(f"{directory} holds classes {', '.join(class_names)}; expected those of CIFAR-10")
    kept = np.arange(len(labels)) if per_class is None else np.flatnonzero(rank_in_class(labels) < per_class)
    images = [decode(pictures[i], f"{directory}: {split} picture {i}", 32) for i in kept]
    return _dataset(np.stack(images), labels[kept])


def _from_files(path: Path, split: str, per_class: int | None) -> Dataset | None:
    """Reads batches or class folders; None if `path` holds neither."""
    folder = folder_of_picture(split)
    batch_files = (*PYTHON_FILES[split], *BINARY_FILES[split])

    def group(name: str):
        base = name.rsplit("/", 1)[-1]
        return base if base in batch_files else folder(name)

    _, files = read_files(path, group, per_class)
    for names in (PYTHON_FILES[split], BINARY_FILES[split]):
        found = {name.rsplit("/", 1)[-1]: name for name in files}
        missing = [name for name in names if name not in found]
        if not missing:
            return _dataset(*parse_batches([files[found[name]] for name in names], names))
        if len(missing) < len(names):
            raise InputError(
                f"{path}: {', '.join(missing)} missing beside the other batches; "
                f"expected {', '.join(names)}: copy or download them again"
            )
    by_class = {label: [name for name in files if name.split("/")[-3:-1] == [split, label]] for label in CLASS_NAMES}
    if not all(by_class.values()):
        return None
    dataset = _dataset(*decode_round_robin(by_class, files, path, 32))
    if any(name.lower().endswith((".jpg", ".jpeg")) for name in files):
        return dataclasses.replace(dataset, note="class folders of JPEG pictures: a lossy copy of CIFAR-10")
    return dataset


def _dataset(images: np.ndarray, labels: np.ndarray) -> Dataset:
    return Dataset("cifar10", images, labels, CLASS_NAMES, MEAN, STD)
