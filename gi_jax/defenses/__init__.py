"""Defenses: pure transformations of what a client sends, which chain.

Every row of the table is a function of its parameters here: `chain(prune(p=0.9), gaussian(sigma=1e-3))`.
"""

from functools import partial

from gi_jax.defenses.batch import Encoded, Mixing, encode, encode_victim
from gi_jax.defenses.clipping import clip_examples
from gi_jax.defenses.composition import Defense, FunctionDefense, chain, identity, make, parse
from gi_jax.defenses.entropy import entropy_key, entropy_signs
from gi_jax.defenses.noise import add_gaussian_noise, add_laplacian_noise, add_relative_noise
from gi_jax.defenses.privacy import dp_sgd, poisson_sample
from gi_jax.defenses.pruning import (
    keep_count,
    keep_counts,
    keep_largest,
    keep_largest_overall,
    prune_by_magnitude,
    prune_globally,
)
from gi_jax.defenses.quantization import quantize_stochastically, quantize_uniformly, send_signs
from gi_jax.defenses.registry import DEFENSES, Kind
from gi_jax.defenses.representation import prune_representation
from gi_jax.defenses.secure_aggregation import secure_mean

__all__ = [
    "DEFENSES",
    "Defense",
    "Encoded",
    "FunctionDefense",
    "Kind",
    "Mixing",
    "add_gaussian_noise",
    "add_laplacian_noise",
    "add_relative_noise",
    "chain",
    "clip_examples",
    "dp_sgd",
    "encode",
    "encode_victim",
    "entropy_key",
    "entropy_signs",
    "identity",
    "keep_count",
    "keep_counts",
    "keep_largest",
    "keep_largest_overall",
    "make",
    "parse",
    "poisson_sample",
    "prune_by_magnitude",
    "prune_globally",
    "prune_representation",
    "quantize_stochastically",
    "quantize_uniformly",
    "secure_mean",
    "send_signs",
]


def __getattr__(name: str):
    if name in DEFENSES:
        return partial(make, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *DEFENSES})
