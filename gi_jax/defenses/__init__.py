"""Defenses: pure transformations of what a client sends, which chain."""

from gi_jax.defenses.gradients import add_gaussian_noise, add_laplacian_noise, prune_by_magnitude
from gi_jax.defenses.registry import DEFENSES, Defense, chain, identity, parse
from gi_jax.defenses.secure_aggregation import secure_mean

__all__ = [
    "DEFENSES",
    "Defense",
    "add_gaussian_noise",
    "add_laplacian_noise",
    "chain",
    "identity",
    "parse",
    "prune_by_magnitude",
    "secure_mean",
]
