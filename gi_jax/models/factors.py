"""Gradients of weight matrices as the two factors they are products of.

The gradient of y = rows @ kernel in the kernel is rows^T @ cotangents. Where the rows are few (late layers, small
batches) the factors are far smaller than the product: 0.3 MB against 9.4 MB for the last convolution of ResNet-18 and
one picture. An attack has such a gradient in every lane and needs no more than its inner products (`Factored.inner`,
`Factored.square`), so it never has to build the product, and all its matmuls are with weights that lanes share.

Written as Flax variables: a layer writes its rows into the collection `rows` and adds what lies in `probes` to its
output; the derivative in the probe is the cotangent. Both mirror the tree of parameters.
"""

from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from gi_jax import checks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factored:
    """The gradient rows^T @ cotangents of a kernel.

    Its products are float32 at least, whatever the type of the factors.

    Attributes:
      rows: inputs of the matmul, [..., d].
      cotangents: derivative in its outputs, [..., features].
      shape: of the kernel; static.
    """

    rows: jax.Array
    cotangents: jax.Array
    shape: tuple[int, ...] = field(metadata={"static": True})

    def dense(self) -> jax.Array:
        """The gradient itself, in the shape of the kernel."""
        rows, cotangents = self._flat()
        return (rows.T @ cotangents).reshape(self.shape)

    def inner(self, other: jax.Array) -> jax.Array:
        """Inner product with a gradient in the shape of the kernel."""
        rows, cotangents = self._flat()
        return jnp.vdot(rows @ other.reshape(rows.shape[-1], -1), cotangents, precision="highest")

    def square(self) -> jax.Array:
        """Squared norm: the inner product of the two Gram matrices."""
        rows, cotangents = self._flat()
        return jnp.vdot(rows @ rows.T, cotangents @ cotangents.T, precision="highest")

    def _flat(self):
        return tuple(wide(leaf).reshape(-1, leaf.shape[-1]) for leaf in (self.rows, self.cotangents))


def wide(x: jax.Array) -> jax.Array:
    """The same numbers in float32, unless they are wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def is_factored(leaf) -> bool:
    """Whether a leaf of a gradient is a `Factored`."""
    return isinstance(leaf, Factored)


def dense(gradients):
    """The gradients with every `Factored` multiplied out."""
    return jax.tree.map(lambda leaf: leaf.dense() if is_factored(leaf) else leaf, gradients, is_leaf=is_factored)


def pays(count: int, width: int, features: int) -> bool:
    """Whether the factors of a [width, features] gradient from `count` rows are smaller than half of it."""
    return 2 * count * (width + features) <= width * features


def product(module: nn.Module, name: str, rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """rows @ kernel as part of a layer, whose gradient in `name` is then to be had in factors.

    Args:
      module: the layer.
      name: of the kernel among its parameters.
      rows: [..., d].
      kernel: [d, features].

    Raises:
      InputError: for a second call of the layer, where the first one's rows were to be had.
    """
    y = rows @ kernel
    if module.is_mutable_collection("rows") and not module.is_initializing():
        if module.has_variable("rows", name):
            raise checks.InputError(
                f"layer {'/'.join(module.path)!r} is called twice, with the same weights: what an attack needs of a "
                "call is kept once a layer; expected a layer a call, or one of flax.linen"
            )
        module.put_variable("rows", name, rows)
    return y + module.get_variable("probes", name) if module.has_variable("probes", name) else y
