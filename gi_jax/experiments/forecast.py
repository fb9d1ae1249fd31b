"""What an attack is going to take, from its first steps on this machine."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gi_jax import attacks
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.session import Session
from gi_jax.experiments.spec import AttackSpec, Run
from gi_jax.experiments.victims import make_victims

FORECAST_SECONDS = 2.0
FORECAST_STEPS = 5
"""A forecast rests on chunks of so many steps, for about so long."""


class Forecast(NamedTuple):
    """What a run is going to take, from its first steps on this machine; scoring is not counted.

    Attributes:
      run: which one.
      lanes, launches: private batches x restarts side by side, and how often.
      compile_seconds: of its program; next to nothing where an earlier run had the same.
      run_seconds: of all steps.
    """

    run: Run
    lanes: int
    launches: int
    compile_seconds: float
    run_seconds: float


def forecast(spec: AttackSpec, execution: Execution | None = None) -> Iterator[Forecast]:
    """Compiles every run of a specification, takes its first steps, and says what the whole is going to take.

    Raises:
      InputError: as `run_attack`.
    """
    execution = execution or Execution()
    groups = {f"{run.defense}/{run.labels}": (spec.only(run),) for run in spec.runs}
    session = Session(groups, "", execution, Path(), make_victims(spec, execution.data_dir), lambda report: None)
    for run, name in zip(spec.runs, groups, strict=True):
        while True:
            try:
                yield _forecast(session, run, name)
                break
            except (RuntimeError, MemoryError) as error:
                session.shrink(name, error)


def _forecast(session, run, name):
    launches = session.launches(name)
    attack, stacked, states = session.prepare(name, launches[0])
    began = time.monotonic()
    states = session.compile(attack, stacked, states)
    compiled = time.monotonic()
    chunks = []  # the first one warms up
    chunk = max(1, min(FORECAST_STEPS, int(attack.num_steps) // 4))
    for _ in attacks.advance(attack, stacked, states, chunk=chunk):
        chunks.append(time.monotonic())
        if len(chunks) > 2 and chunks[-1] - chunks[0] > FORECAST_SECONDS:
            break
    per_chunk = (chunks[-1] - chunks[0]) / (len(chunks) - 1) if len(chunks) > 1 else chunks[0] - compiled
    seconds = per_chunk / chunk * (int(attack.num_steps) + 1) * len(launches)
    return Forecast(run, states.best_loss.size, len(launches), compiled - began, seconds)
