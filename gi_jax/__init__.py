"""Gradient inversion attacks and defenses in federated learning: batched, compiled, oracle-free."""

from gi_jax.attacks import GradientDescent, Reconstruction, reconstruct
from gi_jax.checks import InputError
from gi_jax.defenses import Defense
from gi_jax.models import FunctionNetwork, Normalize
from gi_jax.objectives import BatchNormPrior, Candidate, GradientMatching, Objective, SquaredNorm, TotalVariation
from gi_jax.threat import AttackProblem, BatchNormThreat, ImageSpace, LocalTraining, Shared, Victim, observe, one_hot

__all__ = [
    "AttackProblem",
    "BatchNormPrior",
    "BatchNormThreat",
    "Candidate",
    "Defense",
    "FunctionNetwork",
    "GradientDescent",
    "GradientMatching",
    "ImageSpace",
    "InputError",
    "LocalTraining",
    "Normalize",
    "Objective",
    "Reconstruction",
    "Shared",
    "SquaredNorm",
    "TotalVariation",
    "Victim",
    "observe",
    "one_hot",
    "reconstruct",
]
