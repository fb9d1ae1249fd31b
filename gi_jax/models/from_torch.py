"""Weights and gradients of a PyTorch network in the shapes of ours.

Modules have other names in every code base, so tensors are matched by kind (convolution, linear layer, normalization)
and order, and every shape is checked.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np

from gi_jax import checks
from gi_jax.models.registry import FlaxNetwork
from gi_jax.types import BatchStats, Params

_KINDS = {4: "convolution", 2: "linear layer", 1: "normalization"}
_NAMES = {
    "convolution": {"weight": "kernel", "bias": "bias"},
    "linear layer": {"weight": "kernel", "bias": "bias"},
    "normalization": {"weight": "scale", "bias": "bias"},
}
_STATISTICS = {"running_mean": "mean", "running_var": "var"}


def from_torch(
    network: FlaxNetwork, image_shape: tuple[int, int, int], tensors: Mapping[str, np.ndarray]
) -> tuple[Params, BatchStats]:
    """The tensors of a PyTorch network as parameters and running statistics, or its gradients as a gradient.

    Args:
      network: ours, with the same layers, whose names in order (`conv2` before `conv10`) are the order of the network.
      image_shape: (h, w, c) of its pictures.
      tensors: by the names of a `state_dict()`, or `{name: p.grad for name, p in model.named_parameters()}`, in the
        order of the network; weights of convolutions [out, in, h, w] and of linear layers [out, in]. A linear layer
        on flat features expects them as PyTorch flattens them, channels first.

    Returns:
      Two trees, float32; the second is `{}` for tensors without running statistics.

    Raises:
      InputError: for layers that the network does not have or lacks, and for other shapes.
    """
    places = _places(network, image_shape)
    layers = _layers(tensors)
    waiting = {}
    for kind in _KINDS.values():
        theirs = [layer for layer in layers if layer[1] == kind]
        _check_counts(kind, ["/".join(path) for path, of, _ in places if of == kind], [name for name, *_ in theirs])
        waiting[kind] = iter(theirs)
    params, batch_stats, channels = {}, {}, image_shape[-1]
    for path, kind, shapes in places:
        name, _, found = next(waiting[kind])
        values = {ours: found[theirs] for theirs, ours in _NAMES[kind].items() if theirs in found}
        if kind == "convolution":
            values["kernel"] = values["kernel"].transpose(2, 3, 1, 0)
            channels = values["kernel"].shape[-1]
        elif kind == "linear layer":
            values["kernel"] = _channels_last(values["kernel"], channels).T
            channels = 1
        _check_shapes(name, path, values, shapes)
        _put(params, path, values)
        statistics = {ours: found[theirs] for theirs, ours in _STATISTICS.items() if theirs in found}
        if statistics:
            _check_shapes(name, path, statistics, dict.fromkeys(_STATISTICS.values(), shapes["scale"]))
            _check_variance(name, statistics["var"])
            _put(batch_stats, path, statistics)
    return params, batch_stats


def _places(network, image_shape):
    """(path, kind, shapes by name) of every layer of ours, in the order of the network."""
    params, _ = jax.eval_shape(lambda key: network.init(key, image_shape), jax.random.key(0))
    layers = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *path, name = (entry.key for entry in path)
        layers.setdefault(tuple(path), {})[name] = leaf.shape
    ordered = sorted(layers, key=lambda path: [natural(name) for name in path])
    return [(path, _kind(path, layers[path]), layers[path]) for path in ordered]


def natural(name: str) -> list:
    """A key to sort names by, in which numbers are numbers: `conv2` before `conv10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _kind(path, shapes):
    weight = shapes.get("kernel", shapes.get("scale", ()))
    if len(weight) not in _KINDS:
        raise checks.InputError(
            f"layer {'/'.join(path)} of the network holds {_words(shapes)}: expected convolutions of two dimensions, "
            "linear layers and normalization with scale and bias, which PyTorch's are matched with"
        )
    return _KINDS[len(weight)]


def _layers(tensors):
    """(name, kind, arrays by name) of every layer of theirs."""
    layers = {}
    for full, value in tensors.items():
        module, _, name = full.rpartition(".")
        if name != "num_batches_tracked":
            layers.setdefault(module, {})[name] = _as_float32(full, value)
    for module, arrays in layers.items():
        strange = sorted(arrays.keys() - {"weight", "bias", *_STATISTICS})
        if strange:
            raise checks.InputError(
                f"tensor {f'{module}.{strange[0]}'.lstrip('.')!r}: expected those of convolutions, linear layers "
                "and normalization, whose names end in .weight, .bias, .running_mean or .running_var"
            )
        if np.ndim(arrays.get("weight", 0.0)) not in _KINDS:
            raise checks.InputError(
                f"layer {module!r} has weights of shape {np.shape(arrays.get('weight', 0.0))}: expected convolutions, "
                "linear layers and normalization, with weight and bias"
            )
    return [(module, _KINDS[arrays["weight"].ndim], arrays) for module, arrays in layers.items()]


def _as_float32(name, value):
    if np.iscomplexobj(value):
        raise checks.InputError(f"tensor {name!r} is of type {value.dtype}: expected real numbers; name another file")
    try:
        value = np.asarray(value)
        with np.errstate(over="ignore"):  # infinite, which is said where it matters
            return value.astype(np.float32)
    except (TypeError, ValueError) as error:
        kind = str(getattr(value, "dtype", ""))
        narrow = "bfloat16" in kind or "|V" in kind  # the latter is what numpy.savez makes of bfloat16
        advice = "of bfloat16 save tensor.float()" if narrow else "leave it out"
        raise checks.InputError(f"tensor {name!r} holds no numbers: expected weights; {advice}") from error


def _check_counts(kind, ours, theirs):
    if len(ours) != len(theirs):
        raise checks.InputError(
            f"{len(theirs)} of the kind {kind} ({_some(theirs)}) for a network with {len(ours)} "
            f"({_some(ours)}): expected the same number; name another model"
        )


def _some(names):
    return "none" if not names else ", ".join(names) if len(names) < 4 else f"{names[0]}, ..., {names[-1]}"


def _check_shapes(name, path, values, shapes):
    found = {ours: value.shape for ours, value in values.items()}
    if found != dict(shapes):
        flat = len(found.get("kernel", ())) == 2 and found["kernel"][0] != shapes["kernel"][0]
        size = ", or in gi-jax convert another --image-size" if flat else ""
        raise checks.InputError(
            f"layer {name!r} has {_words(found)} in our order of axes, {'/'.join(path)} {_words(shapes)}: expected the "
            f"same; name another model{size}"
        )


def _check_variance(name, variance):
    if np.any(variance < 0):
        raise checks.InputError(
            f"layer {name!r} has a running variance of {variance.min():g}: expected 0 or above; save the weights again"
        )


def _words(shapes):
    return " and ".join(f"{name} {shapes[name]}" for name in sorted(shapes, reverse=True))


def _channels_last(weight, channels):
    """[out, c * h * w] to [out, h * w * c]."""
    features, size = weight.shape
    if size % channels:
        return weight  # does not fit, as the check of shapes says
    return weight.reshape(features, channels, -1).swapaxes(1, 2).reshape(features, size)


def _put(tree, path, values):
    for key in path:
        tree = tree.setdefault(key, {})
    tree.update(values)
