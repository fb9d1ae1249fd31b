"""Registration of pictures by phase correlation: how far one is shifted against another, and the shift itself.

No network and no derivative: a Fourier transform a picture. It lives on edges and texture: smooth pictures, or noise of
the size of the picture's contrast, give no reliable shift.
"""

import jax
import jax.numpy as jnp

from gi_jax.types import Images


def estimate_shift(images: Images, reference: Images, *, within: int = 4) -> jax.Array:
    """The whole-pixel shifts that bring the images onto the reference (Kuglin & Hines 1975, phase correlation).

    Args:
      images: [n, h, w, c].
      reference: [n, h, w, c]; the channels are correlated one by one and then added up.
      within: the largest shift that is looked for, in pixels; no more than half of the smaller side.

    Returns:
      int32 [n, 2], rows down and columns to the right; for `translate`.
    """
    within = min(within, min(images.shape[1:3]) // 2)
    ours, theirs = (jnp.fft.fft2(pictures, axes=(1, 2)) for pictures in (images, reference))
    cross = theirs * jnp.conj(ours)
    size = jnp.abs(cross)
    phase = cross / jnp.where(size == 0, 1.0, size)
    correlation = jnp.sum(jnp.fft.ifft2(phase, axes=(1, 2)).real, -1)
    near = jnp.arange(-within, within + 1)
    window = correlation[:, near][:, :, near].reshape(len(images), -1)  # negative shifts come from the far end
    best = jnp.argmax(window, axis=1)
    return jnp.stack([near[best // len(near)], near[best % len(near)]], axis=-1)


def translate(images: Images, shifts: jax.Array) -> Images:
    """Images [n, h, w, c] moved by whole pixels [n, 2], down and to the right; what comes in repeats the border."""
    height, width = images.shape[1:3]

    def move(image, shift):
        rows = jnp.clip(jnp.arange(height) - shift[0], 0, height - 1)
        columns = jnp.clip(jnp.arange(width) - shift[1], 0, width - 1)
        return image[rows][:, columns]

    return jax.vmap(move)(images, shifts)
