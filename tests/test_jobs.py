"""Experiments as data: cells, jobs, and what a store holds after runs that were limited, split, cut off or failed."""

import dataclasses
import json
import os
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gi_jax import cli, training
from gi_jax.checks import InputError
from gi_jax.experiments import catalogue, environment, estimate, perform, train_checkpoint, train_run
from gi_jax.experiments.cells import Cell, DistributionSpec
from gi_jax.experiments.decode import DecodeSpec
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.jobs import Event, jobs, parse_shard, run_jobs, selected, waiting_for_scores
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.store import Store
from gi_jax.experiments.study import Study
from gi_jax.experiments.train_seeds import run_seeds
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.experiments.training import run_training
from gi_jax.reports.experiments.gather import gather

ATTACK = AttackSpec(steps=3, num_batches=2, model="mlp", tv=0.01, labels="known")
NETWORK = TrainSpec(model="mlp", epochs=0.2, batch_size=16, test_pictures=8)
CELLS = [
    Cell(ATTACK, NETWORK),
    Cell(DistributionSpec()),
    Cell(dataclasses.replace(ATTACK, tv=0.1), NETWORK),
    Cell(dataclasses.replace(ATTACK, defenses=("prune:p=0.9",))),
]


def timeless(row):
    return json.dumps({key: value for key, value in row.items() if key not in ("timing", "finished")})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("whole"))
    assert run_jobs(jobs(CELLS), store, Execution()) == []
    return store


def test_cells_are_told_apart_by_all_they_study_and_by_nothing_else():
    assert len({cell.id for cell in CELLS}) == len(CELLS)
    assert Cell(ATTACK, NETWORK).id == CELLS[0].id != Cell(ATTACK).id
    with pytest.raises(InputError, match="a single run"):
        Cell(dataclasses.replace(ATTACK, labels=("known", "auto")))
    with pytest.raises(InputError, match="attacks no network"):
        Cell(DistributionSpec(), NETWORK)


def test_jobs_hold_every_cell_once_and_sweeps_together():
    found = jobs([*CELLS, CELLS[0]])
    assert [len(job) for job in found] == [2, 1, 1] and found[0] == (CELLS[0], CELLS[2])
    assert sorted(cell.id for job in found for cell in job) == sorted(cell.id for cell in CELLS)


def test_rows_say_what_was_studied_what_came_out_and_where(whole):
    assert len(whole) == len(CELLS)
    for cell in CELLS:
        row = whole.get(cell.id)
        assert row["kind"] == cell.kind and row["environment"]["jax"] and row["finished"]
        assert row["spec"] == json.loads(json.dumps(cell.description["spec"]))
    row = whole.get(CELLS[0].id)
    assert row["network"]["epochs"] == 0.2 and "mlp) was trained for" in " ".join(row["result"]["threat_model"])
    assert {"summary", "reference_summary", "mended_summaries"} <= row["result"].keys()
    assert whole.pictures(row["pictures"]["reconstructions"], row["pictures"]["count"]).shape == (2, 32, 32, 3)
    assert not list((whole.folder / "unfinished").iterdir())


def test_a_run_computes_only_what_is_missing(whole, monkeypatch):
    monkeypatch.setattr(perform, "run_sweep", None)
    assert selected(jobs(CELLS), whole, None, (1, 1)) == []
    assert run_jobs(jobs(CELLS), whole, Execution()) == []


def test_limits_and_shards_together_make_the_whole(whole, tmp_path):
    store, found = Store(tmp_path), jobs(CELLS)
    first = selected(found, store, 1, (1, 1))
    assert first == found[:1]
    shards = [selected(found, store, None, (number, 2)) for number in (1, 2)]
    assert shards == [found[::2], found[1::2]]
    for chosen in (first, *shards):
        run_jobs(chosen, store, Execution())
    assert sorted(map(timeless, store)) == sorted(map(timeless, whole))


