"""R-GAP: it recovers a picture through its networks, and says beforehand where it cannot."""

import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import QUICK, toy_problem, toy_victim, tree_norm, truth

from gi_jax import attacks, defenses
from gi_jax.attacks import rgap
from gi_jax.checks import InputError
from gi_jax.metrics import psnr
from gi_jax.models import Chain, Stage, create
from gi_jax.models.conv import convolve_patches
from gi_jax.threat import RUNNING, Batch

SMALL = (Stage(12, 4, 2, 2), Stage(24, 3, 2, 1), Stage(24, 3, 1, 1))
NARROW = (Stage(12, 4, 2, 2), Stage(2, 3, 2, 1), Stage(24, 3, 1, 1))
"""The second convolution has 2 x 9 outputs and 216 weights for 300 inputs (of a picture of 8 x 8)."""


@lru_cache
def victim_of(num_classes=4, side=8, seed=0, **options):
    network = create("rgap_cnn", num_classes, **options)
    return toy_victim(network, n=1, side=side, num_classes=num_classes, seed=seed)


def recovered(victim):
    problem = toy_problem(victim, RUNNING)
    return problem, rgap.recover(problem.network, problem.params, problem.observed, problem.image_shape)


# Recovery.


@pytest.mark.parametrize("side, options", [(8, {"stages": SMALL}), (32, {})])
def test_a_picture_is_recovered_through_the_network(side, options):
    victim = victim_of(side=side, **options)
    found = attacks.reconstruct(attacks.create("rgap"), toy_problem(victim, RUNNING), jax.random.key(0))
    assert psnr(found.images, victim.images)[0] > 60  # the project asks for 40
    assert found.loss < 1e-5 and found.alive.all()


def test_a_picture_is_recovered_through_a_logistic_output_with_both_roots():
    # A seed at which the margin is positive, so that there are two roots.
    victim = next(
        v for v in (victim_of(2, seed=s, stages=SMALL, logistic=True) for s in range(20)) if margin_of(v) > 0.0
    )
    problem, solutions = recovered(victim)
    assert sorted((found.sign, round(found.margin, 4)) for found in solutions) == sorted(
        (sign, round(margin, 4)) for margin in {found.margin for found in solutions} for sign in (-1, 1)
    )
    right, twin = sorted((s for s in solutions if s.residual < 1e-4), key=lambda found: found.margin)
    assert (right.sign, twin.sign) == (-1, -1)  # class 0
    np.testing.assert_allclose(right.margin, margin_of(victim), rtol=1e-3)
    np.testing.assert_allclose(right.images, truth(victim), atol=1e-3)
    assert all(found.residual > 0.1 for found in solutions if found.sign == 1)
    # The other root is a picture too: a multiple of the first, with the very same gradient.
    factor = np.vdot(twin.images, right.images) / np.vdot(right.images, right.images)
    np.testing.assert_allclose(twin.images, factor * right.images, rtol=1e-3, atol=1e-3 * factor)
    assert factor > 2
    imagined = jax.jit(problem.imagine, compiler_options=QUICK)(Batch(jnp.float32(twin.images), problem.labels))
    difference = jax.tree.map(lambda a, b: a - b, imagined.gradients, problem.observed)
    assert tree_norm(difference) < 1e-3 * tree_norm(problem.observed)
    # Of the two, the attack takes the one that lies among pictures.
    found = attacks.reconstruct(attacks.create("rgap"), problem, jax.random.key(0))
    assert psnr(found.images, victim.images)[0] > 60


def margin_of(victim):
    """y m of a logistic output: class 0 has y = -1 and logit -m/2."""
    logits, _ = victim.network(victim.params, {}, truth(victim), RUNNING.client)
    return float(logits[0, 0] - logits[0, 1])


@pytest.mark.parametrize(
    "product, count", [(3.0, 1), (1e-9, 1), (0.0, 1), (-1e-9, 2), (-0.2, 2), (-0.27, 2), (-0.28, 0)]
)
def test_margins_are_all_the_roots(product, count):
    found = rgap.margins(product)
    assert len(found) == count
    for margin in found:
        np.testing.assert_allclose(-margin / (1 + np.exp(margin)), product, rtol=1e-6, atol=1e-12)
    if count == 2:
        assert found[0] < 1.2785 < found[1]


