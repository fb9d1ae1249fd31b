"""Threat models: the client's step and its derivatives, what is shared, and what cannot be used."""

import dataclasses
import re
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    PLAIN,
    QUICK,
    SPACE,
    TinyNet,
    as_float64,
    enable_x64,
    leaf_names,
    random_like,
    relative_error,
    toy_problem,
    toy_victim,
    tree_dot,
    tree_norm,
    truth,
)

from gi_jax import defenses, models
from gi_jax.checks import InputError
from gi_jax.models import FlaxNetwork, FunctionNetwork, Normalize, is_factored
from gi_jax.models.layers import BatchNorm, Conv, Linear
from gi_jax.objectives import DISTANCES, GradientMatching
from gi_jax.threat import (
    RUNNING,
    THREATS,
    AttackProblem,
    Batch,
    BatchNormThreat,
    Clipped,
    ImageSpace,
    LocalTraining,
    Mixed,
    Noisy,
    Quantized,
    Rounded,
    Shared,
    Update,
    Zeroed,
    batch_norm,
    check_problem,
    client_update,
    cross_entropy,
    observe,
    one_hot,
    stack,
    victim_axes,
)
from gi_jax.threat.problem import FEW

BATCH, GIVEN, STRAIGHT_THROUGH = Normalize.BATCH, Normalize.GIVEN, Normalize.STRAIGHT_THROUGH
TINY = TinyNet(4)
NOTHING = BatchNormThreat(client=BATCH, shared=Shared.NOTHING, adversary=BATCH)


# The loss.


@pytest.mark.parametrize(
    "logits, labels, expected",
    [
        ([[0, 0, 0, 0]], [[0, 1, 0, 0]], np.log(4)),
        ([[0, 0, 0, 0]], [[0.25, 0.25, 0.5, 0]], np.log(4)),
        ([[np.log(3), 0]], [[1, 0]], np.log(4 / 3)),
        ([[np.log(3), 0]], [[0.3, 0.7]], 0.3 * np.log(4 / 3) + 0.7 * np.log(4)),
        ([[np.log(3), 0], [0, 0]], [[1, 0], [0, 1]], (np.log(4 / 3) + np.log(2)) / 2),
        ([[1000, 0]], [[0, 1]], 1000),
    ],
)
def test_cross_entropy_known_answers(logits, labels, expected):
    np.testing.assert_allclose(cross_entropy(jnp.float32(logits), jnp.float32(labels)), expected, rtol=1e-6)


# The client's step against the plain gradient of the plain loss.

CASES = {
    "BatchNorm, own statistics": (TINY, BATCH),
    "BatchNorm, given statistics": (TINY, GIVEN),
    "BatchNorm, straight through": (TINY, STRAIGHT_THROUGH),
    "BatchNorm and ReLU": (TinyNet(4, smooth=False), BATCH),
    "lenet": (models.create("lenet", 4, lowering="lax"), GIVEN),
    "plain function": (PLAIN, GIVEN),
}


def plain_update(network, normalize, params, batch_stats, batch):
    """The client's step as a textbook has it."""

    def loss(params):
        logits, statistics = network(params, batch_stats, batch.images, normalize)
        return -jnp.mean(jnp.sum(batch.labels * jax.nn.log_softmax(logits), axis=-1)), statistics

    return Update(*jax.grad(loss, has_aux=True)(params))


class WideNet(nn.Module):
    """A network whose convolutions have few rows for their size, so that it has their gradients in factors."""

    normalize: Normalize = BATCH

    @nn.compact
    def __call__(self, images):
        x = Conv(16, 3, 4, name="block0")(images)
        x = nn.tanh(BatchNorm(self.normalize, name="block1")(x))
        x = Conv(40, use_bias=True, name="block2")(x)
        return Linear(4, name="head")(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("masked", [False, True])
def test_a_gradient_in_factors_gives_the_same_derivatives(distance, masked):
    with enable_x64(True):
        network = FlaxNetwork(WideNet())
        params, _ = as_float64(network.init(jax.random.key(0), (8, 8, 3)))
        images = random_like(np.zeros((2, 8, 8, 3)))
        labels = jnp.eye(4)[:2]
        observed = jax.tree.map(lambda leaf: jnp.where(leaf > 0, leaf, 0), random_like(params, 1))
        matching = GradientMatching(distance=distance, masked=masked)
        problem = SimpleNamespace(observed=observed)

        def loss(images, step):
            update = step(network, BATCH, params, {}, Batch(images, labels))
            return matching(problem, None, update), update

        value_and_derivative = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1, compiler_options=QUICK)
        (value, update), derivative = value_and_derivative(images, client_update)
        (expected, plain), wanted = value_and_derivative(images, plain_update)
        assert is_factored(update.factored["block2"]["kernel"]) and not is_factored(update.factored["block0"]["kernel"])
        assert relative_error(update.gradients, plain.gradients) < 1e-12
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        assert relative_error(derivative, wanted) < 1e-10


def inputs_of(case):
    """The network, and in double precision: weights, statistics and a batch with soft labels."""
    model, normalize = CASES[case]
    victim = toy_victim(model, n=3)
    labels = 0.8 * victim.labels + 0.05
    return victim.network, normalize, as_float64((victim.params, victim.batch_stats, Batch(truth(victim), labels)))


@partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=QUICK)
def update_and_derivatives(step, network, normalize, inputs, observed, direction):
    """The update, and derivatives in all inputs: of each distance to `observed` by name, and of <update, direction>.

    The network is differentiated once, along all of their cotangents side by side.
    """
    update, transpose = jax.vjp(lambda inputs: step(network, normalize, *inputs), inputs)
    ones = jax.tree.map(lambda _: 1.0, observed)
    cotangents = {
        name: Update(jax.grad(distance)(update.gradients, observed, ones), direction.statistics)
        for name, distance in DISTANCES.items()
    }
    cotangents["inner product"] = direction
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cotangents.values())
    (derivatives,) = jax.vmap(transpose)(stacked)
    rows = {name: jax.tree.map(lambda x, i=i: x[i], derivatives) for i, name in enumerate(cotangents)}
    return update, rows


def directions_of(network, normalize, inputs):
    """A gradient to compare with, and a direction in the space of updates."""
    _, statistics = jax.eval_shape(lambda: network(*inputs[:2], inputs[2].images, normalize))
    return random_like(inputs[0], 1), Update(random_like(inputs[0], 2), random_like(statistics, 3))


def length(tree):
    return float(tree_norm(tree)) if jax.tree.leaves(tree) else 0.0


def assert_close(found, expected, tolerance, what=""):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    difference = jax.tree.map(lambda a, b: a - b, found, expected)
    assert length(difference) <= tolerance * length(expected), what


@pytest.mark.parametrize("case", CASES)
def test_the_update_and_its_derivative_equal_reverse_over_reverse(case):
    # In every input (weights, given statistics, images, labels) and for every distance, statistics included.
    with enable_x64(True):
        network, normalize, inputs = inputs_of(case)
        directions = directions_of(network, normalize, inputs)
        update, found = update_and_derivatives(client_update, network, normalize, inputs, *directions)
        plain, expected = update_and_derivatives(plain_update, network, normalize, inputs, *directions)
        assert_close(update, plain, 1e-12)
        assert found.keys() == {*DISTANCES, "inner product"}
        for name, (params, batch_stats, batch) in expected.items():
            assert min(map(length, (params, batch.images, batch.labels))) > 1e-6
            if batch_stats:
                assert (length(batch_stats) > 1e-6) == (normalize == GIVEN)
            assert_close(found[name][0], params, 1e-10, name)
            assert_close(found[name][1], batch_stats, 1e-10, name)
            assert_close(found[name][2].images, batch.images, 1e-10, name)
            assert_close(found[name][2].labels, batch.labels, 1e-10, name)


@pytest.mark.parametrize("case", [case for case in CASES if "ReLU" not in case and "through" not in case])
def test_the_derivative_equals_finite_differences_of_the_gradient(case):
    # Of <gradient, v> + <statistics, w>, by the plain first-order gradient, along a random direction of each input.
    with enable_x64(True):
        network, normalize, inputs = inputs_of(case)
        directions = directions_of(network, normalize, inputs)
        _, found = update_and_derivatives(client_update, network, normalize, inputs, *directions)
        plain = jax.jit(plain_update, static_argnums=(0, 1), compiler_options=QUICK)
        zeros = jax.tree.map(jnp.zeros_like, inputs)
        params, batch_stats, batch = random_like(inputs, 4)
        for what, along in {
            "weights": (params, *zeros[1:]),
            "given statistics": (zeros[0], batch_stats, zeros[2]),
            "images": (*zeros[:2], zeros[2]._replace(images=batch.images)),
            "labels": (*zeros[:2], zeros[2]._replace(labels=batch.labels)),
        }.items():
            step = 1e-5 / max(1.0, length(along))
            ends = [jax.tree.map(lambda x, d, by=by: x + by * d, inputs, along) for by in (step, -step)]
            ahead, behind = (tree_dot(plain(network, normalize, *end), directions[1]) for end in ends)
            slope = tree_dot(found["inner product"], along)
            np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6, err_msg=what)


def test_straight_through_at_the_exact_statistics_is_the_batch_mode():
    # In value and in the derivative of the update, so that an attack sees the client's own landscape at the truth.
    with enable_x64(True):
        network, _, (params, _, batch) = inputs_of("BatchNorm, own statistics")
        own = batch_norm.mean_and_var(network(params, {}, batch.images, BATCH)[1])
        directions = directions_of(network, BATCH, (params, own, batch))
        of_images = {}
        for normalize in Normalize:
            update, found = update_and_derivatives(client_update, network, normalize, (params, own, batch), *directions)
            of_images[normalize] = (update.gradients, found["inner product"][2].images)
        assert_close(of_images[STRAIGHT_THROUGH], of_images[BATCH], 1e-10)
        assert relative_error(of_images[GIVEN][0], of_images[BATCH][0]) > 0.3
        assert relative_error(of_images[GIVEN][1], of_images[BATCH][1]) > 0.3


def test_the_gradient_of_a_batch_is_the_mean_over_its_pictures():
    victim = toy_victim(PLAIN, n=3)
    images = truth(victim)
    step = jax.jit(client_update, static_argnums=(0, 1), compiler_options=QUICK)
    together = step(victim.network, GIVEN, victim.params, {}, Batch(images, victim.labels)).gradients
    alone = [
        step(victim.network, GIVEN, victim.params, {}, Batch(images[i : i + 1], victim.labels[i : i + 1])).gradients
        for i in range(3)
    ]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *alone)
    assert relative_error(together, mean) < 1e-5


# The three settings of BatchNorm.