def test_an_interrupted_job_goes_on_to_the_same_row(whole, tmp_path, monkeypatch):
    store = Store(tmp_path)

    def interrupt(report):
        if report.total and report.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs(CELLS), store, Execution(chunk=1), on_report=interrupt)
    assert len(store) == 0
    run_jobs(jobs(CELLS), store, Execution())
    assert sorted(map(timeless, store)) == sorted(map(timeless, whole))
    for picture in (whole.folder / "pictures").iterdir():
        assert picture.read_bytes() == (store.folder / "pictures" / picture.name).read_bytes()


def test_seeds_of_a_training_are_one_job_with_a_row_each(tmp_path, monkeypatch):
    spec = dataclasses.replace(NETWORK, model="mlp", epochs=2.0)
    cells = [Cell(dataclasses.replace(spec, seed=seed)) for seed in (0, 3)]
    other = Cell(dataclasses.replace(spec, defense="prune:p=0.5"))
    assert jobs([cells[0], other, cells[1]]) == [tuple(cells), (other,)]
    together = partial(run_seeds, lanes=2)
    monkeypatch.setattr(perform, "run_seeds", together)
    store = Store(tmp_path / "together")
    stop = iter((False, True))
    with pytest.raises(KeyboardInterrupt):
        run_jobs([tuple(cells)], store, Execution(), should_stop=lambda: next(stop, True))
    assert len(store) == 0
    assert run_jobs([tuple(cells)], store, Execution()) == []
    for cell in cells:
        alone = run_training(cell.spec, timing=False)
        row = store.get(cell.id)
        assert row["spec"]["seed"] == cell.spec.seed == row["result"]["network"]["seed"]
        assert row["result"]["epochs"][-1]["loss"] == pytest.approx(alone.result["epochs"][-1]["loss"], rel=1e-4)
        assert row["timing"]["seconds_per_step"] > 0 and row["timing"]["lanes"] == 2


@pytest.fixture
def poisoned(monkeypatch):
    """Weights of seed 1 that are not finite."""
    start = Study.start

    def spoiled(study, seeds):
        state, keys = start(study, seeds)
        bad = jnp.array([seed == 1 for seed in seeds])
        spoil = lambda leaf: jnp.where(bad.reshape(-1, *[1] * (leaf.ndim - 1)), jnp.nan, leaf)  # noqa: E731
        return state._replace(params=jax.tree.map(spoil, state.params)), keys

    monkeypatch.setattr(Study, "start", spoiled)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_seed_that_diverges_spoils_no_other(lanes, poisoned, tmp_path):
    spec = dataclasses.replace(NETWORK, model="mlp")
    found = run_seeds(spec, (0, 1, 2), out=tmp_path, lanes=lanes, timing=False)
    assert found.result["complete"] and found.diverged == {1: 1} and found.result["diverged"] == {"1": 1}
    assert [one.weights.origin.seed for one in found.outcomes] == [0, 2]
    alone = run_training(dataclasses.replace(spec, seed=2), timing=False)
    assert found.outcomes[1].result["epochs"][-1]["loss"] == pytest.approx(alone.result["epochs"][-1]["loss"], rel=1e-4)
    with pytest.raises(InputError, match="no loss is a finite number from step 1 on"):
        run_seeds(spec, (1,), lanes=1, timing=False)


def test_seeds_that_all_diverge_one_after_the_other_are_refused(monkeypatch):
    advance = training.advance

    def poisoned(*arguments, **options):
        for number, progress in enumerate(advance(*arguments, **options)):
            losses = np.array(progress.losses)
            losses[min(number, 1)] = np.nan  # one lane after the other
            yield progress._replace(losses=losses)

    monkeypatch.setattr(training, "advance", poisoned)
    spec = dataclasses.replace(NETWORK, model="mlp", recipe="published", epochs=9.0)
    with pytest.raises(InputError, match="no loss is a finite number"):
        run_seeds(spec, (0, 1), lanes=2)


