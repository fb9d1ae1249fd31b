"""Label recovery: how many pictures of each class are behind a gradient. One method a file."""

from gi_jax.attacks.labels.counts import allocate, assign
from gi_jax.attacks.labels.head import Dummies, LazyDummies, find_head, simulate
from gi_jax.attacks.labels.rank import NumImages, estimate_num_images
from gi_jax.attacks.labels.registry import METHODS, NEEDS, Recovered, choose, recover, unmet

__all__ = [
    "METHODS",
    "Dummies",
    "LazyDummies",
    "NEEDS",
    "NumImages",
    "Recovered",
    "allocate",
    "assign",
    "choose",
    "estimate_num_images",
    "find_head",
    "recover",
    "simulate",
    "unmet",
]