@pytest.fixture(scope="module")
def at_the_truth():
    """For a name of `THREATS`: the problem, and the update and the logits that the adversary imagines at the truth."""
    victim = toy_victim(TINY, n=3)
    batch = Batch(truth(victim), victim.labels)

    @partial(jax.jit, compiler_options=QUICK)
    def imagine(problem):
        given = {} if problem.statistics is None else problem.statistics
        logits, _ = problem.network(problem.params, given, batch.images, problem.normalize)
        return problem.imagine(batch), logits

    def look(name):
        problem = toy_problem(victim, THREATS[name])
        update, logits = imagine(problem)
        return problem, update, logits

    return look


@pytest.mark.parametrize("name", ["exact", "exact-straight-through", "exact-reference", "infer", "infer-reference"])
def test_these_threat_models_have_zero_loss_at_the_truth(at_the_truth, name):
    problem, update, _ = at_the_truth(name)
    assert relative_error(update.gradients, problem.observed) < 1e-5
    for distance in DISTANCES:
        assert GradientMatching(distance=distance)(problem, None, update) < 1e-4 * max(1, tree_norm(problem.observed))


def test_exact_statistics_in_evaluation_mode_are_a_trap(at_the_truth):
    # The logits are right, and so is the gradient of the last layer. Below the norm layers the gradient is wrong: the
    # client's went through its statistics. The straight-through variant has the same logits and the right gradient.
    trap, imagined, logits = at_the_truth("exact-paper")
    problem, right, right_logits = at_the_truth("exact-straight-through")
    jax.tree.map(np.testing.assert_array_equal, trap.statistics, problem.statistics)
    np.testing.assert_allclose(logits, right_logits, rtol=1e-4, atol=1e-5)
    for layer in ("block0", "block1"):
        assert relative_error(right.gradients[layer], problem.observed[layer]) < 1e-5
        assert relative_error(imagined.gradients[layer], problem.observed[layer]) > 0.3
    assert relative_error(imagined.gradients["head"], problem.observed["head"]) < 1e-4
    assert GradientMatching()(trap, None, imagined) > 0.03
    assert GradientMatching()(problem, None, right) < 1e-5


@pytest.mark.parametrize("name", ["proxy", "proxy-reference"])
def test_proxy_statistics_do_not_give_the_clients_logits(at_the_truth, name):
    _, _, right_logits = at_the_truth("exact-straight-through")
    problem, update, logits = at_the_truth(name)
    assert np.abs(logits - right_logits).max() > 0.1
    assert relative_error(update.gradients, problem.observed) > 0.3


@pytest.fixture(scope="module")
def own_statistics():
    victim = toy_victim(TINY, n=3)
    _, statistics = victim.network(victim.params, victim.batch_stats, truth(victim), BATCH)
    return victim, statistics


@pytest.mark.parametrize(
    "shared, old_share, new_share, unbiased",
    [
        (Shared.RUNNING, 1, 0, False),
        (Shared.RUNNING_AFTER, 0.9, 0.1, True),
        (Shared.EXACT, 0, 1, False),
        (Shared.EXACT_UNBIASED, 0, 1, True),
    ],
)
def test_what_is_shared_of_the_private_statistics(own_statistics, shared, old_share, new_share, unbiased):
    victim, own = own_statistics
    problem = toy_problem(victim, BatchNormThreat(client=BATCH, shared=shared, adversary=BATCH))
    assert jax.tree.structure(problem.statistics) == jax.tree.structure(victim.batch_stats)
    for norm, pixels in (("norm0", 3 * 8 * 8), ("norm1", 3 * 4 * 4)):
        assert own[norm]["count"] == pixels
        correction = {"mean": 1, "var": pixels / (pixels - 1) if unbiased else 1}
        for key in ("mean", "var"):
            expected = old_share * victim.batch_stats[norm][key] + new_share * own[norm][key] * correction[key]
            np.testing.assert_allclose(problem.statistics[norm][key], expected, rtol=1e-5)


def test_running_statistics_are_those_from_before_the_batch_to_the_bit():
    victim = toy_victim(TINY, n=3)
    for threat in (RUNNING, THREATS["proxy"], THREATS["infer"]):
        jax.tree.map(np.testing.assert_array_equal, toy_problem(victim, threat).statistics, victim.batch_stats)


def test_nothing_shared_is_nothing():
    assert toy_problem(toy_victim(TINY, n=3), NOTHING).statistics is None


def test_one_pixel_has_no_unbiased_variance_and_no_infinity():
    one = {"norm": {"mean": jnp.ones(2), "var": jnp.zeros(2), "count": jnp.float32(1)}}
    np.testing.assert_array_equal(batch_norm.mean_and_var(one, unbiased=True)["norm"]["var"], 0)


def test_running_average_takes_another_momentum():
    old = {"norm": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}
    new = {"norm": {"mean": jnp.ones(1), "var": jnp.ones(1), "count": jnp.float32(2)}}
    after = batch_norm.running_average(old, new, momentum=0.25)
    np.testing.assert_allclose(after["norm"]["mean"], 0.25)
    np.testing.assert_allclose(after["norm"]["var"], 0.75 + 0.25 * 2)


