"""What cells cost: image-iterations of attacks and pictures of trainings, and seconds at rates that were measured."""

import itertools
import json
import math
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

import jax

from gi_jax import checks
from gi_jax.experiments import weights
from gi_jax.experiments.cells import Cell
from gi_jax.experiments.environment import environment
from gi_jax.experiments.jobs import Job
from gi_jax.experiments.perform import NETWORKS
from gi_jax.experiments.plan import lanes_per_launch, launches_of, make_attack, pictures_of
from gi_jax.experiments.store import Store
from gi_jax.experiments.train_folder import RECORD
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.words import counted

NUM_BATCHES = 6
"""Of an attack that does not say how many; at most, where there are fewer pictures."""
TRAIN_PICTURES = {"cifar10": 50_000, "photos": 116}


class Cost(NamedTuple):
    """Work of jobs, and the time it takes here.

    Attributes:
      cells: how many, and how many of these have a row already: a job is computed whole.
      image_iterations: of the attacks: an iteration on one picture, restarts and encodings counted.
      train_pictures: pictures seen by the trainings; of one that may end early as many as such took in the store.
      at_most: whether a training may end early of which the store has no such, so that it is counted in full.
      seconds: of the cells whose rate on this hardware is known from rows of the store, compilation included.
      unknown: cells whose rate is not.
      unknown_networks: networks that these cells attack, that are not there, and whose rate is not known either.
    """

    cells: int
    there: int
    image_iterations: int
    train_pictures: float
    at_most: bool
    seconds: float
    unknown: int
    unknown_networks: int


def estimate(chosen: Iterable[Job], store: Store, lanes: int | None = None) -> Cost:
    """The cost of jobs, at the median rates of rows that were computed on hardware like this one.

    Args:
      chosen: jobs, one after the other.
      store: for rates, and what is there.
      lanes: of a launch, as in `Execution`.
    """
    sizes = _computed(chosen, lanes)
    cells = [cell for cell, _ in sizes]
    rates, taken = _measurements(store) if cells else ({}, {})
    iterations = pictures = seconds = 0
    at_most = False
    unknown = {"cells": 0, "networks": 0}
    compiled = set()
    networks = dict.fromkeys(Cell(cell.network) for cell in cells if cell.network is not None)
    trained = store.folder / NETWORKS
    missing = [cell for cell in networks if not (trained / cell.spec.fingerprint / weights.NAME).exists()]
    for what, cell, size in [*(("cells", *pair) for pair in sizes), *(("networks", cell, None) for cell in missing)]:
        program = _program(cell.description)
        work, rate = work_of(cell), _nearest(rates.get(program), size)
        if _may_end_early(cell):
            at_most |= program not in taken
            work *= min(1, taken.get(program, math.inf) / cell.spec.settings.epochs)
        program += (size,)
        iterations += work if cell.kind == "attack" else 0
        pictures += work if cell.kind == "training" else 0
        if work and rate is None:
            unknown[what] += 1
        elif work:
            seconds += work / rate.per_second + (rate.overhead if program in compiled else rate.first_overhead)
            compiled.add(program)
    there = sum(cell.id in store for cell in cells)
    work = (round(iterations), pictures, at_most, seconds)
    return Cost(len(cells), there, *work, unknown["cells"], unknown["networks"])


def _computed(chosen, lanes):
    """The cells, with the size of their launches, of jobs one after the other, of which some have cells in common."""
    found, cells = set(), []
    for job in chosen:
        if not found.issuperset(job):
            size = _size_of(job, lanes)
            cells += [(cell, size) for cell in job]
            found.update(job)
    return cells


def _size_of(job, lanes):
    """How many pictures a launch of attacks holds here, as a power of two; None for other jobs."""
    if job[0].kind != "attack":
        return None
    spec = job[0].spec
    side = spec.image_size or (224 if spec.data == "photos_large" else 32)
    updates = (spec.num_batches or NUM_BATCHES) * spec.encodings
    lanes = lanes or lanes_per_launch(spec, (side, side))
    launch, *_ = launches_of(spec, updates, len(job), lanes, jax.local_device_count())
    return _power(pictures_of(spec, launch))


