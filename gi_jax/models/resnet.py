"""ResNet-18: He et al., Deep Residual Learning (2016), and Identity Mappings (2016).

All count pixels as PyTorch does (explicit padding 1) and start from PyTorch's default initialization. Running
variances are a matter of `gi_jax.threat.batch_norm.running_average`, which follows PyTorch (unbiased, momentum 0.1).
"""

from collections.abc import Callable
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp

from gi_jax.models.factors import wide
from gi_jax.models.layers import BatchNorm, Conv, Linear, Normalize

STAGES = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
"""(features, stride) of the eight blocks."""


class PreActBlock(nn.Module):
    """Norm and ReLU before each convolution. The shortcut starts at the activation, also where it is the identity.

    That is the variant of the paper's experiments; the textbook block takes the identity from before the activation.
    """

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = nn.relu(self.norm(name="norm1")(x))
        shortcut = a
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = self.conv(self.features, 1, self.stride, name="shortcut")(a)
        y = self.conv(self.features, 3, self.stride, name="conv1")(a)
        y = nn.relu(self.norm(name="norm2")(y))
        return self.conv(self.features, name="conv2")(y) + shortcut


class BasicBlock(nn.Module):
    """Convolution, norm, ReLU, convolution, norm; the sum is activated."""

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = self.conv(self.features, 1, self.stride, name="shortcut")(x)
            shortcut = self.norm(name="shortcut_norm")(shortcut)
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.features, name="conv2")(y)
        return nn.relu(self.norm(name="norm2")(y) + shortcut)


class Stem(nn.Module):
    """The first convolution with its norm and ReLU; no pooling, for pictures of 32 pixels."""

    norm: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(self.norm(name="norm")(self.conv(64, name="conv")(x)))


class LargeStem(nn.Module):
    """That for pictures of 224 pixels: a 7x7 convolution and a 3x3 maximum, both at stride 2."""

    norm: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return largest_of_window(nn.relu(self.norm(name="norm")(self.conv(64, 7, 2, name="conv")(x))))


def largest_of_window(x: jax.Array) -> jax.Array:
    """The maximum of 3x3 windows at stride 2 of non-negative numbers, with a margin of one: [n, h, w, c].

    As maxima of shifted slices: XLA's own windowed maximum has slow derivatives on CPUs, and no second ones.
    """
    for axis in (1, 2):
        extent = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if place == axis else (0, 0) for place in range(x.ndim)])
        ends = [first + 2 * ((extent - 1) // 2) + 1 for first in range(3)]
        x = reduce(jnp.maximum, (jax.lax.slice_in_dim(padded, i, end, 2, axis) for i, end in enumerate(ends)))
    return x


class ResNet18(nn.Module):
    """Stem, eight blocks, mean over the picture, linear head: images [n, h, w, 3] to logits [n, num_classes].

    With `PreActBlock` there is no norm or ReLU after the last block, and the 4x4 mean of the reference experiments is
    the mean over the whole picture at 32x32: 17 norm layers, 56 tensors, 11,171,274 parameters for ten classes.
    Normalizes with `norm`; unless given, with BatchNorm in the mode `normalize`. Convolutions multiply, and activations
    are kept, in `dtype`, such as `bfloat16`, if it is given.
    """

    num_classes: int
    block: type[nn.Module] = PreActBlock
    stem: type[nn.Module] = Stem
    norm: Callable[..., nn.Module] | None = None
    normalize: Normalize = Normalize.BATCH
    lowering: str = "auto"
    dtype: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        norm = self.norm or partial(BatchNorm, self.normalize)
        conv = partial(Conv, lowering=self.lowering, dtype=self.dtype)
        x = self.stem(norm, conv, name="block0")(images)
        for number, (features, stride) in enumerate(STAGES, start=1):
            x = self.block(features, stride, norm, conv, name=f"block{number}")(x)
        return Linear(self.num_classes, name="head")(wide(x).mean((1, 2)))
