"""The files below a directory or inside a tar archive, the archive read in a single pass."""

import bisect
import io
import tarfile
import zlib
from collections.abc import Callable, Hashable
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from gi_jax.checks import InputError

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz")

_DAMAGED = (tarfile.TarError, EOFError, OSError, LZMAError, zlib.error)


def read_files(
    path: Path, group: Callable[[str], Hashable | None], limit: int | None = None
) -> tuple[list[str], dict[str, Callable[[], bytes]]]:
    """Lists a directory (recursively) or a tar archive and gives access to the wanted files.

    An xz archive has no random access, so it is read once, front to back, and the wanted members are
    kept in memory. Which members those are depends on names only, not on their order in the archive.

    Args:
        path: directory or tar archive.
        group: names the group a file belongs to; None for a file that is not wanted.
        limit: keep only so many files of each group, the first ones by name; None keeps all.

    Returns:
        The names of all files, relative to `path`, with `/` between their parts; and a function per
        wanted file that returns its bytes.

    Raises:
        InputError: the path is missing, holds no file, is no tar archive, or is damaged.
    """
    if path.is_dir():
        names, wanted = _read_directory(path, group, limit)
    elif path.is_file():
        names, wanted = _read_archive(path, group, limit)
    else:
        raise InputError(f"{path}: no such file or directory; expected a data directory or a tar archive")
    if not names:
        raise InputError(f"{path} is empty; expected a data directory or a tar archive with files in it")
    return names, wanted


def archives_in(path: Path) -> list[Path]:
    """The tar archives that lie directly in `path`, by name; none if `path` is not a directory."""
    if not path.is_dir():
        return []
    return sorted(file for file in path.iterdir() if file.name.lower().endswith(ARCHIVE_SUFFIXES))


class _FirstByName:
    """Keeps the `limit` smallest names of each group, whatever order they are offered in."""

    def __init__(self, group: Callable[[str], Hashable | None], limit: int | None):
        self._group, self._limit = group, limit
        self._kept: dict[Hashable, list[str]] = {}
        self.files: dict[str, Callable[[], bytes]] = {}

    def wants(self, name: str) -> bool:
        key = self._group(name)
        kept = self._kept.get(key, [])
        return key is not None and (self._limit is None or len(kept) < self._limit or name < kept[-1])

    def add(self, name: str, read: Callable[[], bytes]) -> None:
        kept = self._kept.setdefault(self._group(name), [])
        if name not in self.files:
            bisect.insort(kept, name)
        self.files[name] = read
        if self._limit is not None and len(kept) > self._limit:
            del self.files[kept.pop()]


def _read_directory(path, group, limit):
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    first = _FirstByName(group, limit)
    for name in names:
        if first.wants(name):
            first.add(name, (path / name).read_bytes)
    return names, first.files


def _read_archive(path, group, limit):
    names, first = [], _FirstByName(group, limit)
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isreg():
                    name = PurePosixPath(member.name).as_posix()
                    names.append(name)
                    if first.wants(name):
                        first.add(name, io.BytesIO(archive.extractfile(member).read()).getvalue)
            # tarfile takes a cut or a broken header behind the first member for the end of the archive.
            padding = archive.fileobj.read(1 << 20)
            if not padding or any(padding):
                raise tarfile.ReadError("no end-of-archive mark")
    except _DAMAGED as error:
        raise InputError(
            f"{path} is not a complete tar archive ({type(error).__name__} after {len(names)} files); "
            f"expected one of {', '.join(ARCHIVE_SUFFIXES)}: copy or download it again"
        ) from error
    return sorted(names), first.files
