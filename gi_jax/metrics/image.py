"""Pixel metrics between images in [0, 1], and the checks that every metric makes at its door."""

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from gi_jax.checks import InputError
from gi_jax.types import Images

MAX_PSNR = 100.0
"""Decibels. Identical images would have an infinite PSNR, which no JSON file and no mean can hold."""

SSIM_WINDOW = 11
"""Pixels. The side of the gaussian window, hence the smallest image side that has an SSIM."""


def mse(a: Images, b: Images) -> jax.Array:
    """Mean squared error per image.

    Args:
        a: float [n, h, w, c] in [0, 1].
        b: float [n, h, w, c] in [0, 1].

    Returns:
        float32 [n], 0 for identical images; NaN or infinite where an image is.

    Raises:
        InputError: if the two are not float images of one shape.
    """
    check_images(a=a, b=b)
    return jnp.mean(jnp.square(jnp.asarray(a, jnp.float32) - jnp.asarray(b, jnp.float32)), axis=(1, 2, 3))


def psnr(a: Images, b: Images) -> jax.Array:
    """Peak signal-to-noise ratio per image: `-10 log10(mse)`, that is with a data range of 1.

    Args:
        a: float [n, h, w, c] in [0, 1].
        b: float [n, h, w, c] in [0, 1].

    Returns:
        float32 [n], decibels, at most `MAX_PSNR`: identical images have exactly that. NaN or minus infinity
        where an image is not finite.

    Raises:
        InputError: if the two are not float images of one shape.
    """
    return -10.0 * jnp.log10(jnp.maximum(mse(a, b), 10.0 ** (-MAX_PSNR / 10.0)))


def ssim(a: Images, b: Images) -> jax.Array:
    """Structural similarity per image (Wang et al. 2004, IEEE Trans. Image Processing 13(4), equation 13).

    Gaussian window of 11 x 11 pixels with sigma 1.5, population covariance, averaged over the channels and
    over the valid region (the window lies wholly inside the image). Equals `structural_similarity` of skimage
    with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`; skimage's default, a uniform window
    of 7 x 7 pixels, gives other numbers.

    Args:
        a: float [n, h, w, c] in [0, 1], h and w at least 11.
        b: float [n, h, w, c] in [0, 1].

    Returns:
        float32 [n] in [-1, 1], 1 for identical images; NaN where an image is not finite.

    Raises:
        InputError: if the two are not float images of one shape, or smaller than the window.
    """
    check_images(a=a, b=b)
    check_side("ssim", a, SSIM_WINDOW)
    return _ssim(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))


_ssim = jax.jit(dm_pix.ssim)


def correlation(a: Images, b: Images) -> np.ndarray:
    """Pearson correlation per image, over all its pixels and channels: blind to brightness and contrast.

    On the host, in double precision: faint contrast on a bright image would be lost to float32.

    Args:
        a: float [n, h, w, c] in any units.
        b: float [n, h, w, c] in any units.

    Returns:
        float64 [n] in [-1, 1], 0 where an image has one value only; NaN where it is not finite.

    Raises:
        InputError: if the two are not float images of one shape.
    """
    check_images(a=a, b=b)
    x, y = (np.asarray(images, np.float64).reshape(len(images), -1) for images in (a, b))
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, as documented
        plain = (np.ptp(x, axis=1) == 0) | (np.ptp(y, axis=1) == 0)  # the mean of equal values may be off by an ulp
        x, y = (rows - rows.mean(axis=1, keepdims=True) for rows in (x, y))
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        return np.where(plain, 0.0, np.sum(x * y, axis=1) / np.where(lengths == 0, 1.0, lengths))


def check_images(same_count: bool = True, **images: Images) -> None:
    """Raises unless every value is a float array [n, h, w, c] with n >= 1, all of the first one's shape.

    Looks at shapes and types only, so it may be called while JAX traces.

    Args:
        same_count: whether n has to agree as well as h, w and c.
        **images: the arrays, under the names that the message shall use.

    Raises:
        InputError: naming the first array that does not fit.
    """
    first_name, first = next(iter(images.items()))
    for name, value in images.items():
        shape, dtype = np.shape(value), getattr(value, "dtype", type(value).__name__)
        if len(shape) != 4 or 0 in shape:
            raise InputError(
                f"{name} has shape {shape}: expected images [n, h, w, c], at least one;"
                " add a leading axis to one image, a last axis to gray images"
            )
        if not (hasattr(value, "dtype") and jnp.issubdtype(dtype, jnp.floating)):
            raise InputError(
                f"{name} has type {dtype}: expected an array of floats in [0, 1]; divide 8-bit images by 255"
            )
        axes = slice(0 if same_count else 1, None)
        if shape[axes] != np.shape(first)[axes]:
            raise InputError(
                f"{name} has shape {shape}, {first_name} {np.shape(first)}: expected"
                f" {'equal shapes' if same_count else 'equal h, w, c'}; compare images of one size"
            )


def check_side(metric: str, images: Images, smallest: int) -> None:
    """Raises `InputError` unless the images [n, h, w, c] are at least `smallest` pixels high and wide."""
    height, width = np.shape(images)[1:3]
    if min(height, width) < smallest:
        raise InputError(
            f"{metric}: images of {height} x {width} pixels; expected at least {smallest} x {smallest};"
            " leave this metric out for smaller images"
        )


def check_unit_range(tolerance: float = 1e-3, **images: Images) -> None:
    """Raises unless the finite values of every array lie in [0, 1], give or take `tolerance`.

    Values that are not finite pass: a reconstruction that diverged is a result, not a mistake of the caller.

    Raises:
        InputError: naming the first array that leaves the range, and its extremes.
    """
    for name, value in images.items():
        value = np.asarray(value)
        finite = value[np.isfinite(value)]
        if finite.size and (finite.min() < -tolerance or finite.max() > 1 + tolerance):
            raise InputError(
                f"{name} spans [{finite.min():g}, {finite.max():g}]: expected values in [0, 1];"
                " undo the normalization (x * std + mean) and clip"
            )
