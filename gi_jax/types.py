"""The words that every other file uses, as type aliases. Floor 0: imports nothing of gi_jax."""

from typing import Any

import jax

Key = jax.Array
"""A typed random key, `jax.random.key(seed)`."""

Images = jax.Array
"""float32 [n, h, w, c]; the docstring that uses it says in which units."""

Labels = jax.Array
"""Class probabilities, float32 [n, num_classes]: one-hot rows, or soft rows of mixed images."""

Params = Any
"""A pytree of weights."""

Gradients = Any
"""A pytree with the structure of `Params`."""

BatchStats = Any
"""Per normalization layer `{"mean": [c], "var": [c]}`, nested as the network is; `{}` without normalization."""
