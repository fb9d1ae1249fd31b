"""The closed form of a linear layer: exact for one input, and refused where it is not."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PLAIN, toy_problem, toy_victim, truth

from gi_jax import attacks
from gi_jax.attacks.analytic import FirstLayer, input_from_all_rows, input_from_row
from gi_jax.checks import InputError
from gi_jax.models.layers import Linear
from gi_jax.threat import RUNNING

UNITS = 6


def gradients(inputs, scale=1.0):
    """Gradients of kernel and bias of a linear layer under a loss that is no cross-entropy; a third of units is off."""
    draw = np.random.default_rng(1).standard_normal
    kernel, bias = jnp.float32(draw((inputs.shape[1], UNITS))), jnp.float32(draw(UNITS))
    on = jnp.float32(np.arange(UNITS) % 3 > 0)[None]

    def loss(kernel, bias):
        return scale * jnp.sum(on * jnp.sin(inputs @ kernel + bias[None]) ** 3)

    return jax.grad(loss, argnums=(0, 1))(kernel, bias)


def draw_inputs(n, size=20):
    return jnp.float32(np.random.default_rng(0).standard_normal((n, size)))


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e20])
def test_the_input_of_a_linear_layer_is_exact(scale):
    inputs = draw_inputs(1)
    kernel, bias = gradients(inputs, scale)
    np.testing.assert_allclose(input_from_row(kernel, bias, 1), inputs[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(input_from_all_rows(kernel, bias), inputs[0], rtol=1e-5, atol=1e-5)


def test_pruned_rows_still_give_the_input_where_one_entry_is_left():
    inputs = draw_inputs(1)
    kernel, bias = gradients(inputs)
    pruned = jnp.where(jnp.abs(kernel) >= jnp.median(jnp.abs(kernel)), kernel, 0.0)
    left = np.asarray(jnp.any(pruned != 0, axis=1))
    assert 10 < left.sum() < len(left)
    found = np.asarray(input_from_all_rows(pruned, bias, dropped=True))
    np.testing.assert_allclose(found[left], inputs[0][left], rtol=1e-4)
    np.testing.assert_array_equal(found[~left], 0)


def test_all_rows_stand_noise_better_than_one():
    inputs = draw_inputs(1)
    kernel, bias = gradients(inputs)
    noisy = kernel + 0.1 * jnp.float32(np.random.default_rng(2).standard_normal(kernel.shape))
    one = max(range(UNITS), key=lambda row: abs(bias[row]))
    errors = [
        jnp.linalg.norm(found - inputs[0])
        for found in (input_from_all_rows(noisy, bias), input_from_row(noisy, bias, one))
    ]
    assert errors[0] < errors[1]


def test_a_batch_gives_a_mixture_of_its_inputs():
    inputs = draw_inputs(2)
    kernel, bias = gradients(inputs)
    mixture = np.asarray(input_from_all_rows(kernel, bias))
    coefficients, residual, *_ = np.linalg.lstsq(np.asarray(inputs).T, mixture, rcond=None)
    assert residual < 1e-9 and np.all(np.abs(coefficients) > 1e-2)


def test_a_layer_without_gradient_gives_no_number():
    kernel, bias = jnp.zeros((4, 3)), jnp.zeros(3)
    assert np.all(np.isnan(input_from_all_rows(kernel, bias)))
    assert np.all(np.isnan(input_from_row(kernel, bias, 0)))


def test_the_attack_recovers_the_picture_of_a_perceptron():
    victim = toy_victim("mlp", n=1)
    found = attacks.reconstruct(attacks.create("phong"), toy_problem(victim, RUNNING), jax.random.key(0))
    np.testing.assert_allclose(found.images, victim.images, atol=1e-5)
    assert found.loss < 1e-5


def test_it_is_a_start_for_any_other_attack():
    victim = toy_victim("mlp", n=1)
    attack = dataclasses.replace(attacks.create("inverting_gradients", tv=0.0, num_steps=1), initialize=FirstLayer())
    start = attack.initialize(jax.random.key(0), toy_problem(victim, RUNNING))
    np.testing.assert_allclose(start, truth(victim), atol=1e-4)
    assert attacks.reconstruct(attack, toy_problem(victim, RUNNING), jax.random.key(0)).loss < 1e-5


class Encoder(nn.Module):
    """A linear layer on the picture whose name comes after that of the last one."""

    num_classes: int
    width: int = 16

    @nn.compact
    def __call__(self, images):
        x = nn.sigmoid(Linear(self.width, name="encoder")(images.reshape(images.shape[0], -1)))
        return Linear(self.num_classes, name="classifier")(x)


def test_the_first_layer_is_found_by_its_shape():
    victim = toy_victim(Encoder(4), n=1)
    found = attacks.reconstruct(attacks.create("phong"), toy_problem(victim, RUNNING), jax.random.key(0))
    np.testing.assert_allclose(found.images, victim.images, atol=1e-5)


def test_the_closed_form_of_a_plain_function_is_taken_by_hand():
    victim = toy_victim(PLAIN, n=1)
    sent = toy_problem(victim, RUNNING).observed
    found = attacks.input_from_all_rows(sent["w1"], sent["b1"])
    np.testing.assert_allclose(found.reshape(victim.images.shape), truth(victim), atol=1e-4)


class NoBias(nn.Module):
    """A linear first layer without bias."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        return Linear(self.num_classes, use_bias=False, name="head")(images.reshape(images.shape[0], -1))


def dropped(problem):
    """The problem with the gradient of the first bias set to zero."""
    block = {**problem.observed["block0"], "bias": jnp.zeros_like(problem.observed["block0"]["bias"])}
    return dataclasses.replace(problem, observed={**problem.observed, "block0": block})


@pytest.mark.parametrize(
    "victim, change, message",
    [
        (("mlp", 2), lambda problem: problem, "batch of 2.*mixtures of the pictures; expected batch size 1"),
        (("lenet", 1), lambda problem: problem, r"block0/kernel has shape \(5, 5, 3, 12\); expected a linear layer"),
        ((PLAIN, 1), lambda problem: problem, "no tensor called kernel; apply gi_jax.attacks.input_from_all_rows"),
        ((Encoder(4, 192), 1), lambda problem: problem, "classifier/kernel and encoder/kernel take 192 numbers"),
        ((NoBias(4), 1), lambda problem: problem, "there is no head/bias"),
        (("mlp", 1), dropped, "^the first bias has gradient zero everywhere"),
    ],
)
def test_problems_that_have_no_closed_form(victim, change, message):
    model, n = victim
    problem = change(toy_problem(toy_victim(model, n=n), RUNNING))
    with pytest.raises(InputError, match=message):
        attacks.reconstruct(attacks.create("phong"), problem, jax.random.key(0))


def test_a_victim_without_a_gradient_of_the_first_bias_fails_alone():
    victim = toy_victim("mlp", n=1)
    problem = toy_problem(victim, RUNNING)
    attack, key = attacks.create("phong"), jax.random.key(0)
    (found,), (lost,) = attacks.reconstruct_all(attack, [problem, dropped(problem)], key)
    np.testing.assert_allclose(found.images, victim.images, atol=1e-5)
    assert np.isnan(lost.images).all() and lost.loss == np.inf and not lost.alive.any()
    with pytest.raises(InputError, match="^the first bias has gradient zero everywhere"):
        attacks.reconstruct_all(attack, [dropped(problem)] * 2, key)
