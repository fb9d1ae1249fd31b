"""Trains a network: what is trained as a frozen value, and the run that makes weights and their record."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks, data, models, training
from gi_jax.data import Dataset
from gi_jax.experiments.environment import environment
from gi_jax.experiments.weights import Origin, Weights
from gi_jax.models import MODELS
from gi_jax.threat import ImageSpace


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Everything that decides the weights.

    Attributes:
      data: `photos`, `cifar10` or `folder:PATH`; its train split.
      image_size: height and width the pictures are resized to; None keeps the data set's own.
      model: a key of `MODELS`.
      epochs: how often every picture is seen; a fraction for a young network.
      batch_size, learning_rate, schedule, augment: see `gi_jax.training.Recipe`.
      test_pictures: the accuracy is that on the first so many of the test split; None takes all.
      seed: of weights, order and augmentation.
    """

    data: str = "photos"
    image_size: int | None = None
    model: str = "convnet"
    epochs: float = 10.0
    batch_size: int = 64
    learning_rate: float = 0.05
    schedule: str = "cosine"
    augment: bool = True
    test_pictures: int | None = None
    seed: int = 0

    def __post_init__(self):
        checks.one_of("model", self.model, MODELS)
        checks.positive(epochs=self.epochs)
        checks.seed("seed", self.seed)
        if self.test_pictures is not None:
            checks.positive(test_pictures=self.test_pictures)
        _ = self.recipe

    @property
    def recipe(self) -> training.Recipe:
        """The settings of the steps."""
        return training.Recipe(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            augment=self.augment,
        )


class Report(NamedTuple):
    """Where a training stands, for a progress bar.

    Attributes:
      title: the epoch.
      done, total: pictures seen.
      loss: mean of the latest steps.
    """

    title: str
    done: int
    total: int
    loss: float


class TrainingOutcome(NamedTuple):
    """What a training yields: the weights, and the content of `training.json`."""

    weights: Weights
    result: dict


def run_training(
    spec: TrainSpec,
    data_dir: str | None = None,
    *,
    on_report: Callable[[Report], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingOutcome:
    """Trains from initialization.

    Args:
      spec: what is trained.
      data_dir: where a copy of the data set lies.
      on_report: called after every chunk of steps.
      should_stop: asked after every chunk; a training that is told to stop yields the weights so far, and `complete` is
        False in its result.

    Raises:
      InputError: for data that is missing, and for a loss that is not finite.
    """
    dataset = data.load(spec.data, "train", data_dir, image_size=spec.image_size)
    tested = test_split(spec, data_dir)
    network = models.create(spec.model, dataset.num_classes)
    image_shape = dataset.images.shape[1:]
    state = training.start(spec.recipe, *network.init(jax.random.key(spec.seed), image_shape))
    pool = on_device(dataset, dataset)
    held_out = None if tested is None else on_device(tested, dataset)
    ends = training.epoch_ends(len(dataset), spec.batch_size, spec.epochs)
    rows, epoch, stopped = [], _Epoch(), False
    seconds = {"compile": 0.0, "steps": 0.0, "test": 0.0}

    def close(step, state):
        began = time.monotonic()
        score = None
        if held_out is not None:
            score = training.accuracy(network, state.params, state.batch_stats, held_out)
        seconds["test"] += time.monotonic() - began
        rows.append(epoch.row() | {"step": step, "epochs": _epochs(spec, step, dataset), "test_accuracy": score})

    for progress in training.advance(network, spec.recipe, state, pool, ends=ends, seed=spec.seed):
        epoch.add(progress, spec.batch_size)
        seconds["compile" if progress.step == 1 else "steps"] += progress.seconds
        if on_report is not None:
            title = f"epoch {1 + len(rows)} of {math.ceil(spec.epochs)}"
            done, total = progress.step * spec.batch_size, ends[-1] * spec.batch_size
            on_report(Report(title, done, total, float(progress.losses.mean())))
        stopped = progress.step < ends[-1] and should_stop()
        if stopped or progress.step in ends:
            close(progress.step, progress.state)
            epoch = _Epoch()
        if stopped:
            break
    origin = Origin(
        model=spec.model,
        num_classes=dataset.num_classes,
        image_shape=tuple(image_shape),
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        data=spec.data,
        epochs=rows[-1]["epochs"],
        steps=progress.step,
        seed=spec.seed,
        test_accuracy=rows[-1]["test_accuracy"],
        test_pictures=0 if tested is None else len(tested),
    )
    result = {
        "complete": not stopped,
        "environment": environment(),
        "spec": dataclasses.asdict(spec),
        "network": dataclasses.asdict(origin),
        "note": dataset.note,
        "epochs": rows,
        "timing": {
            "first_step_seconds": seconds["compile"],
            "seconds_per_step": seconds["steps"] / max(1, progress.step - 1),
            "test_seconds": seconds["test"],
        },
    }
    return TrainingOutcome(Weights(origin, progress.state.params, progress.state.batch_stats), result)


class _Epoch:
    """Sums over the steps of an epoch."""

    def __init__(self):
        self.losses, self.correct = [], []

    def add(self, progress, batch_size):
        self.losses += progress.losses.tolist()
        self.correct += (progress.correct / batch_size).tolist()

    def row(self):
        return {"loss": float(np.mean(self.losses)), "train_accuracy": float(np.mean(self.correct))}


def _epochs(spec: TrainSpec, step: int, dataset: Dataset) -> float:
    return round(step * spec.batch_size / len(dataset), 4)


def test_split(spec, data_dir: str | None) -> Dataset | None:
    """The held-out pictures of a `spec` with `data`, `image_size` and `test_pictures`; None for a folder without."""
    try:
        tested = data.load(spec.data, "test", data_dir, image_size=spec.image_size)
    except checks.InputError as error:
        if not str(error).startswith("split 'test' is missing"):
            raise
        return None
    return tested if spec.test_pictures is None else tested.take(np.arange(min(spec.test_pictures, len(tested))))


def on_device(dataset: Dataset, units: Dataset) -> training.Pool:
    """Its pictures as a pool, for a network that expects them in the units of `units`."""
    space = ImageSpace(mean=jnp.float32(units.mean), std=jnp.float32(units.std))
    return training.Pool(jnp.asarray(dataset.images), jnp.asarray(dataset.labels), space)
