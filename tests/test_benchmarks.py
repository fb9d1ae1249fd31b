"""The arithmetic and the files of the benchmarks; no timing, no big network."""

import importlib
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import toy_problem, toy_victim

from gi_jax import attacks, models
from gi_jax.threat import RUNNING, stack

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("harness")


@pytest.fixture
def attack_step(harness):
    return importlib.import_module("attack_step")


def test_quotients_are_taken_round_by_round(harness):
    slow, fast = harness.Sample((2.0, 20.0, 8.0)), harness.Sample((1.0, 10.0, 2.0))
    assert slow.over(fast).values == (2.0, 2.0, 4.0)
    assert slow.over(fast).median == 2.0  # the quotient of the medians would be 4
    assert slow.over(fast).summary() == {"median": 2.0, "min": 2.0, "max": 4.0, "n": 3}


def test_rounds_take_turns_and_warm_up_is_not_recorded(harness):
    order = []

    def side(name):
        def run():
            order.append(name)
            return float(len(order))

        return run

    samples = harness.interleave({"a": side("a"), "b": side("b")}, rounds=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert samples["a"].values == (3.0, 5.0)
    assert samples["b"].values == (4.0, 6.0)


def test_a_program_says_what_memory_it_needs(harness):
    built = harness.build(jax.jit(lambda x: x @ x + 1), jnp.ones((64, 64)))
    assert built.bytes >= 64 * 64 * 4
    assert built.seconds > 0


@pytest.fixture
def report(harness):
    report = harness.Report()
    report.ratios["b1x8_vs_torch"] = harness.Sample((2.0, 3.0, 2.5))
    report.figures.append({"point": "b1x8", "s": harness.Sample((0.1, 0.2)).summary(), "compile s": None})
    report.notes.append("b16x16 left out for memory.")
    return report


def test_json_has_ratios_figures_and_environment(report):
    plain = json.loads(json.dumps(report.as_json()))
    assert plain["ratios"] == {"b1x8_vs_torch": 2.5}
    assert plain["spreads"]["b1x8_vs_torch"] == {"median": 2.5, "min": 2.0, "max": 3.0, "n": 3}
    assert plain["figures"][0]["point"] == "b1x8"
    assert {"jax", "jaxlib", "flax", "optax", "torch", "cores", "processor", "commit"} <= plain["environment"].keys()


def test_a_record_is_json_and_a_page_to_read(report, tmp_path):
    folder = report.write_record("attack_step", "About.", records=tmp_path)
    assert "_attack_step_" in folder.name
    assert json.loads((folder / "record.json").read_text()) == report.as_json()
    page = (folder / "README.md").read_text()
    assert "| b1x8_vs_torch | 2.50 (2.00..3.00) | 3 |" in page
    assert "| b1x8 | 0.15 (0.1..0.2) | - |" in page
    assert "b16x16 left out" in page


@pytest.mark.parametrize(("points", "goals"), [("QUICK", "QUICK_GOALS"), ("FULL", "GOALS")])
def test_every_goal_is_a_ratio_that_a_run_measures(harness, attack_step, points, goals):
    samples = {name: harness.Sample((1.0, 2.0)) for name in ("matmul", "torch", "loop", "step")}
    ratios = {}
    for point in getattr(attack_step, points):
        sides = samples if point.step else {name: samples[name] for name in ("matmul", "torch", "loop")}
        attack_step._add_ratios(ratios, point, sides)
    assert set(getattr(attack_step, goals).values()) <= ratios.keys()


def test_every_defense_has_a_row_of_overhead_and_runs_on_every_network(harness):
    overhead = importlib.import_module("defense_overhead")
    stages = [overhead.defenses.parse(row).stages for row in overhead.ROWS]
    assert {name for row in stages for name, _ in row} == set(overhead.defenses.DEFENSES) and () in stages
    for point in (*overhead.QUICK, *overhead.FULL):
        network, shape = overhead.models.create(point.model, 10), (point.side, point.side, 3)
        _, batch_stats = jax.eval_shape(partial(network.init, image_shape=shape), jax.random.key(0))
        assert batch_stats == {}


def test_overhead_is_that_of_the_same_round(harness, monkeypatch):
    overhead = importlib.import_module("defense_overhead")
    monkeypatch.setattr(overhead, "ROWS", ("none", "clip:norm=1"))
    monkeypatch.setattr(overhead, "client_of", lambda point: tiny_client(overhead))
    times = {"none": (1.0, 4.0, 2.0), "clip:norm=1": (2.0, 5.0, 4.0)}
    monkeypatch.setattr(
        harness, "interleave", lambda sides, rounds: {name: harness.Sample(times[name]) for name in sides}
    )
    report = harness.Report()
    overhead.measure_point(report, overhead.Point("tiny", 4, 2, 3), rounds=3)
    assert report.ratios["tiny_4_b2_clip:norm=1"].values == (2.0, 1.25, 2.0)
    assert report.figures[1]["share of the step"]["median"] == 0.5
    assert report.figures[0]["over none"]["median"] == 1


def tiny_client(overhead):
    network = overhead.models.FunctionNetwork(lambda params, batch_stats, images: images.reshape(2, -1) @ params["w"])
    batch = overhead.threat.Batch(jnp.ones((2, 4, 4, 3)), jnp.eye(2))
    return overhead.threat.ClientStep(network, overhead.models.Normalize.GIVEN, {"w": jnp.ones((48, 2))}, {}, batch)


def test_without_torch_one_line_says_so(harness, attack_step, monkeypatch):
    monkeypatch.setattr(harness, "has", lambda package: False)
    monkeypatch.setattr(attack_step, "measure_point", lambda *_, **__: {})
    report = harness.Report()
    attack_step.measure(report, quick=True)
    assert len(report.notes) == 1
    assert "pip install" in report.notes[0]


@pytest.mark.parametrize("name", ["resnet18", "convnet"])
def test_torch_computes_the_same_network(harness, name):
    torch = pytest.importorskip("torch")
    torch_loop, beside = importlib.import_module("torch_loop"), importlib.import_module("beside")
    network = models.create(name, 10, lowering="lax")
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: network.init(key, (32, 32, 3)), jax.random.key(0))
    params, batch_stats = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.1).astype("f4"), shapes)
    images = rng.normal(size=(2, 32, 32, 3)).astype("f4")
    with jax.disable_jit():
        ours, _ = network(params, batch_stats, images, models.Normalize.BATCH)
    named = {name: torch_loop._tensor(array) for name, array in beside.named(params).items()}
    norm = torch_loop.normalization(named)
    theirs = torch_loop.NETWORKS[name](named, torch.tensor(images).permute(0, 3, 1, 2), norm)
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "searches"), [("inverting_gradients", False), ("idlg", True)])
def test_evaluations_of_a_line_search_are_work(harness, name, searches):
    leaderboard = importlib.import_module("leaderboard")
    problems = stack([toy_problem(toy_victim("lenet", n=1), RUNNING)])
    attack = attacks.create(name, num_steps=1)
    states = attacks.start(attack, problems, attacks.lane_keys(jax.random.key(0), [0], 2))
    for latest, _ in attacks.advance(attack, problems, states):
        states = latest
    assert (leaderboard.evaluations_per_step(states) > 1) == searches


def test_contenders_are_attacks_that_their_case_allows(harness):
    leaderboard = importlib.import_module("leaderboard")
    for case in leaderboard.cases(False, "anywhere", None):
        for contender in case.contenders.values():
            attack = contender.make(7)
            assert attack.num_steps == 7 and contender.restarts <= case.evaluations
            assert ("bn_prior" not in attack.objective.parts) or case.spec.threat.shared != RUNNING.shared
