"""The two original file formats of CIFAR-10: pickled python batches and plain binary batches."""

import codecs
import io
import pickle
from collections.abc import Callable, Sequence

import numpy as np

from gi_jax.checks import InputError

PYTHON_FILES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
BINARY_FILES = {split: tuple(f"{name}.bin" for name in names) for split, names in PYTHON_FILES.items()}

_PIXELS = 3 * 32 * 32


def parse_batches(readers: Sequence[Callable[[], bytes]], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads batch files of one format, in the order given.

    Args:
        readers: a function per file that returns its bytes.
        names: the file names; those that end in `.bin` are binary batches, others python batches.

    Returns:
        Images, uint8 [n, 32, 32, 3], and labels, int32 [n] in 0 to 9.

    Raises:
        InputError: a file does not have the format that its name promises.
    """
    parts = [
        (_parse_binary if name.endswith(".bin") else _parse_python)(read(), name)
        for read, name in zip(readers, names, strict=True)
    ]
    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _parse_binary(data, name):
    if not data or len(data) % (1 + _PIXELS):
        raise InputError(
            f"{name} has {len(data)} bytes; expected a multiple of {1 + _PIXELS}: download the archive again"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return rows[:, 1:], _check_labels(rows[:, 0], len(rows), name)


def _parse_python(data, name):
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        pixels, labels = batch[b"data"], np.asarray(batch[b"labels"])
    except Exception as error:  # a damaged pickle raises errors of many kinds
        raise InputError(
            f"{name} cannot be read as a python batch of CIFAR-10 ({type(error).__name__}); "
            "expected a pickled dictionary with data and labels: download the archive again"
        ) from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise InputError(f"{name}: expected data to be uint8 [n, {_PIXELS}]: download the archive again")
    return pixels, _check_labels(labels, len(pixels), name)


def _check_labels(labels, count, name):
    if labels.shape != (count,) or labels.min(initial=0) < 0 or labels.max(initial=0) > 9:
        raise InputError(f"{name}: expected {count} labels in 0 to 9, one per picture: download the archive again")
    return labels


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain values, and calls nothing else that a file may name."""

    _ALLOWED = {
        ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): lambda code, *flags: np.dtype(code),  # numpy warns about the flags of old files
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module, name):
        try:
            return self._ALLOWED[(module.rsplit(".", 1)[-1], name)]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a batch file") from None
