"""What the adversary holds (`AttackProblem`) and what it wants (`Victim`); `observe` makes one from the other.

`AttackProblem` has no field for the truth, so an attack cannot peek.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from gi_jax import checks
from gi_jax.models import Network, Normalize, is_factored
from gi_jax.once import jit_once
from gi_jax.threat.batch_norm import BatchNormThreat, Shared
from gi_jax.threat.client import Batch, ClientStep, Update, client_update
from gi_jax.threat.knowledge import Fact
from gi_jax.threat.local import (
    LocalTraining,
    deal,
    several,
    shared_after_training,
    successive_models,
    train_locally,
)
from gi_jax.types import BatchStats, Gradients, Images, Key, Labels, Params


def _static(**options):
    return field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ImageSpace:
    """Units of the pictures: the network sees (picture - mean) / std, for pictures in [0, 1].

    Attributes:
      mean, std: [c], in the units of the pictures.
      low, high: [c], the box that an attack stays in, in the units of the pictures; None for 0 and 1.
    """

    mean: jax.Array
    std: jax.Array
    low: jax.Array | None = None
    high: jax.Array | None = None

    def normalize(self, pictures: Images) -> Images:
        """From [0, 1] to the network's units."""
        return (pictures - _channels(self.mean, pictures)) / _channels(self.std, pictures)

    def denormalize(self, images: Images) -> Images:
        """From the network's units to pictures, clipped to [0, 1]."""
        return jnp.clip(images * _channels(self.std, images) + _channels(self.mean, images), 0.0, 1.0)

    def clip(self, images: Images) -> Images:
        """Projects on the box that pictures from `low` to `high` fill in the network's units."""
        mean, std = _channels(self.mean, images), _channels(self.std, images)
        low = 0.0 if self.low is None else _channels(self.low, images)
        high = 1.0 if self.high is None else _channels(self.high, images)
        return jnp.clip(images, (low - mean) / std, (high - mean) / std)

    def signed(self) -> "ImageSpace":
        """The units of sign-flipped images: the same values for the network, in a box that holds x and -x.

        Its pictures show 0 as the middle gray; flipping a sign mirrors them about it.
        """
        limit = jnp.maximum(self.mean, 1 - self.mean) / self.std
        return ImageSpace(mean=jnp.full_like(self.mean, 0.5), std=0.5 / limit)


