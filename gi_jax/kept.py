"""Programs kept as they were traced, beside JAX's cache of compiled ones, which only a trace finds its way to.

Tracing the derivative of a gradient takes seconds of every new process. A trace is found again by all that it depends
on: the text of this package and the versions of those it uses, the configuration, shapes and types, and the static
parts, closures included. Where a part cannot be described so, such as a function of the user's, whose text may change
from run to run, the program is traced as ever. Who changes this package's tables or functions at run time should turn
JAX's compilation cache off: they count as their text.
"""

import dataclasses
import enum
import hashlib
import importlib.metadata
import os
import pickle
import sys
import tempfile
import types
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import export
from jax.sharding import NamedSharding

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
PACKAGES = ("gi_jax", *LIBRARIES)
"""Whose code is known: by its text, or by a version."""


class jit_kept:
    """`jax.jit` of a program that one process traces for all later ones, if JAX's compilation cache has a folder.

    Arrays on another device than the default one, other than those spread over a mesh, and a part that `describe` does
    not know make it `plain`: that of `jax.jit`.

    Args:
      function: pure, with positional arguments only.
      jit: what compiles: `jax.jit`, or `gi_jax.once.jit_once`.
      static_argnums, donate_argnums: as for `jax.jit`.
    """

    def __init__(
        self,
        function: Callable,
        *,
        jit: Callable = jax.jit,
        static_argnums: tuple[int, ...] = (),
        donate_argnums: tuple[int, ...] = (),
    ):
        self._function, self._jit = function, jit
        self._static, self._donated = static_argnums, donate_argnums
        self._programs: dict[tuple, _Program | None] = {}
        self.plain = jit(function, static_argnums=static_argnums, donate_argnums=donate_argnums)

    def __call__(self, *args):
        program, leaves = self._find(args)
        return self.plain(*args) if program is None else program.rebuild(program.run(*leaves))

    def compile(self, *args) -> jax.stages.Compiled:
        """The program for such arguments, ahead of time: to look at, for it may be one of flat arguments."""
        program, leaves = self._find(args)
        return (self.plain.lower(*args) if program is None else program.run.lower(*leaves)).compile()

    def _find(self, args: tuple) -> "tuple[_Program | None, list]":
        dynamic = [arg for n, arg in enumerate(args) if n not in self._static]
        leaves, structure = jax.tree.flatten(dynamic)
        folder = _folder()
        if folder is None or not all(_is_plain(leaf) for leaf in leaves):
            return None, leaves
        static = tuple(args[n] for n in self._static)
        shapes = tuple((leaf.shape, str(leaf.dtype), _spread(leaf)) for leaf in leaves)
        key = (folder, static, structure, shapes, _configuration())
        if key not in self._programs:
            try:
                parts = [describe(part) for part in (self._function, *key[1:])]
                name = hashlib.sha256(repr((_code(), self._static, parts)).encode()).hexdigest()
                self._programs[key] = self._restore(folder / f"{self._function.__name__}-{name}", args, leaves)
            except (Unknown, ValueError, NotImplementedError, RecursionError, ImportError):  # or JAX cannot export it
                self._programs[key] = None
        return self._programs[key], leaves

    def _restore(self, path: Path, args: tuple, leaves: list) -> "_Program":
        kept = _read(path)
        if kept is None:
            kept = self._trace(args, leaves)
            _write(path, kept)
        serialized, result = kept
        exported = export.deserialize(bytearray(serialized))

        def call(*leaves):
            return exported.call(*leaves)

        call.__name__ = self._function.__name__
        dynamic = [(n, arg) for n, arg in enumerate(args) if n not in self._static]
        donated = [n in self._donated for n, arg in dynamic for _ in jax.tree.leaves(arg)]
        run = self._jit(call, donate_argnums=tuple(np.flatnonzero(donated).tolist()))
        return _Program(run, partial(jax.tree.unflatten, jax.tree.structure(result)))

    def _trace(self, args: tuple, leaves: list) -> tuple[bytes, object]:
        """The program of flat arguments and results, and the nesting of the results, with numbers for leaves."""
        positions = [n for n in range(len(args)) if n not in self._static]
        structure, results = jax.tree.structure([args[n] for n in positions]), []

        def function(*leaves):
            given = dict(zip(positions, jax.tree.unflatten(structure, leaves), strict=True))
            flat, nesting = jax.tree.flatten(self._function(*(given.get(n, arg) for n, arg in enumerate(args))))
            results.append(jax.tree.unflatten(nesting, range(len(flat))))
            return flat

        spread = [leaf.sharding if _spread(leaf) else None for leaf in leaves]
        pairs = zip(leaves, spread, strict=True)
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for leaf, sharding in pairs]
        exported = export.export(jax.jit(function))(*shapes)
        return bytes(exported.serialize()), results[-1]


