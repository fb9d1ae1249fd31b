"""Simulates a federation: the run that makes weights and their record, and goes on after an interruption."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.experiments import train_checkpoint, train_outcome, weights
from gi_jax.experiments.environment import environment
from gi_jax.experiments.federation_spec import FederationSpec
from gi_jax.experiments.federation_study import FederationStudy
from gi_jax.experiments.train_outcome import TrainingOutcome
from gi_jax.experiments.train_run import Report
from gi_jax.experiments.weights import Weights
from gi_jax.federated import Diverged, Progress

RECORD = "federation.json"
SAVE_SECONDS = 60
"""A simulation that is killed has lost no more than about this."""


def run_federation(
    spec: FederationSpec,
    data_dir: str | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    on_report: Callable[[Report], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingOutcome:
    """Simulates from initialization.

    Args:
      spec: what is simulated.
      data_dir: where a copy of the data set lies.
      out: folder that gets `weights.msgpack` and `federation.json` in place of what is there, also after a test, once
        the next round showed that its loss is finite, and while the simulation lasts, what it is resumed from; None
        writes nothing.
      resume: go on with what lies in `out`; weights are those of an undisturbed run, bit for bit. What has ended is
        read.
      on_report: called after every chunk of rounds.
      should_stop: asked after every chunk; a simulation that is told to stop yields the weights so far, and `complete`
        is False in its result.

    Returns:
      The server's weights, and the content of `federation.json`. Where BatchNorm stays with the clients, the weights
      hold the mean over them of what they keep, and have the accuracy of that; `test_accuracy` of a round is the mean
      of the clients' own models'.

    Raises:
      InputError: for data that is missing, for settings that do not fit it, for rounds that the memory does not hold,
        for another simulation's files in `out`, and for a first round that diverges; after a later one the result is
        that of the last round of which weights and loss are finite, and `reason` in it says why.
    """
    found = train_outcome.read(out, spec.fingerprint, RECORD) if resume else None
    if found is not None:
        train_checkpoint.remove(out)
        return found
    return _Simulation(FederationStudy(spec, data_dir), out).run(resume, on_report, should_stop)


class _Simulation:
    """A simulation with its record."""

    def __init__(self, study, out):
        self.study, self.out, self.fingerprint = study, out, study.spec.fingerprint
        spec = study.spec
        self.ends = sorted({*range(spec.test_every, spec.rounds, spec.test_every), spec.rounds})
        self.rows, self.losses, self.timed = [], [], 0
        self.seconds = {"first": 0.0, "rounds": 0.0, "test": 0.0}
        self.saved = time.monotonic()

    def run(self, resume, on_report, should_stop) -> TrainingOutcome:
        study, rounds = self.study, self.study.spec.rounds
        latest = self._resumed() if resume and self.out is not None else None
        begins = latest is None
        if begins:
            latest = _copied(Progress(0, study.start(), np.zeros(0), [], [], 0.0))
        before, first, stopped, diverged = latest, latest.round, False, None
        self.seconds["first"] += study.compile(latest.state)
        if begins:
            self._clear()  # what is refused before loses nothing
        try:
            for progress in study.play(_copied(latest).state, self.ends):
                before, latest = latest, _copied(progress)  # whose loss is finite, and whose is not known yet
                if self.rows and self.rows[-1]["round"] == before.round:
                    self._write(self._outcome(before))
                compiles = before.round == first
                self.seconds["first" if compiles else "rounds"] += progress.seconds
                self.timed += 0 if compiles else len(progress.losses)
                self.losses += progress.losses.tolist()
                if on_report is not None:
                    done, total = (number * study.per_round for number in (progress.round, rounds))
                    on_report(Report(f"round {progress.round} of {rounds}", done, total, self.losses[-1]))
                last = progress.round == rounds
                stopped = not last and should_stop()
                if stopped or time.monotonic() - self.saved > SAVE_SECONDS:
                    self._save(before)
                tested = stopped or progress.round in self.ends
                finite = self._close(latest) if tested else True
                if not finite and (stopped or last):  # no round comes that would tell
                    raise Diverged(f"the loss is not finite after round {progress.round} of {rounds}", progress.round)
                if stopped:
                    break
        except Diverged as error:
            # A loss is that of the weights before its round, so the latest ones may be those that diverged.
            base = latest if latest.round < error.round else before
            latest, since, diverged = _last_finite(study, base, error)
            if not latest.round:
                self._forget()
                raise checks.InputError(f"{diverged}; nothing is kept") from error
            self.losses[base.round :] = since
            self.rows = [row for row in self.rows if row["round"] <= latest.round]
            if not self.rows or self.rows[-1]["round"] < latest.round:
                self._close(latest)
        found = self._outcome(latest, complete=not (stopped or diverged), diverged=diverged)
        self._write(found)
        if not stopped or diverged:
            self._forget()
        return found

    def _close(self, progress) -> bool:
        """Tests; whether the loss is finite."""
        began, since = time.monotonic(), self.rows[-1]["round"] if self.rows else 0
        scores = self.study.scores(progress.state)
        each = [score.accuracy for score in scores]
        row = {"round": progress.round, "loss": float(np.mean(self.losses[since:]))}
        row["test_accuracy"] = float(np.mean(each)) if each else None
        if len(each) > 1:
            of_mean = self.study.score_of_mean(progress.state).accuracy
            row |= {"test_accuracy_of_clients": each, "test_accuracy_of_mean": of_mean}
        self.rows.append(row)
        self.seconds["test"] += time.monotonic() - began
        return all(np.isfinite(score.loss) for score in scores)

    def _outcome(self, progress, complete=False, diverged=None) -> TrainingOutcome:
        study, last = self.study, self.rows[-1]
        origin = study.origin(progress.round, last.get("test_accuracy_of_mean", last["test_accuracy"]))
        result = {
            "complete": complete,
            "reason": diverged and f"{diverged}; the weights after round {progress.round} are kept",
            "fingerprint": self.fingerprint,
            "environment": environment(),
            "spec": dataclasses.asdict(study.spec) | {"at_once": study.federation.at_once},
            "network": dataclasses.asdict(origin),
            "note": study.dataset.note,
            "classes_of_clients": study.classes_of_clients(),
            "losses": list(self.losses),
            "rounds": list(self.rows),
            "timing": {
                "first_round_seconds": self.seconds["first"],
                "seconds_per_round": self.seconds["rounds"] / max(1, self.timed),
                "test_seconds": self.seconds["test"],
            },
        }
        return TrainingOutcome(Weights(origin, *progress.state.mean()), result)

    # In the folder.

    def _write(self, found):
        train_outcome.write(self.out, found, RECORD)

    def _save(self, progress):
        """Saves what is resumed from: what is known after a round whose loss is known to be finite."""
        if self.out is None or not progress.round:
            return
        records = {
            "fingerprint": self.fingerprint,
            "at_once": self.study.federation.at_once,
            "rows": [row for row in self.rows if row["round"] <= progress.round],
            "losses": self.losses[: progress.round],
            "seconds": self.seconds,
            "timed": self.timed,
        }
        train_checkpoint.save(self.out, progress.round, progress.state, records)
        self.saved = time.monotonic()

    def _resumed(self):
        """What was saved; None if nothing was."""
        found = train_checkpoint.load(self.out, self.fingerprint, self.study.start())
        if found is None:
            return None
        state, records = found
        for name in ("rows", "losses", "seconds", "timed"):
            setattr(self, name, records[name])
        self.study.compute_at_once(records["at_once"])  # as many as there, whatever this machine would take
        return Progress(int(state.round), state, np.zeros(0), [], [], 0.0)

    def _clear(self):
        """Removes what an earlier simulation left."""
        if self.out is not None:
            self._forget()
            for name in (weights.NAME, RECORD):
                (self.out / name).unlink(missing_ok=True)

    def _forget(self):
        if self.out is not None:
            train_checkpoint.remove(self.out)


def _copied(progress):
    """A `Progress` with a state of its own: that of the loop is given away."""
    return progress._replace(state=jax.tree.map(jnp.copy, progress.state))


def _last_finite(study, base, error):
    """Plays the rounds from `base` to the one that diverged once more, one by one, whatever the chunks were.

    Returns:
      The progress after the last one of finite weights and loss, the losses since `base`, and the error after it.
    """
    kept, losses = base, []
    try:
        for progress in study.play(_copied(base).state, list(range(base.round + 1, study.spec.rounds + 1))):
            if progress.round >= error.round:
                break
            kept = _copied(progress)
            losses += progress.losses.tolist()
    except Diverged as earlier:
        error = earlier
    return kept, losses, str(error)
