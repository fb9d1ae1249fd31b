"""Federations: partitions, rounds against a plain loop of clients and a server, BatchNorm policies, and who watches."""

import contextlib
import dataclasses
import json
import math
import re
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import COMPILED, QUICK, SPACE, TinyNet, moved, relative_error

import gi_jax
from gi_jax import attacks, cli, defenses, federated, memory, metrics, training
from gi_jax.checks import InputError
from gi_jax.experiments import federation, study, train_checkpoint, weights
from gi_jax.experiments.federation import run_federation
from gi_jax.experiments.federation_spec import FederationSpec
from gi_jax.experiments.federation_study import FederationStudy
from gi_jax.federated import Adversary, Federation, Policy, simulation
from gi_jax.federated import adversary as watching
from gi_jax.models import FlaxNetwork, Normalize
from gi_jax.threat import (
    RUNNING,
    THREATS,
    BatchNormThreat,
    LocalTraining,
    Mixed,
    Shared,
    check_problem,
    observe,
    train_locally,
)
from gi_jax.threat.batch_norm import running_average

BATCH, GIVEN = Normalize.BATCH, Normalize.GIVEN
NETWORK = FlaxNetwork(TinyNet(4))
RATE = 0.1
NUM_CLIENTS, HELD = 5, 8
KEY = jax.random.key(7)
BLIND = BatchNormThreat(client=BATCH, shared=Shared.NOTHING, adversary=BATCH)


def toy_pool(count=NUM_CLIENTS * HELD, side=8):
    """Noise in four classes of different brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % 4
    images = rng.integers(0, 100, (count, side, side, 3)) + 50 * labels[:, None, None, None]
    return training.Pool(jnp.asarray(images, jnp.uint8), jax.nn.one_hot(labels, 4), SPACE)


POOL = toy_pool()
LABELS = np.asarray(POOL.labels.argmax(-1))
CLIENTS = federated.iid(LABELS, NUM_CLIENTS, 0)


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """The rounds of most tests run for a moment and are compiled for them alone."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, options in (
            (simulation, "_unwatched", dict(donate_argnames="state")),
            (simulation, "_watched", {}),
            (watching, "_grant", dict(static_argnames=("threat", "defense", "labels_known", "defense_known"))),
        ):
            plain = getattr(module, name).__wrapped__
            patch.setattr(module, name, jax.jit(plain, compiler_options=QUICK, **options))
        yield


@pytest.fixture(scope="module")
def model():
    params, batch_stats = jax.jit(partial(NETWORK.init, image_shape=(8, 8, 3)), compiler_options=QUICK)(
        jax.random.key(0)
    )
    return moved(params, 0), moved(batch_stats, 1)


def run(model, num_rounds=3, clients=CLIENTS, key=KEY, adversary=None, **settings):
    """A federation of toy clients."""
    federation = Federation(network=NETWORK, **{"server_rate": RATE, **settings})
    return federated.simulate(federation, *model, POOL, clients, key, num_rounds=num_rounds, adversary=adversary)


# Partitions.


@pytest.mark.parametrize("count, num_clients", [(40, 5), (43, 5), (7, 7), (10, 1)])
def test_every_picture_is_held_once_at_most_and_all_clients_hold_as_many(count, num_clients):
    labels = np.arange(count) % 4
    for held in (federated.iid(labels, num_clients, 0), federated.dirichlet(labels, num_clients, 0.3, 0)):
        assert held.shape == (num_clients, count // num_clients) and held.dtype == np.int32
        assert len(set(held.ravel().tolist())) == held.size and 0 <= held.min() and held.max() < count
    np.testing.assert_array_equal(held, federated.dirichlet(labels, num_clients, 0.3, 0))
    if count > num_clients:
        assert not np.array_equal(held, federated.dirichlet(labels, num_clients, 0.3, 1))


def shares_of(alpha, num_clients=20, classes=10):
    """Shares of the classes, a row a client, where only a quarter of all pictures is waited for by one client."""
    labels = np.repeat(np.arange(classes), 400)
    held = federated.dirichlet(labels, num_clients, alpha, 0)
    return np.stack([np.bincount(labels[row], minlength=classes) for row in held]) / held.shape[1]


def test_large_alpha_is_near_the_shares_of_all_pictures():
    # 200 pictures with probability 0.1 each: the standard deviation of a share is 0.021.
    assert abs(shares_of(1e6) - 0.1).max() < 4 * 0.022


def test_small_alpha_is_near_one_class():
    # 20 clients of 200 pictures in classes of 400: who comes late goes on with another class.
    labels = np.repeat(np.arange(10), 400)
    held = labels[federated.dirichlet(labels, 20, 1e-6, 0)]
    assert (held[:, :40] == held[:, :1]).all()
    few, more = ((shares_of(alpha) > 0.05).sum(axis=1).mean() for alpha in (1e-6, 5.0))
    assert few < 4 < more


def test_alpha_is_the_sum_of_the_concentrations():
    # A share of Dir(alpha p) has variance p (1 - p) / (alpha + 1), to which drawing 200 pictures adds a little.
    expected = np.sqrt(0.1 * 0.9 / (20 + 1))
    assert shares_of(20.0).std() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: federated.iid(np.zeros(3), 4, 0), "4 clients with 3 pictures"),
        (lambda: federated.dirichlet(np.zeros(3), 4, 0.5, 0), "take fewer clients"),
        (lambda: federated.iid(np.zeros(3), 0, 0), "num_clients=0"),
        (lambda: federated.dirichlet(np.zeros(3), 2, 0.0, 0), "alpha=0"),
        (lambda: federated.iid(np.zeros(3), 1, -1), "seed=-1"),
    ],
)
def test_impossible_partitions_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Rounds.


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def textbook_gradient(normalize, params, batch_stats, images, labels):
    def loss(params):
        logits, statistics = NETWORK(params, batch_stats, images, normalize)
        scores = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(scores, labels[:, None], 1).mean(), statistics

    (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, gradients, statistics


def textbook_round(model, normalize, steps, rate, server_rate, clients=CLIENTS):
    """FedSGD (steps None) or FedAvg as a loop over clients, each going over all its pictures in every step."""
    params, batch_stats = model
    after, losses = [], []
    for held in clients:
        images = (np.asarray(POOL.images)[held].astype(np.float32) / 255 - SPACE.mean) / SPACE.std
        own, averages = model
        for step in range(steps or 1):
            loss, slope, statistics = textbook_gradient(normalize, own, batch_stats, images, LABELS[held])
            losses += [loss] if step == 0 else []
            own = jax.tree.map(lambda weight, slope: weight - rate * slope, own, slope)
            if normalize == BATCH:
                averages = running_average(averages, statistics)
        after.append((own, averages))
    mean, averages = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *after)
    return (jax.tree.map(lambda old, new: old + server_rate * (new - old), params, mean), averages), np.mean(losses)