def test_a_seed_that_diverges_is_a_row(poisoned, tmp_path):
    cells = tuple(Cell(dataclasses.replace(NETWORK, model="mlp", seed=seed)) for seed in (0, 1))
    store = Store(tmp_path)
    assert run_jobs([cells], store, Execution()) == []
    good, bad = (store.get(cell.id) for cell in cells)
    assert good["result"]["test_accuracy"] > 0
    assert bad["result"] == {"test_accuracy": None, "diverged": 1}
    alone = Store(tmp_path / "alone")
    assert run_jobs([cells[1:]], alone, Execution()) == []
    assert alone.get(cells[1].id)["result"] == bad["result"]
    assert cli.main(["rows", "--store", str(tmp_path)]) == 0


def test_seeds_that_do_not_fit_side_by_side_are_trained_in_smaller_groups(monkeypatch):
    train, groups = train_run.TrainingRun.train, []

    def small_memory(run, *arguments):
        groups.append(run.seeds)
        if len(run.seeds) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return train(run, *arguments)

    monkeypatch.setattr(train_run.TrainingRun, "train", small_memory)
    found = run_seeds(dataclasses.replace(NETWORK, model="mlp"), (0, 1, 2), lanes=3, timing=False)
    assert groups == [(0, 1, 2), (0,), (1,), (2,)] and found.result["complete"]
    assert found.result["timing"]["lanes"] == 1


def test_seeds_in_smaller_groups_go_on_after_an_interruption(tmp_path, monkeypatch):
    train = train_run.TrainingRun.train

    def small_memory(run, resume, *arguments):
        if len(run.seeds) > 1:
            if resume:
                run._resumed(*([None] * 2))
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return train(run, resume, *arguments)

    monkeypatch.setattr(train_run.TrainingRun, "train", small_memory)
    spec = dataclasses.replace(NETWORK, model="mlp", epochs=3.0)
    how = dict(out=tmp_path, lanes=2, timing=False)
    asked = iter((False, True))
    cut = run_seeds(spec, (0, 1), should_stop=lambda: next(asked, True), **how)
    assert not cut.result["complete"]
    found = run_seeds(spec, (0, 1), resume=True, **how)
    assert found.result["complete"] and found.result["timing"]["lanes"] == 1


def stopped_after_two_chunks(tmp_path, lanes):
    """A training of two seeds that was stopped: its specification and how it goes on."""
    spec = dataclasses.replace(NETWORK, model="mlp", epochs=3.0)
    how = dict(out=tmp_path, timing=False)
    asked = iter((False, True))
    cut = run_seeds(spec, (0, 1), lanes=lanes, should_stop=lambda: next(asked, True), **how)
    assert not cut.result["complete"]
    return spec, how | dict(resume=True)


def test_seeds_go_on_in_as_many_lanes_as_they_had_elsewhere(tmp_path):
    spec, how = stopped_after_two_chunks(tmp_path, lanes=2)
    found = run_seeds(spec, (0, 1), lanes=1, **how)  # as on a machine without an accelerator
    assert found.result["complete"] and found.result["timing"]["lanes"] == 2


def test_seeds_start_anew_in_smaller_groups_where_the_memory_is_smaller(tmp_path, monkeypatch):
    spec, how = stopped_after_two_chunks(tmp_path, lanes=2)
    train = train_run.TrainingRun.train

    def small_memory(run, *arguments):
        if len(run.seeds) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return train(run, *arguments)

    monkeypatch.setattr(train_run.TrainingRun, "train", small_memory)
    found = run_seeds(spec, (0, 1), lanes=2, **how)
    assert found.result["complete"] and found.result["timing"]["lanes"] == 1


def test_seeds_of_which_some_were_written_before_a_kill_go_on(tmp_path):
    spec, how = stopped_after_two_chunks(tmp_path / "out", lanes=2)
    run_training(dataclasses.replace(spec, seed=0), out=tmp_path / "out" / "seed-0", timing=False)
    found = run_seeds(spec, (0, 1), lanes=2, **how)
    assert found.result["complete"] and [one.weights.origin.seed for one in found.outcomes] == [0, 1]