@pytest.mark.parametrize(
    "name, client, shared, adversary",
    [
        ("exact", BATCH, Shared.EXACT, BATCH),
        ("exact-straight-through", BATCH, Shared.EXACT, STRAIGHT_THROUGH),
        ("exact-paper", BATCH, Shared.EXACT, GIVEN),
        ("exact-reference", BATCH, Shared.EXACT_UNBIASED, BATCH),
        ("proxy", BATCH, Shared.RUNNING, GIVEN),
        ("proxy-reference", BATCH, Shared.RUNNING_AFTER, GIVEN),
        ("infer", BATCH, Shared.RUNNING, BATCH),
        ("infer-reference", BATCH, Shared.RUNNING_AFTER, BATCH),
    ],
)
def test_table_of_threat_models(name, client, shared, adversary):
    assert THREATS[name] == BatchNormThreat(client=client, shared=shared, adversary=adversary)
    assert len(THREATS) == 8
    assert RUNNING == BatchNormThreat(client=GIVEN, shared=Shared.RUNNING, adversary=GIVEN)


@pytest.mark.parametrize(
    "client, shared, adversary, message",
    [
        (STRAIGHT_THROUGH, Shared.EXACT, BATCH, "client normalization 'straight-through': expected 'batch' or 'given'"),
        (BATCH, Shared.NOTHING, GIVEN, "adversary normalization 'given' with shared='nothing': .* expected 'batch'"),
        (BATCH, Shared.NOTHING, STRAIGHT_THROUGH, "adversary normalization 'straight-through' with shared='nothing'"),
        (GIVEN, Shared.NOTHING, GIVEN, "adversary normalization 'given' with shared='nothing'"),
        (GIVEN, Shared.RUNNING_AFTER, GIVEN, "computes no statistics of its batch; expected shared='running'"),
        (GIVEN, Shared.EXACT, BATCH, "computes no statistics of its batch; expected shared='running'"),
    ],
)
def test_impossible_threat_models(client, shared, adversary, message):
    with pytest.raises(InputError, match=message):
        BatchNormThreat(client=client, shared=shared, adversary=adversary)


@pytest.mark.parametrize("shared", Shared)
def test_oracles_are_called_oracles(shared):
    client, about, adversary = BatchNormThreat(client=BATCH, shared=shared, adversary=BATCH).words()
    leaks = shared in (Shared.RUNNING_AFTER, Shared.EXACT, Shared.EXACT_UNBIASED)
    assert about.startswith("ORACLE") == leaks
    assert "training mode" in client and "own guess" in adversary


# What the adversary holds.


def test_a_problem_has_no_field_for_the_truth():
    fields = [field.name for field in dataclasses.fields(AttackProblem)]
    static = {"network", "normalize", "image_shape", "clients"}
    assert set(fields) == static | {"params", "statistics", "observed", "labels", "space", "known", "local", "order"}


@pytest.mark.parametrize("name", THREATS)
def test_no_array_of_a_problem_is_the_truth(name):
    victim = toy_victim(TINY, n=3)
    problem = toy_problem(victim, THREATS[name], labels_known=False)
    assert problem.labels is None and problem.image_shape == (3, 8, 8, 3)
    for leaf in jax.tree.leaves(problem):
        assert leaf.shape not in (victim.images.shape, victim.labels.shape)
    known = toy_problem(victim, THREATS[name])
    np.testing.assert_array_equal(known.labels, victim.labels)


def test_the_defense_stands_between_the_gradient_and_the_adversary():
    victim = toy_victim(PLAIN)
    plain = toy_problem(victim, RUNNING).observed
    step = jax.jit(client_update, static_argnums=(0, 1), compiler_options=QUICK)
    update = step(PLAIN, GIVEN, victim.params, {}, Batch(truth(victim), victim.labels))
    assert relative_error(plain, update.gradients) < 1e-5
    pruned = toy_problem(victim, RUNNING, defenses.parse("prune:p=0.9")).observed
    for before, after in zip(jax.tree.leaves(plain), jax.tree.leaves(pruned), strict=True):
        kept = np.asarray(after) != 0
        assert kept.sum() == np.ceil(0.1 * before.size)
        np.testing.assert_allclose(after[kept], before[kept], rtol=1e-6)


