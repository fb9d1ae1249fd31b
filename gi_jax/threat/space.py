"""Units of the pictures: what the network sees, and the box that an attack stays in."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gi_jax.types import Images


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ImageSpace:
    """Units of the pictures: the network sees (picture - mean) / std, for pictures in [0, 1].

    Attributes:
      mean, std: [c], in the units of the pictures.
      low, high: [c], the box that an attack stays in, in the units of the pictures; None for 0 and 1.
    """

    mean: jax.Array
    std: jax.Array
    low: jax.Array | None = None
    high: jax.Array | None = None

    def normalize(self, pictures: Images) -> Images:
        """From [0, 1] to the network's units."""
        return (pictures - _channels(self.mean, pictures)) / _channels(self.std, pictures)

    def denormalize(self, images: Images) -> Images:
        """From the network's units to pictures, clipped to [0, 1]."""
        return jnp.clip(images * _channels(self.std, images) + _channels(self.mean, images), 0.0, 1.0)

    def clip(self, images: Images) -> Images:
        """Projects on the box that pictures from `low` to `high` fill in the network's units."""
        mean, std = _channels(self.mean, images), _channels(self.std, images)
        low = 0.0 if self.low is None else _channels(self.low, images)
        high = 1.0 if self.high is None else _channels(self.high, images)
        return jnp.clip(images, (low - mean) / std, (high - mean) / std)

    def signed(self) -> "ImageSpace":
        """The units of sign-flipped images: the same values for the network, in a box that holds x and -x.

        Its pictures show 0 as the middle gray; flipping a sign mirrors them about it.
        """
        limit = jnp.maximum(self.mean, 1 - self.mean) / self.std
        return ImageSpace(mean=jnp.full_like(self.mean, 0.5), std=0.5 / limit)


def _channels(vector: jax.Array, images: Images) -> jax.Array:
    return vector.reshape((1,) * (images.ndim - 1) + (-1,))
