"""Training a network on pictures in memory: what makes a network older than its initialization."""

from gi_jax.training.augment import crop_and_flip
from gi_jax.training.evaluate import accuracy
from gi_jax.training.loop import Progress, advance, epoch_ends, index_batches
from gi_jax.training.recipe import SCHEDULES, Recipe
from gi_jax.training.step import Pool, TrainState, start, train_step

__all__ = [
    "SCHEDULES",
    "Pool",
    "Progress",
    "Recipe",
    "TrainState",
    "accuracy",
    "advance",
    "crop_and_flip",
    "epoch_ends",
    "index_batches",
    "start",
    "train_step",
]
