"""CIFAR-10 through tensorflow-datasets, without tensorflow.

The stock builder needs tensorflow to unpack, read and encode. The builder here shares its name, version,
features, address and checksum, so that the prepared copy is the one `tfds` itself would find, but reads
the archive with `tarfile` and hands over PIL pictures.
"""

import os
import socket
import tarfile
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from gi_jax.checks import InputError
from gi_jax.data.cifar10_batches import BINARY_FILES, parse_batches

_TRY = (
    "try --data-dir with the original archive, its unpacked files, class folders or a prepared copy, or --data photos"
)


class Cifar10(cifar.Cifar10, skip_registration=True):
    """The stock `cifar10` builder, for `file_format="array_record"`, with pure python reading."""

    name = "cifar10"
    url_infos = cifar.Cifar10.url_infos

    def _split_generators(self, dl_manager):
        archive = dl_manager.download(self._cifar_info.url)
        with tarfile.open(archive) as tar:
            names = tar.extractfile(self._cifar_info.prefix + "batches.meta.txt").read().decode().split()
        self.info.features["label"].names = names
        return {split: self._generate_examples(split, archive) for split in BINARY_FILES}

    def _generate_examples(self, split, archive):
        with tarfile.open(archive) as tar:
            readers = [tar.extractfile(self._cifar_info.prefix + name).read for name in BINARY_FILES[split]]
            images, labels = parse_batches(readers, BINARY_FILES[split])
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": Image.fromarray(image),
                    "label": int(label),
                },
            )


def default_directory() -> Path:
    """Where tensorflow-datasets keeps what it prepared."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def prepare(directory: Path) -> Path:
    """Downloads CIFAR-10 (170 MB) and prepares it below `directory`.

    Returns:
        The directory of the prepared copy.

    Raises:
        InputError: the server cannot be reached (said within seconds), or the download failed.
    """
    builder = Cifar10(data_dir=directory, file_format="array_record")
    host = urllib.parse.urlsplit(builder._cifar_info.url).hostname
    if not _reachable(host):
        raise InputError(f"cifar10: {host} cannot be reached, and {directory} holds no prepared copy; {_TRY}")
    try:
        builder.download_and_prepare()
    except Exception as error:  # connection, checksum and disk errors, of many classes
        raise InputError(f"cifar10: download into {directory} failed ({type(error).__name__}); {_TRY}") from error
    return Path(builder.data_dir)


def read_prepared(directory: Path, split: str) -> tuple[list[bytes], np.ndarray, tuple[str, ...]]:
    """Reads a prepared copy in the order of the original files, which its ids keep.

    Args:
        directory: the version directory, with `dataset_info.json` in it.
        split: `"train"` or `"test"`.

    Returns:
        The still encoded pictures, their labels, int32 [n], and the class names.

    Raises:
        InputError: no CIFAR-10, no such split, or a file format that only tensorflow can read.
    """
    try:
        builder = tfds.builder_from_directory(directory)
        if split not in builder.info.splits:
            have = ", ".join(builder.info.splits)
            raise InputError(f"split {split!r} is missing in {directory}: choose from {have}")
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        rows = sorted(source.__getitems__(range(len(source))), key=lambda row: row["id"])
        pictures = [row["image"] for row in rows]
        labels = np.array([row["label"] for row in rows], np.int32)
        return pictures, labels, tuple(builder.info.features["label"].names)
    except InputError:
        raise
    except Exception as error:  # what a foreign or damaged directory raises depends on its content
        raise InputError(
            f"{directory} cannot be read as a prepared CIFAR-10 ({type(error).__name__}); "
            f'expected file_format="array_record" with id, image and label; {_TRY}'
        ) from error


def _reachable(host: str, seconds: float = 5.0) -> bool:
    """Whether a connection to `host`, or to the proxy in between, opens in time. Name lookup counts."""
    proxy = urllib.parse.urlsplit(urllib.request.getproxies().get("https", ""))
    address = (proxy.hostname or host, proxy.port or 443)
    opened = threading.Event()

    def connect():
        try:
            socket.create_connection(address, timeout=seconds).close()
            opened.set()
        except OSError:
            pass

    attempt = threading.Thread(target=connect, daemon=True)  # a lookup has no timeout of its own
    attempt.start()
    attempt.join(seconds)
    return opened.is_set()
