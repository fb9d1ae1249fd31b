"""Attacks: what they reconstruct, and that lanes, chunks, seeds and broken neighbors change nothing they should not.

Lanes run side by side and lanes run alone are different programs, so they agree to rounding only, which the attack then
amplifies: after 20 steps of Adam to 1e-3. Within one program everything is compared to the bit.
"""

import dataclasses
import re
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from problems import COMPILED, PLAIN, QUICK, TinyNet, enable_x64, toy_problem, toy_victim, truth

from gi_jax import attacks, defenses
from gi_jax.attacks import (
    ATTACKS,
    GradientDescent,
    adam,
    advance,
    initial,
    lane_keys,
    loop,
    losses_at,
    reconstruct,
    reconstruct_all,
    reconstructions,
    schedules,
    signed_adam,
    start,
)
from gi_jax.attacks.optimizers import lbfgs
from gi_jax.checks import InputError
from gi_jax.defenses import FunctionDefense
from gi_jax.defenses.pruning import smallest_kept
from gi_jax.metrics import psnr
from gi_jax.models import create as create_network
from gi_jax.objectives import (
    BatchNormPrior,
    Candidate,
    GradientMatching,
    Objective,
    SquaredNorm,
    TotalVariation,
    total_variation,
)
from gi_jax.threat import RUNNING, THREATS, Noisy, Zeroed, observe, stack, victim_axes

STEPS = 20


def objective(matching=1.0, tv=0.01):
    return Objective(parts={"matching": GradientMatching(weight=matching), "tv": TotalVariation(weight=tv)})


def small_attack(**options):
    """Adam on a plain function; options are numbers, so that all tests share the program."""
    weights = {name: options.pop(name) for name in ("matching", "tv") if name in options}
    settings = {"optimizer": adam(), "num_steps": STEPS, "learning_rate": 0.1, **options}
    return GradientDescent(objective=objective(**weights), **settings)


def swept_attack(*points):
    """One attack for several settings; all three numbers are vectors, so that sweeps share their program."""
    points = [{"tv": 0.01, "learning_rate": 0.1, "num_steps": STEPS, **point} for point in points]
    return small_attack(**{name: jnp.array([point[name] for point in points]) for name in points[0]})


def problem_of(number=0):
    return toy_problem(toy_victim(PLAIN, seed=number), RUNNING)


def two_problems():
    """Two victims of one model."""
    victim, other = toy_victim(PLAIN), toy_victim(PLAIN, seed=1)
    other = dataclasses.replace(other, params=victim.params, labels=other.labels[::-1])
    return [toy_problem(victim, RUNNING), toy_problem(other, RUNNING)]


def begin(attack, problems=None, victims=(0,), restarts=2, seed=0):
    """The problems as a stack, and the states before the first step."""
    problems = stack([problem_of()] if problems is None else problems)
    return problems, start(attack, problems, lane_keys(jax.random.key(seed), list(victims), restarts))


