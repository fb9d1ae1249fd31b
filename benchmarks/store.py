"""How long a large store takes to open, list, filter and report.

    python benchmarks/store.py --quick
    python benchmarks/store.py STORE --rows 100000 --json result.json

Rows of a real store, or of a small one made here, are repeated under other names until there are enough.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from gi_jax.experiments.catalogue import EXPERIMENTS
from gi_jax.experiments.environment import environment
from gi_jax.experiments.jobs import jobs, run_jobs
from gi_jax.experiments.spec import Execution
from gi_jax.experiments.store import NAME, Store
from gi_jax.reports import html
from gi_jax.reports.experiments import report
from gi_jax.reports.experiments.gather import gather


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path, help="of gi-jax run, with rows of table3")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="2,000 rows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = 2000 if options.quick else options.rows
    with tempfile.TemporaryDirectory() as folder:
        small = Store(options.store or Path(folder) / "small")
        if options.store is None:
            from gi_jax.experiments.catalogue import placed

            run_jobs(jobs([one.cell for one in placed("table3", "smoke")]), small, Execution())
        figures = measure(small, Path(folder) / "large", count)
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    if options.json is not None:
        record = {"environment": environment(), "figures": figures, "ratios": {}}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def measure(small: Store, folder: Path, count: int) -> dict[str, float]:
    """Seconds for each thing that is done with `count` rows, those of `small` among them."""
    rows = list(small)
    folder.mkdir()
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
    timed("filter", lambda: sum(row["kind"] == "attack" for row in store))
    name = "table3"
    found = gather(name, "smoke", store)
    timed(
        "gather and report",
        lambda: html.render(report(name, EXPERIMENTS[name].title, "", gather(name, "smoke", store), "smoke")),
    )
    assert found
    timed("append", lambda: store.append(rows[0] | {"cell": "f" * 16}))
    return figures


if __name__ == "__main__":
    main()
