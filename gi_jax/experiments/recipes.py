"""The named recipes of training, some of which depend on the defense that runs in it."""

from collections.abc import Callable
from typing import NamedTuple

from gi_jax import checks
from gi_jax.defenses import Defense
from gi_jax.training import Recipe


class Entry(NamedTuple):
    """A row of the table of recipes.

    Attributes:
      make: the settings for a training under a defense.
      about, source: one line each.
    """

    make: Callable[[Defense], Recipe]
    about: str
    source: str


def _published(defense):
    common = dict(epochs=200, batch_size=128, validation=0.02, delay=1)
    if defense.mixing is None:
        return Recipe(learning_rate=0.05, schedule="plateau", patience=10, **common)
    if defense.mixing.flipped:
        return Recipe(learning_rate=0.05, schedule="step", patience=50, **common)
    return Recipe(learning_rate=0.1, schedule="plateau", patience=50, **common)


def _appendix(defense):
    # A rerun of 99 % pruning with MixUp at rate 0.1 was seen to diverge in its first epoch.
    ratios = [dict(values)["p"] for name, values in defense.stages if name in ("prune", "prune_global")]
    rate = 0.02 if max(ratios, default=0) >= 0.99 else 0.1
    return Recipe(epochs=200, batch_size=128, learning_rate=rate, schedule="step")


RECIPES = {
    "plain": Entry(
        lambda defense: Recipe(),
        "10 epochs, batch 64, momentum 0.9, rate 0.05 with warm-up and cosine",
        "the usual",
    ),
    "published": Entry(
        _published,
        "up to 200 epochs, batch 128, the last 2 % held out: their loss halves the rate on a plateau and ends the "
        "training (MixUp: rate 0.1; InstaHide: x0.1 every 50 epochs); schedules start one epoch late",
        "code of Huang et al. 2021, arXiv 2112.00059",
    ),
    "appendix": Entry(
        _appendix,
        "200 epochs, batch 128, rate 0.1 (0.02 where 99 % and more are pruned), x0.1 every 50 epochs",
        "Huang et al. 2021, appendix, as it is remembered: its text was not at hand",
    ),
    "fast": Entry(
        lambda defense: Recipe(epochs=15, batch_size=256, learning_rate=0.2, nesterov=True, label_smoothing=0.1),
        "15 epochs, batch 256, Nesterov momentum, rate 0.2 with warm-up and cosine, labels smoothed by 0.1",
        "Goyal et al. 2017, arXiv 1706.02677; Loshchilov and Hutter 2017, arXiv 1608.03983",
    ),
}
"""Momentum 0.9 and weight decay 5e-4 on all parameters everywhere. Unlike the published code, which takes the pictures
in the same order in every epoch and a smaller last batch, each epoch is shuffled and has full batches only."""


def recipe(name: str, defense: Defense) -> Recipe:
    """The settings of the recipe called `name` for a training under `defense`.

    Raises:
      InputError: for an unknown name.
    """
    return RECIPES[checks.one_of("recipe", name, RECIPES)].make(defense)
