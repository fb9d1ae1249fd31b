"""Small networks: a convolutional network with BatchNorm for CPUs, the sigmoid LeNet of DLG, a perceptron."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from gi_jax.models.factors import wide
from gi_jax.models.layers import BatchNorm, Conv, Linear, Normalize


class ConvBlock(nn.Module):
    """Convolution, norm, ReLU."""

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.features, 3, self.stride, name="conv")(x)
        return nn.relu(self.norm(name="norm")(x))


class ConvNet(nn.Module):
    """Three convolution blocks, a quarter of the height and width, linear head on all features.

    Normalizes with `norm`; unless given, with BatchNorm in the mode `normalize`. Convolutions multiply, and activations
    are kept, in `dtype`, such as `bfloat16`, if it is given.
    """

    num_classes: int
    norm: Callable[..., nn.Module] | None = None
    normalize: Normalize = Normalize.BATCH
    lowering: str = "auto"
    dtype: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        norm = self.norm or partial(BatchNorm, self.normalize)
        conv = partial(Conv, lowering=self.lowering, dtype=self.dtype)
        x = images
        for number, (features, stride) in enumerate(((32, 1), (64, 2), (128, 2))):
            x = ConvBlock(features, stride, norm, conv, name=f"block{number}")(x)
        return Linear(self.num_classes, name="head")(wide(x).reshape(x.shape[0], -1))


def wide_uniform(key, shape, dtype=jnp.float32):
    """U(-0.5, 0.5): without it the sigmoids saturate the gradient away (Zhu et al., 2019, published code)."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


class LeNet(nn.Module):
    """Three 5x5 sigmoid convolutions with bias and a linear head, no normalization (Zhu et al., 2019).

    Twice differentiable everywhere, which the L-BFGS of DLG needs.
    """

    num_classes: int
    lowering: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for number, stride in enumerate((2, 2, 1)):
            conv = Conv(
                12,
                5,
                stride,
                use_bias=True,
                lowering=self.lowering,
                kernel_init=wide_uniform,
                name=f"block{number}",
            )
            x = nn.sigmoid(conv(x))
        return Linear(self.num_classes, kernel_init=wide_uniform, name="head")(x.reshape(x.shape[0], -1))


class MLP(nn.Module):
    """Two ReLU layers and a linear head on the flat picture, no normalization."""

    num_classes: int
    hidden: int = 256

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        for number in range(2):
            x = nn.relu(Linear(self.hidden, name=f"block{number}")(x))
        return Linear(self.num_classes, name="head")(x)
