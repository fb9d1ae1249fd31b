"""Defenses that look at the client's step: against plain loops over examples and features, and what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    HEADED,
    PLAIN,
    QUICK,
    TinyNet,
    as_float64,
    enable_x64,
    relative_error,
    toy_problem,
    toy_victim,
    tree_norm,
    truth,
)

from gi_jax.checks import InputError
from gi_jax.defenses import clip_examples, parse
from gi_jax.defenses.representation import leakage_scores
from gi_jax.models import Normalize
from gi_jax.threat import RUNNING, THREATS, Batch, ClientStep

TINY = TinyNet(4, smooth=False)
once = partial(jax.jit, compiler_options=QUICK)


def step_of(victim, normalize=Normalize.GIVEN):
    """The client's step on a toy victim."""
    batch = Batch(truth(victim), victim.labels)
    return ClientStep(victim.network, normalize, victim.params, victim.batch_stats, batch)


def alone(client, number):
    """The same step on one example."""
    images, labels = client.batch
    return client._replace(batch=Batch(images[number : number + 1], labels[number : number + 1]))


# Clipping of each example.


@pytest.mark.parametrize("model, n", [(TINY, 3), (HEADED, 4)])
def test_clipping_per_example_agrees_with_a_loop(model, n):
    victim = toy_victim(model, n=n)
    client = step_of(victim)
    gradient_of = once(lambda images, labels: client._replace(batch=Batch(images, labels)).update().gradients)
    gradients = [gradient_of(*alone(client, number).batch) for number in range(len(victim.labels))]
    norms = sorted(float(tree_norm(gradient)) for gradient in gradients)
    bound = (norms[0] + norms[1]) / 2  # one example is short enough, the others are not
    factors = [min(1, bound / float(tree_norm(gradient))) for gradient in gradients]
    assert factors.count(1) == 1
    clipped = [jax.tree.map(lambda leaf, f=f: f * leaf, g) for f, g in zip(factors, gradients, strict=True)]
    expected = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *clipped)
    found = toy_problem(victim, RUNNING, parse(f"clip_per_example:norm={bound}")).observed
    assert relative_error(found, expected) < 1e-5
    assert float(tree_norm(found)) <= bound


def test_clipping_nothing_is_the_plain_gradient():
    victim = toy_victim(HEADED, n=4)
    found = toy_problem(victim, RUNNING, parse("clip_per_example:norm=1e6")).observed
    assert relative_error(found, toy_problem(victim, RUNNING).observed) < 1e-5


def test_the_bound_may_be_traced():
    client = step_of(toy_victim(HEADED))
    clip = lambda norm: clip_examples(norm).update(None, (), client=client)[0]  # noqa: E731
    bounds = jnp.array([1e-3, 1e-2, 0.1])
    lengths = once(jax.vmap(lambda norm: tree_norm(clip(norm))))(bounds)
    assert np.all(lengths <= bounds * (1 + 1e-5)) and np.all(np.diff(lengths) > 0)


@pytest.mark.parametrize("text", ["clip_per_example:norm=1", "soteria:p=0.5"])
def test_without_the_clients_step_there_is_no_defense(text):
    transformation = parse(text)(jax.random.key(0))
    gradients = {"head": {"kernel": jnp.ones((3, 2))}}
    with pytest.raises(TypeError, match="'client'"):
        transformation.update(gradients, transformation.init(gradients))


@pytest.mark.parametrize("threat", ["exact", "infer"])
def test_examples_of_a_batch_with_its_own_statistics_cannot_be_told_apart(threat):
    with pytest.raises(InputError, match="gradients per example with batch statistics"):
        toy_problem(toy_victim(TINY, n=3), THREATS[threat], parse("clip_per_example:norm=1"))


def test_without_batchnorm_examples_can_be_told_apart_whatever_the_client_is_told():
    client = step_of(toy_victim("mlp", n=2), Normalize.BATCH)
    each, mean = once(lambda: (client.gradient_per_example(), client.update().gradients))()
    assert relative_error(jax.tree.map(lambda leaf: leaf.mean(0), each), mean) < 1e-5


def test_statistics_of_the_batch_are_seen_where_no_running_ones_were_kept():
    client = step_of(toy_victim(TINY, n=3), Normalize.BATCH)._replace(batch_stats={})
    with pytest.raises(InputError, match="gradients per example with batch statistics"):
        client.gradient_per_example()


# Soteria.


def scores_by_loops(client):
    """|r_j| / ||dr_j / dx||, with the head set to pass one feature on at a time: float64 [n, d]."""
    head = client.params["head"]

    def feature(images, column):
        kernel = jnp.zeros_like(head["kernel"]).at[:, 0].set(column)
        params = {**client.params, "head": {"kernel": kernel, "bias": 0 * head["bias"]}}
        return client.network(params, client.batch_stats, images, client.normalize)[0][:, 0]

    passed_on = once(feature)
    derivative = once(jax.grad(lambda images, column: jnp.sum(feature(images, column))))
    scores = np.zeros((len(client.batch.labels), len(head["kernel"])))
    for j, column in enumerate(np.eye(scores.shape[1])):
        r, gradients = passed_on(client.batch.images, column), derivative(client.batch.images, column)
        for i in range(len(scores)):
            norm = np.linalg.norm(gradients[i])
            scores[i, j] = 0 if r[i] == 0 else abs(r[i]) / norm
    return scores


