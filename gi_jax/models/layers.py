"""The layers that the networks are made of: PyTorch's initialization, and normalization as a pure function.

Layers are named so that the sorted order of names (the order of a JAX pytree) is the order of the network:
`block0` is the stem, `head` the last linear layer.
"""

import enum
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from gi_jax.models import factors
from gi_jax.models.conv import patches
from gi_jax.models.lowerings import convolve

torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the default of PyTorch's convolutions and linear layers."""


class Normalize(enum.StrEnum):
    """What a normalization layer subtracts and divides by."""

    BATCH = "batch"
    """The mean and (biased) variance of the batch itself; derivatives flow through them."""
    GIVEN = "given"
    """Numbers that are handed in (running averages, say); constants to the derivative."""
    STRAIGHT_THROUGH = "straight-through"
    """Handed-in numbers in value, the batch's own mean and variance in the derivative."""


@jax.custom_jvp
def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last.

    The derivative of the variance leaves out that of the mean, which it multiplies by sum(x - mean) = 0: a pass over
    the activations less in every derivative.
    """
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.mean(jnp.square(_centered(x, mean)), axes)


@moments.defjvp
def _moments_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    axes = tuple(range(x.ndim - 1))
    mean, var = moments(x)
    return (mean, var), (jnp.mean(x_dot, axes), 2 * jnp.mean(_centered(x, mean) * x_dot, axes))


def _centered(x, mean):
    return x - mean.reshape((1,) * (x.ndim - 1) + (-1,))


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, with the choice of statistics spelled out.

    Computes in float32 at least, and returns the type of its input. Reads `batch_stats` (mean, var; not in `BATCH`
    mode) and writes `statistics`: mean, biased var and count of this layer's input. Running averages are a pure
    function of the two (`gi_jax.threat.batch_norm.running_average`), so nothing is updated here.
    """

    normalize: Normalize
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, dtype, x = x.shape[-1], x.dtype, factors.wide(x)
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        given = {}
        if self.is_initializing() or self.normalize != Normalize.BATCH:
            given["mean"] = self.variable("batch_stats", "mean", jnp.zeros, (features,)).value
            given["var"] = self.variable("batch_stats", "var", jnp.ones, (features,)).value
        own_mean, own_var = moments(x)
        self.put_variable("statistics", "mean", own_mean)
        self.put_variable("statistics", "var", own_var)
        self.put_variable("statistics", "count", jnp.float32(x.size / features))
        match self.normalize:
            case Normalize.BATCH:
                mean, var = own_mean, own_var
            case Normalize.GIVEN:
                mean, var = given["mean"], given["var"]
            case Normalize.STRAIGHT_THROUGH:
                fixed = jax.lax.stop_gradient
                mean = fixed(given["mean"]) + (own_mean - fixed(own_mean))  # plus 0, so exact in value
                var = fixed(given["var"]) + (own_var - fixed(own_var))
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        broadcast = (1,) * (x.ndim - 1) + (-1,)
        return (x * factor.reshape(broadcast) + shift.reshape(broadcast)).astype(dtype)


class GroupNorm(nn.GroupNorm):
    """That of Flax, which computes in float32, returning the type of its input."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).astype(x.dtype)


group_norm = partial(GroupNorm, num_groups=None, group_size=16, epsilon=1e-5, use_fast_variance=False)
"""Group normalization over 16 channels each (Wu and He, 2018): every picture by itself, no statistics to share."""


class Conv(nn.Module):
    """Square convolution with explicit zero padding on both sides, as PyTorch counts it; no bias by default.

    Multiplies and returns numbers of type `dtype`, or leaves them as they are; the kernel and its gradient stay wide.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    use_bias: bool = False
    lowering: str = "auto"
    dtype: str | None = None
    kernel_init: Callable = torch_kernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1], self.features))
        padding = size // 2 if self.padding is None else self.padding
        if self.dtype is not None:
            x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        height, width = ((extent + 2 * padding - size) // self.stride + 1 for extent in x.shape[1:3])
        weights = kernel.reshape(-1, self.features)
        if factors.pays(x.shape[0] * height * width, *weights.shape):
            y = factors.product(self, "kernel", patches(x, size, self.stride, padding), weights)
        else:
            y = convolve(x, kernel, stride=self.stride, padding=padding, lowering=self.lowering)
        if self.use_bias:
            bias = self.param("bias", torch_bias(size * size * x.shape[-1]), (self.features,))
            y = y + bias.astype(y.dtype).reshape(1, 1, 1, -1)
        return y


def torch_bias(fan_in: int) -> Callable:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for biases."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """Linear layer, [n, d] to [n, features]; with bias by default."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = torch_kernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if factors.pays(x.shape[0], *kernel.shape):
            y = factors.product(self, "kernel", x, kernel)
        else:
            y = x @ kernel
        if self.use_bias:
            y = y + self.param("bias", torch_bias(x.shape[-1]), (self.features,)).reshape(1, -1)
        return y
