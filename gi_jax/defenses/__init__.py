"""Defenses: pure transformations of what a client sends, which chain."""

from gi_jax.defenses.batch import Encoded, Mixing, encode, encode_victim
from gi_jax.defenses.entropy import entropy_key, entropy_signs
from gi_jax.defenses.gradients import add_gaussian_noise, add_laplacian_noise, prune_by_magnitude
from gi_jax.defenses.registry import DEFENSES, Defense, chain, identity, parse

__all__ = [
    "DEFENSES",
    "Defense",
    "Encoded",
    "Mixing",
    "add_gaussian_noise",
    "add_laplacian_noise",
    "chain",
    "encode",
    "encode_victim",
    "entropy_key",
    "entropy_signs",
    "identity",
    "parse",
    "prune_by_magnitude",
]
