"""From a file of PyTorch weights to a weights file; the accuracy of the network is the proof that it is right."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import jax

from gi_jax import checks, data, models, training
from gi_jax.data.folder import IMAGENET_MEAN, IMAGENET_STD
from gi_jax.experiments.study import on_device, test_split
from gi_jax.experiments.torch_files import existing, read_tensors
from gi_jax.experiments.weights import Origin, Weights


def convert(
    file: str | Path,
    model: str,
    *,
    data_name: str | None = None,
    data_dir: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    new_head: bool = False,
    seed: int = 0,
    test_pictures: int | None = None,
) -> Weights:
    """The weights of a PyTorch network for one of ours.

    Args:
      file: see `read_tensors`.
      model: a key of `MODELS` with the same layers.
      data_name, data_dir: the data set it is for. Units and picture size are its own unless given, and the network is
        tested on its test split. None: asks for `image_size`.
      image_size: height and width of the pictures.
      mean, std: of the channels, for pictures in [0, 1], as in training; without data those of ImageNet.
      new_head: whether a fresh last layer takes the place of the file's, with as many outputs as the data has classes.
      seed: of the fresh layer.
      test_pictures: test on the first so many; None for all.

    Raises:
      InputError: for a file that is damaged or does not fit the model, and for data with other classes.
    """
    existing(file)
    checks.one_of("model", model, models.MODELS)
    checks.seed("seed", seed)
    for name, value in (("image_size", image_size), ("test_pictures", test_pictures)):
        if value is not None:
            checks.positive(**{name: value})
    if data_name is None and new_head:
        raise checks.InputError("the number of classes of a fresh last layer is missing: add --data")
    if data_name is None and image_size is None:
        raise checks.InputError(
            "the size of the pictures is not in the file: add --data for that of a data set, or --image-size"
        )
    if data_name is None and (data_dir, test_pictures) != (None, None):
        raise checks.InputError(
            "data_dir and test_pictures say where and how to test, and on what is missing: add --data"
        )
    dataset = None if data_name is None else data.load(data_name, "train", data_dir, image_size=image_size)
    if dataset is None:
        shape, units = (image_size, image_size, 3), (IMAGENET_MEAN, IMAGENET_STD)
    else:
        shape, units = tuple(dataset.images.shape[1:]), (dataset.mean, dataset.std)
    mean, std = (tuple(default if given is None else given) for given, default in zip((mean, std), units, strict=True))
    _check_units(mean, std, shape[-1])
    tensors = read_tensors(file)
    linear = {name: value.shape[0] for name, value in tensors.items() if value.ndim == 2}
    if not linear:
        raise checks.InputError(f"{file} has no linear layer: expected a network that ends in one")
    head, num_classes = list(linear.items())[-1]
    if num_classes < 2:
        raise checks.InputError(
            f"{file}: the last linear layer, {head!r}, has {num_classes} outputs: expected 2 or more, one a class; "
            "name a classifier of pictures"
        )
    origin = Origin(
        model=model,
        num_classes=num_classes,
        image_shape=shape,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        data=data_name or f"pictures of {image_size}x{image_size}",
        epochs=0,
        steps=0,
        seed=seed,
        test_accuracy=None,
        test_pictures=0,
        source=Path(file).name,
    )
    weights = _checked(file, origin, tensors)
    if dataset is None:
        return weights
    if new_head:
        return _with_new_head(weights, dataset.num_classes)
    if origin.num_classes != dataset.num_classes:
        raise checks.InputError(
            f"{file} is for {origin.num_classes} classes, {data_name} has {dataset.num_classes}: expected the same "
            "number; add --new-head for a fresh last layer, or name --image-size in place of the data"
        )
    tested = test_split(SimpleNamespace(data=data_name, image_size=image_size, test_pictures=test_pictures), data_dir)
    return weights if tested is None else _with_accuracy(weights, tested)


def _check_units(mean, std, channels):
    if not len(mean) == len(std) == channels:
        raise checks.InputError(f"mean {mean} and std {std}: expected a number for each of the {channels} channels")
    checks.within(0, 1, mean=mean)
    for value in std:
        checks.positive(std=value)


def _checked(file, origin, tensors):
    network = models.create(origin.model, origin.num_classes)
    params, batch_stats = models.from_torch(network, origin.image_shape, tensors)
    like = jax.eval_shape(lambda key: network.init(key, origin.image_shape), jax.random.key(0))
    checks.same_structure(f"{file}: running statistics", batch_stats, like[1])
    checks.all_finite(f"{file}: weights", params)
    checks.all_finite(f"{file}: running statistics", batch_stats)
    return Weights(origin, *jax.tree.map(jax.numpy.asarray, (params, batch_stats)))


def _with_new_head(weights, num_classes):
    origin = weights.origin
    source = f"{origin.source} with a fresh last layer"
    origin = dataclasses.replace(origin, num_classes=num_classes, source=source)
    fresh = weights._replace(origin=origin).network.init(jax.random.key(origin.seed), origin.image_shape)[0]
    return Weights(origin, {**weights.params, "head": fresh["head"]}, weights.batch_stats)


def _with_accuracy(weights, tested):
    origin = weights.origin
    score = training.evaluate(weights.network, weights.params, weights.batch_stats, on_device(tested, origin))
    origin = dataclasses.replace(origin, test_accuracy=score.accuracy, test_pictures=len(tested))
    return weights._replace(origin=origin)