def test_a_checkpoint_of_seeds_that_are_finished_is_in_nobodys_way(tmp_path):
    spec, how = stopped_after_two_chunks(tmp_path / "cut", lanes=1)
    left = tmp_path / "cut" / train_checkpoint.NAME
    whole = tmp_path / "whole"
    run_seeds(spec, (0,), out=whole, timing=False)
    shutil.copytree(left, whole / train_checkpoint.NAME)
    record = whole / "seed-0" / "training.json"
    before = record.read_bytes()
    found = run_seeds(spec, (0, 1), **how | dict(out=whole))
    assert found.result["complete"] and not train_checkpoint.exists(whole)
    assert record.read_bytes() == before  # not trained again


def test_a_job_that_fails_keeps_no_other_from_running(tmp_path):
    store, events = Store(tmp_path), []
    bad = Cell(dataclasses.replace(ATTACK, data="folder:nowhere"))
    failed = run_jobs([(bad,), (CELLS[1],)], store, Execution(), on_event=events.append)
    assert [event.state for event in events] == ["started", "failed", "started", "done"]
    assert isinstance(failed[0], Event) and failed[0].job == (bad,) and "nowhere" in failed[0].reason
    assert CELLS[1].id in store and bad.id not in store


def test_jobs_of_another_run_are_left_to_it(tmp_path):
    store, order = Store(tmp_path), []
    found = [(Cell(DistributionSpec()),), (Cell(DistributionSpec(split="test")),)]
    with Store(tmp_path).claim(found[0][0].id, wait=False):

        def on_event(event):
            order.append(event.job)
            if event.state == "done":
                raise StopIteration  # the other one is not waited for here

        with pytest.raises(StopIteration):
            run_jobs(found, store, Execution(), on_event=on_event)
    assert set(order) == {found[1]}


@pytest.mark.parametrize("flags", ["", "--xla_cpu_multi_thread_eigen=true"])
def test_programs_are_made_quickly_where_there_is_only_a_cpu(monkeypatch, flags):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", flags)
    environment.compile_quickly()
    assert os.environ["XLA_FLAGS"].split() == [*flags.split(), "--xla_backend_optimization_level=1"]
    environment.compile_quickly()
    assert os.environ["XLA_FLAGS"].count("level") == 1


def test_a_level_of_optimization_that_was_chosen_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    environment.compile_quickly()
    assert os.environ["XLA_FLAGS"] == "--xla_backend_optimization_level=3"
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.delenv("XLA_FLAGS")
    environment.compile_quickly()
    assert "XLA_FLAGS" not in os.environ


def cores_taken(monkeypatch, *, cores=6, told=-1, **variables):
    """The number of devices that a process with so many cores, and these variables, asks JAX for; None if none."""
    asked = []
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "_cores", lambda: cores)
    config = SimpleNamespace(jax_num_cpu_devices=told, update=lambda name, value: asked.append((name, value)))
    monkeypatch.setattr(environment, "jax", SimpleNamespace(config=config))
    environment.take_cores_for_devices()
    return dict(asked).get("jax_num_cpu_devices")


def test_cores_are_devices_where_there_is_nothing_else_and_nobody_said_how_many(monkeypatch):
    assert cores_taken(monkeypatch, JAX_PLATFORMS="cpu") == 6
    assert cores_taken(monkeypatch, JAX_PLATFORMS="cpu", cores=96) == environment.MOST_DEVICES
    assert cores_taken(monkeypatch, JAX_PLATFORMS="cuda,cpu") is None
    assert cores_taken(monkeypatch, JAX_PLATFORMS="cpu", told=1) is None
    flags = "--xla_force_host_platform_device_count=3"
    assert cores_taken(monkeypatch, JAX_PLATFORMS="cpu", XLA_FLAGS=flags) is None


