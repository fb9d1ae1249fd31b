"""From a specification to what is attacked: private batches, their encodings, and the problems they make."""

import dataclasses
import hashlib
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks, data, defenses, models
from gi_jax.attacks.labels import LazyDummies, Recovered, recover, simulate
from gi_jax.defenses.batch import encode_victim
from gi_jax.experiments import weights
from gi_jax.experiments.decode import public_pictures
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.streams import Stream, key_of
from gi_jax.once import jit_once
from gi_jax.threat import AttackProblem, Fact, ImageSpace, Mapping, Mixed, Victim, check_problem, look, observe, one_hot
from gi_jax.threat.views import average
from gi_jax.types import Images, Params


class Victims(NamedTuple):
    """The private batches of a specification, what reports say of them, and the public pictures of its defenses.

    Attributes:
      age: a sentence on the weights of their network.
    """

    batches: list[Victim]
    public: Images | None
    labels: np.ndarray
    names: list[str]
    note: str
    age: str


def digest_of(victims: Victims) -> str:
    """Of the private pictures and their labels: two copies of a data set may have them in another order."""
    batches = jax.device_get([(batch.images, batch.labels) for batch in victims.batches])
    content = b"".join(np.ascontiguousarray(array).tobytes() for pair in batches for array in pair)
    return hashlib.sha256(content).hexdigest()[:16]


_observe = jit_once(observe, static_argnames=("threat", "defense", "labels_known", "defense_known", "order_known"))
_encode = jit_once(encode_victim, static_argnames="mixing")


