"""Networks as pure functions, by name or from the user.

A network is a hashable callable `(params, batch_stats, images, normalize) -> (logits, statistics)`. `images` are in the
network's own units (normalized), float32 [n, h, w, c]; `statistics` holds mean, biased variance and count of the input
of every normalization layer, in the nesting of `batch_stats`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.kept import jit_kept
from gi_jax.models.chain import Chain
from gi_jax.models.layers import Normalize, group_norm
from gi_jax.models.resnet import BasicBlock, LargeStem, ResNet18
from gi_jax.models.small import MLP, ConvNet, LeNet
from gi_jax.types import BatchStats, Images, Key, Params


class Network(Protocol):
    """What every part above this folder knows of a network."""

    def __call__(
        self, params: Params, batch_stats: BatchStats, images: Images, normalize: Normalize
    ) -> tuple[jax.Array, BatchStats]: ...


def probed(
    network: Network, params: Params, batch_stats: BatchStats, images: Images, normalize: Normalize, probes: dict
) -> tuple[jax.Array, BatchStats, dict]:
    """Runs a network and also returns the rows of the kernels whose gradients it has in factors.

    Args:
      network, params, batch_stats, images, normalize: as everywhere.
      probes: added to the outputs of those kernels' matmuls, nested as `params`; `{}` adds nothing.

    Returns:
      logits, statistics, and rows nested as `params`; `{}` for a network that is not a `FlaxNetwork`.
    """
    if isinstance(network, FlaxNetwork):
        return network.probed(params, batch_stats, images, normalize, probes)
    return *network(params, batch_stats, images, normalize), {}


@dataclass(frozen=True)
class FlaxNetwork:
    """A linen module as a `Network`. Two of equal modules are equal, so they share their compiled programs.

    A module that normalizes has a field `normalize`, which is set to the `Normalize` of a call, and hands it to its
    layers `gi_jax.models.layers.BatchNorm`: they read the collection `batch_stats` and write `statistics`, the mean,
    variance and count of their input. One without them, such as one of `flax.linen.BatchNorm`, decides by itself how it
    normalizes, so that with `batch_stats` it takes `Normalize.GIVEN` only.
    """

    module: nn.Module

    def __call__(self, params, batch_stats, images, normalize):
        logits, statistics, _ = self.probed(params, batch_stats, images, normalize, {})
        return logits, statistics

    def probed(self, params, batch_stats, images, normalize, probes):
        """See the function of this name."""
        module = self.module
        if hasattr(module, "normalize"):
            module = module.clone(normalize=normalize)
        variables = {"params": params, "batch_stats": batch_stats, "probes": probes}
        logits, written = module.apply(variables, images, mutable=["statistics", "rows"])
        switches = hasattr(module, "normalize") or written.get("statistics")
        if normalize != Normalize.GIVEN and jax.tree.leaves(batch_stats) and not switches:
            raise _in_its_own_way(normalize, f"{type(module).__name__} without a field `normalize`")
        return logits, written.get("statistics", {}), written.get("rows", {})

    def init(self, key: Key, image_shape: tuple[int, int, int]) -> tuple[Params, BatchStats]:
        """Fresh weights and statistics (mean 0, variance 1) for pictures of `image_shape` = (h, w, c).

        Raises:
          InputError: for another number of axes.
        """
        if len(image_shape) != 3:
            raise checks.InputError(f"image_shape {tuple(image_shape)}: expected that of one picture, (h, w, c)")
        variables = _init(self.module, key, tuple(image_shape))
        return variables["params"], variables.get("batch_stats", {})


@partial(jit_kept, static_argnums=(0, 2))
def _init(module, key, image_shape):
    return module.init(key, jnp.zeros((1, *image_shape)))


@dataclass(frozen=True)
class FunctionNetwork:
    """A user's pure function `(params, batch_stats, images) -> logits` as a `Network`.

    The function decides by itself how it normalizes, so client and adversary run it the same way and `normalize` must
    be `Normalize.GIVEN`. Build it once: equality is that of the function object.
    """

    function: Callable[[Params, BatchStats, Images], jax.Array]

    def __call__(self, params, batch_stats, images, normalize):
        if normalize != Normalize.GIVEN:
            raise _in_its_own_way(normalize, "a plain function")
        return self.function(params, batch_stats, images), {}


def _in_its_own_way(normalize: Normalize, what: str) -> checks.InputError:
    return checks.InputError(
        f"normalize={str(normalize)!r}: {what} normalizes in its own way; expected 'given' (client_bn running)"
    )


class Entry(NamedTuple):
    """A row of the table of networks."""

    module: Callable[..., nn.Module]
    about: str
    paper: str


MODELS = {
    "convnet": Entry(ConvNet, "3 convolutions with BatchNorm, linear head; quick on a CPU", "-"),
    "resnet18": Entry(
        ResNet18,
        "pre-activation ResNet-18 as in the evaluated experiments: 17 BatchNorm layers",
        "He et al. 2016b; Huang et al. 2021",
    ),
    "resnet18_basic": Entry(
        partial(ResNet18, block=BasicBlock), "textbook post-activation ResNet-18", "He et al. 2016a"
    ),
    "resnet18_large": Entry(
        partial(ResNet18, block=BasicBlock, stem=LargeStem),
        "the same for pictures of 224 pixels, as torchvision has it: gi-jax convert takes weights",
        "He et al. 2016a",
    ),
    "convnet_group": Entry(
        partial(ConvNet, norm=group_norm), "convnet with GroupNorm: no statistics", "Wu and He 2018, arXiv 1803.08494"
    ),
    "resnet18_group": Entry(
        partial(ResNet18, norm=group_norm), "resnet18 with GroupNorm: no statistics", "Wu and He 2018"
    ),
    "lenet": Entry(LeNet, "3 sigmoid convolutions, no BatchNorm; the network of DLG", "Zhu et al. 2019"),
    "rgap_cnn": Entry(
        Chain,
        "6 strided LeakyReLU convolutions, no pooling or BatchNorm; invertible layer by layer",
        "Zhu & Blaschko 2021",
    ),
    "mlp": Entry(MLP, "2 ReLU layers on the flat picture, no BatchNorm", "-"),
}


def create(name: str, num_classes: int, **options) -> FlaxNetwork:
    """The network called `name`.

    Args:
      name: a key of `MODELS`.
      num_classes: width of the output, 2 or more.
      **options: fields of the module, such as `lowering="lax"`.

    Raises:
      InputError: for an unknown name, with the nearest one.
    """
    checks.one_of("model", name, MODELS)
    checks.in_range(2, float("inf"), num_classes=num_classes)
    return FlaxNetwork(MODELS[name].module(num_classes=num_classes, **options))


def narrowed(network: FlaxNetwork, dtype: str) -> FlaxNetwork:
    """The same network, which multiplies and keeps its activations in `dtype`, such as `bfloat16`.

    Its weights, statistics and logits stay float32, and so does the type of its gradient, of which kernels that are not
    in factors have the digits of `dtype`.

    Raises:
      InputError: for a network that has no such choice.
    """
    if not hasattr(network.module, "dtype"):
        having = ", ".join(name for name in MODELS if hasattr(create(name, 2).module, "dtype"))
        raise checks.InputError(
            f"precision {dtype!r} with {type(network.module).__name__}: it computes in float32 only; expected float32, "
            f"or a model among {having}"
        )
    return FlaxNetwork(network.module.clone(dtype=dtype))


def count_parameters(params: Params) -> int:
    """How many numbers `params` holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