@pytest.mark.parametrize("normalize", [BATCH, GIVEN])
@pytest.mark.parametrize("steps", [None, 3])
def test_rounds_are_those_of_a_loop_of_clients_and_a_server(model, steps, normalize):
    with jax.numpy_rank_promotion("allow"):
        expected, losses = model, []
        for _ in range(3):
            expected, loss = textbook_round(expected, normalize, steps, RATE if steps else 1.0, 0.5 if steps else RATE)
            losses.append(loss)
    local = steps and LocalTraining(num_steps=steps, learning_rate=RATE)
    found = run(model, local=local, server_rate=0.5 if steps else RATE, normalize=normalize)
    way = lambda after: jax.tree.map(jnp.subtract, after, model[0])  # noqa: E731
    assert relative_error(way(found.state.model.params), way(expected[0])) < 1e-5
    assert relative_error(found.state.model.batch_stats, expected[1]) < 1e-6
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    assert int(found.state.round) == 3


def test_one_client_with_server_rate_one_trains_locally(model):
    local = LocalTraining(num_steps=4, learning_rate=RATE)
    found = run(model, 1, CLIENTS[:1], local=local, server_rate=1.0)
    images = SPACE.normalize(POOL.images[CLIENTS[0]].astype(jnp.float32) / 255)
    batch = gi_jax.threat.Batch(images, POOL.labels[CLIENTS[0]])
    train = jax.jit(train_locally, static_argnums=(0, 1), compiler_options=QUICK)
    alone = train(NETWORK, BATCH, *model, batch, local.same_order(HELD), RATE)
    assert relative_error(found.state.model.params, alone.params) < 1e-6


def test_identical_clients_are_one_client(model):
    one = run(model, 2, CLIENTS[:1])
    three = run(model, 2, np.repeat(CLIENTS[:1], 3, axis=0))
    assert relative_error(three.state.model, one.state.model) < 1e-6
    np.testing.assert_allclose(three.losses, one.losses, rtol=1e-5)


def test_clients_that_wait_for_each_other_change_nothing(model):
    settings = dict(local=LocalTraining(num_steps=4, batch_size=2), batch_size=4, clients_per_round=3)
    together, apart = run(model, **settings), run(model, at_once=2, **settings)
    assert relative_error(apart.state.model, together.state.model) < 1e-6


def test_the_server_takes_any_optimizer(model):
    found = run(model, 1, server=optax.sign_sgd, server_rate=0.25)
    way = jax.tree.map(lambda old, new: np.abs(old - new), model[0], found.state.model.params)
    # In front of BatchNorm a bias would not move, but there is none.
    np.testing.assert_allclose(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(way)]), 0.25, rtol=1e-3)


