"""The networks: tables of their parts, PyTorch's initialization and numbers, and the lowerings of a convolution."""

import json
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_resnet18
from problems import QUICK, draw_weights, enable_x64, leaf_names, random_like, relative_error, tree_dot

from gi_jax import models
from gi_jax.checks import InputError
from gi_jax.models import FlaxNetwork, FunctionNetwork, Normalize, count_parameters
from gi_jax.models.factors import Factored, pays
from gi_jax.models.layers import BatchNorm, Conv, Linear, group_norm, moments
from gi_jax.models.lowerings import LOWERINGS, convolve
from gi_jax.models.small_pictures import small_as_patches
from gi_jax.threat.batch_norm import running_average

GOLDEN = json.loads((Path(__file__).parent / "golden" / "resnet18.json").read_text())


def shapes(name: str, side: int = 32, num_classes: int = 10):
    """Shapes of a network's weights and statistics, without computing them."""
    module = models.create(name, num_classes).module
    made = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, side, side, 3)))
    return made["params"], made.get("batch_stats", {})


def calls(name: str, side: int = 32) -> list[tuple[type, str, tuple[int, ...]]]:
    """The layers in the order in which a batch of two meets them: type, path, shape of the input."""
    seen = []

    def record(call, arguments, options, context):
        if context.method_name == "__call__" and isinstance(context.module, BatchNorm | Conv | Linear):
            seen.append((type(context.module), "/".join(context.module.path), arguments[0].shape))
        return call(*arguments, **options)

    with nn.intercept_methods(record):
        shapes(name, side)
    return seen


@pytest.mark.parametrize(
    "name, side, parameters, tensors, norms",
    [
        ("resnet18", 32, 11_171_274, 56, 17),
        ("resnet18_basic", 32, 11_173_962, 62, 20),
        ("convnet", 32, 864 + 18_432 + 73_728 + 2 * (32 + 64 + 128) + 8 * 8 * 128 * 10 + 10, 11, 3),
        ("resnet18_group", 32, 11_171_274, 56, 17),
        ("convnet_group", 32, 864 + 18_432 + 73_728 + 2 * (32 + 64 + 128) + 8 * 8 * 128 * 10 + 10, 11, 3),
        ("lenet", 32, 912 + 3_612 + 3_612 + 8 * 8 * 12 * 10 + 10, 8, 0),
        ("mlp", 32, 3073 * 256 + 257 * 256 + 257 * 10, 6, 0),
        ("resnet18", 16, 11_171_274, 56, 17),
        ("convnet", 10, 864 + 18_432 + 73_728 + 2 * (32 + 64 + 128) + 3 * 3 * 128 * 10 + 10, 11, 3),
    ],
)
def test_sizes(name, side, parameters, tensors, norms):
    params, batch_stats = shapes(name, side)
    assert count_parameters(params) == parameters
    assert len(jax.tree.leaves(params)) == tensors
    assert len(jax.tree.leaves(batch_stats)) == (0 if name.endswith("_group") else 2 * norms)
    assert sum(name.endswith("scale") for name in leaf_names(params)) == norms


@pytest.mark.parametrize("name", models.MODELS)
def test_the_table_is_complete(name):
    entry = models.MODELS[name]
    assert entry.about and entry.paper
    logits, _ = jax.eval_shape(
        lambda: models.create(name, 7)(*shapes_as_zeros(name), jnp.zeros((3, 16, 16, 3)), Normalize.GIVEN)
    )
    assert logits.shape == (3, 7)


def shapes_as_zeros(name):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes(name, side=16, num_classes=7))


@pytest.mark.parametrize(
    "name, sides",
    [
        ("convnet", [32, 16, 8]),
        ("resnet18", [32] + [32] * 4 + [32, 16, 16, 16] + [16, 8, 8, 8] + [8, 4, 4, 4]),
        ("resnet18_basic", [32] + [32] * 4 + [16] * 5 + [8] * 5 + [4] * 5),
        ("lenet", []),
        ("mlp", []),
    ],
)
def test_spatial_size_at_every_norm_layer(name, sides):
    found = [shape for kind, _, shape in calls(name) if kind is BatchNorm]
    assert [shape[1:3] for shape in found] == [(side, side) for side in sides]


