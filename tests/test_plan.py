"""How attacks are put on a device: sweeps as lanes, launches, memory, several devices."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gi_jax import attacks
from gi_jax.checks import InputError
from gi_jax.experiments import plan
from gi_jax.experiments.attack import run_attack, run_sweep
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.session import Session
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import make_victims

SMALL = AttackSpec(steps=5, num_batches=3, model="lenet", tv=0.01, image_size=16)


@pytest.mark.parametrize(
    ("updates", "points", "limit", "devices", "shapes"),
    [
        (6, 1, 8, 1, [(6, 1)]),
        (6, 1, 4, 1, [(3, 1), (3, 1)]),
        (7, 1, 4, 1, [(4, 1), (4, 1)]),
        (2, 3, 8, 1, [(2, 3)]),
        (4, 3, 6, 1, [(2, 3), (2, 3)]),
        (2, 5, 4, 1, [(1, 3), (1, 3), (1, 3), (1, 3)]),
        (3, 2, 1, 1, [(1, 1)] * 6),
        (50, 1, 99, 8, [(56, 1)]),
        (50, 1, 50, 8, [(50, 1)]),  # five devices get ten each; twice 48 would be twelve
        (6, 1, 8, 8, [(6, 1)]),  # six devices get one each: nobody is faster for two lanes more
        (6, 1, 7, 8, [(6, 1)]),
        (7, 1, 8, 2, [(8, 1)]),
        (10, 1, 99, 8, [(10, 1)]),  # five get two each
        (9, 1, 99, 4, [(9, 1)]),
        (11, 1, 99, 4, [(12, 1)]),
        (11, 1, 11, 4, [(8, 1), (8, 1)]),
        (6, 4, 99, 2, [(6, 4)]),
        (5, 3, 9, 4, [(3, 3)] * 2),
        (50, 35, 256, 8, [(8, 18)] * 14),  # 35 points would leave room for 7 updates, and a device would be idle
        (5, 3, 3, 4, [(1, 3)] * 5),
        (1, 35, 256, 8, [(1, 35)]),
    ],
)
def test_launches_have_one_shape_and_cover_every_pair_once(updates, points, limit, devices, shapes):
    found = plan.launches(updates, points, limit, devices)
    assert [(len(launch.updates), len(launch.points)) for launch in found] == shapes
    pairs = [(u, p) for launch in found for u in launch.updates[: launch.count] for p in set(launch.points)]
    assert sorted(pairs) == sorted((u, p) for u in range(updates) for p in range(points))


def test_specifications_that_differ_in_numbers_only_are_grouped():
    specs = [
        SMALL,
        dataclasses.replace(SMALL, tv=0.1),
        dataclasses.replace(SMALL, steps=6),
        dataclasses.replace(SMALL, tv=0.0, learning_rate=0.5),
        dataclasses.replace(SMALL, seed=1),
    ]
    assert plan.groups(specs) == [(0, 1, 3), (2,), (4,)]


def test_an_attack_is_resumed_where_the_memory_is_known(tmp_path):
    spec, limited, looks = dataclasses.replace(SMALL, model="mlp"), Execution(chunk=2, memory_bytes=10**12), []

    def on_report(report):
        looks.append(report)
        if len(looks) == 2:
            raise KeyboardInterrupt

    assert not run_attack(spec, tmp_path, limited, on_report=on_report).result["complete"]
    resumed = run_attack(spec, tmp_path, limited, resume=True).result
    assert resumed["complete"] and resumed["runs"][0]["steps"] == SMALL.steps


def test_points_that_come_out_equal_are_lanes_all_the_same(tmp_path):
    specs = [dataclasses.replace(SMALL, attack="modern", num_batches=1, tv=weight) for weight in (None, 1e-3)]
    assert jax.tree.leaves(plan.make_attack(specs[0])) == jax.tree.leaves(plan.make_attack(specs[1]))
    first, second = run_sweep(specs, tmp_path).runs
    np.testing.assert_array_equal(first.images, second.images)


def test_weights_that_add_a_part_to_the_objective_are_apart():
    batch = AttackSpec(client_bn="batch", attack="gradient_inversion_evaluation")
    specs = [dataclasses.replace(batch, bn_prior=weight) for weight in (0.0, 1e-3, 1e-2)]
    assert plan.groups(specs) == [(0,), (1, 2)]


def test_a_sweep_gives_what_single_runs_give(tmp_path):
    specs = [dataclasses.replace(SMALL, tv=weight, learning_rate=rate) for weight, rate in ((0.01, 1.0), (0.3, 0.1))]
    swept = run_sweep(specs, tmp_path)
    for spec, run in zip(specs, swept.runs, strict=True):
        folder = tmp_path / str(spec.tv)
        folder.mkdir()
        alone = run_attack(spec, folder).reconstructions[0]
        np.testing.assert_allclose(run.images, alone, atol=2e-3)
        assert run.block["spec"]["tv"] == spec.tv
    assert np.abs(swept.runs[0].images - swept.runs[1].images).max() > 0.01
    # Launches of other sizes change nothing but rounding.
    narrow = run_sweep(specs, tmp_path, Execution(lanes=2))
    for one, other in zip(swept.runs, narrow.runs, strict=True):
        np.testing.assert_allclose(one.images, other.images, atol=2e-3)


def test_out_of_memory_halves_the_launches(tmp_path, monkeypatch):
    whole = run_attack(SMALL, tmp_path)
    advance, sizes = attacks.advance, []

    def too_small(attack, problems, states, **options):
        sizes.append(states.best_loss.size)
        if sizes[-1] > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.")
        return advance(attack, problems, states, **options)

    monkeypatch.setattr(attacks, "advance", too_small)
    halved = run_attack(SMALL, tmp_path, Execution(lanes=3))
    assert sizes == [3, 1, 1, 1]
    np.testing.assert_allclose(whole.reconstructions[0], halved.reconstructions[0], atol=2e-3)


def test_numpy_says_in_words_of_its_own_that_memory_is_too_small():
    with pytest.raises(MemoryError) as caught:
        np.empty(2**56)
    assert plan.is_out_of_memory(caught.value) and not plan.is_out_of_memory(ValueError("slope"))


def test_programs_are_made_to_fit_a_stated_memory(tmp_path, monkeypatch):
    sizes, program_bytes = [], attacks.program_bytes

    def noted(*arguments):
        sizes.append(program_bytes(*arguments))
        return sizes[-1]

    monkeypatch.setattr(attacks, "program_bytes", noted)
    run_attack(SMALL, tmp_path, Execution(lanes=3, memory_bytes=2**40))
    (three,) = sizes
    assert three > 3 * 16 * 16 * 3 * 4
    run_attack(SMALL, tmp_path, Execution(lanes=3, memory_bytes=three - 1))
    assert sizes[1] == three and max(sizes[2:]) < three
    with pytest.raises(InputError, match="out of memory with 1 lanes"):
        run_attack(SMALL, tmp_path, Execution(memory_bytes=1000))


def test_other_errors_of_the_runtime_are_not_hidden(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("INTERNAL: broken")

    monkeypatch.setattr(attacks, "advance", broken)
    with pytest.raises(RuntimeError, match="broken"):
        run_attack(SMALL, tmp_path)


ON_EIGHT = """
import sys
import jax, numpy as np
from pathlib import Path
from gi_jax.experiments import plan
from gi_jax.experiments.attack import run_attack
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.spec import AttackSpec
assert len(jax.devices()) == 8
spread, on_all_devices = [], plan.on_all_devices
import gi_jax.experiments.session as module
def noted(problems, states):
    problems, states = on_all_devices(problems, states)
    spread.append(len(states.best_loss.sharding.device_set))
    return problems, states
