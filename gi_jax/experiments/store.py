"""The store of results: a folder with one JSON line a cell, to which rows are only ever added."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from gi_jax import checks
from gi_jax.words import counted

NAME = "rows.jsonl"
WAIT_SECONDS = 0.2
"""Between two tries to claim what another run holds."""
_START = b'{"cell": "'
_ID = slice(len(_START), len(_START) + 16)


def _is_row(line: bytes) -> bool:
    """Whether this is a row, whose beginning alone would be no JSON."""
    try:
        return line.startswith(_START) and isinstance(json.loads(line), dict)
    except ValueError:
        return False


class Store:
    """Rows by the hash of their cell, in a folder that several runs may share.

    A row is one line, written under a lock in a single write, so that a kill at any moment leaves whole lines and at
    most one torn one at the end, which readers skip and the next writer removes. Where two runs computed the same cell,
    the first row stays. Pictures lie beside the rows, under names that begin with their cell.

    The lines are indexed by cell without being parsed: opening 100,000 rows takes a fraction of a second, and only
    those that are asked for are read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / NAME
        self._lines: dict[str, tuple[int, int]] = {}
        self._end, self._file = 0, None
        self.refresh()

    def refresh(self) -> None:
        """Takes notice of what other runs have added.

        Raises:
          InputError: for a line that is no row.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._end:  # edited by hand
                self._lines, self._end, self._file = {}, 0, status.st_ino
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                if not line.startswith(_START) or not line.endswith(b"}\n"):
                    number = 1 + self.path.read_bytes()[: self._end].count(b"\n")
                    raise checks.InputError(
                        f"{self.path}, line {number} is no row of gi-jax run: remove it, or choose another store"
                    )
                self._lines.setdefault(line[_ID].decode(), (self._end, len(line)))
                self._end += len(line)

    def __contains__(self, cell: str) -> bool:
        return cell in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[dict]:
        """All rows, in the order in which they were added."""
        return self.read(self._lines)

    def of_kind(self, kind: str) -> Iterator[dict]:
        """The rows of a kind, in the order in which they were added; others are not parsed."""
        found = self.read(self._lines, f'"kind": {json.dumps(kind)}'.encode())
        return (row for row in found if row.get("kind") == kind)

    def read(self, cells, holding: bytes = b"") -> Iterator[dict]:
        """The rows of these cells whose line holds a text, in this order; KeyError for one that is missing."""
        if not self._lines:
            return
        with self.path.open("rb") as file:
            for cell in cells:
                start, length = self._lines[cell]
                file.seek(start)
                line = file.read(length)
                if holding not in line:
                    continue
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise self.damaged(cell, error) from error

    def damaged(self, cell: str, reason: object) -> checks.InputError:
        """For whoever finds something else in a row than what it should hold."""
        return checks.InputError(
            f"{self.path}: the row of cell {cell} is damaged ({reason}): remove its line to compute it again"
        )

    def get(self, cell: str) -> dict | None:
        """The row of a cell; None if there is none."""
        return next(self.read([cell])) if cell in self else None

    def append(self, row: dict) -> bool:
        """Adds a row; False if its cell has one already.

        Args:
          row: plain values; its first key is `cell`, sixteen hexadecimal digits.
        """
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        if not line.startswith(_START):
            raise ValueError("the first key of a row is its cell")
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.path) as file:
            self.refresh()
            os.lseek(file, self._end, os.SEEK_SET)
            tail = os.read(file, os.fstat(file).st_size)
            if _is_row(tail) and tail[_ID].decode() not in self:  # an editor left out the end of its line
                os.write(file, b"\n")
                self.refresh()
            os.ftruncate(file, self._end)  # what a killed writer left
            if row["cell"] in self:
                return False
            os.lseek(file, self._end, os.SEEK_SET)
            written = os.write(file, line)
            if written != len(line):
                os.ftruncate(file, self._end)
                raise OSError(f"{self.path}: {written} of {len(line)} bytes could be written; is the disk full?")
            os.fsync(file)
            self.refresh()
        return True

    def save_pictures(self, name: str, images: np.ndarray) -> str:
        """Saves pictures [n, h, w, c] in [0, 1] as one PNG, side by side, and returns its path inside the store."""
        tiles = np.rint(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8)
        strip = np.concatenate(list(tiles), axis=1)
        strip = strip[..., 0] if strip.shape[-1] == 1 else strip
        path = Path("pictures") / f"{name}.png"
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "pictures" / f"{name}.{os.getpid()}.partial"
        Image.fromarray(strip).save(partial, format="PNG")
        os.replace(partial, self.folder / path)
        return str(path)

    def pictures(self, path: str | None, count: int) -> np.ndarray | None:
        """What `save_pictures` saved, uint8 [count, h, w, c]; None without a path, or where the file is missing."""
        if path is None or not (self.folder / path).exists():
            return None
        try:
            with Image.open(self.folder / path) as image:
                strip = np.asarray(image)
        except OSError as error:  # PIL names no file
            raise checks.InputError(f"{self.folder / path} is damaged ({error}): remove it to do without") from error
        strip = strip[..., None] if strip.ndim == 2 else strip
        if strip.shape[1] % count:
            raise checks.InputError(
                f"{self.folder / path} is damaged ({strip.shape[1]} pixels wide for {counted(count, 'picture')}): "
                "remove it to do without"
            )
        return np.stack(np.split(strip, count, axis=1))

    @contextmanager
    def claim(self, name: str, *, wait: bool, should_stop: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Holds a piece of work against other runs on this store; the claim ends with the process, however it ends.

        Args:
          name: of the work.
          wait: for another run that holds it.
          should_stop: asked while it waits.

        Yields:
          Whether it is held; without `wait` False if another run has it.

        Raises:
          KeyboardInterrupt: where it was told to stop.
        """
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a") as file:
            while not (held := _lock_at_once(file)) and wait:
                if should_stop():
                    raise KeyboardInterrupt
                time.sleep(WAIT_SECONDS)
            yield held


def _lock_at_once(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(path: Path):
    """A file descriptor that no other run holds; the lock ends with the process, however it ends."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)