def _power(pictures):
    return None if pictures is None else round(math.log2(pictures))


def _nearest(rates, size):
    """Of the rates of a program by the size of its launches, that of the nearest; of unknown size where there is none.

    What keeps a device busy is as fast in a launch of other size; what does not, is not.
    """

    def distance(other):
        return math.inf if None in (other, size) else abs(other - size)

    return rates and rates[min(rates, key=distance)]


def words(chosen: Iterable[Job], store: Store, lanes: int | None = None) -> list[str]:
    """The cost in sentences."""
    cost = estimate(chosen, store, lanes)
    if not cost.cells:
        return []
    most = "at most " if cost.at_most else ""  # trainings may end early
    pictures = f"{most}{cost.train_pictures:,.0f} pictures"
    lines = [f"attacks: {cost.image_iterations:,} image-iterations; trainings: {pictures}"]
    if cost.there:
        lines.append(
            f"among them {counted(cost.there, 'cell')} there already, computed again with those of their launch"
        )
    if cost.seconds:
        lines.append(f"at the rates of this store on this hardware: {clock(cost.seconds)}")
    if cost.unknown:
        lines.append(f"no measured rate yet for {counted(cost.unknown, 'cell')}; a first run with --limit measures it")
    if cost.unknown_networks:
        lines.append(f"to be trained first, at no measured rate either: {counted(cost.unknown_networks, 'network')}")
    return lines


def clock(seconds: float) -> str:
    """Such as `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def work_of(cell: Cell) -> float:
    """Image-iterations of an attack, pictures seen by a training in all its epochs, 0 for what takes no time."""
    spec = cell.spec
    if cell.kind == "attack":
        updates = spec.num_batches or NUM_BATCHES
        return updates * spec.pictures_per_update * spec.restarts * spec.encodings * make_attack(spec).num_steps
    if cell.kind == "training":
        return spec.settings.epochs * (spec.train_pictures or TRAIN_PICTURES.get(spec.data, 0))
    return 0


def _may_end_early(cell):
    return cell.kind == "training" and cell.spec.settings.patience is not None


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


def _measurements(store):
    """Rates by program and size of launch, on hardware like this one; epochs by program of what ended early.

    A row that does not say them, such as one of another version, has none: what is wanted of it is not read here.
    """
    here, found, taken = environment(), {}, {}
    for row in itertools.chain(store, _trained(store)):
        try:
            measured = _measured(row, here)
            if measured is not None:
                size = _power(row["timing"].get("pictures_per_launch"))  # older rows do not say
                found.setdefault(_program(row), {}).setdefault(size, []).append(measured)
            if row["kind"] == "training" and "network" in row["result"]:  # it did not diverge
                epochs = float(row["result"]["network"]["epochs"])
                if epochs < TrainSpec(**row["spec"]).settings.epochs:
                    taken.setdefault(_program(row), []).append(epochs)
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, checks.InputError):
            continue
    rates = {program: {size: _rate(pairs) for size, pairs in sizes.items()} for program, sizes in found.items()}
    return rates, {program: median(epochs) for program, epochs in taken.items()}


def _rate(pairs):
    speeds, overheads = zip(*pairs, strict=True)
    return Rate(median(speeds), median(overheads), max(overheads))


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
    """The networks of a store, which have no rows, as if they had."""
    for path in sorted((store.folder / NETWORKS).glob(f"*/{RECORD}")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            row = {name: result[name] for name in ("spec", "environment", "timing")}
        except (ValueError, KeyError, TypeError) as error:
            raise checks.InputError(f"{path} is damaged ({error}): remove its folder to train it again") from error
        yield {"kind": "training", **row, "result": result}