# Algorithm 2 of Reddi et al. (2021) by hand, at tau = 0.001: updates (before - after) of 3e-3, -4e-3 and 0, the weight
# after each in units of the rate. v begins at tau^2 = 1e-6; in units of 1e-3 and 1e-6 the first step of Adagrad is
# -3 / (sqrt(1 + 9) + 1), that of Adam -0.3 / (sqrt(0.99 + 0.09) + 1), and that of Yogi -0.3 / (sqrt(1 + 0.09) + 1).
BY_HAND = {
    "fedavg": (-3e-3, 1e-3, 1e-3),
    "fedadagrad": (-3 / (10**0.5 + 1), *[-3 / (10**0.5 + 1) + 4 / (26**0.5 + 1)] * 2),
    "fedadam": np.cumsum([-0.3 / (1.08**0.5 + 1), 0.13 / (1.2292**0.5 + 1), 0.117 / (1.216908**0.5 + 1)]),
    "fedyogi": np.cumsum([-0.3 / (1.09**0.5 + 1), 0.13 / (1.25**0.5 + 1), 0.117 / (1.25**0.5 + 1)]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_servers_step_as_their_papers_say(name):
    server = federated.SERVERS[name]
    optimizer = server.optimizer(server.rate)
    weights = {"moved": jnp.float32(0.0), "unseen": jnp.float32(0.0)}
    state, found = optimizer.init(weights), []
    for update in (3e-3, -4e-3, 0.0):
        step, state = optimizer.update({"moved": jnp.float32(update), "unseen": jnp.float32(0.0)}, state, weights)
        weights = optax.apply_updates(weights, step)
        found.append(float(weights["moved"]) / server.rate)
    np.testing.assert_allclose(found, BY_HAND[name], rtol=1e-5)
    assert weights["unseen"] == 0.0  # what never leaves a client stays


def test_momentum_carries_over_rounds(model):
    settings = dict(server=partial(optax.sgd, momentum=0.9), server_rate=RATE)
    steps = [model[0]] + [run(model, number, **settings).state.model.params for number in (1, 2)]
    plain = run(model, 1).state.model
    again = run(plain, 1).state.model.params
    moves = [jax.tree.map(jnp.subtract, after, before) for before, after in zip(steps, steps[1:], strict=False)]
    expected = jax.tree.map(lambda v, new, old: 0.9 * v + new - old, moves[0], again, plain.params)
    assert relative_error(moves[1], expected) < 1e-4


def test_another_seed_or_rate_compiles_nothing(model):
    settings = dict(clients_per_round=3, batch_size=4, batch_norm=Policy.FED_BN)
    adversary = Adversary(threat=BLIND, rounds=(0, 3))
    go = lambda key, rate, local, rounds: run(  # noqa: E731
        model,
        rounds,
        key=jax.random.key(key),
        server_rate=rate,
        local=LocalTraining(num_steps=2, batch_size=2, learning_rate=local),
        adversary=adversary,
        **settings,
    )
    go(0, 1.0, 0.1, 5)
    before = len(COMPILED)
    first = go(1, 0.5, 0.05, 9)
    assert COMPILED[before:] == []
    second = go(2, 0.5, 0.05, 9)
    assert COMPILED[before:] == [] and relative_error(second.state.model, first.state.model) > 1e-5


def test_a_watched_federation_runs_as_an_unwatched_one(model):
    alone = run(model, 4, batch_size=2)
    watched = run(model, 4, batch_size=2, adversary=Adversary(threat=THREATS["infer"], rounds=(1, 3)))
    assert relative_error(watched.state.model, alone.state.model) < 1e-6
    np.testing.assert_allclose(watched.losses, alone.losses, rtol=1e-5)
    earlier = run(model, 3, batch_size=2).state.model
    assert relative_error(watched.seen[-1].problem.params, earlier.params) < 1e-6
    assert relative_error(watched.secrets[-1][0].victim.batch_stats, earlier.batch_stats) < 1e-6


# BatchNorm.


@pytest.mark.parametrize("policy, kept", [(Policy.SILO_BN, ("mean", "var")), (Policy.FED_BN, ("norm",))])
def test_what_stays_with_a_client_is_its_own(model, policy, kept):
    local = LocalTraining(num_steps=2, learning_rate=RATE)
    state = run(model, local=local, batch_norm=policy, server_rate=1.0).state
    models = [state.client(number) for number in range(NUM_CLIENTS)]
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(models[0])]
    for name, *leaves in zip(names, *map(jax.tree.leaves, models), strict=True):
        apart = not np.array_equal(leaves[0], leaves[1])
        assert apart == any(word in name for word in kept), name
    # Of what stays, the server knows the beginning.
    unseen = federated.batch_norm.own_part(policy, state.model)
    jax.tree.map(np.testing.assert_array_equal, unseen, federated.batch_norm.own_part(policy, federated.Model(*model)))
    assert len(federated.accuracies(Federation(network=NETWORK, batch_norm=policy), state, POOL)) == NUM_CLIENTS
    middle = state.mean().batch_stats["norm0"]["mean"]
    np.testing.assert_allclose(middle, np.mean([one.batch_stats["norm0"]["mean"] for one in models], 0), rtol=1e-5)


def test_fedbn_of_one_client_trains_it_as_fedavg_does(model):
    settings = dict(local=LocalTraining(num_steps=2, learning_rate=RATE), server_rate=1.0)
    shared = run(model, 3, CLIENTS[:1], **settings).state
    for policy in (Policy.SILO_BN, Policy.FED_BN):
        kept = run(model, 3, CLIENTS[:1], batch_norm=policy, **settings).state
        assert relative_error(kept.client(0), shared.model) < 1e-5


def test_who_does_not_take_part_keeps_what_it_has(model):
    local = LocalTraining(num_steps=1, learning_rate=RATE)
    found = run(
        model,
        1,
        local=local,
        batch_norm=Policy.FED_BN,
        clients_per_round=2,
        adversary=Adversary(threat=BLIND),
    )
    took_part = {client for seen in found.seen for client in seen.clients}
    assert len(took_part) == 2
    for number in range(NUM_CLIENTS):
        same = np.array_equal(found.state.client(number).params["norm0"]["scale"], model[0]["norm0"]["scale"])
        assert same == (number not in took_part)


# Who watches.

OBSERVE = jax.jit(observe, static_argnames=("threat", "defense", "labels_known"))

WATCHED = {
    "one gradient": dict(batch_size=2),
    "local steps": dict(local=LocalTraining(num_steps=4, batch_size=2, learning_rate=RATE), batch_size=4),
    "one local step": dict(local=LocalTraining(num_steps=1, learning_rate=RATE), batch_size=2),
    "defense": dict(batch_size=2, defense=defenses.parse("prune:p=0.5 + gaussian:sigma=0.01")),
    "running": dict(batch_size=2, normalize=GIVEN),
    "statistics": dict(batch_size=2),
}
THREAT = {"running": RUNNING, "statistics": THREATS["exact"]}


@pytest.mark.parametrize("case", WATCHED)
def test_what_is_seen_in_a_round_is_what_observe_makes_there(model, case):
    threat = THREAT.get(case, THREATS["infer"])
    adversary = Adversary(threat=threat, rounds=(0, 3), clients=(1, 4))
    found = run(model, 5, adversary=adversary, **WATCHED[case])
    assert [(seen.round, *seen.clients) for seen in found.seen] == [(0, 1), (0, 4), (3, 1), (3, 4)]
    assert len({seen.problem.params["head"]["bias"].tobytes() for seen in map(jax.device_get, found.seen)}) == 2
    seen, (secret,) = found.seen[-1], found.secrets[-1]
    victim = secret.victim
    np.testing.assert_allclose(victim.images, POOL.images[secret.pictures].astype(np.float32) / 255, rtol=1e-6)
    assert set(secret.pictures.tolist()) <= set(CLIENTS[4].tolist())
    key = jax.random.split(federated.keys_of_round(KEY, 3).client(4), 3)[2]
    defense, local = WATCHED[case].get("defense", defenses.identity), WATCHED[case].get("local")
    expected = OBSERVE(victim, threat=threat, defense=defense, key=key, local=local)
    assert jax.tree.structure(seen.problem) == jax.tree.structure(expected)
    # The steps' rate goes into the difference of two models, which is rounded.
    tolerance = dict(rtol=1e-4, atol=1e-4 if local else 2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), seen.problem, expected)
    check_problem(seen.problem)


