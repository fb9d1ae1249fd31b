"""A real local Ray cluster: its workers may die, and nothing is lost or doubled."""

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time

import pytest

from gi_jax.checks import InputError
from gi_jax.experiments.cells import Cell
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.jobs import jobs, run_jobs, run_jobs_on_ray
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.store import Store

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

ATTACK = AttackSpec(steps=2000, num_batches=2, model="lenet", tv=0.01, image_size=16, labels="known")
CELLS = [Cell(dataclasses.replace(ATTACK, seed=seed)) for seed in range(2)]
BAD = Cell(dataclasses.replace(ATTACK, data="folder:nowhere"))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # whatever else fills this machine, only the test kills
    # A short path: the sockets in it have a longest name.
    options = dict(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.init(num_cpus=2, num_gpus=0, object_store_memory=100 * 2**20, **options)
    yield
    ray.shutdown()


def workers():
    found = subprocess.run(["pgrep", "-f", "ray::_in_worker"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def timeless(row):
    return json.dumps({key: value for key, value in row.items() if key not in ("timing", "finished")})


def test_what_no_node_has_is_refused_at_once(cluster, tmp_path):
    for asked in (dict(cpus_per_job=3), dict(gpus_per_job=0.5)):
        with pytest.raises(InputError, match="no node .* nodes have 2 CPUs and 0 GPUs: ask for no more"):
            run_jobs_on_ray([(BAD,)], Store(tmp_path), Execution(), **asked)


def test_a_killed_worker_loses_nothing(cluster, tmp_path):
    store, events, killed = Store(tmp_path / "ray"), [], []

    def kill_one():
        while not killed and len(events) < 3:
            # Once an attack has begun and is saved.
            if list(store.folder.glob("unfinished/*/unfinished.msgpack")) and (alive := workers()):
                os.kill(alive[0], signal.SIGKILL)
                killed.append(alive[0])
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    execution = Execution(chunk=20, save_seconds=0.01)
    failed = run_jobs_on_ray([*jobs(CELLS), (BAD,)], store, execution, on_event=events.append)
    killer.join()
    assert killed
    assert [event.job for event in failed] == [(BAD,)] and "nowhere" in failed[0].reason
    assert sorted(event.state for event in events) == ["done"] * 2 + ["failed"]
    store.refresh()
    here = Store(tmp_path / "here")
    run_jobs(jobs(CELLS), here, execution)
    assert sorted(map(timeless, store)) == sorted(map(timeless, here))
