"""What is trained, as a frozen value."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from gi_jax import checks, defenses, training
from gi_jax.experiments import canonical, recipes
from gi_jax.models import MODELS


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Everything that decides the weights.

    Attributes:
      data: `photos`, `cifar10` or `folder:PATH`; its train split.
      image_size: height and width the pictures are resized to; None keeps the data set's own.
      train_pictures: the first so many of the train split only, validation included; None takes all.
      model: a key of `MODELS`.
      defense: of the client in every step, `name:parameter=value`, stages joined by ` + `; `none` for none.
      recipe: a key of `gi_jax.experiments.recipes.RECIPES`.
      epochs, batch_size, learning_rate, schedule: in place of the recipe's; None keeps them.
      augment: random crops and mirror images.
      test_pictures: the accuracy is that on the first so many of the test split; None takes all.
      seed: of weights, order, augmentation and the defense.
    """

    data: str = "photos"
    image_size: int | None = None
    train_pictures: int | None = None
    model: str = "convnet"
    defense: str = "none"
    recipe: str = "plain"
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    augment: bool = True
    test_pictures: int | None = None
    seed: int = 0

    def __post_init__(self):
        canonical.numbers(self)
        checks.one_of("model", self.model, MODELS)
        checks.seed("seed", self.seed)
        counts = {name: getattr(self, name) for name in ("train_pictures", "test_pictures")}
        checks.positive(**{name: count for name, count in counts.items() if count is not None})
        object.__setattr__(self, "defense", str(defenses.parse(self.defense)))
        _ = self.settings

    @property
    def settings(self) -> training.Recipe:
        """The recipe, with what replaces it."""
        given = {name: getattr(self, name) for name in ("epochs", "batch_size", "learning_rate", "schedule")}
        given = {name: value for name, value in given.items() if value is not None}
        recipe = recipes.recipe(self.recipe, defenses.parse(self.defense))
        return dataclasses.replace(recipe, augment=self.augment, **given)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that are equal for equal specifications."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
