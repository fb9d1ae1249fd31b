"""Attacks: pairs of pure functions (init, step), and the loop that runs many of them side by side."""

from gi_jax.attacks.adaptive import ADAPTATIONS, adapt, adaptation_words
from gi_jax.attacks.analytic import FirstLayer, input_from_all_rows, input_from_row
from gi_jax.attacks.base import Attack, AttackInfo, AttackState
from gi_jax.attacks.epochs import merge_epochs, tie_epochs
from gi_jax.attacks.gradient_descent import GradientDescent
from gi_jax.attacks.loop import (
    Progress,
    Reconstruction,
    advance,
    lane_keys,
    losses_at,
    program_bytes,
    reconstruct,
    reconstruct_all,
    reconstructions,
    start,
)
from gi_jax.attacks.num_steps import estimate_num_steps
from gi_jax.attacks.optimizers import adam, signed_adam
from gi_jax.attacks.presets import ATTACKS, create
from gi_jax.attacks.uncertainty import agreement

__all__ = [
    "ADAPTATIONS",
    "ATTACKS",
    "Attack",
    "AttackInfo",
    "AttackState",
    "FirstLayer",
    "GradientDescent",
    "Progress",
    "Reconstruction",
    "adam",
    "adapt",
    "adaptation_words",
    "advance",
    "agreement",
    "create",
    "estimate_num_steps",
    "input_from_all_rows",
    "input_from_row",
    "lane_keys",
    "merge_epochs",
    "program_bytes",
    "reconstruct",
    "reconstruct_all",
    "losses_at",
    "reconstructions",
    "signed_adam",
    "start",
    "tie_epochs",
]
