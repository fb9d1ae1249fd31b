"""Time against lanes, batch size, picture size, depth and devices.

Along an axis all points run in turns, round by round, and a ratio is the time of one launch-step at a point over that
at the point before. Twice the lanes or the batch, once the machine is full, should take twice the time (1.9 to 2.1);
less means that it was not full before. Twice the side of a picture is four times the work. The attack is that of
`attack_step.py`.

On an accelerator ResNet-18 is measured, at points that fill it.

Devices are of a process each, with as many virtual devices as it is told (`--xla_force_host_platform_device_count`):
the same eight lanes on one device and spread over several. On one processor they share its cores, so that a ratio of 1
is perfect; what counts is that it does not grow, and that the results are those of one device. They are to rounding:
a compiler adds up in another order where a device has other lanes, and a step by the sign of a gradient makes 0.2 of a
rounding error next to zero. So the largest difference of the matching losses, relative, stands beside that of pixels
(network's units). Where there are several real devices, they run the same lanes too, each 1/n of them: ideal is 1/n.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from attack_step import Point, Runner, in_loop, launch, launches
from harness import Report, Sample

from gi_jax import attacks
from gi_jax.attacks import loop
from gi_jax.experiments import plan

FLAG = "--xla_force_host_platform_device_count"


class Axis(NamedTuple):
    """Points that differ in one thing.

    Attributes:
      name: of that thing.
      points: in order.
      steps: of a round.
    """

    name: str
    points: tuple[Point, ...]
    steps: int


def lanes(model: str, numbers: tuple[int, ...], steps: int) -> Axis:
    """Batch size 1."""
    return Axis("lanes", tuple(Point(1, number, model=model) for number in numbers), steps)


def batches(model: str, numbers: tuple[int, ...], steps: int) -> Axis:
    """One lane."""
    return Axis("batch", tuple(Point(number, 1, model=model) for number in numbers), steps)


def sides(model: str, numbers: tuple[int, ...], steps: int) -> Axis:
    """Batch size 1, one lane."""
    return Axis("side", tuple(Point(1, 1, model=model, side=number) for number in numbers), steps)


DEPTH = Axis("depth", tuple(Point(1, 4, model=model) for model in ("convnet", "resnet18")), 4)
QUICK = (lanes("convnet", (8, 16), 8), batches("convnet", (8, 16), 8), sides("convnet", (32, 64), 8))
FULL = (
    lanes("convnet", (1, 2, 4, 8, 16, 32), 16),
    lanes("resnet18", (1, 2, 4, 8, 16), 4),
    batches("resnet18", (1, 2, 4, 8, 16, 32), 4),
    sides("resnet18", (32, 64, 128), 4),
    DEPTH,
)
ACCELERATOR = (
    lanes("resnet18", (1, 16, 32, 64, 128), 16),
    batches("resnet18", (1, 16, 32, 64, 128), 16),
    sides("resnet18", (32, 64, 128), 16),
)
"""What fills an accelerator."""


def measure_axis(report: Report, axis: Axis, rounds: int) -> None:
    """Compiles all points, runs those that fit into memory in turns; a row a point, a ratio a step along the axis."""
    starts, runners = launches(axis.points), {}
    steps = jnp.int32(axis.steps)
    built = harness.build_all({point: (loop._advance.plain, *start, steps) for point, start in starts.items()})
    for point, program in built.items():
        free = harness.free_bytes()
        if free is not None and program.bytes > free:
            report.note(f"{point.name}: left out for memory, needs {program.bytes / 1e9:.1f} GB.")
            continue
        own = starts[point]._replace(states=jax.tree.map(jnp.copy, starts[point].states))  # donated
        runners[point] = harness.side(Runner(in_loop(program.program, axis.steps), own), units=axis.steps)
    samples = harness.interleave(runners, rounds)
    for point, seconds in samples.items():
        report.add(
            {
                "axis": axis.name,
                "point": point.name,
                "s / step": seconds.summary(),
                "image-iterations / s": point.images / seconds.median,
                "pixels apart": None,
                "losses apart": None,
                "compile s": built[point].seconds,
                "program GB": built[point].bytes / 1e9,
            }
        )
    report.ratios |= growth(axis, samples)
    harness.end_if_stopped()


def growth(axis: Axis, samples: dict[Point, Sample]) -> dict[str, Sample]:
    """The time at each point over that at the one before it."""
    measured = [point for point in axis.points if point in samples]
    pairs = zip(measured, measured[1:], strict=False)
    return {
        f"{axis.name}_{before.name}_to_{after.name}": samples[after].over(samples[before]) for before, after in pairs
    }


class Share(NamedTuple):
    """What each process with its own number of devices attacks.

    Attributes:
      point: eight lanes.
      steps: of a round.
      rounds: recorded, after one of warm-up.
      spread: lanes lie on all devices of a process, not on the first.
    """

    point: Point
    steps: int
    rounds: int
    spread: bool = True


def on_devices(share: Share, results: Path) -> None:
    """What a process does: attacks on all its devices, saves pictures and losses, prints its seconds a step as JSON."""
    start = launch(share.point)
    problems, states = start.problems, start.states
    if share.spread:
        problems, states = plan.on_all_devices(problems, states)
    states = loop.compile_ahead(start.attack, problems, states)
    progress, taken = attacks.advance(start.attack, problems, states, chunk=share.steps), []
    for _ in range(1 + share.rounds):
        began = time.perf_counter()
        states, _ = next(progress)
        taken.append((time.perf_counter() - began) / share.steps)
    np.savez(results, pictures=states.candidate.images, losses=states.info.parts["matching"])
    print(json.dumps({"devices": jax.local_device_count() if share.spread else 1, "seconds": taken[1:]}))


def start_process(share: Share, devices: int | None, results: Path) -> dict:
    """Runs `on_devices` with so many virtual devices of a CPU; None for the real ones, beside this process's memory.

    Raises:
      RuntimeError: with the last lines of a process that failed.
    """
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(harness.ROOT), *filter(None, sys.path)])}
    if devices is None:
        variables |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    else:
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(FLAG)]
        variables |= {"XLA_FLAGS": " ".join([*flags, f"{FLAG}={devices}"]), "JAX_PLATFORMS": "cpu"}
    code = (
        "from pathlib import Path; from scaling import Point, Share, on_devices; "
        f"on_devices({share!r}, Path({str(results)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-5:]))
    return json.loads(done.stdout.splitlines()[-1])


def measure_devices(report: Report, share: Share, counts: tuple[int, ...] = ()) -> None:
    """A process for each number of virtual devices, one after the other; without any, one real device and all.

    Ratios are over the first.
    """
    first, real = None, not counts
    shares = [share._replace(spread=spread) for spread in (False, True)] if real else [share] * len(counts)
    for number, (one, count) in enumerate(zip(shares, counts or (None, None), strict=True)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "results.npz"
            found, results = start_process(one, count, path), dict(np.load(path))
        seconds = Sample(tuple(found["seconds"]))
        first = first or (seconds, results)
        apart = {
            "pixels apart": float(np.abs(results["pictures"] - first[1]["pictures"]).max()),
            "losses apart": float(np.abs(results["losses"] / first[1]["losses"] - 1).max()),
        }
        name = f"{found['devices']} {'real' if real else 'virtual'}"
        report.add(
            {
                "axis": "devices",
                "point": f"{share.point.name}, {name}",
                "s / step": seconds.summary(),
                "image-iterations / s": share.point.images / seconds.median,
            }
            | apart
        )
        if number:
            ratio = f"devices_{share.point.name}_{name.replace(' ', '_')}"
            report.ratios[f"{ratio}_vs_1"] = seconds.over(first[0])
            report.ratios |= {f"{ratio}_{what.replace(' ', '_')}": Sample((value,)) for what, value in apart.items()}


def measure(report: Report, quick: bool) -> None:
    """All axes, then devices: virtual ones on a CPU, and real ones where there are several."""
    cpu = jax.default_backend() == "cpu"
    for axis in QUICK if quick else FULL if cpu else ACCELERATOR:
        measure_axis(report, axis, rounds=3 if quick else 5)
    share = Share(Point(1, 8, model="convnet"), steps=8, rounds=3 if quick else 5)
    if cpu:
        measure_devices(report, share, (1, 8) if quick else (1, 2, 4, 8))
    if jax.local_device_count() > 1:
        measure_devices(report, share)
    if cpu and not quick:
        measure_devices(report, Share(Point(1, 8, model="resnet18"), steps=4, rounds=5), (1, 8))


if __name__ == "__main__":
    harness.main("scaling", __doc__, measure)