def test_observing_can_be_mapped_over_the_clients_randomness():
    victim = toy_victim(PLAIN)
    noisy = defenses.parse("gaussian:sigma=0.1")
    keys = jax.random.split(jax.random.key(5), 3)
    sent = jax.jit(jax.vmap(lambda key: observe(victim, RUNNING, noisy, key).observed), compiler_options=QUICK)(keys)
    first = toy_problem(victim, RUNNING, noisy, key=jax.random.split(jax.random.key(5), 3)[0]).observed
    for leaf, alone in zip(jax.tree.leaves(sent), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(leaf[0], alone, rtol=1e-5, atol=1e-6)
        assert np.abs(leaf[0] - leaf[1]).max() > 1e-3 and np.abs(leaf[1] - leaf[2]).max() > 1e-3


# Units.


def test_units_there_and_back():
    pictures = jnp.float32(np.random.default_rng(0).random((2, 4, 4, 3)))
    images = SPACE.normalize(pictures)
    np.testing.assert_allclose(
        images, (pictures - SPACE.mean[None, None, None]) / SPACE.std[None, None, None], rtol=1e-5
    )
    np.testing.assert_allclose(SPACE.denormalize(images), pictures, atol=1e-6)
    np.testing.assert_allclose(SPACE.clip(images), images, atol=1e-6)
    lanes = jnp.stack([images, images])
    np.testing.assert_allclose(SPACE.denormalize(lanes)[1], pictures, atol=1e-6)


def test_the_box_is_that_of_pictures():
    images = jnp.array([-100.0, 0.0, 100.0]).reshape(3, 1, 1, 1) * jnp.ones((1, 1, 1, 3))
    corners = SPACE.clip(images)[:, 0, 0]
    np.testing.assert_allclose(corners[0], -SPACE.mean / SPACE.std, rtol=1e-6)
    np.testing.assert_array_equal(corners[1], 0)
    np.testing.assert_allclose(corners[2], (1 - SPACE.mean) / SPACE.std, rtol=1e-6)
    seen = SPACE.denormalize(images)[:, 0, 0]
    np.testing.assert_allclose(seen, jnp.stack([jnp.zeros(3), SPACE.mean, jnp.ones(3)]), atol=1e-6)


# Labels.


def test_one_hot_rows():
    np.testing.assert_array_equal(one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(one_hot(np.array([1], np.uint8), 2), [[0, 1]])


@pytest.mark.parametrize("labels, bad", [([0, 3], 3), ([-1], -1), ([1, 99, 100], 99)])
def test_one_hot_refuses_numbers_outside_the_classes(labels, bad):
    with pytest.raises(InputError, match=f"^label {bad}: expected class numbers from 0 to 2$"):
        one_hot(labels, 3)


@pytest.mark.parametrize(
    "labels, what", [([0.5, 1.0], "float32"), ([[0, 1]], "(1, 2)"), (1, "()"), ([True], "bool"), (["cat"], "list")]
)
def test_one_hot_refuses_what_are_no_class_numbers(labels, what):
    with pytest.raises(InputError, match=f"^labels of type .*{re.escape(what)}.*: expected"):
        one_hot(labels, 3)


def test_traced_class_numbers_are_not_looked_at():
    np.testing.assert_array_equal(jax.jit(lambda labels: one_hot(labels, 3))(jnp.array([2, 0])), one_hot([2, 0], 3))


# What no attack can use.


@pytest.fixture(scope="module")
def problem():
    return toy_problem(toy_victim(TINY, n=3), THREATS["exact"])


def test_a_good_problem_passes(problem):
    check_problem(problem)
    check_problem(dataclasses.replace(problem, labels=None))
    check_problem(dataclasses.replace(problem, labels=problem.labels.tolist()))
    check_problem(toy_problem(toy_victim("lenet"), RUNNING))
    check_problem(toy_problem(toy_victim(PLAIN), RUNNING))


def changed(tree, name, value):
    """The tree with the leaf called `name` set to what `value` makes of it; None removes it."""
    *modules, last = name.split("/")
    copy = jax.tree.map(lambda leaf: leaf, tree)
    node = copy
    for module in modules:
        node = node[module]
    node[last] = value(node[last])
    if node[last] is None:
        del node[last]
    return copy


@pytest.mark.parametrize(
    "field, name, value, message",
    [
        (
            "observed",
            "block1/kernel",
            lambda x: x.at[0, 0, 0, 0].set(jnp.nan),
            "observed gradient: block1/kernel holds 1",
        ),
        ("observed", "head/bias", lambda x: x + jnp.inf, "observed gradient: head/bias holds 4 values"),
        ("observed", "norm0/scale", lambda x: None, "observed gradient: norm0/scale is missing; expected shape .4,."),
        (
            "observed",
            "head/kernel",
            lambda x: x.T,
            "observed gradient: head/kernel has shape .4, 64.; expected .64, 4.",
        ),
        ("observed", "head/bias", jnp.int8, "observed gradient: head/bias is of type int8; expected floating-point"),
        ("params", "norm1/bias", lambda x: x * jnp.nan, "params: norm1/bias holds 4 values"),
        ("params", "norm1/bias", lambda x: x > 0, "params: norm1/bias is of type bool; expected floating-point"),
        ("statistics", "norm0/var", lambda x: x * jnp.inf, "statistics: norm0/var holds 4 values"),
        ("statistics", "norm0/var", lambda x: 0 * x - 0.5, "statistics: norm0/var holds -0.5; expected variances"),
        ("statistics", "norm1/mean", jnp.int32, "statistics: norm1/mean is of type int32; expected floating-point"),
    ],
)
def test_what_check_problem_refuses(problem, field, name, value, message):
    bad = dataclasses.replace(problem, **{field: changed(getattr(problem, field), name, value)})
    with pytest.raises(InputError, match=message) as error:
        check_problem(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "known, message",
    [
        (("encrypted",), "unknown fact 'encrypted': expected one of Zeroed, Noisy"),
        (Zeroed(), "known Zeroed: expected a tuple of facts; try .fact,."),
        ((Zeroed(bound={"head": 1.0}),), "bound of Zeroed: .* is missing; expected shape .."),
        ((Quantized(width=jnp.ones(4)),), r"width of Quantized: .* has shape \(4,\); expected \(\)"),
        ((Rounded(spacing={}, scale=1.0),), "spacing of Rounded: .* is missing"),
        ((Rounded(spacing=-1.0, scale=1.0),), "spacing of Rounded is -1.0: expected a number from 0 to inf"),
        ((Noisy(distribution="gaussian", scale=-1),), "scale of Noisy is -1: expected a number from 0 to"),
        ((Noisy(distribution="gaussian", scale=jnp.nan),), "scale of Noisy is nan: expected"),
        ((Noisy(distribution="normal", scale=1.0),), "unknown distribution 'normal'"),
        ((Zeroed(kept=5.0),), "kept of Zeroed is 5.0: expected a number from 0 to 1"),
        ((Zeroed(bound=-0.1),), "bound of Zeroed is -0.1"),
        ((Clipped(bound=jnp.nan),), "bound of Clipped is nan"),
        ((Mixed(k=2, label_sum=1.5),), "label_sum of Mixed is 1.5"),
    ],
)
def test_facts_that_do_not_fit_are_refused(problem, known, message):
    victim, own = toy_victim(PLAIN), defenses.FunctionDefense(lambda key: optax.identity(), lambda sent: known)
    for refuse in (
        lambda: check_problem(dataclasses.replace(problem, known=known)),
        lambda: observe(victim, RUNNING, own, jax.random.key(0)),
    ):
        with pytest.raises(InputError, match=message):
            refuse()


def test_weights_that_are_not_finite_are_found_before_their_gradient():
    victim = toy_victim(PLAIN)
    broken = dataclasses.replace(victim, params={**victim.params, "b1": victim.params["b1"] * jnp.nan})
    problem = observe(broken, RUNNING, defenses.identity, jax.random.key(0))
    with pytest.raises(InputError, match="^params: b1 holds 16 values that are NaN or infinite"):
        check_problem(problem)


def test_an_update_of_another_network_is_refused(problem):
    more = {**problem.observed, "block9": {"kernel": jnp.zeros(3)}}
    with pytest.raises(InputError, match="observed gradient: block9/kernel is not part of the network"):
        check_problem(dataclasses.replace(problem, observed=more))


@pytest.mark.parametrize("shape", [(2, 4), (3,), (3, 1, 4), (3, 5)])
def test_labels_that_do_not_fit_are_refused(problem, shape):
    with pytest.raises(InputError, match=r"labels have shape .*; expected class probabilities \(3, 4\)"):
        check_problem(dataclasses.replace(problem, labels=jnp.ones(shape)))


def test_labels_that_are_not_finite_are_refused(problem):
    with pytest.raises(InputError, match="labels: value holds 1 values"):
        check_problem(dataclasses.replace(problem, labels=problem.labels.at[0, 0].set(jnp.nan)))


def test_labels_that_are_no_probabilities_are_refused(problem):
    with pytest.raises(InputError, match="labels from 0 to 3: expected numbers in .0, 1."):
        check_problem(dataclasses.replace(problem, labels=3 * problem.labels))


def test_labels_that_sum_to_more_than_1_are_refused(problem):
    with pytest.raises(InputError, match="labels that sum to 2: expected class probabilities"):
        check_problem(dataclasses.replace(problem, labels=jnp.full((3, 4), 0.5)))
    check_problem(dataclasses.replace(problem, labels=jnp.full((3, 4), 0.2)))  # an encoding's may sum to less


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(local=LocalTraining(num_steps=2, batch_size=2)), "local batches of 2 from 3 pictures: expected one"),
        (dict(local=LocalTraining(num_steps=2, learning_rate=-1.0)), "local_rate=-1.0: expected a number above 0"),
        (dict(local=LocalTraining(num_steps=2), order=[[0, 1, 2]]), r"order of type int64 and shape \(1, 3\)"),
        (dict(local=LocalTraining(num_steps=1), order=[[0, 1, 3]]), "expected whole numbers .1, 3. from 0 to 2"),
        (dict(local=LocalTraining(num_steps=1), order=[[0.0, 1.0, 2.0]]), "order of type float64"),
        (dict(clients=2), "clients=2 of 3 pictures: expected equal parts"),
        (dict(clients=0), "clients=0: expected a number above 0"),
    ],
)
def test_clients_and_steps_that_do_not_fit_the_batch_are_refused(problem, changes, message):
    with pytest.raises(InputError, match=message):
        check_problem(dataclasses.replace(problem, **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mean": [0.5, 0.5], "std": 1.0}, "with mean of shape (2,): expected [n, h, w, c] and one number a channel"),
        ({"mean": 0.5, "std": [[1.0, 1.0, 1.0]]}, "with std of shape (1, 3): expected"),
        ({"mean": [0.5, jnp.inf, 0.5]}, "space: mean/1 holds 1 values that are NaN or infinite"),
        ({"std": (1.0, 0.0, 1.0)}, "std (1.0, 0.0, 1.0): expected numbers above 0"),
        ({"low": 1.0, "high": 0.5}, "space: low 1.0 and high 0.5: expected low below high"),
        ({"low": [0.0, 1.0, 0.0]}, "expected low below high"),
    ],
)
def test_units_that_cannot_be_are_refused(problem, changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        check_problem(dataclasses.replace(problem, space=dataclasses.replace(problem.space, **changes)))


# Several victims.


@pytest.mark.parametrize(
    "field, value",
    [
        ("params", lambda params: jax.tree.map(lambda leaf: 2 * leaf, params)),
        ("params", lambda params: params | {"more": jnp.zeros(1)}),
        ("space", lambda space: dataclasses.replace(space, std=2 * space.std)),
        ("local", lambda local: LocalTraining(num_steps=2, learning_rate=0.2)),
    ],
)
def test_a_stack_of_several_models_or_units_is_refused(problem, field, value):
    first = dataclasses.replace(problem, local=LocalTraining(num_steps=2, learning_rate=0.1))
    other = dataclasses.replace(first, **{field: value(getattr(first, field))})
    with pytest.raises(InputError, match=f"problems of one launch must share {field}, and these differ in it"):
        stack([first, other])
    copied = jax.tree.map(np.array, problem)  # the same numbers, and no two objects the same
    assert stack([problem, copied]).params is problem.params


def test_a_stack_looks_at_no_numbers_of_what_is_shared(problem, monkeypatch):
    monkeypatch.setattr(np, "array_equal", None)
    stack([problem, dataclasses.replace(problem, labels=problem.labels[::-1])])


def test_a_stack_shares_the_model_and_stacks_the_rest(problem):
    other = toy_problem(toy_victim(TINY, n=3, seed=0), THREATS["exact"], defenses.parse("prune:p=0.5"))
    with pytest.raises(InputError, match="kind of defense"):
        stack([problem, other])
    other = dataclasses.replace(other, known=problem.known)  # an adversary that is not told
    stacked = stack([problem, other])
    assert stacked.params is problem.params and stacked.space is problem.space
    for field in ("observed", "statistics", "labels"):
        for number, single in enumerate((problem, other)):
            rows = jax.tree.map(lambda leaf, number=number: leaf[number], getattr(stacked, field))
            jax.tree.map(np.testing.assert_array_equal, rows, getattr(single, field))
    axes = victim_axes(stacked)
    assert (axes.params, axes.space, axes.statistics, axes.observed, axes.labels) == (None, None, 0, 0, 0)


def test_a_stack_of_many_is_filled_one_by_one(problem, monkeypatch):
    monkeypatch.setattr("gi_jax.threat.problem._stack", None)  # whose program grows with their number
    count = FEW + 2
    scale = lambda number: jax.tree.map(lambda leaf: number * leaf, problem.observed)  # noqa: E731
    many = [dataclasses.replace(problem, observed=scale(number), labels=problem.labels) for number in range(count)]
    found = [stack(many), stack(iter(many), count)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one.observed for one in many])
    for stacked in found:
        jax.tree.map(np.testing.assert_array_equal, stacked.observed, expected)
        assert stacked.labels.shape == (count, *problem.labels.shape) and stacked.params is problem.params
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(stacked.observed))


