"""Coarse updates: signs, stochastic levels, uniform levels. Widths are what a receiver can say of the rounding."""

import jax
import jax.numpy as jnp
import optax

from gi_jax import checks
from gi_jax.types import Gradients


def send_signs() -> optax.GradientTransformation:
    """The sign of every entry: -1, 0 or 1.

    Reference: Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems, 2018.
    """
    return optax.stateless(lambda gradients, params: jax.tree.map(jnp.sign, gradients))


def quantize_stochastically(levels: int, key: jax.Array) -> optax.GradientTransformation:
    """QSGD: rounds |g_i| / ||g||_2 of each tensor up or down to a multiple of 1 / levels, unbiased, new in every step.

    Guarantees, for a tensor g of n entries and s levels: the expectation is g, every entry moves by less than
    ||g||_2 / s, and the expected squared error is at most min(n / s^2, sqrt(n) / s) ||g||_2^2 (lemma 3.1).

    Args:
      levels: s, 1 or above; may be traced.
      key: the client's randomness.

    Reference: Alistarh et al., QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, 2017,
    section 3.1.
    """
    checks.positive(levels=levels)

    def quantize(gradient, uniform):
        norm = jnp.linalg.norm(gradient.reshape(-1))
        level = jnp.abs(gradient) / jnp.where(norm > 0, norm, 1) * levels
        rounded = jnp.floor(level) + (uniform < level - jnp.floor(level))
        return jnp.sign(gradient) * rounded * (norm / levels)

    def update(gradients, state, params=None):
        del params
        key_next, key_rounding = jax.random.split(state)
        uniforms = optax.tree.random_like(key_rounding, gradients, sampler=jax.random.uniform)
        return jax.tree.map(quantize, gradients, uniforms), key_next

    return optax.GradientTransformation(lambda params: key, update)


def quantize_uniformly(bits: int) -> optax.GradientTransformation:
    """Rounds every entry to the nearest of 2^bits - 1 evenly spaced values between -max|g| and max|g| of its tensor.

    Args:
      bits: of an entry with its sign, from 2 (three values) to 16.

    Reference: Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, 2018, section 2.2.
    """
    checks.in_range(2, 17, bits=bits)

    def quantize(gradient):
        step = _largest(gradient) / _steps(bits)
        return jnp.round(gradient / jnp.where(step > 0, step, 1)) * step

    return optax.stateless(lambda gradients, params: jax.tree.map(quantize, gradients))


def stochastic_width(sent: Gradients) -> Gradients:
    """How far QSGD can have moved an entry, a scalar a tensor, from what was sent.

    The spacing divides every sent value, so it is at most the smallest that is not zero; infinite (nothing known) for
    a tensor of zeros, where everything was rounded away.
    """
    return jax.tree.map(lambda tensor: jnp.min(jnp.abs(tensor), initial=jnp.inf, where=tensor != 0), sent)


def stochastic_scale(levels: int, sent: Gradients) -> jax.Array:
    """Standard deviation of what QSGD's rounding added to an entry, a mean over all, as who sees only `sent` tells it.

    Rounding up and down without bias is noise. Where the spacing of a tensor is small (levels^2 above its size n, so
    that a typical entry is above it), entries lie anywhere between two levels, and the noise has the variance
    spacing^2 / 6. Else most entries go to 0; the norm of the tensor is `levels` spacings, and the noise is what the
    tensor that was sent is longer than that.
    """

    def added(tensor, spacing):
        spacing = jnp.where(jnp.isinf(spacing), 0, spacing)
        coarse = jnp.maximum(jnp.vdot(tensor, tensor) - jnp.square(levels * spacing), 0)
        return jnp.where(levels**2 > tensor.size, tensor.size * jnp.square(spacing) / 6, coarse)

    squares = jax.tree.map(added, sent, stochastic_width(sent))
    return jnp.sqrt(sum(jax.tree.leaves(squares)) / optax.tree.size(sent))


def uniform_width(bits: int, sent: Gradients) -> Gradients:
    """How far uniform quantization can have moved an entry, a scalar a tensor: half the spacing.

    The largest entry of a tensor is sent as it is, and the spacing follows from it.
    """
    return jax.tree.map(lambda tensor: _largest(tensor) / _steps(bits) / 2, sent)


def _largest(tensor):
    return jnp.max(jnp.abs(tensor))


def _steps(bits):
    return 2 ** (bits - 1) - 1