def test_a_problem_of_a_federation_is_reconstructed(model):
    federation = dict(batch_size=1, normalize=GIVEN)
    found = run(model, 4, adversary=Adversary(threat=RUNNING, rounds=(3,), clients=(2,)), **federation)
    (seen,), ((secret,),) = found.seen, found.secrets
    attack = attacks.create("inverting_gradients", tv=0.0, num_steps=300)
    result = gi_jax.reconstruct(attack, seen.problem, jax.random.key(0), num_restarts=2)
    assert float(metrics.psnr(secret.victim.images, result.images)[0]) > 25


def test_an_adversary_that_never_saw_batchnorm_says_so(model):
    local = LocalTraining(num_steps=2, learning_rate=RATE)
    adversary = Adversary(threat=BLIND, rounds=(2,), clients=(0,))
    (seen,) = run(model, local=local, batch_norm=Policy.FED_BN, batch_size=2, adversary=adversary).seen
    (fact,) = seen.problem.known
    assert set(fact.tensors) == {f"norm{number}/{name}" for number in (0, 1) for name in ("scale", "bias")}
    for layer in ("norm0", "norm1"):
        assert not np.any(seen.problem.observed[layer]["scale"])
        np.testing.assert_array_equal(seen.problem.params[layer]["scale"], model[0][layer]["scale"])
    assert np.any(seen.problem.observed["head"]["kernel"]) and seen.problem.statistics is None


HIDING = {
    "prune:p=0.5": "bound",
    "prune_global:p=0.5": "bound",
    "top_k:k=50": "bound",
    "qsgd:levels=4": "spacing",
    "quantize:bits=4": "width",
    "gaussian:relative=0.5": None,
}


@pytest.mark.parametrize("text", HIDING)
def test_what_is_known_of_a_defense_is_read_off_what_leaves_the_client(model, text):
    defense, local = defenses.parse(text), LocalTraining(num_steps=2, learning_rate=RATE)
    # An adversary that saw the normalization layers would read other numbers off them: they are moved most.
    large = dict(model[0], **{name: jax.tree.map(lambda x: 10 * x, model[0][name]) for name in ("norm0", "norm1")})
    settings = dict(local=local, batch_norm=Policy.FED_BN, defense=defense, batch_size=2)
    found = run((large, model[1]), 1, adversary=Adversary(threat=BLIND, clients=(0,)), **settings)
    (seen,) = found.seen
    fact, unseen = seen.problem.known
    leave = {name: tensor for name, tensor in seen.problem.observed.items() if not name.startswith("norm")}
    (expected,) = defense.known(leave, 2)
    tensors = HIDING[text]

    def numbers(fact):  # of the tensors that leave, and those for all
        found = [getattr(fact, name) for name in ("kept", "scale") if hasattr(fact, name)]
        return [{name: one[name] for name in leave} if isinstance(one, dict) else one for one in found]

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), numbers(fact), numbers(expected))
    if tensors is not None:
        scalars, wanted = getattr(fact, tensors), getattr(expected, tensors)
        assert jax.tree.structure(scalars) == jax.tree.structure(seen.problem.observed)
        assert all(np.isinf(scalar) for layer in ("norm0", "norm1") for scalar in scalars[layer].values())
        assert relative_error({name: scalars[name] for name in leave}, wanted) < 1e-5
    check_problem(seen.problem)
    objective = attacks.adapt(attacks.create("modern"), seen.problem).objective
    update = seen.problem.imagine(gi_jax.threat.Batch(jnp.zeros(seen.problem.image_shape), seen.problem.labels))
    assert np.isfinite(objective.parts["matching"](seen.problem, None, update))


