"""The client's secret of an input defense: which pictures it mixed, in which shares, and whose signs it flipped."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Mapping:
    """How n encodings were made of a pool of pictures. Never part of an `AttackProblem`.

    A decoder that is handed one is granted more than any gradient tells, and says so.

    Attributes:
      indices: int32 [n, k], rows of the pool; no row twice in an encoding. Private pictures come first in the pool,
        public ones after them.
      coefficients: float32 [n, k], 0 or above, each row summing to 1.
      signs: int8 [n, h, w, c] of -1 and 1, or None where none were flipped.
    """

    indices: jax.Array
    coefficients: jax.Array
    signs: jax.Array | None = None

    def mix(self, pool: jax.Array) -> jax.Array:
        """sum_i lambda_i pool[index_i], before signs are flipped: [m, ...] to [n, ...]. Linear in `pool`."""
        shares = self.coefficients.reshape(*self.coefficients.shape, *(1,) * (pool.ndim - 1))
        return sum(shares[:, i] * pool[self.indices[:, i]] for i in range(self.indices.shape[1]))

    def matrix(self, size: int) -> jax.Array:
        """The shares of the first `size` rows of the pool as a dense matrix, [n, size]."""
        rows = jnp.arange(len(self.indices))[:, None]
        return jnp.zeros((len(self.indices), size)).at[rows, self.indices].add(self.coefficients, mode="drop")

    def without_signs(self) -> "Mapping":
        """Indices and coefficients only: what the paper grants to its decoder."""
        return dataclasses.replace(self, signs=None)
