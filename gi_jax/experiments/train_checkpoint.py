"""What an unfinished training is resumed from: the latest state, by orbax, which replaces it whole or not at all."""

import shutil
from pathlib import Path
from typing import Any

from gi_jax import checks

NAME, REMOVED = "unfinished", "unfinished.removed"


def save(folder: Path, step: int, state: Any, records: dict) -> None:
    """Saves a tree of arrays and a JSON value in place of those of an earlier step."""
    with _manager(folder) as (manager, args):
        parts = args.Composite(state=args.StandardSave(state), records=args.JsonSave(records))
        manager.save(step, args=parts, force=True)


def load(folder: Path, fingerprint: str, like: Any) -> tuple[Any, dict] | None:
    """What `save` wrote for the training called `fingerprint`, or None if there is nothing.

    Args:
      folder: of the training.
      fingerprint: that of the records.
      like: a state of the same structure.

    Raises:
      InputError: if it is damaged, or belongs to another training.
    """
    if not (folder / NAME).exists():
        return None
    advice = "repeat its settings, choose another --out, or add --overwrite to start anew"
    with _manager(folder) as (manager, args):
        step = manager.latest_step()
        if step is None:
            return None
        try:
            records = manager.restore(step, args=args.Composite(records=args.JsonRestore())).records
            if records["fingerprint"] == fingerprint:
                parts = args.Composite(state=args.StandardRestore(like))
                return manager.restore(step, args=parts).state, records
        except Exception as error:  # whatever orbax makes of a damaged folder
            raise checks.InputError(
                f"{folder / NAME} is damaged ({type(error).__name__}): choose another --out, or add --overwrite to "
                "start anew"
            ) from error
    raise checks.InputError(f"{folder / NAME} belongs to a training with other settings: {advice}")


def fingerprint_in(folder: Path) -> str | None:
    """That of the training that lies there; None if nothing does that can be read."""
    if not (folder / NAME).exists():
        return None
    with _manager(folder) as (manager, args):
        try:
            found = manager.restore(manager.latest_step(), args=args.Composite(records=args.JsonRestore()))
            return found.records["fingerprint"]
        except Exception:  # `load` says what is wrong
            return None


def exists(folder: Path) -> bool:
    """Whether there is an unfinished training."""
    return (folder / NAME).exists()


def remove(folder: Path) -> None:
    """Removes it, if there is one. A kill meanwhile leaves it whole, or under another name, for the next time."""
    shutil.rmtree(folder / REMOVED, ignore_errors=True)
    if exists(folder):
        (folder / NAME).rename(folder / REMOVED)
        shutil.rmtree(folder / REMOVED, ignore_errors=True)


class _manager:
    """An orbax manager that keeps the latest step, and the namespace of its arguments; imported late: it takes 1 s."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager((self.folder / NAME).absolute(), options=options)
        return self.manager, ocp.args

    def __exit__(self, *exception) -> None:
        self.manager.close()