@pytest.mark.parametrize("view", ["sum", "client"])
def test_of_a_mean_nobody_is_told_whose_labels_are_whose(model, view):
    held = np.argsort(LABELS, kind="stable").reshape(NUM_CLIENTS, HELD).astype(np.int32)  # few classes a client
    adversary = Adversary(threat=THREATS["infer"], view=view, rounds=(0,), clients=(0, 2, 4))
    found = run(model, 1, held, adversary=adversary)
    (seen,), (secrets,) = found.seen, found.secrets
    truth = sum(np.asarray(secret.victim.labels).sum(0) for secret in secrets)
    assert seen.problem.clients == 3
    of_clients = np.asarray(seen.problem.labels).reshape(3, HELD, 4).sum(1)
    np.testing.assert_array_equal(of_clients.sum(0), truth)
    assert np.ptp(of_clients, axis=0).max() <= 1


@pytest.mark.parametrize("view", ["sum", "client"])
def test_a_mean_is_that_of_those_who_are_not_with_the_adversary(model, view):
    honest = (0, 2, 3)
    common = dict(rounds=(1,), clients=honest)
    settings = dict(batch_size=2, normalize=GIVEN)
    apart = run(model, 2, adversary=Adversary(threat=RUNNING, **common), **settings)
    found = run(model, 2, adversary=Adversary(threat=RUNNING, view=view, **common), **settings)
    (seen,), (secrets,) = found.seen, found.secrets
    assert seen.clients == honest == tuple(secret.client for secret in secrets)
    assert seen.problem.image_shape[0] == 6 and seen.problem.labels.shape == (6, 4)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(one.problem.observed for one in apart.seen))
    assert relative_error(seen.problem.observed, mean) < 1e-3


def test_of_a_sum_with_one_other_client_its_update_is_left(model):
    """The others are with the adversary: they know their part."""
    settings = dict(batch_size=1, clients_per_round=2, key=jax.random.key(5))
    common = dict(threat=THREATS["infer"], rounds=(0, 1, 2, 3), clients=(0, 1))
    alone = run(model, 4, adversary=Adversary(view="client", **common), **settings)
    found = run(model, 4, adversary=Adversary(view="sum", **common), **settings)
    assert [seen.clients for seen in found.seen] == [seen.clients for seen in alone.seen]
    assert min(len(seen.clients) for seen in found.seen) == 1
    for a, b in zip(found.seen, alone.seen, strict=True):
        assert relative_error(a.problem.observed, b.problem.observed) < 1e-3


def test_encodings_are_what_a_client_trains_on(model):
    defense = defenses.parse("intra_instahide:k=2")
    found = run(model, 1, defense=defense, batch_size=4, adversary=Adversary(threat=THREATS["infer"], clients=(0,)))
    (secret,) = found.secrets[0]
    pictures = SPACE.normalize(POOL.images[secret.pictures].astype(jnp.float32) / 255)
    mixed = secret.mapping.signs * secret.mapping.mix(pictures)
    encodings = secret.victim.space.normalize(secret.victim.images)
    np.testing.assert_allclose(encodings, mixed, atol=1e-4)
    assert found.seen[0].problem.known[0].k == 2
    summed = run(model, 1, defense=defense, batch_size=4, adversary=Adversary(threat=THREATS["infer"], view="sum"))
    assert summed.seen[0].problem.known == (Mixed(k=2, flipped=True),)


REFUSED = {
    "more clients": (dict(clients_per_round=6), None, "clients_per_round=6: expected 1 to 5"),
    "more pictures": (dict(batch_size=9), None, "batch_size=9: expected 1 to 8"),
    "none at once": (dict(at_once=0), None, "at_once=0"),
    "rate": (dict(server_rate=-1.0), None, "server_rate=-1"),
    "part of an epoch": (dict(local=LocalTraining(num_steps=3, batch_size=2)), None, "expected whole epochs"),
    "fedbn": (dict(batch_norm=Policy.FED_BN), None, "'fedbn' without local steps"),
    "public": (dict(defense=defenses.parse("inter_instahide:k=4")), None, "public pictures"),
    "examples": (
        dict(local=LocalTraining(num_steps=2), defense=defenses.parse("dpsgd:clip=1,sigma=1"), normalize=GIVEN),
        None,
        "2 local steps",
    ),
    "private statistics": (dict(defense=defenses.parse("dpsgd:clip=1,sigma=1")), None, "dpsgd with BatchNorm"),
    "eavesdropper": ({}, dict(view="eavesdropper"), "nothing is observed"),
    "view": ({}, dict(view="servr"), "did you mean 'server'"),
    "round": ({}, dict(rounds=(3,)), "round=3"),
    "client": ({}, dict(clients=(5,)), "client=5"),
    "client mode": ({}, dict(threat=RUNNING), "expected the same"),
    "kept": (dict(batch_norm=Policy.SILO_BN), {}, "shared='nothing'"),
    "steps of a sum": (dict(local=LocalTraining(num_steps=2)), dict(view="sum"), "with local steps"),
    "sum of one": (dict(clients_per_round=1), dict(view="sum"), "expected two or more"),
    "statistics of steps": (
        dict(local=LocalTraining(num_steps=2)),
        dict(threat=THREATS["exact-straight-through"]),
        "every step has its own",
    ),
    "models of Adam": (dict(server=optax.adam), dict(view="client"), "expected server optax.sgd"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line(model, case):
    settings, wanted, message = REFUSED[case]
    adversary = None if wanted is None else Adversary(**{"threat": THREATS["infer"], **wanted})
    with pytest.raises(InputError, match=message) as error:
        run(model, adversary=adversary, **settings)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_stops_the_federation(model):
    with pytest.raises(InputError, match="lower the learning rates"):
        run(model, 10, server_rate=1e30)


def test_weights_that_are_not_finite_after_the_last_round_are_refused(model):
    params, batch_stats = model
    with pytest.raises(InputError, match="not finite after round 1 of 1.*lower the learning rates"):
        run((params, jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), batch_stats)), 1)


