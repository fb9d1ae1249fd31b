"""How far the estimates of `gi-jax attack --estimate` and `gi-jax run --estimate` are from the truth, on this machine.

A ratio is the estimated over the true seconds: 1 is right, and 0.75 to 1.25 is the aim. For an attack both are seconds
of all steps, compilation and scoring apart. For experiments the cells of a first store give the rates at which those of
a second, empty one are estimated; they are the same cells, so what is tested is whether time repeats itself and adds
up, compilation included.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import harness
from harness import Report, Sample

from gi_jax.experiments import catalogue, estimate
from gi_jax.experiments.attack import run_attack
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.forecast import forecast
from gi_jax.experiments.jobs import jobs, run_jobs
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.store import Store


class Case(NamedTuple):
    """An attack that is forecast, then run.

    Attributes:
      name: of the case.
      spec: of the attack.
    """

    name: str
    spec: AttackSpec


_RESNET = AttackSpec(model="resnet18", client_bn="batch", bn="exact")
ATTACKS = (
    Case("convnet b1 x 4", AttackSpec(num_batches=4, steps=300)),
    Case("convnet b4, 3 restarts", AttackSpec(batch_size=4, num_batches=1, restarts=3, steps=150)),
    Case("lenet dlg x 4", AttackSpec(attack="dlg", model="lenet", labels="optimize", num_batches=4, steps=300)),
    Case("resnet18 b1 x 8", dataclasses.replace(_RESNET, num_batches=8, steps=60)),
    Case("resnet18 b8", dataclasses.replace(_RESNET, batch_size=8, num_batches=1, steps=60)),
)
QUICK = ATTACKS[:1]
EXPERIMENT = "table2"


def measure_attack(report: Report, case: Case, rounds: int) -> None:
    """Forecasts and runs in turns; adds a row and the ratio."""
    foretold, taken = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            (found,) = forecast(case.spec)
            foretold.append(found.run_seconds)
            outcome = run_attack(case.spec, Path(folder))
            taken.append(outcome.result["runs"][0]["timing"]["run_seconds"])
    _add(report, case.name, foretold, taken)


def measure_experiment(report: Report, rounds: int) -> None:
    """An experiment at scale `smoke`, in a store whose rates are then used for the same cells anew."""
    found = jobs([one.cell for one in catalogue.placed(EXPERIMENT, "smoke")])
    foretold, taken = [], []
    with tempfile.TemporaryDirectory() as folder:
        first = Store(Path(folder) / "first")
        _failed(run_jobs(found, first, Execution()))
        for number in range(rounds):
            foretold.append(estimate.estimate(found, first).seconds)
            again, began = Store(Path(folder) / f"again{number}"), time.perf_counter()
            _failed(run_jobs(found, again, Execution()))
            taken.append(time.perf_counter() - began)
    _add(report, f"{EXPERIMENT}, smoke", foretold, taken)


def _failed(events):
    if events:
        raise RuntimeError(events[0].reason)


def _add(report, name, foretold, taken):
    foretold, taken = Sample(tuple(foretold)), Sample(tuple(taken))
    report.add({"case": name, "estimated s": foretold.summary(3), "true s": taken.summary(3)})
    report.ratios[name] = foretold.over(taken)


def measure(report: Report, quick: bool) -> None:
    """All attacks, then the experiment, whose rows need their scores."""
    if not quick:
        harness.need_lpips()
    for case in QUICK if quick else ATTACKS:
        measure_attack(report, case, rounds=1 if quick else 3)
    if not quick:
        measure_experiment(report, rounds=2)


if __name__ == "__main__":
    harness.main("estimates", __doc__, measure)
