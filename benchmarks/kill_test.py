"""Kills a run of experiments at random moments, lets it go on, and compares its store with an undisturbed one.

    python benchmarks/kill_test.py --kills 20
    python benchmarks/kill_test.py table1 alpha_bn --kills 5 --json result.json
    python benchmarks/kill_test.py figure1 --kills 20 --scale small --data-dir cifar10.tar.xz --match '*on cifar10*'

Rows must be equal byte for byte apart from times, none lost, none
twice, and pictures and trained networks equal to the last bit.
"""

import argparse
import json
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gi_jax.experiments.environment import environment
from gi_jax.experiments.store import Store

TIMES = ("timing", "finished")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["alpha_bn", "table2"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was compared, and the environment, here")
    parser.add_argument("--scale", default="smoke", help="of gi-jax run (smoke)")
    for option in ("--data-dir", "--match"):
        parser.add_argument(option, help="of gi-jax run")
    options = parser.parse_args()
    passed = {"--scale": options.scale, "--data-dir": options.data_dir, "--match": options.match}
    arguments = [*options.names, *(word for pair in passed.items() if pair[1] is not None for word in pair)]
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    try:
        run(options, arguments)
    except subprocess.CalledProcessError as error:  # which has said why
        command_line = shlex.join(["gi-jax", *error.cmd[3:]])
        parser.exit(1, f"{parser.prog}: error: ended with {error.returncode}, expected 0; try alone: {command_line}\n")


def run(options, arguments):
    """Kills and compares; writes the JSON file."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        began = time.monotonic()
        subprocess.run(command(arguments, whole), check=True, stdout=subprocess.DEVNULL)
        undisturbed = time.monotonic() - began
        print(f"undisturbed: {undisturbed:.0f} s, {len(Store(whole))} rows")
        kills, ended = [], 0
        while len(kills) < options.kills:
            pause = rng.uniform(0.05, 0.9) * undisturbed
            process = subprocess.Popen(command(arguments, broken), stdout=subprocess.DEVNULL)
            try:
                process.wait(pause)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills.append({"after_seconds": round(pause, 2), "rows": len(Store(broken))})
                print(f"kill {len(kills)} after {pause:.1f} s: {kills[-1]['rows']} rows")
            else:
                ended += 1
                compare(whole, broken)
                print("it ended before the kill: equal; starting anew")
                broken = Path(folder) / f"broken{ended}"
        subprocess.run(command(arguments, broken), check=True, stdout=subprocess.DEVNULL)
        compared = compare(whole, broken)
    print(f"{len(kills)} kills, {ended + 1} stores: {compared} rows equal byte for byte apart from times")
    if options.json is not None:
        named = [Path(one).name if Path(one).exists() else one for one in arguments]
        record = {"environment": environment(), "arguments": named, "seed": options.seed, "kills": kills}
        record |= {"stores_compared": ended + 1, "rows_compared": compared, "undisturbed_seconds": undisturbed}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def command(arguments, store):
    return [sys.executable, "-m", "gi_jax", "run", *arguments, "--out", str(store)]


def compare(whole, broken):
    """The number of rows; AssertionError where two stores differ."""
    first, second = (sorted(map(timeless, Store(folder))) for folder in (whole, broken))
    assert first == second, next(
        ((a, b) for a, b in zip(first, second, strict=False) if a != b), (len(first), len(second))
    )
    lines = [row["cell"] for row in Store(broken)]
    assert len(lines) == len(set(lines)) == len((broken / "rows.jsonl").read_bytes().splitlines())
    for file in [*whole.glob("pictures/*"), *whole.glob("networks/**/weights.msgpack")]:
        assert file.read_bytes() == (broken / file.relative_to(whole)).read_bytes(), file.name
    timings = {row["cell"]: sorted(row["timing"]) for row in Store(whole)}
    assert timings == {row["cell"]: sorted(row["timing"]) for row in Store(broken)}
    left = [*broken.glob("unfinished/*"), *broken.glob("pictures/*.partial")]
    assert not left, left
    return len(lines)


def timeless(row):
    return json.dumps({key: value for key, value in row.items() if key not in TIMES})


if __name__ == "__main__":
    main()