@pytest.mark.parametrize("name", models.MODELS)
def test_sorted_names_are_the_order_of_the_network(name):
    met = [path.split("/")[0] for _, path, _ in calls(name)]
    assert met == sorted(met) and met[-1] == "head"
    if name not in (
        "resnet18_basic",
        "resnet18_large",
    ):  # their shortcut is normalized before the sum, by name after it
        norms = [path for kind, path, _ in calls(name) if kind is BatchNorm]
        assert norms == sorted(norms)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_group_norm_takes_the_place_of_batch_norm(name):
    params, _ = shapes(name)
    grouped, batch_stats = shapes(f"{name}_group")
    assert leaf_names(grouped) == leaf_names(params) and batch_stats == {}
    assert [leaf.shape for leaf in jax.tree.leaves(grouped)] == [leaf.shape for leaf in jax.tree.leaves(params)]


def test_group_norm_is_the_published_equation():
    x = jnp.float32(np.random.default_rng(0).standard_normal((2, 3, 5, 32)) * 4 + 1)
    scale, bias = jnp.float32(np.random.default_rng(1).standard_normal((2, 32)))
    found = group_norm().apply({"params": {"scale": scale, "bias": bias}}, x)
    groups = np.float64(x).reshape(2, 3, 5, 2, 16)  # Wu and He 2018, equation 1, 16 channels in a group
    mean, var = (f(groups, (1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * np.float64(scale) + np.float64(bias)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("normalize", Normalize)
def test_pictures_of_a_group_normalized_network_do_not_meet(normalize):
    network = models.create("convnet_group", 4)
    params, _ = draw_weights(network, jax.random.key(0), 8)
    images = jnp.float32(np.random.default_rng(0).standard_normal((3, 8, 8, 3)))
    forward = jax.jit(lambda images: network(params, {}, images, normalize), compiler_options=QUICK)
    together, statistics = forward(images)
    alone, _ = forward(images[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert statistics == {}


def test_a_preactivation_block_takes_its_shortcut_where_the_shape_changes():
    shortcuts = [(path, shape) for _, path, shape in calls("resnet18") if path.endswith("shortcut")]
    assert shortcuts == [
        ("block3/shortcut", (2, 32, 32, 64)),
        ("block5/shortcut", (2, 16, 16, 128)),
        ("block7/shortcut", (2, 8, 8, 256)),
    ]


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match="unknown model 'resnet-18': did you mean 'resnet18'"):
        models.create("resnet-18", 10)
    with pytest.raises(InputError, match="unknown convolution lowering 'patch': did you mean 'patches'"):
        convolve(jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 1, 1, 1)), stride=1, padding=0, lowering="patch")


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_a_classifier_has_two_classes_or_more(num_classes):
    with pytest.raises(InputError, match=f"num_classes={num_classes}: expected a number in"):
        models.create("mlp", num_classes)


def test_networks_are_made_for_the_shape_of_one_picture():
    with pytest.raises(InputError, match=r"image_shape \(1, 8, 8, 3\): expected that of one picture, \(h, w, c\)"):
        models.create("lenet", 4).init(jax.random.key(0), (1, 8, 8, 3))


def test_equal_networks_are_equal_and_share_programs():
    assert models.create("convnet", 10) == models.create("convnet", 10)
    assert hash(models.create("convnet", 10)) == hash(models.create("convnet", 10))
    assert models.create("convnet", 10) != models.create("convnet", 11)
    assert models.create("convnet", 10) != models.create("convnet", 10, lowering="lax")


# Initialization. PyTorch draws weights and biases from U(-b, b) with b = 1 / sqrt(fan_in).


def assert_uniform(values, bound):
    values = np.asarray(values).reshape(-1)
    assert np.abs(values).max() <= bound
    if values.size > 200:
        assert np.abs(values).max() > 0.97 * bound
        spread = 6 / np.sqrt(values.size)  # about six standard errors of each of the two
        np.testing.assert_allclose(values.mean() / bound, 0, atol=spread)
        np.testing.assert_allclose(values.std() * np.sqrt(3) / bound, 1, atol=spread)


BOUNDS = {
    "convnet": {
        "block0/conv/kernel": 27**-0.5,
        "block1/conv/kernel": 288**-0.5,
        "block2/conv/kernel": 576**-0.5,
        "head/kernel": 2048**-0.5,
        "head/bias": 2048**-0.5,
    },
    "lenet": {
        "block0/kernel": 0.5,
        "block0/bias": 75**-0.5,
        "block1/kernel": 0.5,
        "block1/bias": 300**-0.5,
        "block2/kernel": 0.5,
        "block2/bias": 300**-0.5,
        "head/kernel": 0.5,
        "head/bias": 192**-0.5,
    },
    "mlp": {
        "block0/kernel": 768**-0.5,
        "block0/bias": 768**-0.5,
        "block1/kernel": 256**-0.5,
        "block1/bias": 256**-0.5,
        "head/kernel": 256**-0.5,
        "head/bias": 256**-0.5,
    },
}


@pytest.mark.parametrize("name", BOUNDS)
def test_initialization_is_pytorchs(name):
    params, batch_stats = draw_weights(models.create(name, 10), jax.random.key(5), 16)
    uniform = {}
    for path, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True):
        if "norm" in path:
            np.testing.assert_array_equal(leaf, 1.0 if path.endswith("scale") else 0.0)
        else:
            uniform[path] = leaf
    assert uniform.keys() == BOUNDS[name].keys()
    for path, bound in BOUNDS[name].items():
        assert_uniform(uniform[path], bound)
    for path, leaf in zip(leaf_names(batch_stats), jax.tree.leaves(batch_stats), strict=True):
        np.testing.assert_array_equal(leaf, 1.0 if path.endswith("var") else 0.0)


def test_initialization_depends_on_the_key_alone():
    network = models.create("mlp", 10)
    first, again, other = (network.init(jax.random.key(seed), (4, 4, 3))[0] for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))