module.on_all_devices = noted
common = dict(steps=5, model="mlp", image_size=16, tv=0.01)
cases = dict(updates=dict(num_batches=10), encoded=dict(num_batches=2, batch_size=2, defenses=("mixup:k=2",)))
for name, case in cases.items():
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    outcome = run_attack(AttackSpec(**common, **case), folder, Execution(lanes=20))
    np.save(folder.with_suffix(".npy"), outcome.reconstructions[0])
assert spread == [5, 2], spread  # of ten updates two each
assert list(Path(sys.argv[2]).glob("traced/_advance-*"))  # for other processes
"""


def test_eight_devices_give_what_one_gives(tmp_path):
    cache, script = tmp_path / "cache", [sys.executable, "-c", ON_EIGHT, str(tmp_path), str(tmp_path / "cache")]
    variables = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    subprocess.run(script, check=True, env=os.environ | variables, cwd=Path(__file__).parent.parent)
    assert len(jax.devices()) == 1
    for name, changes in (
        ("updates", dict(num_batches=10)),
        ("encoded", dict(num_batches=2, batch_size=2, defenses=("mixup:k=2",))),
    ):
        folder = tmp_path / f"one-{name}"
        folder.mkdir()
        one = run_attack(dataclasses.replace(SMALL, model="mlp", **changes), folder, Execution(lanes=10))
        np.testing.assert_allclose(one.reconstructions[0], np.load(tmp_path / f"{name}.npy"), atol=2e-3)


def test_a_launch_that_is_too_large_shrinks_from_its_own_size(tmp_path):
    session = Session({"0": [SMALL]}, "f", Execution(lanes=2048), tmp_path, make_victims(SMALL), None)
    (launch,) = session.launches("0")
    session.shrink("0", RuntimeError("RESOURCE_EXHAUSTED"))
    assert session.limits["0"] == len(launch.updates) // 2
