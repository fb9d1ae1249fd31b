"""Objectives: known answers of every distance and prior, zeros at the truth, and no NaN made or hidden."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PLAIN, QUICK, TinyNet, random_like, toy_problem, toy_victim, truth

from gi_jax.checks import InputError
from gi_jax.models import Normalize
from gi_jax.models.layers import BatchNorm, Conv, Linear
from gi_jax.objectives import (
    DISTANCES,
    BatchNormPrior,
    Candidate,
    GradientMatching,
    Objective,
    SquaredNorm,
    TotalVariation,
    total_variation,
)
from gi_jax.objectives.priors import layer_distances
from gi_jax.threat import RUNNING, THREATS, Batch, BatchNormThreat, Shared, Update

A = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([1.0, 0.0])}
B = {"w": jnp.array([[4.0, 3.0]]), "b": jnp.array([0.0, -2.0])}
ONES = {"w": 1.0, "b": 1.0}
WEIGHTS = {"w": 0.5, "b": 2.0}


@pytest.fixture(scope="module")
def batch_norm_case():
    """A victim in batch mode whose exact (biased) statistics are known, and the update at the truth."""
    victim = toy_victim(TinyNet(4), n=3)
    problem = toy_problem(victim, THREATS["exact"])
    update = jax.jit(problem.imagine, compiler_options=QUICK)(Batch(truth(victim), victim.labels))
    return victim, problem, update


# Distances between gradients.


@pytest.mark.parametrize(
    "distance, weights, expected",
    [
        ("squared", ONES, 2 + 5),
        ("squared", WEIGHTS, 0.5 * 2 + 2 * 5),
        ("absolute", ONES, 2 + 3),
        ("absolute", WEIGHTS, 0.5 * 2 + 2 * 3),
        ("cosine", ONES, 1 - 24 / np.sqrt(26 * 29)),
        ("cosine", WEIGHTS, 1 - 12 / np.sqrt((12.5 + 2) * (12.5 + 8))),
        ("cosine-per-layer", ONES, ((1 - 24 / 25) + 1) / 2),
        ("cosine-per-layer", WEIGHTS, (0.5 * (1 - 24 / 25) + 2 * 1) / 2.5),
    ],
)
def test_distances_known_answers(distance, weights, expected):
    np.testing.assert_allclose(DISTANCES[distance](A, B, weights), expected, rtol=1e-5)
    np.testing.assert_allclose(DISTANCES[distance](B, A, weights), expected, rtol=1e-5)


def test_every_distance_has_known_answers():
    assert DISTANCES.keys() == {"squared", "absolute", "cosine", "cosine-per-layer"}


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_gradient_has_no_distance_from_itself_and_some_from_others(distance):
    np.testing.assert_allclose(DISTANCES[distance](A, A, WEIGHTS), 0, atol=1e-6)
    assert DISTANCES[distance](A, B, WEIGHTS) > 0.1


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_zero_at_the_truth(batch_norm_case, distance, masked):
    _, problem, update = batch_norm_case
    problem = dataclasses.replace(problem, observed=update.gradients)
    matching = GradientMatching(distance=distance, masked=masked)
    np.testing.assert_allclose(matching(problem, None, update), 0, atol=1e-6)
    other = update._replace(factored=random_like(update.gradients))
    assert matching(problem, None, other) > 0.1


@pytest.mark.parametrize("distance", ["cosine", "cosine-per-layer"])
@pytest.mark.parametrize("scale", [1e-15, 1e-6, 7.0, 1e6, 1e15])
def test_cosines_do_not_see_the_length(distance, scale):
    longer = lambda tree: jax.tree.map(lambda leaf: scale * leaf, tree)  # noqa: E731
    expected = DISTANCES[distance](A, B, ONES)
    for a, b in ((longer(A), B), (A, longer(B)), (longer(A), longer(B))):
        np.testing.assert_allclose(DISTANCES[distance](a, b, ONES), expected, rtol=1e-5)
    np.testing.assert_allclose(DISTANCES[distance](longer(A), A, ONES), 0, atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "cosine-per-layer"])
def test_a_zero_gradient_is_at_distance_1_with_a_finite_derivative(distance):
    zero = jax.tree.map(jnp.zeros_like, A)
    for a, b in ((zero, A), (A, zero), (zero, zero)):
        value, slope = jax.value_and_grad(DISTANCES[distance])(a, b, ONES)
        assert value == 1.0
        assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(slope))


def test_a_single_zero_tensor_spoils_no_other():
    a = {"w": A["w"], "b": jnp.zeros(2)}
    value, slope = jax.value_and_grad(DISTANCES["cosine-per-layer"])(a, B, ONES)
    np.testing.assert_allclose(value, ((1 - 24 / 25) + 1) / 2, rtol=1e-5)
    assert np.all(np.isfinite(slope["w"])) and np.any(slope["w"] != 0)
    assert np.all(slope["b"] == 0)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_distance_hides_a_number_that_is_not_finite(distance, bad):
    spoiled = {"w": A["w"].at[0, 1].set(bad), "b": A["b"]}
    for a, b in ((spoiled, B), (B, spoiled)):
        assert not np.isfinite(DISTANCES[distance](a, b, ONES))


def test_masked_ignores_what_was_pruned(batch_norm_case):
    _, problem, _ = batch_norm_case
    observed = {"w": jnp.array([[3.0, 0.0]]), "b": jnp.array([0.0, 1.0])}
    problem = dataclasses.replace(problem, observed=observed)
    imagined = Update({"w": jnp.array([[3.0, 9.0]]), "b": jnp.array([-7.0, 1.0])}, {})
    for distance in DISTANCES:
        masked = GradientMatching(distance=distance, masked=True)
        np.testing.assert_allclose(masked(problem, None, imagined), 0, atol=1e-6)
        assert GradientMatching(distance=distance)(problem, None, imagined) > 0.1
        moved = imagined._replace(factored={**imagined.gradients, "b": jnp.array([-7.0, 2.0])})
        if distance != "cosine-per-layer":  # a tensor with one entry left has its sign alone
            assert masked(problem, None, moved) > 0.01


def test_layer_weights_default_to_one_and_reach_the_distance(batch_norm_case):
    _, problem, _ = batch_norm_case
    problem = dataclasses.replace(problem, observed=B)
    for distance, function in DISTANCES.items():
        plain = GradientMatching(distance=distance)(problem, None, Update(A, {}))
        np.testing.assert_allclose(plain, function(A, B, ONES), rtol=1e-6)
        weighted = GradientMatching(distance=distance, layer_weights=WEIGHTS)
        np.testing.assert_allclose(weighted(problem, None, Update(A, {})), function(A, B, WEIGHTS), rtol=1e-6)


def test_unknown_distances_suggest_the_nearest():
    with pytest.raises(InputError, match="unknown distance 'cosin': did you mean 'cosine'"):
        GradientMatching(distance="cosin")


# Total variation.


def column(values):
    """A picture of one channel whose rows are all `values`."""
    return jnp.broadcast_to(jnp.float32(values).reshape(1, 1, -1, 1), (1, len(values), len(values), 1))


def ramp(across, down, side=5):
    x = jnp.arange(side, dtype=jnp.float32)
    return (across * x.reshape(1, 1, -1, 1)) + (down * x.reshape(1, -1, 1, 1))


@pytest.mark.parametrize(
    "images, anisotropic, isotropic",
    [
        (jnp.full((2, 4, 4, 3), 0.7), 0, 0),
        (column([0, 0, 1, 1]), 1 / 3, 1 / 3),
        (column([0, 0, 1, 1]).transpose(0, 2, 1, 3), 1 / 3, 1 / 3),
        (column([0, 2, 0]), 2, 2),
        (ramp(3, 4), 7, 5),
        (ramp(-3, 4), 7, 5),
        (jnp.concatenate([ramp(3, 4), jnp.zeros((1, 5, 5, 1))]), 3.5, 2.5),
        (jnp.concatenate([ramp(3, 4), jnp.zeros((1, 5, 5, 1))], axis=-1), 3.5, 2.5),
    ],
)
def test_total_variation_known_answers(images, anisotropic, isotropic):
    np.testing.assert_allclose(total_variation(images), anisotropic, rtol=1e-6)
    np.testing.assert_allclose(total_variation(images, isotropic=True), isotropic, rtol=1e-6)
    part = TotalVariation()(None, Candidate(images), None)
    np.testing.assert_allclose(part, anisotropic, rtol=1e-6)
    part = TotalVariation(isotropic=True)(None, Candidate(images), None)
    np.testing.assert_allclose(part, isotropic, rtol=1e-6)


def test_total_variation_of_a_rectangle_counts_its_own_neighbors():
    images = np.float32(np.random.default_rng(0).random((2, 3, 6, 2)))
    expected = np.abs(np.diff(images, axis=1)).mean() + np.abs(np.diff(images, axis=2)).mean()
    np.testing.assert_allclose(total_variation(jnp.asarray(images)), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 1, 4, 3), (2, 4, 1, 3)])
def test_total_variation_is_0_along_an_axis_of_one_pixel(shape):
    images = jnp.float32(np.random.default_rng(0).random(shape))
    expected = sum(np.abs(np.diff(images, axis=axis)).mean() for axis in (1, 2) if shape[axis] > 1)
    np.testing.assert_allclose(total_variation(images), expected, rtol=1e-5)
    np.testing.assert_allclose(total_variation(images, isotropic=True), expected, rtol=1e-5)
    for isotropic in (False, True):
        assert np.isfinite(jax.grad(partial(total_variation, isotropic=isotropic))(images)).all()


def test_isotropic_lies_between_anisotropic_and_its_root_half():
    for seed in range(5):
        images = jnp.float32(np.random.default_rng(seed).random((2, 8, 8, 3)))
        down = jnp.abs(images[:, 1:, :-1] - images[:, :-1, :-1]).mean()
        across = jnp.abs(images[:, :-1, 1:] - images[:, :-1, :-1]).mean()
        isotropic = total_variation(images, isotropic=True)
        assert (down + across) / np.sqrt(2) <= isotropic <= down + across


@pytest.mark.parametrize("isotropic", [False, True])
def test_a_flat_picture_has_a_finite_derivative(isotropic):
    slope = jax.grad(lambda x: total_variation(x, isotropic=isotropic))(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("isotropic", [False, True])
def test_magnitude_does_not_see_flipped_signs(isotropic):
    generator = np.random.default_rng(0)
    images = jnp.float32(generator.standard_normal((2, 5, 5, 3)))
    flipped = images * jnp.float32(generator.choice([-1, 1], images.shape))
    of = lambda magnitude, x: TotalVariation(isotropic=isotropic, magnitude=magnitude)(None, Candidate(x), None)  # noqa: E731
    np.testing.assert_allclose(of(True, flipped), of(True, images), rtol=1e-6)
    np.testing.assert_allclose(of(True, images), of(False, jnp.abs(images)), rtol=1e-6)
    assert abs(of(False, flipped) - of(False, images)) > 1e-3


def test_squared_norm_is_a_mean():
    images = jnp.float32(np.random.default_rng(0).random((2, 4, 4, 3)))
    value = SquaredNorm()(None, Candidate(images), None)
    np.testing.assert_allclose(value, np.mean(np.square(images)), rtol=1e-6)


@pytest.mark.parametrize(
    "part", [TotalVariation(), TotalVariation(isotropic=True), TotalVariation(magnitude=True), SquaredNorm()]
)
def test_no_prior_hides_a_number_that_is_not_finite(part):
    images = jnp.ones((1, 4, 4, 3)).at[0, 1, 2, 0].set(jnp.nan)
    assert np.isnan(part(None, Candidate(images), None))


# The BatchNorm prior.


def statistics(*layers):
    names = [f"block{i}" for i in range(len(layers))]
    return {
        name: {"norm": {"mean": jnp.float32(mean), "var": jnp.float32(var)}}
        for name, (mean, var) in zip(names, layers, strict=True)
    }


OWN = statistics(([3, 4], [1, 1]), ([0, 0, 1], [2, 2, 2]))
WANTED = statistics(([0, 0], [1, 2]), ([0, 0, 0], [2, 2, 4]))


@pytest.mark.parametrize(
    "squared, first_layer, expected",
    [
        (False, 1.0, (5 + 1) + (1 + 2)),
        (False, 10.0, 10 * (5 + 1) + (1 + 2)),
        (True, 1.0, (25 + 1) + (1 + 4)),
        (True, 0.5, 0.5 * (25 + 1) + (1 + 4)),
    ],
)
def test_batch_norm_prior_known_answers(batch_norm_case, squared, first_layer, expected):
    problem = dataclasses.replace(batch_norm_case[1], statistics=WANTED)
    counted = jax.tree.map(lambda leaf: leaf, OWN)
    for layer in counted.values():
        layer["norm"]["count"] = jnp.float32(7)  # as a network reports it; no part of the distance
    prior = BatchNormPrior(squared=squared, first_layer=first_layer)
    np.testing.assert_allclose(prior(problem, None, Update(None, counted)), expected, rtol=1e-6)


class Unsorted(nn.Module):
    """The first normalization has the last name."""

    num_classes: int = 4
    normalize: Normalize = Normalize.BATCH

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = BatchNorm(self.normalize, name="stem_norm")(images)
        x = BatchNorm(self.normalize, name="Block_0")(Conv(4)(x))
        return Linear(self.num_classes)(x.mean((1, 2)))


def test_the_first_layer_is_the_one_that_is_called_first():
    problem = toy_problem(toy_victim(Unsorted()), THREATS["infer"])
    update = jax.jit(problem.imagine, compiler_options=QUICK)(Batch(truth(toy_victim(Unsorted())), jnp.eye(2, 4)))
    block, stem = layer_distances(update.statistics, problem.statistics)
    assert list(update.statistics) == ["Block_0", "stem_norm"] and problem.first_layer == 1
    prior = jax.jit(BatchNormPrior(first_layer=10.0).__call__)
    np.testing.assert_allclose(prior(problem, None, update), 10 * stem + block, rtol=1e-5)


def test_batch_norm_prior_is_zero_at_the_truth_with_exact_statistics(batch_norm_case):
    victim, problem, update = batch_norm_case
    for squared in (False, True):
        prior = BatchNormPrior(squared=squared)
        assert prior(problem, None, update) < 1e-6
        unbiased = toy_problem(victim, THREATS["exact-reference"])
        assert prior(unbiased, None, update) > 1e-6
        assert prior(toy_problem(victim, THREATS["infer"]), None, update) > 0.1


def test_batch_norm_prior_has_a_finite_derivative_at_its_zero():
    def distance(own):
        return sum(layer_distances(own, WANTED))

    value, slope = jax.value_and_grad(distance)(WANTED)
    assert value == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(slope))


def test_layer_distances_come_in_the_order_of_the_tree(batch_norm_case):
    _, problem, update = batch_norm_case
    assert list(update.statistics) == ["norm0", "norm1"]
    changed = {name: jax.tree.map(lambda leaf: leaf + 1, layer) for name, layer in problem.statistics.items()}
    first, second = layer_distances(update.statistics, {**problem.statistics, "norm0": changed["norm0"]})
    np.testing.assert_allclose([first, second], [2 * np.sqrt(4), 0], atol=1e-5)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("what", ["mean", "var"])
def test_batch_norm_prior_does_not_hide_nan(squared, what):
    own = statistics(([np.nan if what == "mean" else 0, 4], [1, np.nan if what == "var" else 1]))
    assert np.isnan(layer_distances(own, statistics(([0, 0], [1, 2])), squared=squared)[0])


def test_batch_norm_prior_says_what_it_lacks(batch_norm_case):
    victim, _, update = batch_norm_case
    nothing = BatchNormThreat(client=THREATS["infer"].client, shared=Shared.NOTHING, adversary="batch")
    with pytest.raises(InputError, match="BatchNorm prior: the threat model shares no statistics"):
        BatchNormPrior()(toy_problem(victim, nothing), None, update)
    for model in ("lenet", PLAIN):
        problem = toy_problem(toy_victim(model), RUNNING)
        with pytest.raises(InputError, match="BatchNorm prior: this network reports no BatchNorm statistics"):
            BatchNormPrior()(problem, None, Update(None, {}))
    own_numbers = dataclasses.replace(problem, statistics={"offset": jnp.zeros(3)})
    with pytest.raises(InputError, match="BatchNorm prior: this network reports no BatchNorm statistics"):
        BatchNormPrior()(own_numbers, None, Update(None, {}))


# The weighted sum.


def toy_objective(**weights):
    parts = {"matching": GradientMatching(), "tv": TotalVariation(), "norm": SquaredNorm()}
    parts = {name: dataclasses.replace(part, weight=weights[name]) for name, part in parts.items()}
    return Objective(parts=parts)


@pytest.fixture(scope="module")
def plain_case():
    victim = toy_victim(PLAIN)
    return toy_problem(victim, RUNNING), Candidate(random_like(truth(victim)))


def test_objective_is_the_weighted_sum_of_its_named_parts(plain_case):
    problem, candidate = plain_case
    objective = toy_objective(matching=2.0, tv=0.5, norm=0.1)
    value, parts = objective(problem, candidate)
    assert parts.keys() == {"matching", "tv", "norm"}
    update = problem.imagine(Batch(candidate.images, problem.labels))
    np.testing.assert_allclose(parts["matching"], GradientMatching()(problem, candidate, update), rtol=1e-5)
    np.testing.assert_allclose(parts["tv"], total_variation(candidate.images), rtol=1e-6)
    np.testing.assert_allclose(parts["norm"], np.mean(np.square(candidate.images)), rtol=1e-6)
    expected = 2 * parts["matching"] + 0.5 * parts["tv"] + 0.1 * parts["norm"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_objective_is_zero_at_the_truth_and_only_there(plain_case):
    problem, candidate = plain_case
    images = truth(toy_victim(PLAIN))
    objective = toy_objective(matching=1.0, tv=0.0, norm=0.0)
    np.testing.assert_allclose(objective(problem, Candidate(images))[0], 0, atol=1e-6)
    assert objective(problem, candidate)[0] > 0.01


def test_weights_are_numbers_and_the_rest_is_the_program(plain_case):
    compiled = jax.jit(lambda objective, candidate: objective(plain_case[0], candidate)[0])
    candidate = plain_case[1]
    first = compiled(toy_objective(matching=1.0, tv=0.1, norm=0.0), candidate)
    second = compiled(toy_objective(matching=1.0, tv=0.3, norm=0.0), candidate)
    assert compiled._cache_size() == 1 and second > first
    other = Objective(parts={"matching": GradientMatching(distance="squared")})
    compiled(other, candidate)
    assert compiled._cache_size() == 2


def test_weights_can_be_swept(plain_case):
    problem, candidate = plain_case
    swept = toy_objective(matching=1.0, tv=jnp.array([0.0, 0.1, 3.0]), norm=0.0)
    axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, swept)
    together, _ = jax.vmap(lambda objective: objective(problem, candidate), in_axes=(axes,), out_axes=(0, None))(swept)
    alone = [toy_objective(matching=1.0, tv=tv, norm=0.0)(problem, candidate)[0] for tv in (0.0, 0.1, 3.0)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


# What is optimized.


def test_a_candidate_takes_its_own_labels_or_the_problems(plain_case):
    problem, candidate = plain_case
    np.testing.assert_array_equal(candidate.batch(problem).labels, problem.labels)
    logits = jnp.array([[0.0, np.log(3), 0, 0], [50, 0, 0, 0]])
    own = candidate._replace(label_logits=logits).batch(problem)
    np.testing.assert_allclose(own.labels, [[1 / 6, 1 / 2, 1 / 6, 1 / 6], [1, 0, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(own.images, candidate.images)


def test_unknown_labels_that_nobody_optimizes_are_an_error(plain_case):
    problem, candidate = plain_case
    with pytest.raises(InputError, match="labels are unknown"):
        candidate.batch(dataclasses.replace(problem, labels=None))


def test_a_part_that_is_no_pytree_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Bright:
        weight: float = 1.0

        def __call__(self, problem, candidate, update):
            return jnp.mean(candidate.images)

    with pytest.raises(InputError, match="register_dataclass"):
        Objective(parts={"bright": Bright()})
    registered = jax.tree_util.register_dataclass(Bright)
    assert jax.tree.leaves(Objective(parts={"bright": registered(weight=2.0)})) == [2.0]
