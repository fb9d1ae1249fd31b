"""How long a large store takes to open, read, filter and report; the commands without their start.

    python benchmarks/store.py --quick
    python benchmarks/store.py STORE --rows 100000 --json result.json

Rows of a real store, or those of table2 at scale smoke, which are computed first, are repeated under other names until
there are enough.
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import time
from pathlib import Path

import harness

from gi_jax import cli
from gi_jax.checks import InputError
from gi_jax.experiments.catalogue import placed
from gi_jax.experiments.environment import environment
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.jobs import jobs, run_jobs
from gi_jax.experiments.store import NAME, Store


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path, help="of gi-jax run, with rows of table2")
    parser.add_argument("--rows", type=int, default=100_000, help="to measure (100,000)")
    parser.add_argument("--quick", action="store_true", help="2,000 rows")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write figures and environment here")
    options = parser.parse_args()
    count = 2000 if options.quick else options.rows
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            small = small_store(options.store, Path(folder) / "small", count)
        except InputError as error:
            parser.exit(2, f"{parser.prog}: error: {error}\n")
        figures = measure(small, Path(folder) / "large", count)
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    if options.json is not None:
        record = {"environment": environment(), "figures": figures, "ratios": {}}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def small_store(given: Path | None, own: Path, count: int) -> Store:
    """The rows that are repeated: those of a real store, or of table2 at scale smoke, computed in `own`.

    Raises:
      InputError: for a store without rows, or with more than are to be measured; and where none can be computed.
    """
    if given is None:
        harness.need_lpips()
        store = Store(own)
        run_jobs(jobs([one.cell for one in placed("table2", "smoke")]), store, Execution())
    else:
        store = Store(given)
        if not len(store):
            raise InputError(f"store {given} has no rows: expected one of gi-jax run; leave it out to compute one")
    if len(store) > count:
        raise InputError(f"--rows {count}: expected {len(store)} or more, as the store has; take more")
    return store


def measure(small: Store, folder: Path, count: int) -> dict[str, float]:
    """Seconds for each thing that is done with `count` rows, those of `small` among them."""
    rows = list(small)
    folder.mkdir()
    shutil.copytree(small.folder / "pictures", folder / "pictures")
    with (folder / NAME).open("w") as file:
        for number in range(count - len(rows)):
            file.write(json.dumps(rows[number % len(rows)] | {"cell": f"{number:016x}"}) + "\n")
        for row in rows:
            file.write(json.dumps(row) + "\n")
    figures = {"rows": count, "megabytes": (folder / NAME).stat().st_size / 1e6}

    def timed(name, work):
        began = time.perf_counter()
        result = work()
        figures[f"{name}, seconds"] = time.perf_counter() - began
        return result

    store = timed("open", lambda: Store(folder))
    assert len(store) == count
    timed("read all", lambda: sum(1 for _ in store))
    for kind in sorted({row["kind"] for row in rows}):
        timed(f"rows --where kind={kind}", lambda kind=kind: command(folder, "rows", "--where", f"kind={kind}"))
    timed("report table2", lambda: command(folder, "report", "table2", "--out", str(folder / "report")))
    timed("append", lambda: store.append(rows[0] | {"cell": "f" * 16}))
    return figures


def command(folder: Path, *words: str) -> None:
    """What `gi-jax` does with a store, without a word."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main([*words, "--store", str(folder)]) == 0


if __name__ == "__main__":
    main()
