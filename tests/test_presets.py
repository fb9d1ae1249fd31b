"""Presets of attacks and the parts they share: what each is made of, and that each does what it says."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PLAIN, SPACE, TinyNet, toy_problem, toy_victim, truth

from gi_jax import attacks, data
from gi_jax.attacks import ATTACKS, GradientDescent, advance, agreement, initial, lane_keys, schedules, start
from gi_jax.attacks.loop import reconstructions
from gi_jax.attacks.optimizers import (
    add_langevin_noise,
    lbfgs,
    noisy_adam,
    scale_by_soft_sign,
    signed_adam,
    soft_signed_adam,
)
from gi_jax.attacks.uncertainty import spread
from gi_jax.checks import InputError
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import make_problems, make_victims, pictures
from gi_jax.metrics import mse
from gi_jax.objectives import Candidate, GroupConsistency, LabelConsistency, Objective, SquaredNorm, TotalVariation
from gi_jax.objectives.registration import estimate_shift, translate
from gi_jax.threat import RUNNING, THREATS, stack

# The table.

MADE_OF = {
    "layerwise": ({"matching": 1.0, "tv": 0.5, "bn_prior": 0.03}, "cosine-per-layer", 1.0, signed_adam(), True),
    "dlg": ({"matching": 1.0}, "squared", 1.0, lbfgs(), False),
    "idlg": ({"matching": 1.0}, "squared", 1.0, lbfgs(), False),
    "cpl": ({"matching": 1.0, "label_prior": 1.0}, "squared", 1.0, lbfgs(), False),
    "grad_inversion": (
        {"matching": 1e-4, "tv": 1e-4, "norm": 1e-6, "group": 0.01, "bn_prior": 0.1},
        "squared",
        0.1,
        noisy_adam(0.2),
        True,
    ),
    "modern": ({"matching": 1.0, "tv": 0.1}, "cosine", 0.1, soft_signed_adam(), True),
}


@pytest.mark.parametrize("name", MADE_OF)
def test_presets_are_made_of_what_was_published(name):
    weights, distance, rate, optimizer, boxed = MADE_OF[name]
    attack = attacks.create(name)
    assert {part: value.weight for part, value in attack.objective.parts.items()} == weights
    assert attack.objective.parts["matching"].distance == distance
    assert attack.learning_rate == rate and attack.optimizer is optimizer and attack.boxed == boxed
    assert attack.optimize_labels == (name == "dlg")
    # Made again it is the same program.
    assert jax.tree.structure(attack) == jax.tree.structure(attacks.create(name))


def test_every_attack_has_settings_a_line_and_a_source():
    for entry in ATTACKS.values():
        assert entry.about and entry.paper
        assert entry.settings == tuple(inspect.signature(entry.make).parameters)
    assert "tv" not in ATTACKS["dlg"].settings and ATTACKS["phong"].settings == ()


# Attacks at work.


def test_dlg_finds_photographs_and_labels_from_gradients_alone():
    spec = AttackSpec(attack="dlg", model="lenet", image_size=8, num_batches=10)
    victims = make_victims(spec)
    problems = stack(make_problems(spec, victims.batches, "none"))
    dlg = attacks.create("dlg", num_steps=150)
    states = start(dlg, problems, lane_keys(jax.random.key(0), list(range(10)), 2))
    for latest, _ in advance(dlg, problems, states, chunk=150):
        states = latest
    found = [points[0] for points in reconstructions(problems, states)]
    errors = mse(np.concatenate([one.images for one in found]), pictures(victims.batches))
    assert np.sum(errors < 1e-4) >= 8
    assert [int(np.argmax(one.labels)) for one in found] == victims.labels.tolist()


@pytest.mark.parametrize("name", ["cpl", "grad_inversion", "modern"])
def test_presets_lower_their_loss(name):
    threat = THREATS["exact"] if name == "grad_inversion" else RUNNING
    model = TinyNet(4) if name == "grad_inversion" else PLAIN
    problem = toy_problem(toy_victim(model), threat)
    attack = attacks.create(name, num_steps=30)
    first = []
    found = attacks.reconstruct(
        attack, problem, jax.random.key(0), num_restarts=2, chunk=1, on_progress=lambda look: first.append(look.loss)
    )
    assert found.alive.all() and np.all(found.losses < 0.9 * first[0][0, 0])


def test_a_statistics_prior_of_weight_zero_is_no_part():
    assert "bn_prior" not in attacks.create("grad_inversion", bn_prior=0.0).objective.parts
    assert "bn_prior" in attacks.create("grad_inversion", bn_prior=jnp.zeros(2)).objective.parts  # a sweep


# Optimizers and schedules.


def test_soft_sign_is_a_sign_for_large_and_linear_for_small_entries():
    gradient = {"x": jnp.array([1.0, -1.0, 1e-4, 0.0])}
    for scale in (1.0, 1e-12, 1e12):  # of the loss
        soft, _ = scale_by_soft_sign().update({"x": scale * gradient["x"]}, None)
        np.testing.assert_allclose(soft["x"], np.tanh(gradient["x"] / np.mean(np.abs(gradient["x"]))), rtol=1e-4)
    still, _ = scale_by_soft_sign().update({"x": jnp.zeros(3)}, None)
    np.testing.assert_array_equal(still["x"], 0)


def test_langevin_noise_is_for_images_only():
    zero = Candidate(jnp.zeros((50, 8, 8, 3)), jnp.zeros((50, 4)))
    noisy, _ = add_langevin_noise(0.2).update(zero, None, key=jax.random.key(0))
    assert abs(noisy.images.std() - 0.2) < 0.01 and abs(noisy.images.mean()) < 0.01
    np.testing.assert_array_equal(noisy.label_logits, 0)


def test_noise_is_rate_times_scale_and_new_in_every_step_and_lane():
    attack = GradientDescent(
        objective=Objective(parts={"norm": SquaredNorm(weight=0.0)}),
        optimizer=noisy_adam(0.2),
        schedule=schedules.constant,
        learning_rate=0.5,
        num_steps=3,
        initialize=initial.constant(0.5),
        boxed=False,
    )
    places = [run(attack, restarts=2, steps=steps).candidate.images[0, 0] for steps in (0, 1, 2)]
    moves = [after - before for before, after in zip(places, places[1:], strict=False)]
    for move in moves:
        assert abs(move.std() / 0.1 - 1) < 0.1
        assert abs(np.corrcoef(move[0].ravel(), move[1].ravel())[0, 1]) < 0.2
    assert abs(np.corrcoef(moves[0].ravel(), moves[1].ravel())[0, 1]) < 0.2
    np.testing.assert_array_equal(run(attack, restarts=2, steps=2).candidate.images[0, 0], places[2])


def run(attack, restarts, steps, problems=None):
    """The states after some steps."""
    problems = stack([toy_problem(toy_victim(PLAIN), RUNNING)] if problems is None else problems)
    states = start(attack, problems, lane_keys(jax.random.key(0), list(range(len(problems.observed["w2"]))), restarts))
    if steps:
        states, _ = next(advance(attack, problems, states, chunk=steps))
    return jax.device_get(states)


def test_warm_up_is_a_straight_line_to_the_schedule():
    schedule = schedules.warm_up(schedules.cosine_decay, 0.2)
    for progress, factor in {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 1.0}.items():
        expected = factor * schedules.cosine_decay(jnp.float32(progress))
        np.testing.assert_allclose(schedule(jnp.float32(progress)), expected, rtol=1e-6)
    assert schedules.warm_up(schedules.cosine_decay, 0.2) is schedule
    with pytest.raises(InputError, match="fraction=0"):
        schedules.warm_up(schedules.constant, 0)


def test_a_line_search_is_one_program_from_the_first_step():
    attack = attacks.create("idlg", num_steps=2)
    problems = stack([toy_problem(toy_victim(PLAIN), RUNNING)])
    before = start(attack, problems, lane_keys(jax.random.key(0), [0], 1))
    kinds = jax.tree.map(lambda leaf: (leaf.aval.dtype, leaf.weak_type), before)
    after, _ = next(advance(attack, problems, before, chunk=1))
    assert kinds == jax.tree.map(lambda leaf: (leaf.aval.dtype, leaf.weak_type), after)


# Starts.


def begun(start, shape=(2, 10, 12, 3)):
    problem = dataclasses.replace(toy_problem(toy_victim(PLAIN), RUNNING), image_shape=shape)
    return np.asarray(start(jax.random.key(0), problem))


def test_patterned_starts_repeat_a_patch():
    images = begun(initial.patterned(4))
    assert images.shape == (2, 10, 12, 3)
    np.testing.assert_array_equal(images[:, 4:8], images[:, :4])
    np.testing.assert_array_equal(images[:, 8:], images[:, :2])
    np.testing.assert_array_equal(images[:, :, 8:], images[:, :, :4])
    assert np.unique(images).size == 2 * 4 * 4 * 3 and initial.patterned(4) is initial.patterned(4)


def test_constant_starts_have_a_color():
    for color in ((0.25,), (1.0, 0.0, 0.5)):
        pictures = SPACE.denormalize(begun(initial.constant(*color)))
        np.testing.assert_allclose(pictures, np.broadcast_to(color, pictures.shape), atol=1e-6)
    with pytest.raises(InputError, match="expected values from 0 to 1"):
        initial.constant(255)
    with pytest.raises(InputError, match="expected one value, or 3, one a channel"):
        begun(initial.constant(0.1, 0.2))


def test_low_resolution_starts_are_smooth():
    fine, coarse = (begun(initial.low_resolution(factor), (50, 16, 16, 3)) for factor in (1, 4))
    np.testing.assert_array_equal(fine, begun(initial.normal, (50, 16, 16, 3)))
    roughness = [np.abs(np.diff(images, axis=1)).mean() for images in (fine, coarse)]
    assert roughness[1] < 0.5 * roughness[0] and abs(coarse.mean()) < 0.05


@pytest.mark.parametrize("start", [initial.patterned, initial.low_resolution])
def test_sizes_of_starts_are_whole(start):
    with pytest.raises(InputError, match="=2.5: expected a whole number above 0"):
        start(2.5)


def test_given_starts_are_what_was_given():
    pictures = np.random.default_rng(0).random((2, 10, 12, 3))
    np.testing.assert_allclose(SPACE.denormalize(begun(initial.given(pictures))), pictures, atol=1e-6)
    with pytest.raises(InputError, match=r"start of shape \(2, 10, 12, 3\): expected \(1, 8, 8, 3\)"):
        begun(initial.given(pictures), (1, 8, 8, 3))


# Priors that came with the presets.


def test_opponents_are_the_differences_of_the_channels():
    images = jnp.float32(np.random.default_rng(0).standard_normal((1, 5, 6, 3)))
    red, green, blue = (images[..., channel] for channel in range(3))
    by_hand = jnp.stack([red, green, blue, red - green, red - blue, green - blue], -1)
    for isotropic in (False, True):
        own, expected = (
            TotalVariation(isotropic=isotropic, opponents=opponents)(None, Candidate(pictures), None)
            for opponents, pictures in ((True, images), (False, by_hand))
        )
        np.testing.assert_allclose(own, expected, rtol=1e-5)


def test_label_consistency_is_the_squared_distance_of_prediction_and_label():
    victim = toy_victim(PLAIN)
    problem = toy_problem(victim, RUNNING)
    logits, _ = PLAIN(problem.params, {}, truth(victim), RUNNING.adversary)
    expected = np.square(np.asarray(jax.nn.softmax(logits)) - np.asarray(victim.labels)).sum(1).mean()
    np.testing.assert_allclose(LabelConsistency()(problem, Candidate(truth(victim)), None), expected, rtol=1e-5)


# Groups.


def group_penalty(images, **options):
    """Penalty and derivative of each restart, images [restarts, n, h, w, c]."""
    part = GroupConsistency(**options)

    def penalty(images):
        return part(None, Candidate(images), None)

    return jax.vmap(jax.value_and_grad(penalty), axis_name="restarts")(images)


def test_group_consistency_draws_to_the_mean_of_the_restarts():
    images = jnp.float32(np.random.default_rng(0).standard_normal((4, 2, 8, 8, 3)))
    values, gradients = group_penalty(images)
    deviations = images - images.mean(0, keepdims=True)
    np.testing.assert_allclose(values, np.square(deviations).mean((1, 2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(gradients, 2 * deviations / images[0].size, rtol=1e-4, atol=1e-8)  # E is a constant
    alone, _ = group_penalty(images[:1])
    np.testing.assert_array_equal(alone, 0)


def test_a_broken_restart_takes_no_part_in_the_mean():
    images = jnp.float32(np.random.default_rng(0).standard_normal((3, 1, 8, 8, 3)))
    values, _ = group_penalty(images.at[2, 0, 0, 0, 0].set(jnp.nan))
    healthy, _ = group_penalty(images[:2])
    np.testing.assert_allclose(values[:2], healthy, rtol=1e-6)
    assert np.isnan(values[2])


def test_registration_takes_out_shifts():
    picture = data.load("photos").as_float()[0]
    shifts = jnp.array([[0, 0], [2, -3], [-4, 1], [3, 4]])
    images = jnp.stack([picture] * 4)
    moved = translate(images, shifts)
    np.testing.assert_array_equal(moved[1, 2:, :-3], picture[:-2, 3:])
    np.testing.assert_array_equal(estimate_shift(moved, images), -shifts)
    inside = (slice(None), slice(4, -4), slice(4, -4))
    np.testing.assert_array_equal(translate(moved, -shifts)[inside], images[inside])
    # A majority in place draws the others to where it is, without smearing the consensus.
    stacked = jnp.stack([picture] * 5 + [moved[1]])[:, None]
    (registered, _), (plain, _) = (group_penalty(stacked, registered=registered) for registered in (True, False))
    assert registered[0] < 0.3 * plain[0]


def test_restarts_agree_more_in_a_group_and_victims_stay_apart():
    problems = [toy_problem(toy_victim(PLAIN), RUNNING)] * 2
    settings = dict(bn_prior=0.0, noise=0.0, num_steps=20)
    apart, together = (
        run(attacks.create("grad_inversion", group=group, **settings), 3, 21, problems).candidate.images[:, 0]
        for group in (0.0, 10.0)
    )
    assert together.std(1).mean() < 0.5 * apart.std(1).mean()
    assert np.abs(together.mean(1)[0] - together.mean(1)[1]).mean() > 0.1  # other starts, another consensus


# Uncertainty.


def test_spread_is_the_deviation_of_the_other_restarts():
    draw = np.random.default_rng(0).random((4, 1, 8, 8, 3), dtype=np.float32)
    usable = np.array([True, True, False, True])
    expected = np.sqrt((np.square(draw[0] - draw[1]) + np.square(draw[3] - draw[1])) / 2)
    np.testing.assert_allclose(spread(draw, usable, 1), expected, rtol=1e-5)
    pair, noise = draw[:2, 0], 0.1 * draw[2:, 0]
    for other in (pair + noise, (pair + noise)[::-1]):  # the order within a batch means nothing
        found = spread(np.stack([pair, other]), np.array([True, True]), 0)
        np.testing.assert_allclose(found, noise, rtol=1e-4, atol=1e-6)


def test_an_answer_that_broke_after_its_best_step_has_a_spread():
    draw = np.random.default_rng(0).random((3, 1, 8, 8, 3), dtype=np.float32)
    usable = np.array([False, True, True])
    np.testing.assert_array_equal(spread(draw, usable, 0), spread(draw, ~usable | usable, 0))
    draw[0] = np.nan
    assert np.all(np.isnan(spread(draw, usable, 0)))


def test_a_single_restart_says_nothing():
    images = np.zeros((2, 1, 8, 8, 3), np.float32)
    assert np.all(np.isnan(spread(images, np.array([True, False]), 0)))
    assert np.all(np.isnan(agreement(np.full((1, 8, 8, 3), np.nan))))


def test_agreement_is_the_psnr_of_the_others():
    images = np.stack([np.full((1, 8, 8, 3), 0.5), np.full((1, 8, 8, 3), 0.6)]).astype(np.float32)
    np.testing.assert_allclose(agreement(spread(images, np.array([True, True]), 0)), 20, rtol=1e-5)
    np.testing.assert_allclose(agreement(np.zeros((1, 8, 8, 3))), 100)


def test_restarts_that_are_one_start_say_nothing():
    draw = np.random.default_rng(0).random((2, 1, 8, 8, 3), dtype=np.float32)
    usable = np.array([True, True, True])
    assert np.all(np.isnan(spread(draw[[0, 0, 0]], usable, 1)))
    np.testing.assert_array_equal(spread(draw[[0, 0, 1]], usable, 1), spread(draw, usable[:2], 0))
    problem = toy_problem(toy_victim(PLAIN), RUNNING)
    for initialize in (initial.constant(0.5), initial.given(np.full((2, 8, 8, 3), 0.3))):
        attack = dataclasses.replace(attacks.create("inverting_gradients", num_steps=5), initialize=initialize)
        found = attacks.reconstruct(attack, problem, jax.random.key(0), num_restarts=3)
        assert np.all(np.isnan(found.spread)) and np.all(np.isnan(agreement(found.spread)))


def test_a_reconstruction_carries_its_spread():
    problem = toy_problem(toy_victim(PLAIN), RUNNING)
    attack = attacks.create("inverting_gradients", num_steps=5)
    alone, three = (attacks.reconstruct(attack, problem, jax.random.key(0), num_restarts=n) for n in (1, 3))
    assert np.all(np.isnan(alone.spread))
    assert three.spread.shape == three.images.shape and np.all(three.spread >= 0) and three.spread.max() > 0.1


def test_an_unknown_setting_is_refused():
    with pytest.raises(InputError, match="did you mean 'tv'"):
        attacks.create("modern", tvv=1.0)
