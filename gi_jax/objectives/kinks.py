"""Functions with a kink or a pole at zero, with derivative 0 there; NaN goes through, so that a lane can be stopped."""

import jax
import jax.numpy as jnp


def absolute(x: jax.Array) -> jax.Array:
    """|x| with derivative 0 at 0, as in PyTorch. That of `jnp.abs` is 1 there: flat pictures would be tilted."""
    return x * jnp.sign(x)


def root(square: jax.Array) -> jax.Array:
    """The square root of numbers that are 0 or above, with derivative 0 at 0 instead of infinity."""
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
