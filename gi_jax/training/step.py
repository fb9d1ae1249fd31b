"""One step of training: pictures, the gradient that the client's defense lets through, velocity, running averages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from gi_jax.models import Network, Normalize
from gi_jax.threat import Batch, ClientStep, ImageSpace, cross_entropy
from gi_jax.threat.batch_norm import running_average
from gi_jax.training.recipe import Recipe
from gi_jax.types import BatchStats, Key, Params


class ClientDefense(Protocol):
    """What a client does to its pictures and its gradient; hashable. `gi_jax.defenses.Defense` is one.

    Attributes:
      mixing: None, or `mixing(key, images, labels, public)`, which encodes the pool of an epoch into an object with
        `images` and soft `labels`.
    """

    mixing: Callable | None

    def __call__(self, key: Key) -> optax.GradientTransformation:
        """The transformation of the gradient. Its update may take `client`, a `ClientStep`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is trained and how: everything that decides the program. Static.

    Attributes:
      network: the pure function.
      recipe: the settings.
      defense: of the client, in every step.
      sampling: `sampling(key, count)` draws a batch of which the size is random, as `gi_jax.defenses.poisson_sample`
        does; None for shuffled epochs.
    """

    network: Network
    recipe: Recipe
    defense: ClientDefense
    sampling: Callable | None = None


class Pool(NamedTuple):
    """The data set on the device.

    Attributes:
      images: uint8 [n, h, w, c], 0 to 255: a quarter of the memory of floats.
      labels: class probabilities [n, classes].
      space: the units that the network expects.
      public: pictures [m, h, w, c] in [0, 1] that a defense mixes in, or None.
    """

    images: jax.Array
    labels: jax.Array
    space: ImageSpace
    public: jax.Array | None = None


class TrainState(NamedTuple):
    """What the next step needs.

    Attributes:
      params, batch_stats: the model.
      velocity: of the momentum.
      defense: the state of the gradient's defense, keys as the numbers that they are.
      step: those taken, int32.
    """

    params: Params
    batch_stats: BatchStats
    velocity: Any
    defense: Any
    step: jax.Array


DEFENSE, EPOCH, AUGMENT = range(3)
"""What is folded into the key of a training, for each of its uses."""


def _transformation(setup: Setup, key: Key) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(setup.defense(jax.random.fold_in(key, DEFENSE)))


def start(setup: Setup, key: Key, params: Params, batch_stats: BatchStats) -> TrainState:
    """The state before the first step. It takes a copy, since the first step is given the state to overwrite.

    Args:
      setup: static.
      key: of the whole training.
      params, batch_stats: the model.
    """
    params, batch_stats = jax.tree.map(jnp.array, (params, batch_stats))
    velocity, defense = setup.recipe.optimizer().init(params), _transformation(setup, key).init(params)
    return TrainState(params, batch_stats, velocity, _numbers(defense), jnp.int32(0))


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(tree):
    """A tree with numbers in place of keys, which loops, files and a choice between two states take like any other."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _keys(tree, like):
    """The inverse: keys where `like` has them."""
    return jax.tree.map(lambda own, leaf: jax.random.wrap_key_data(leaf) if _is_key(own) else leaf, like, tree)


def to_floats(images: jax.Array) -> jax.Array:
    """uint8 of 0 to 255 as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def train_step(
    setup: Setup, state: TrainState, batch: Batch, rate: jax.Array, key: Key
) -> tuple[TrainState, jax.Array, jax.Array]:
    """The client's own loss, in training mode, without a second derivative; then its defense; then momentum.

    The defense is applied to the gradient of the mean loss, before weight decay and momentum, as the server of FedSGD
    would apply both.

    Args:
      setup: static.
      state: before.
      batch: images in the network's units, class probabilities; of padding, zeros.
      rate: learning rate.
      key: that of `start`.

    Returns:
      The state, the mean loss of the batch before the step, and how many of it were classified correctly.

    Raises:
      InputError: for a defense of single examples' gradients with a network with BatchNorm.
    """
    recipe, size = setup.recipe, len(batch.labels)
    # A row keeps its sum, which is 0 for padding, and below 1 for mixtures with public pictures.
    even = batch.labels.mean(-1, keepdims=True)
    batch = batch._replace(labels=batch.labels + recipe.label_smoothing * (even - batch.labels))
    normalize = Normalize.BATCH if state.batch_stats else Normalize.GIVEN

    def loss_of(params):
        logits, statistics = setup.network(params, state.batch_stats, batch.images, normalize)
        correct = jnp.sum((logits.argmax(-1) == batch.labels.argmax(-1)) & (even[:, 0] > 0))
        return cross_entropy(logits, batch.labels), (statistics, correct)

    (loss, (statistics, correct)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    client = ClientStep(setup.network, normalize, state.params, state.batch_stats, batch)
    transformation = _transformation(setup, key)
    before = _keys(state.defense, jax.eval_shape(transformation.init, state.params))
    sent, defense = transformation.update(gradients, before, state.params, client=client)
    # With padding, sums are divided by the expected number of examples: a client's own number is private.
    share = size / recipe.batch_size
    sent = jax.tree.map(lambda leaf: share * leaf, sent)
    velocities, velocity = recipe.optimizer().update(sent, state.velocity, state.params)
    params = optax.apply_updates(state.params, jax.tree.map(lambda leaf: -rate * leaf, velocities))
    batch_stats = running_average(state.batch_stats, statistics)
    return TrainState(params, batch_stats, velocity, _numbers(defense), state.step + 1), share * loss, correct
