"""What trainings leave in a folder: weights, their record, those of earlier epochs; of several seeds a folder each."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from gi_jax import checks
from gi_jax.experiments import train_checkpoint, weights

RECORD = "training.json"


def kept_at(folder: Path, epochs: float) -> Path:
    """The file of the weights that a training keeps after that many epochs."""
    return folder / f"epoch-{epochs:g}" / weights.NAME


def not_kept(folder: Path, checkpoint_epochs: Iterable[float]) -> list[float]:
    """Of the times at which weights were to be kept, those at which a training had ended, or which it was past."""
    return [epochs for epochs in checkpoint_epochs if not kept_at(folder, epochs).exists()]


def left_in(folder: Path) -> list[Path]:
    """What a training has left in its folder."""
    paths = folder / weights.NAME, folder / RECORD, *sorted(folder.glob("epoch-*"))
    return [path for path in paths if path.exists()]


def of_seeds(out: Path) -> list[Path]:
    """The folders of the seeds of any earlier training."""
    return sorted(out.glob("seed-*"))


def clear(out: Path, folders: Iterable[Path]) -> None:
    """Removes what earlier trainings left in these folders, and what they would be resumed from in `out`."""
    train_checkpoint.remove(out)
    for folder in folders:
        for path in left_in(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if folder != out and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def check_kind(out: Path, *, several: bool) -> None:
    """Refuses to go on with several seeds where a training of one lies, and the other way round.

    Raises:
      InputError: naming the folder.
    """
    found = [path for path in left_in(out) if path.name != RECORD]  # which both have
    if not several:
        found = [path for folder in of_seeds(out) for path in left_in(folder)]
    if found:
        raise checks.InputError(
            f"{out} holds a training of {'one seed' if several else 'several seeds'} ({found[0].relative_to(out)}): "
            "repeat its settings, choose another --out, or give --overwrite in place of --resume to start anew"
        )
