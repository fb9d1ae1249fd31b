"""Pictures a second of training, under each defense and beside PyTorch, and seconds to an accuracy on CIFAR-10.

A step is that of `gi-jax train` (`gi_jax.training.run_steps`): a batch from the pool on the device, gradient, defense,
weight decay and Nesterov momentum, running averages; steps are a loop in one launch, and the share of what is done once
an epoch (its order, its encodings) is counted. Pictures are not augmented, on neither side. All rows run in turns, and
a ratio is that of the same round: `vs_none` is the speed under a defense over the undefended one, `vs_torch` ours over
that of the same network, weights and recipe in PyTorch, undefended. The losses of both sides, on batches drawn at
random, stand beside their speed.

With `--data-dir`, a copy of CIFAR-10, a full run trains ResNet-18 by the recipe `fast` and says after how many seconds
it got 90 % and 93 % of the test pictures right. The accuracy is looked at after every epoch, and seconds are those of
the steps: without compilation, and without the test. The training lies in `--out`, and the same command goes on with
it.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from beside import Beside, named
from harness import Report, Sample

from gi_jax import checks, data, defenses, models, training
from gi_jax.experiments import recipes
from gi_jax.experiments.study import on_device
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.experiments.training import run_training
from gi_jax.training.epoch import LONGEST_CHUNK

ROWS = ("none", "prune:p=0.9", "gaussian:sigma=0.001", "clip:norm=1", "mixup:k=4", "intra_instahide:k=4")
"""Defenses that networks with BatchNorm can run."""
ACCURACIES = (0.90, 0.93)
ACCURACY = "accuracy"
"""The name of the part that trains until then."""


class Point(NamedTuple):
    """One network and size.

    Attributes:
      model: with BatchNorm.
      batch: pictures a step.
      pool: pictures of an epoch.
      steps: of a round, at most those of an epoch.
    """

    model: str
    batch: int
    pool: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model}_b{self.batch}"


QUICK = (Point("convnet", 64, 512, 4),)
FULL = (Point("convnet", 64, 2048, 16), Point("resnet18", 64, 2048, 2), Point("resnet18", 256, 2048, 1))


def pool_of(point: Point) -> training.Pool:
    """Embedded photographs, again and again."""
    photos = data.load("photos", "train")
    return on_device(photos.take(np.arange(point.pool) % len(photos)), photos)


class Trainer:
    """Trains from one state to the next under a defense; a call is an epoch's draw and some steps of it.

    Attributes:
      loss: of the last step.
    """

    def __init__(self, point: Point, defense: str, pool: training.Pool):
        recipe = dataclasses.replace(recipes.recipe("fast", defenses.identity), batch_size=point.batch, augment=False)
        network = models.create(point.model, pool.labels.shape[1])
        self.setup = training.Setup(network=network, recipe=recipe, defense=defenses.parse(defense))
        self.pool, self.steps, self.keys = pool, point.steps, training.training_keys([0])
        self.model = network.init(jax.random.key(0), pool.images.shape[1:])
        state = training.start(self.setup, self.keys[0], *self.model)
        self.state, self.epoch = jax.tree.map(lambda leaf: leaf[None], state), 0
        self.built = harness.build(training.run_steps, self.setup, self.state, pool, self._draw(), *self._numbers())
        self.epoch_share = point.steps / training.steps_per_epoch(point.pool, point.batch)

    def _draw(self):
        return training.draw_epoch(self.setup, self.pool, self.keys, jnp.int32(self.epoch))

    def _numbers(self):
        rates = np.full(LONGEST_CHUNK, self.setup.recipe.learning_rate / 10, np.float32)  # no warm-up here
        return self.keys, jnp.int32(0), jnp.int32(self.steps), rates, jnp.ones(1)

    def draw(self):
        """The order, and the encodings, of the next epoch."""
        self.epoch += 1
        self.drawn = self._draw()
        return self.drawn

    def advance(self):
        """Steps of that epoch."""
        self.state, losses, _ = self.built.program(self.state, self.pool, self.drawn, *self._numbers())
        self.loss = losses[0, self.steps - 1]
        return self.loss

    def side(self) -> harness.Side:
        """Seconds a picture: of the steps, and their share of an epoch's draw."""
        draw, advance = (
            harness.side(call, units=self.setup.recipe.batch_size * self.steps) for call in (self.draw, self.advance)
        )
        return lambda: self.epoch_share * draw() + advance()


def torch_side(torch: Beside, trainer: Trainer, point: Point) -> harness.Side:
    """The same network, weights, pictures and recipe over there; seconds a picture."""
    recipe, pool, (params, batch_stats) = trainer.setup.recipe, trainer.pool, trainer.model
    torch(
        "prepare_training",
        model=point.model,
        params=named(params),
        averages=named(batch_stats),
        images=np.asarray(pool.space.normalize(training.step.to_floats(pool.images))),
        labels=np.asarray(pool.labels.argmax(-1)),
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate / 10,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        label_smoothing=recipe.label_smoothing,
        device=torch("best_device"),
    )
    return torch.side(point.steps, units=point.steps * point.batch)


