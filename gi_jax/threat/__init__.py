"""Threat models: what is shared, and who knows what."""

from gi_jax.threat.batch_norm import RUNNING, THREATS, BatchNormThreat, Shared
from gi_jax.threat.client import Batch, Update, client_update, cross_entropy
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

__all__ = [
    "RUNNING",
    "THREATS",
    "AttackProblem",
    "Batch",
    "BatchNormThreat",
    "ImageSpace",
    "Shared",
    "Update",
    "Victim",
    "check_problem",
    "client_update",
    "cross_entropy",
    "observe",
    "one_hot",
    "stack",
    "victim_axes",
]
