"""A grid of weights as one job, against a loop over single attacks, here and in PyTorch.

The job is what `gi-jax run` makes of a sweep (`gi_jax.experiments.attack.run_sweep`): total variation x statistics
prior x victims x restarts are lanes of one program, in launches that fill the device. The attack is that of Huang et
al. (2021) on clients that normalize with their batch's statistics, which are known; batch size 1.

The loop attacks one victim under one setting from one start after another. It has the same programs and settings, and
it is compiled once too: only the lanes are missing. It runs a sample of its work, spread evenly over the grid, in turns
with the parts of the job, so that both see the same machine; each turn is all restarts of one victim under one
setting. The PyTorch loop is one such start a turn. Hours of the whole grid are extrapolated from these samples, whose
sizes stand beside them.

Seconds a lane-iteration are wall seconds of everything but compilation and scoring, by lanes and evaluations. The
clients' steps, whose gradients are attacked, count for the job, which takes one a launch and victim, and not for the
loops.
`sweep_vs_loop` is the loop's over the job's in the same turn: above 1 the job is faster. The losses that the two reach
are compared over the sample.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import harness
import jax
import numpy as np
from beside import Beside, lane_of
from harness import Report, Sample

from gi_jax import attacks
from gi_jax.attacks.loop import compile_ahead
from gi_jax.experiments import plan
from gi_jax.experiments.attack import run_sweep
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.streams import Stream, key_of
from gi_jax.experiments.victims import make_problems, make_victims
from gi_jax.threat import stack


class Case(NamedTuple):
    """One grid.

    Attributes:
      model: the network.
      tv, bn_prior: weights, each with each.
      victims, restarts: of every setting.
      steps: of every attack.
      turns: of job and loop, about.
    """

    model: str
    tv: tuple[float, ...]
    bn_prior: tuple[float, ...]
    victims: int
    restarts: int
    steps: int
    turns: int

    @property
    def specs(self) -> list[AttackSpec]:
        """A specification for each setting."""
        common = AttackSpec(
            attack="gradient_inversion_evaluation",
            model=self.model,
            client_bn="batch",
            bn="exact",
            num_batches=self.victims,
            restarts=self.restarts,
            steps=self.steps,
        )
        return [dataclasses.replace(common, tv=tv, bn_prior=prior) for tv in self.tv for prior in self.bn_prior]

    @property
    def lanes(self) -> int:
        """Single attacks in the grid."""
        return len(self.tv) * len(self.bn_prior) * self.victims * self.restarts

    @property
    def name(self) -> str:
        return f"{self.model}_{len(self.tv)}x{len(self.bn_prior)}x{self.victims}x{self.restarts}"


def weights(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` weights, evenly spread over the logarithm."""
    return tuple(float(weight) for weight in np.geomspace(low, high, count))


QUICK = (Case("convnet", weights(1e-3, 1e-1, 3), weights(1e-4, 1e-2, 3), victims=2, restarts=2, steps=31, turns=4),)
FULL = tuple(
    Case(model, weights(1e-3, 1.0, 10), weights(1e-4, 1e-1, 10), victims=8, restarts=4, steps=steps, turns=20)
    for model, steps in (("convnet", 39), ("resnet18", 3))
)
"""ResNet-18 takes four evaluations a lane, a quarter of an hour on two cores."""
ACCELERATOR = (
    Case("resnet18", weights(1e-3, 1.0, 10), weights(1e-4, 1e-1, 10), victims=8, restarts=4, steps=19, turns=20),
)
IMAGE_SHAPE = (32, 32, 3)
CHUNKS = 4
"""Looks at a launch: the job and the loop can take turns at each."""