# The normalization layer, on its own.


SCALE, BIAS = jnp.array([2.0, 0.5]), jnp.array([0.1, -0.3])
GIVEN = {"mean": jnp.array([4.0, 0.0]), "var": jnp.array([2.0, 3.0])}
TWO_CHANNELS = np.float32(np.random.default_rng(2).standard_normal((2, 3, 4, 2)) * [3, 0.2] + [5, -1])


def normalized(normalize, x):
    variables = {"params": {"scale": SCALE, "bias": BIAS}, "batch_stats": GIVEN}
    return BatchNorm(normalize).apply(variables, x, mutable=["statistics"])


@pytest.mark.parametrize("normalize", Normalize)
def test_a_norm_layer_subtracts_and_divides_by_what_it_was_told(normalize):
    y, written = normalized(normalize, jnp.asarray(TWO_CHANNELS))
    flat = np.float64(TWO_CHANNELS).reshape(-1, 2)
    own = {"mean": flat.mean(0), "var": flat.var(0)}
    used = own if normalize == Normalize.BATCH else jax.tree.map(np.float64, GIVEN)
    expected = (TWO_CHANNELS - used["mean"]) / np.sqrt(used["var"] + 1e-5) * np.asarray(SCALE) + np.asarray(BIAS)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    statistics = written["statistics"]
    np.testing.assert_allclose(statistics["mean"], own["mean"], rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], own["var"], rtol=1e-5)
    assert statistics["count"] == 2 * 3 * 4


