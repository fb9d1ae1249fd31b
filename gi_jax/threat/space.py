"""Units of the pictures: what the network sees, and the box that an attack stays in."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.types import Images


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ImageSpace:
    """Units of the pictures: the network sees (picture - mean) / std, for pictures in [0, 1].

    Attributes:
      mean, std: [c], in the units of the pictures; or one number for all channels.
      low, high: the same, the box that an attack stays in, in the units of the pictures; None for 0 and 1.
    """

    mean: jax.Array | float
    std: jax.Array | float
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
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        limit = jnp.maximum(mean, 1 - mean) / std
        return ImageSpace(mean=jnp.full_like(mean, 0.5), std=0.5 / limit)

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuses units that pictures [n, h, w, c] cannot have. Skips traced numbers.

        Raises:
          InputError: naming the number.
        """
        numbers = {"mean": self.mean, "std": self.std, "low": self.low, "high": self.high}
        numbers = {name: value for name, value in numbers.items() if value is not None}
        for name, value in numbers.items():
            if np.ndim(value) > 1 or np.size(value) not in (1, image_shape[-1]):
                raise checks.InputError(
                    f"images of shape {image_shape} in a space with {name} of shape {np.shape(value)}: expected "
                    "[n, h, w, c] and one number a channel; try images.transpose(0, 2, 3, 1), or the space of the data"
                )
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(numbers)):
            return
        checks.all_finite("space", {"mean": self.mean, "std": self.std})
        if not np.all(np.asarray(self.std) > 0):
            raise checks.InputError(f"space: std {self.std}: expected numbers above 0")
        low, high = numbers.get("low", 0.0), numbers.get("high", 1.0)
        if not np.all(np.asarray(low) < np.asarray(high)):
            raise checks.InputError(f"space: low {low} and high {high}: expected low below high; try 0 and 1")


def _channels(vector: jax.Array, images: Images) -> jax.Array:
    return jnp.asarray(vector, jnp.float32).reshape((1,) * (images.ndim - 1) + (-1,))
