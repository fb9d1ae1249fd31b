"""Networks: pure functions of (params, batch_stats, images)."""

from gi_jax.models.chain import Chain, Stage
from gi_jax.models.factors import Factored, dense, is_factored
from gi_jax.models.from_torch import from_torch
from gi_jax.models.layers import Normalize
from gi_jax.models.registry import (
    MODELS,
    FlaxNetwork,
    FunctionNetwork,
    Network,
    count_parameters,
    create,
    narrowed,
    probed,
)

__all__ = [
    "MODELS",
    "Chain",
    "Factored",
    "FlaxNetwork",
    "FunctionNetwork",
    "Network",
    "Normalize",
    "Stage",
    "count_parameters",
    "create",
    "dense",
    "from_torch",
    "is_factored",
    "narrowed",
    "probed",
]
