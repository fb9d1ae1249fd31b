"""The published code of the paper (GradAttack) beside ours: the client's gradient, the objective, and what is found.

Both get the same network, private pictures, labels and start, and the settings of Table 2: a client that normalizes
with its batch's own statistics, to whose exact values the prior draws, cosine distance, total variation 0.05, signed
Adam at rate 0.1, divided by ten after 3/8, 5/8 and 7/8 of the steps. GradAttack's side is its own ResNet-18, client and
attack; only its trainer, and its box (that of another normalization), are left out. ResNet-18 is at initialization and
the pictures are photographs, unless `--weights` and `--data` name others.

Both are judged by their last guess. `gradient` is the norm of the difference of the clients' gradients over that of
ours; `loss at start` is the whole objective there. As the steps are those of signs, rounding parts the two ways within
tens of steps: what is to agree at the end is how far they come, not where they are. A ratio is our last loss over
theirs, below 1 where we come further.
"""

import argparse
from pathlib import Path

import harness
import jax
import numpy as np
from beside import Beside, named
from harness import Report, Sample

from gi_jax import attacks, metrics
from gi_jax.checks import InputError
from gi_jax.experiments.catalogue import SCALES, published_attack
from gi_jax.experiments.plan import make_attack
from gi_jax.experiments.victims import make_problems, make_victims
from gi_jax.experiments.weights import settings_of
from gi_jax.threat import stack


def measure(
    report: Report,
    quick: bool,
    weights: Path | None = None,
    data: str = "photos",
    data_dir: str | None = None,
    victims: int = 2,
    steps: int = 400,
) -> None:
    """A row for each picture.

    Raises:
      InputError: without GradAttack, and for what cannot be attacked.
    """
    if not harness.has("gradattack"):
        raise InputError("gradattack is not installed: expected it, see versus_peers.py for how")
    victims, steps = (1, 20) if quick else (victims, steps)
    changes = dict(data=data, model="resnet18", steps=steps, first=-(-victims // 10))
    if weights is not None:
        changes |= settings_of(weights)
    spec = published_attack(SCALES["paper"], "none", 1, victims, **changes)
    private = make_victims(spec, data_dir).batches
    attack, problems = make_attack(spec), make_problems(spec, private, "none")
    beside, ratios = Beside("peer_gradattack"), []
    try:
        for number, (victim, problem) in enumerate(zip(private, map(lambda one: stack([one]), problems), strict=True)):
            states = attacks.start(attack, problem, attacks.lane_keys(jax.random.key(spec.seed), [number], 1))
            theirs = beside(
                "published",
                params=named(victim.params),
                images=np.asarray(victim.space.normalize(victim.images)),
                labels=np.asarray(victim.labels.argmax(-1)),
                start=np.asarray(states.candidate.images[0, 0, 0]),
                mean=np.asarray(victim.space.mean),
                std=np.asarray(victim.space.std),
                tv=spec.tv,
                bn_prior=spec.bn_prior,
                learning_rate=spec.rate,
                steps=steps,
            )
            ours = _attacked(attack, problem, states)
            sides = {"GradAttack": theirs | {"found": victim.space.denormalize(theirs["found"])}, "gi_jax": ours}
            for name, side in sides.items():
                truth = np.asarray(victim.images)
                (scores,) = metrics.score(truth, np.asarray(side["found"]), metrics.nets_for(truth.shape[1:]))
                report.add(
                    {
                        "picture": number,
                        "side": name,
                        "gradient": _difference(side["gradient"], ours["gradient"]),
                        "loss at start": side["losses"][0],
                        "last loss": side["losses"][-1],
                        "steps": steps,
                        **{metric: value for metric, value in scores.items() if metric != "mse"},
                    }
                )
            ratios.append(ours["losses"][-1] / theirs["losses"][-1])
            report.ratios["last_loss"] = Sample(tuple(ratios))
    finally:
        beside.close()


def _attacked(attack, problem, states):
    """As `peer_gradattack.published`: the gradient, the losses at the start and at the end, and the last guess."""
    states, first = next(attacks.advance(attack, problem, states, chunk=1))
    *_, (states, last) = attacks.advance(attack, problem, states, chunk=int(attack.num_steps))
    found = problem.space.denormalize(states.candidate.images[0, 0, 0])
    observed = named(jax.tree.map(lambda leaf: leaf[0], problem.observed))
    losses = [float(progress.loss.squeeze()) for progress in (first, last)]
    return {"gradient": observed, "losses": losses, "found": found}


def _difference(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> float:
    apart = sum(float(np.sum((theirs[name] - ours[name]) ** 2)) for name in ours)
    return (apart / sum(float(np.sum(leaf**2)) for leaf in ours.values())) ** 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beyond those of every benchmark."""
    add = parser.add_argument
    add("--weights", type=Path, metavar="W", help="a network of gi-jax train, or of a store of gi-jax run")
    add("--data", default="photos", metavar="D", help="photos, cifar10 or folder:PATH (photos)")
    add("--data-dir", metavar="P", help="a copy of cifar10")
    add("--victims", type=int, default=2, metavar="N", help="pictures, each attacked alone (2)")
    add("--steps", type=int, default=400, metavar="N", help="of the attack (400)")


if __name__ == "__main__":
    harness.main("published_code", __doc__, measure, add_arguments)