def _channels(vector: jax.Array, images: Images) -> jax.Array:
    return vector.reshape((1,) * (images.ndim - 1) + (-1,))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Victim:
    """The client's secret: its batch, and the model that it was given.

    Attributes:
      network: static.
      params, batch_stats: the model before the step.
      images: pictures, float32 [n, h, w, c] in [0, 1].
      labels: class probabilities [n, num_classes].
      space: the units that the network expects.
      encoded: whether the images are encodings, of `gi_jax.defenses.encode_victim`; static.
    """

    network: Network = _static()
    params: Params
    batch_stats: BatchStats
    images: Images
    labels: Labels
    space: ImageSpace
    encoded: bool = _static(default=False)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AttackProblem:
    """What the adversary holds. There is no field for the truth.

    Array fields may carry leading axes for lanes; static fields choose the program.

    Attributes:
      network: the architecture; static.
      normalize: how the adversary runs the normalization layers; static.
      image_shape: (n, h, w, c) of the private batch; static.
      params: the weights that the client's step started from.
      statistics: normalization statistics as far as shared, mean and var a layer; None if nothing was.
      observed: the gradient as it was sent, after the client's defense; after local steps their mean gradient.
      labels: class probabilities [n, num_classes] if known, else None.
      space: units and range of the pictures.
      known: what the adversary is told about the client's defense, in the order of its stages.
      clients: how many clients' mean update was observed, each of whom took a step on its own equal part of the batch,
        one after the other, with its own statistics, which have a leading axis [clients] if there are several; static.
      local: the steps that the adversary takes the update to be made of, right or wrong; None for a single one on all
        pictures, whose gradient it is.
      order: int32 [num_steps, per_step], which pictures each of these steps took, if that is known.
    """

    network: Network = _static()
    normalize: Normalize = _static()
    image_shape: tuple[int, int, int, int] = _static()
    params: Params
    statistics: BatchStats | None
    observed: Gradients
    labels: Labels | None
    space: ImageSpace
    known: tuple[Fact, ...] = ()
    clients: int = _static(default=1)
    local: LocalTraining | None = None
    order: jax.Array | None = None

    def imagine(self, batch: Batch) -> Update:
        """The update that the client would have sent for `batch`: the same function that the client ran.

        Of several clients the mean gradient, and each one's statistics, [clients, ...]. Of several steps the means over
        the steps; `batch` then holds `copies` guesses of each picture, one epoch after the other.
        """
        update = partial(client_update, self.network, self.normalize, self.params)
        given = {} if self.statistics is None else self.statistics
        if self.local is not None:
            order = self.local.same_order(len(batch.images)) if self.order is None else self.order
            run = partial(train_locally, self.network, self.normalize, self.params)
            return run(given, batch, order, self.local.learning_rate).update
        if self.clients == 1:
            return update(given, batch)
        batches = jax.tree.map(lambda leaf: leaf.reshape(self.clients, -1, *leaf.shape[1:]), batch)
        updates = jax.vmap(update)(given, batches)
        return Update(jax.tree.map(self._mean, updates.factored, is_leaf=is_factored), updates.statistics)

    def _mean(self, leaf):
        if is_factored(leaf):  # the product sums over all rows, those of all clients
            return dataclasses.replace(leaf, cotangents=leaf.cotangents / self.clients)
        return leaf.mean(0)

    @property
    def copies(self) -> int:
        """Guesses of each picture that a candidate holds: one an epoch if the order in the epochs is unknown, else one.

        Within one epoch the order of the guesses needs none: nobody asks in which order they come out. What may be
        wrong there is the labels of a step, where they are known as counts.
        """
        n = self.image_shape[0]
        if self.local is None or self.order is not None or not self.local.shuffles(n):
            return 1
        return self.local.num_epochs(n)

    @property
    def candidate_shape(self) -> tuple[int, int, int, int]:
        """(copies * n, h, w, c) of what an attack looks for."""
        return (self.copies * self.image_shape[0], *self.image_shape[1:])

    @property
    def params_after(self) -> Params:
        """The client's model after its local steps, as far as it can be told from what was sent."""
        distance = self.local.learning_rate * self.local.num_steps
        return jax.tree.map(lambda weight, slope: weight - distance * slope, self.params, self.observed)

    def with_labels(self, labels: Labels) -> "AttackProblem":
        """The problem with labels [n, num_classes] that are known as counts: which picture has which is unknown.

        Every class is spread evenly over the steps of an epoch (of the first one where orders are known), and over the
        clients of a sum.
        """
        n = self.image_shape[0]
        if self.clients > 1:
            labels = labels.reshape(-1, self.clients, labels.shape[-1]).swapaxes(0, 1).reshape(labels.shape)
        if self.local is not None and self.local.shuffles(n):
            labels = deal(labels, self.local)
            if self.order is not None:
                first = self.order.reshape(-1)[:n]
                labels = jnp.zeros_like(labels).at[first].set(labels)
        return dataclasses.replace(self, labels=labels)

    def logits(self, images: Images) -> jax.Array:
        """The network's output [n, num_classes] for pictures of one client, in the network's units."""
        given = {} if self.statistics is None else self.statistics
        if self.clients > 1:
            given = jax.tree.map(lambda leaf: leaf[0], given)
        return self.network(self.params, given, images, self.normalize)[0]

    @property
    def num_classes(self) -> int:
        """Width of the network's output."""
        size = self.image_shape[0] // self.clients
        images = jax.ShapeDtypeStruct((size, *self.image_shape[1:]), jnp.float32)
        return jax.eval_shape(self.logits, images).shape[-1]


class GradientDefense(Protocol):
    """What a client does to its gradient before it is sent."""

    def __call__(self, key: Key) -> optax.GradientTransformation:
        """The transformation, from the client's randomness. Its update may take `client`, a `ClientStep`."""
        ...

    def known(self, sent: Gradients, batch_size: int) -> tuple[Fact, ...]:
        """What an adversary that knows the defense and the size of the batch, and sees what was sent, can say of it."""
        ...


