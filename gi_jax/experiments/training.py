"""Trains a network: what is trained as a frozen value, and the run that makes weights and their record."""

import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks, data, defenses, models, training
from gi_jax.data import Dataset
from gi_jax.defenses import Kind, privacy
from gi_jax.experiments import recipes, train_checkpoint, weights
from gi_jax.experiments.checkpoint import write_atomically
from gi_jax.experiments.environment import environment
from gi_jax.experiments.weights import Origin, Weights
from gi_jax.models import MODELS
from gi_jax.threat import ImageSpace

RECORD = "training.json"
SAVE_SECONDS = 60
"""A training that is killed has lost no more than about this."""
PUBLIC_SHARE = 0.1
"""Of the train split, set aside for a defense that mixes in public pictures; 5,000 pictures at most."""
DELTA = 1e-5
"""Of the privacy that is stated, unless the defense names another (Abadi et al. 2016)."""


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Everything that decides the weights.

    Attributes:
      data: `photos`, `cifar10` or `folder:PATH`; its train split.
      image_size: height and width the pictures are resized to; None keeps the data set's own.
      train_pictures: the first so many of the train split only, validation included; None takes all.
      model: a key of `MODELS`.
      defense: of the client in every step, `name:parameter=value`, stages joined by ` + `; `none` for none.
      recipe: a key of `gi_jax.experiments.recipes.RECIPES`.
      epochs, batch_size, learning_rate, schedule: in place of the recipe's; None keeps them.
      augment: random crops and mirror images.
      test_pictures: the accuracy is that on the first so many of the test split; None takes all.
      seed: of weights, order, augmentation and the defense.
    """

    data: str = "photos"
    image_size: int | None = None
    train_pictures: int | None = None
    model: str = "convnet"
    defense: str = "none"
    recipe: str = "plain"
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    augment: bool = True
    test_pictures: int | None = None
    seed: int = 0

    def __post_init__(self):
        checks.one_of("model", self.model, MODELS)
        checks.seed("seed", self.seed)
        counts = {name: getattr(self, name) for name in ("train_pictures", "test_pictures")}
        checks.positive(**{name: count for name, count in counts.items() if count is not None})
        object.__setattr__(self, "defense", str(defenses.parse(self.defense)))
        _ = self.settings

    @property
    def settings(self) -> training.Recipe:
        """The recipe, with what replaces it."""
        given = {name: getattr(self, name) for name in ("epochs", "batch_size", "learning_rate", "schedule")}
        given = {name: value for name, value in given.items() if value is not None}
        recipe = recipes.recipe(self.recipe, defenses.parse(self.defense))
        return dataclasses.replace(recipe, augment=self.augment, **given)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that are equal for equal specifications."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


class SeedsOutcome(NamedTuple):
    """What the trainings of several seeds yield: that of each, and what they have in common."""

    outcomes: tuple[TrainingOutcome, ...]
    result: dict


def run_training(
    spec: TrainSpec,
    data_dir: str | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    checkpoint_epochs: tuple[float, ...] = (),
    timing: bool = True,
    on_report: Callable[[Report], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingOutcome:
    """Trains from initialization.

    Args:
      spec: what is trained.
      data_dir: where a copy of the data set lies.
      out: folder that gets `weights.msgpack` and `training.json` in place of what is there, and while the training
        lasts, what it is resumed from; None writes nothing.
      resume: go on with what lies in `out`; weights are those of an undisturbed run, bit for bit. What is complete is
        read.
      checkpoint_epochs: keep the weights at these times too, in `out`/epoch-E.
      timing: whether steps are timed with and without the defense afterwards.
      on_report: called after every chunk of steps.
      should_stop: asked after every chunk; a training that is told to stop yields the weights so far, and `complete` is
        False in its result.

    Raises:
      InputError: for data that is missing, for a defense that does not fit the network, for a loss that is not finite,
        and for another training's files in `out`.
    """
    _check_times(checkpoint_epochs, spec, out)
    if resume and (found := read(out, spec)) is not None:
        train_checkpoint.remove(out)
        return found
    run = _Run(_Study(spec, data_dir), (spec.seed,), [out], out, checkpoint_epochs)
    (outcome,) = run.train(resume, on_report, should_stop, "")
    if timing and outcome.result["complete"]:
        outcome.result["timing"] |= run.study.time_steps(outcome.weights)
        _write(out, outcome)
    return outcome


def run_seeds(
    spec: TrainSpec,
    seeds: tuple[int, ...],
    data_dir: str | None = None,
    *,
    out: Path | None = None,
    lanes: int | None = None,
    resume: bool = False,
    checkpoint_epochs: tuple[float, ...] = (),
    timing: bool = True,
    on_report: Callable[[Report], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SeedsOutcome:
    """Trains once for each seed; `spec.seed` does not count.

    Args:
      seeds: different ones.
      out: folder that gets `seed-K` as of `run_training` for each, and `training.json` of all.
      lanes: how many are trained side by side in one program, as memory allows. None: all, but on a CPU one, where
        three lanes of `convnet` take 1.17 times as long as three after another.
      others: as for `run_training`.

    Raises:
      InputError: as `run_training`.
    """
    checks.distinct("seeds", map(str, seeds))
    _check_times(checkpoint_epochs, spec, out)
    if lanes is None:
        lanes = 1 if jax.default_backend() == "cpu" else len(seeds)
    checks.positive(lanes=lanes)
    specs = {seed: dataclasses.replace(spec, seed=seed) for seed in seeds}
    folders = {seed: None if out is None else out / f"seed-{seed}" for seed in seeds}
    found = {seed: read(folders[seed], specs[seed]) for seed in seeds} if resume else dict.fromkeys(seeds)
    study = _Study(spec, data_dir)
    for first in range(0, len(seeds), lanes):
        group = seeds[first : first + lanes]
        if all(found[seed] is not None for seed in group):
            continue
        run = _Run(study, group, [folders[seed] for seed in group], out, checkpoint_epochs)
        title = f"seed {', '.join(map(str, group))}, "
        found |= zip(group, run.train(resume, on_report, should_stop, title), strict=True)
        resume = False  # what is resumed from was this group's
        if not all(found[seed].result["complete"] for seed in group):
            break
    outcomes = tuple(found[seed] for seed in seeds if found[seed] is not None)
    complete = len(outcomes) == len(seeds) and all(outcome.result["complete"] for outcome in outcomes)
    accuracies = [outcome.weights.origin.test_accuracy for outcome in outcomes]
    result = {
        "complete": complete,
        "environment": environment(),
        "spec": dataclasses.asdict(spec),
        "seeds": list(seeds),
        "test_accuracy": _mean_and_std(accuracies),
        "timing": {"lanes": lanes} | (study.time_steps(outcomes[0].weights) if timing and complete else {}),
    }
    if out is not None:
        _write_json(out / RECORD, result)
    return SeedsOutcome(outcomes, result)


def read(out: Path | None, spec: TrainSpec) -> TrainingOutcome | None:
    """The outcome of a training that is complete, from its folder; None if it is not.

    Raises:
      InputError: if a training with other settings lies there.
    """
    if out is None or not (out / RECORD).exists() or not (out / weights.NAME).exists():
        return None
    try:
        result = json.loads((out / RECORD).read_text())
        same, complete = result["fingerprint"] == spec.fingerprint, result["complete"]
    except (ValueError, KeyError) as error:
        raise checks.InputError(
            f"{out / RECORD} is not a record of gi-jax train ({error}): choose another --out"
        ) from error
    if not same:
        raise checks.InputError(
            f"{out / RECORD} is of a training with other settings: repeat those, choose another --out, or add "
            "--overwrite to start anew"
        )
    return TrainingOutcome(weights.load(out), result) if complete else None


class _Study:
    """The data of a specification on the device, and what decides the program: what all seeds have in common."""

    def __init__(self, spec: TrainSpec, data_dir: str | None):
        self.spec, recipe = spec, spec.settings
        dataset = data.load(spec.data, "train", data_dir, image_size=spec.image_size)
        if spec.train_pictures is not None:
            dataset = dataset.take(np.arange(min(spec.train_pictures, len(dataset))))
        self.dataset, tested = dataset, test_split(spec, data_dir)
        self.tested = None if tested is None else on_device(tested, dataset)
        self.defense = defenses.parse(spec.defense)
        rest, held_out = _cut(dataset, recipe.validation)
        mixes_public = self.defense.mixing is not None and self.defense.mixing.num_public
        rest, public = _cut(rest, PUBLIC_SHARE if mixes_public else 0, most=5000)
        self.held_out = None if held_out is None else on_device(held_out, dataset)
        self.pool = on_device(rest, dataset)
        if public is not None:
            self.pool = self.pool._replace(public=jnp.asarray(public.as_float()))
        self.network = models.create(spec.model, dataset.num_classes)
        self._check_network()
        self.per_epoch = training.steps_per_epoch(len(rest), recipe.batch_size)
        self.total = training.step_of(self.per_epoch, recipe.epochs)
        sampling = None
        if self._private is not None:
            probability = recipe.batch_size / len(rest)
            size = privacy.sample_size(len(rest), probability)
            sampling = _Poisson(probability, size)
            self._check_accounting(probability)
        self.setup = training.Setup(network=self.network, recipe=recipe, defense=self.defense, sampling=sampling)

    @property
    def _private(self) -> dict[str, float] | None:
        """The parameters of the stage that is differentially private, if there is one."""
        return next(
            (dict(values) for name, values in self.defense.stages if defenses.DEFENSES[name].kind == Kind.DP), None
        )

    def _check_network(self):
        _, batch_stats = jax.eval_shape(
            lambda key: self.network.init(key, self.dataset.images.shape[1:]), jax.random.key(0)
        )
        for name, _ in self.defense.stages:
            if batch_stats and defenses.DEFENSES[name].first:
                raise checks.InputError(
                    f"defense {name!r} with model {self.spec.model!r}: with BatchNorm one example changes the "
                    "gradients of all others, and its statistics are not protected; take a network without, such as "
                    "convnet_group or resnet18_group"
                )

    def _check_accounting(self, probability):
        given = self._private
        if "q" not in given:
            return
        if not math.isclose(given["q"], probability, rel_tol=1e-3) or given["steps"] != self.total:
            raise checks.InputError(
                f"q={given['q']:g}, steps={given['steps']} of the defense: this training has q={probability:.6g}, "
                f"steps={self.total}; expected those, or none of q, steps and delta, for delta {DELTA:g}"
            )

    def promises(self, steps: int) -> dict:
        """What is said of the defense after so many steps: sentences, and the numbers of differential privacy."""
        if self._private is None:
            return {"words": list(self.defense.words())}
        q, delta, sigma = self.setup.sampling.probability, self._private.get("delta", DELTA), self._private["sigma"]
        accounted = dict(q=q, steps=steps, delta=delta)
        stages = [
            (name, tuple((dict(values) | accounted).items()) if defenses.DEFENSES[name].kind == Kind.DP else values)
            for name, values in self.defense.stages
        ]
        numbers = {"sampling_probability": q, "steps": steps, "delta": delta}
        if sigma > 0:
            epsilon = privacy.epsilon(sampling_probability=q, noise_multiplier=sigma, steps=steps, delta=delta)
            numbers["epsilon"] = epsilon
        return {"words": list(defenses.Defense(tuple(stages)).words()), "privacy": numbers}

    def start(self, seeds: tuple[int, ...]) -> tuple[training.TrainState, jax.Array]:
        """States and keys of the trainings, with a leading axis [lanes]."""
        keys, shape = training.training_keys(seeds), self.dataset.images.shape[1:]
        states = [
            training.start(self.setup, key, *self.network.init(jax.random.key(seed), shape))
            for seed, key in zip(seeds, keys, strict=True)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), keys

    def score(self, pool: training.Pool | None, state: training.TrainState) -> list[training.Score] | None:
        """How the network of each lane does on a pool."""
        if pool is None:
            return None
        lanes = [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in range(len(state.step))]
        return [training.evaluate(self.network, lane.params, lane.batch_stats, pool) for lane in lanes]

    def weights(self, seed: int, state: training.TrainState, lane: int, accuracy: float | None) -> Weights:
        """The weights of a lane."""
        step = int(state.step[lane])
        origin = Origin(
            model=self.spec.model,
            num_classes=self.dataset.num_classes,
            image_shape=tuple(self.dataset.images.shape[1:]),
            mean=tuple(self.dataset.mean),
            std=tuple(self.dataset.std),
            data=self.spec.data,
            epochs=self.epochs(step),
            steps=step,
            seed=seed,
            test_accuracy=accuracy,
            test_pictures=0 if self.tested is None else len(self.tested.labels),
        )
        return Weights(
            origin, *(jax.tree.map(lambda leaf: leaf[lane], tree) for tree in (state.params, state.batch_stats))
        )

    def epochs(self, step: int) -> float:
        """So many steps in epochs."""
        return round(step / self.per_epoch, 4)

    def time_steps(self, trained: Weights) -> dict:
        """Seconds per step of one training with its defense, and without if it has one."""
        undefended = dataclasses.replace(self.setup, defense=defenses.identity, sampling=None)
        setups = [self.setup] if self.setup == undefended else [self.setup, undefended]
        key = jax.random.key(self.spec.seed)
        found = training.measure(setups, trained.params, trained.batch_stats, self.pool, key)
        timing = {
            "seconds_per_step": found["seconds"][0]["median"],
            "encoding_seconds_per_epoch": found["epoch_seconds"][0]["median"],
            "blocks": found["blocks"],
            "steps_per_block": found["steps_per_block"],
            "spread": {"seconds_per_step": found["seconds"][0]},
        }
        if len(setups) > 1:
            timing |= {"seconds_per_step_undefended": found["seconds"][1]["median"], "ratio": found["ratio"]["median"]}
            timing["spread"] |= {"seconds_per_step_undefended": found["seconds"][1], "ratio": found["ratio"]}
        return timing


@dataclass(frozen=True)
class _Poisson:
    """The sampling that an epsilon of DP-SGD assumes."""

    probability: float
    size: int

    def __call__(self, key, count):
        return privacy.poisson_sample(key, count, self.probability, self.size)


class _Run:
    """The trainings of some seeds side by side, with their records."""

    def __init__(self, study, seeds, folders, out, checkpoint_epochs):
        self.study, self.seeds, self.folders, self.out = study, seeds, folders, out
        self.kept = {training.step_of(study.per_epoch, epochs): epochs for epochs in checkpoint_epochs}
        specs = [dataclasses.replace(study.spec, seed=seed) for seed in seeds]
        self.specs, self.fingerprint = specs, " ".join(spec.fingerprint for spec in specs)
        self.rows = [[] for _ in seeds]
        self.losses, self.correct = [], []
        self.seconds = {"first_chunk": 0.0, "steps": 0.0, "test": 0.0}
        self.step = 0

    def train(self, resume, on_report, should_stop, title) -> list[TrainingOutcome]:
        study, recipe = self.study, self.study.setup.recipe
        state, keys = study.start(self.seeds)
        watch = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(self.seeds)), training.watch(recipe))
        if self.out is not None:
            state, watch = self._resumed(state, watch) if resume else (state, watch)
            if not resume:
                self._remove_old()
        self.watch, saved, stopped, first = watch, time.monotonic(), False, self.step
        ends = training.epoch_ends(study.per_epoch, recipe.epochs, self.kept.values())
        for progress in training.advance(
            study.setup,
            state,
            study.pool,
            keys,
            ends=ends,
            step=self.step,
            scale=lambda: self.watch.scale,
            active=None if recipe.patience is None or len(self.seeds) == 1 else self._active,
        ):
            self.losses += progress.losses.T.tolist()
            self.correct += (progress.correct.T / recipe.batch_size).tolist()
            self.seconds["first_chunk" if self.step == first else "steps"] += progress.seconds
            self.step, state = progress.step, progress.state
            if on_report is not None:
                epoch = f"{title}epoch {1 + (self.step - 1) // study.per_epoch} of {math.ceil(recipe.epochs)}"
                done, total = self.step * recipe.batch_size, ends[-1] * recipe.batch_size
                on_report(Report(epoch, done, total, float(progress.losses.mean())))
            done = self.step == ends[-1]
            if self.step % study.per_epoch == 0 or done:
                self._close_epoch(state)
            if self.step in self.kept:
                self._keep(state, self.kept[self.step])
            done |= not self._active().any()
            stopped = not done and should_stop()
            if self.out is not None and (stopped or time.monotonic() - saved > SAVE_SECONDS):
                train_checkpoint.save(self.out, self.step, (state, self.watch), self._records())
                saved = time.monotonic()
            if stopped and self.losses:
                self._close_epoch(state)
            if stopped or done:
                break
        return self._finish(state, stopped)

    def _active(self):
        patience = self.study.setup.recipe.patience
        return jnp.full(len(self.seeds), True) if patience is None else self.watch.waited < patience

    def _close_epoch(self, state):
        study, began, active = self.study, time.monotonic(), self._active().tolist()
        validated, tested = study.score(study.held_out, state), study.score(study.tested, state)
        self.seconds["test"] += time.monotonic() - began
        losses, correct = np.mean(self.losses, 0), np.mean(self.correct, 0)
        self.losses, self.correct = [], []
        for lane, rows in enumerate(self.rows):
            if not active[lane]:
                continue
            row = {"step": self.step, "epochs": study.epochs(self.step)}
            row |= {"loss": float(losses[lane]), "train_accuracy": float(correct[lane])}
            if validated is not None:
                row |= {"validation_loss": validated[lane].loss, "validation_accuracy": validated[lane].accuracy}
            rows.append(row | {"test_accuracy": None if tested is None else tested[lane].accuracy})
        if validated is not None and self.step % study.per_epoch == 0:
            look = partial(training.look, study.setup.recipe, epoch=self.step // study.per_epoch - 1)
            self.watch = jax.vmap(look)(self.watch, jnp.float32([score.loss for score in validated]))

    def _keep(self, state, epochs):
        scores = self.study.score(self.study.tested, state)
        for lane, (seed, folder) in enumerate(zip(self.seeds, self.folders, strict=True)):
            accuracy = None if scores is None else scores[lane].accuracy
            kept = folder / f"epoch-{epochs:g}"
            kept.mkdir(parents=True, exist_ok=True)
            weights.save(kept / weights.NAME, self.study.weights(seed, state, lane, accuracy))

    def _records(self):
        names = ("fingerprint", "step", "rows", "losses", "correct", "seconds")
        return {name: getattr(self, name) for name in names}

    def _resumed(self, state, watch):
        found = train_checkpoint.load(self.out, self.fingerprint, (state, watch))
        if found is None:
            return state, watch
        (state, watch), records = found
        for name, value in records.items():
            setattr(self, name, value)
        return state, watch

    def _remove_old(self):
        train_checkpoint.remove(self.out)
        for folder in self.folders:
            (folder / weights.NAME).unlink(missing_ok=True)
            (folder / RECORD).unlink(missing_ok=True)
            for kept in folder.glob("epoch-*"):
                shutil.rmtree(kept)

    def _finish(self, state, stopped) -> list[TrainingOutcome]:
        study, outcomes = self.study, []
        for lane, (spec, folder) in enumerate(zip(self.specs, self.folders, strict=True)):
            rows = self.rows[lane]
            trained = study.weights(spec.seed, state, lane, rows[-1]["test_accuracy"])
            result = {
                "complete": not stopped,
                "fingerprint": spec.fingerprint,
                "environment": environment(),
                "spec": dataclasses.asdict(spec),
                "recipe": dataclasses.asdict(study.setup.recipe),
                "defense": study.promises(trained.origin.steps),
                "network": dataclasses.asdict(trained.origin),
                "note": study.dataset.note,
                "pictures": {
                    "train": len(study.pool.labels),
                    "validation": 0 if study.held_out is None else len(study.held_out.labels),
                    "public": 0 if study.pool.public is None else len(study.pool.public),
                    "test": trained.origin.test_pictures,
                },
                "epochs": rows,
                "timing": {f"{name}_seconds": value for name, value in self.seconds.items()},
            }
            outcome = TrainingOutcome(trained, json.loads(json.dumps(result)))
            _write(folder, outcome)
            outcomes.append(outcome)
        if self.out is not None and not stopped:
            train_checkpoint.remove(self.out)
        return outcomes


def _write(folder: Path | None, outcome: TrainingOutcome) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        weights.save(folder / weights.NAME, outcome.weights)
        _write_json(folder / RECORD, outcome.result)


def _write_json(path: Path, value: dict) -> None:
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _mean_and_std(accuracies: list[float | None]) -> dict | None:
    """Mean and sample standard deviation; None without a test split."""
    if None in accuracies or not accuracies:
        return None
    std = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    return {"mean": float(np.mean(accuracies)), "std": std, "each": accuracies}


def _check_times(checkpoint_epochs: tuple[float, ...], spec: TrainSpec, out: Path | None) -> None:
    """Refuses early checkpoints that nobody would write."""
    if checkpoint_epochs and out is None:
        raise checks.InputError(f"checkpoint_epochs={checkpoint_epochs} without a folder to write to: give out")
    for epochs in checkpoint_epochs:
        checks.positive(checkpoint_epochs=epochs)
        if epochs > spec.settings.epochs:
            raise checks.InputError(
                f"checkpoint_epochs={epochs:g}: the training ends after {spec.settings.epochs:g}; expected less"
            )


def _cut(dataset: Dataset, share: float, most: int | None = None) -> tuple[Dataset, Dataset | None]:
    """A data set without its last pictures, and these; at least one, if there is a share."""
    if not share:
        return dataset, None
    count = min(max(1, round(share * len(dataset))), most or len(dataset))
    return dataset.take(np.arange(len(dataset) - count)), dataset.take(np.arange(len(dataset) - count, len(dataset)))


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
    labels = jax.nn.one_hot(dataset.labels, units.num_classes)
    return training.Pool(jnp.asarray(dataset.images), labels, space)
