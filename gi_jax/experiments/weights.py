"""The weights file: a network's parameters, its running statistics, and how they came to be."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import serialization

from gi_jax import checks, models
from gi_jax.experiments.checkpoint import write_atomically
from gi_jax.models import FlaxNetwork
from gi_jax.types import BatchStats, Params
from gi_jax.words import counted

NAME = "weights.msgpack"
_FORMAT = "gi_jax weights 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What a weights file says of its network; plain values, for JSON.

    Attributes:
      model: a key of `MODELS`.
      num_classes: width of its output.
      image_shape: (h, w, c) of the pictures it was trained on.
      mean, std: per channel, of its units.
      data: what it was trained on, the train split; of converted weights, what they are for.
      epochs, steps: how long.
      seed: of weights, order and augmentation.
      defense: of the client in every step; `none` for none.
      test_accuracy: share of `test_pictures` held-out pictures, 0 to 1; None if there were none,
        and for a training that was interrupted inside of an epoch.
      source: the file they were converted from, instead of a training here.
      train_pictures: it was trained on; None where that is not on record.
      clients: of the federation that trained it; None for a training in one place.
    """

    model: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    epochs: float
    steps: int
    seed: int
    test_accuracy: float | None
    test_pictures: int
    defense: str = "none"
    source: str | None = None
    train_pictures: int | None = None
    clients: int | None = None

    def __post_init__(self):
        shape, numbers = self.image_shape, (self.num_classes, self.epochs, self.steps, *self.mean, *self.std)
        whole = len(shape) == 3 and all(isinstance(extent, int) and extent > 0 for extent in shape)
        fits = whole and len(self.mean) == len(self.std) == shape[2]
        if not fits or not all(isinstance(number, int | float) for number in numbers):
            raise TypeError(
                f"image_shape {shape}, mean {self.mean}, std {self.std}, epochs {self.epochs!r}: expected (h, w, c), a "
                "mean and a deviation a channel, and numbers"
            )

    def words(self) -> str:
        """The sentence of the threat model."""
        tested = ""
        if self.test_accuracy is not None:
            tested = f" (test accuracy {100 * self.test_accuracy:.0f} %)"
        if self.source is not None:
            return f"The network ({self.model}) has the weights of {self.source}, converted from PyTorch{tested}."
        epochs = f"{round(self.epochs, 2):g}"
        unit = "epoch" if epochs == "1" else "epochs"
        under = "" if self.defense == "none" else f" under {self.defense}"
        pictures = "" if self.train_pictures is None else f"{self.train_pictures:,} pictures of "
        what = f"{epochs} {unit}{under} on {pictures}the train split of {self.data}{tested}"
        by = "" if self.clients is None else f" by a federation of {counted(self.clients, 'client')}"
        return f"The network ({self.model}) was trained{by} for {what}."

    def check_fits(self, num_classes: int, image_shape: tuple[int, ...], name: str) -> None:
        """Raises unless the pictures of the data set `name` are those of a network like this one."""
        if num_classes != self.num_classes:
            raise checks.InputError(
                f"weights for {self.num_classes} classes ({self.data}) with {name}, which has {num_classes}: expected "
                "the same number; take other data or other weights"
            )
        if tuple(image_shape) != self.image_shape:
            shapes = ["x".join(map(str, shape)) for shape in (self.image_shape, image_shape)]
            raise checks.InputError(
                f"weights for pictures of {shapes[0]} ({self.data}) with {name}, whose pictures are {shapes[1]}: "
                f"expected the same shape; try --image-size {self.image_shape[0]}"
            )


class Weights(NamedTuple):
    """A network with its weights.

    Attributes:
      origin: where they are from.
      params, batch_stats: the model.
    """

    origin: Origin
    params: Params
    batch_stats: BatchStats

    @property
    def network(self) -> FlaxNetwork:
        """The function that they are the weights of."""
        return models.create(self.origin.model, self.origin.num_classes)


def save(path: Path, weights: Weights) -> None:
    """Writes the file, whole or not at all."""
    params, batch_stats = jax.device_get((weights.params, weights.batch_stats))
    header = dataclasses.asdict(weights.origin)
    header = {name: list(value) if isinstance(value, tuple) else value for name, value in header.items()}
    content = {"format": _FORMAT, "origin": header, "params": params, "batch_stats": batch_stats}
    write_atomically(path, serialization.msgpack_serialize(content))


def find(path: str | Path) -> Path:
    """The weights file that a path names: itself, or the one in a folder of `gi-jax train`.

    Raises:
      InputError: if there is none.
    """
    path = Path(path).expanduser()
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise checks.InputError(
            f"{file} is missing: expected what gi-jax train or convert writes, a folder or its {NAME}"
        )
    return file


def load(path: str | Path) -> Weights:
    """Reads what `save` wrote, from the file or its folder.

    Raises:
      InputError: for a file that is missing, truncated or of another kind, and for weights that do not fit their
        network or are not finite.
    """
    file = find(path)
    advice = f"expected a {NAME} of gi-jax train or convert: make it again, or name another file"
    try:
        content = serialization.msgpack_restore(file.read_bytes())
    except OSError:
        raise
    except Exception as error:  # whatever msgpack makes of foreign bytes
        raise checks.InputError(f"{file} is damaged or no weights file ({type(error).__name__}); {advice}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise checks.InputError(f"{file} is no weights file of this version; {advice}")
    try:
        header, params, batch_stats = content["origin"], content["params"], content["batch_stats"]
        origin = Origin(**{name: tuple(value) if isinstance(value, list) else value for name, value in header.items()})
        weights = Weights(origin, params, batch_stats)
        network = weights.network
        expected = jax.eval_shape(lambda key: network.init(key, origin.image_shape), jax.random.key(0))
    except (KeyError, TypeError, AttributeError) as error:
        raise checks.InputError(f"{file} has a damaged header ({error}); {advice}") from error
    for what, tree, like in zip(("params", "batch_stats"), (params, batch_stats), expected, strict=True):
        checks.same_structure(f"{file}: {what}", tree, like)
        checks.all_finite(f"{file}: {what}", tree)
    params, batch_stats = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, np.float32), (params, batch_stats))
    return Weights(origin, params, batch_stats)


def settings_of(path: str | Path) -> dict[str, str]:
    """The fields of an `AttackSpec` that say which network is attacked: `AttackSpec(**settings_of("young"), ...)`."""
    file = find(path)
    return {"model": load(file).origin.model, "weights": str(path), "weights_hash": _digest(file)}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def load_for(spec) -> Weights:
    """The weights of an `AttackSpec` that names some.

    Raises:
      InputError: if they are of another model, or not those that the specification was made with.
    """
    weights = load(spec.weights)
    if weights.origin.model != spec.model:
        raise checks.InputError(
            f"model {spec.model!r} with the weights {spec.weights}, which are of {weights.origin.model!r}: "
            "leave the model out, or name other weights"
        )
    found = _digest(find(spec.weights))
    if found != spec.weights_hash:
        raise checks.InputError(
            f"{spec.weights} has the content {found}, the specification {spec.weights_hash}: the file was replaced; "
            "expected the weights that the results were made with"
        )
    return weights
