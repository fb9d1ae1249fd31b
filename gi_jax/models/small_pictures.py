"""Convolutions of pictures smaller than their kernel, in networks of other packages."""

import dataclasses
from contextlib import AbstractContextManager

import flax.linen as nn
import jax.numpy as jnp

from gi_jax.models.conv import convolve_patches


def small_as_patches() -> AbstractContextManager:
    """Has layers of flax convolve pictures that are smaller than their 3x3 kernel as patches and a matmul, meanwhile.

    XLA's own convolution of 2x2 pixels takes a CPU forty to a hundred times as long: most of LPIPS at 32x32.
    """
    return nn.intercept_methods(_convolve)


_FREE = ("features", "kernel_size", "padding", "kernel_init", "bias_init", "param_dtype", "parent", "name")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(nn.Conv) if field.name not in _FREE}


def _is_plain(layer):
    """A 3x3 convolution with a bias that pads by one, of which nothing else is set."""
    if not isinstance(layer, nn.Conv) or layer.kernel_size != (3, 3) or layer.padding not in (1, (1, 1)):
        return False
    values = {name: getattr(layer, name) for name in _DEFAULTS}
    return all(value is _DEFAULTS[name] for name, value in values.items())


def _convolve(call, arguments, keywords, context):
    layer, (images, *_) = context.module, arguments
    if not _is_plain(layer) or min(images.shape[1:3]) >= 3:
        return call(*arguments, **keywords)
    weights = layer.variables["params"]
    return convolve_patches(images, weights["kernel"], 1, 1) + jnp.reshape(weights["bias"], (1, 1, 1, -1))
