"""Strict JAX for every test: silent broadcasting and reused keys are errors."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
