"""Gradient inversion attacks and defenses in federated learning: batched, compiled, oracle-free.

Names are loaded when they are first used, so that the command line prints its help without JAX.
"""

import importlib

_HOMES = {
    "AttackProblem": "threat",
    "BatchNormPrior": "objectives",
    "BatchNormThreat": "threat",
    "Candidate": "objectives",
    "Defense": "defenses",
    "FunctionNetwork": "models",
    "GradientDescent": "attacks",
    "GradientMatching": "objectives",
    "ImageSpace": "threat",
    "InputError": "errors",
    "LocalTraining": "threat",
    "Normalize": "models",
    "Objective": "objectives",
    "Reconstruction": "attacks",
    "Shared": "threat",
    "SquaredNorm": "objectives",
    "TotalVariation": "objectives",
    "Victim": "threat",
    "observe": "threat",
    "one_hot": "threat",
    "reconstruct": "attacks",
    "reconstruct_all": "attacks",
}
_PACKAGES = ("attacks", "data", "defenses", "federated", "metrics", "models", "objectives", "threat", "training")

__all__ = [*_HOMES]


def __getattr__(name: str):
    if name in _PACKAGES:
        return importlib.import_module(f"gi_jax.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'gi_jax' has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"gi_jax.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_PACKAGES])
