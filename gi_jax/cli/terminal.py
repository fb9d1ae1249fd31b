"""What the commands share: the parser's errors, the progress bar, and results that are there already."""

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gi_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; an epilog may be a function, which is called when help is asked for."""

    def format_help(self) -> str:
        if callable(self.epilog):
            self.epilog = self.epilog()
        return super().format_help()

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def stdout():
    """A console on standard output; where that is no terminal, 120 characters wide, or as COLUMNS says."""
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else 120, markup=False, highlight=False)  # paths and names are no markup


@contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder `out`, made and held against other runs; not left behind if nothing was written.

    Raises:
      InputError: if another run works there.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out}: another gi-jax works there; wait for it, or choose another --out") from error
        except OSError:  # a file system that locks no folders
            pass
        try:
            yield
        finally:
            if made:
                with suppress(OSError):  # it is not empty, or gone
                    out.rmdir()
    finally:
        os.close(folder)


@contextmanager
def refusing_after(check: Callable[[], object]) -> Iterator[None]:
    """What is refused because of an earlier run is refused for a fault of its own first, if `check` finds one."""
    try:
        yield
    except InputError:
        with suppress(RuntimeError, MemoryError):  # too little memory for the check is no fault
            check()
        raise


def finished(out: Path, wanted: str, settings: dict | None = None, *, resume: bool, overwrite: bool) -> dict | None:
    """The result that lies in `out`, if it is complete and has this fingerprint, unless it is to be made anew.

    Says so where there is nothing to resume.

    Args:
      out: a folder.
      wanted: the fingerprint.
      settings: what it is of, by name; those that differ are named where the result holds its own.
    """
    from gi_jax.experiments import checkpoint

    path, unfinished = out / "result.json", out / checkpoint.NAME
    found = _result_at(path)
    if not overwrite:
        if found is not None and found["fingerprint"] != wanted:
            differing = _differing(found.get("settings"), settings)
            raise InputError(
                f"{path} holds results of other settings{differing}: choose another --out, or add --overwrite"
            )
        if unfinished.exists():
            checkpoint.load(out, wanted)
            if not resume:
                raise InputError(
                    f"{unfinished} is an unfinished attack: add --resume to go on, or --overwrite to start anew"
                )
    complete = found is not None and found["complete"] and not overwrite
    if resume and not complete and not unfinished.exists():
        print(f"nothing to resume in {out}: starting anew")
    return found if complete else None


def _result_at(path: Path) -> dict | None:
    """A result of gi-jax; None if there is none."""
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        _ = result["fingerprint"], result["complete"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a result of gi-jax ({error}): choose another --out") from error
    return result


def _differing(there: dict | None, wanted: dict | None) -> str:
    """` (steps 3000, not 200)`: what differs, the first three."""
    if not there or not wanted:
        return ""
    plain = json.loads(json.dumps(wanted))
    differing = [f"{name} {there.get(name)}, not {value}" for name, value in plain.items() if there.get(name) != value]
    return f" ({'; '.join(differing[:3])}{'; ...' * (len(differing) > 3)})" if differing else ""


def check_absent(path: Path, *, overwrite: bool) -> None:
    """Refuses to replace a file that nobody asked to replace."""
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already: choose another --out, or add --overwrite")


def check_trained(
    record: Path, others: Iterable[Path], parts: Iterable[Path] = (), *, resume: bool, overwrite: bool
) -> None:
    """Refuses to replace what a training left that nobody asked to replace.

    Says so where there is nothing to resume.

    Args:
      record: of the training, in its folder.
      others: what it writes besides, there or not.
      parts: records of those of its parts that have ended, as of seeds.
    """
    from gi_jax.experiments import train_checkpoint

    unfinished, parts = record.parent / train_checkpoint.NAME, list(parts)
    if resume and not (unfinished.exists() or parts or _has_ended(record)):
        print(f"nothing to resume in {record.parent}: starting anew")
    if overwrite or resume and (unfinished.exists() or parts or record.exists()):
        return
    if unfinished.exists():
        raise InputError(f"{unfinished} is an unfinished training: add --resume to go on, or --overwrite to start anew")
    for file in (record, *others):
        check_absent(file, overwrite=False)


def _has_ended(record: Path) -> bool:
    try:
        result = json.loads(record.read_text(encoding="utf-8"))
        return bool(result["complete"] or result.get("reason"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # what reads it says what is wrong
        return False


def set_up_compilation() -> None:
    """Keeps compiled programs on disk, makes them quickly, and has each core be a device; before all that computes."""
    from gi_jax.experiments import environment

    environment.compile_quickly()
    environment.take_cores_for_devices()
    environment.use_compilation_cache()


class Stopwatch:
    """Time since it was made, for lines of text."""

    def __init__(self):
        self.began = time.monotonic()

    def words(self) -> str:
        """Such as `1:05`."""
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        return f"{minutes}:{seconds:02d}"


class progress_bar:
    """A bar with loss, rate (of what reports count) and time left on a terminal; silent elsewhere."""

    def __init__(self, unit: str = "image-it/s"):
        self.unit = unit

    def __enter__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% loss {task.fields[loss]:.4f} {task.fields[rate]:.0f} " + self.unit),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self.bar.start()
        self.task = self.bar.add_task("compiling", total=None, loss=float("nan"), rate=0.0)
        return self.report

    def report(self, report) -> None:
        if getattr(report, "note", ""):  # other reports than those of attacks have none
            self.say(report.note)
        task = self.bar.tasks[0]
        self.bar.update(
            self.task,
            description=report.title,
            total=report.total,
            completed=report.done,
            loss=report.loss,
            rate=task.speed or 0.0,
        )

    def say(self, line: str) -> None:
        """Prints a line on standard output, or above the bar where there is one."""
        console = self.bar.console if sys.stderr.isatty() else stdout()
        console.print(line, highlight=False, markup=False)

    def __exit__(self, *exception) -> None:
        self.bar.stop()


def _heeded() -> list[int]:
    """Of the two signals that ask to stop those that are not ignored, and whose handlers Python can put back."""
    left = (signal.SIG_IGN, None)
    return [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) not in left]


class Stop:
    """Ctrl-C or a termination request as `KeyboardInterrupt`, which `check` raises again where it got lost.

    Python drops what is raised in a callback of its garbage collector, and JAX has one.
    """

    def __enter__(self):
        self.requested = False
        self.before = {number: signal.signal(number, self._raise) for number in _heeded()}
        return self

    def _raise(self, number, frame):
        self.requested = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """To be called between steps."""
        if self.requested:
            raise KeyboardInterrupt

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Interrupt:
    """Turns the first Ctrl-C or termination request into a question that a training asks between its steps.

    An exception could come while a step holds the only copy of the weights. The second one is an exception.
    """

    def __enter__(self):
        self.happened = False
        self.before = {number: signal.signal(number, self._note) for number in _heeded()}
        return self

    def _note(self, number, frame) -> None:
        self.happened = True
        for number in self.before:
            signal.signal(number, signal.default_int_handler)

    def requested(self) -> bool:
        """Whether there was one."""
        return self.happened

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