def test_noise_leaves_a_residual_and_a_loss():
    problem = toy_problem(victim_of(stages=SMALL), RUNNING, defenses.parse("gaussian:sigma=0.01"))
    (found,) = rgap.recover(problem.network, problem.params, problem.observed, problem.image_shape)
    assert found.residual > 0.01
    assert attacks.reconstruct(attacks.create("rgap"), problem, jax.random.key(0)).loss > 0.01


# Analysis.


def dense_system(kernel, cotangent, shape, stage):
    """Both kinds of constraints as one matrix [equations, unknowns], by differentiating the convolution."""

    def output(x, kernel):
        return convolve_patches(x.reshape(1, *shape), kernel, stage.stride, stage.padding)

    def constraints(x):
        values, back = jax.vjp(lambda kernel: output(x, kernel), kernel)
        (gradient,) = back(cotangent.reshape(values.shape))
        return values.reshape(-1), gradient.reshape(-1)

    return [np.asarray(part, np.float64) for part in jax.jacfwd(constraints)(jnp.zeros(np.prod(shape)))]


def test_the_system_is_that_of_the_convolution_and_its_gradient():
    network = create("rgap_cnn", 4, stages=SMALL)
    victim = victim_of(stages=SMALL)
    _, layers = rgap._chain(network, victim.params, (1, 8, 8, 3))
    shape = (8, 8, 3)
    for layer, stage in zip(layers, SMALL, strict=True):
        cotangent = np.random.default_rng(0).standard_normal((len(layer.patches), stage.features))
        kernel = victim.params[layer.name]["kernel"]
        weight_rows, gradient_rows = dense_system(kernel, jnp.float32(cotangent), shape, stage)
        matrix, balance = rgap._normal_matrix(layer, cotangent)
        expected = weight_rows.T @ weight_rows + balance * gradient_rows.T @ gradient_rows
        np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        system = np.concatenate([weight_rows, np.sqrt(balance) * gradient_rows])
        analysis = rgap._analyze(layer, cotangent)
        assert analysis.weight_constraints + analysis.gradient_constraints == len(system)
        assert analysis.unknowns == system.shape[1]
        exact = np.linalg.cond(system)
        assert exact / 10 < analysis.condition < exact * 10  # LAPACK estimates it in the 1-norm
        shape = (int(len(layer.patches) ** 0.5),) * 2 + (stage.features,)


def test_every_layer_of_the_papers_network_can_be_inverted():
    victim = victim_of(side=32)
    layers = rgap.analyze(victim.network, victim.params, (1, 32, 32, 3))
    assert [layer.name for layer in layers] == [f"block{number}" for number in (5, 4, 3, 2, 1, 0)]
    assert not any(layer.fails for layer in layers)


def test_the_failing_layer_is_named_before_and_during_the_recursion():
    victim = victim_of(stages=NARROW)
    problem = toy_problem(victim, RUNNING)
    layers = rgap.analyze(problem.network, problem.params, problem.image_shape)
    assert [layer.name for layer in layers if layer.fails] == ["block1"]
    (failing,) = (layer for layer in layers if layer.fails)
    assert failing.weight_constraints + failing.gradient_constraints < failing.unknowns
    with pytest.raises(InputError, match=r"R-GAP will fail at block1: 18 \+ 216 equations for 300 unknowns"):
        attacks.reconstruct(attacks.create("rgap"), problem, jax.random.key(0))
    with pytest.raises(InputError, match="R-GAP fails at block1: its input is not determined"):
        rgap.recover(problem.network, problem.params, problem.observed, problem.image_shape)


def test_enough_equations_by_count_are_not_enough_where_they_miss_inputs():
    victim = victim_of(stages=(Stage(24, 1, 2, 0), *SMALL[1:]))  # three of four pixels are never read
    last, _, first = rgap.analyze(victim.network, victim.params, (1, 8, 8, 3))
    assert first.weight_constraints + first.gradient_constraints > first.unknowns
    assert first.name == "block0" and first.fails and not last.fails