class _Program(NamedTuple):
    """A traced program of flat arguments, and what nests its results again."""

    run: Callable
    rebuild: Callable


def _folder() -> Path | None:
    folder = jax.config.jax_compilation_cache_dir
    return Path(folder) / "traced" if folder and jax.config.jax_enable_compilation_cache else None


def _is_plain(leaf) -> bool:
    """Whether this is an array on the default device, or spread over several, of a type that was asked for."""
    if isinstance(leaf, np.ndarray):
        return True
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or getattr(leaf, "weak_type", False):
        return False
    one_or_mesh = len(leaf.devices()) == 1 or isinstance(leaf.sharding, NamedSharding)
    return one_or_mesh and {device.platform for device in leaf.devices()} == {jax.default_backend()}


def _spread(leaf) -> tuple[str, str] | None:
    """The mesh and the axes of an array on several devices; None on a single one."""
    if not isinstance(leaf, jax.Array) or len(leaf.devices()) == 1:
        return None
    return str(dict(leaf.sharding.mesh.shape)), str(leaf.sharding.spec)


def _read(path: Path) -> tuple[bytes, object] | None:
    try:
        return pickle.loads(path.read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError, ValueError, AttributeError, ImportError, IndexError):
        return None  # traced again, and written anew


def _write(path: Path, kept: tuple[bytes, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as unfinished:
            unfinished.write(pickle.dumps(kept))
        os.replace(unfinished.name, path)
    except OSError:  # a full disk or a folder of somebody else's: the next process traces again
        pass


@cache
def _code() -> tuple:
    """What the text of a program depends on besides its arguments."""
    text = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        text.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return text.hexdigest(), sys.version, *(importlib.metadata.version(name) for name in LIBRARIES)


def _configuration() -> tuple:
    """JAX's settings as they are in this context, and the backend, which the lowering of a convolution depends on."""
    return jax.default_backend(), *((name, str(getattr(jax.config, name, None))) for name in sorted(jax.config.values))


class Unknown(Exception):
    """Raised for a part whose value or code cannot be described."""


def describe(part):
    """Everything that `part` is, as nested tuples of plain values, the same in all processes.

    Args:
      part: a static argument: plain values, tuples, dictionaries, arrays, enumerations, frozen dataclasses, modules of
        Flax, functions with their closures, the structure of a tree.

    Raises:
      Unknown: for what has code or state of unknown origin, such as a function of the user's.
    """
    kind = type(part)
    if part is None or kind in (str, bytes, bool, int, float, complex):
        return kind.__name__, repr(part)
    if kind in (tuple, list):
        return kind.__name__, *map(describe, part)
    if kind is dict:
        return "dict", *((describe(key), describe(value)) for key, value in part.items())
    if kind is jax.tree_util.PyTreeDef:
        return "tree", describe(part.node_data()), *map(describe, part.children())
    if isinstance(part, np.dtype):
        return "dtype", str(part)
    if isinstance(part, np.ndarray | np.generic | jax.Array) and not isinstance(part, jax.core.Tracer):
        return "array", str(part.dtype), part.shape, np.asarray(part).tobytes()
    if _has_name(part):
        return "name", part.__module__, part.__qualname__
    if kind is partial:
        return "partial", describe(part.func), describe(part.args), describe(part.keywords)
    if kind is types.FunctionType and _is_known(part):
        code, cells = part.__code__, [cell.cell_contents for cell in part.__closure__ or ()]
        constants = [const for const in code.co_consts if type(const) is not types.CodeType]
        text = repr((code.co_firstlineno, code.co_code, constants))
        given = (part.__defaults__, part.__kwdefaults__, cells)
        return "function", part.__module__, part.__qualname__, text, describe(given)
    if _is_known(kind):
        name = describe(kind)
        if isinstance(part, enum.Enum):
            return name, part.name
        if isinstance(part, tuple):
            return name, *map(describe, part)
        if dataclasses.is_dataclass(part):
            return name, *((field.name, describe(getattr(part, field.name))) for field in dataclasses.fields(part))
    raise Unknown


def _is_known(part) -> bool:
    """Whether a function or class is of a package whose code is known."""
    return str(part.__module__).partition(".")[0] in PACKAGES


def _has_name(part) -> bool:
    """Whether this is what its own name in such a package stands for."""
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", None)
    if any(part is builtin for builtin in (tuple, list, dict, type(None))):
        return True
    if module is None or name is None or not _is_known(part):
        return False
    found = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    return found is part
