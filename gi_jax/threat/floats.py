"""What a user hands over, as the arrays of float32 that all programs compute in."""

import jax
import jax.numpy as jnp

from gi_jax import checks


def as_float32(tree):
    """The tree with its floating-point arrays as float32; leaves that are such, or none, stay the same objects."""

    def cast(leaf):
        dtype = getattr(leaf, "dtype", jnp.float32)
        return jnp.float32(leaf) if jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.float32 else leaf

    return jax.tree.map(cast, tree)


def as_array(name: str, numbers) -> jax.Array:
    """An array of whatever is one, such as lists.

    Raises:
      InputError: for what is none.
    """
    if isinstance(numbers, jax.Array):
        return numbers
    try:
        return jnp.asarray(numbers)
    except (TypeError, ValueError) as error:
        raise checks.InputError(
            f"{name} of type {type(numbers).__name__}: expected an array of numbers; try numpy.asarray"
        ) from error
