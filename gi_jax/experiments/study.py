"""What the trainings of a specification have in common: data on the device, program, promises, and time per step."""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks, data, defenses, models, training
from gi_jax.data import Dataset
from gi_jax.defenses import Kind, privacy
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.experiments.weights import Origin, Weights
from gi_jax.threat import ImageSpace

PUBLIC_SHARE = 0.1
"""Of the train split, set aside for a defense that mixes in public pictures; 5,000 pictures at most."""
DELTA = 1e-5
"""Of the privacy that is stated, unless the defense names another (Abadi et al. 2016)."""


class Study:
    """The data of a specification on the device, and what decides the program: what all seeds have in common."""

    def __init__(self, spec: TrainSpec, data_dir: str | None):
        self.spec, recipe = spec, spec.settings
        dataset = data.load(spec.data, "train", data_dir, image_size=spec.image_size)
        if spec.train_pictures is not None:
            dataset = dataset.take(np.arange(min(spec.train_pictures, len(dataset))))
        self.dataset, tested = dataset, test_split(spec, data_dir)
        self.tested = None if tested is None else on_device(tested, dataset)
        self.defense = defenses.parse(spec.defense)
        if self._private is not None and recipe.validation:
            raise checks.InputError(
                f"defense {spec.defense!r} with recipe {spec.recipe!r}: the loss on held-out private pictures, without "
                "noise, decides the rates and the end, which no epsilon covers; expected a recipe without one (plain, "
                "appendix, fast)"
            )
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
            test_pictures=0 if accuracy is None else len(self.tested.labels),
            defense=self.spec.defense,
            train_pictures=len(self.pool.labels),
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


def on_device(dataset: Dataset, units: Dataset | Origin) -> training.Pool:
    """The pictures on the device, in the units and with the classes of another data set, or of a network's."""
    space = ImageSpace(mean=jnp.float32(units.mean), std=jnp.float32(units.std))
    labels = jax.nn.one_hot(dataset.labels, units.num_classes)
    return training.Pool(jnp.asarray(dataset.images), labels, space)