# The command.

QUICKLY = ["federate", "--model", "mlp", "--image-size", "12", "--clients", "3", "--batch-size", "8"]


@pytest.fixture
def no_disk_cache(monkeypatch):
    monkeypatch.setattr(cli.terminal, "set_up_compilation", lambda: None)


def test_the_command_leaves_weights_and_a_record(tmp_path, capsys, no_disk_cache):
    out = tmp_path / "out"
    steps = ["--local-steps", "2", "--local-batch-size", "4", "--rounds", "5", "--test-every", "2"]
    assert cli.main([*QUICKLY, *steps, "--defense", "prune:p=0.5", "--defense", "clip:norm=9", "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "trained by a federation of 3 clients for 1.05 epochs under" in printed
    assert "on 114 pictures of the train split of photos (test accuracy" in printed  # of 116: all hold as many
    result = json.loads((out / "federation.json").read_text())
    assert result["complete"] and [row["round"] for row in result["rounds"]] == [2, 4, 5]
    assert len(result["losses"]) == 5 and np.shape(result["classes_of_clients"]) == (3, 10)
    assert FederationSpec(**result["spec"]).defense == "prune:p=0.5 + clip:norm=9"
    origin = weights.load(out).origin
    assert origin.steps == 5 and origin.test_accuracy == result["rounds"][-1]["test_accuracy"]
    attack = ["attack", "--weights", str(out), "--image-size", "12", "--steps", "2", "--num-batches", "1"]
    assert cli.main([*attack, "--out", str(tmp_path / "attack")]) == 0
    assert cli.main([*QUICKLY, "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_ctrl_c_keeps_the_rounds_so_far(tmp_path, monkeypatch, capsys, no_disk_cache):
    monkeypatch.setattr(cli.terminal.progress_bar, "report", lambda self, report: signal.raise_signal(signal.SIGINT))
    assert cli.main([*QUICKLY, "--rounds", "9", "--out", str(tmp_path)]) == 130
    assert "weights so far are kept" in capsys.readouterr().err
    assert weights.load(tmp_path).origin.steps == 1
    assert not json.loads((tmp_path / "federation.json").read_text())["complete"]


def test_a_kill_leaves_the_last_test_whose_next_loss_is_finite(tmp_path, monkeypatch, no_disk_cache):
    def killed(bar, report):
        if report.title.startswith("round 5"):
            raise SystemExit(9)

    monkeypatch.setattr(simulation, "CHUNK_SECONDS", 0)  # no two rounds together
    monkeypatch.setattr(cli.terminal.progress_bar, "report", killed)
    with pytest.raises(SystemExit):
        cli.main([*QUICKLY, "--rounds", "9", "--test-every", "2", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "federation.json").read_text())
    assert not result["complete"] and [row["round"] for row in result["rounds"]] == [2, 4]
    assert weights.load(tmp_path).origin.steps == len(result["losses"]) == 4


DIVERGING = [*QUICKLY, "--server-lr", "20", "--test-every", "9"]
"""The weights after five rounds are those that diverge: their loss is seen in the sixth."""


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(
    "settings",
    [["--server", "fedadam"], ["--model", "convnet", "--batch-norm", "fedbn", "--local-steps", "1"]],
    ids=["fedadam", "fedbn"],
)
def test_an_interrupted_simulation_goes_on_as_if_undisturbed(
    settings, killed, tmp_path, monkeypatch, capsys, no_disk_cache
):
    command = [*QUICKLY, *settings, "--rounds", "6", "--test-every", "2", "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main([*command, str(whole)]) == 0

    def report(bar, report):
        if report.title.startswith("round 5"):
            if killed:
                raise SystemExit(9)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(simulation, "CHUNK_SECONDS", 0)  # no two rounds together
        patch.setattr(federation, "SAVE_SECONDS", 0)
        patch.setattr(cli.terminal.progress_bar, "report", report)
        with pytest.raises(SystemExit) if killed else contextlib.nullcontext():
            assert cli.main([*command, str(cut)]) == 130
    assert cli.main([*command, str(cut)]) == 2
    assert "add --resume to go on" in capsys.readouterr().err
    assert cli.main([*command, str(cut), "--seed", "1", "--resume"]) == 2
    assert "other settings" in capsys.readouterr().err
    begun = []
    advance = federated.advance
    monkeypatch.setattr(
        federated, "advance", lambda *args, **kw: begun.append(int(args[1].round)) or advance(*args, **kw)
    )
    assert cli.main([*command, str(cut), "--resume"]) == 0
    assert begun == [3 if killed else 4]  # of the rounds before the last report, those whose next loss is known
    assert sorted(path.name for path in cut.iterdir()) == ["federation.json", "weights.msgpack"]
    found, expected = (weights.load(folder) for folder in (cut, whole))
    assert found.origin == expected.origin
    jax.tree.map(np.testing.assert_array_equal, found[1:], expected[1:])
    found, expected = (json.loads((folder / "federation.json").read_text()) for folder in (cut, whole))
    for differs in ("timing", "environment"):
        del found[differs], expected[differs]
    assert found == expected


@pytest.fixture
def cut(tmp_path, monkeypatch):
    """The specification of a simulation with two clients side by side that was stopped in its second round."""
    monkeypatch.setattr(simulation, "CHUNK_SECONDS", 0)
    monkeypatch.setattr(FederationStudy, "_at_once", lambda study: 2)
    spec, asked = FederationSpec(model="mlp", image_size=12, clients=3, batch_size=8, rounds=4), iter((False, True))
    assert not run_federation(spec, out=tmp_path, should_stop=lambda: next(asked)).result["complete"]
    assert train_checkpoint.exists(tmp_path)
    return spec


def test_as_many_clients_are_side_by_side_as_before_an_interruption(cut, tmp_path, monkeypatch):
    monkeypatch.setattr(FederationStudy, "_at_once", lambda study: 1)  # of another machine
    result = run_federation(cut, out=tmp_path, resume=True).result
    assert result["complete"] and result["spec"]["at_once"] == 2


def test_what_starts_anew_leaves_nothing_of_an_earlier_simulation(cut, tmp_path):
    def killed(report):
        raise SystemExit(9)

    with pytest.raises(SystemExit):
        run_federation(dataclasses.replace(cut, seed=1), out=tmp_path, on_report=killed)
    assert not any(tmp_path.iterdir())


def test_resume_replaces_nothing_of_another_command(tmp_path, capsys, no_disk_cache):
    (tmp_path / "weights.msgpack").write_bytes(b"of a training")
    for command in ("federate", "train"):
        assert cli.main([command, "--out", str(tmp_path), "--resume"]) == 2
        found = capsys.readouterr()
        assert "weights.msgpack is there already" in found.err and "nothing to resume" in found.out
    assert (tmp_path / "weights.msgpack").read_bytes() == b"of a training"


def test_what_has_ended_is_read_again(tmp_path, capsys, no_disk_cache, monkeypatch):
    assert cli.main([*DIVERGING, "--rounds", "9", "--out", str(tmp_path), "--resume"]) == 2
    first = capsys.readouterr()
    assert f"nothing to resume in {tmp_path}: starting anew" in first.out
    monkeypatch.setattr(federated, "advance", None)
    assert cli.main([*DIVERGING, "--rounds", "9", "--out", str(tmp_path), "--resume"]) == 2
    again = capsys.readouterr()
    assert again.err == first.err and again.out == first.out.split("anew\n")[1]


@pytest.mark.parametrize("chunk_seconds, interrupted", [(0, False), (1e9, False), (0, True)])
def test_the_last_round_before_a_loss_that_is_not_finite_is_kept_whatever_the_clock_says(
    chunk_seconds, interrupted, tmp_path, monkeypatch, capsys, no_disk_cache
):
    def report(bar, report):
        if interrupted and report.title.startswith("round 5"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(simulation, "CHUNK_SECONDS", chunk_seconds)
    monkeypatch.setattr(cli.terminal.progress_bar, "report", report)
    assert cli.main([*DIVERGING, "--rounds", "9", "--out", str(tmp_path / "nine")]) == 2
    error = capsys.readouterr().err
    assert ("not finite after round 5 of 9" if interrupted else "the loss is nan in round 6 of 9") in error
    assert error.endswith("; the weights after round 4 are kept\n")
    assert cli.main([*DIVERGING, "--rounds", "4", "--out", str(tmp_path / "four")]) == 0
    kept, expected = (weights.load(tmp_path / name) for name in ("nine", "four"))
    assert kept.origin == expected.origin
    jax.tree.map(np.testing.assert_array_equal, kept[1:], expected[1:])
    kept, expected = (json.loads((tmp_path / name / "federation.json").read_text()) for name in ("nine", "four"))
    assert not kept["complete"] and kept["losses"] == expected["losses"] and kept["rounds"] == expected["rounds"]


def test_of_a_first_round_that_diverges_nothing_is_kept(tmp_path, capsys, no_disk_cache):
    assert cli.main([*QUICKLY, "--server-lr", "1e30", "--rounds", "9", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("; nothing is kept\n") and not any(tmp_path.iterdir())


def test_a_last_round_that_diverges_is_not_kept(tmp_path, monkeypatch, capsys, no_disk_cache):
    diverging = ["--server-lr", "1e38", "--out", str(tmp_path)]
    assert cli.main([*QUICKLY, "--rounds", "1", *diverging]) == 2
    assert "not finite after round 1 of 1" in capsys.readouterr().err and not any(tmp_path.iterdir())
    scores, tested = federated.scores, []

    def spoiled(*arguments):
        tested.append(scores(*arguments))
        return [score._replace(loss=math.nan) for score in tested[-1]] if len(tested) == 3 else tested[-1]

    monkeypatch.setattr(federated, "scores", spoiled)
    assert cli.main([*QUICKLY, "--rounds", "3", "--out", str(tmp_path)]) == 2
    assert "not finite after round 3 of 3" in capsys.readouterr().err
    assert json.loads((tmp_path / "federation.json").read_text())["rounds"][-1]["round"] == 2
    assert weights.load(tmp_path).origin.steps == 2


def test_models_of_clients_are_tested_one_by_one():
    settings = dict(image_size=8, clients=3, batch_size=4, local_steps=1, local_rate=0.1)
    spec = FederationSpec(**settings, batch_norm="fedbn", rounds=1)
    found, result = run_federation(spec)
    (row,) = result["rounds"]
    assert len(row["test_accuracy_of_clients"]) == 3
    assert row["test_accuracy"] == pytest.approx(np.mean(row["test_accuracy_of_clients"]))
    # The weights are a model that no client has: their accuracy is their own.
    tested = study.on_device(study.test_split(spec, None), found.origin)
    accuracy = training.evaluate(found.network, found.params, found.batch_stats, tested).accuracy
    assert found.origin.test_accuracy == row["test_accuracy_of_mean"] == accuracy
    assert accuracy != row["test_accuracy"]


@pytest.mark.parametrize(
    ("settings", "at_once"),
    [
        (dict(batch_size=8), 3),  # 8 x 12 x 12 pixels a client
        (dict(batch_size=8, clients_per_round=2), 2),
        (dict(batch_size=20), 2),
        (dict(), 1),  # all pictures
        (dict(batch_size=24, local_steps=3, local_batch_size=8), 3),
        (dict(batch_size=24, local_steps=1), 2),
        (dict(at_once=3), 3),
    ],
)
def test_clients_side_by_side_are_what_keeps_the_device_busy(settings, at_once, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")  # others are busy with more
    spec = FederationSpec(model="mlp", image_size=12, clients=3, partition="iid", rounds=1, **settings)
    result = run_federation(spec).result
    assert result["spec"]["at_once"] == at_once
    assert FederationSpec(**result["spec"]).at_once == at_once  # what was run, wherever it is run again


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ([], "at_once=3 clients with 8 pictures each: a round needs .* GB, .*; try --at-once 1, or --batch-size 4"),
        (["--at-once", "1"], "at_once=1 clients with 8 pictures each: .*; try --batch-size 4"),
        (["--at-once", "1", "--local-steps", "2", "--local-batch-size", "4"], "try a smaller --local-batch-size"),
    ],
)
def test_rounds_that_the_memory_does_not_hold_are_refused_before_the_first(
    settings, hint, tmp_path, capsys, monkeypatch, no_disk_cache
):
    available = int(0.6 * _needed(settings, tmp_path, monkeypatch))
    monkeypatch.setattr("gi_jax.memory.available", lambda: available)
    monkeypatch.setattr(federated, "advance", None)
    assert cli.main([*QUICKLY, *settings, "--out", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert re.search(hint, error) and error.count("\n") == 1


def _needed(settings, folder, monkeypatch):
    """Bytes of the command's program, which the memory holds."""
    sizes, needed = [], memory.needed
    with monkeypatch.context() as patched:
        patched.setattr(memory, "needed", lambda program: sizes.append(needed(program)) or sizes[-1])
        assert cli.main([*QUICKLY, *settings, "--rounds", "1", "--out", str(folder / "fits")]) == 0
    return sizes[0]


def test_the_program_whose_memory_is_known_is_the_one_that_runs(model):
    federation = Federation(network=NETWORK, server_rate=RATE, batch_size=3)
    state = federated.start(federation, *model, NUM_CLIENTS)
    began = len(COMPILED)
    assert federated.program_bytes(federation, state, POOL, CLIENTS, KEY) > POOL.images.nbytes
    before = len(COMPILED)
    assert "jit(_unwatched)" in COMPILED[began:before]
    next(federated.advance(federation, state, POOL, CLIENTS, KEY, ends=[1]))
    assert "jit(_unwatched)" not in COMPILED[before:]


@pytest.mark.parametrize(
    "settings, message",
    [
        (["--model", "convnt"], "did you mean 'convnet'"),
        (["--partition", "diriclet"], "did you mean 'dirichlet'"),
        (["--server", "fedadm"], "did you mean 'fedadam'"),
        (["--batch-norm", "fedbm"], "did you mean 'fedbn'"),
        (["--client-bn", "bach"], "did you mean 'batch'"),
        (["--rounds", "0"], "rounds=0"),
        (["--local-batch-size", "2"], "without local steps"),
        (["--local-lr", "0.05"], "local_rate=0.05 without local steps"),
        (["--partition", "iid", "--alpha", "0.1"], "alpha=0.1 with partition='iid'"),
        (["--batch-norm", "silobn"], "without BatchNorm"),
        (["--clients", "9999"], "take fewer clients"),
        (["--defense", "prun:p=0.5"], "did you mean 'prune'"),
        (["--defense", "dpsgd:clip=1,sigma=1,q=0.1,steps=20,delta=1e-5"], "q, steps, delta are for the epsilon of Poi"),
    ],
)
def test_bad_settings_are_one_line(settings, message, tmp_path, capsys, no_disk_cache):
    assert cli.main([*QUICKLY, *settings, "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
