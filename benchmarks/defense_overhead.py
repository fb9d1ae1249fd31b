"""Seconds per training step with each defense against none, and the share of the defense in the step.

The step is plain SGD on a client's batch: gradient, defense, update of the weights, compiled as one program. The
network has GroupNorm, so that every defense can run, those that need a gradient an example included. All rows run in
turns, round by round. The ratio of a row is its time over that of the undefended step in the same round; the share of
the defense in the step is 1 - 1 / ratio (below 0 where the noise of the machine is larger than the defense).

Soteria takes one backward pass for each input of the last layer, 8,192 for `convnet_group` at 32x32 and 512 for
`resnet18_group`: its row is timed in steps of its own, fewer a round.

Defenses that encode pictures do it in every step, the batch being its own pool (and its own public pictures).
"""

from functools import partial
from typing import NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import Report

from gi_jax import data, defenses, models, threat

LEARNING_RATE = 0.1
ROWS = (
    "none",
    "prune:p=0.9",
    "prune_global:p=0.9",
    "top_k:k=1000",
    "gaussian:sigma=0.001",
    "gaussian:relative=0.1",
    "laplacian:scale=0.001",
    "clip:norm=1",
    "clip_per_example:norm=1",
    "dpsgd:clip=1,sigma=1",
    "sign",
    "qsgd:levels=16",
    "quantize:bits=8",
    "soteria:p=0.5",
    "mixup:k=4",
    "intra_instahide:k=4",
    "inter_instahide:k=4",
)
"""As on the command line."""


class Point(NamedTuple):
    """One size: a table of all rows.

    Attributes:
      model: a network without BatchNorm.
      side: pictures are side x side.
      batch: pictures in a step.
      steps: a round; Soteria takes one.
    """

    model: str
    side: int
    batch: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model}_{self.side}_b{self.batch}"


QUICK = (Point("convnet_group", 16, 8, 5),)
FULL = (Point("convnet_group", 32, 16, 5), Point("resnet18_group", 32, 16, 2))


def client_of(point: Point) -> threat.ClientStep:
    """A client with fresh weights and embedded photographs as its batch."""
    photos = data.load("photos", "train", image_size=point.side).take(np.arange(point.batch))
    network = models.create(point.model, photos.num_classes)
    params, batch_stats = network.init(jax.random.key(0), (point.side, point.side, 3))
    space = threat.ImageSpace(mean=jnp.array(photos.mean), std=jnp.array(photos.std))
    images = space.normalize(jnp.array(photos.as_float()))
    batch = threat.Batch(images, threat.one_hot(photos.labels, photos.num_classes))
    return threat.ClientStep(network, models.Normalize.GIVEN, params, batch_stats, batch)


class Trainer:
    """Trains by one compiled step, and keeps weights and the defense's state between rounds."""

    def __init__(self, client: threat.ClientStep, defense: defenses.Defense, steps: int):
        transformation, mixing = defense(jax.random.key(1)), defense.mixing

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, key, batch):
            key, key_encode = jax.random.split(key)
            if mixing is not None:
                public = batch.images if mixing.num_public else None
                batch = threat.Batch(*mixing(key_encode, *batch, public)[:2])
            now = client._replace(params=params, batch=batch)
            sent, state = transformation.update(now.update().gradients, state, params, client=now)
            return jax.tree.map(lambda weights, change: weights - LEARNING_RATE * change, params, sent), state, key

        self.weights = jax.tree.map(jnp.copy, (client.params, transformation.init(client.params), jax.random.key(2)))
        self.built = harness.build(step, *self.weights, client.batch)
        self.batch, self.steps = client.batch, steps

    def __call__(self):
        for _ in range(self.steps):
            self.weights = self.built.program(*self.weights, self.batch)
        return self.weights


def measure_point(report: Report, point: Point, *, rounds: int) -> None:
    """Compiles all rows, runs them in turns, and adds a table row and a ratio each."""
    client = client_of(point)
    trainers = {
        row: Trainer(client, defenses.parse(row), 1 if row.startswith("soteria") else point.steps) for row in ROWS
    }
    sides = {row: harness.side(trainer, units=trainer.steps) for row, trainer in trainers.items()}
    samples = harness.interleave(sides, rounds)
    for row, seconds in samples.items():
        ratio = seconds.over(samples["none"])
        report.add(
            {
                "point": point.name,
                "defense": row,
                "s / step": seconds.summary(),
                "over none": ratio.summary(4),
                "share of the step": harness.Sample(tuple(1 - 1 / value for value in ratio.values)).summary(4),
                "compile s": trainers[row].built.seconds,
                "program GB": trainers[row].built.bytes / 1e9,
            }
        )
        if row != "none":
            report.ratios[f"{point.name}_{row}"] = ratio
    harness.end_if_stopped()


def measure(report: Report, quick: bool) -> None:
    """All rows at every size."""
    for point in QUICK if quick else FULL:
        measure_point(report, point, rounds=3 if quick else 5)


if __name__ == "__main__":
    harness.main("defense_overhead", __doc__, measure)
