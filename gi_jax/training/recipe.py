"""How a network is trained: stochastic gradient descent with momentum, the rate over time, and when it is enough."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gi_jax import checks

SCHEDULES = ("cosine", "constant", "step", "plateau")
WARM_UP = 0.1
"""Share of the steps in which the rate rises to its full value; 500 steps at most."""
DROP_EPOCHS, DROP = 50, 0.1
"""The schedule `step`: times 0.1 every 50 epochs."""
PLATEAU, PLATEAU_PATIENCE, LOWEST_RATE = 0.5, 2, 1e-4
"""The schedule `plateau`: times 0.5 after more than two epochs in a row without a better validation loss."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a training. The named ones are in `gi_jax.experiments.recipes`.

    Attributes:
      epochs: how often every picture is seen; a fraction for a young network.
      batch_size: pictures a step.
      learning_rate: the highest rate.
      schedule: `cosine` (to zero at the last step) or `constant`, which rise linearly at first; `step` (x0.1 every 50
        epochs) or `plateau` (x0.5 when the validation loss stops falling, not below 1e-4), which start at full rate.
      delay: so many epochs do not count for `step` and `plateau`.
      momentum: of the velocity v = momentum v + gradient, as PyTorch counts it.
      nesterov: step along gradient + momentum v.
      weight_decay: added to the gradient, times the weights; of all parameters, those of norms and biases included.
      label_smoothing: this share of every label is spread evenly over all classes, in [0, 1).
      augment: random crops and mirror images.
      validation: share of the train split that is set aside for the validation loss, its last pictures, in [0, 1).
      patience: epochs in a row without a better validation loss after which the training ends; None for never. The
        last weights are kept, not the best.
    """

    epochs: float = 10.0
    batch_size: int = 64
    learning_rate: float = 0.05
    schedule: str = "cosine"
    delay: int = 0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    augment: bool = True
    validation: float = 0.0
    patience: int | None = None

    def __post_init__(self):
        checks.positive(epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate)
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.in_range(0, 1, momentum=self.momentum, label_smoothing=self.label_smoothing, validation=self.validation)
        checks.non_negative(weight_decay=self.weight_decay, delay=self.delay)
        if self.patience is not None:
            checks.positive(patience=self.patience)
        if self.validation == 0 and (self.schedule == "plateau" or self.patience is not None):
            what = "schedule 'plateau'" if self.schedule == "plateau" else f"patience={self.patience}"
            raise checks.InputError(
                f"{what} without a validation loss: expected a recipe with one (published), or another schedule"
            )

    def optimizer(self) -> optax.GradientTransformation:
        """From gradients to velocities. The step goes against them, times the rate, which is a number that goes in."""
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay), optax.trace(self.momentum, nesterov=self.nesterov)
        )

    def rates(self, total: int, steps_per_epoch: int) -> np.ndarray:
        """The learning rate of every step, float32 [total]; on a plateau it is multiplied by the scale of `Watch`."""
        warm, steps = min(500, math.ceil(WARM_UP * total)), np.arange(total)
        match self.schedule:
            case "cosine":
                rates = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warm, total + 1)(steps + 1)
            case "constant":
                rates = optax.warmup_constant_schedule(0.0, self.learning_rate, warm)(steps + 1)
            case "step":
                length = DROP_EPOCHS * steps_per_epoch
                drops = range(self.delay * steps_per_epoch + length, total, length)
                rates = optax.piecewise_constant_schedule(self.learning_rate, dict.fromkeys(drops, DROP))(steps)
            case "plateau":
                rates = self.learning_rate
        return np.broadcast_to(np.asarray(rates, np.float32), total)


class Watch(NamedTuple):
    """What the validation losses so far mean for the rest of a training.

    Attributes:
      plateau: of `optax.contrib.reduce_on_plateau`.
      best: lowest loss so far.
      waited: epochs since.
    """

    plateau: optax.contrib.ReduceLROnPlateauState
    best: jax.Array
    waited: jax.Array

    @property
    def scale(self) -> jax.Array:
        """Factor of the learning rate, in (0, 1]."""
        return self.plateau.scale


def _plateau(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    # PyTorch's patience counts epochs that are let pass, optax's the one that is not.
    lowest = min(1.0, LOWEST_RATE / recipe.learning_rate)
    return optax.contrib.reduce_on_plateau(PLATEAU, PLATEAU_PATIENCE + 1, min_scale=lowest)


def watch(recipe: Recipe) -> Watch:
    """Before the first epoch."""
    return Watch(_plateau(recipe).init(jnp.float32(0)), jnp.float32(jnp.inf), jnp.int32(0))


def look(recipe: Recipe, before: Watch, loss: jax.Array, epoch: int) -> Watch:
    """After the epoch with this number, from 0, and this validation loss."""
    plateau = before.plateau
    if recipe.schedule == "plateau" and epoch >= recipe.delay:
        _, plateau = _plateau(recipe).update(jnp.float32(0), plateau, value=loss)
    better = loss < before.best
    return Watch(plateau, jnp.minimum(loss, before.best), jnp.where(better, 0, before.waited + 1))