def observe(
    victim: Victim,
    threat: BatchNormThreat,
    defense: GradientDefense,
    key: Key,
    *,
    labels_known: bool = True,
    defense_known: bool = True,
    local: LocalTraining | None = None,
    order_known: bool = False,
    assumed: LocalTraining | None = None,
) -> AttackProblem:
    """Runs the client's step, passes its gradient through the defense, and keeps what the threat model grants.

    A client of several steps sends its model after them, so that `observed` has the rounding of the difference of two
    models; a defense is applied to their mean gradient.

    Args:
      victim: the secret.
      threat: how the client normalizes and what it shares. Running averages are those from before the batch unless
        the threat model says otherwise in its name.
      defense: makes the gradient transformation; `gi_jax.defenses.identity` for none. One that encodes pictures asks
        for a victim that has encoded them (`gi_jax.defenses.encode_victim`).
      key: the client's randomness, unknown to the adversary.
      labels_known: whether the adversary is told the labels (an oracle unless they can be inferred).
      defense_known: whether the adversary is told which defense runs, with its public parameters.
      local: the client's local steps; None for one on the whole batch, whose gradient it sends.
      order_known: with local steps, whether the adversary is told which pictures each step took, and with
        `labels_known` which labels: an oracle. If not, known labels are counts, and each epoch has an order of its own.
      assumed: the local steps that the adversary takes the update to be made of, if it is not told `local`. It reads
        the update in the units that follow, in which what it knows of a defense would be off: nothing is `known`.

    Returns:
      The problem. Pure; `jax.jit` and `jax.vmap` go through.

    Raises:
      InputError: for local steps that are no whole epochs, or under which statistics or the order cannot be shared;
        for pictures outside [0, 1], for labels that are no probabilities, and for a defense that is none.
    """
    n = len(victim.images)
    _check_victim(victim)
    _check_defense(victim, defense)
    if local is None and (assumed is not None or order_known):
        local = LocalTraining(num_steps=1)
    if local is not None:
        _check_local(local, assumed, threat, n, order_known)
    if assumed is None:
        local = several(local, n)
    with jax.default_matmul_precision("highest"):  # accelerators would round the evidence to three digits
        sent = send(victim, threat.client, defense, key, local)
    granted = dict(labels_known=labels_known, defense_known=defense_known, order_known=order_known, assumed=assumed)
    return grant(victim, sent, threat, defense, local=local, **granted)


class Sent(NamedTuple):
    """A client's part of a round: what it sends, and what else a threat model may grant.

    Attributes:
      observed: the update as it is sent, after the defense; of several steps their mean gradient.
      gradients: the same before the defense.
      statistics: mean, biased variance and count a layer of every step, [num_steps, ...].
      order: int32 [num_steps, per_step], which pictures each of several steps took; None for one step on all.
    """

    observed: Gradients
    gradients: Gradients
    statistics: BatchStats
    order: jax.Array | None


_client_update = jit_once(client_update, static_argnames=("network", "normalize"))
"""Compiled once for all defenses."""


def send(
    victim: Victim, normalize: Normalize, defense: GradientDefense, key: Key, local: LocalTraining | None = None
) -> Sent:
    """The client's part of a round, which a federation runs and `observe` looks at.

    Args:
      victim: the client's batch, and the model that it was given.
      normalize: how the client runs the normalization layers; static.
      defense, key, local: as for `observe`.
    """
    batch = Batch(victim.space.normalize(victim.images), victim.labels)
    client = ClientStep(victim.network, normalize, victim.params, victim.batch_stats, batch)
    if local is None:
        update, order = _client_update(*client[:5]), None
        gradients, statistics = update.gradients, jax.tree.map(lambda leaf: leaf[None], update.statistics)
    else:
        n = len(victim.images)
        key, key_order = jax.random.split(key)
        order = local.draw_order(key_order, n) if local.shuffles(n) else local.same_order(n)
        client = client._replace(steps=local.num_steps)
        trained = train_locally(*client[:5], order, local.learning_rate)
        gradients = successive_models(victim.params, trained.params, local.learning_rate * local.num_steps)
        statistics = trained.statistics
    transformation = optax.with_extra_args_support(defense(key))
    state = transformation.init(gradients)
    observed, _ = transformation.update(gradients, state, victim.params, client=client)
    return Sent(observed, gradients, statistics, order)


def grant(
    victim: Victim,
    sent: Sent,
    threat: BatchNormThreat,
    defense: GradientDefense,
    *,
    labels_known: bool = True,
    defense_known: bool = True,
    local: LocalTraining | None = None,
    order_known: bool = False,
    assumed: LocalTraining | None = None,
) -> AttackProblem:
    """What the threat model lets the adversary have of a client's part of a round; arguments as for `observe`."""
    n, observed = len(victim.images), sent.observed
    known = defense.known(observed, n) if defense_known and assumed is None else ()
    if assumed is not None:
        units = local.learning_rate * local.num_steps / (assumed.learning_rate * assumed.num_steps)
        observed = jax.tree.map(lambda leaf: units * leaf, observed)
    problem = AttackProblem(
        network=victim.network,
        normalize=threat.adversary,
        image_shape=victim.images.shape,
        params=victim.params,
        statistics=shared_after_training(threat.shared, victim.batch_stats, sent.statistics),
        observed=observed,
        labels=victim.labels if labels_known else None,
        space=victim.space,
        known=known,
        local=several(assumed or local, n),
        order=sent.order if order_known else None,
    )
    return problem.with_labels(victim.labels) if labels_known and not order_known else problem


def _check_victim(victim):
    if victim.images.ndim != 4 or not len(victim.images):
        raise checks.InputError(
            f"images of shape {victim.images.shape}: expected a batch of pictures, [n, h, w, c] with n of 1 or more"
        )
    if victim.labels.ndim != 2 or len(victim.labels) != len(victim.images):
        raise checks.InputError(
            f"labels of shape {victim.labels.shape} for {len(victim.images)} images: expected class probabilities "
            "[n, num_classes]; try gi_jax.one_hot"
        )
    if not victim.encoded:  # signs carry encodings out of the box
        checks.within(0, 1, images=victim.images)
    checks.within(0, 1, labels=victim.labels)


