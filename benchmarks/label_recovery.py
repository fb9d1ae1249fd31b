"""How many labels each method recovers from the gradient: batch sizes, repeated labels, two networks.

The client takes one FedSGD step in training mode. `distinct` batches hold no label twice, `random` ones are drawn from
all pictures, so that labels repeat. Ten classes are pictures (the embedded photographs, or CIFAR-10 with --data-dir); a
hundred classes are synthetic smooth pictures with labels of no meaning, so that batches of 32 and 64 without repetition
exist.

`classes` is the overlap of sets: classes in both batches over classes in either. `counts` is the overlap of counts: the
share of pictures whose label was recovered. Means over n batches; `all right` is the share of batches without an error.
Only the gradient of the last layer is computed. Networks are at their initialization, or one is that of --weights, with
the pictures whose classes it tells apart.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import Report

from gi_jax import checks, data, defenses, metrics, models
from gi_jax.attacks import labels
from gi_jax.data.synthetic import smooth_images
from gi_jax.experiments import weights as weights_files
from gi_jax.threat import THREATS, AttackProblem, ImageSpace, Victim, observe, one_hot

THREAT = THREATS["infer"]
BATCH_SIZES = (1, 8, 32, 64)
NUM_SYNTHETIC = 256


class Pool(NamedTuple):
    """Pictures [n, h, w, c] in [0, 1] to draw batches from, and their labels [n]."""

    name: str
    images: jax.Array
    labels: np.ndarray
    num_classes: int
    space: ImageSpace


def real_pool(data_dir: str | None) -> Pool:
    """The photographs, or 200 pictures of each class of CIFAR-10."""
    name = "photos" if data_dir is None else "cifar10"
    dataset = data.load(name, "train", data_dir, per_class=200)
    space = ImageSpace(mean=jnp.float32(dataset.mean), std=jnp.float32(dataset.std))
    return Pool(name, jnp.asarray(dataset.as_float()), dataset.labels, dataset.num_classes, space)


def synthetic_pool() -> Pool:
    """A hundred classes."""
    images = smooth_images(jax.random.key(0), NUM_SYNTHETIC, 32, 32)
    space = ImageSpace(mean=jnp.full(3, 0.5), std=jnp.full(3, 0.25))
    return Pool("synthetic", images, np.arange(NUM_SYNTHETIC) % 100, 100, space)


def draw(pool: Pool, kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices [size] of a batch."""
    if kind == "distinct":
        order = rng.permutation(len(pool.labels))
        _, first = np.unique(pool.labels[order], return_index=True)
        return rng.permutation(order[first])[:size]
    return rng.choice(len(pool.labels), size, replace=False)


@partial(jax.jit, static_argnames="threat")
def observed_head(victim: Victim, threat) -> dict:
    """The gradient of the last layer; what the compiler finds unused of the others is not computed."""
    problem = observe(victim, threat, defenses.identity, jax.random.key(0), labels_known=False)
    return {"head": problem.observed["head"]}


class Model(NamedTuple):
    """A network with its weights, and its name in the table."""

    name: str
    network: models.FlaxNetwork
    params: dict
    batch_stats: dict


def untrained(name: str, num_classes: int) -> Model:
    """At its initialization."""
    network = models.create(name, num_classes)
    return Model(name, network, *network.init(jax.random.key(0), (32, 32, 3)))


def cases(networks: tuple[str, ...], weights: str | None, data_dir: str | None) -> Iterator[tuple[Model, Pool]]:
    """Every network with every pool; a trained one with the pool of its classes, in the units it was trained in."""
    if weights is None:
        for name in networks:
            for pool in (real_pool(data_dir), synthetic_pool()):
                yield untrained(name, pool.num_classes), pool
        return
    trained, pool = weights_files.load(weights), real_pool(data_dir)
    origin = trained.origin
    origin.check_fits(pool.num_classes, pool.images.shape[1:], pool.name)
    space = ImageSpace(mean=jnp.float32(origin.mean), std=jnp.float32(origin.std))
    name = f"{origin.model}, {origin.epochs:g} epochs"
    yield Model(name, trained.network, trained.params, trained.batch_stats), pool._replace(space=space)


def problems(
    pool: Pool, model: Model, kind: str, size: int, num_batches: int
) -> Iterator[tuple[AttackProblem, np.ndarray]]:
    """Problems of random batches with their true counts; only the head of `observed` is there."""
    _, network, params, batch_stats = model
    rng = np.random.default_rng([size, len(kind)])
    for _ in range(num_batches):
        chosen = draw(pool, kind, size, rng)
        victim = Victim(
            network=network,
            params=params,
            batch_stats=batch_stats,
            images=pool.images[chosen],
            labels=one_hot(pool.labels[chosen], pool.num_classes),
            space=pool.space,
        )
        problem = AttackProblem(
            network=network,
            normalize=THREAT.adversary,
            image_shape=victim.images.shape,
            params=params,
            statistics=batch_stats,
            observed=observed_head(victim, THREAT),
            labels=None,
            space=pool.space,
        )
        yield problem, np.bincount(pool.labels[chosen], minlength=pool.num_classes).astype(float)


def measure(
    report: Report, quick: bool, data_dir: str | None = None, network: str | None = None, weights: str | None = None
) -> None:
    """A row for each network, kind of batch, size and method."""
    networks = ("convnet",) if quick else ("convnet", "resnet18")
    sizes = (1, 8) if quick else BATCH_SIZES
    num_batches = 3 if quick else 5
    if network is not None and weights is not None:
        raise checks.InputError("--network and --weights: the weights say which network; leave --network out")
    for model, pool in cases(networks if network is None else (network,), weights, data_dir):
        print(f"{model.name}, {pool.name}", flush=True)
        for size in sizes:
            dummies = None  # the same for all batches of a size
            for kind in ("distinct", "random"):
                if kind == "distinct" and size > pool.num_classes or kind == "random" and size == 1:
                    continue
                drawn = list(problems(pool, model, kind, size, num_batches))
                dummies = dummies or labels.simulate(drawn[0][0], jax.random.key(1))
                _measure_methods(report, (model, pool, kind, size), drawn, dummies)
    if weights is not None:
        report.note(weights_files.load(weights).origin.words())
    report.note("Methods whose needs the network does not meet, or the batch size, are left out of the table.")


def _measure_methods(report, case, drawn, dummies):
    model, pool, kind, size = case
    ranks = [labels.estimate_num_images(problem).at_least for problem, _ in drawn]
    for method in labels.METHODS:
        if labels.unmet(method, drawn[0][0], dummies):
            continue
        pairs = [(labels.recover(problem, method, dummies).counts, truth) for problem, truth in drawn]
        report.add(
            {
                "network": model.name,
                "data": f"{pool.name}, {pool.num_classes} classes",
                "labels": kind,
                "batch": size,
                "method": method,
                "classes": float(np.mean([metrics.set_overlap(*pair) for pair in pairs])),
                "counts": float(np.mean([metrics.count_overlap(*pair) for pair in pairs])),
                "all right": float(np.mean([np.allclose(*pair, atol=0.01) for pair in pairs])),
                "n": len(pairs),
                "rank": f"{min(ranks)} to {max(ranks)}",
            }
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beyond those of every benchmark."""
    parser.add_argument("--network", metavar="M", help="only this one, see gi-jax list models")
    parser.add_argument("--weights", metavar="W", help="of gi-jax train, folder or file: only this network")
    parser.add_argument("--data-dir", metavar="P", help="a copy of CIFAR-10, instead of the embedded photographs")


if __name__ == "__main__":
    harness.main("label_recovery", __doc__, measure, add_arguments)
