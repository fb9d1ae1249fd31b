"""A plain chain of convolutions that can be walked backwards: what the recursion of R-GAP needs."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.models.layers import Conv, Linear


class Stage(NamedTuple):
    """A convolution of a `Chain`: square kernel, the same stride both ways, zeros on all four sides."""

    features: int
    kernel_size: int
    stride: int
    padding: int


CNN6 = (
    Stage(12, 4, 2, 2),
    Stage(36, 3, 2, 1),
    Stage(36, 3, 1, 1),
    Stage(36, 3, 1, 1),
    Stage(64, 3, 2, 1),
    Stage(128, 3, 1, 1),
)
"""The convolutions of the CNN6 of Zhu & Blaschko (2021)."""


class Chain(nn.Module):
    """Convolutions without bias, each followed by a LeakyReLU, and a linear head on all features.

    Strides instead of pooling and an activation that is one to one: nothing is thrown away on the way, except by a
    layer with fewer outputs than inputs.

    Attributes:
      num_classes: width of the output.
      stages: the convolutions, `block0` and so on in `params`.
      slope: of the activation below zero.
      logistic: for two classes, one output m without bias, as the logits (-m/2, m/2): the cross-entropy is then the
        logistic loss log(1 + exp(-y m)), y = -1 for class 0 and 1 for class 1, which is the paper's. Otherwise a head
        with bias.
    """

    num_classes: int
    stages: tuple[Stage, ...] = CNN6
    slope: float = 0.2
    logistic: bool = False
    lowering: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for number, (features, kernel_size, stride, padding) in enumerate(self.stages):
            conv = Conv(features, kernel_size, stride, padding, lowering=self.lowering, name=f"block{number}")
            x = nn.leaky_relu(conv(x), self.slope)
        x = x.reshape(x.shape[0], -1)
        if not self.logistic:
            return Linear(self.num_classes, name="head")(x)
        if self.num_classes != 2:
            raise checks.InputError(f"a logistic output with {self.num_classes} classes: expected 2")
        return Linear(1, use_bias=False, name="head")(x) * jnp.array([[-0.5, 0.5]])
