"""Convolutions of pictures smaller than their kernel, in networks of other packages."""

from contextlib import AbstractContextManager

import flax.linen as nn
import jax.numpy as jnp

from gi_jax.models.conv import convolve_patches


def small_as_patches() -> AbstractContextManager:
    """Has layers of flax convolve pictures that are smaller than their 3x3 kernel as patches and a matmul, meanwhile.

    XLA's own convolution of 2x2 pixels takes a CPU forty to a hundred times as long: most of LPIPS (VGG) at 32x32.
    """
    return nn.intercept_methods(_convolve)


def _convolve(call, arguments, keywords, context):
    layer, (images, *_) = context.module, arguments
    plain = isinstance(layer, nn.Conv) and layer.use_bias and layer.feature_group_count == 1
    plain = plain and all(steps in (None, 1, (1, 1)) for steps in (layer.strides, layer.kernel_dilation))
    if not plain or (layer.kernel_size, layer.padding) != ((3, 3), (1, 1)) or min(images.shape[1:3]) >= 3:
        return call(*arguments, **keywords)
    weights = layer.variables["params"]
    return convolve_patches(images, weights["kernel"], 1, 1) + jnp.reshape(weights["bias"], (1, 1, 1, -1))
