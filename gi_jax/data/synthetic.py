"""Smooth random color pictures of any shape, for tests and smoke runs that need no data."""

import jax

from gi_jax.checks import counts
from gi_jax.types import Images, Key

_GRID = 4


def smooth_images(key: Key, n: int, height: int, width: int, channels: int = 3) -> Images:
    """Draws pictures of soft color blobs: a coarse grid of noise, interpolated and squashed.

    Can be jitted, with all arguments but `key` static.

    Args:
        key: random key.
        n: number of pictures.
        height: pixels.
        width: pixels.
        channels: color channels.

    Returns:
        float32 [n, height, width, channels] in [0, 1].

    Raises:
        InputError: a size is no whole number above zero.
    """
    counts(n=n, height=height, width=width, channels=channels)
    grid = jax.random.normal(key, (n, _GRID, _GRID, channels))
    return jax.nn.sigmoid(2.0 * jax.image.resize(grid, (n, height, width, channels), "cubic"))
