"""Seconds from an attack's arguments to its compiled loop: cold, from the caches, and without the kept traces.

    python benchmarks/compilation.py --quick
    python benchmarks/compilation.py --json result.json

Every measurement is of a process of its own: tracing, lowering and compiling of the loop of `attack_step`, which a
Python program pays before the first step. `cold` finds empty caches. `cached` finds the compiled program and the trace
(`gi_jax.kept`); `compiled` finds the compiled program alone, as any JAX program with a compilation cache does, and has
to trace anew to know which it needs. Not in it: imports, the client's step, the start of the lanes.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import jax
from attack_step import Point, launch
from harness import Report, Sample

from gi_jax.attacks import loop

QUICK = (Point(1, 2, model="convnet"),)
FULL = (Point(1, 16), Point(16, 1))


def seconds_of(point: Point) -> float:
    """Seconds until the loop of `point` is compiled, in this process."""
    start = jax.block_until_ready(launch(point))
    begin = time.perf_counter()
    jax.block_until_ready(loop.compile_ahead(*start))
    return time.perf_counter() - begin


def in_a_process(point: Point, folder: Path) -> float:
    """The same in a process of its own, whose compilation cache is `folder`."""
    code = (
        "import sys, jax, compilation, attack_step\n"
        f"jax.config.update('jax_compilation_cache_dir', {str(folder)!r})\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)\n"
        f"print(compilation.seconds_of(attack_step.{point!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(report: Report, quick: bool) -> None:
    """All points, in rounds that each begin with empty caches."""
    points, rounds = (QUICK, 1) if quick else (FULL, 3)
    for point in points:
        found = {"cold": [], "cached": [], "compiled": []}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                found["cold"].append(in_a_process(point, folder))
                found["cached"].append(in_a_process(point, folder))
                shutil.rmtree(folder / "traced", ignore_errors=True)  # none where keeping is off
                found["compiled"].append(in_a_process(point, folder))
        samples = {side: Sample(tuple(values)) for side, values in found.items()}
        for side, sample in samples.items():
            report.add({"point": point.name, "caches": side, "s": sample.summary(2)})
        report.ratios[f"{point.name}_cold_over_cached"] = samples["cold"].over(samples["cached"])
        report.ratios[f"{point.name}_compiled_over_cached"] = samples["compiled"].over(samples["cached"])


if __name__ == "__main__":
    harness.main("compilation", __doc__, measure)
