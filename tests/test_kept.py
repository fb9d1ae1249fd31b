"""Programs that one process traces for all later ones: the same bits, and found by all that they depend on."""

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import toy_problem, toy_victim

from gi_jax import attacks, kept, models
from gi_jax.kept import jit_kept
from gi_jax.threat import THREATS, Batch

TRACED = []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A compilation cache, and functions of this file that count as known."""
    monkeypatch.setattr(kept, "PACKAGES", (*kept.PACKAGES, __name__))
    TRACED.clear()
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / "traced"
    jax.config.update("jax_compilation_cache_dir", before)


def scaled(factor, batch, offset):
    TRACED.append(factor)
    return {"images": batch.images * factor + offset, "labels": (batch.labels,)}


def arguments():
    return 3, Batch(jnp.arange(6.0).reshape(2, 3), jnp.ones(2)), jnp.float32(1)


def fresh(function=scaled, **options):
    """A program as a new process has it."""
    return jit_kept(function, **{"static_argnums": (0,), **options})


def test_a_second_process_traces_nothing_and_gives_the_same_bits(folder):
    first, again = fresh(), fresh()
    expected = jax.jit(scaled, static_argnums=0)(*arguments())
    TRACED.clear()
    for program in (first, again, again):
        found = program(*arguments())
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert TRACED == [3] and len(list(folder.iterdir())) == 1
    assert again.compile(*arguments()).memory_analysis().output_size_in_bytes >= 8 * 4 and TRACED == [3]


def test_donated_arguments_are_given_away(folder):
    for _ in range(2):
        program, (factor, batch, offset) = fresh(donate_argnums=(1,)), arguments()
        program(factor, batch, offset)
        assert batch.images.is_deleted() and not offset.is_deleted()


def test_other_shapes_types_numbers_and_settings_are_other_programs(folder):
    factor, batch, offset = arguments()
    wide = batch._replace(images=jnp.ones((2, 4)))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), batch)
    for args in ((factor, batch, offset), (4, batch, offset), (factor, wide, offset), (factor, half, offset)):
        fresh()(*args)
    with jax.default_matmul_precision("highest"):
        fresh()(factor, batch, offset)
    assert TRACED == [3, 4, 3, 3, 3] and len(list(folder.iterdir())) == 5


def test_other_code_is_another_program(folder, monkeypatch):
    fresh()(*arguments())
    monkeypatch.setattr(kept, "_code", lambda: ("edited",))
    fresh()(*arguments())
    assert TRACED == [3, 3]


@pytest.mark.parametrize("content", [b"", b"not a program", None])
def test_a_broken_file_is_written_anew(folder, content):
    fresh()(*arguments())
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    fresh()(*arguments())
    fresh()(*arguments())
    assert TRACED == [3, 3] and list(folder.iterdir()) == [path]


def test_what_is_not_known_is_traced_as_ever(folder):
    factor, batch, offset = arguments()
    ours = lambda batch, offset: scaled(factor, batch, offset)  # noqa: E731
    ours.__module__ = "notebook"
    program = jit_kept(ours)
    program(batch, offset)
    assert float(jax.grad(lambda x: program(batch, x)["images"].sum())(offset)) == 6  # inside another program
    fresh()(factor, batch, 1)  # a Python number has no type of its own
    assert TRACED == [3, 3] and not folder.exists()


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path, folder):
    folder.write_text("a file where the folder should be")
    fresh()(*arguments())
    assert TRACED == [3]


@dataclass(frozen=True)
class Setting:
    rate: float = 0.1


def closure(number):
    return lambda x: x + number


KNOWN = {
    "number": (1, 1.0),
    "text": ("a", b"a"),
    "nested": ((1, (2,)), ((1, 2),)),
    "array": (np.ones(2), np.zeros(2)),
    "dtype": (np.dtype("float32"), np.dtype("float64")),
    "class": (Setting, Batch),
    "dataclass": (Setting(), Setting(rate=0.2)),
    "function": (closure, scaled),
    "closure": (closure(1), closure(2)),
    "partial": (partial(scaled, 1), partial(scaled, 2)),
    "tree": (jax.tree.structure({"a": Setting()}), jax.tree.structure({"b": Setting()})),
    "enumeration": (models.Normalize.BATCH, models.Normalize.GIVEN),
    "network": (models.create("convnet", 10), models.create("convnet", 11)),
    "optimizer": (optax.adam(0.1), optax.adam(0.2)),
    "attack": (
        jax.tree.structure(attacks.create("modern")),
        jax.tree.structure(attacks.create("inverting_gradients")),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_differs_is_described_differently(name, monkeypatch):
    monkeypatch.setattr(kept, "PACKAGES", (*kept.PACKAGES, __name__))
    one, other = map(kept.describe, KNOWN[name])
    assert one == kept.describe(KNOWN[name][0]) and one != other
    assert " at 0x" not in repr((one, other))  # the same in all processes


class Mine:
    pass


USERS = [Mine(), Mine, closure, closure(1), Setting(), partial(closure), object(), (1, Mine())]


@pytest.mark.parametrize("part", USERS)
def test_code_of_the_users_is_not_described(part):
    with pytest.raises(kept.Unknown):
        kept.describe(part)


def test_every_attack_is_described():
    for name in attacks.ATTACKS:
        kept.describe(jax.tree.structure(attacks.create(name)))


def test_an_attack_from_kept_programs_is_the_same_to_the_bit(folder, monkeypatch):
    victim = toy_victim(models.create("convnet", 4), n=1, side=16)
    problem = toy_problem(victim, THREATS["exact"])

    def images():
        return attacks.reconstruct(attacks.create("modern", num_steps=3), problem, jax.random.key(0)).images

    jax.config.update("jax_enable_compilation_cache", False)
    try:
        expected = images()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not folder.exists()
    for program in ("_init", "_advance"):
        monkeypatch.setattr(attacks.loop, program, jit_kept(getattr(attacks.loop, program)._function))
    np.testing.assert_array_equal(images(), expected)
    assert {path.name.partition("-")[0] for path in folder.iterdir()} == {"_init", "_advance"}
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for program in ("_init", "_advance"):
        monkeypatch.setattr(attacks.loop, program, jit_kept(getattr(attacks.loop, program)._function))
    np.testing.assert_array_equal(images(), expected)
    assert written == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_fields_of_a_dataclass_are_all_described(monkeypatch):
    monkeypatch.setattr(kept, "PACKAGES", (*kept.PACKAGES, __name__))
    assert kept.describe(dataclasses.replace(Setting(), rate=0.3))[1:] == (("rate", ("float", "0.3")),)
