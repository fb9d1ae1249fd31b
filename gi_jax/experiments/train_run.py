"""Trains one network for each of some seeds, side by side in one program, and records how."""

import dataclasses
import json
import math
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks, training
from gi_jax.experiments import train_checkpoint, train_folder, weights
from gi_jax.experiments.environment import environment
from gi_jax.experiments.train_outcome import TrainingOutcome, write
from gi_jax.experiments.train_spec import TrainSpec

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


def together(fingerprints: Iterable[str]) -> str:
    """The fingerprint of trainings side by side."""
    return " ".join(fingerprints)


def check_times(checkpoint_epochs: tuple[float, ...], spec: TrainSpec, out: Path | None) -> None:
    """Refuses early checkpoints that nobody would write."""
    if checkpoint_epochs and out is None:
        raise checks.InputError(f"checkpoint_epochs={checkpoint_epochs} without a folder to write to: give out")
    for epochs in checkpoint_epochs:
        checks.positive(checkpoint_epochs=epochs)
        if epochs > spec.settings.epochs:
            raise checks.InputError(
                f"checkpoint_epochs={epochs:g}: the training ends after {spec.settings.epochs:g}; expected less"
            )


class TrainingRun:
    """The trainings of some seeds side by side, with their records."""

    def __init__(self, study, seeds, folders, out, checkpoint_epochs):
        self.study, self.seeds, self.folders, self.out = study, seeds, folders, out
        self.kept = {epochs: training.step_of(study.per_epoch, epochs) for epochs in checkpoint_epochs}
        specs = [dataclasses.replace(study.spec, seed=seed) for seed in seeds]
        self.specs, self.fingerprint = specs, together(spec.fingerprint for spec in specs)
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
            write(folder, outcome)
            outcomes.append(outcome)
        if self.out is not None and not stopped:
            train_checkpoint.remove(self.out)
        return outcomes