def test_cores_are_left_alone_once_jax_runs():
    before = jax.devices()
    environment.take_cores_for_devices()
    assert jax.devices() == before


def test_shards_are_parsed():
    assert parse_shard("2/8") == (2, 8)
    for text in ("0/2", "3/2", "2", "a/b", "1/0", ""):
        with pytest.raises(InputError, match="expected i/n"):
            parse_shard(text)


def test_decoding_with_the_published_slip_is_worse(tmp_path):
    spec = DecodeSpec(first=1, encodings=8, defenses=("mixup:k=4",))
    slipped = dataclasses.replace(spec, mix_index="reference", batch_size=7)
    store = Store(tmp_path)
    assert run_jobs([(Cell(spec),), (Cell(slipped),)], store, Execution()) == []
    right, wrong = (
        {block["decoder"]: block["summary"]["psnr"]["mean"] for block in store.get(Cell(one).id)["result"]["runs"]}
        for one in (spec, slipped)
    )
    assert right["least squares"] > wrong["least squares"] + 10
    with pytest.raises(InputError, match="expected a batch size"):
        DecodeSpec(mix_index="reference")


@pytest.mark.parametrize("scale", catalogue.SCALES)
@pytest.mark.parametrize("name", catalogue.EXPERIMENTS)
def test_every_experiment_has_cells_with_places_of_their_own(name, scale):
    placed = catalogue.placed(name, scale)
    places = [json.dumps(one.where, sort_keys=True) for one in placed]
    assert len(set(places)) == len(places) > 0
    found = jobs([one.cell for one in placed])
    assert sum(len(job) for job in found) == len({one.cell for one in placed})
    assert estimate.words(found, Store("nowhere"))


@pytest.mark.parametrize("name", catalogue.EXPERIMENTS)
def test_a_scale_with_fewer_batches_has_the_same_places_and_no_more_batches_than_it_says(name):
    whole = catalogue.placed(name, "paper")
    for most in (1, 2, 60):
        fewer = catalogue.placed(name, f"paper:batches={most}")
        assert [one.where for one in fewer] == [one.where for one in whole]
        for one, other in zip(fewer, whole, strict=True):
            if one.cell.kind == "attack":
                assert one.cell.spec.num_batches == min(most, other.cell.spec.num_batches)
                assert dataclasses.replace(one.cell.spec, num_batches=other.cell.spec.num_batches) == other.cell.spec


@pytest.mark.parametrize(
    "rest", ["", "batches", "batches=0", "batches=-1", "batches=²", "batches=٣", "batches=" + 5000 * "9", "steps=3"]
)
def test_a_scale_with_fewer_of_anything_else_is_refused(rest):
    with pytest.raises(InputError, match="expected small, or fewer private batches, such as small:batches=10"):
        catalogue.scale_named(f"small:{rest}")


def test_figure3_and_tradeoff_need_no_cells_but_those_of_table2():
    for scale in catalogue.SCALES:
        table = {one.cell for one in catalogue.placed("table2", scale)}
        for name in ("figure3", "tradeoff", "table3"):
            assert {one.cell for one in catalogue.placed(name, scale)} <= table


def test_the_corrected_box_of_the_protocol_is_the_cell_of_table2_where_the_attack_is_the_same():
    table, protocol = (catalogue.placed(name, "paper") for name in ("table2", "protocol"))
    (box,) = [one.cell for one in protocol if one.where == {"switch": "box", "value": "corrected"}]
    assert box.spec.rate == 0.1 and box in {one.cell for one in table}
    rates = {one.cell.spec.rate for one in catalogue.placed("figure1", "small")}
    assert rates == {0.1}  # not that of the easier attack


def test_encoded_pictures_meet_networks_that_were_trained_on_such():
    trained = {
        one.where["column"]: one.cell.network.defense
        for one in catalogue.placed("table2", "paper")
        if one.where["what"] == "attack"
    }
    for column, defense in trained.items():
        encoding = next((name for name in ("mixup", "intra_instahide") if name in column), None)
        assert defense == ("none" if encoding is None else f"{encoding}:k=4"), column
    assert set(trained.values()) == {"none", "mixup:k=4", "intra_instahide:k=4"}