def measure_point(report: Report, point: Point, torch: Beside | None, rounds: int) -> None:
    """Compiles all rows, runs them and PyTorch in turns; adds a table row and a ratio each."""
    pool = pool_of(point)
    trainers = {row: Trainer(point, row, pool) for row in ROWS}
    sides = {row: trainer.side() for row, trainer in trainers.items()}
    if torch is not None:
        sides["torch"] = torch_side(torch, trainers["none"], point)
    samples = harness.interleave(sides, rounds)
    for name, seconds in samples.items():
        trainer = trainers.get(name)
        report.add(
            {
                "point": point.name,
                "defense": "none, PyTorch" if trainer is None else name,
                "pictures / s": Sample(tuple(1 / value for value in seconds.values)).summary(1),
                "s / step": seconds.median * point.batch,
                "loss": torch.loss if trainer is None else float(trainer.loss),
                "after steps": point.steps * (len(seconds.values) + 1),
                "compile s": None if trainer is None else trainer.built.seconds,
                "program GB": None if trainer is None else trainer.built.bytes / 1e9,
            }
        )
    report.ratios |= speeds(point, samples)
    harness.end_if_stopped()


def speeds(point: Point, samples: dict[str, Sample]) -> dict[str, Sample]:
    """The speed of each row over the undefended one's, and of that over PyTorch's; from seconds a picture."""
    own = samples["none"]
    ratios = {} if "torch" not in samples else {f"{point.name}_vs_torch": samples["torch"].over(own)}
    others = [name for name in samples if name not in ("none", "torch")]
    return ratios | {f"{point.name}_{name}_vs_none": own.over(samples[name]) for name in others}


def seconds_to(result: dict, accuracy: float) -> float | None:
    """From the content of `training.json`: seconds of steps until the end of the first epoch that is so accurate."""
    first_epochs = (row for row in result["epochs"] if row["test_accuracy"] >= accuracy)
    reached = next(first_epochs, None)
    # The first chunk, which compiles, is a step of thousands.
    return reached and result["timing"]["steps_seconds"] * reached["step"] / result["epochs"][-1]["step"]


def measure_accuracy(report: Report, data_dir: str, out: Path) -> None:
    """Trains ResNet-18 on CIFAR-10 by the recipe `fast`, or goes on with it; a note on each accuracy, and a row."""
    spec = TrainSpec(data="cifar10", model="resnet18", recipe="fast")

    titles = set()

    def tell(progress):
        if progress.title not in titles:
            titles.add(progress.title)
            print(f"{progress.title}: loss {progress.loss:.3f}", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    result = run_training(spec, data_dir, out=out, resume=True, timing=False, on_report=tell).result
    last = result["epochs"][-1]
    report.note(
        f"resnet18, recipe fast: {last['test_accuracy']:.2%} of {result['pictures']['test']} test pictures after "
        f"{last['epochs']:g} epochs, {result['timing']['steps_seconds']:.0f} s of steps, n = 1."
    )
    seconds_of = {accuracy: seconds_to(result, accuracy) for accuracy in ACCURACIES}
    accuracies = {f"seconds to {accuracy}": seconds for accuracy, seconds in seconds_of.items()}
    report.add({"point": "resnet18, fast", "test accuracy": last["test_accuracy"]} | accuracies)
    for accuracy, seconds in seconds_of.items():
        report.note(f"{accuracy:.0%}: {'not reached' if seconds is None else f'after {seconds:.0f} s'}.")


def measure(
    report: Report,
    quick: bool,
    data_dir: str | None = None,
    out: Path = Path("benchmark-training"),
    only: list[str] | None = None,
) -> None:
    """All points, then the accuracy, if there is data for it; or some of these.

    Raises:
      InputError: for a part that there is not, the accuracy without data, or data for a quick run.
    """
    points = {point.name: point for point in (QUICK if quick else FULL)}
    accuracy = [] if data_dir is None else [ACCURACY]
    if quick and accuracy:
        raise checks.InputError(f"--data-dir {data_dir} with --quick: expected a full run; leave one of them out")
    if ACCURACY in (only or ()) and not accuracy:
        raise checks.InputError(f"--only {ACCURACY} without --data-dir: expected a copy of CIFAR-10 for a full run")
    for part in only or ():
        checks.one_of("part", part, [*points, *accuracy])
    parts = only or [*points, *accuracy]
    harness.check_cifar10(data_dir)
    torch = Beside() if harness.has("torch") and any(part in points for part in parts) else None
    if not harness.has("torch"):
        report.note("PyTorch is not installed, so its loop is left out: pip install 'gi_jax[bench]'.")
    try:
        for name, point in points.items():
            if name in parts:
                measure_point(report, point, torch, rounds=3)
    finally:
        if torch is not None:
            torch.close()
    if ACCURACY in parts:
        measure_accuracy(report, data_dir, out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beyond those of every benchmark."""
    names = ", ".join(point.name for point in FULL)
    parser.add_argument("--data-dir", metavar="P", help="a copy of CIFAR-10: adds seconds to an accuracy to a full run")
    parser.add_argument("--only", action="append", metavar="PART", help=f"{names} or {ACCURACY}; repeat it for several")
    default = Path("benchmark-training")
    parser.add_argument("--out", type=Path, metavar="DIR", default=default, help=f"of that training ({default})")


if __name__ == "__main__":
    harness.main("training", __doc__, measure, add_arguments)