@pytest.mark.parametrize(
    "model, n, normalize",
    [
        (HEADED, 1, Normalize.GIVEN),
        (HEADED, 5, Normalize.GIVEN),
        (TINY, 2, Normalize.GIVEN),
        (TINY, 2, Normalize.BATCH),
    ],
)
def test_scores_are_those_of_a_loop(model, n, normalize):
    with enable_x64(True):
        client = step_of(as_float64(toy_victim(model, n=n)), normalize)
        expected = scores_by_loops(client)
        found = once(lambda batch: leakage_scores(client._replace(batch=batch)))(client.batch)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert expected.size / 4 < np.count_nonzero(expected) < expected.size  # of ReLU, some features are inactive


@pytest.mark.parametrize("p, dropped", [(0.5, 8), (0.25, 4), (0.9, 14), (0.01, 0)])
def test_the_features_that_give_most_away_are_dropped(p, dropped):
    victim = toy_victim(HEADED, n=5)
    plain = toy_problem(victim, RUNNING).observed
    found = toy_problem(victim, RUNNING, parse(f"soteria:p={p}")).observed
    scores = scores_by_loops(step_of(victim)).mean(0)
    worst = np.argsort(-scores)[:dropped]
    expected = np.array(plain["head"]["kernel"])
    expected[worst] = 0
    np.testing.assert_allclose(found["head"]["kernel"], expected, rtol=1e-5, atol=1e-7)
    for layer, name in (("head", "bias"), ("block0", "kernel"), ("block0", "bias")):
        np.testing.assert_allclose(found[layer][name], plain[layer][name], rtol=1e-5, atol=1e-7)


def test_dropping_nothing_is_the_identity():
    victim = toy_victim(HEADED)
    plain, found = (toy_problem(victim, RUNNING, parse(text)).observed for text in ("none", "soteria:p=0"))
    assert relative_error(found, plain) < 1e-6


def test_a_network_without_a_head_is_told_in_one_line():
    with pytest.raises(InputError, match="soteria needs .* at head/kernel .*; this network has none") as error:
        toy_problem(toy_victim(PLAIN), RUNNING, parse("soteria:p=0.5"))
    assert "\n" not in str(error.value)


def test_soteria_works_on_a_gradient_that_was_changed_before():
    victim = toy_victim(HEADED)
    found = toy_problem(victim, RUNNING, parse("sign + soteria:p=0.5")).observed
    assert set(np.unique(found["head"]["kernel"])) <= {-1, 0, 1}
    assert np.sum(np.all(found["head"]["kernel"] == 0, axis=1)) >= 8


# DP-SGD.


def test_private_gradients_without_noise_are_clipped_gradients():
    victim = toy_victim(HEADED, n=4)
    clipped, private = (
        toy_problem(victim, RUNNING, parse(text)).observed
        for text in ("clip_per_example:norm=0.1", "dpsgd:clip=0.1,sigma=0")
    )
    assert relative_error(private, clipped) < 1e-6


def test_the_noise_of_private_gradients_is_sigma_clip_over_n():
    victim = toy_victim(HEADED, n=4)
    clip, sigma = 0.5, 3.0
    quiet = toy_problem(victim, RUNNING, parse(f"dpsgd:clip={clip},sigma=0")).observed
    loud = parse(f"dpsgd:clip={clip},sigma={sigma}")
    keys = jax.random.split(jax.random.key(0), 50)
    problems = [toy_problem(victim, RUNNING, loud, key=key) for key in keys]
    noises = [jax.tree.map(jnp.subtract, problem.observed, quiet) for problem in problems]
    noise = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(noises)])
    scale = sigma * clip / 4
    assert noise.size > 100_000 and abs(noise.mean()) < 6 * scale / np.sqrt(noise.size)
    np.testing.assert_allclose(noise.std(), scale, rtol=6 / np.sqrt(2 * noise.size))
    (clipped, noisy) = problems[0].known
    np.testing.assert_allclose([clipped.bound, noisy.scale], [clip, scale], rtol=1e-6)


@pytest.mark.parametrize("threat", [RUNNING, THREATS["exact"]])
def test_private_gradients_refuse_batch_norm_whatever_it_normalizes_with(threat):
    with pytest.raises(InputError, match="dpsgd with BatchNorm: .*; take a network with GroupNorm") as error:
        toy_problem(toy_victim(TINY, n=2), threat, parse("dpsgd:clip=1,sigma=1"))
    assert "\n" not in str(error.value)


def test_private_gradients_of_a_group_normalized_network():
    victim = toy_victim("convnet_group", n=2)
    problem = toy_problem(victim, RUNNING, parse("dpsgd:clip=0.01,sigma=0"))
    assert 0 < float(tree_norm(problem.observed)) <= 0.01


def test_padding_has_no_gradient():
    client = step_of(toy_victim(HEADED, n=4))
    chosen = jnp.array([True, True, False, False])
    padded = client._replace(batch=client.batch._replace(labels=client.batch.labels * chosen[:, None]))
    each = once(padded.gradient_per_example)()
    assert all(np.all(leaf[2:] == 0) and np.any(leaf[:2] != 0) for leaf in jax.tree.leaves(each))
