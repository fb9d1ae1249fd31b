"""Objectives: scalars of (problem, candidate)."""

from gi_jax.objectives.candidate import Candidate
from gi_jax.objectives.combine import Objective
from gi_jax.objectives.epochs import EpochConsistency
from gi_jax.objectives.group import RESTARTS, GroupConsistency
from gi_jax.objectives.labels import LabelConsistency
from gi_jax.objectives.likelihood import GradientLikelihood
from gi_jax.objectives.matching import DISTANCES, GradientMatching
from gi_jax.objectives.priors import BatchNormPrior, NoisePrior, SquaredNorm, TotalVariation, total_variation

__all__ = [
    "DISTANCES",
    "RESTARTS",
    "BatchNormPrior",
    "Candidate",
    "EpochConsistency",
    "GradientLikelihood",
    "GradientMatching",
    "GroupConsistency",
    "LabelConsistency",
    "NoisePrior",
    "Objective",
    "SquaredNorm",
    "TotalVariation",
    "total_variation",
]
