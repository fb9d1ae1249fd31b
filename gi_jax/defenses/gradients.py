"""Gradient defenses as optax transformations: what a client does to its gradient before it is sent."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import optax

from gi_jax import checks
from gi_jax.types import Gradients


def prune_by_magnitude(p: float) -> optax.GradientTransformation:
    """Keeps the ceil((1 - p) n) entries of largest magnitude of each tensor and sets the others to zero.

    The ratio is exact: of equal magnitudes those that come first are kept. (The published code of Huang et al. 2021
    keeps what is not below an interpolated quantile: up to one entry a tensor more or less.)

    Args:
      p: the fraction set to zero, in [0, 1).

    Raises:
      InputError: for p outside [0, 1).

    Reference: Zhu et al., Deep Leakage from Gradients, 2019, section 5.2.
    """
    checks.in_range(0, 1, p=p)
    dropped = Fraction(str(p))  # as written: 0.29 * 100 in binary is below 29

    def prune(gradient):
        keep = gradient.size - int(dropped * gradient.size)
        if keep == gradient.size:
            return gradient
        magnitude = jnp.abs(gradient).reshape(-1)
        threshold = jnp.sort(magnitude)[gradient.size - keep]
        above = magnitude > threshold
        ties = magnitude == threshold
        kept = above | (ties & (jnp.cumsum(ties) <= keep - jnp.sum(above)))
        return jnp.where(kept.reshape(gradient.shape), gradient, 0.0)

    return optax.stateless(lambda gradients, params: jax.tree.map(prune, gradients))


def smallest_kept(sent: Gradients) -> Gradients:
    """The smallest magnitude above 0, a scalar a tensor: no entry that `prune_by_magnitude` dropped was larger.

    Infinite for a tensor of zeros, where nothing can be said.
    """
    return jax.tree.map(lambda tensor: jnp.min(jnp.abs(tensor), where=tensor != 0, initial=jnp.inf), sent)


def add_gaussian_noise(sigma: float, key: jax.Array) -> optax.GradientTransformation:
    """Adds independent N(0, sigma^2) to every entry, new in every step.

    Args:
      sigma: standard deviation in the units of the gradient, 0 or above; 0 is the identity.
      key: the client's randomness.
    """
    checks.non_negative(sigma=sigma)
    return optax.add_noise(eta=sigma**2, gamma=0.0, key=key) if sigma > 0 else optax.identity()


def add_laplacian_noise(scale: float, key: jax.Array) -> optax.GradientTransformation:
    """Adds independent Laplacian noise, density exp(-|z| / scale) / (2 scale), to every entry, new in every step.

    Args:
      scale: mean absolute value in the units of the gradient (standard deviation / sqrt 2), 0 or above.
      key: the client's randomness.
    """
    checks.non_negative(scale=scale)

    def update(gradients, state, params=None):
        del params
        key_next, key_noise = jax.random.split(state)
        noise = optax.tree.random_like(key_noise, gradients, sampler=jax.random.laplace)
        return optax.tree.add_scale(gradients, scale, noise), key_next

    return optax.GradientTransformation(lambda params: key, update) if scale > 0 else optax.identity()
