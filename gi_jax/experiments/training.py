"""Trains a network for one seed: the run that makes weights and their record."""

from collections.abc import Callable
from pathlib import Path

from gi_jax.experiments import train_checkpoint, train_folder
from gi_jax.experiments.study import Study
from gi_jax.experiments.train_outcome import TrainingOutcome, read, write
from gi_jax.experiments.train_run import Report, TrainingRun, check_times
from gi_jax.experiments.train_spec import TrainSpec


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
    check_times(checkpoint_epochs, spec, out)
    if resume and out is not None:
        train_folder.check_kind(out, several=False)
    outcome = read(out, spec.fingerprint) if resume else None
    if outcome is not None:
        train_checkpoint.remove(out)
        if not timing or "seconds_per_step" in outcome.result["timing"]:
            return outcome
    study = Study(spec, data_dir)
    if out is not None and not resume:
        train_folder.clear(out, [out, *train_folder.of_seeds(out)])
    if outcome is None:
        run = TrainingRun(study, (spec.seed,), [out], out, checkpoint_epochs)
        (outcome,) = run.train(resume, on_report, should_stop, "")
    if timing and outcome.result["complete"]:
        outcome.result["timing"] |= study.time_steps(outcome.weights)
        write(out, outcome)
    return outcome
