"""Files of PyTorch tensors: `.npz`, `.safetensors`, and what `torch.save` writes."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gi_jax.checks import InputError
from gi_jax.models.from_torch import natural

_INSIDE = ("state_dict", "model_state_dict", "model", "net")
"""Where the weights are in a checkpoint that holds more."""

_SAFE_TORCH = (2, 6)

_ADVICE = (
    "expected what torch.save(model.state_dict(), 'weights.pth') writes, or, to be read without PyTorch, numpy.savez("
    "'weights.npz', **{name: tensor.numpy() for name, tensor in model.state_dict().items()})"
)


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors by name, in the order of the network.

    A `.safetensors` file does not keep the order: its names are sorted, numbers in them as numbers, which is the order
    wherever layers of a kind are numbered or their block names them so (`conv1`, `layer1.0.conv1`, `layer1.0.conv2`).
    Files of `torch.save` are read by PyTorch, if it is installed, without running code of theirs.

    Raises:
      InputError: for a file that is missing, damaged or of another kind.
    """
    file = existing(path)
    read = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(file.suffix, _read_torch)
    try:
        tensors = read(file)
    except (InputError, OSError):
        raise
    except Exception as error:  # whatever the readers make of foreign bytes
        first = re.split(r"[.\n]", str(error))[0] or type(error).__name__
        raise InputError(f"{file} is damaged or no file of weights ({first}); {_ADVICE}") from error
    if not tensors:
        raise InputError(f"{file} holds no tensors; {_ADVICE}")
    return tensors


def existing(path: str | Path) -> Path:
    """The path of a file of weights that is there.

    Raises:
      InputError: if it is missing, or a folder.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise InputError(f"{file} is a folder: name a file in it; {_ADVICE}")
    if not file.is_file():
        raise InputError(f"{file} is missing: {_ADVICE}")
    return file


def _read_npz(file):
    with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def _read_safetensors(file):
    from safetensors.numpy import load_file

    tensors = load_file(file)
    return {name: tensors[name] for name in sorted(tensors, key=natural)}


def _read_torch(file):
    with file.open("rb") as stream:
        if not stream.read(2).startswith((b"PK", b"\x80")):  # a zip archive; a pickle, in old files
            raise InputError(f"{file} is no file of torch.save; {_ADVICE}")
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{file} is read by PyTorch, which is not installed: pip install torch; {_ADVICE}") from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE_TORCH:
        raise InputError(
            f"{file} with PyTorch {torch.__version__}, which may run code in such files (CVE-2025-32434): expected 2.6 "
            "or newer; pip install -U torch"
        )
    content = torch.load(file, map_location="cpu", weights_only=True)
    for name in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise InputError(f"{file} holds {type(content).__name__}; {_ADVICE}")
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}
    return {name: (value if value.is_complex() else value.float()).numpy() for name, value in tensors.items()}
