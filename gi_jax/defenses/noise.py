"""Noise on every entry of the update: Gaussian or Laplacian, absolute or relative to the update's norm."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gi_jax import checks
from gi_jax.types import Gradients

SAMPLERS = {"gaussian": jax.random.normal, "laplacian": jax.random.laplace}
"""Noise of unit scale, by the name that `gi_jax.threat.Noisy` has for it."""

_VARIANCE = {"gaussian": 1, "laplacian": 2}
"""Of noise of unit scale."""


def add_gaussian_noise(sigma: float, key: jax.Array) -> optax.GradientTransformation:
    """Adds independent N(0, sigma^2) to every entry, new in every step.

    Args:
      sigma: standard deviation in the units of the gradient, 0 or above; may be traced. 0 is the identity.
      key: the client's randomness.
    """
    checks.non_negative(sigma=sigma)
    return _add_noise("gaussian", lambda gradients: sigma, key)


def add_laplacian_noise(scale: float, key: jax.Array) -> optax.GradientTransformation:
    """Adds independent Laplacian noise, density exp(-|z| / scale) / (2 scale), to every entry, new in every step.

    Args:
      scale: mean absolute value in the units of the gradient (standard deviation / sqrt 2), 0 or above; may be
        traced. 0 is the identity.
      key: the client's randomness.
    """
    checks.non_negative(scale=scale)
    return _add_noise("laplacian", lambda gradients: scale, key)


def add_relative_noise(distribution: str, relative: float, key: jax.Array) -> optax.GradientTransformation:
    """Adds independent noise of which the expected squared norm is (relative ||g||)^2, for the update g of this step.

    So the standard deviation is relative ||g||_2 / sqrt(N) for each of the N entries of all tensors: `relative` times
    the root mean square of the update. As strong in every step, whatever the length of the gradient; and the scale
    itself depends on the private batch.

    Args:
      distribution: `gaussian` or `laplacian`.
      relative: noise over signal, 0 or above; may be traced. 0 is the identity.
      key: the client's randomness.
    """
    checks.one_of("distribution", distribution, SAMPLERS)
    checks.non_negative(relative=relative)
    return _add_noise(distribution, lambda gradients: relative * _unit_scale(distribution, gradients), key)


def estimate_scale(distribution: str, relative: float, sent: Gradients) -> jax.Array:
    """The scale of relative noise as who sees only the noisy update estimates it.

    The squared norm of what was sent is in expectation 1 + relative^2 times that of the update; with thousands of
    entries the estimate is good to a few percent.
    """
    return relative / jnp.sqrt(1 + jnp.square(relative)) * _unit_scale(distribution, sent)


def _unit_scale(distribution, gradients):
    # The scale at which the noise is expected to be as long as the gradients.
    return optax.tree.norm(gradients) / (_VARIANCE[distribution] * optax.tree.size(gradients)) ** 0.5


def _add_noise(
    distribution: str, scale: Callable[[Gradients], jax.Array | float], key: jax.Array
) -> optax.GradientTransformation:
    def update(gradients, state, params=None):
        del params
        key_next, key_noise = jax.random.split(state)
        noise = optax.tree.random_like(key_noise, gradients, sampler=SAMPLERS[distribution])
        return optax.tree.add_scale(gradients, scale(gradients), noise), key_next

    return optax.GradientTransformation(lambda params: key, update)