def make_victims(spec: AttackSpec, data_dir: str | None = None) -> Victims:
    """Loads the data, draws or loads the network's weights, and cuts the private batches.

    Raises:
      InputError: for data that is missing or too small, or a network that does not fit the threat model.
    """
    per_class = None if spec.victim_seed is not None else spec.first
    dataset = data.load(spec.data, spec.split, data_dir, image_size=spec.image_size, per_class=per_class)
    if dataset.num_classes < 2:
        left_out = f" ({dataset.left_out})" if dataset.left_out else ""
        raise checks.InputError(
            f"data {spec.data!r} has one class, {dataset.class_names[0]!r}: expected two or more for a network to "
            f"tell apart; add another class folder{left_out}"
        )
    if spec.victim_seed is None:
        chosen = data.first_per_class(dataset, spec.first)
        num_updates = spec.num_batches or max(1, min(6, len(chosen) // spec.pictures_per_update))
    else:
        num_updates = spec.num_batches or max(1, min(6, len(dataset) // spec.pictures_per_update))
        chosen = data.choose(dataset, spec.pictures_per_update * num_updates, spec.victim_seed)
    num_batches = num_updates * spec.batches_per_update
    network, params, batch_stats, space, age = _network(spec, dataset)
    if not batch_stats and (spec.client_bn == "batch" or spec.bn_prior):
        raise checks.InputError(
            f"model {spec.model!r} has no BatchNorm: leave out client_bn batch and bn_prior, or take a model that has"
        )
    victims = [
        Victim(
            network=network,
            params=params,
            batch_stats=batch_stats,
            images=jnp.asarray(batch.as_float()),
            labels=one_hot(batch.labels, dataset.num_classes),
            space=space,
        )
        for batch in data.batches(chosen, spec.batch_size, num_batches)
    ]
    labels = chosen.labels[: spec.batch_size * num_batches]
    mixings = [defenses.parse(text).mixing for text in spec.defenses]
    needs_public = any(mixing is not None and mixing.num_public for mixing in mixings)
    public = public_pictures(spec.data, spec.split, data_dir, spec.image_size) if needs_public else None
    return Victims(victims, public, labels, [dataset.class_names[label] for label in labels], dataset.note, age)


def _network(spec, dataset):
    """The model that is attacked with the units it expects, and a sentence on its age."""
    if spec.weights is None:
        network = models.create(spec.model, dataset.num_classes)
        model = network.init(jax.random.key(spec.model_seed), dataset.images.shape[1:])
        age = f"The network ({spec.model}) is at its initialization: nothing was trained."
        return network, *model, ImageSpace(mean=jnp.float32(dataset.mean), std=jnp.float32(dataset.std)), age
    trained = weights.load_for(spec)
    trained.origin.check_fits(dataset.num_classes, dataset.images.shape[1:], spec.data)
    # The units belong to the network, whatever it is shown.
    space = ImageSpace(mean=jnp.float32(trained.origin.mean), std=jnp.float32(trained.origin.std))
    return trained.network, trained.params, trained.batch_stats, space, trained.origin.words()


def encode_victims(spec: AttackSpec, victims: Victims, defense: str) -> tuple[list[Victim], Mapping | None]:
    """What the client trains on under a defense, and the secret of its encodings if it encodes its pictures.

    Each of `spec.encodings` epochs encodes the pictures of all private batches anew, as one pool, and cuts the
    encodings into batches again.

    Raises:
      InputError: for a pool that is smaller than a mixture.
    """
    mixing = defenses.parse(defense).mixing
    if mixing is None:
        return victims.batches, None
    first, count = victims.batches[0], len(victims.batches)
    images = jnp.concatenate([victim.images for victim in victims.batches])
    labels = jnp.concatenate([victim.labels for victim in victims.batches])
    pool = dataclasses.replace(first, images=images, labels=labels)
    key = key_of(spec.seed, Stream.ENCODING)
    batches, mappings = [], []
    for epoch in range(spec.encodings):
        encoded, mapping = _encode(mixing, jax.random.fold_in(key, epoch), pool, public_of(mixing, victims))
        parts = zip(jnp.split(encoded.images, count), jnp.split(encoded.labels, count), strict=True)
        batches += [dataclasses.replace(encoded, images=images, labels=labels) for images, labels in parts]
        mappings.append(mapping.without_signs())
    return batches, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *mappings)


def public_of(mixing: defenses.Mixing, victims: Victims) -> Images | None:
    """The public pictures, [m, h, w, c] in [0, 1], if the defense mixes any in."""
    return victims.public if mixing.num_public else None


def observe_all(
    spec: AttackSpec,
    victims: list[Victim],
    defense: str,
    *,
    labels_known: bool = True,
    updates: Iterable[int] | None = None,
    assumed_steps: int | None = None,
) -> list[AttackProblem]:
    """What the adversary sees of the private batches under a defense; refuses updates that hold NaN.

    Of all of them, or of the updates with these numbers. A plain attacker is told nothing of the defense, so that its
    program is the same under all of them. With `assumed_steps` it takes the updates to be made of so many local steps.
    """
    local = dict(
        local=spec.local,
        order_known=spec.order == "known",
        assumed=None if assumed_steps is None else spec.assumption(assumed_steps),
    )
    key = key_of(spec.seed, Stream.DEFENSE)
    size = spec.batches_per_update
    # Defenses of a single gradient are a few operations, sooner done than compiled.
    at_once = spec.local is not None or defenses.parse(defense).of_examples
    observe_one = _observe if at_once else observe
    problems = []
    for update in range(len(victims) // size) if updates is None else updates:
        sent = [
            observe_one(
                victims[number],
                threat=spec.threat,
                defense=defenses.parse(defense),
                key=jax.random.fold_in(key, number),
                labels_known=labels_known,
                defense_known=spec.attacker != "plain",
                **local,
            )
            for number in range(update * size, (update + 1) * size)
        ]
        # A compiled `observe` gives copies of the model back.
        model = dict(params=victims[0].params, space=sent[0].space)
        sent = [dataclasses.replace(problem, known=told(spec, problem.known), **model) for problem in sent]
        for problem in sent:
            check_problem(problem)
        problems += look(spec.view, sent, spec.threat, aggregate=_aggregate(spec, update))
    return problems


def told(spec: AttackSpec, facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """Of the facts about a defense, those that the attacker of a specification is told."""
    wanted = {"adaptive": object, "encodings": Mixed, "plain": ()}[spec.attacker]
    return tuple(fact for fact in facts if isinstance(fact, wanted))


def make_problems(
    spec: AttackSpec,
    victims: list[Victim],
    defense: str,
    updates: Iterable[int] | None = None,
    assumed_steps: int | None = None,
) -> list[AttackProblem]:
    """The same, with the labels that the adversary of a single run works with: told, recovered, or none yet."""
    (how,) = spec.labels
    told = how == "known"
    problems = observe_all(spec, victims, defense, labels_known=told, updates=updates, assumed_steps=assumed_steps)
    if spec.box == "reference":
        problems = [dataclasses.replace(problem, space=reference_box(problem.space)) for problem in problems]
    if how not in ("known", "optimize"):
        problems = [problem.with_labels(recover_labels(spec, problem, how).labels) for problem in problems]
    if spec.precision != "float32":
        imagined = models.narrowed(victims[0].network, spec.precision)
        problems = [dataclasses.replace(problem, network=imagined) for problem in problems]
    return problems


def reference_box(space: ImageSpace) -> ImageSpace:
    """The box of the paper's published code: that of pictures normalized by these numbers, whatever `space` has."""
    mean, std = jnp.float32([0.4914672, 0.4822617, 0.4467701]), jnp.float32([0.2470322, 0.2434851, 0.2615879])
    low, high = space.mean - mean / std * space.std, space.mean + (1 - mean) / std * space.std
    return dataclasses.replace(space, low=low, high=high)


def recover_labels(
    spec: AttackSpec, problem: AttackProblem, method: str, dummies: LazyDummies | None = None
) -> Recovered:
    """The labels from the gradient, by a method that sees the model after local steps too.

    Args:
      spec: for its seed.
      problem: what the adversary holds.
      method: a key of `METHODS`, or `auto`.
      dummies: from `dummies_of`, if several problems share them.
    """
    dummies = dummies or dummies_of(spec, problem)
    after = None if problem.local is None else dummies_of(spec, problem, problem.params_after)
    return recover(problem, method, dummies, dummies_after=after)


def dummies_of(spec: AttackSpec, problem: AttackProblem, params: Params | None = None) -> LazyDummies:
    """The random pictures that some label methods look at, as the problem's weights see them, or others."""
    return simulate(problem, key_of(spec.seed, Stream.DUMMIES), params=params)


def _aggregate(spec, number):
    """How the updates of a round are added up: under masks where a server is to see nothing but the sum."""
    if spec.view != "sum":
        return average
    key = jax.random.fold_in(key_of(spec.seed, Stream.AGGREGATION), number)
    return partial(defenses.secure_mean, key=key)


def pictures(batches: list[Victim]) -> np.ndarray:
    """All their pictures, [n, h, w, c] in [0, 1]."""
    return np.concatenate([np.asarray(victim.images) for victim in batches])