def test_derivatives_flow_through_the_batchs_own_statistics_only_where_they_should():
    # A shift of the whole batch changes nothing in BATCH mode, so its derivative is zero there and, by construction,
    # in STRAIGHT_THROUGH; constants let it through.
    x = jnp.asarray(TWO_CHANNELS)
    weights = np.random.default_rng(3).standard_normal(x.shape)

    def shifted(shift, normalize):
        return jnp.vdot(jnp.float32(weights), normalized(normalize, x + shift)[0])

    slope = {normalize: float(jax.grad(shifted)(0.0, normalize)) for normalize in Normalize}
    np.testing.assert_allclose(slope[Normalize.BATCH], 0, atol=1e-3)
    np.testing.assert_allclose(slope[Normalize.STRAIGHT_THROUGH], 0, atol=1e-3)
    expected = weights.sum((0, 1, 2)) @ (SCALE / np.sqrt(GIVEN["var"] + 1e-5))
    np.testing.assert_allclose(slope[Normalize.GIVEN], expected, rtol=1e-4)


def test_large_means_do_not_cost_the_variance_its_digits():
    x = np.float32(1000 + np.random.default_rng(0).standard_normal((4, 8, 8, 1)))
    _, written = BatchNorm(Normalize.BATCH).apply(
        {"params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}, x, mutable=["statistics"]
    )
    np.testing.assert_allclose(written["statistics"]["var"], np.float64(x).var(), rtol=1e-3)


def test_the_derivatives_of_the_moments_are_those_of_their_formulas():
    def plainly(x):
        return x.mean((0, 1)), x.var((0, 1))

    def three_orders(function):
        def loss(x):
            mean, var = function(x)
            return jnp.sum(jnp.sin(mean) * var**2)

        along = lambda x: tree_dot(jax.grad(loss)(x), direction)  # noqa: E731
        return loss(x), jax.grad(loss)(x), jax.grad(along)(x), jax.jvp(jax.grad(along), (x,), (direction,))

    with enable_x64(True):
        x, direction = random_like((jnp.zeros((4, 3, 2)), jnp.zeros((4, 3, 2))))
        assert relative_error(three_orders(moments), three_orders(plainly)) < 1e-12


# A convolution is the same in every lowering: in value, gradient and second derivative.


def convolution_and_derivatives(lowering, images, kernel, stride, padding, directions):
    def loss(images, kernel):
        y = convolve(images, kernel, stride=stride, padding=padding, lowering=lowering)
        return jnp.sum(y * y * y), y

    def along(images, kernel):
        gradients, _ = jax.grad(loss, argnums=(0, 1), has_aux=True)(images, kernel)
        return tree_dot(gradients, directions)

    gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(images, kernel)
    reverse_over_reverse = jax.grad(along, argnums=(0, 1))(images, kernel)
    gradient = lambda *inputs: jax.grad(loss, argnums=(0, 1), has_aux=True)(*inputs)[0]  # noqa: E731
    _, forward_over_reverse = jax.jvp(gradient, (images, kernel), directions)
    return {
        "value": y,
        "gradients": gradients,
        "reverse over reverse": reverse_over_reverse,
        "forward over reverse": forward_over_reverse,
    }


FEW_COLUMNS, FEW_ROWS, TILED = (2, 7, 2, 3), (1, 5, 8, 70), (2, 8, 16, 3)


@pytest.mark.parametrize(
    "size, stride, shape",
    [(size, stride, FEW_COLUMNS) for size in (1, 2, 3, 5) for stride in (1, 2, 3)]
    + [(1, 2, FEW_ROWS), (3, 1, FEW_ROWS), (3, 2, FEW_ROWS), (3, 1, TILED)],
)
def test_lowerings_agree(size, stride, shape):
    # With few rows in its matmul, the derivatives of the patches take their other branch.
    n, side, channels, features = shape
    with enable_x64(True):
        inputs = (jnp.zeros((n, side, side, channels)), jnp.zeros((size, size, channels, features)))
        inputs, directions = random_like(inputs, 0), random_like(inputs, 1)
        compute = jax.jit(convolution_and_derivatives, static_argnums=(0, 3, 4), compiler_options=QUICK)
        found = {name: compute(name, *inputs, stride, size // 2, directions) for name in LOWERINGS}
        assert found["lax"]["value"].shape[1] == (side + 2 * (size // 2) - size) // stride + 1
        for what, expected in found["lax"].items():
            for name in LOWERINGS:
                assert relative_error(found[name][what], expected) < 1e-12, (what, name)


@pytest.mark.parametrize("dtype, saved", [("float32", 2), ("bfloat16", 1), ("float16", 1)])
def test_winograd_takes_half_the_multiplications_of_numbers_that_are_not_narrow(dtype, saved):
    def products(lowering):
        images, kernel = jnp.zeros((2, 8, 8, 16), dtype), jnp.zeros((3, 3, 16, 32), dtype)
        convolution = jax.make_jaxpr(lambda x, k: convolve(x, k, stride=1, padding=1, lowering=lowering))(
            images, kernel
        )
        return max(eqn.invars[0].aval.size for eqn in equations(convolution) if eqn.primitive.name == "dot_general")

    assert products("patches") == saved * products("winograd")


def equations(closed):
    for eqn in closed.jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from equations(inner)


@pytest.mark.parametrize("own", [(True, False, False), (False, True, True), (True, True, True), (False, False, True)])
def test_lowerings_agree_in_lanes(own):
    """Whether lanes have images, kernels and tangents of their own, or share them."""
    with enable_x64(True):
        images, kernel = jnp.zeros((2, 6, 6, 2)), jnp.zeros((3, 3, 2, 4))
        one = (images, kernel, (images, kernel))
        alone = random_like(one, 0)
        lanes = random_like(jax.tree.map(lambda leaf: jnp.zeros((3, *leaf.shape)), one), 1)
        inputs = [mine if has else shared for has, mine, shared in zip(own, lanes, alone, strict=True)]
        axes = tuple(0 if has else None for has in own)

        def compute(name):
            return jax.jit(
                jax.vmap(lambda x, k, along: convolution_and_derivatives(name, x, k, 2, 1, along), axes),
                compiler_options=QUICK,
            )(*inputs)

        expected = compute("lax")
        for name in LOWERINGS:
            assert relative_error(compute(name), expected) < 1e-12, name


def test_the_lowering_for_lanes_convolves_with_shared_weights_and_multiplies_with_others():
    images, kernel = jnp.zeros((5, 2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))

    def operations(function, *axes):
        mapped = jax.vmap(function, axes)
        inputs = [images if axis == 0 else images[0] for axis in axes[:1]]
        inputs += [kernel if axis is None else jnp.zeros((5, *kernel.shape)) for axis in axes[1:]]
        text = jax.jit(mapped).lower(*inputs).as_text()
        return "stablehlo.convolution" in text, "stablehlo.dot_general" in text

    def outputs(images, kernel):
        return convolve(images, kernel, stride=1, padding=1, lowering="lanes")

    def loss(images, kernel):
        return jnp.sum(outputs(images, kernel) ** 2)

    assert operations(outputs, 0, None) == (True, False)
    assert operations(outputs, None, 0) == (False, True)
    assert operations(jax.grad(loss), 0, None) == (True, False)
    assert operations(jax.grad(loss, 1), 0, None) == (True, True)  # weights shared by all, gradients their own


@pytest.mark.parametrize("own", [None, 0])
def test_products_have_the_precision_of_where_they_stand(own):
    """Not of where they are lowered, which for a primitive is after the program was traced."""

    @jax.jit
    def program(images, kernels):
        def loss(images, kernel):
            return jnp.sum(convolve(images, kernel, stride=1, padding=1, lowering="lanes") ** 2)

        with jax.default_matmul_precision("highest"):
            return jax.vmap(jax.grad(loss, argnums=(0, 1)), (0, own))(images, kernels)

    kernel = jnp.zeros((3, 3, 3, 4) if own is None else (5, 3, 3, 3, 4))
    text = program.lower(jnp.zeros((5, 2, 8, 8, 3)), kernel).as_text()
    products = [
        line for line in text.splitlines() if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert len(products) >= 3
    for line in products:
        assert "HIGHEST" in line


def test_a_network_is_the_same_function_in_every_lowering():
    x = random_like(np.zeros((2, 9, 9, 3), "f4"))
    params, batch_stats = draw_weights(models.create("convnet", 4), jax.random.key(1), 9)
    logits = []
    for lowering in LOWERINGS:
        network = jax.jit(models.create("convnet", 4, lowering=lowering), static_argnums=3, compiler_options=QUICK)
        logits.append(network(params, batch_stats, x, Normalize.BATCH)[0])
    for other in logits[1:]:
        np.testing.assert_allclose(logits[0], other, rtol=1e-4, atol=1e-5)


# The gradient of a kernel in factors.


def test_factors_are_the_gradient():
    rows, cotangents, other = random_like(
        (np.zeros((2, 3, 5), "f4"), np.zeros((2, 3, 4), "f4"), np.zeros((5, 4), "f4"))
    )
    expected = sum(np.outer(r, c) for r, c in zip(rows.reshape(-1, 5), cotangents.reshape(-1, 4), strict=True))
    factored = Factored(rows, cotangents, (1, 1, 5, 4))
    np.testing.assert_allclose(factored.dense(), expected.reshape(1, 1, 5, 4), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        factored.inner(other.reshape(1, 1, 5, 4)), np.sum(expected * np.asarray(other)), rtol=1e-4
    )
    np.testing.assert_allclose(factored.square(), np.sum(expected**2), rtol=1e-4)


class Tied(nn.Module):
    """Calls a layer twice."""

    @nn.compact
    def __call__(self, x):
        layer = Linear(48)
        return Linear(3)(layer(jnp.tanh(layer(x.reshape(len(x), -1)))))


def test_a_layer_that_is_called_twice_is_refused_where_its_rows_are_kept():
    x = jnp.ones((2, 4, 4, 3))
    variables = Tied().init(jax.random.key(0), x)
    assert Tied().apply(variables, x).shape == (2, 3)
    with pytest.raises(InputError, match="'Linear_0' is called twice, with the same weights"):
        Tied().apply(variables, x, mutable=["rows"])


@pytest.mark.parametrize("count, width, features, expected", [(1, 4, 4, True), (2, 8, 8, True), (3, 8, 8, False)])
def test_factors_are_kept_where_they_are_half_the_size(count, width, features, expected):
    assert pays(count, width, features) is expected


# ResNet-18 against PyTorch: tests/golden/make_resnet18.py.

GOLDEN_NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def golden_place(name: str) -> tuple[str, ...]:
    """Where a tensor of the golden network is in ours: ("block1", "norm2", "scale")."""
    *modules, last = name.split(".")
    if "norm" in modules[-1]:
        return (*modules, GOLDEN_NAMES[last])
    return (*modules, "kernel" if last == "weight" else last)


def golden_model():
    """Weights and running statistics of the golden network in our shapes."""
    network, side = models.create("resnet18", make_resnet18.NUM_CLASSES), make_resnet18.SIDE
    return jax.tree.map(jnp.asarray, models.from_torch(network, (side, side, 3), make_resnet18.tensors()))


def in_pytorch_order(tree, place) -> np.ndarray:
    for key in place:
        tree = tree[key]
    value = np.asarray(tree, np.float64)
    return value.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]).reshape(-1)


@pytest.fixture(scope="module", params=["train", "eval"])
def resnet18_run(request):
    network = FlaxNetwork(models.create("resnet18", make_resnet18.NUM_CLASSES).module)
    params, batch_stats = golden_model()
    images = jnp.float32(make_resnet18.images())
    labels = jnp.array(make_resnet18.LABELS)
    normalize = Normalize.BATCH if request.param == "train" else Normalize.GIVEN

    def loss(params):
        logits, statistics = network(params, batch_stats, images, normalize)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -jnp.mean(picked), (logits, statistics)

    (value, (logits, statistics)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(
        params
    )
    expected_names = {golden_place(name) for name in GOLDEN[request.param]["gradients"]}
    assert expected_names == {tuple(name.split("/")) for name in leaf_names(params)}
    return request.param, value, logits, gradients, running_average(batch_stats, statistics)


def test_resnet18_equals_pytorch(resnet18_run):
    mode, loss, logits, gradients, _ = resnet18_run
    golden = GOLDEN[mode]
    np.testing.assert_allclose(logits, golden["logits"], atol=2e-5)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    for number, name in enumerate(make_resnet18.tensors()):
        if name in golden["gradients"]:
            values = in_pytorch_order(gradients, golden_place(name))
            # Rounding may turn a ReLU near zero over, on one processor or another: 5e-4 was seen in the first blocks.
            assert_golden(name, number, values, golden["gradients"][name], rtol=1e-3, atol=3e-3)


def test_running_statistics_equal_pytorchs(resnet18_run):
    mode, _, _, _, after = resnet18_run
    if mode == "eval":
        # PyTorch's buffers stand still in evaluation mode, so these are the formula's own numbers.
        after = golden_model()[1]
    for number, name in enumerate(make_resnet18.tensors()):
        if "running" in name:
            assert_golden(name, number, in_pytorch_order(after, golden_place(name)), GOLDEN[mode]["running"][name])


def assert_golden(name, number, values, golden, rtol=5e-5, atol=5e-5):
    length, product = golden
    np.testing.assert_allclose(np.linalg.norm(values), length, rtol=rtol, err_msg=name)
    found = values @ make_resnet18.wave(values.size, 500 + number)
    np.testing.assert_allclose(found, product, atol=atol * length, err_msg=name)


def test_straight_through_is_exact_in_value():
    layer = BatchNorm(Normalize.GIVEN)
    images = 1e4 + jnp.float32(np.random.default_rng(0).standard_normal((2, 4, 4, 3)))
    given = {"mean": jnp.full(3, 0.1), "var": jnp.full(3, 1e-3)}  # lost beside numbers of the size of the batch's own
    variables = {"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}, "batch_stats": given}
    value = {
        normalize: layer.clone(normalize=normalize).apply(variables, images, mutable=["statistics"])[0]
        for normalize in Normalize
    }
    np.testing.assert_array_equal(value[Normalize.STRAIGHT_THROUGH], value[Normalize.GIVEN])


def test_a_plain_function_is_a_network():
    network = FunctionNetwork(lambda params, batch_stats, images: images.reshape(2, -1) @ params)
    images, params = jnp.ones((2, 2, 2, 3)), jnp.ones((12, 5))
    logits, statistics = network(params, {}, images, Normalize.GIVEN)
    np.testing.assert_array_equal(logits, 12.0)
    assert statistics == {}
    for normalize in (Normalize.BATCH, Normalize.STRAIGHT_THROUGH):
        with pytest.raises(InputError, match=f"normalize='{normalize}': a plain function .* expected 'given'"):
            network(params, {}, images, normalize)


class Foreign(nn.Module):
    """A user's module with a normalization of Flax, which no `Normalize` reaches."""

    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        options = {"use_running_average": True} if self.norm is nn.BatchNorm else {"num_groups": None, "group_size": 1}
        return nn.Dense(3)(self.norm(**options)(x).mean((1, 2)))


@pytest.mark.parametrize("norm", [nn.BatchNorm, nn.GroupNorm])
@pytest.mark.parametrize("normalize", Normalize)
def test_a_module_that_normalizes_in_its_own_way_is_not_told_how(norm, normalize):
    network, images = FlaxNetwork(Foreign(norm)), jnp.ones((2, 4, 4, 2))
    inputs = (*network.init(jax.random.key(0), (4, 4, 2)), images, normalize)
    if norm is nn.GroupNorm or normalize == Normalize.GIVEN:
        assert network(*inputs)[0].shape == (2, 3)
    else:
        with pytest.raises(InputError, match=f"normalize='{normalize}': Foreign without a field `normalize` normal"):
            network(*inputs)


# Activations half as wide.


@pytest.mark.parametrize("name", ["convnet", "resnet18", "resnet18_basic", "convnet_group"])
def test_a_narrowed_network_is_nearly_the_same_function_of_wide_weights(name):
    network = models.create(name, 4)
    narrow = models.narrowed(network, "bfloat16")
    params, batch_stats = draw_weights(network, jax.random.key(1), 8)
    x = random_like(np.zeros((2, 8, 8, 3), "f4"))

    def loss(params, x, network):
        logits, statistics = network(params, batch_stats, x, Normalize.GIVEN)
        return jnp.sum(logits**2), (logits, statistics)

    def compute(network):
        run = jax.jit(jax.grad(partial(loss, network=network), argnums=(0, 1), has_aux=True), compiler_options=QUICK)
        return run(params, x)

    (gradients, _), (logits, statistics) = compute(narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves((gradients, logits, statistics))} == {jnp.dtype("float32")}
    expected = compute(network)
    assert 1e-4 < relative_error(logits, expected[1][0]) < 0.05
    assert 1e-4 < relative_error(gradients, expected[0][0]) < 0.2


def test_a_narrowed_network_multiplies_and_keeps_narrow_numbers():
    network = models.narrowed(models.create("resnet18", 4), "bfloat16")
    params, batch_stats = jax.eval_shape(lambda key: network.init(key, (8, 8, 3)), jax.random.key(0))
    text = str(
        jax.make_jaxpr(lambda *inputs: network(*inputs, Normalize.BATCH))(params, batch_stats, jnp.zeros((9, 8, 8, 3)))
    )
    products = [line for line in text.splitlines() if "= dot_general[" in line or "= conv_general" in line]
    assert len(products) > 20 and sum(":bf16[" in line for line in products) >= len(products) - 1  # the head
    relus = [line for line in text.splitlines() if "= max " in line]
    assert relus and all(":bf16[" in line for line in relus)
    assert models.narrowed(models.create("convnet", 4), "bfloat16") == models.create("convnet", 4, dtype="bfloat16")
    with pytest.raises(InputError, match="LeNet: it computes in float32 only.*resnet18"):
        models.narrowed(models.create("lenet", 4), "bfloat16")


@pytest.mark.parametrize("side, padding", [(1, (1, 1)), (2, (1, 1)), (2, 1), (3, (1, 1)), (4, (1, 1))])
def test_small_pictures_are_convolved_as_by_flax(side, padding):
    layer = nn.Conv(5, (3, 3), padding=padding, bias_init=nn.initializers.ones)
    images = jax.random.normal(jax.random.key(0), (2, side, side + 1, 4))
    variables = layer.init(jax.random.key(1), images)
    expected, calls = layer.apply(variables, images), []

    def noted(call, arguments, keywords, context):
        calls.append(context.module)
        return call(*arguments, **keywords)

    with small_as_patches(), nn.intercept_methods(noted):
        found = layer.apply(variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(calls) == (side >= 3)  # the layer itself computes the others only


@pytest.mark.parametrize(
    "settings",
    [
        dict(feature_group_count=2),
        dict(use_bias=False),
        dict(strides=(2, 2)),
        dict(strides=2),
        dict(kernel_dilation=2, padding=((2, 2), (2, 2))),
        dict(kernel_dilation=2),
        dict(input_dilation=2),
        dict(padding="SAME"),
        dict(padding="CIRCULAR"),
        dict(padding=((0, 2), (1, 1))),
        dict(kernel_size=(1, 1), padding=(1, 1)),
        dict(mask=np.triu(np.ones((3, 3, 4, 6), "f4"))),
        dict(dtype=jnp.bfloat16),
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_layer_that_is_not_plain_is_computed_as_flax_does(settings):
    layer = nn.Conv(**dict(features=6, kernel_size=(3, 3), padding=(1, 1), bias_init=nn.initializers.ones) | settings)
    images = jax.random.normal(jax.random.key(0), (2, 2, 2, 4))
    variables = layer.init(jax.random.key(1), images)
    expected = layer.apply(variables, images)
    with small_as_patches():
        found = layer.apply(variables, images)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(found, "f4"), np.asarray(expected, "f4"))
