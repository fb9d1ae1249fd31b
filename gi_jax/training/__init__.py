"""Training a network on pictures in memory, under a client's defense, several seeds side by side."""

from gi_jax.training.augment import crop_and_flip
from gi_jax.training.epoch import Epoch, draw_epoch, over_lanes, run_steps
from gi_jax.training.evaluate import Score, evaluate, is_finite
from gi_jax.training.loop import Diverged, Progress, advance, epoch_ends, step_of, steps_per_epoch, training_keys
from gi_jax.training.recipe import SCHEDULES, Recipe, Watch, look, watch
from gi_jax.training.step import Pool, Setup, TrainState, start, train_step
from gi_jax.training.timing import measure

__all__ = [
    "SCHEDULES",
    "Diverged",
    "Epoch",
    "Pool",
    "Progress",
    "Recipe",
    "Score",
    "Setup",
    "TrainState",
    "Watch",
    "advance",
    "crop_and_flip",
    "draw_epoch",
    "epoch_ends",
    "evaluate",
    "is_finite",
    "look",
    "measure",
    "over_lanes",
    "run_steps",
    "start",
    "step_of",
    "steps_per_epoch",
    "train_step",
    "training_keys",
    "watch",
]
