"""Toy victims that the tests share: small smooth pictures and networks that compile in a second."""

from functools import lru_cache, partial

import flax.linen as nn
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from gi_jax import defenses, models
from gi_jax.data.synthetic import smooth_images
from gi_jax.models import FlaxNetwork, FunctionNetwork, Network, Normalize
from gi_jax.models.layers import BatchNorm, Conv, Linear
from gi_jax.threat import BatchNormThreat, ImageSpace, Victim, observe, one_hot

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
"""Double precision inside of a `with`; jax 0.7 has it elsewhere."""


def accepted(**options) -> dict:
    """Those of the compiler's options that the installed XLA knows."""
    known = {}
    for name, value in options.items():
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


QUICK = accepted(xla_backend_optimization_level=0, xla_cpu_use_fusion_emitters=False)
"""Compiler options for programs that run once: compiling them takes far longer than running them."""

COMPILED = []
"""The names of all programs that were compiled since this file was imported."""


def _listen(event, seconds, **about):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(about["fun_name"])


jax.monitoring.register_event_duration_secs_listener(_listen)


SPACE = ImageSpace(mean=jnp.array([0.5, 0.4, 0.45]), std=jnp.array([0.25, 0.2, 0.3]))


class TinyNet(nn.Module):
    """Two convolutions with BatchNorm and a linear head: smooth, or with ReLU."""

    num_classes: int
    normalize: Normalize = Normalize.BATCH
    smooth: bool = True
    features: int = 4

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        activation = nn.softplus if self.smooth else nn.relu
        x = images
        for number, stride in enumerate((1, 2)):
            x = Conv(self.features, 3, stride, name=f"block{number}")(x)
            x = activation(BatchNorm(self.normalize, name=f"norm{number}")(x))
        return Linear(self.num_classes, name="head")(x.reshape(x.shape[0], -1))


def two_layers(params, batch_stats, images):
    """A user's plain function: smooth, and it reads `batch_stats` in a way of its own."""
    x = images.reshape(images.shape[0], -1)
    if batch_stats:
        x = x - batch_stats["offset"].reshape(1, -1)
    hidden = jax.nn.sigmoid(x @ params["w1"] + params["b1"].reshape(1, -1))
    return hidden @ params["w2"]


PLAIN = FunctionNetwork(two_layers)


def with_head(params, batch_stats, images):
    """A user's plain function whose last linear layer is where the library looks for it; with inactive features."""
    x = images.reshape(images.shape[0], -1)
    hidden = jax.nn.relu(x @ params["block0"]["kernel"] + params["block0"]["bias"].reshape(1, -1))
    return hidden @ params["head"]["kernel"] + params["head"]["bias"].reshape(1, -1)


HEADED = FunctionNetwork(with_head)


def plain_params(network: FunctionNetwork, seed: int, side: int, num_classes: int, hidden: int = 16):
    """Weights for `two_layers` or `with_head`."""
    size = side * side * 3
    draw = np.random.default_rng(seed).standard_normal
    if network == HEADED:
        return {
            "block0": {"kernel": jnp.float32(draw((size, hidden)) * size**-0.5), "bias": jnp.float32(draw(hidden))},
            "head": {"kernel": jnp.float32(draw((hidden, num_classes))), "bias": jnp.float32(draw(num_classes))},
        }
    return {
        "w1": jnp.float32(draw((size, hidden)) * size**-0.5),
        "b1": jnp.float32(draw(hidden)),
        "w2": jnp.float32(draw((hidden, num_classes))),
    }


def network_of(model: str | nn.Module | Network, num_classes: int) -> Network:
    """A network from its name, its module or itself."""
    if isinstance(model, str):
        return models.create(model, num_classes)
    return FlaxNetwork(model) if isinstance(model, nn.Module) else model


@partial(jax.jit, static_argnums=(1, 2, 3), compiler_options=QUICK)
def pictures(key: jax.Array, n: int, height: int, width: int) -> jax.Array:
    """Smooth pictures, in [0, 1]."""
    return smooth_images(key, n, height, width)