# Refusals.


@pytest.mark.parametrize(
    "model, n, message",
    [("lenet", 1, "such as the model rgap_cnn"), (Chain(4, stages=SMALL), 2, "batch of 2.*mixture")],
)
def test_networks_and_batches_that_cannot_be_walked_back(model, n, message):
    with pytest.raises(InputError, match=message):
        attacks.reconstruct(attacks.create("rgap"), toy_problem(toy_victim(model, n=n), RUNNING), jax.random.key(0))


def test_more_unknowns_than_memory_holds_are_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(rgap, "MOST_UNKNOWNS", 250)
    monkeypatch.setattr(rgap, "analyze", None)
    with pytest.raises(InputError, match=r"R-GAP at block1: an input of 5 x 5 x 12 is 300 unknowns.*image_size"):
        attacks.reconstruct(attacks.create("rgap"), toy_problem(victim_of(stages=SMALL), RUNNING), jax.random.key(0))
    network = create("rgap_cnn", 4)
    with pytest.raises(InputError, match=r"R-GAP at block0: an input of 224 x 224 x 3 is 150528 unknowns.* 169 GiB"):
        rgap._check_sizes(network, (1, 224, 224, 3))


@pytest.mark.parametrize("slope", [0.0, -0.2])
def test_activations_that_are_not_one_to_one_are_refused(slope):
    problem = toy_problem(victim_of(stages=SMALL, slope=slope), RUNNING)
    with pytest.raises(InputError, match=f"slope={slope:g}.*expected a slope above 0"):
        attacks.reconstruct(attacks.create("rgap"), problem, jax.random.key(0))


@pytest.mark.parametrize("error", [np.linalg.LinAlgError("singular"), ValueError("infs"), MemoryError("full")])
def test_a_victim_that_fails_spoils_no_other(error, monkeypatch):
    victim = victim_of(stages=SMALL)
    problem, recover = toy_problem(victim, RUNNING), rgap.recover
    silent = {**problem.observed, "head": jax.tree.map(jnp.zeros_like, problem.observed["head"])}

    def failing(network, params, observed, shape):
        if not np.any(observed["head"]["bias"]):
            raise error
        return recover(network, params, observed, shape)

    monkeypatch.setattr(rgap, "recover", failing)
    problems = [problem, dataclasses.replace(problem, observed=silent)]
    (found,), (lost,) = attacks.reconstruct_all(attacks.create("rgap"), problems, jax.random.key(0))
    assert psnr(found.images, victim.images)[0] > 60
    assert np.all(np.isnan(lost.images)) and lost.loss == np.inf


def test_heads_without_an_answer_are_named():
    problem = toy_problem(victim_of(stages=SMALL), RUNNING)
    silent = {**problem.observed, "head": jax.tree.map(jnp.zeros_like, problem.observed["head"])}
    with pytest.raises(InputError, match="R-GAP fails at head: its bias has gradient zero"):
        rgap.recover(problem.network, problem.params, silent, problem.image_shape)
    # In the attack it is a lane that breaks.
    found = attacks.reconstruct(
        attacks.create("rgap"), dataclasses.replace(problem, observed=silent), jax.random.key(0)
    )
    assert not found.alive.any() and found.loss == np.inf
    victim = victim_of(2, stages=SMALL, logistic=True)
    problem = toy_problem(victim, RUNNING)
    opposed = jax.tree.map(lambda leaf: -1e3 * leaf, problem.params["head"])
    with pytest.raises(InputError, match="R-GAP fails at head: no output has this gradient"):
        rgap.recover(problem.network, problem.params, {**problem.observed, "head": opposed}, problem.image_shape)


def test_a_logistic_output_is_for_two_classes():
    with pytest.raises(InputError, match="logistic output with 3 classes: expected 2"):
        create("rgap_cnn", 3, logistic=True).init(jax.random.key(0), (8, 8, 3))