def _check_defense(victim, defense):
    if not (callable(defense) and hasattr(defense, "known")):
        raise checks.InputError(
            f"defense {type(defense).__name__}: expected one of gi_jax.defenses; wrap an optax transformation in "
            "gi_jax.defenses.FunctionDefense(lambda key: ...)"
        )
    if getattr(defense, "mixing", None) is not None and not victim.encoded:
        raise checks.InputError(
            f"defense '{defense}' encodes pictures before there is a gradient, and these are not encoded: expected the "
            "victim of gi_jax.defenses.encode_victim(defense.mixing, key, victim)"
        )


def _check_local(local, assumed, threat, n, order_known):
    for training in (local, assumed):
        if training is not None:
            training.check(n)
    several = max(training.num_steps for training in (local, assumed or local)) > 1
    if several and threat.shared in (Shared.EXACT, Shared.EXACT_UNBIASED) and threat.adversary != Normalize.BATCH:
        raise checks.InputError(
            "exact statistics with local steps: every step has its own, so none can be normalized with; expected the "
            "adversary's own (bn exact or infer) or running ones (bn proxy)"
        )
    if order_known and not (local.shuffles(n) and assumed is None):
        raise checks.InputError(
            "the order of local steps is known: expected steps on parts of the pictures (a local batch size), of a "
            "number that is known too; leave it out"
        )


def check_problem(problem: AttackProblem) -> None:
    """Refuses a problem that no attack can use: NaN, an update that does not fit the network, labels that do not.

    Raises:
      InputError: naming the tensor, what it holds and what was expected.
    """
    if len(problem.image_shape) != 4:
        raise checks.InputError(f"image_shape {problem.image_shape}: expected that of the batch, (n, h, w, c)")
    checks.all_finite("space", (problem.space.mean, problem.space.std))
    if not jnp.all(jnp.asarray(problem.space.std) > 0):
        raise checks.InputError(f"space: std {problem.space.std}: expected numbers above 0")
    checks.same_structure("observed gradient", problem.observed, problem.params)
    checks.all_finite("observed gradient", problem.observed)
    checks.all_finite("params", problem.params)
    if problem.statistics is not None:
        checks.all_finite("statistics", problem.statistics)
    if problem.labels is not None:
        expected = (problem.image_shape[0], problem.num_classes)
        if problem.labels.shape != expected:
            raise checks.InputError(
                f"labels have shape {problem.labels.shape}; expected class probabilities {expected}"
            )
        checks.all_finite("labels", problem.labels)


def victim_axes(problem: AttackProblem) -> AttackProblem:
    """The `in_axes` of a stack of problems: 0 for what belongs to one victim, None for what all have in common."""
    shared = dict(params=None, space=None, local=None)
    return dataclasses.replace(problem, **shared, statistics=0, observed=0, labels=0, known=0, order=0)


def stack(problems: list[AttackProblem]) -> AttackProblem:
    """Problems of several victims as one with a leading victim axis. Model and units are shared, not copied.

    Raises:
      InputError: if they differ in network, normalization or shape (different programs).
    """
    first = problems[0]
    for other in problems[1:]:
        static = ("network", "normalize", "image_shape", "clients")
        same = all(getattr(other, name) == getattr(first, name) for name in static)
        of_structure = ("known", "local", "order")
        facts = all(
            jax.tree.structure(getattr(other, x)) == jax.tree.structure(getattr(first, x)) for x in of_structure
        )
        if not same or not facts or (other.labels is None) != (first.labels is None):
            raise checks.InputError(
                "problems of one launch must share network, normalization, shape, label knowledge, local steps and "
                "kind of defense"
            )
    names = ("statistics", "observed", "labels", "known", "order")
    joined = _stack([{name: getattr(problem, name) for name in names} for problem in problems])
    return dataclasses.replace(first, **joined)


@jax.jit
def _stack(trees):
    """At once: tensor by tensor, each of another shape, takes longer to compile than to do."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def one_hot(labels, num_classes: int) -> Labels:
    """Class numbers [n] as class probabilities [n, num_classes].

    Raises:
      InputError: for a number outside the classes.
    """
    labels = jnp.asarray(labels)
    outside = [int(label) for label in labels.reshape(-1) if not 0 <= int(label) < num_classes]
    if outside:
        raise checks.InputError(f"label {outside[0]}: expected class numbers from 0 to {num_classes - 1}")
    return jax.nn.one_hot(labels, num_classes)
