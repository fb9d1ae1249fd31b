"""Threat models: what is shared, and who knows what."""

from gi_jax.threat.batch_norm import RUNNING, THREATS, BatchNormThreat, Shared
from gi_jax.threat.client import Batch, ClientStep, Update, client_update, cross_entropy
from gi_jax.threat.knowledge import Clipped, Fact, Mixed, Noisy, Quantized, Signs, Zeroed
from gi_jax.threat.mapping import Mapping
from gi_jax.threat.problem import (
    AttackProblem,
    ImageSpace,
    Victim,
    check_problem,
    observe,
    one_hot,
    stack,
    victim_axes,
)
from gi_jax.threat.views import VIEWS, look

__all__ = [
    "RUNNING",
    "THREATS",
    "VIEWS",
    "AttackProblem",
    "Batch",
    "BatchNormThreat",
    "ClientStep",
    "Clipped",
    "Fact",
    "ImageSpace",
    "Mapping",
    "Mixed",
    "Noisy",
    "Quantized",
    "Shared",
    "Signs",
    "Update",
    "Victim",
    "Zeroed",
    "check_problem",
    "client_update",
    "cross_entropy",
    "look",
    "observe",
    "one_hot",
    "stack",
    "victim_axes",
]