@pytest.mark.parametrize("count", [2, FEW + 1])
@pytest.mark.parametrize("change", [lambda labels: labels[:1], lambda labels: labels.astype(jnp.float16)])
def test_a_stack_of_other_forms_is_refused(problem, count, change):
    other = dataclasses.replace(problem, labels=change(problem.labels))
    with pytest.raises(InputError, match=r"labels of one form, and these have float32\[3, .*\] and float"):
        stack([problem] * (count - 1) + [other])


@pytest.mark.parametrize(
    "model, options, threat",
    [
        ("lenet", {"n": 3}, RUNNING),
        (TINY, {"n": 3}, THREATS["exact-paper"]),
        (TINY, {"n": 2}, THREATS["exact-straight-through"]),
        (TINY, {"n": 3, "labels_known": False}, THREATS["exact"]),
    ],
)
def test_different_programs_do_not_stack(problem, model, options, threat):
    known = {"labels_known": options.get("labels_known", True)}
    other = toy_problem(toy_victim(model, n=options["n"]), threat, **known)
    with pytest.raises(
        InputError, match="must share network, normalization, shape, label knowledge, local steps and kind"
    ):
        stack([problem, other])


# A user's plain function.


def test_a_plain_function_reads_the_statistics_in_its_own_way():
    victim = toy_victim(PLAIN)
    offset = jnp.float32(np.random.default_rng(0).standard_normal(8 * 8 * 3))
    moved = dataclasses.replace(victim, batch_stats={"offset": offset})
    problem = toy_problem(moved, RUNNING)
    np.testing.assert_array_equal(problem.statistics["offset"], offset)
    update = problem.imagine(Batch(truth(victim), victim.labels))
    assert relative_error(update.gradients, problem.observed) < 1e-5
    assert relative_error(toy_problem(victim, RUNNING).observed, problem.observed) > 0.01
    assert leaf_names(update.gradients) == ["b1", "w1", "w2"] and update.statistics == {}


