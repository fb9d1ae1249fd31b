"""Secure aggregation and views of a round: what cancels, what is hidden, and what an attack on a sum is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PLAIN, QUICK, TinyNet, relative_error, toy_problem, toy_victim, truth
from scipy import stats

from gi_jax import attacks, defenses
from gi_jax.checks import InputError
from gi_jax.defenses import encode_victim
from gi_jax.defenses import secure_aggregation as secure
from gi_jax.experiments.attack import run_attack
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.spec import AttackSpec
from gi_jax.objectives import BatchNormPrior, Candidate, GradientMatching, LabelConsistency
from gi_jax.threat import RUNNING, THREATS, VIEWS, Batch, Mixed, check_problem, look
from gi_jax.threat.views import average

TINY = TinyNet(4)
SHAPES = {"a": (7, 3), "b": {"c": (50,)}}


def updates(count, seed=0):
    """One small update a client."""
    draw = np.random.default_rng(seed).standard_normal
    fill = lambda shape: jnp.float32(draw(shape))  # noqa: E731
    return [jax.tree.map(fill, SHAPES, is_leaf=lambda node: isinstance(node, tuple)) for _ in range(count)]


def total_of(encoded):
    """The sum modulo 2^32, in wide integers."""
    return jax.tree.map(lambda *leaves: sum(np.asarray(leaf, np.uint64) for leaf in leaves) % 2**32, *encoded)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# The protocol.


@pytest.mark.parametrize("clients", [2, 3, 6])
def test_masks_cancel_exactly_in_the_sum(clients):
    seeds = secure.agree_on_seeds(jax.random.key(0), clients)
    encoded = [secure.encode(update) for update in updates(clients)]
    sent = [secure.mask(one, client, seeds) for client, one in enumerate(encoded)]
    assert_equal(secure.unmask(secure.add(sent), range(clients), seeds), total_of(encoded))


@pytest.mark.parametrize("survivors", [(0, 1, 2, 4), (1, 3), (4, 2, 0)])
def test_clients_that_drop_out_after_the_seeds_were_agreed_on_do_no_harm(survivors):
    seeds = secure.agree_on_seeds(jax.random.key(1), 5)
    encoded = [secure.encode(update) for update in updates(5)]
    sent = [secure.mask(encoded[client], client, seeds) for client in survivors]
    expected = total_of([encoded[client] for client in survivors])
    assert_equal(secure.unmask(secure.add(sent), survivors, seeds), expected)
    # Taken for complete, the sum is still masked.
    wrong = secure.unmask(secure.add(sent), range(5), seeds)
    assert np.mean(wrong["b"]["c"] == expected["b"]["c"]) < 0.1


@pytest.mark.parametrize("shift", [0, 24])
def test_a_masked_update_is_uniform(shift):
    # Lowest and highest byte of 40,000 masked zeros; the same client without masks, and two clients' sum.
    seeds = secure.agree_on_seeds(jax.random.key(2), 3)
    zeros = jnp.zeros(40_000, jnp.uint32)
    one, other = (secure.mask(zeros, client, seeds) for client in (1, 2))

    def p_value(numbers):
        return stats.chisquare(np.bincount((np.asarray(numbers) >> shift) & 255, minlength=256)).pvalue

    assert p_value(one) > 1e-3
    assert p_value(one + other) > 1e-3  # the third client's streams still hide it
    assert p_value(secure.encode(jnp.linspace(-1, 1, 40_000) ** 3)) < 1e-6
    assert np.mean(one == other) < 1e-3


def test_encoding_is_exact_to_half_a_step_and_signed():
    numbers = jnp.float32(np.random.default_rng(0).uniform(-100, 100, 1000))
    for scale in (2.0**8, 2.0**20):
        back = secure.decode(secure.encode(numbers, scale), scale)
        assert np.max(np.abs(back - numbers)) <= 0.5 / scale * (1 + 1e-6)
    assert_equal(secure.encode(jnp.array([0.0, 1.0, -1.0]), 4.0), np.array([0, 4, 2**32 - 4], np.uint32))


@pytest.mark.parametrize("survivors", [None, (0, 2)])
def test_the_secure_mean_is_the_mean_up_to_the_documented_rounding(survivors):
    clients = updates(4)
    found = secure.secure_mean(clients, jax.random.key(3), survivors=survivors)
    expected = average([clients[client] for client in survivors or range(4)])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b)) < 0.5 / secure.SCALE + 1e-6
    assert relative_error(found, clients[0]) > 0.1


def test_rounds_do_not_share_masks():
    first, second = (secure.agree_on_seeds(jax.random.key(seed), 2) for seed in (0, 1))
    zeros = jnp.zeros(100, jnp.uint32)
    assert np.mean(secure.mask(zeros, 0, first) == secure.mask(zeros, 0, second)) < 0.05


def test_a_sum_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="magnitude 3000: at scale 1.04858e.06 the sum of 2 clients holds .* 1024;"):
        secure.secure_mean([jnp.array([3000.0]), jnp.array([0.0])], jax.random.key(0))


@pytest.mark.parametrize("lost", ["a", "b"])
def test_a_mean_of_what_is_not_finite_is_refused(lost):
    update = {"a": jnp.array([1.0]), "b": jnp.array([2.0, 3.0])}
    update[lost] = update[lost].at[0].set(jnp.nan)
    with pytest.raises(InputError, match="magnitude nan"):
        secure.secure_mean([update, update], jax.random.key(0))


@pytest.mark.parametrize("survivors", [(), (2,), (2, 2)])
def test_a_sum_of_one_is_refused(survivors):
    with pytest.raises(InputError, match="the sum would be an update itself"):
        secure.secure_mean(updates(3), jax.random.key(0), survivors=survivors)


@pytest.mark.parametrize(
    "survivors, message", [((0, 0, 2), "expected each client once"), ((-1, 2), "from 0 to 2"), ((0, 3), "from 0 to 2")]
)
def test_survivors_whose_masks_would_not_cancel_are_refused(survivors, message):
    clients, seeds = updates(3), secure.agree_on_seeds(jax.random.key(0), 3)
    for go in (
        lambda: secure.secure_mean(clients, jax.random.key(0), survivors=survivors),
        lambda: secure.unmask(clients[0], survivors, seeds),
    ):
        with pytest.raises(InputError, match=message) as error:
            go()
        assert "\n" not in str(error.value)


# Views.


def clients_of(model, count, n):
    """Victims with one model and different pictures."""
    whole = toy_victim(model, n=count * n)
    return [
        dataclasses.replace(whole, images=whole.images[first : first + n], labels=whole.labels[first : first + n])
        for first in range(0, count * n, n)
    ]


def seen(view, threat, model=TINY, count=2, n=2, **options):
    """The clients, and the one problem that an adversary has who sees only their sum."""
    victims = clients_of(model, count, n)
    problems = [toy_problem(victim, threat) for victim in victims]
    return victims, problems, look(view, problems, threat, **options)


def all_pictures(victims):
    images = jnp.concatenate([truth(victim) for victim in victims])
    return Batch(images, jnp.concatenate([victim.labels for victim in victims]))


imagine = jax.jit(lambda problem, batch: problem.imagine(batch), compiler_options=QUICK)

SETTINGS = {"running": RUNNING} | {
    name: THREATS[name] for name in ("exact", "exact-straight-through", "infer", "infer-reference", "exact-reference")
}


@pytest.mark.parametrize("view", ["sum", "client"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_truth_explains_what_each_view_shows(view, name):
    victims, _, (problem,) = seen(view, SETTINGS[name])
    check_problem(problem)
    batch = all_pictures(victims)
    assert problem.image_shape == batch.images.shape
    np.testing.assert_array_equal(problem.labels, batch.labels)
    update = imagine(problem, batch)
    assert relative_error(update.gradients, problem.observed) < (1e-5 if view == "sum" else 1e-3)
    assert float(GradientMatching(distance="cosine")(problem, None, update)) < 1e-6
    if name in ("exact", "exact-straight-through"):
        assert float(BatchNormPrior()(problem, None, update)) < 1e-5
    swapped = batch._replace(images=batch.images[::-1])
    assert float(GradientMatching()(problem, None, imagine(problem, swapped))) > 1e-4


def test_the_sum_is_one_large_batch_with_running_statistics_and_is_not_with_batch_statistics():
    for name, same in (("running", True), ("infer", False)):
        victims, problems, (problem,) = seen("sum", SETTINGS[name])
        assert problem.clients == (1 if same else 2)
        pooled = dataclasses.replace(problem, clients=1, statistics=problems[0].statistics)
        error = relative_error(imagine(pooled, all_pictures(victims)).gradients, problem.observed)
        assert error < 1e-5 if same else error > 0.05


def test_counts_of_a_sum_are_spread_over_its_clients():
    _, _, (problem,) = seen("sum", THREATS["infer"])
    by_class = jnp.eye(problem.num_classes)[jnp.array([0, 0, 1, 1])]
    dealt = problem.with_labels(by_class).labels.reshape(2, 2, -1)
    np.testing.assert_array_equal(dealt.argmax(-1), [[0, 1], [0, 1]])  # [clients, pictures]


@pytest.mark.parametrize("name", ["infer", "exact-straight-through", "exact-paper"])
def test_consistency_of_labels_is_that_of_each_client(name):
    victims, problems, (problem,) = seen("sum", THREATS[name])
    own = [Candidate(truth(victim)) for victim in victims]
    apart = [LabelConsistency()(one, candidate, None) for one, candidate in zip(problems, own, strict=True)]
    together = LabelConsistency()(problem, Candidate(all_pictures(victims).images), None)
    np.testing.assert_allclose(together, np.mean(apart), rtol=1e-5)


def test_the_server_sees_each_update():
    _, problems, found = seen("server", RUNNING)
    assert len(found) == 2
    for one, other in zip(problems, found, strict=True):
        assert_equal(one.observed, other.observed)


def test_one_client_between_two_models_is_seen_as_it_is():
    victims, _, (problem,) = seen("client", THREATS["exact"], count=1)
    assert problem.clients == 1
    assert relative_error(imagine(problem, all_pictures(victims)).gradients, problem.observed) < 1e-3


def test_an_eavesdropper_is_refused_in_one_line():
    with pytest.raises(InputError, match="nothing is observed") as error:
        seen("eavesdropper", RUNNING)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("view", ["sum", "client"])
def test_of_a_sum_it_is_known_how_all_pictures_were_encoded_and_nothing_of_their_gradients(view):
    defense = defenses.parse("intra_instahide:k=2 + gaussian:sigma=0.01")
    encoded = [encode_victim(defense.mixing, jax.random.key(0), one)[0] for one in clients_of(PLAIN, 2, 2)]
    problems = [toy_problem(one, RUNNING, defense) for one in encoded]
    (problem,) = look(view, problems, RUNNING)
    assert problem.known == (Mixed(k=2, flipped=True),)
    np.testing.assert_array_equal(problem.space.std, encoded[0].space.std)
    assert attacks.adapt(attacks.create("modern"), problem).objective.parts["tv"].magnitude
    told_otherwise = dataclasses.replace(
        problems[1], known=(Mixed(k=2, flipped=True, label_sum=0.7), *problems[1].known[1:])
    )
    with pytest.raises(InputError, match="encode their pictures with different numbers"):
        look(view, [problems[0], told_otherwise], RUNNING)


def test_an_unknown_view_is_refused():
    with pytest.raises(InputError, match="did you mean 'server'"):
        seen("servr", RUNNING)


@pytest.mark.parametrize("view", ["server", "sum", "client"])
def test_there_is_nothing_to_see_of_no_client(view):
    with pytest.raises(InputError, match="problems is empty: expected that of each client"):
        look(view, [], RUNNING)


def test_clients_of_different_batch_size_are_refused():
    first, second = toy_victim(TINY, n=2), toy_victim(TINY, n=3)
    with pytest.raises(InputError, match="must share network"):
        look("sum", [toy_problem(first, RUNNING), toy_problem(second, RUNNING)], RUNNING)


def test_an_attack_on_the_sum_with_batch_statistics_descends():
    _, _, (problem,) = seen("sum", THREATS["exact"], n=1)
    attack = attacks.create("gradient_inversion_evaluation", num_steps=30)
    attack = dataclasses.replace(attack, optimize_labels=True)
    found = attacks.reconstruct(attack, problem, jax.random.key(0), chunk=1)
    assert found.images.shape == (2, 8, 8, 3)
    first = attack.init(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0), problem)
    loss, _ = attack.objective(problem, first.candidate)
    assert found.loss < 0.8 * float(loss)


# The command line's way.


def test_an_attack_on_the_sum_of_two_clients_recovers_both_pictures(tmp_path):
    outcome = run_attack(
        AttackSpec(model="mlp", clients=2, view="sum", num_batches=1, steps=200), tmp_path, Execution()
    )
    run = outcome.result["runs"][0]
    assert [row["batch"] for row in run["images"]] == [0, 0]
    assert run["summary"]["psnr"]["mean"] > 18
    assert "secure aggregation" in " ".join(run["threat_model"])


def test_every_view_says_what_it_sees():
    for view in VIEWS.values():
        assert view.kind in ("none", "cryptographic")
        assert "adversary" in view.words.format(clients=3, batch_size=2)
