"""Trains a network for several seeds: as many side by side as memory allows, then the next."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from gi_jax import checks, training
from gi_jax.experiments import train_checkpoint, train_folder
from gi_jax.experiments.environment import environment
from gi_jax.experiments.plan import is_out_of_memory
from gi_jax.experiments.study import Study
from gi_jax.experiments.train_outcome import TrainingOutcome, read, write_record
from gi_jax.experiments.train_run import Report, TrainingRun, check_times
from gi_jax.experiments.train_spec import TrainSpec


class SeedsOutcome(NamedTuple):
    """What the trainings of several seeds yield.

    Attributes:
      outcomes: of each, in the order of the seeds; those that diverged, or were not begun, are left out.
      diverged: seed to the step from which on its loss is no finite number, which may be one after the last.
      result: the content of `training.json`: what they have in common.
    """

    outcomes: tuple[TrainingOutcome, ...]
    diverged: dict[int, int]
    result: dict


def run_seeds(
    spec: TrainSpec,
    seeds: tuple[int, ...],
    data_dir: str | None = None,
    *,
    out: Path | None = None,
    lanes: int | None = None,
    resume: bool = False,
    checkpoint_epochs: tuple[float, ...] = (),
    timing: bool = True,
    on_report: Callable[[Report], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SeedsOutcome:
    """Trains once for each seed; `spec.seed` does not count.

    Args:
      seeds: different ones.
      out: folder that gets `seed-K` as of `run_training` for each, and `training.json` of all.
      lanes: how many are trained side by side in one program; half as many if the memory is too small for them. None:
        all, but on a CPU one, where three lanes take as long as three after another (two busy cores, median of 4:
        `convnet` 1.17 times, `resnet18` 1.05, `mlp` 0.93) and more memory.
      others: as for `run_training`.

    Raises:
      InputError: as `run_training`; a loss that is not finite ends the training of its seed only, unless all do.
    """
    checks.distinct("seeds", map(str, seeds))
    check_times(checkpoint_epochs, spec, out)
    if lanes is None:
        lanes = 1 if jax.default_backend() == "cpu" else len(seeds)
    checks.positive(lanes=lanes)
    if resume and out is not None:
        train_folder.check_kind(out, several=True)
    specs = {seed: dataclasses.replace(spec, seed=seed) for seed in seeds}
    folders = {seed: None if out is None else out / f"seed-{seed}" for seed in seeds}
    found = {seed: read(folders[seed], specs[seed].fingerprint) for seed in seeds} if resume else dict.fromkeys(seeds)
    study = Study(spec, data_dir)
    left = tuple(seed for seed in seeds if found[seed] is None)
    diverged = {}
    if out is not None:
        if resume:
            left, lanes = _as_before(out, {specs[seed].fingerprint: seed for seed in seeds}, left, lanes)
        else:
            train_folder.clear(out, [out, *train_folder.of_seeds(out)])
    while left:
        group = left[:lanes]
        run = TrainingRun(study, group, [folders[seed] for seed in group], out, checkpoint_epochs)
        title = f"seed {', '.join(map(str, group))}, "
        try:
            outcomes = run.train(resume, on_report, should_stop, title)
        except training.Diverged as error:
            if out is not None:
                train_checkpoint.remove(out)
            outcomes = [None] * len(group)
            run.diverged = [before or step for before, step in zip(run.diverged, error.steps, strict=True)]
        except jax.errors.JaxRuntimeError as error:
            if len(group) == 1 or not is_out_of_memory(error):
                raise
            lanes = len(group) // 2
            if out is not None:
                train_checkpoint.remove(out)  # of the larger group
            continue
        found |= zip(group, outcomes, strict=True)
        diverged |= {seed: step for seed, step in zip(group, run.diverged, strict=True) if step is not None}
        resume, left = False, left[len(group) :]  # what is resumed from was this group's
        if not all(outcome.result["complete"] for outcome in outcomes if outcome is not None):
            break
    outcomes = tuple(found[seed] for seed in seeds if found[seed] is not None)
    if len(diverged) == len(seeds):
        raise training.Diverged(
            f"no loss is a finite number from step {max(diverged.values())} on, of {len(seeds)} seeds: lower the "
            f"learning rate (now {study.setup.recipe.learning_rate:g})",
            [diverged[seed] for seed in seeds],
        )
    done = len(outcomes) + len(diverged) == len(seeds)
    complete = done and all(outcome.result["complete"] for outcome in outcomes)
    accuracies = [outcome.weights.origin.test_accuracy for outcome in outcomes]
    result = {
        "complete": complete,
        "environment": environment(),
        "spec": dataclasses.asdict(spec),
        "seeds": list(seeds),
        "diverged": {str(seed): step for seed, step in diverged.items()},
        "test_accuracy": _mean_and_std(accuracies),
        "timing": {"lanes": lanes} | (study.time_steps(outcomes[0].weights) if timing and complete else {}),
    }
    if out is not None:
        write_record(out / train_folder.RECORD, result)
        if complete:
            train_checkpoint.remove(out)
    return SeedsOutcome(outcomes, diverged, result)


def _as_before(out: Path, seeds: dict[str, int], left: tuple[int, ...], lanes: int) -> tuple[tuple[int, ...], int]:
    """Seeds in the order in which to go on, and lanes: those of unfinished trainings in `out` first, side by side.

    They have as many lanes as they had, whatever this machine would take. A kill while their files were written leaves
    some of them finished, which are written again, or all, whose trainings are then removed.

    Args:
      out: folder of all.
      seeds: by fingerprint.
      left: those that are not finished.
      lanes: what to take where nothing is unfinished.
    """
    held = [seeds.get(fingerprint) for fingerprint in (train_checkpoint.fingerprint_in(out) or "").split()]
    if not held or None in held:  # if it is another training's, `load` says so
        return left, lanes
    if not set(held) & set(left):
        train_checkpoint.remove(out)
        return left, lanes
    return (*held, *(seed for seed in left if seed not in held)), len(held)


def _mean_and_std(accuracies: list[float | None]) -> dict | None:
    """Mean and sample standard deviation; None without a test split."""
    if None in accuracies or not accuracies:
        return None
    std = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    return {"mean": float(np.mean(accuracies)), "std": std, "each": accuracies}
