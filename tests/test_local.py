"""Federated averaging: the client's local steps, what the adversary makes of them, and the prior over epochs."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    COMPILED,
    HEADED,
    PLAIN,
    QUICK,
    TinyNet,
    as_float64,
    enable_x64,
    random_like,
    relative_error,
    toy_victim,
    tree_dot,
    truth,
)

from gi_jax import attacks, cli, defenses, metrics
from gi_jax.attacks.epochs import merge_epochs, tie_epochs
from gi_jax.attacks.labels import recover, simulate
from gi_jax.attacks.num_steps import estimate_num_steps
from gi_jax.checks import InputError
from gi_jax.experiments.spec import AttackSpec
from gi_jax.models import Normalize
from gi_jax.objectives import Candidate, EpochConsistency, GradientMatching, Objective
from gi_jax.threat import RUNNING, THREATS, Batch, LocalTraining, look, observe, stack, train_locally
from gi_jax.threat.batch_norm import running_average
from gi_jax.threat.local import deal

BATCH, GIVEN = Normalize.BATCH, Normalize.GIVEN
TINY = TinyNet(4)
RATE = 0.1

_observe = jax.jit(
    observe, static_argnames=("threat", "defense", "labels_known", "order_known"), compiler_options=QUICK
)


def seen(victim, local, *, threat=RUNNING, key=5, **options):
    """What the adversary sees of a toy victim that trains locally."""
    return _observe(victim, threat=threat, defense=defenses.identity, key=jax.random.key(key), local=local, **options)


# The client.


def textbook_step(network, normalize, params, batch_stats, images, labels, rate):
    """A step of SGD as a textbook has it, and the running averages after it."""

    def loss(params):
        logits, statistics = network(params, batch_stats, images, normalize)
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)), statistics

    gradients, statistics = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda weight, slope: weight - rate * slope, params, gradients), statistics


plain_step = jax.jit(textbook_step, static_argnums=(0, 1), compiler_options=QUICK)


def plain_client(network, normalize, params, batch_stats, batch, order, rate):
    """A federated client as a loop: the weights and the running averages after its steps."""
    running = batch_stats
    for chosen in np.asarray(order):
        images, labels = batch.images[chosen], batch.labels[chosen]
        params, statistics = plain_step(network, normalize, params, batch_stats, images, labels, rate)
        running = running_average(running, statistics)
    return params, running


TRAIN = jax.jit(train_locally, static_argnums=(0, 1), compiler_options=QUICK)


@pytest.mark.parametrize("normalize", [GIVEN, BATCH])
def test_local_training_is_that_of_a_plain_federated_client(normalize):
    # Compared are the ways that the weights went, which are far smaller than the weights.
    victim = toy_victim(TINY, n=4)
    model, batch = (victim.params, victim.batch_stats), Batch(truth(victim), victim.labels)
    for steps in (1, 4, 16):
        order = np.concatenate([np.random.default_rng(steps + epoch).permutation(4) for epoch in range(8)])
        order = order.reshape(-1, 2)[:steps]
        found = TRAIN(victim.network, normalize, *model, batch, order, RATE)
        expected, _ = plain_client(victim.network, normalize, *model, batch, order, RATE)
        way = jax.tree.map(jnp.subtract, victim.params, expected)
        assert relative_error(jax.tree.map(jnp.subtract, victim.params, found.params), way) < 1e-5, steps
        mean = jax.tree.map(lambda leaf, steps=steps: leaf / (RATE * steps), way)
        assert relative_error(found.gradients, mean) < 1e-5, steps


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_what_is_sent_is_the_model_after_the_steps(steps):
    victim = toy_victim(TINY, n=4)
    local = LocalTraining(num_steps=steps, learning_rate=RATE)
    problem = seen(victim, local)
    expected, _ = plain_client(
        victim.network,
        GIVEN,
        victim.params,
        victim.batch_stats,
        Batch(truth(victim), victim.labels),
        local.same_order(4),
        RATE,
    )
    way = jax.tree.map(jnp.subtract, victim.params, expected)
    assert relative_error(problem.observed, jax.tree.map(lambda leaf: leaf / (RATE * steps), way)) < 1e-4
    if steps > 1:
        assert relative_error(problem.params_after, expected) < 1e-6


def test_running_averages_that_are_shared_afterwards_saw_every_step():
    victim = toy_victim(TINY, n=4)
    local = LocalTraining(num_steps=4, batch_size=2, learning_rate=RATE)
    problem = seen(victim, local, threat=THREATS["infer-reference"], order_known=True)
    batch = Batch(truth(victim), victim.labels)
    _, running = plain_client(victim.network, BATCH, victim.params, victim.batch_stats, batch, problem.order, RATE)
    assert relative_error(problem.statistics, running) < 1e-5
    before = seen(victim, local, threat=THREATS["infer"], order_known=True)
    jax.tree.map(np.testing.assert_array_equal, before.statistics, victim.batch_stats)


def test_every_epoch_sees_every_picture_once_in_an_order_of_its_own():
    order = np.asarray(LocalTraining(num_steps=12, batch_size=2).draw_order(jax.random.key(0), 6)).reshape(4, 6)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(6), (4, 1)))
    assert len({tuple(epoch) for epoch in order}) == 4


def test_one_step_on_all_pictures_is_the_path_without_local_training():
    victim = toy_victim(TINY, n=2)
    one, none = seen(victim, LocalTraining(num_steps=1, learning_rate=0.3)), seen(victim, None)
    assert one.local is None and jax.tree.structure(one) == jax.tree.structure(none)
    jax.tree.map(np.testing.assert_array_equal, one, none)
    assert seen(victim, LocalTraining(num_steps=2), assumed=LocalTraining(num_steps=1)).local is None


# The adversary.


def test_derivatives_through_the_steps_equal_reverse_over_reverse_and_finite_differences():
    with enable_x64(True):
        victim = toy_victim(TINY, n=2)
        params, batch_stats, batch = as_float64(
            (victim.params, victim.batch_stats, Batch(truth(victim), victim.labels))
        )
        order, direction = jnp.array([[0], [1]]), random_like(params, 1)

        def simulated(images):
            run = train_locally(victim.network, BATCH, params, batch_stats, Batch(images, batch.labels), order, 0.3)
            return tree_dot(run.gradients, direction)

        def unrolled(images):
            weights = params
            for chosen in order:
                weights, _ = textbook_step(
                    victim.network, BATCH, weights, batch_stats, images[chosen], batch.labels[chosen], 0.3
                )
            return tree_dot(jax.tree.map(lambda a, b: (a - b) / (0.3 * 2), params, weights), direction)

        found = jax.jit(jax.grad(simulated), compiler_options=QUICK)(batch.images)
        assert relative_error(found, jax.jit(jax.grad(unrolled), compiler_options=QUICK)(batch.images)) < 1e-9
        along = random_like(batch.images, 2)
        value = jax.jit(unrolled, compiler_options=QUICK)
        slope = (value(batch.images + 1e-5 * along) - value(batch.images - 1e-5 * along)) / 2e-5
        np.testing.assert_allclose(jnp.vdot(found, along), slope, rtol=1e-6)


MATCHING = Objective(parts={"matching": GradientMatching(distance="squared")})


@partial(jax.jit, compiler_options=QUICK)
def loss_at(problem, images):
    return MATCHING(problem, Candidate(images))[0]


def test_the_loss_is_zero_at_the_truth_where_the_order_is_known_and_not_for_another_number_of_steps():
    victim = toy_victim(TINY, n=4)
    local = LocalTraining(num_steps=4, batch_size=2, learning_rate=RATE)
    problem = seen(victim, local, order_known=True)
    scale = tree_dot(problem.observed, problem.observed)
    assert problem.copies == 1 and loss_at(problem, truth(victim)) < 1e-8 * scale
    other = problem.order[:, ::-1][::-1].at[0].set(problem.order[2])
    assert loss_at(dataclasses.replace(problem, order=other), truth(victim)) > 1e-4 * scale
    assumed = LocalTraining(num_steps=8, batch_size=2, learning_rate=RATE)
    wrong = seen(victim, local, assumed=assumed)
    assert wrong.local.num_steps == 8 and wrong.known == ()
    assert relative_error(wrong.observed, jax.tree.map(lambda leaf: leaf / 2, problem.observed)) < 1e-5


def test_where_the_order_is_unknown_every_epoch_has_guesses_and_the_right_ones_have_loss_zero():
    victim = toy_victim(TINY, n=4)
    # One label, so that dealing it out is right whatever the order was.
    victim = dataclasses.replace(victim, labels=jnp.tile(victim.labels[:1], (4, 1)))
    local = LocalTraining(num_steps=4, batch_size=2, learning_rate=RATE)
    order = seen(victim, local, order_known=True).order.reshape(-1)
    problem = seen(victim, local)
    assert problem.copies == 2 and problem.candidate_shape == (8, 8, 8, 3) and problem.order is None
    images = truth(victim)[order]
    assert loss_at(problem, images) < 1e-8 * tree_dot(problem.observed, problem.observed)
    prior = EpochConsistency()
    assert prior(problem, Candidate(images), None) < 1e-12
    assert prior(problem, Candidate(images.at[0].add(0.1)), None) > 1e-4


def test_the_prior_over_epochs_does_not_ask_for_an_order_within_a_class():
    victim = toy_victim(TINY, n=4)
    victim = dataclasses.replace(victim, labels=victim.labels[jnp.array([0, 1, 0, 1])])
    problem = seen(victim, LocalTraining(num_steps=6, batch_size=2, learning_rate=RATE))
    assert problem.copies == 3
    first = random_like(np.zeros((4, 8, 8, 3), np.float32))
    first_class, second_class = (np.flatnonzero(problem.labels[:, label]) for label in (0, 1))
    swapped = first.at[first_class].set(first[first_class[::-1]])
    prior = EpochConsistency()
    assert prior(problem, Candidate(jnp.concatenate([first, swapped, first])), None) < 1e-12
    crossed = first.at[first_class].set(first[second_class]).at[second_class].set(first[first_class])
    assert prior(problem, Candidate(jnp.concatenate([first, crossed, first])), None) > 0.1
    # The same sums, another maximum.
    moved = first.at[first_class[0]].add(1.0).at[first_class[1]].add(-1.0)
    assert prior(problem, Candidate(jnp.concatenate([first, moved, first])), None) > 0.01


def test_epochs_are_merged_in_the_order_of_the_first_within_each_label():
    labels = np.eye(3)[[0, 1, 0, 1]]
    first = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    noisy = np.clip(first[[2, 3, 0, 1]] + 0.02, 0, 1)
    images, merged = merge_epochs(np.concatenate([first, noisy]), np.tile(labels, (2, 1)), 2)
    np.testing.assert_allclose(images, (first + noisy[[2, 3, 0, 1]]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(merged, labels)
    # Never across labels, however alike the pictures are.
    images, _ = merge_epochs(np.concatenate([first, first[[1, 0, 3, 2]]]), np.tile(labels, (2, 1)), 2)
    assert min(np.abs(images - first).mean((1, 2, 3))) > 0.05


def test_known_labels_without_the_order_are_spread_over_the_steps():
    labels = np.eye(3)[[0, 0, 0, 1, 1, 2]]
    dealt = np.asarray(deal(labels, LocalTraining(num_steps=3, batch_size=2))).argmax(1).reshape(3, 2)
    np.testing.assert_array_equal(dealt, [[0, 1], [0, 1], [0, 2]])
    victim = toy_victim(TINY, n=4)
    local = LocalTraining(num_steps=4, batch_size=2, learning_rate=RATE)
    told = seen(victim, local, order_known=True)
    np.testing.assert_array_equal(told.labels, victim.labels)
    problem = told.with_labels(victim.labels)
    np.testing.assert_array_equal(
        problem.labels[told.order.reshape(-1)[:4]], seen(victim, local).labels, "the first epoch is the one dealt to"
    )


def test_labels_are_counted_from_the_model_before_and_after():
    victim = toy_victim(HEADED, n=4)
    problem = seen(victim, LocalTraining(num_steps=4, batch_size=2, learning_rate=0.01), labels_known=False)
    dummies, after = (simulate(problem, jax.random.key(0), params=params) for params in (None, problem.params_after))
    found = recover(problem, "geng", dummies, dummies_after=after)
    assert found.method == "geng" and found.counts.sum() == 4
    assert not np.allclose(dummies().probabilities, after().probabilities)


def quick_attack(**settings):
    return attacks.create("inverting_gradients", tv=1e-4, learning_rate=0.3, **settings)


def test_an_attack_finds_pictures_and_another_rate_compiles_nothing():
    victim = toy_victim(PLAIN, n=2)
    attack = quick_attack(num_steps=150)
    for rate in (0.05, 0.07):
        problem = seen(victim, LocalTraining(num_steps=4, batch_size=1, learning_rate=rate))
        before = len(COMPILED)
        found = attacks.reconstruct(attack, problem, jax.random.key(0))
        assert found.images.shape == (2, 8, 8, 3) and found.labels.shape == (2, 4)
    assert len(COMPILED) == before
    order = metrics.match(found.images, np.asarray(victim.images))
    error = np.mean(np.square(found.images[order] - np.asarray(victim.images)))
    assert error < 0.3 * np.var(np.asarray(victim.images))
    tied = tie_epochs(attack, problem)
    assert set(tied.objective.parts) == {"matching", "tv", "epochs"} and tie_epochs(tied, problem) is tied


def test_the_number_of_steps_is_told_from_how_far_the_model_went():
    victim = toy_victim(PLAIN, n=2)
    local = LocalTraining(num_steps=8, learning_rate=0.05)

    def assume(steps):
        return seen(victim, local, assumed=dataclasses.replace(local, num_steps=steps))

    found, misfits = estimate_num_steps(assume, (2, 8), quick_attack(num_steps=40), jax.random.key(0))
    assert found == 8 and misfits[8] < misfits[2] / 2


# What is refused, and the command line.


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"local_steps": 0}, "local_steps"),
        ({"local_steps": 4, "batch_size": 4, "local_batch_size": 3}, "1, 2, 4"),
        ({"local_steps": 3, "batch_size": 4, "local_batch_size": 2}, "2 steps or a multiple"),
        ({"local_steps": 4, "local_rate": 0.0}, "local_rate"),
        ({"local_steps": 4, "order": "random"}, "order"),
        ({"local_steps": 4, "order": "known"}, "order"),
        ({"local_steps": 4, "batch_size": 4, "local_batch_size": 2, "order": "known", "assume_steps": "4"}, "order"),
        ({"local_steps": 4, "assume_steps": "many"}, "assume_steps"),
        ({"local_steps": 4, "batch_size": 4, "local_batch_size": 2, "assume_steps": "3"}, "multiple"),
        ({"local_steps": 4, "view": "sum", "clients": 2}, "view"),
        ({"local_steps": 4, "attack": "phong", "model": "mlp"}, "phong"),
        ({"local_steps": 4, "client_bn": "batch", "bn": "exact-straight-through"}, "exact"),
        ({"local_steps": 4, "batch_size": 4, "defenses": ("mixup:k=2",)}, "mixup"),
        ({"local_steps": 4, "model": "convnet_group", "defenses": ("dpsgd:clip=1,sigma=1",)}, "dpsgd"),
        ({"local_steps": 4, "defenses": ("soteria:p=0.1",)}, "soteria"),
        ({"epoch_prior": 1.0}, "epoch_prior"),
    ],
)
def test_refused_at_the_door_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as error:
        AttackSpec(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["dpsgd:clip=1,sigma=1", "clip_per_example:norm=1", "soteria:p=0.5"])
def test_defenses_of_examples_are_refused(name):
    victim = toy_victim(HEADED, n=2)
    with pytest.raises(InputError, match="local steps"):
        observe(victim, RUNNING, defenses.parse(name), jax.random.key(0), local=LocalTraining(num_steps=2))


@pytest.mark.parametrize("number", [dict(num_steps=2.0), dict(num_steps=2, batch_size=2.0)])
def test_steps_and_their_pictures_are_counted_in_whole_numbers(number):
    with pytest.raises(InputError, match=r"=2\.0: expected a whole number above 0, of type int"):
        LocalTraining(**number).check(2)


def test_clients_that_train_locally_are_not_attacked_as_a_sum():
    problem = seen(toy_victim(TINY, n=2), LocalTraining(num_steps=2))
    with pytest.raises(InputError, match="local steps"):
        look("sum", [problem, problem], RUNNING)
    with pytest.raises(InputError, match="exact statistics"):
        seen(toy_victim(TINY, n=2), LocalTraining(num_steps=2), threat=THREATS["exact-straight-through"])
    with pytest.raises(InputError, match="local steps"):
        stack([problem, seen(toy_victim(TINY, n=2), None)])


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch):
    monkeypatch.setattr(cli.terminal, "set_up_compilation", lambda: None)


def test_the_command_line_attacks_local_steps(tmp_path, capsys):
    command = "attack --num-batches 1 --image-size 12 --model mlp --batch-size 2 --steps 10 --local-steps 4"
    command += " --local-batch-size 1 --labels auto --seed 3"
    assert cli.main([*command.split(), "--out", str(tmp_path)]) == 0
    (run,) = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert len(run["images"]) == 2 and run["local"] == {"assumed_steps": 4, "misfits": None}
    words = " ".join(run["threat_model"])
    assert "4 local steps" in words and "order" in words and "bias_corrected" in words
    assert 0 <= run["labels"]["count_overlap"] <= 1
    arrays = np.load(tmp_path / "reconstructions.npz")
    assert arrays["reconstructions"].shape == arrays["originals"].shape == (2, 12, 12, 3)
    assert "4 local steps" in capsys.readouterr().out