def test_a_row_that_is_there_keeps_its_pictures(tmp_path):
    store = Store(tmp_path)
    (job,) = jobs([CELLS[0], CELLS[2]])
    assert run_jobs([job], store, Execution()) == []
    first, second = store.path.read_bytes().splitlines(keepends=True)
    store.path.write_bytes(second)
    kept, gone = (tmp_path / json.loads(line)["pictures"]["reconstructions"] for line in (second, first))
    kept.write_bytes(b"of another machine")
    gone.unlink()
    again = Store(tmp_path)
    assert run_jobs([job], again, Execution()) == []
    assert len(again) == 2 and kept.read_bytes() == b"of another machine" and gone.exists()


def test_estimates_count_networks_that_are_still_to_be_trained(tmp_path, whole):
    store = Store(tmp_path)
    (tmp_path / "networks" / NETWORK.fingerprint).mkdir(parents=True)  # a training that was cut off
    cost = estimate.estimate([CELLS[:1]], store)
    assert (cost.cells, cost.unknown, cost.unknown_networks) == (1, 1, 1) and cost.train_pictures > 0
    assert any("1 network" in line for line in estimate.words([CELLS[:1]], store))
    assert estimate.estimate([CELLS[:1]], whole).unknown_networks == 0
    # The time of a network of the store is that of another seed.
    other = Cell(ATTACK, dataclasses.replace(NETWORK, seed=1))
    known = estimate.estimate([(other,)], whole)
    assert known.unknown_networks == 0 and known.seconds > estimate.estimate([CELLS[:1]], whole).seconds


def test_estimates_of_trainings_that_may_end_early_are_of_what_such_took(tmp_path, whole):
    stops, seen = TrainSpec(model="mlp", recipe="published"), estimate.TRAIN_PICTURES["photos"]
    row = next(estimate._trained(whole))

    def words(spec, number, epochs):
        store, result = Store(tmp_path / str(number)), row["result"] | {"network": {"epochs": epochs, "steps": 100}}
        for seed in range(number):
            named = Cell(dataclasses.replace(spec, seed=seed))
            store.append({"cell": named.id, **row, **named.description, "result": result})
        return " ".join(estimate.words([(Cell(dataclasses.replace(spec, seed=9)),)], store))

    assert f"trainings: at most {200 * seen:,} pictures" in words(stops, 0, None)
    said = words(stops, 2, 15.5)
    assert f"trainings: {15.5 * seen:,.0f} pictures" in said and "at most" not in said and "at the rates" in said
    assert f"at most {3 * seen:,} pictures" in words(dataclasses.replace(stops, epochs=3.0), 1, 3.0)  # not cut off
    assert f"trainings: {10 * seen:,} pictures" in words(TrainSpec(model="mlp"), 1, 2.0)  # which goes on to its end
    diverged = dataclasses.replace(stops, defense="prune:p=0.9")
    result = {"test_accuracy": None, "diverged": 3}
    store = Store(tmp_path / "diverged")
    row |= {"result": result, "timing": {}} | Cell(diverged).description
    store.append({"cell": Cell(diverged).id} | row)
    assert "at most" in " ".join(estimate.words([(Cell(dataclasses.replace(diverged, seed=9)),)], store))


def test_estimates_use_the_rates_of_the_store(whole):
    cost = estimate.estimate([CELLS[:1]], whole)
    walls = [row["timing"]["wall_seconds"] for row in whole if row["kind"] == "attack"]  # all of one program
    assert cost.image_iterations == 2 * 3 and cost.unknown == 0
    assert 0.1 * min(walls) < cost.seconds < 2 * max(walls)
    assert estimate.estimate([(Cell(dataclasses.replace(ATTACK, batch_size=2)),)], whole).unknown == 1
    assert estimate.clock(61) == "61 s" and estimate.clock(4000) == "67 min" and estimate.clock(7300) == "2 h 02 min"


