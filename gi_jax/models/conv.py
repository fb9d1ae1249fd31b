"""Convolution lowerings: one mathematical operation, several programs for it.

An attack differentiates a convolution twice, inside a compiled loop, with a different tangent weight in every lane.
XLA's CPU backend has a fast path for convolutions in the entry computation only: in a loop body, or under `vmap` with
per-lane weights, it falls back to naive loops that are many times slower. Patches and a matmul have only slices,
pads and matmuls as derivatives and stay fast everywhere; a GPU has fast convolutions of its own.
`benchmarks/attack_step.py` measures both.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from gi_jax import checks


def convolve_patches(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolution as shifted slices side by side and one matmul.

    Args:
      images: [n, h, w, c].
      kernel: [kh, kw, c, features].
      stride: step in both directions.
      padding: zeros added on each of the four sides.

    Returns:
      [n, h', w', features].
    """
    height, width, channels, features = kernel.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = (padded.shape[1] - height) // stride + 1
    columns = (padded.shape[2] - width) // stride + 1
    shifted = [
        lax.slice(
            padded,
            (0, i, j, 0),
            (padded.shape[0], i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, channels),
            (1, stride, stride, 1),
        )
        for i in range(height)
        for j in range(width)
    ]
    return _matmul(jnp.concatenate(shifted, axis=-1), kernel.reshape(height * width * channels, features))


def convolve_lax(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The same through `jax.lax.conv_general_dilated`, which GPUs and TPUs have fast kernels for."""
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


LOWERINGS = {"patches": convolve_patches, "lax": convolve_lax}


def convolve(images: jax.Array, kernel: jax.Array, *, stride: int, padding: int, lowering: str) -> jax.Array:
    """Convolution by the named lowering; `auto` takes patches on a CPU and the backend's own kernels elsewhere."""
    if lowering == "auto":
        lowering = "patches" if jax.default_backend() == "cpu" else "lax"
    checks.one_of("convolution lowering", lowering, LOWERINGS)
    return LOWERINGS[lowering](images, kernel, stride, padding)


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
