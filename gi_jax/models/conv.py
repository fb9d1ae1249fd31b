"""Convolution lowerings: one mathematical operation, several programs for it.

An attack differentiates a convolution twice, inside a compiled loop, with a different tangent weight in every lane.
XLA's CPU backend has a fast path for convolutions in the entry computation only: in a loop body, or under `vmap` with
per-lane weights, it falls back to naive loops that are many times slower. What is written with matmuls has only
slices, pads and matmuls as derivatives and stays fast everywhere. A GPU has fast convolutions of its own, for weights
that lanes share: `gi_jax.models.lanes`. `benchmarks/attack_step.py` measures them all.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def patches(images: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """What a square window of `size` pixels sees at each of its places: [n, h', w', size * size * c].

    Args:
      images: [n, h, w, c].
      size: of the window.
      stride: step in both directions.
      padding: zeros added on each of the four sides.
    """
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    count, height, width, channels = padded.shape
    last_row, last_column = ((extent - size) // stride * stride for extent in (height, width))
    shifted = [
        lax.slice(
            padded, (0, i, j, 0), (count, i + last_row + 1, j + last_column + 1, channels), (1, stride, stride, 1)
        )
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


def convolve_patches(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolution as patches and one matmul.

    Args:
      images: [n, h, w, c].
      kernel: [size, size, c, features].
      stride: step in both directions.
      padding: zeros added on each of the four sides.

    Returns:
      [n, h', w', features].
    """
    size, _, channels, features = kernel.shape
    rows = patches(images, size, stride, padding)
    return _matmul(rows, kernel.reshape(size * size * channels, features))


# F(4, 3): four neighboring outputs of a 3-tap filter from six products instead of twelve (Lavin and Gray, Fast
# Algorithms for Convolutional Neural Networks, 2016; interpolation at 0, 1, -1, 2, -2 and infinity).
_TILE = 4
_FROM_INPUTS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_FROM_TAPS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_TO_OUTPUTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def convolve_winograd(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """A 3x3 convolution at stride 1 and padding 1 with half the multiplications, in tiles of four along the width.

    Across the width by Winograd's F(4, 3), down the height as three rows side by side: six matmuls of 3c numbers. The
    rounding is some 1e-6 of the largest output. Other convolutions, those of numbers narrower than float32, of which
    the transforms multiply the rounding, and those with few rows for the size of the kernel, where turning the kernel
    over costs more than it saves, go to `convolve_patches`.
    """
    count, height, width, channels = images.shape
    features = kernel.shape[-1]
    tiles = width // _TILE
    fits = kernel.shape[:2] == (3, 3) and (stride, padding) == (1, 1) and width % _TILE == 0 and channels >= 16
    fits &= jnp.finfo(images.dtype).bits >= 32
    if not fits or 2 * count * height * tiles < features:
        return convolve_patches(images, kernel, stride, padding)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, _TILE - 1), (0, 0)))
    tiled = padded.reshape(count, height + 2, tiles + 1, _TILE, channels)
    columns = [tiled[:, :, :tiles, i] for i in range(_TILE)] + [tiled[:, :, 1:, i] for i in range(2)]
    inputs = _transform(_FROM_INPUTS, jnp.stack(columns), 0)
    rows = jnp.concatenate([inputs[:, :, i : i + height] for i in range(3)], axis=-1)
    taps = _transform(_FROM_TAPS, kernel, 1)
    products = lax.batch_matmul(
        rows.reshape(6, count * height * tiles, 3 * channels), taps.reshape(6, 3 * channels, features)
    )
    outputs = _transform(_TO_OUTPUTS, products, 0).reshape(_TILE, count, height, tiles, features)
    return jnp.moveaxis(outputs, 0, 3).reshape(count, height, width, features)


def _transform(matrix: np.ndarray, array: jax.Array, axis: int) -> jax.Array:
    return jnp.tensordot(matrix.astype(array.dtype), array, (1, axis))


def convolve_lax(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The same through `jax.lax.conv_general_dilated`, which GPUs and TPUs have fast kernels for."""
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# The matmul of the patches, with derivatives that spare a CPU the turning over of big matrices in memory. Its matmul
# wants the contracted axis last on the left and first on the right; JAX's own rules turn 45 MB of ResNet-18 weights
# over twice in every iteration and lane, which is a third of the time of a single lane.


@jax.custom_vjp
def _matmul(rows: jax.Array, weights: jax.Array) -> jax.Array:
    return rows @ weights


def _matmul_forward(rows, weights):
    return rows @ weights, (rows, weights)


def _matmul_backward(inputs, cotangent):
    rows, weights = inputs
    free = tuple(range(rows.ndim - 1))
    # Turn over the rows, or else the cotangent and the result.
    if math.prod(rows.shape[:-1]) < weights.shape[1]:
        weights_bar = jnp.tensordot(rows, cotangent, (free, free))
    else:
        weights_bar = jnp.tensordot(cotangent, rows, (free, free)).T
    return _times_transpose(cotangent, weights), weights_bar


_matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_jvp
def _times_transpose(rows: jax.Array, weights: jax.Array) -> jax.Array:
    return rows @ weights.T


@_times_transpose.defjvp
def _times_transpose_jvp(primals, tangents):
    # The weights are constant in the loop, so turning them over is free. Their tangent is new in every iteration and
    # lane: where the rows are few (late layers), turn over the rows and the result instead.
    (rows, weights), (rows_dot, weights_dot) = primals, tangents
    if math.prod(rows.shape[:-1]) < weights.shape[0]:
        along_weights = jnp.moveaxis(jnp.tensordot(weights_dot, rows, (1, rows.ndim - 1)), 0, -1)
    else:
        along_weights = rows @ weights_dot.T
    return rows @ weights.T, rows_dot @ weights.T + along_weights
