"""What cells cost: image-iterations of attacks and pictures of trainings, and seconds at rates that were measured."""

from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

from gi_jax.experiments.attack import make_attack
from gi_jax.experiments.cells import Cell
from gi_jax.experiments.environment import environment
from gi_jax.experiments.store import Store
from gi_jax.experiments.training import TrainSpec

TRAIN_PICTURES = {"cifar10": 50_000, "photos": 116}


class Cost(NamedTuple):
    """Work of cells, and the time it takes here.

    Attributes:
      cells: how many.
      image_iterations: of the attacks: an iteration on one picture, restarts and encodings counted.
      train_pictures: pictures seen by the trainings; at most, where a training may end early.
      seconds: of the cells whose rate on this hardware is known from rows of the store, compilation included.
      unknown: cells whose rate is not.
    """

    cells: int
    image_iterations: int
    train_pictures: float
    seconds: float
    unknown: int


def estimate(cells: Iterable[Cell], store: Store) -> Cost:
    """The cost of cells, at the median rates of rows that were computed on hardware like this one."""
    cells = list(cells)
    rates = _rates(store) if cells else {}
    iterations = pictures = seconds = unknown = 0
    compiled = set()
    for cell in cells:
        program = _program(cell.description)
        work, rate = work_of(cell), rates.get(program)
        iterations += work if cell.kind == "attack" else 0
        pictures += work if cell.kind == "training" else 0
        if work and rate is None:
            unknown += 1
        elif work:
            seconds += work / rate.per_second + (0 if program in compiled else rate.compile_seconds)
            compiled.add(program)
    return Cost(len(cells), round(iterations), pictures, seconds, unknown)


def words(cells: Iterable[Cell], store: Store) -> list[str]:
    """The cost in sentences."""
    cost = estimate(cells, store)
    if not cost.cells:
        return []
    lines = [f"attacks: {cost.image_iterations:,} image-iterations; trainings: {cost.train_pictures:,.0f} pictures"]
    if cost.unknown < cost.cells:
        lines.append(f"at the rates of this store on this hardware: {clock(cost.seconds)}")
    if cost.unknown:
        lines.append(f"{cost.unknown} cells have no measured rate yet; a first run with --limit measures it")
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
        return spec.settings.epochs * (spec.train_pictures or TRAIN_PICTURES[spec.data])
    return 0


def _program(row):
    """What decides the rate: the program, but for its numbers."""
    spec = row["spec"]
    if row["kind"] == "attack":
        names = ("model", "image_size", "batch_size", "client_bn", "restarts", "attack", "bn", "local_steps")
        return "attack", spec["data"] == "cifar10", *(spec[name] for name in names)
    if row["kind"] == "training":
        return "training", spec["model"], spec["image_size"], spec["defense"] != "none"
    return (row["kind"],)


class Rate(NamedTuple):
    """Work a second of a program, and the seconds of its compilation."""

    per_second: float
    compile_seconds: float


def _rates(store):
    here, found = environment(), {}
    same = ("device", "devices", "cores", "processor")
    for row in store:
        timing = row["timing"]
        if not timing or any(row["environment"].get(name) != here[name] for name in same):
            continue
        if row["kind"] == "attack":
            rate = Rate(timing["image_iterations_per_second"], timing["compile_seconds"])
        else:
            rate = Rate(TrainSpec(**row["spec"]).settings.batch_size / timing["seconds_per_step"], 0.0)
        found.setdefault(_program(row), []).append(rate)
    # The longest compilation: those after the first found the program made.
    return {
        program: Rate(median(rate.per_second for rate in rates), max(rate.compile_seconds for rate in rates))
        for program, rates in found.items()
    }
