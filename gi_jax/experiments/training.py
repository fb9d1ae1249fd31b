"""Trains a network, for one seed or several: the run that makes weights and their record."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks, training
from gi_jax.experiments import train_checkpoint, train_folder, weights
from gi_jax.experiments.checkpoint import write_atomically
from gi_jax.experiments.environment import environment
from gi_jax.experiments.plan import is_out_of_memory
from gi_jax.experiments.study import Study
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.experiments.weights import Weights

SAVE_SECONDS = 60
"""A training that is killed has lost no more than about this."""


class Report(NamedTuple):
    """Where a training stands, for a progress bar.

    Attributes:
      title: the epoch.
      done, total: pictures seen.
      loss: mean of the latest steps.
    """

    title: str
    done: int
    total: int
    loss: float


class TrainingOutcome(NamedTuple):
    """What a training yields: the weights, and the content of `training.json`."""

    weights: Weights
    result: dict


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


def run_training(
    spec: TrainSpec,
    data_dir: str | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    checkpoint_epochs: tuple[float, ...] = (),
    timing: bool = True,
    on_report: Callable[[Report], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingOutcome:
    """Trains from initialization.

    Args:
      spec: what is trained.
      data_dir: where a copy of the data set lies.
      out: folder that gets `weights.msgpack` and `training.json` in place of what is there, and while the training
        lasts, what it is resumed from; None writes nothing.
      resume: go on with what lies in `out`; weights are those of an undisturbed run, bit for bit. What is complete is
        read.
      checkpoint_epochs: keep the weights at these times too, in `out`/epoch-E.
      timing: whether steps are timed with and without the defense afterwards.
      on_report: called after every chunk of steps.
      should_stop: asked after every chunk; a training that is told to stop yields the weights so far, untested if
        inside of an epoch, and `complete` is False in its result.

    Raises:
      InputError: for data that is missing, for a defense that does not fit the network, for a loss or weights that
        are not finite, and for another training's files in `out`.
    """
    _check_times(checkpoint_epochs, spec, out)
    if resume and out is not None:
        train_folder.check_kind(out, several=False)
    outcome = read(out, spec) if resume else None
    if outcome is not None:
        train_checkpoint.remove(out)
        if not timing or "seconds_per_step" in outcome.result["timing"]:
            return outcome
    study = Study(spec, data_dir)
    if out is not None and not resume:
        train_folder.clear(out, [out, *train_folder.of_seeds(out)])
    if outcome is None:
        run = _Run(study, (spec.seed,), [out], out, checkpoint_epochs)
        (outcome,) = run.train(resume, on_report, should_stop, "")
    if timing and outcome.result["complete"]:
        outcome.result["timing"] |= study.time_steps(outcome.weights)
        _write(out, outcome)
    return outcome


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
    _check_times(checkpoint_epochs, spec, out)
    if lanes is None:
        lanes = 1 if jax.default_backend() == "cpu" else len(seeds)
    checks.positive(lanes=lanes)
    if resume and out is not None:
        train_folder.check_kind(out, several=True)
    specs = {seed: dataclasses.replace(spec, seed=seed) for seed in seeds}
    folders = {seed: None if out is None else out / f"seed-{seed}" for seed in seeds}
    found = {seed: read(folders[seed], specs[seed]) for seed in seeds} if resume else dict.fromkeys(seeds)
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
        run = _Run(study, group, [folders[seed] for seed in group], out, checkpoint_epochs)
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
        _write_json(out / train_folder.RECORD, result)
        if complete:
            train_checkpoint.remove(out)
    return SeedsOutcome(outcomes, diverged, result)


def _together(fingerprints) -> str:
    """The fingerprint of trainings side by side."""
    return " ".join(fingerprints)


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


def read(out: Path | None, spec: TrainSpec) -> TrainingOutcome | None:
    """The outcome of a training that is complete, from its folder; None if it is not.

    Raises:
      InputError: if a training with other settings lies there.
    """
    if out is None or not (out / train_folder.RECORD).exists() or not (out / weights.NAME).exists():
        return None
    try:
        result = json.loads((out / train_folder.RECORD).read_text())
        same, complete = result["fingerprint"] == spec.fingerprint, result["complete"]
    except (ValueError, KeyError, TypeError) as error:
        raise checks.InputError(
            f"{out / train_folder.RECORD} is not a record of gi-jax train ({error}): choose another --out"
        ) from error
    if not same:
        raise checks.InputError(
            f"{out / train_folder.RECORD} is of a training with other settings: repeat those, choose another --out, or "
            "add --overwrite to start anew"
        )
    return TrainingOutcome(weights.load(out), result) if complete else None


class _Run:
    """The trainings of some seeds side by side, with their records."""

    def __init__(self, study, seeds, folders, out, checkpoint_epochs):
        self.study, self.seeds, self.folders, self.out = study, seeds, folders, out
        self.kept = {epochs: training.step_of(study.per_epoch, epochs) for epochs in checkpoint_epochs}
        specs = [dataclasses.replace(study.spec, seed=seed) for seed in seeds]
        self.specs, self.fingerprint = specs, _together(spec.fingerprint for spec in specs)
        self.rows = [[] for _ in seeds]
        self.diverged = [None] * len(seeds)  # from which step on
        self.losses, self.correct = [], []
        self.seconds = {"first_chunk": 0.0, "steps": 0.0, "test": 0.0}
        self.step = 0

    def train(self, resume, on_report, should_stop, title) -> list[TrainingOutcome | None]:
        """The outcome of each seed, None where its loss was not finite any more."""
        study, recipe = self.study, self.study.setup.recipe
        state, keys = study.start(self.seeds)
        watch = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(self.seeds)), training.watch(recipe))
        if self.out is not None:
            state, watch = self._resumed(state, watch) if resume else (state, watch)
            if not resume:
                train_folder.clear(self.out, self.folders)
        self.watch, saved, stopped, first = watch, time.monotonic(), False, self.step
        if not self._active().any():  # a kill came after the end was saved
            return self._finish(state, stopped)
        ends = training.epoch_ends(study.per_epoch, recipe.epochs, self.kept)
        for progress in training.advance(
            study.setup,
            state,
            study.pool,
            keys,
            ends=ends,
            step=self.step,
            scale=lambda: self.watch.scale,
            active=None if recipe.patience is None or len(self.seeds) == 1 else self._active,
        ):
            self._note_diverged(progress.losses)
            self.losses += progress.losses.T.tolist()
            self.correct += (progress.correct.T / recipe.batch_size).tolist()
            self.seconds["first_chunk" if self.step == first else "steps"] += progress.seconds
            self.step, state = progress.step, progress.state
            if on_report is not None:
                epoch = f"{title}epoch {1 + (self.step - 1) // study.per_epoch} of {math.ceil(recipe.epochs)}"
                seen, total = (step * recipe.batch_size for step in (self.step, ends[-1]))
                finite = progress.losses[np.isfinite(progress.losses)]
                on_report(Report(epoch, seen, total, float(finite.mean())))
            done = self.step == ends[-1]
            if self.step % study.per_epoch == 0 or done:
                self._close_epoch(state)
            for epochs, step in self.kept.items():
                if step == self.step:
                    self._keep(state, epochs)
            done |= not self._active().any()
            stopped = not done and should_stop()
            if self.out is not None and (stopped or time.monotonic() - saved > SAVE_SECONDS):
                train_checkpoint.save(self.out, self.step, (state, self.watch), self._records())
                saved = time.monotonic()
            if stopped and self.losses:
                self._close_epoch(state, scored=False)
            if stopped or done:
                break
        return self._finish(state, stopped)

    def _active(self):
        patience, alive = self.study.setup.recipe.patience, jnp.array([step is None for step in self.diverged])
        return alive if patience is None else alive & (self.watch.waited < patience)

    def _note_diverged(self, losses):
        finite = np.isfinite(losses)
        for lane in np.flatnonzero(~finite.all(1)):
            if self.diverged[lane] is None:
                self.diverged[lane] = self.step + 1 + int(finite[lane].argmin())

    def _note_broken(self, state, *scores):
        """A loss is that of the weights before its step, so those after the last one are looked at by themselves."""
        finite = np.array(jax.vmap(training.is_finite)((state.params, state.batch_stats)))
        for lanes in filter(None, scores):
            finite &= np.isfinite([score.loss for score in lanes])
        self.diverged = [
            self.step + 1 if before is None and not fine else before
            for before, fine in zip(self.diverged, finite, strict=True)
        ]

    def _close_epoch(self, state, scored=True):
        study, began = self.study, time.monotonic()
        pools = (study.held_out, study.tested) if scored else (None, None)
        validated, tested = (study.score(pool, state) for pool in pools)
        self.seconds["test"] += time.monotonic() - began
        self._note_broken(state, validated, tested)
        active = self._active().tolist()
        losses, correct = np.mean(self.losses, 0), np.mean(self.correct, 0)
        self.losses, self.correct = [], []
        for lane, rows in enumerate(self.rows):
            if not active[lane]:
                continue
            row = {"step": self.step, "epochs": study.epochs(self.step)}
            row |= {"loss": float(losses[lane]), "train_accuracy": float(correct[lane])}
            if validated is not None:
                row |= {"validation_loss": validated[lane].loss, "validation_accuracy": validated[lane].accuracy}
            rows.append(row | {"test_accuracy": None if tested is None else tested[lane].accuracy})
        if validated is not None and self.step % study.per_epoch == 0:
            look = partial(training.look, study.setup.recipe, epoch=self.step // study.per_epoch - 1)
            self.watch = jax.vmap(look)(self.watch, jnp.float32([score.loss for score in validated]))

    def _keep(self, state, epochs):
        scores = self.study.score(self.study.tested, state)
        self._note_broken(state, scores)
        for lane, (seed, folder) in enumerate(zip(self.seeds, self.folders, strict=True)):
            if self.diverged[lane] is not None or state.step[lane] < self.step:  # it ended before
                continue
            accuracy = None if scores is None else scores[lane].accuracy
            kept = train_folder.kept_at(folder, epochs)
            kept.parent.mkdir(parents=True, exist_ok=True)
            weights.save(kept, self.study.weights(seed, state, lane, accuracy))

    def _records(self):
        names = ("fingerprint", "step", "rows", "losses", "correct", "seconds", "diverged")
        return {name: getattr(self, name) for name in names}

    def _resumed(self, state, watch):
        found = train_checkpoint.load(self.out, self.fingerprint, (state, watch))
        if found is None:
            return state, watch
        (state, watch), records = found
        for name, value in records.items():
            setattr(self, name, value)
        return state, watch

    def _finish(self, state, stopped) -> list[TrainingOutcome | None]:
        study, outcomes = self.study, []
        if None not in self.diverged:
            raise training.Diverged(
                f"the loss is not finite after step {max(self.diverged) - 1} of {study.total}; expected a finite "
                f"number: lower the learning rate (now {study.setup.recipe.learning_rate:g})",
                self.diverged,
            )
        for lane, (spec, folder) in enumerate(zip(self.specs, self.folders, strict=True)):
            if self.diverged[lane] is not None:
                outcomes.append(None)
                continue
            rows = self.rows[lane]
            trained = study.weights(spec.seed, state, lane, rows[-1]["test_accuracy"])
            result = {
                "complete": not stopped,
                "fingerprint": spec.fingerprint,
                "environment": environment(),
                "spec": dataclasses.asdict(spec),
                "recipe": dataclasses.asdict(study.setup.recipe),
                "defense": study.promises(trained.origin.steps),
                "network": dataclasses.asdict(trained.origin),
                "note": study.dataset.note,
                "pictures": {
                    "train": len(study.pool.labels),
                    "validation": 0 if study.held_out is None else len(study.held_out.labels),
                    "public": 0 if study.pool.public is None else len(study.pool.public),
                    "test": trained.origin.test_pictures,
                },
                "epochs": rows,
                "timing": {f"{name}_seconds": value for name, value in self.seconds.items()},
            }
            outcome = TrainingOutcome(trained, json.loads(json.dumps(result)))
            _write(folder, outcome)
            outcomes.append(outcome)
        if self.out is not None and not stopped:
            train_checkpoint.remove(self.out)
        return outcomes


def _write(folder: Path | None, outcome: TrainingOutcome) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        weights.save(folder / weights.NAME, outcome.weights)
        _write_json(folder / train_folder.RECORD, outcome.result)


def _write_json(path: Path, value: dict) -> None:
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _mean_and_std(accuracies: list[float | None]) -> dict | None:
    """Mean and sample standard deviation; None without a test split."""
    if None in accuracies or not accuracies:
        return None
    std = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    return {"mean": float(np.mean(accuracies)), "std": std, "each": accuracies}


def _check_times(checkpoint_epochs: tuple[float, ...], spec: TrainSpec, out: Path | None) -> None:
    """Refuses early checkpoints that nobody would write."""
    if checkpoint_epochs and out is None:
        raise checks.InputError(f"checkpoint_epochs={checkpoint_epochs} without a folder to write to: give out")
    for epochs in checkpoint_epochs:
        checks.positive(checkpoint_epochs=epochs)
        if epochs > spec.settings.epochs:
            raise checks.InputError(
                f"checkpoint_epochs={epochs:g}: the training ends after {spec.settings.epochs:g}; expected less"
            )