@partial(jax.jit, static_argnums=(0, 2), compiler_options=QUICK)
def draw_weights(network: FlaxNetwork, key: jax.Array, side: int):
    """What the network's own `init` draws, compiled quickly."""
    return network.init(key, (side, side, 3))


@lru_cache
def toy_victim(
    model: str | nn.Module | Network = "lenet",
    *,
    n: int = 2,
    side: int = 8,
    num_classes: int = 4,
    seed: int = 0,
) -> Victim:
    """A private batch of smooth pictures, one class after the other, and the network it was given to.

    Running averages are not the mean 0 and variance 1 of a fresh network, scale and bias of a normalization not 1 and
    0, so that a test notices where they are left out.
    """
    with enable_x64(False):  # the same victim wherever it is asked for first
        network = network_of(model, num_classes)
        key_weights, key_images = jax.random.split(jax.random.key(seed))
        if isinstance(network, FlaxNetwork):
            params, batch_stats = draw_weights(network, key_weights, side)
            params, batch_stats = moved(params, seed), moved(batch_stats, seed + 1)
        else:
            params, batch_stats = plain_params(network, seed, side, num_classes), {}
        return Victim(
            network=network,
            params=params,
            batch_stats=batch_stats,
            images=pictures(key_images, n, side, side),
            labels=one_hot(jnp.arange(n) % num_classes, num_classes),
            space=SPACE,
        )


def moved(tree, seed: int):
    """The tree with the numbers of its normalization layers away from their initial 0 and 1."""
    draw = np.random.default_rng(seed).standard_normal

    def move(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        factor = jnp.float32(np.exp(0.2 * draw(leaf.shape)))
        if "norm" not in name:
            return leaf
        return leaf * factor if name.endswith(("var", "scale")) else leaf + factor - 1

    return jax.tree_util.tree_map_with_path(move, tree)


_observe = jax.jit(observe, static_argnames=("threat", "defense", "labels_known"), compiler_options=QUICK)


def toy_problem(
    victim: Victim, threat: BatchNormThreat, defense=defenses.identity, *, key=None, labels_known: bool = True
):
    """What the adversary sees of a toy victim."""
    key = jax.random.key(99) if key is None else key
    return _observe(victim, threat, defense, key, labels_known=labels_known)


def truth(victim: Victim) -> jax.Array:
    """The private pictures in the network's units."""
    return victim.space.normalize(victim.images)


def as_float64(tree):
    """The arrays of a tree in double precision (inside `enable_x64`)."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def tree_dot(a, b) -> jax.Array:
    """Inner product of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


def tree_norm(tree) -> jax.Array:
    """Euclidean length of a tree."""
    return jnp.sqrt(tree_dot(tree, tree))


def relative_error(found, expected) -> float:
    """Length of the difference over the length of what was expected."""
    difference = jax.tree.map(lambda a, b: a - b, found, expected)
    return float(tree_norm(difference) / tree_norm(expected))


def random_like(tree, seed: int = 0):
    """Standard normal numbers in the shapes and types of a tree."""
    draw = np.random.default_rng(seed).standard_normal
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape), leaf.dtype), tree)


def leaf_names(tree) -> list[str]:
    """`block0/conv/kernel` and so on, in the order of the leaves."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def to_torch(params, batch_stats=None) -> dict[str, np.ndarray]:
    """Ours in the shapes and under the kinds of names of PyTorch; flat features stay channels last."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *modules, last = (entry.key for entry in path)
        last = {"kernel": "weight", "scale": "weight"}.get(last, last)
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
        found[".".join([*modules, last])] = np.asarray(leaf).transpose(axes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch_stats or {}):
        *modules, last = (entry.key for entry in path)
        found[".".join([*modules, f"running_{last}"])] = np.asarray(leaf)
    return found
