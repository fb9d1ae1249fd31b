"""What cells cost: image-iterations of attacks and pictures of trainings, and seconds at rates that were measured."""

import itertools
import json
from collections.abc import Iterable
from functools import partial
from statistics import median
from typing import NamedTuple

from gi_jax import checks
from gi_jax.experiments import weights
from gi_jax.experiments.cells import Cell
from gi_jax.experiments.environment import environment
from gi_jax.experiments.jobs import Job
from gi_jax.experiments.perform import NETWORKS
from gi_jax.experiments.plan import make_attack
from gi_jax.experiments.store import Store
from gi_jax.experiments.train_folder import RECORD
from gi_jax.experiments.training import TrainSpec

TRAIN_PICTURES = {"cifar10": 50_000, "photos": 116}


class Cost(NamedTuple):
    """Work of jobs, and the time it takes here.

    Attributes:
      cells: how many, and how many of these have a row already: a job is computed whole.
      image_iterations: of the attacks: an iteration on one picture, restarts and encodings counted.
      train_pictures: pictures seen by the trainings; at most, where a training may end early.
      seconds: of the cells whose rate on this hardware is known from rows of the store, compilation included.
      unknown: cells whose rate is not.
      unknown_networks: networks that these cells attack, that are not there, and whose rate is not known either.
    """

    cells: int
    there: int
    image_iterations: int
    train_pictures: float
    seconds: float
    unknown: int
    unknown_networks: int


def estimate(chosen: Iterable[Job], store: Store) -> Cost:
    """The cost of jobs, at the median rates of rows that were computed on hardware like this one."""
    cells = _computed(chosen)
    rates = _rates(store) if cells else {}
    iterations = pictures = seconds = 0
    unknown = {"cells": 0, "networks": 0}
    compiled = set()
    networks = dict.fromkeys(Cell(cell.network) for cell in cells if cell.network is not None)
    trained = store.folder / NETWORKS
    missing = [cell for cell in networks if not (trained / cell.spec.fingerprint / weights.NAME).exists()]
    for what, cell in [*(("cells", cell) for cell in cells), *(("networks", cell) for cell in missing)]:
        program = _program(cell.description)
        work, rate = work_of(cell), rates.get(program)
        iterations += work if cell.kind == "attack" else 0
        pictures += work if cell.kind == "training" else 0
        if work and rate is None:
            unknown[what] += 1
        elif work:
            seconds += work / rate.per_second + (rate.overhead if program in compiled else rate.first_overhead)
            compiled.add(program)
    there = sum(cell.id in store for cell in cells)
    return Cost(len(cells), there, round(iterations), pictures, seconds, unknown["cells"], unknown["networks"])


def _computed(chosen):
    """The cells that are computed for jobs one after the other, of which some have cells in common."""
    found, cells = set(), []
    for job in chosen:
        cells += () if found.issuperset(job) else job
        found.update(job)
    return cells


def words(chosen: Iterable[Job], store: Store) -> list[str]:
    """The cost in sentences."""
    cost = estimate(chosen, store)
    if not cost.cells:
        return []
    lines = [f"attacks: {cost.image_iterations:,} image-iterations; trainings: {cost.train_pictures:,.0f} pictures"]
    if cost.there:
        lines.append(f"{cost.there} cells that are there are among them, computed again with those of their launch")
    if cost.seconds:
        lines.append(f"at the rates of this store on this hardware: {clock(cost.seconds)}")
    if cost.unknown:
        lines.append(f"{cost.unknown} cells have no measured rate yet; a first run with --limit measures it")
    if cost.unknown_networks:
        lines.append(f"{cost.unknown_networks} networks are to be trained first, for which there is none either")
    return lines


def clock(seconds: float) -> str:
    """Such as `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def work_of(cell: Cell) -> float:
    """Image-iterations of an attack, pictures seen by a training, 0 for what takes no time to speak of."""
    spec = cell.spec
    if cell.kind == "attack":
        updates = spec.num_batches or 6
        return updates * spec.pictures_per_update * spec.restarts * spec.encodings * make_attack(spec).num_steps
    if cell.kind == "training":
        return spec.settings.epochs * (spec.train_pictures or TRAIN_PICTURES.get(spec.data, 0))
    return 0


def _program(row):
    """What decides the rate: the program, but for its numbers."""
    spec = row["spec"]
    if row["kind"] == "attack":
        names = ("model", "image_size", "batch_size", "client_bn", "restarts", "attack", "bn", "local_steps")
        return "attack", spec["data"] == "cifar10", *(spec[name] for name in names), spec.get("precision")
    if row["kind"] == "training":
        names = ("model", "image_size", "batch_size", "recipe", "defense")
        return "training", spec["data"] == "cifar10", *(spec[name] for name in names)
    return (row["kind"],)


class Rate(NamedTuple):
    """Work a second of a program, and what a cell takes besides: compilation, scoring, decoding; more for the first."""

    per_second: float
    overhead: float
    first_overhead: float


def _rates(store):
    here, found = environment(), {}
    rows = ((row, partial(store.damaged, row["cell"])) for row in store)
    for row, damaged in itertools.chain(rows, _trained(store)):
        try:
            measured = _measured(row, here)
            if measured is not None:
                found.setdefault(_program(row), []).append(measured)
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise damaged(error) from error
    rates = {}
    for program, pairs in found.items():
        speeds, overheads = zip(*pairs, strict=True)
        rates[program] = Rate(median(speeds), median(overheads), max(overheads))
    return rates


def _measured(row, here):
    """Work a second and the seconds besides, by a row; None if it was computed on other hardware or is not timed."""
    same = ("device", "devices", "cores", "processor", "matmul_precision")
    timing = row["timing"]
    there = {"matmul_precision": "default"} | row["environment"]  # older rows do not say
    if not timing or any(there.get(name) != here[name] for name in same):
        return None
    if row["kind"] == "attack":
        speed, run_seconds = timing["image_iterations_per_second"], timing["run_seconds"]
    elif "seconds_per_step" in timing:
        settings = TrainSpec(**row["spec"]).settings
        speed = settings.batch_size / timing["seconds_per_step"]
        run_seconds = timing["seconds_per_step"] * row["result"]["network"]["steps"]
    elif "steps_seconds" in timing:
        settings, steps = TrainSpec(**row["spec"]).settings, row["result"]["network"]["steps"]
        run_seconds = timing["first_chunk_seconds"] + timing["steps_seconds"]
        speed = settings.batch_size * steps / run_seconds
    else:
        return None
    return speed, max(0.0, timing["wall_seconds"] - run_seconds) if "wall_seconds" in timing else 0.0


def _trained(store):
    """The networks of a store, which have no rows, as if they had; each with what says that it is damaged."""
    for path in sorted((store.folder / NETWORKS).glob(f"*/{RECORD}")):
        damaged = partial(_damaged, path)
        try:
            result = json.loads(path.read_text())
            row = {name: result[name] for name in ("spec", "environment", "timing")}
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(error) from error
        yield {"kind": "training", **row, "result": result}, damaged


def _damaged(path, reason):
    return checks.InputError(f"{path} is damaged ({reason}): remove its folder to train it again")
