"""Randomness from the operating system, for what has to stay secret.

JAX's generator (threefry) is fast and repeatable, and made for experiments: its keys have 64 bits, and nobody vouches
for it as a cipher. What a deployed client hides behind should come from here, and be used once.
"""

import math
import os

import jax
import numpy as np

from gi_jax.types import Key


def entropy_key() -> Key:
    """A typed random key of 64 bits that nobody can guess. What is drawn from it is still threefry's."""
    return jax.random.wrap_key_data(np.frombuffer(os.urandom(8), np.uint32), impl="threefry2x32")


def entropy_signs(shape: tuple[int, ...]) -> jax.Array:
    """Independent signs, a bit of the operating system's cryptographic generator each.

    For InstaHide: `encode(dataclasses.replace(mapping, signs=entropy_signs(images.shape)), images, labels)`.

    Returns:
      int8, -1 or 1, of the shape.
    """
    size = math.prod(shape)
    bits = np.unpackbits(np.frombuffer(os.urandom(-(-size // 8)), np.uint8), count=size)
    return jax.numpy.asarray(2 * bits.astype(np.int8) - 1).reshape(shape)