@pytest.mark.parametrize("name", THREATS)
def test_a_plain_function_in_batch_mode_is_told_in_one_line(name):
    with pytest.raises(InputError, match="a plain function normalizes in its own way; expected 'given'") as error:
        toy_problem(toy_victim(PLAIN), THREATS[name])
    assert "\n" not in str(error.value)


# What cannot be observed.


def with_(**changes):
    """Arguments of `observe` with other fields of the victim, each made from its own."""
    return lambda victim: {
        "victim": dataclasses.replace(
            victim, **{name: change(getattr(victim, name)) for name, change in changes.items()}
        )
    }


UNUSABLE = {
    "encodings that are none": (lambda victim: {"defense": defenses.mixup(k=2)}, "encode_victim"),
    "pictures from 0 to 255": (with_(images=lambda images: 255 * images), "divide by 255"),
    "no pictures": (with_(images=lambda images: images[:0]), "n of 1 or more"),
    "class numbers": (with_(labels=lambda labels: labels.argmax(1)), "one_hot"),
    "pictures of whole numbers": (with_(images=lambda images: jnp.uint8(images)), "divide by 255"),
    "pictures that are none": (with_(images=lambda images: "cat.png"), "images of type str: expected an array"),
    "channels first": (with_(images=lambda images: jnp.moveaxis(images, 3, 1)), "transpose"),
    "gray pictures": (with_(images=lambda images: images[..., :1]), "one number a channel"),
    "no probabilities": (with_(labels=lambda labels: 7 * labels), "from 0 to 7"),
    "several classes": (with_(labels=lambda labels: labels.at[1].set(1.0)), "labels that sum to 4: .*for each picture"),
    "no class": (with_(labels=lambda labels: labels.at[1].set(0.0)), "labels that sum to 0"),
    "labels of another data set": (with_(labels=lambda labels: jnp.eye(7)[:2]), "network of 4 outputs"),
    "whole weights": (with_(params=lambda params: jax.tree.map(jnp.int32, params)), "params: .* of type int32"),
    "weights of another network": (with_(params=lambda params: {}), "network LeNet on images of shape"),
    "units of another data set": (with_(space=lambda space: ImageSpace(mean=0.5, std=jnp.ones(4))), "std of shape"),
    "a bare network": (with_(network=lambda network: lambda params, statistics, images: images), "FunctionNetwork"),
    "a name for a threat model": (lambda victim: {"threat": "running"}, "threat 'running': .*gi_jax.threat.RUNNING"),
    "text for a defense": (lambda victim: {"defense": "prune:p=0.9"}, r"defenses.parse\('prune:p=0.9'\)"),
    "a bare transformation": (lambda victim: {"defense": optax.clip(1.0)}, "FunctionDefense"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_observed_is_refused(case):
    victim = toy_victim(n=2)
    change, message = UNUSABLE[case]
    arguments = dict(victim=victim, threat=RUNNING, defense=defenses.identity, key=jax.random.key(0)) | change(victim)
    with pytest.raises(InputError, match=message):
        observe(**arguments)


def with_noise(params, batch_stats, images):
    return nn.Dropout(0.5, deterministic=False).apply({}, images.reshape(len(images), -1))


NO_LOGITS = {
    "a tuple": (FunctionNetwork(lambda params, batch_stats, images: (images, images)), "<lambda> returns a tuple"),
    "one axis": (FunctionNetwork(lambda params, batch_stats, images: images.mean((1, 2, 3))), "returns shape (2,)"),
    "one row": (FunctionNetwork(lambda params, batch_stats, images: images[:1, 0, 0]), "returns shape (1, 3) for 2"),
    "two arguments": (FunctionNetwork(lambda params, images: images), "takes 2 positional arguments but 3 were given"),
    "dropout": (FunctionNetwork(with_noise), "network with_noise on images of shape (2, 8, 8, 3)"),
    "logits alone": (lambda params, batch_stats, images, normalize: images.mean((1, 2)), "returns shape (3,) for 2"),
}


@pytest.mark.parametrize("case", NO_LOGITS)
def test_networks_without_logits_are_refused(case):
    network, message = NO_LOGITS[case]
    victim, problem = toy_victim(n=2), toy_problem(toy_victim(n=2), RUNNING)
    for refuse in (
        lambda: observe(dataclasses.replace(victim, network=network), RUNNING, defenses.identity, jax.random.key(0)),
        lambda: check_problem(dataclasses.replace(problem, network=network)),
        lambda: check_problem(dataclasses.replace(problem, network=network, labels=None)),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            refuse()
        assert "\n" not in str(error.value) and "(params, batch_stats, images) -> logits" in str(error.value)


def test_lists_and_other_types_are_taken_as_float32():
    victim = toy_victim(PLAIN)
    numbers = dict(mean=[0.5, 0.4, 0.45], std=(0.25, 0.2, 0.3))
    listed = dataclasses.replace(victim, images=victim.images.tolist(), space=ImageSpace(**numbers))
    expected = toy_problem(victim, RUNNING)
    for labels in (victim.labels.tolist(), victim.labels == 1, np.int64(victim.labels)):
        problem = observe(dataclasses.replace(listed, labels=labels), RUNNING, defenses.identity, jax.random.key(99))
        check_problem(problem)
        np.testing.assert_array_equal(problem.labels, expected.labels)
        assert problem.labels.dtype == jnp.float32 and relative_error(problem.observed, expected.observed) < 1e-5
    images = truth(victim)
    np.testing.assert_array_equal(ImageSpace(mean=0.5, std=1).normalize(images), images - 0.5)
    np.testing.assert_allclose(ImageSpace(**numbers).signed().std, SPACE.signed().std, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.bool, jnp.bfloat16])
def test_what_is_sent_is_float32(dtype):
    send_signs = optax.stateless(lambda updates, params: jax.tree.map(lambda leaf: (leaf > 0).astype(dtype), updates))
    victim = toy_victim(PLAIN)
    found = observe(victim, RUNNING, defenses.FunctionDefense(lambda key: send_signs), jax.random.key(0)).observed
    for sent, plain in zip(jax.tree.leaves(found), jax.tree.leaves(toy_problem(victim, RUNNING).observed), strict=True):
        assert sent.dtype == jnp.float32
        np.testing.assert_array_equal(sent, plain > 0)


def test_encodings_are_observed():
    victim, mixup = toy_victim(n=2), defenses.mixup(k=2)
    encoded, _ = defenses.encode_victim(mixup.mixing, jax.random.key(1), victim)
    plain = observe(victim, RUNNING, defenses.identity, jax.random.key(0))
    problem = observe(encoded, RUNNING, mixup, jax.random.key(0))
    assert problem.known and relative_error(problem.observed, plain.observed) > 1e-3
