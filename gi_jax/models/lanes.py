"""A convolution that is lowered by who shares its weights.

In an attack the weights are shared by all lanes, but their gradient and the tangent along it are each lane's own. A GPU
has fast kernels for the former (the lanes are pictures of one large batch) and none for the latter: under `vmap` they
become grouped convolutions, which are slower than patches and a batched matmul. Whether an operand has a lane axis is
known to a batching rule alone, so the convolution and its two derivatives are primitives here: three bilinear
operations whose derivatives are one another.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from gi_jax.models.conv import convolve_lax, patches


class _Window(NamedTuple):
    """A kernel of [size, size, channels, features] on pictures of [height, width, channels].

    With the precision of its products, which is asked for where the convolution stands, and not where it is lowered.
    """

    size: int
    stride: int
    padding: int
    height: int
    width: int
    channels: int
    features: int
    precision: str | None

    def images(self, count: int) -> tuple[int, ...]:
        return (count, self.height, self.width, self.channels)

    def outputs(self, count: int) -> tuple[int, ...]:
        steps = ((extent + 2 * self.padding - self.size) // self.stride + 1 for extent in (self.height, self.width))
        return (count, *steps, self.features)

    @property
    def kernel(self) -> tuple[int, ...]:
        return (self.size, self.size, self.channels, self.features)

    def patches(self, images: jax.Array) -> jax.Array:
        return patches(images, self.size, self.stride, self.padding)


def convolve_lanes(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolution by the backend's own kernels where lanes share the weights, by patches where each has its own.

    Arguments and result are those of `convolve_patches`.
    """
    precision = jax.config.jax_default_matmul_precision
    window = _Window(kernel.shape[0], stride, padding, *images.shape[1:], kernel.shape[-1], precision)
    return _convolve.bind(images, kernel, window=window)


# Each operation twice: by the backend's convolutions, and by patches.


def _outputs(images, kernel, window):
    return convolve_lax(images, kernel, window.stride, window.padding)


def _outputs_by_patches(images, kernel, window):
    return window.patches(images) @ kernel.reshape(-1, window.features)


def _images_bar(cotangent, kernel, window):
    images = jax.ShapeDtypeStruct(window.images(len(cotangent)), cotangent.dtype)
    return _transpose(lambda images: _outputs(images, kernel, window), images, cotangent)


def _images_bar_by_patches(cotangent, kernel, window):
    images = jax.ShapeDtypeStruct(window.images(len(cotangent)), cotangent.dtype)
    return _transpose(window.patches, images, cotangent @ kernel.reshape(-1, window.features).T)


def _kernel_bar(images, cotangent, window):
    kernel = jax.ShapeDtypeStruct(window.kernel, cotangent.dtype)
    return _transpose(lambda kernel: _outputs(images, kernel, window), kernel, cotangent)


def _kernel_bar_by_patches(images, cotangent, window):
    free = tuple(range(cotangent.ndim - 1))
    return jnp.tensordot(window.patches(images), cotangent, (free, free)).reshape(window.kernel)


def _transpose(function, primal, cotangent):
    (bar,) = jax.linear_transpose(function, primal)(cotangent)
    return bar


def _at_its_precision(function):
    def run(x, y, window):
        with jax.default_matmul_precision(window.precision):
            return function(x, y, window)

    return run


def _primitive(name: str, shape: Callable, native: Callable, by_patches: Callable) -> Primitive:
    """A primitive of two operands and a window; `shape(window, n)` is that of its output."""
    native, by_patches = _at_its_precision(native), _at_its_precision(by_patches)
    primitive = Primitive(name)
    primitive.def_impl(partial(jax.jit, static_argnames="window")(native))
    primitive.def_abstract_eval(lambda x, y, window: jax.core.ShapedArray(shape(window, x.shape[0]), x.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(native, multiple_results=False))

    def batch(operands, axes, window):
        if axes[1] is not None or primitive is _to_kernel:
            return jax.vmap(partial(by_patches, window=window), axes)(*operands), 0
        lanes = jnp.moveaxis(operands[0], axes[0], 0)  # one batch of many pictures
        out = primitive.bind(lanes.reshape(-1, *lanes.shape[2:]), operands[1], window=window)
        return out.reshape(*lanes.shape[:2], *out.shape[1:]), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


_convolve = _primitive("convolve", _Window.outputs, _outputs, _outputs_by_patches)
_to_images = _primitive("convolve_to_images", _Window.images, _images_bar, _images_bar_by_patches)
_to_kernel = _primitive("convolve_to_kernel", lambda window, _: window.kernel, _kernel_bar, _kernel_bar_by_patches)

ad.defbilinear(
    _convolve,
    lambda bar, images, kernel, window: _to_images.bind(bar, kernel, window=window),
    lambda bar, images, kernel, window: _to_kernel.bind(images, bar, window=window),
)
ad.defbilinear(
    _to_images,
    lambda bar, cotangent, kernel, window: _convolve.bind(bar, kernel, window=window),
    lambda bar, cotangent, kernel, window: _to_kernel.bind(bar, cotangent, window=window),
)
ad.defbilinear(
    _to_kernel,
    lambda bar, images, cotangent, window: _to_images.bind(cotangent, bar, window=window),
    lambda bar, images, cotangent, window: _convolve.bind(images, bar, window=window),
)
