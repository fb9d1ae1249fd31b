"""What a training yields, in memory and in its folder."""

import json
from pathlib import Path
from typing import NamedTuple

from gi_jax import checks
from gi_jax.experiments import train_folder, weights
from gi_jax.experiments.checkpoint import write_atomically
from gi_jax.experiments.weights import Weights


class TrainingOutcome(NamedTuple):
    """What a training yields: the weights, and the content of its record, `training.json` or `federation.json`."""

    weights: Weights
    result: dict


def read(out: Path | None, fingerprint: str, record: str = train_folder.RECORD) -> TrainingOutcome | None:
    """The outcome of a training that has ended, from its folder; None if it has not.

    Args:
      out: its folder.
      fingerprint: of its settings.
      record: the name of its record.

    Raises:
      InputError: if a training with other settings lies there.
    """
    if out is None or not (out / record).exists() or not (out / weights.NAME).exists():
        return None
    path = out / record
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        same, ended = result.get("fingerprint") == fingerprint, result["complete"] or result.get("reason") is not None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise checks.InputError(f"{path} is not a record of a training ({error}): choose another --out") from error
    if not same:
        raise checks.InputError(
            f"{path} is of a training with other settings: repeat those, choose another --out, or add --overwrite to "
            "start anew"
        )
    return TrainingOutcome(weights.load(out), result) if ended else None


def write(folder: Path | None, outcome: TrainingOutcome, record: str = train_folder.RECORD) -> None:
    """Writes the weights and the record; nothing into None."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        weights.save(folder / weights.NAME, outcome.weights)
        write_record(folder / record, outcome.result)


def write_record(path: Path, result: dict) -> None:
    """Writes a record whole or not at all."""
    write_atomically(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