def test_estimates_count_all_that_a_job_computes_again(whole):
    swept = [dataclasses.replace(ATTACK, tv=tv) for tv in (0.01, 0.1, 0.2)]
    (job,) = jobs([Cell(spec, NETWORK) for spec in swept])
    cost = estimate.estimate([job, job[:1]], whole)  # the second has nothing left to do then
    assert (cost.cells, cost.there, cost.image_iterations) == (3, 2, 3 * 2 * 3)
    assert "among them 2 cells there already" in " ".join(estimate.words([job], whole))


def test_estimates_take_the_rate_of_the_launch_of_nearest_size(whole, tmp_path):
    row = whole.get(CELLS[3].id)
    assert row["timing"]["pictures_per_launch"] == 2
    store, cell = Store(tmp_path), Cell(dataclasses.replace(ATTACK, num_batches=64, steps=1000))

    def seconds(**options):
        return estimate.estimate([(cell,)], store, **options).seconds

    def add(number, rate, **size):
        timing = dict(run_seconds=1, wall_seconds=1, image_iterations_per_second=rate, **size)
        store.append(row | {"cell": f"{number:016x}", "timing": timing})
        return 64 * 1000 / rate

    unknown = add(0, 10)
    assert seconds(lanes=64) == unknown  # of a row that does not say
    small = add(1, 100, pictures_per_launch=2)
    large = add(2, 1000, pictures_per_launch=40)
    found = [seconds(lanes=lanes) for lanes in (64, 16, 4, 1)]
    assert found == pytest.approx([large, large, small, small])


def test_reports_gather_what_is_there(tmp_path):
    store = Store(tmp_path)
    (cell,) = [one.cell for one in catalogue.placed("figure2", "smoke") if one.where["what"] == "distribution"]
    run_jobs([(cell,)], store, Execution())
    found = gather("figure2", "smoke", store)
    assert [one.row is not None for one in found] == [one.where["what"] == "distribution" for one in found]


def test_a_machine_without_lpips_attacks_and_one_with_it_scores(whole, tmp_path, monkeypatch):
    store, job = Store(tmp_path), jobs(CELLS)[0]
    elsewhere = environment.environment() | {"device": "elsewhere"}
    with monkeypatch.context() as patched:
        for module in (perform.metrics, sys.modules["gi_jax.metrics.perceptual"]):
            patched.setattr(module, "has_lpips", lambda: False)
        patched.setattr("gi_jax.experiments.session.environment", lambda: elsewhere)
        decoding = (Cell(DecodeSpec(defenses=("mixup:k=2",))),)
        for one, said in ((job, "adds the scores where it is, to what was attacked"), (decoding, "decodes and scores")):
            events = []
            assert run_jobs([one], store, Execution(), on_event=events.append) == []  # none has failed
            assert [event.state for event in events] == ["started", "unscored"] and said in events[-1].reason
        assert selected([job, decoding], store, None, (1, 1)) == [] and len(store) == 0  # nothing is left to do here
        assert waiting_for_scores([job, decoding], store, (1, 1)) == [*job, *decoding]
    assert selected([job, decoding], store, None, (1, 1)) == [job, decoding]
    assert run_jobs([decoding], store, Execution()) == [] and store.get(decoding[0].id)
    before = environment.environment()["time"]
    monkeypatch.setattr("gi_jax.attacks.advance", None)  # nothing is attacked again
    assert run_jobs([job], store, Execution()) == []
    for cell in job:
        row = store.get(cell.id)
        assert row["environment"]["device"] == "elsewhere" and row["finished"] >= before
        assert row["result"] == whole.get(cell.id)["result"] and row["result"]["summary"]["lpips_vgg"]
    assert not list((tmp_path / "unfinished").iterdir())
