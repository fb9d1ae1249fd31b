"""Threat models: what is shared, and who knows what."""

from gi_jax.threat.batch_norm import RUNNING, THREATS, BatchNormThreat, Shared
from gi_jax.threat.client import Batch, ClientStep, Update, client_update, cross_entropy
from gi_jax.threat.knowledge import Clipped, Fact, Mixed, Noisy, Quantized, Rounded, Signs, Zeroed
from gi_jax.threat.local import LocalTraining, Trained, train_locally
from gi_jax.threat.mapping import Mapping
from gi_jax.threat.observation import grant, observe
from gi_jax.threat.problem import AttackProblem, as_float32_arrays, check_problem, stack, victim_axes
from gi_jax.threat.space import ImageSpace
from gi_jax.threat.victim import Sent, Victim, one_hot, send
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
    "LocalTraining",
    "Mapping",
    "Mixed",
    "Noisy",
    "Quantized",
    "Rounded",
    "Sent",
    "Shared",
    "Signs",
    "Trained",
    "Update",
    "Victim",
    "Zeroed",
    "as_float32_arrays",
    "check_problem",
    "client_update",
    "cross_entropy",
    "grant",
    "look",
    "observe",
    "one_hot",
    "send",
    "stack",
    "train_locally",
    "victim_axes",
]
