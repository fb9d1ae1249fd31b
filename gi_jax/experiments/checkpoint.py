"""The file that an unfinished attack is resumed from: one msgpack, written whole or not at all."""

import os
from pathlib import Path

from flax import serialization

from gi_jax import checks

NAME = "unfinished.msgpack"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes `path` so that a reader, or a kill at any moment, finds the old content or the new."""
    partial = path.with_name(path.name + ".partial")
    if isinstance(content, bytes):
        partial.write_bytes(content)
    else:
        partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)


def save(folder: Path, fingerprint: str, content: dict) -> None:
    """Saves nested dictionaries of arrays, numbers and strings for the attack called `fingerprint`."""
    write_atomically(folder / NAME, serialization.msgpack_serialize({"spec": fingerprint, **content}))


def load(folder: Path, fingerprint: str) -> dict | None:
    """What `save` wrote, or None if there is nothing.

    Raises:
      InputError: if the file is damaged, or belongs to another attack.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content = serialization.msgpack_restore(path.read_bytes())
        spec = content.pop("spec")
    except Exception as error:
        raise checks.InputError(f"{path} is damaged ({type(error).__name__}): delete it to start anew") from error
    if spec != fingerprint:
        raise checks.InputError(
            f"{path} belongs to an attack with other settings: repeat those, choose another folder with --out, or add "
            "--overwrite to start anew"
        )
    return content


def remove(folder: Path) -> None:
    """Removes the file, if there is one."""
    (folder / NAME).unlink(missing_ok=True)