def run(attack, problems=None, victims=(0,), restarts=2, seed=0, **options):
    """The last states and all rows of progress of a launch: of one victim and two restarts, unless told otherwise."""
    looks = list(advance(attack, *begin(attack, problems, victims, restarts, seed), **options))
    return jax.device_get(looks[-1][0]), [progress for _, progress in looks]


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b) -> bool:
    return any(np.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def lane(states, *place):
    return jax.tree.map(lambda leaf: leaf[place], states)


# What comes out.


def test_a_convolutional_network_gives_its_picture_away():
    victim = toy_victim(TinyNet(4, smooth=False, features=16), n=1, side=16)
    attack = GradientDescent(objective=objective(tv=0.01), learning_rate=0.1, num_steps=500)
    found = reconstruct(attack, toy_problem(victim, RUNNING), jax.random.key(0), chunk=250)
    assert psnr(found.images, victim.images)[0] > 25
    assert found.images.shape == (1, 16, 16, 3) and 0 <= found.images.min() and found.images.max() <= 1
    np.testing.assert_array_equal(found.labels, victim.labels)


def test_a_users_plain_function_is_attacked_end_to_end():
    victim = toy_victim(PLAIN)
    found = reconstruct(small_attack(num_steps=300), toy_problem(victim, RUNNING), jax.random.key(0), num_restarts=2)
    noise = initial.normal(jax.random.key(0), problem_of())
    assert (
        psnr(found.images, victim.images).mean() > 20 > 12 > psnr(victim.space.denormalize(noise), victim.images).mean()
    )


def test_pruned_gradients_are_harder():
    victim = toy_victim(PLAIN)
    pruned = toy_problem(victim, RUNNING, defenses.parse("prune:p=0.999"))
    scores = [
        psnr(reconstruct(small_attack(num_steps=300), problem, jax.random.key(0), num_restarts=2).images, victim.images)
        for problem in (toy_problem(victim, RUNNING), pruned)
    ]
    assert scores[0].mean() > scores[1].mean() + 5


# Lanes.


def test_lanes_side_by_side_equal_lanes_alone():
    problems = two_problems()
    together, _ = run(small_attack(), problems, victims=[0, 1], seed=3)
    assert together.best.images.shape == (2, 1, 2, 2, 8, 8, 3)
    keys = jax.random.key_data(lane_keys(jax.random.key(3), [0, 1], 2))
    for victim in range(2):
        for restart in range(2):
            begun = stack([problems[victim]])
            key = jax.random.wrap_key_data(keys[victim : victim + 1, restart : restart + 1])
            *_, (alone, _) = advance(small_attack(), begun, start(small_attack(), begun, key))
            ours, theirs = lane(together, victim, 0, restart), lane(alone, 0, 0, 0)
            np.testing.assert_allclose(ours.best.images, theirs.best.images, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(ours.best_loss, theirs.best_loss, rtol=1e-3)
            np.testing.assert_allclose(ours.info.parts["tv"], theirs.info.parts["tv"], rtol=1e-3)
    assert differ(together.best.images[0, 0, 0], together.best.images[0, 0, 1])


def test_keys_of_a_lane_depend_on_its_own_numbers_only():
    table = jax.random.key_data(lane_keys(jax.random.key(3), [4, 7, 9], 3))
    few = jax.random.key_data(lane_keys(jax.random.key(3), [7], 2))
    np.testing.assert_array_equal(table[1:2, :2], few)
    assert len({tuple(key) for key in np.asarray(table).reshape(9, -1)}) == 9


def test_each_victim_gets_its_own_picture_and_labels():
    problems = two_problems()
    states, _ = run(small_attack(num_steps=200), problems, victims=[0, 1], seed=3)
    found = reconstructions(stack(problems), states)
    assert len(found) == 2 and [len(points) for points in found] == [1, 1]
    victims = [toy_victim(PLAIN).images, toy_victim(PLAIN, seed=1).images]
    for number, ((best,), problem) in enumerate(zip(found, problems, strict=True)):
        np.testing.assert_array_equal(best.labels, problem.labels)
        own, others = (psnr(best.images, victims[i]).mean() for i in (number, 1 - number))
        assert own > others + 5


def test_the_best_restart_is_the_attackers_choice_not_the_truths():
    # With no matching at all the loss knows nothing of the truth, and the two disagree.
    attack = small_attack(matching=0.0, tv=1.0, num_steps=1)
    victim, problem = toy_victim(PLAIN), problem_of()
    found = reconstruct(attack, problem, jax.random.key(8), num_restarts=6)
    states, _ = run(attack, restarts=6, seed=8)
    assert found.loss == found.losses.min() == found.losses[found.restart]
    np.testing.assert_array_equal(found.losses, states.best_loss[0, 0])
    pictures = victim.space.denormalize(states.best.images[0, 0])
    np.testing.assert_array_equal(found.images, pictures[found.restart])
    by_truth = int(np.argmax([psnr(picture, victim.images).mean() for picture in pictures]))
    assert by_truth != found.restart
    assert len(set(found.losses.tolist())) == 6 and found.alive.all()


def test_more_restarts_never_give_a_worse_loss():
    losses = [reconstruct(small_attack(), problem_of(), jax.random.key(2), num_restarts=n).loss for n in (1, 2, 6)]
    assert losses[1] <= losses[0] * 1.001 and losses[2] <= losses[1] * 1.001


# The best so far.


def test_best_so_far_never_rises_and_counts_the_last_iterate():
    attack = small_attack(num_steps=7, learning_rate=3.0)
    states, rows = run(attack, chunk=1)
    losses = np.stack([row.loss for row in rows])
    best = np.stack([row.best_loss for row in rows])
    assert len(rows) == 7 + 1
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6, 7, 7]
    np.testing.assert_array_equal(best, np.minimum.accumulate(losses))
    assert np.all(states.step == 7)
    assert np.any(np.diff(losses, axis=0) > 0)  # the step is too long, so there was something to remember


def test_the_last_iterate_can_be_the_best():
    attack = small_attack(num_steps=1, learning_rate=0.05)
    states, rows = run(attack, chunk=1)
    first, last = (row.loss for row in rows)
    assert np.all(last < first)
    np.testing.assert_array_equal(states.best_loss, last)
    assert_same_bits(states.best, states.candidate)


def test_the_best_candidate_has_the_best_loss():
    attack = small_attack(learning_rate=3.0)
    states, _ = run(attack)
    problem = problem_of()
    evaluate = jax.jit(lambda images: attack.objective(problem, Candidate(images))[0], compiler_options=QUICK)
    for restart in range(2):
        loss = evaluate(states.best.images[0, 0, restart])
        np.testing.assert_allclose(states.best_loss[0, 0, restart], loss, rtol=1e-4)


def test_early_stop_at_the_target():
    _, rows = run(small_attack(), chunk=1)
    slowest = np.stack([row.best_loss.max() for row in rows])
    target = float(slowest[9])
    _, stopped = run(small_attack(), chunk=1, target_loss=target)
    assert len(stopped) == 1 + int(np.argmax(slowest <= target)) < len(rows)
    assert np.all(stopped[-1].best_loss <= target)
    _, never = run(small_attack(), chunk=1, target_loss=-1.0)
    assert len(never) == len(rows)


# Lanes that break.

BREAKING = optax.scale(jnp.nan)


def test_a_broken_lane_is_frozen_and_its_neighbor_does_not_notice():
    healthy, _ = run(swept_attack({}, {}), restarts=1)
    begun = begin(swept_attack({}, {}), restarts=1)
    looks = list(advance(swept_attack({}, {"learning_rate": jnp.nan}), *begun, chunk=1))
    states, rows = jax.device_get(looks[-1][0]), [progress for _, progress in looks]
    assert_same_bits(lane(states, 0, 0, 0), lane(healthy, 0, 0, 0))
    assert states.alive[0, :, 0].tolist() == [True, False]
    assert len(rows) == STEPS + 1
    broken = lane(states, 0, 1, 0)
    assert broken.step == 1 and np.isfinite(broken.best_loss) and np.all(np.isfinite(broken.best.images))
    assert broken.best_loss == rows[0].loss[0, 1, 0]
    (points,) = reconstructions(stack([problem_of()]), states)
    assert points[0].alive.tolist() == [True] and points[1].alive.tolist() == [False]
    assert np.all(np.isfinite(points[1].images))


def test_a_picture_of_nan_is_never_the_best():
    # The first loss of a cosine is above 1 where the start points away from the truth.
    attack = small_attack(tv=0.0, optimizer=BREAKING)
    for seed in range(8):
        states, _ = run(attack, seed=seed)
        assert np.all(np.isfinite(states.best.images)) and not states.alive.any()


def test_a_launch_of_broken_lanes_ends_at_once():
    seen = []
    attack = small_attack(optimizer=BREAKING, num_steps=1000)
    found = reconstruct(attack, problem_of(), jax.random.key(0), num_restarts=2, chunk=5, on_progress=seen.append)
    assert len(seen) == 1 and not found.alive.any()
    assert np.isfinite(found.loss) and np.all(np.isfinite(found.images))


def sometimes_nan(key, problem):
    return jnp.where(jax.random.uniform(key) < 0.5, jnp.nan, 0.3) * jnp.ones(problem.image_shape)


def test_a_lane_that_starts_broken_is_never_chosen():
    attack = small_attack(initialize=sometimes_nan)
    found = reconstruct(attack, problem_of(), jax.random.key(0), num_restarts=8)
    assert 0 < found.alive.sum() < 8
    np.testing.assert_array_equal(np.isfinite(found.losses), found.alive)
    assert found.alive[found.restart] and np.all(np.isfinite(found.images))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Fails:
    """NaN at a weight above 0."""

    weight: jax.Array | float = 1.0

    def __call__(self, problem, candidate, update):
        return jnp.where(self.weight > 0, jnp.nan, 0.0)


def test_what_never_had_a_finite_loss_is_no_reconstruction():
    parts = {"matching": GradientMatching(), "fails": Fails(weight=jnp.array([0.0, 1.0]))}
    states, _ = run(GradientDescent(objective=Objective(parts=parts), num_steps=3, optimize_labels=True))
    assert np.all(np.isfinite(states.best.images))
    ((found, lost),) = reconstructions(stack([problem_of()]), states)
    assert np.all(np.isfinite(found.images)) and np.all(np.isfinite(found.labels))
    assert lost.loss == np.inf and not lost.alive.any()
    assert np.all(np.isnan(lost.images)) and np.all(np.isnan(lost.labels)) and np.all(np.isnan(lost.spread))
    assert lost.images.dtype == np.float32


def test_a_launch_ends_with_the_longest_lane_that_lives():
    short, long = {"num_steps": 4}, {"num_steps": 50, "learning_rate": jnp.nan}
    problems, states = begin(swept_attack(short, short), restarts=1)
    attack = swept_attack(short, long)
    looks = list(advance(attack, problems, states, chunk=2))
    states, _ = looks[-1]
    assert states.alive[0, :, 0].tolist() == [True, False] and states.step[0, :, 0].tolist() == [4, 1]
    assert [progress.step for _, progress in looks] == [2, 4, 4]  # the last one looks
    assert [progress.step for _, progress in advance(attack, problems, states, chunk=2)] == [4]


def test_a_longest_lane_that_breaks_late_ends_the_launch_and_a_resumed_one():
    short, long = {"num_steps": 4}, {"num_steps": 50}
    attack = swept_attack(short, long)
    looks = advance(attack, *begin(attack, restarts=1), chunk=8)
    states, _ = next(looks)
    states = states._replace(candidate=states.candidate._replace(images=states.candidate.images.at[0, 1].set(jnp.nan)))
    for _ in range(2):
        looks = advance(attack, stack([problem_of()]), states, chunk=8)
        ((states, progress),) = looks
        assert progress.step == 8 and progress.alive[0, :, 0].tolist() == [True, False]


def test_at_the_truth_nothing_is_left_but_the_prior():
    attack, problems = small_attack(tv=jnp.array([0.5, 2.0])), two_problems()
    stacked, states = begin(attack, problems, victims=[0, 1])
    *_, (states, _) = advance(attack, stacked, states)
    ended, compiled = jax.device_get(states.info.loss), len(COMPILED)
    images = jnp.stack([truth(toy_victim(PLAIN)), truth(toy_victim(PLAIN, seed=1))])
    found = losses_at(attack, stacked, states, images)
    assert "jit(_advance)" not in COMPILED[compiled:]  # the program of the attack
    variation = np.array([float(total_variation(one)) for one in images])
    expected = np.broadcast_to((variation[:, None] * np.array([0.5, 2.0]))[..., None], (2, 2, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert differ(found, ended)


# Programs.


def test_nothing_is_compiled_twice_that_is_the_same_program():
    run(small_attack())
    before = len(COMPILED)
    for options in (
        {"tv": 0.5},
        {"matching": 3},
        {"learning_rate": 0.7},
        {"learning_rate": jnp.float32(0.7)},
        {"num_steps": 33},
        {"num_steps": jnp.int32(5)},
    ):
        run(small_attack(**options))
    run(small_attack(), seed=77)
    run(small_attack(), chunk=3)
    run(small_attack(), chunk=1000)
    run(small_attack(), [problem_of(1)])
    reconstruct(small_attack(), problem_of(1), jax.random.key(5), num_restarts=2)
    assert not {"jit(_advance)", "jit(_init)"} & set(COMPILED[before:])


def test_steps_are_counted_as_whole_numbers():
    attack = small_attack(num_steps=2**24 + 1)
    assert loop._as_arrays(attack).num_steps == 2**24 + 1
    swept = loop._as_arrays(small_attack(num_steps=jnp.array([5, 2**24 + 1])))
    np.testing.assert_array_equal(swept.num_steps, [5, 2**24 + 1])


STRENGTHS = {
    "noise": (
        lambda sigma: FunctionDefense(
            lambda key: defenses.add_gaussian_noise(sigma, key),
            lambda sent: (Noisy(distribution="gaussian", scale=sigma),),
        ),
        lambda gradients: jnp.geomspace(1e-3, 10, 16),
    ),
    "pruning": (
        lambda counts: FunctionDefense(
            lambda key: defenses.keep_largest(counts), lambda sent: (Zeroed(bound=smallest_kept(sent)),)
        ),
        lambda gradients: jax.tree.map(lambda leaf: jnp.int32(jnp.geomspace(leaf.size, 1, 16)), gradients),
    ),
}


@pytest.mark.parametrize("kind", STRENGTHS)
def test_sixteen_strengths_of_a_known_defense_are_lanes_of_one_program(kind):
    victim, (make, strengths) = toy_victim(PLAIN), STRENGTHS[kind]
    strengths = strengths(victim.params)
    see = lambda strength: observe(victim, RUNNING, make(strength), jax.random.key(3))  # noqa: E731
    axes = victim_axes(jax.eval_shape(see, jax.tree.map(lambda leaf: leaf[0], strengths)))
    problems = jax.jit(jax.vmap(see, out_axes=axes), compiler_options=QUICK)(strengths)
    before = len(COMPILED)
    for num_steps in (5, 100):
        attack = attacks.adapt(small_attack(num_steps=num_steps), problems)
        states = start(attack, problems, lane_keys(jax.random.key(0), [0] * 16, 1))
        *_, (states, progress) = advance(attack, problems, states)
    assert COMPILED[before:].count("jit(_advance)") == COMPILED[before:].count("jit(_init)") == 1
    assert progress.loss.shape == (16, 1, 1) and progress.alive.all()
    scores = [psnr(best.images, victim.images).mean() for (best,) in reconstructions(problems, states)]
    assert np.mean(scores[:4]) > np.mean(scores[-4:]) + 4


def test_compilations_are_noticed():
    def _advance(x):
        return x + 1

    before = len(COMPILED)
    for size in (3, 3, 4):
        jax.jit(_advance)(np.zeros(size))
    assert COMPILED[before:] == ["jit(_advance)"] * 2


@pytest.fixture
def evaluations(monkeypatch):
    """How many evaluations each call of the compiled loop makes, as a list that grows."""
    compiled, counts = loop._advance, []

    def counted(attack, problems, states, count):
        counts.append(int(count))
        return compiled(attack, problems, states, count)

    monkeypatch.setattr(loop, "_advance", counted)
    return counts


@pytest.mark.parametrize("chunk, counts", [(8, [8, 8, 5]), (1000, [21]), (21, [21]), (20, [20, 1])])
def test_every_iterate_is_evaluated_once(evaluations, chunk, counts):
    run(small_attack(), chunk=chunk)
    assert evaluations == counts and sum(counts) == STEPS + 1


def test_a_resumed_launch_is_the_same_program(evaluations):
    whole, _ = run(small_attack())
    problems, begun = begin(small_attack())
    states, progress = next(advance(small_attack(), problems, begun, chunk=8))
    assert progress.step == 8
    saved = jax.tree.map(np.array, jax.device_get(states))
    before = len(COMPILED)
    *_, (resumed, progress) = advance(small_attack(), problems, saved, chunk=5)
    assert progress.step == STEPS and "jit(_advance)" not in COMPILED[before:]
    assert evaluations == [21, 8, 5, 5, 3]
    assert_same_bits(jax.device_get(resumed), whole)


@pytest.mark.parametrize("chunk", [1, 7, STEPS, STEPS + 1, 1000])
def test_the_result_does_not_depend_on_the_chunks(chunk):
    whole, _ = run(small_attack())
    chunked, rows = run(small_attack(), chunk=chunk)
    assert_same_bits(chunked, whole)
    assert len(rows) == -(-(STEPS + 1) // chunk)
    assert rows[-1].step == STEPS


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    first, again, other = (
        reconstruct(small_attack(), problem_of(), jax.random.key(seed), num_restarts=2) for seed in (5, 5, 6)
    )
    assert_same_bits(first, again)
    assert differ(first.images, other.images)


def test_compiling_ahead_changes_nothing():
    assert_same_bits(loop.compile_ahead(small_attack(), *begin(small_attack())), begin(small_attack())[1])


# Sweeps.


def test_a_sweep_equals_separate_attacks():
    settings = [{"tv": 0.0}, {"tv": 1.0, "learning_rate": 0.02, "num_steps": 5}]
    attack = swept_attack(*settings)
    swept, rows = run(attack, restarts=1, chunk=1)
    assert loop.num_sweep_points(attack) == 2 and rows[-1].loss.shape == (1, 2, 1)
    assert swept.step[0, :, 0].tolist() == [STEPS, 5] and len(rows) == STEPS + 1
    for number, point in enumerate(settings):
        alone, _ = run(small_attack(**point), restarts=1)
        ours, theirs = lane(swept, 0, number, 0), lane(alone, 0, 0, 0)
        np.testing.assert_allclose(ours.best.images, theirs.best.images, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(ours.best_loss, theirs.best_loss, rtol=1e-3)
    # Restarts start from the same noise at every point of a sweep.
    _, begun = begin(attack, restarts=1)
    np.testing.assert_array_equal(begun.candidate.images[0, 0], begun.candidate.images[0, 1])
    points = reconstructions(stack([problem_of()]), swept)[0]
    assert [point.loss for point in points] == swept.best_loss[0, :, 0].tolist()


def test_sweeps_that_cannot_be():
    uneven = small_attack(tv=jnp.zeros(2), learning_rate=jnp.ones(3))
    square = small_attack(tv=jnp.zeros((2, 2)))
    for attack, shapes in ((uneven, r"\[\(2,\), \(3,\)\]"), (square, r"\[\(2, 2\)\]")):
        with pytest.raises(InputError, match=f"swept numbers of shapes {shapes}: expected scalars, or vectors of one"):
            begin(attack)
    with pytest.raises(InputError, match="reconstruct attacks with one setting; use reconstruct_all for a sweep"):
        reconstruct(small_attack(tv=jnp.zeros(2)), problem_of(), jax.random.key(0))


def test_problems_and_a_sweep_are_one_call():
    problems, attack, seen = two_problems(), swept_attack({}, {"tv": 1.0}), []
    found = reconstruct_all(attack, problems, jax.random.key(3), num_restarts=2, chunk=15, on_progress=seen.append)
    states, _ = run(attack, problems, victims=[0, 1], seed=3)
    assert_same_bits(found, reconstructions(stack(problems), states))
    assert [len(points) for points in found] == [2, 2] and [row.loss.shape for row in seen] == [(2, 2, 2)] * 2
    one, alone = small_attack(), reconstruct(small_attack(), problems[0], jax.random.key(3), num_restarts=2)
    assert_same_bits(alone, reconstruct_all(one, problems[:1], jax.random.key(3), num_restarts=2)[0][0])


def test_problems_are_adapted_to_in_one_call():
    victim = toy_victim(PLAIN)
    problems = [toy_problem(victim, RUNNING, defenses.parse(f"gaussian:sigma={sigma}")) for sigma in (0.1, 0.2)]
    seen = []
    reconstruct_all(small_attack(num_steps=1), problems, jax.random.key(0), on_progress=seen.append)
    assert "noise_prior" in seen[0].parts
    with pytest.raises(InputError, match="problems of one launch must share .* and kind of defense"):
        reconstruct_all(small_attack(), [problems[0], problem_of()], jax.random.key(0))


# One step at a time: optimizers, schedules, labels, the box.


@partial(jax.jit, static_argnums=3, compiler_options=QUICK)
def walk_lanes(attack, problem, keys, evaluations):
    def lane(key):
        def step(state, _):
            state = attack.step(problem, state)
            return state, state.info.loss

        return jax.lax.scan(step, attack.init(key, problem), length=evaluations)

    return jax.vmap(lane)(keys)


def walk(attack, problem, evaluations, num_lanes=1, seed=0):
    """The states of lanes after some evaluations, and the losses on the way [lanes, evaluations]."""
    return jax.device_get(walk_lanes(attack, problem, jax.random.split(jax.random.key(seed), num_lanes), evaluations))


@lru_cache
def optimizer_called(name):
    return {"adam": lambda: optax.adam(1.0), "sgd": lambda: optax.sgd(1.0), "lbfgs": optax.lbfgs}[name]()


@pytest.mark.parametrize("name, learning_rate", [("adam", 0.05), ("sgd", 5.0), ("lbfgs", 1.0)])
def test_any_optax_optimizer_lowers_the_loss(name, learning_rate):
    attack = small_attack(
        optimizer=optimizer_called(name), learning_rate=learning_rate, schedule=schedules.constant, boxed=False
    )
    states, losses = walk(attack, problem_of(), STEPS + 1, num_lanes=2)
    assert np.all(np.isfinite(losses)) and states.alive.all()
    assert np.all(losses[:, -1] < 0.8 * losses[:, 0])
    if name == "lbfgs":  # its line search takes no step that rises
        assert np.all(np.diff(losses) <= 1e-6) and np.all(losses[:, -1] < 0.1 * losses[:, 0])


def test_signed_adam_sees_signs_of_pictures_and_values_of_labels():
    optimizer = signed_adam()
    zero = Candidate(jnp.zeros(2), jnp.zeros(2))

    def updates(*gradients):
        state = optimizer.init(zero)
        for gradient in gradients:
            update, state = optimizer.update(Candidate(*gradient), state, zero)
        return update

    small, large = jnp.array([1e-3, -1e-3]), jnp.array([5.0, -700.0])
    np.testing.assert_allclose(updates((small, small)).images, [-1, 1], rtol=1e-3)
    scaled = updates((small, small), (large, large))
    np.testing.assert_allclose(scaled.images, [-1, 1], rtol=1e-3)
    mean, square = 0.1 * 1e-3 * 0.9 + 0.1 * 5, 0.001 * 1e-6 * 0.999 + 0.001 * 25
    expected = -(mean / (1 - 0.9**2)) / np.sqrt(square / (1 - 0.999**2))
    np.testing.assert_allclose(scaled.label_logits[0], expected, rtol=1e-3)
    assert signed_adam() is signed_adam() and adam() is adam()


@pytest.mark.parametrize(
    "schedule, factors",
    [
        (schedules.constant, {0: 1, 0.3: 1, 1: 1}),
        (
            schedules.step_decay,
            {0: 1, 0.374: 1, 0.375: 0.1, 0.624: 0.1, 0.625: 0.01, 0.874: 0.01, 0.875: 0.001, 1: 0.001},
        ),
        (schedules.cosine_decay, {0: 1, 0.25: (1 + 0.5**0.5) / 2, 0.5: 0.5, 1: 0}),
    ],
)
def test_schedules(schedule, factors):
    for fraction, factor in factors.items():
        np.testing.assert_allclose(schedule(jnp.float32(fraction)), factor, rtol=1e-5, atol=1e-7)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Slope:
    """A part whose derivative is 1 everywhere."""

    weight: float = 1.0

    def __call__(self, problem, candidate, update):
        return jnp.sum(candidate.images)


def at_zero(key, problem):
    return jnp.zeros(problem.image_shape)


@pytest.mark.parametrize(
    "schedule, total",
    [
        (schedules.constant, 8),
        (schedules.step_decay, 3 + 2 * 0.1 + 2 * 0.01 + 0.001),
        (schedules.cosine_decay, 0.5 * sum(1 + np.cos(np.pi * step / 8) for step in range(8))),
    ],
)
def test_steps_are_rate_times_schedule_of_the_fraction_done(schedule, total):
    attack = GradientDescent(
        objective=Objective(parts={"slope": Slope(weight=2.0)}),
        optimizer=optimizer_called("sgd"),
        schedule=schedule,
        learning_rate=0.01,
        num_steps=8,
        initialize=at_zero,
        boxed=False,
    )
    state, (losses,) = walk(attack, problem_of(), 12)
    assert state.step == 8 and losses.shape == (12,)
    np.testing.assert_allclose(state.candidate.images, -0.01 * 2 * total, rtol=1e-4)
    assert np.all(losses[8:] == losses[-1])  # after the last step it only looks
    np.testing.assert_allclose(state.info.parts["slope"], losses[-1] / 2, rtol=1e-5)


def test_candidates_stay_in_the_box_of_pictures_if_boxed():
    victim = toy_victim(PLAIN)
    for boxed in (True, False):
        attack = small_attack(boxed=boxed, learning_rate=1.0, schedule=schedules.constant)
        for steps in (0, 1, 5):
            state, _ = walk(attack, problem_of(), steps)
            pictures = state.candidate.images * np.asarray(victim.space.std) + np.asarray(victim.space.mean)
            inside = -1e-6 <= pictures.min() and pictures.max() <= 1 + 1e-6
            assert inside == boxed


def test_labels_are_optimized_jointly():
    victim = toy_victim(create_network("lenet", 4, lowering="lax"), n=1)
    problem = toy_problem(victim, RUNNING, labels_known=False)
    attack = GradientDescent(
        objective=Objective(parts={"matching": GradientMatching(distance="squared")}),
        optimizer=optimizer_called("lbfgs"),
        schedule=schedules.constant,
        learning_rate=1.0,
        num_steps=30,
        optimize_labels=True,
        boxed=False,
    )
    state, (losses,) = walk(attack, problem, 31)
    assert losses[-1] < 0.05 * losses[0]
    assert state.candidate.label_logits.shape == (1, 1, 4)
    assert np.argmax(state.best.label_logits) == np.argmax(victim.labels)


def test_optimized_labels_are_returned_as_probabilities():
    problem = toy_problem(toy_victim(PLAIN), RUNNING, labels_known=False)
    found = reconstruct(small_attack(optimize_labels=True), problem, jax.random.key(0))
    assert found.labels.shape == (2, 4)
    np.testing.assert_allclose(found.labels.sum(1), 1, rtol=1e-5)
    with pytest.raises(InputError, match="labels are unknown"):
        reconstruct(small_attack(), problem, jax.random.key(0))


# Starts.


def test_starts_are_the_noise_that_they_say():
    problem = dataclasses.replace(problem_of(), image_shape=(50, 8, 8, 3))
    images = np.asarray(initial.normal(jax.random.key(0), problem))
    assert images.shape == (50, 8, 8, 3)
    assert abs(images.mean()) < 0.05 and abs(images.std() - 1) < 0.05
    pictures = np.asarray(problem.space.denormalize(initial.uniform(jax.random.key(1), problem)))
    np.testing.assert_allclose(np.quantile(pictures, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)
    again = initial.normal(jax.random.key(0), problem)
    np.testing.assert_array_equal(images, again)


def test_labels_and_pictures_start_from_different_keys():
    attack = small_attack(optimize_labels=True, boxed=False)
    states, _ = walk(attack, problem_of(), 0, num_lanes=2)
    assert differ(states.candidate.label_logits[0], states.candidate.label_logits[1])
    assert differ(states.candidate.images[0], states.candidate.images[1])
    assert not np.any(np.isin(states.candidate.label_logits, states.candidate.images))
    assert np.all(states.step == 0) and states.alive.all() and np.all(np.isinf(states.best_loss))


# The front door.


def test_progress_is_reported_after_every_chunk():
    seen = []
    reconstruct(small_attack(), problem_of(), jax.random.key(0), num_restarts=2, chunk=8, on_progress=seen.append)
    assert [progress.step for progress in seen] == [8, 16, 20]
    last = seen[-1]
    assert last.loss.shape == last.best_loss.shape == last.alive.shape == (1, 1, 2)
    assert last.parts.keys() == {"matching", "tv"} and last.alive.all()
    total = last.parts["matching"] + 0.01 * last.parts["tv"]
    np.testing.assert_allclose(last.loss, total, rtol=1e-5)


def test_layer_weights_that_do_not_fit_the_network_are_refused():
    problem = problem_of()
    weights = jax.tree.map(lambda _: jnp.array([1.0, 2.0]), problem.params)  # a sweep
    for changed, message in ((weights, None), ({"a": 1.0}, "layer_weights of matching: .* is missing")):
        attack = small_attack(num_steps=1).with_parts(matching=GradientMatching(layer_weights=changed))
        if message is None:
            attack.check(stack([problem]))
        else:
            with pytest.raises(InputError, match=message):
                reconstruct(attack, problem, jax.random.key(0))


@pytest.mark.parametrize(
    "attack, options, message",
    [
        ({}, {"num_restarts": 0}, "num_restarts=0: expected a number above 0"),
        ({}, {"chunk": 0}, "chunk=0: expected a number above 0"),
        ({"num_steps": 0}, {}, "num_steps=0: expected a number above 0"),
        ({"num_steps": -5}, {}, "num_steps=-5: expected a number above 0"),
        ({"num_steps": 2.5}, {}, "num_steps=2.5: expected a whole number"),
        ({"num_steps": np.inf}, {}, "num_steps=inf: expected a number above 0"),
        ({"num_steps": 2**31 - 1}, {}, "num_steps=2147483647: expected a whole number up to 2147483646"),
        ({"learning_rate": 0.0}, {}, "learning_rate=0.0: expected a number above 0"),
        ({"learning_rate": np.array([0.1, np.nan])}, {}, "learning_rate=nan: expected a number above 0"),
        ({"learning_rate": "0.1"}, {}, "learning_rate='0.1': expected a number, or a vector of numbers to sweep"),
        (
            {"learning_rate": [0.1, 0.2]},
            {},
            "learning_rate is a list: expected a number, or a vector to sweep; try jnp.array([...])",
        ),
        ({"tv": -1.0}, {}, "tv/weight=-1.0: expected a number that is 0 or above"),
        ({"tv": jnp.array([0.5, jnp.nan])}, {}, "tv/weight=nan: expected a number that is 0 or above"),
        ({}, {"chunk": 2.5}, "chunk=2.5: expected a whole number above 0, of type int"),
        ({}, {"num_restarts": 1.5}, "num_restarts=1.5: expected a whole number"),
    ],
)
def test_numbers_that_cannot_be(attack, options, message):
    before = len(COMPILED)
    with pytest.raises(InputError) as error:
        reconstruct(small_attack(**attack), problem_of(), jax.random.key(0), **options)
    assert str(error.value) == message
    if not options:
        with pytest.raises(InputError, match=re.escape(message)):
            begin(small_attack(**attack))
    assert not {"jit(_advance)", "jit(_init)"} & set(COMPILED[before:]) or "chunk" in options


@dataclass(frozen=True)
class Weightless:
    """A part without a weight."""


WRONG = {
    "another order": ((problem_of, small_attack), {}, "attack AttackProblem: expected an attack; try reconstruct("),
    "a name": (("modern", problem_of), {}, "attack 'modern': expected an attack; try attacks.create('modern')"),
    "a class": ((GradientDescent, problem_of), {}, "expected an attack; try attacks.create"),
    "a victim": ((small_attack, lambda: toy_victim(PLAIN)), {}, "problem of type Victim: expected an AttackProblem"),
    "an int key": ((small_attack, problem_of), {"key": 0}, "key of type int: expected a random key"),
    "keys": ((small_attack, problem_of), {"key": jax.random.split(jax.random.key(0))}, "and shape (2,): expected one"),
    "no optimizer": ((lambda: small_attack(optimizer=adam), problem_of), {}, "optimizer adam: expected an optax"),
    "no objective": (
        (lambda: GradientDescent(objective=GradientMatching()), problem_of),
        {},
        "objective of type GradientMatching: expected gi_jax.Objective(parts={name: part})",
    ),
    "no parts": ((lambda: GradientDescent(objective=Objective(parts={})), problem_of), {}, "objective without parts"),
    "a list of parts": (
        (lambda: GradientDescent(objective=Objective(parts=[GradientMatching()])), problem_of),
        {},
        "parts of type list: expected a dictionary",
    ),
    "a part without weight": (
        (lambda: GradientDescent(objective=Objective(parts={"none": Weightless()})), problem_of),
        {},
        "part 'none' of type Weightless: expected a frozen dataclass with a weight",
    ),
    "a start of another shape": (
        (lambda: small_attack(initialize=one_picture), problem_of),
        {},
        "initialize one_picture gives shape (8, 8, 3): expected (2, 8, 8, 3)",
    ),
}


def one_picture(key, problem):
    return jnp.zeros(problem.image_shape[1:])


@pytest.mark.parametrize("case", WRONG)
def test_arguments_of_the_wrong_kind_are_told_in_one_line(case):
    made, options, message = WRONG[case]
    with pytest.raises(InputError, match=re.escape(message)) as error:
        attack, problem = (value() if callable(value) and not isinstance(value, type) else value for value in made)
        reconstruct(attack, problem, **{"key": jax.random.key(0), **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("problems", [problem_of, list])
def test_problems_are_a_list(problems):
    with pytest.raises(InputError, match=r"expected a list of one or more; try \[problem\]"):
        reconstruct_all(small_attack(), problems(), jax.random.key(0))


def test_the_loop_is_not_traced():
    problem, key = problem_of(), jax.random.key(0)
    for call in (
        lambda: jax.jit(lambda key: reconstruct(small_attack(), problem, key).images)(key),
        lambda: jax.vmap(lambda tv: reconstruct(small_attack(tv=tv), problem, key).loss)(jnp.ones(2)),
        lambda: jax.grad(lambda problem: reconstruct(small_attack(), problem, key).loss)(problem),
    ):
        with pytest.raises(InputError, match="a loop on the host, .* give swept numbers as vectors"):
            call()


@pytest.mark.parametrize(
    "optimizer, dtype, x64",
    [(adam, "bfloat16", False), (adam, "float64", True), (adam, "float32", True), (lbfgs, "float64", True)],
)
def test_other_widths_are_attacked_in_float32(dtype, x64, optimizer):
    with enable_x64(x64):
        of_type = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)  # noqa: E731
        problem = problem_of()
        wide = dataclasses.replace(problem, params=of_type(problem.params), observed=of_type(problem.observed))
        attack = small_attack(optimizer=optimizer(), num_steps=3)
        found = reconstruct(attack, wide, jax.random.key(0), num_restarts=2)
        assert found.images.dtype == np.float32 and found.alive.all() and np.isfinite(found.loss)
        _, states = begin(attack, [wide])  # which takes them as they are
        *_, (states, _) = advance(attack, stack([wide]), states)
        assert states.best.images.dtype == states.best_loss.dtype == jnp.float32


def test_an_update_that_holds_nan_is_refused():
    problem = problem_of()
    observed = {**problem.observed, "w1": problem.observed["w1"].at[0, 0].set(jnp.nan)}
    with pytest.raises(InputError, match="observed gradient: w1 holds 1 values that are NaN"):
        reconstruct(small_attack(), dataclasses.replace(problem, observed=observed), jax.random.key(0))


# Published attacks by name.


@pytest.mark.parametrize(
    "name, weights, num_steps",
    [
        ("inverting_gradients", {"matching": 1.0, "tv": 0.1}, 4800),
        ("gradient_inversion_evaluation", {"matching": 1.0, "tv": 0.05, "bn_prior": 1e-3}, 10_000),
    ],
)
def test_table_of_attacks(name, weights, num_steps):
    attack = attacks.create(name)
    assert {part: attack.objective.parts[part].weight for part in attack.objective.parts} == weights
    kinds = {"matching": GradientMatching, "tv": TotalVariation, "bn_prior": BatchNormPrior}
    assert all(isinstance(part, kinds[name]) for name, part in attack.objective.parts.items())
    assert attack.objective.parts["matching"].distance == "cosine"
    assert (attack.learning_rate, attack.num_steps) == (0.1, num_steps)
    assert attack.optimizer is signed_adam() and attack.schedule is schedules.step_decay and attack.boxed
    assert ATTACKS[name].about and "arXiv" in ATTACKS[name].paper


def test_settings_of_a_published_attack_can_be_replaced():
    attack = attacks.create("gradient_inversion_evaluation", tv=0.2, bn_prior=0.3, learning_rate=0.4, num_steps=5)
    weights = {name: part.weight for name, part in attack.objective.parts.items()}
    assert weights == {"matching": 1.0, "tv": 0.2, "bn_prior": 0.3}
    assert (attack.learning_rate, attack.num_steps) == (0.4, 5)
    with pytest.raises(InputError, match="unknown attack 'inverting_gradient': did you mean 'inverting_gradients'"):
        attacks.create("inverting_gradient")


def test_the_truth_is_a_fixed_point_under_exact_statistics():
    # Matching and prior are zero at the truth, so an attack that starts there has its best loss there.
    victim = toy_victim(TinyNet(4), n=3)
    problem = toy_problem(victim, THREATS["exact"])
    parts = {"matching": GradientMatching(), "bn_prior": BatchNormPrior(), "norm": SquaredNorm(weight=0.0)}
    attack = GradientDescent(
        objective=Objective(parts=parts), num_steps=2, initialize=start_at_truth, learning_rate=0.05
    )
    state, (losses,) = walk(attack, problem, 3)
    assert losses[0] < 1e-4 and np.all(losses[1:] > 10 * losses[0])
    np.testing.assert_allclose(state.best.images[0], truth(victim), atol=1e-5)


def start_at_truth(key, problem):
    return truth(toy_victim(TinyNet(4), n=3))


@pytest.mark.parametrize("lowering", ["lax", "patches", "winograd"])
def test_the_loop_is_a_program_for_accelerators_too(lowering):
    victim = toy_victim(create_network("convnet", 4, lowering=lowering), n=1, side=16)
    attack = attacks.create("layerwise", num_steps=3)
    problems, states = begin(attack, [toy_problem(victim, THREATS["exact"])])
    lower = export.export(loop._advance.plain, platforms=["cuda", "tpu"])
    assert lower(attack, problems, states, jnp.int32(2)).platforms == ("cuda", "tpu")
