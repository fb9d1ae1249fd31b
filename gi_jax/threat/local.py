"""Federated averaging: the client takes several steps of its own, and its model after the last one is what is seen.

The client and the adversary that imagines it run the same function, `train_locally`: a scan over the steps, in which
each is a `client_update` at the current weights. Reverse mode keeps the weights of every step and computes the rest
again (`jax.checkpoint`), so that memory does not grow with the activations of all steps.

What the adversary reads is the mean gradient of the steps, (before - after) / (rate * steps). As the mean, not the sum,
it is in the units of one gradient: formulas that count labels, and the numbers of defenses, mean what they mean for one
step. A length on the update itself, before - after, is rate * steps times one on the mean gradient.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.models import Network, Normalize
from gi_jax.threat.batch_norm import Shared, running_average, shared_statistics
from gi_jax.threat.client import Batch, Update, client_update
from gi_jax.types import BatchStats, Gradients, Key, Labels, Params
from gi_jax.words import counted


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How a client trains before it sends: plain SGD, whole epochs, each in an order of the client's own drawing.

    Whole epochs, because that is what federated averaging asks of a client (McMahan et al. 2017), and because a picture
    that no step saw is not in the update.

    Attributes:
      num_steps: static.
      batch_size: pictures in a step, a divisor of those that the client has; None for all of them. Static.
      learning_rate: of the client's steps; a leaf. 0.01 is what tutorials of SGD and federated libraries start from.
    """

    num_steps: int = field(metadata={"static": True})
    batch_size: int | None = field(default=None, metadata={"static": True})
    learning_rate: jax.Array | float = 0.01

    def per_step(self, n: int) -> int:
        """Pictures in a step of a client that has n."""
        return n if self.batch_size is None else self.batch_size

    def num_epochs(self, n: int) -> int:
        """How often each of a client's n pictures is seen."""
        return self.num_steps * self.per_step(n) // n

    def shuffles(self, n: int) -> bool:
        """Whether there is an order to know: not if every step takes all n pictures."""
        return self.per_step(n) < n

    def check(self, n: int) -> None:
        """Refuses anything but whole epochs of n pictures, and a rate that is not above 0.

        Raises:
          InputError: saying what would do.
        """
        size = self.per_step(n)
        checks.counts(local_steps=self.num_steps)
        checks.positive(local_rate=self.learning_rate)
        if size < 1 or n % size:
            fitting = ", ".join(str(divisor) for divisor in range(1, n + 1) if n % divisor == 0)
            raise checks.InputError(
                f"local batches of {size} from {counted(n, 'picture')}: expected one that divides them: {fitting}"
            )
        checks.counts(local_batch_size=size)
        if self.num_steps % (n // size):
            raise checks.InputError(
                f"{counted(self.num_steps, 'local step')} of {size} of {counted(n, 'picture')}: expected whole epochs, "
                f"that is {counted(n // size, 'step')} or a multiple"
            )

    def same_order(self, n: int) -> jax.Array:
        """Which pictures each step takes, int32 [num_steps, per_step], if every epoch goes through them as they are."""
        return jnp.arange(self.num_steps * self.per_step(n)).reshape(self.num_steps, -1) % n

    def draw_order(self, key: Key, n: int) -> jax.Array:
        """The same with each epoch in a new random order."""
        epochs = jax.random.split(key, self.num_epochs(n))
        return jax.vmap(lambda key: jax.random.permutation(key, n))(epochs).reshape(self.num_steps, -1)


class Trained(NamedTuple):
    """A client after its local steps.

    Attributes:
      params: its weights.
      gradients: the mean gradient of the steps.
      statistics: mean, biased variance and count a layer of every step, [num_steps, ...].
    """

    params: Params
    gradients: Gradients
    statistics: BatchStats

    @property
    def update(self) -> Update:
        """As one step: the mean gradient, and the mean over the steps of the means and variances of their batches."""
        return Update(self.gradients, jax.tree.map(lambda leaf: leaf.mean(0), self.statistics))


def train_locally(
    network: Network,
    normalize: Normalize,
    params: Params,
    batch_stats: BatchStats,
    batch: Batch,
    order: jax.Array,
    learning_rate: jax.Array | float,
) -> Trained:
    """Steps of SGD, each on some pictures of the batch.

    Running averages are not updated on the way: they are an output of training mode, never its input, and a client
    that normalizes with them keeps them fixed.

    Args:
      network, normalize, params, batch_stats: as for `client_update`; the weights are those before the first step.
      batch: all pictures.
      order: int32 [num_steps, per_step], which pictures each step takes.
      learning_rate: of the steps.

    Returns:
      `Trained`, differentiable in `params`, `batch_stats`, `batch` and `learning_rate` (reverse mode).
    """

    def step(carry, chosen):
        weights, total = carry
        taken = jax.tree.map(lambda leaf: leaf[chosen], batch)
        update = client_update(network, normalize, weights, batch_stats, taken)
        gradients = update.gradients
        weights = jax.tree.map(lambda weight, slope: weight - learning_rate * slope, weights, gradients)
        return (weights, jax.tree.map(jnp.add, total, gradients)), update.statistics

    # The gradients are added up beside the weights: the difference of two nearly equal models is rounded, and an
    # attack would follow the rounding.
    start = params, jax.tree.map(jnp.zeros_like, params)
    (after, total), statistics = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), start, order)
    return Trained(after, jax.tree.map(lambda leaf: leaf / len(order), total), statistics)


def successive_models(before: Params, after: Params, learning_rate: float) -> Gradients:
    """The gradient between two models: (before - after) / learning_rate, with the rounding that entails."""
    return jax.tree.map(lambda old, new: (old - new) / learning_rate, before, after)


def several(local: LocalTraining | None, n: int) -> LocalTraining | None:
    """`local`, or None if it is one step on all n pictures, whose gradient is like any other, and the same program."""
    one = local is None or (local.num_steps == 1 and not local.shuffles(n))
    return None if one else local


def shared_after_training(shared: Shared, batch_stats: BatchStats, statistics: BatchStats) -> BatchStats | None:
    """What `shared` lets the adversary have after the steps whose statistics [num_steps, ...] are given.

    Running averages were updated by every step; the exact statistics are means over the steps.
    """
    if shared == Shared.RUNNING_AFTER and statistics:  # without layers there is nothing to go over
        update = lambda averages, own: (running_average(averages, own), None)  # noqa: E731
        return jax.lax.scan(update, batch_stats, statistics)[0]
    return shared_statistics(shared, batch_stats, jax.tree.map(lambda leaf: leaf.mean(0), statistics))


def deal(labels: Labels, local: LocalTraining) -> Labels:
    """Labels [n, classes] in an order that spreads every class evenly over the steps of an epoch.

    For whoever knows how many pictures there are of each class, but not which step saw them.
    """
    steps = len(labels) // local.per_step(len(labels))
    by_class = jnp.argsort(jnp.argmax(labels, axis=-1), stable=True)
    return labels[by_class.reshape(-1, steps).T.reshape(-1)]
