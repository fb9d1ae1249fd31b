"""Networks: pure functions of (params, batch_stats, images)."""

from gi_jax.models.chain import Chain, Stage
from gi_jax.models.layers import Normalize
from gi_jax.models.registry import MODELS, FlaxNetwork, FunctionNetwork, Network, count_parameters, create

__all__ = [
    "MODELS",
    "Chain",
    "FlaxNetwork",
    "FunctionNetwork",
    "Network",
    "Normalize",
    "Stage",
    "count_parameters",
    "create",
]
