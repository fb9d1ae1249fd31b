"""Random crops and mirror images, drawn on the device."""

import jax
import jax.numpy as jnp
from jax import lax

from gi_jax.types import Images, Key

PADDING = 4
"""Pixels of zeros around a picture before it is cropped, as is usual for CIFAR-10 (He et al. 2016, section 4.2)."""


def crop_and_flip(key: Key, images: Images, padding: int = PADDING) -> Images:
    """Shifts each picture by up to `padding` pixels both ways, zeros coming in, and mirrors every second one.

    Args:
      key: typed key.
      images: [n, h, w, c] of any dtype, before the mean is subtracted: what comes in is black.
      padding: largest shift, in pixels.

    Returns:
      The same shape and dtype.
    """
    key_corner, key_flip = jax.random.split(key)
    corners = jax.random.randint(key_corner, (len(images), 2), 0, 2 * padding + 1)
    flips = jax.random.bernoulli(key_flip, 0.5, (len(images),))
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def one(picture, corner, flip):
        window = lax.dynamic_slice(picture, (corner[0], corner[1], 0), images.shape[1:])
        return jnp.where(flip, window[:, ::-1], window)

    return jax.vmap(one)(padded, corners, flips)
