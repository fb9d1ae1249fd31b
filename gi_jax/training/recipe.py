"""How a network is trained: stochastic gradient descent with momentum, and the rate over time."""

import math
from dataclasses import dataclass

import optax

from gi_jax import checks

SCHEDULES = ("cosine", "constant")
WARM_UP = 0.1
"""Share of the steps in which the rate rises to its full value; 500 steps at most."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a training; defaults as for the accuracies of Huang et al. (2021), but for the schedule.

    Attributes:
      batch_size: pictures a step.
      learning_rate: the highest rate.
      schedule: `cosine` (to zero at the last step) or `constant`; both rise linearly at first.
      momentum: of the velocity v = momentum v + gradient, as PyTorch counts it.
      weight_decay: added to the gradient, times the weights; of all parameters, those of norms and biases included.
      augment: random crops and mirror images.
    """

    batch_size: int = 64
    learning_rate: float = 0.05
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = True

    def __post_init__(self):
        checks.positive(batch_size=self.batch_size, learning_rate=self.learning_rate)
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.in_range(0, 1, momentum=self.momentum)
        checks.non_negative(weight_decay=self.weight_decay)

    def optimizer(self) -> optax.GradientTransformation:
        """From gradients to velocities. The step goes against them, times the rate, which is a number that goes in."""
        return optax.chain(optax.add_decayed_weights(self.weight_decay), optax.trace(self.momentum))

    def rate(self, step: int, total_steps: int) -> float:
        """The learning rate of step `step`, 0 to `total_steps` - 1."""
        warm = min(500, math.ceil(WARM_UP * total_steps))
        rising = min(1.0, (step + 1) / warm)
        if self.schedule == "constant":
            return self.learning_rate * rising
        falling = 0.5 * (1 + math.cos(math.pi * max(0, step + 1 - warm) / (total_steps - warm + 1)))
        return self.learning_rate * rising * falling
