"""The client's side of a round: its secret, its defense, and what it sends."""

import dataclasses
import inspect
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gi_jax import checks
from gi_jax.kept import jit_kept
from gi_jax.models import Network, Normalize
from gi_jax.once import jit_once
from gi_jax.threat.client import Batch, ClientStep, client_update
from gi_jax.threat.floats import as_array, as_float32
from gi_jax.threat.knowledge import Fact
from gi_jax.threat.local import LocalTraining, successive_models, train_locally
from gi_jax.threat.logits import num_outputs
from gi_jax.threat.space import ImageSpace
from gi_jax.types import BatchStats, Gradients, Images, Key, Labels, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Victim:
    """The client's secret: its batch, and the model that it was given.

    Lists are taken as arrays, and floating-point numbers of other widths as float32.

    Attributes:
      network: static.
      params, batch_stats: the model before the step.
      images: pictures, float32 [n, h, w, c] in [0, 1].
      labels: class probabilities [n, num_classes].
      space: the units that the network expects.
      encoded: whether the images are encodings, of `gi_jax.defenses.encode_victim`; static.
      space_before: the space of what was encoded, for who is not told of it: random signs are no pictures there.
    """

    network: Network = field(metadata={"static": True})
    params: Params
    batch_stats: BatchStats
    images: Images
    labels: Labels
    space: ImageSpace
    encoded: bool = field(metadata={"static": True}, default=False)
    space_before: ImageSpace | None = None


class GradientDefense(Protocol):
    """What a client does to its gradient before it is sent."""

    def __call__(self, key: Key) -> optax.GradientTransformation:
        """The transformation, from the client's randomness. Its update may take `client`, a `ClientStep`."""
        ...

    def known(self, sent: Gradients, batch_size: int) -> tuple[Fact, ...]:
        """What an adversary that knows the defense and the size of the batch, and sees what was sent, can say of it.

        In `sent` are the tensors that leave the client, with None in the place of others.
        """
        ...


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


def _dense_update(network, normalize, params, batch_stats, batch):
    update = client_update(network, normalize, params, batch_stats, batch)
    return update.gradients, update.statistics


_client_update = jit_kept(_dense_update, jit=jit_once, static_argnums=(0, 1))
"""Compiled once for all defenses."""


def send(
    victim: Victim, normalize: Normalize, defense: GradientDefense, key: Key, local: LocalTraining | None = None
) -> Sent:
    """The client's part of a round, which a federation runs and `observe` looks at.

    Args:
      victim: the client's batch, and the model that it was given.
      normalize: how the client runs the normalization layers; static.
      defense, key, local: as for `observe`.

    Raises:
      InputError: for a network that is none, pictures outside [0, 1], labels that are no probabilities, and a defense
        that is none.
    """
    victim = as_arrays(victim)
    _check_victim(victim, normalize)
    _check_defense(victim, defense)
    batch = Batch(victim.space.normalize(victim.images), victim.labels)
    client = ClientStep(victim.network, normalize, victim.params, victim.batch_stats, batch)
    if local is None:
        (gradients, statistics), order = _client_update(*client[:5]), None
        statistics = jax.tree.map(lambda leaf: leaf[None], statistics)
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
    return Sent(jax.tree.map(jnp.float32, observed), gradients, statistics, order)


def as_arrays(victim: Victim) -> Victim:
    """The victim with arrays in place of lists, of float32 in place of other floating-point numbers.

    Raises:
      InputError: for pictures of whole numbers.
    """
    images, labels = as_array("images", victim.images), as_array("labels", victim.labels).astype(jnp.float32)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise checks.InputError(
            f"images of type {images.dtype}: expected float32 in [0, 1]; divide by 255 if they are from 0 to 255"
        )
    return as_float32(dataclasses.replace(victim, images=images, labels=labels))


def _check_victim(victim, normalize):
    try:
        inspect.signature(victim.network).bind("params", "batch_stats", "images", "normalize")
    except TypeError as error:
        name = getattr(victim.network, "__name__", type(victim.network).__name__)
        raise checks.InputError(
            f"network {name}: expected a callable of (params, batch_stats, images, normalize); wrap a "
            "function of the first three in gi_jax.FunctionNetwork"
        ) from error
    if victim.images.ndim != 4 or not len(victim.images):
        raise checks.InputError(
            f"images of shape {victim.images.shape}: expected a batch of pictures, [n, h, w, c] with n of 1 or more"
        )
    if victim.labels.ndim != 2 or len(victim.labels) != len(victim.images):
        raise checks.InputError(
            f"labels of shape {victim.labels.shape} for {len(victim.images)} images: expected class probabilities "
            "[n, num_classes]; try gi_jax.one_hot"
        )
    victim.space.check(victim.images.shape)
    checks.all_floating("params", victim.params)
    width = num_outputs(victim.network, normalize, victim.params, victim.batch_stats, victim.images.shape)
    if victim.labels.shape[1] != width:
        raise checks.InputError(
            f"labels of shape {victim.labels.shape} for a network of {width} outputs: expected class probabilities "
            f"[n, {width}]; try gi_jax.one_hot(labels, {width})"
        )
    if not victim.encoded:  # signs carry encodings out of the box
        checks.within(0, 1, images=victim.images)
    checks.within(0, 1, labels=victim.labels)
    check_sums(victim.labels, encoded=victim.encoded)


def check_sums(labels: Labels, *, encoded: bool) -> None:
    """Refuses rows [n, num_classes] that sum to more than 1, or less unless they are of encodings. Skips traced ones.

    Raises:
      InputError: naming the first such sum.
    """
    if isinstance(labels, jax.core.Tracer):
        return
    sums = np.sum(np.asarray(labels), axis=1)
    strange = (sums > 1 + 1e-3) | ((sums < 1 - 1e-3) & (not encoded))  # public pictures have no label
    if strange.any():
        raise checks.InputError(
            f"labels that sum to {sums[strange][0]:g}: expected class probabilities, which sum to 1 for each picture; "
            "try gi_jax.one_hot, or divide them by their sum"
        )


def _check_defense(victim, defense):
    if isinstance(defense, str):
        raise checks.InputError(
            f"defense {defense!r} is text: expected a defense; try gi_jax.defenses.parse({defense!r})"
        )
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


def one_hot(labels, num_classes: int) -> Labels:
    """Class numbers [n] as class probabilities [n, num_classes].

    Raises:
      InputError: for what are no class numbers, or a number outside the classes; traced ones are not looked at.
    """
    labels = as_array("labels", labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise checks.InputError(
            f"labels of type {labels.dtype} and shape {labels.shape}: expected whole class numbers [n]"
        )
    numbers = [] if isinstance(labels, jax.core.Tracer) else labels.tolist()
    outside = next((label for label in numbers if not 0 <= label < num_classes), None)
    if outside is not None:
        raise checks.InputError(f"label {outside}: expected class numbers from 0 to {num_classes - 1}")
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