class Singles:
    """The loop over single attacks of a case, in so many turns; keeps the loss of each (setting, victim) it did."""

    def __init__(self, case: Case, turns: int, torch: Beside | None):
        self.case, self.turns, self.torch, self.specs = case, turns, torch, case.specs
        self.victims = make_victims(self.specs[0]).batches
        self.losses = {}

    def chosen(self, turn: int) -> tuple[int, int]:
        """Setting and victim of a turn, spread over the grid."""
        return divmod(turn * len(self.specs) * self.case.victims // self.turns, self.case.victims)

    def prepare(self, setting: int, victim: int):
        """Attack, problem and keys, [1, restarts], as the job has them."""
        spec = self.specs[setting]
        problem = stack(make_problems(spec, self.victims, "none", [victim]))
        keys = attacks.lane_keys(key_of(spec.seed, Stream.START), [victim], spec.restarts)
        return plan.make_attack(spec), problem, keys

    def compile(self) -> float:
        """Makes the loop's programs; returns the seconds of the attack's own."""
        attack, problem, keys = self.prepare(0, 0)
        states = attacks.start(attack, problem, keys[:, :1])
        began = time.perf_counter()
        jax.block_until_ready(compile_ahead(attack, problem, states))
        return time.perf_counter() - began

    def loop(self, turn: int) -> float:
        """Attacks from one start after another; seconds a lane-iteration, without the client's step."""
        setting, victim = self.chosen(turn)
        attack, problem, keys = jax.block_until_ready(self.prepare(setting, victim))
        began, losses = time.perf_counter(), []
        for restart in range(self.case.restarts):
            states = attacks.start(attack, problem, keys[:, restart : restart + 1])
            for latest, _ in attacks.advance(attack, problem, states, chunk=self.case.steps + 1):
                states = latest
            losses.append(attacks.reconstructions(problem, states)[0][0].loss)
        self.losses[setting, victim] = min(losses)
        return (time.perf_counter() - began) / (self.case.restarts * (self.case.steps + 1))

    def in_torch(self, turn: int) -> float:
        """One start over there; seconds a lane-iteration."""
        setting, victim = self.chosen(turn)
        attack, problem, keys = self.prepare(setting, victim)
        settings = dict(
            model=self.case.model,
            tv=self.specs[setting].tv,
            bn_prior=self.specs[setting].bn_prior,
            learning_rate=attack.learning_rate,
            device=self.torch("best_device"),
        )
        self.torch("prepare", **lane_of(problem, attacks.start(attack, problem, keys[:, :1])), **settings)
        return self.torch.side(self.case.steps + 1, units=self.case.steps + 1)()


class Turns:
    """Called after every part of the job: keeps the seconds of `size` parts at a time, then lets the others have a go.

    The first part, which has the compilation in it, does not count.
    """

    def __init__(self, size: int, others: dict[str, Callable[[int], float]]):
        self.size, self.others = size, others
        self.taken = {name: [] for name in ("sweep", *others)}
        self.parts, self.seconds, self.since = -1, 0.0, time.perf_counter()

    def __call__(self, report) -> None:
        self.parts, self.seconds = self.parts + 1, self.seconds + time.perf_counter() - self.since
        if self.parts == 0:
            self.seconds = 0.0
        elif self.parts % self.size == 0:
            for name, run in self.others.items():
                self.taken[name].append(run(len(self.taken[name])))
            self.taken["sweep"].append(self.seconds / self.size)
            self.seconds = 0.0
        self.since = time.perf_counter()


def measure_case(report: Report, case: Case, torch: Beside | None) -> None:
    """Runs the job, with the loops in between; adds a row for each, and the ratios."""
    specs = case.specs
    (group,) = plan.groups(specs)
    limit = plan.lanes_per_launch(specs[0], IMAGE_SHAPE)
    launches = plan.launches_of(specs[0], case.victims, len(group), limit, jax.local_device_count())
    chunk = -(-(case.steps + 1) // CHUNKS)
    parts = len(launches) * -(-(case.steps + 1) // chunk)
    size = max(1, (parts - 1) // case.turns)
    singles = Singles(case, (parts - 1) // size, torch)
    others = {"loop": singles.loop} | ({} if torch is None else {"torch": singles.in_torch})
    compile_seconds = {"loop": singles.compile()}
    for run in others.values():
        run(0)  # warm-up
    turns, found = Turns(size, others), None
    with harness.until_stopped(), tempfile.TemporaryDirectory() as folder:
        found = run_sweep(specs, Path(folder), Execution(chunk=chunk), on_report=turns)
    if not turns.taken["sweep"]:
        raise KeyboardInterrupt
    # A part is a chunk of one launch, of which all have as many lanes, the last ones some twice: only new ones count.
    lane_iterations = case.lanes * (case.steps + 1) / parts
    turned = len(turns.taken["sweep"])
    samples = {name: Sample(tuple(values[:turned])) for name, values in turns.taken.items()}
    samples["sweep"] = Sample(tuple(seconds / lane_iterations for seconds in samples["sweep"].values))
    sizes = {"sweep": "part" if found is None else case.lanes, "loop": turned * case.restarts, "torch": turned}
    losses = None
    if found is not None:  # not stopped
        compile_seconds["sweep"] = max(run.block["timing"]["compile_seconds"] for run in found.runs)
        losses = {pair: found.runs[pair[0]].block["images"][pair[1]]["loss"] for pair in singles.losses}
    for name, seconds in samples.items():
        reached = {"sweep": losses, "loop": singles.losses}.get(name)
        report.add(
            {
                "grid": case.name,
                "side": name,
                "attacks run": f"{sizes[name]} of {case.lanes}",
                "s / lane-iteration": seconds.summary(),
                "hours of the grid": seconds.median * case.lanes * (case.steps + 1) / 3600,
                "steps": case.steps,
                "launches": len(launches) if name == "sweep" else case.lanes,
                "compile s": compile_seconds.get(name),
                "mean loss of the sample": None if reached is None else float(np.mean(_numbers(reached))),
                "mean PSNR": _mean_psnr(found) if name == "sweep" and found is not None else None,
            }
        )
    report.ratios[f"{case.name}_sweep_vs_loop"] = samples["loop"].over(samples["sweep"])
    if torch is not None:
        report.ratios[f"{case.name}_sweep_vs_torch"] = samples["torch"].over(samples["sweep"])
    if losses is not None:
        apart = float(np.max(np.abs(_numbers(losses) / _numbers(singles.losses) - 1)))
        report.note(f"{case.name}: the losses of job and loop differ by at most {apart:.1e} of themselves.")
    harness.end_if_stopped()


def _numbers(losses: dict) -> np.ndarray:
    return np.array(list(losses.values()), float)  # NaN where an attack failed


def _mean_psnr(found) -> float:
    """NaN where a picture failed: without it, the others' mean would be too good."""
    return float(np.mean(np.array([image["psnr"] for run in found.runs for image in run.block["images"]], float)))


def measure(report: Report, quick: bool) -> None:
    """All grids."""
    torch = Beside() if harness.has("torch") else None
    if torch is None:
        report.note("PyTorch is not installed, so its loop is left out: pip install 'gi_jax[bench]'.")
    try:
        for case in QUICK if quick else FULL if jax.default_backend() == "cpu" else ACCELERATOR:
            measure_case(report, case, torch)
    finally:
        if torch is not None:
            torch.close()


if __name__ == "__main__":
    harness.main("sweep", __doc__, measure)
