"""Label recovery: every method is exact where its theory says so, and nobody peeks."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PLAIN, QUICK, SPACE, pictures, plain_params, toy_victim
from scipy.stats import laplace, norm

from gi_jax import cli, defenses, metrics
from gi_jax.attacks import labels
from gi_jax.attacks.labels.bias_counts import REACH
from gi_jax.attacks.labels.geng import geng
from gi_jax.attacks.labels.head import find_head
from gi_jax.attacks.labels.rank_one import factors
from gi_jax.checks import InputError
from gi_jax.experiments.attack import run_attack
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.labels import _dummies, label_distribution, run_labels
from gi_jax.experiments.spec import AttackSpec
from gi_jax.models import FunctionNetwork, Normalize
from gi_jax.objectives.candidate import Candidate
from gi_jax.threat import RUNNING, Batch, Clipped, Mixed, Noisy, Victim, Zeroed, observe

KEY = jax.random.key(5)
SIDE, HIDDEN = 4, 12


def network_with(activation):
    """One hidden layer and a linear head, with a bias if the parameters hold one."""

    def function(params, batch_stats, images):
        features = activation(images.reshape(images.shape[0], -1) @ params["body"])
        logits = features @ params["head"]["kernel"]
        return logits + params["head"]["bias"].reshape(1, -1) if "bias" in params["head"] else logits

    return FunctionNetwork(function)


FEATURES = {
    "relu": network_with(lambda x: jax.nn.relu(x) + 0.01),  # no picture without features
    "signed": network_with(jnp.tanh),
    "of one sum": network_with(jax.nn.softmax),  # 0 or above, and each picture's sum to 1
}

_observe = jax.jit(observe, static_argnames=("threat", "defense", "labels_known"), compiler_options=QUICK)


def weights(seed, classes, bias, blind):
    """Random ones; a blind network's probabilities are those of its bias, whatever the picture."""
    draw = np.random.default_rng(seed).standard_normal
    head = {"kernel": jnp.float32(draw((HIDDEN, classes)) * (0 if blind else HIDDEN**-0.5))}
    if bias:
        head["bias"] = jnp.float32(0.3 * draw(classes))
    return {"body": jnp.float32(draw((SIDE * SIDE * 3, HIDDEN)) * (SIDE * SIDE * 3) ** -0.5), "head": head}


def make(labels, classes, features="relu", *, defense=defenses.identity, labels_known=False, **options):
    """A problem whose private batch has these labels: class numbers, or rows of probabilities."""
    victim = victim_of(labels, classes, features, **options)
    return _observe(victim, RUNNING, defense, jax.random.key(1), labels_known=labels_known)


def victim_of(labels, classes, features="relu", *, bias=True, blind=False, seed=0):
    labels = np.asarray(labels)
    labels = np.eye(classes)[labels] if labels.ndim == 1 else labels
    return Victim(
        network=FEATURES[features],
        params=weights(seed, classes, bias, blind),
        batch_stats={},
        images=pictures(jax.random.key(seed), len(labels), SIDE, SIDE),
        labels=jnp.float32(labels),
        space=SPACE,
    )


def counts_of(numbers, classes):
    return np.bincount(numbers, minlength=classes)


def dummies_of(problem, **options):
    return labels.simulate(problem, KEY, **options)


def found(method, problem):
    return labels.METHODS[method].estimate(problem, dummies_of(problem))


# One picture.


@pytest.mark.parametrize("features", ["relu", "signed"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("classes", [3, 10])
def test_the_label_of_one_picture_is_exact_by_the_opposing_row(features, bias, classes):
    for label in range(classes):
        problem = make([label], classes, features, bias=bias, seed=label)
        np.testing.assert_array_equal(found("idlg", problem), counts_of([label], classes))


@pytest.mark.parametrize("label", [0, 1])
def test_of_two_opposite_rows_the_smaller_sum_is_the_label(label):
    np.testing.assert_array_equal(found("idlg", make([label], 2, "relu", bias=False)), counts_of([label], 2))


@pytest.mark.parametrize("label", [0, 1])
def test_of_two_opposite_rows_the_bias_tells_whatever_the_features(label):
    for seed in range(8):
        problem = make([label], 2, "signed", seed=seed)
        np.testing.assert_array_equal(found("idlg", problem), counts_of([label], 2))


def test_of_two_opposite_rows_nothing_tells_without_a_bias_or_a_sign_of_the_features():
    problem = make([1], 2, "signed", bias=False)
    with pytest.raises(InputError, match="three classes, or features that are not negative; take labels known"):
        labels.recover(problem, "auto", dummies_of(problem))


@pytest.mark.parametrize("features", ["relu", "signed"])
def test_a_row_that_was_zeroed_does_not_oppose_the_others(features):
    problem = make([3], 5, features, bias=False)
    head = problem.observed["head"]
    pruned = {**problem.observed, "head": {"kernel": head["kernel"].at[:, :2].set(0)}}
    problem = dataclasses.replace(problem, observed=pruned)
    np.testing.assert_array_equal(found("idlg", problem), counts_of([3], 5))


SOFT = {
    "hard": [0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    "two mixed": [0, 0.65, 0, 0.35, 0, 0, 0, 0, 0, 0],
    "four mixed": [0.4, 0, 0.3, 0, 0, 0.2, 0, 0.1, 0, 0],
    "smoothed": [0.01, 0.01, 0.91] + 7 * [0.01],
}


@pytest.mark.parametrize("features", ["relu", "signed"])
@pytest.mark.parametrize("name", SOFT)
def test_a_soft_label_is_exact_with_a_bias(features, name):
    problem = make([SOFT[name]], 10, features)
    np.testing.assert_allclose(found("soft", problem), SOFT[name], atol=3e-6)


@pytest.mark.parametrize("features", ["relu", "signed"])
@pytest.mark.parametrize("name", SOFT)
def test_a_soft_label_is_close_without_a_bias(features, name):
    problem = make([SOFT[name]], 10, features, bias=False)
    np.testing.assert_allclose(found("soft", problem), SOFT[name], atol=1e-3)


def test_a_soft_label_without_a_bias_needs_six_classes():
    for seed in range(6):
        label = np.roll([0.65, 0.35, 0, 0, 0, 0], seed)
        np.testing.assert_allclose(found("soft", make([label], 6, bias=False, seed=seed)), label, atol=1e-3)
    problem = make([[0.6, 0.4, 0, 0, 0]], 5, bias=False)
    with pytest.raises(InputError, match="label method 'soft' needs a bias in the head, or six classes; try auto"):
        labels.recover(problem, "soft", dummies_of(problem))


@pytest.mark.parametrize("total", [1.0, 0.7])
@pytest.mark.parametrize("norm", [1.0, 0.1])
def test_a_mixed_label_survives_clipping(norm, total):
    label = total * np.array(SOFT["four mixed"])
    problem = make([label], 10, defense=defenses.parse(f"clip:norm={norm}"))
    problem = dataclasses.replace(problem, known=(Mixed(k=4, label_sum=total), *problem.known))
    np.testing.assert_allclose(labels.recover(problem, "auto", dummies_of(problem)).labels[0], label, atol=1e-5)


@pytest.mark.parametrize("with_row", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_product_is_completed_from_its_largest_entries(seed, with_row):
    random = np.random.default_rng(seed)
    u, v = random.normal(size=40), random.normal(size=8)
    u[7], v[3] = 1, 0  # nothing is known of the latter
    matrix = np.outer(u, v)
    sent = np.where(np.abs(matrix) < np.quantile(np.abs(matrix), 0.6), 0, matrix)
    sent[7, np.argmax(np.abs(v))] = v[np.argmax(np.abs(v))]
    found_u, found_v = factors(sent, 7 if with_row else None)
    np.testing.assert_array_equal(np.isnan(found_v), ~sent.any(0))
    np.testing.assert_array_equal(np.isnan(found_u), ~sent.any(1))
    product = np.outer(found_u, found_v)
    known = ~np.isnan(product)
    assert known.sum() > 1.5 * (sent != 0).sum()
    np.testing.assert_allclose(product[known], matrix[known], rtol=1e-9)
    if with_row:
        np.testing.assert_allclose(found_v[sent.any(0)], v[sent.any(0)], rtol=1e-9)


def test_what_is_not_tied_to_the_row_of_known_scale_stays_unknown():
    matrix = np.array([[2.0, 4.0, 0, 0], [0, 0, 3.0, 6.0], [1.0, 0, 0, 0]])
    u, v = factors(matrix, 2)
    np.testing.assert_allclose(u, [2, np.nan, 1])
    np.testing.assert_allclose(v, [1, 2, np.nan, np.nan])


@pytest.mark.parametrize(
    "features, bias, defense, error",
    [
        ("relu", True, "prune:p=0.2", 1e-5),
        ("relu", False, "prune:p=0.2", 1e-4),
        ("relu", True, "prune:p=0.5", 5e-3),  # small features are lost
        ("signed", True, "prune:p=0.3", 5e-3),
    ],
)
@pytest.mark.parametrize("name", SOFT)
def test_a_soft_label_survives_pruning(name, features, bias, defense, error):
    problem = make([SOFT[name]], 10, features, bias=bias, defense=defenses.parse(defense))
    recovered = labels.recover(problem, "soft", dummies_of(problem)).labels[0]
    np.testing.assert_allclose(recovered, SOFT[name], atol=error)


@pytest.mark.parametrize("defense", ["clip:norm=0.1 + prune:p=0.5", "prune:p=0.5 + clip:norm=0.1"])
def test_a_mixed_label_survives_pruning_with_clipping(defense):
    problem = make([SOFT["four mixed"]], 10, defense=defenses.parse(defense))
    recovered = labels.recover(problem, "soft", dummies_of(problem)).labels[0]
    np.testing.assert_allclose(recovered, SOFT["four mixed"], atol=5e-3)


def test_entries_that_noise_hides_are_not_completed():
    problem = make([SOFT["four mixed"]], 10, defense=defenses.parse("prune:p=0.5 + gaussian:sigma=0.001"))
    head = find_head(problem)
    np.testing.assert_array_equal(head.kernel_gradient, np.float64(problem.observed["head"]["kernel"]))


def test_a_soft_label_that_noise_left_nothing_of_is_its_largest_entry():
    problem = make([[0.6, 0.4]], 2)
    head = {**problem.observed["head"], "bias": jnp.array([3.0, 2.0])}
    noisy = dataclasses.replace(problem, observed={**problem.observed, "head": head}, known=FACTS["noisy"])
    assert np.isfinite(found("soft", noisy)).all()


@pytest.mark.parametrize("features, bias", [("relu", True), ("signed", True), ("relu", False)])
@pytest.mark.parametrize("told", [True, False])
def test_a_label_beside_public_pictures_sums_to_less(features, bias, told):
    label = 0.7 * np.array(SOFT["two mixed"])  # two private pictures; public ones have no label
    known = (Mixed(k=4, flipped=True, label_sum=0.7 if told else None),)
    problem = dataclasses.replace(make([label], 10, features, bias=bias), known=known)
    recovered = labels.recover(problem, "auto", dummies_of(problem))
    assert recovered.method == "soft" and ("exact" in recovered.why) == (told and bias)
    if told or bias:
        np.testing.assert_allclose(recovered.labels[0], label, atol=1e-5 if bias else 1e-3)
        np.testing.assert_allclose(recovered.counts, label, atol=1e-5 if bias else 1e-3)


def test_counts_beside_public_pictures_are_of_labels_that_sum_to_less():
    numbers = [0] * 13 + [1] * 3
    hard = np.eye(10)[numbers]
    problem = make(0.4 * hard, 10, "of one sum", blind=True)
    problem = dataclasses.replace(problem, known=(Mixed(k=4, label_sum=0.4),))
    for method in ("bias_counts", "auto"):
        recovered = labels.recover(problem, method, dummies_of(problem))
        assert recovered.method == "bias_counts"
        np.testing.assert_allclose(recovered.labels, 0.4 * hard, atol=1e-6)
        np.testing.assert_allclose(recovered.counts, 0.4 * counts_of(numbers, 10), atol=1e-6)


def test_labels_that_are_optimized_sum_to_what_is_told():
    problem = dataclasses.replace(make([1, 2], 10), known=(Mixed(k=4, label_sum=0.7),))
    images = jnp.zeros(problem.image_shape)
    batch = Candidate(images, jnp.ones((2, 10))).batch(problem)
    np.testing.assert_allclose(batch.labels, 0.07, rtol=1e-6)


# Several pictures.


@pytest.mark.parametrize("features", ["relu", "signed"])
@pytest.mark.parametrize("seed", range(4))
def test_a_negative_bias_gradient_proves_a_class_present(features, seed):
    numbers = np.random.default_rng(seed).integers(0, 10, 16)
    counts = found("bias_sign", make(numbers, 10, features, seed=seed))
    assert set(np.flatnonzero(counts)) <= set(numbers)
    assert np.ptp(counts[counts > 0]) <= 1  # evenly


DISTINCT = ([3], [1, 7, 4], [0, 2, 5, 8, 9])


@pytest.mark.parametrize("method", ["row_minimum", "bias_sign", "bias_corrected", "llg"])
@pytest.mark.parametrize("numbers", DISTINCT)
def test_labels_that_do_not_repeat_are_exact_before_training(method, numbers):
    problem = make(numbers, 20, "of one sum", bias=True, blind=True)
    np.testing.assert_array_equal(found(method, problem), counts_of(numbers, 20))


REPEATED = ([0, 0, 0], [1, 1, 4, 4, 4, 9], [5] * 20 + [2, 3], list(range(10)) * 3, [7] * 40)


@pytest.mark.parametrize("method", ["bias_counts", "geng", "ilrg", "llg_plus"])
@pytest.mark.parametrize("numbers", REPEATED)
def test_counts_are_exact_where_probabilities_do_not_depend_on_the_picture(method, numbers):
    problem = make(numbers, 10, "of one sum", blind=True)
    np.testing.assert_array_equal(found(method, problem), counts_of(numbers, 10))


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_rows_tell_counts_where_entries_of_the_bias_were_set_to_zero(noise):
    numbers = [0, 1, 1, 3, 3, 3, 3]
    problem = make(numbers, 6, "of one sum", blind=True)  # each row's sum is the entry of the bias
    some = problem.observed["head"]["bias"].at[jnp.array([0, 1, 2, 3, 5])].set(noise)
    hidden = with_head(problem, bias=some)
    facts = (Noisy(distribution="gaussian", scale=noise),) if noise else ()
    pruned = dataclasses.replace(hidden, known=(Zeroed(), *facts))
    elsewhere = dataclasses.replace(hidden, known=(Zeroed(tensors=("head/kernel",)), *facts))
    np.testing.assert_array_equal(found("bias_counts", pruned), counts_of(numbers, 6))
    assert np.any(found("bias_counts", elsewhere) != counts_of(numbers, 6))
    recovered = labels.recover(pruned, "auto", dummies_of(pruned))
    assert recovered.method == "bias_counts" and "row sums do where its entries are missing" in recovered.why
    assert "row sums" not in labels.recover(elsewhere, "auto", dummies_of(elsewhere)).why


@pytest.mark.parametrize("method", ["bias_counts", "ilrg"])
@pytest.mark.parametrize("numbers", REPEATED)
def test_counts_by_the_bias_do_not_ask_for_a_sign_of_the_features(method, numbers):
    problem = make(numbers, 10, "signed", blind=True)
    np.testing.assert_array_equal(found(method, problem), counts_of(numbers, 10))


def test_counts_survive_local_steps_with_the_model_before_and_after():
    # Four full-batch steps, seen as one update: the mean gradient of the steps.
    numbers, rate, steps = [1, 1, 4, 4, 4, 9], 2.0, 4
    problem = make(numbers, 10, "of one sum")
    batch = Batch(SPACE.normalize(pictures(jax.random.key(0), 6, SIDE, SIDE)), jnp.eye(10)[jnp.array(numbers)])
    params = problem.params
    for _ in range(steps):
        gradients = dataclasses.replace(problem, params=params).imagine(batch).gradients
        params = jax.tree.map(lambda weight, slope: weight - rate * slope, params, gradients)
    observed = jax.tree.map(lambda old, new: (old - new) / (rate * steps), problem.params, params)
    problem = dataclasses.replace(problem, observed=observed)
    np.testing.assert_array_equal(
        geng(problem, dummies_of(problem), dummies_after=dummies_of(problem, params=params)), counts_of(numbers, 10)
    )


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1, 5, 24])
def test_counts_are_whole_and_sum_to_the_batch_size(features, bias, size):
    problem = make(np.random.default_rng(size).integers(0, 6, size), 6, features, bias=bias)
    tried = [name for name in labels.METHODS if not labels.unmet(name, problem, dummies_of(problem))]
    assert "geng" in tried and ("ilrg" in tried) == bias
    for name in tried:
        counts = found(name, problem)
        assert counts.sum() == pytest.approx(size, abs=1e-9) and counts.min() >= 0, name
        assert name == "soft" or np.all(counts == np.round(counts)), name
        rows = labels.assign(counts, size)
        assert rows.shape == (size, 6)
        np.testing.assert_allclose(rows.sum(0), counts)
        np.testing.assert_allclose(rows.sum(1), 1)


@pytest.mark.parametrize("seed", range(6))
def test_allocation_is_the_nearest_of_all(seed):
    values = 2 * np.random.default_rng(seed).standard_normal(4) + 1
    counts = labels.allocate(values, 5)
    every = [np.array(c) for c in itertools.product(range(6), repeat=4) if sum(c) == 5]
    assert counts.sum() == 5
    assert np.sum((counts - values) ** 2) == pytest.approx(min(np.sum((c - values) ** 2) for c in every))


def test_allocation_gives_the_present_their_picture_first():
    values, present = np.array([5.0, 0.1, 0.2, 0.0]), np.array([False, True, True, False])
    np.testing.assert_array_equal(labels.allocate(values, 4, present), [2, 1, 1, 0])
    np.testing.assert_array_equal(labels.allocate(values, 1, present), [0, 0, 1, 0])


# What methods need, and who chooses.


@pytest.mark.parametrize(
    "size, bias, mixed, method",
    [
        (1, True, False, "soft"),
        (1, True, True, "soft"),
        (1, False, True, "soft"),
        (1, False, False, "idlg"),
        (8, True, False, "bias_counts"),
        (8, False, False, "geng"),
    ],
)
def test_auto_picks_by_what_the_network_offers_and_says_why(size, bias, mixed, method):
    problem = make([2] * size, 6, bias=bias)
    if mixed:
        problem = dataclasses.replace(problem, known=(Mixed(k=2),))
    recovered = labels.recover(problem, "auto", dummies_of(problem))
    assert recovered.method == method
    assert recovered.why.startswith("one" if size == 1 else "several") and "bias" in recovered.why
    np.testing.assert_allclose(recovered.labels.sum(0), recovered.counts, atol=1e-6)


FACTS = {
    "clipped": (Clipped(bound=1.0),),
    "pruned": (Zeroed(),),
    "noisy": (Noisy(distribution="gaussian", scale=1e-3),),
    "mixed and clipped": (Mixed(k=2), Clipped(bound=1.0)),
}


@pytest.mark.parametrize(
    "size, facts, method",
    [
        (1, "clipped", "bias_sign"),
        (1, "pruned", "bias_sign"),
        (1, "noisy", "bias_sign"),
        (1, "mixed and clipped", "soft"),
        (8, "clipped", "bias_corrected"),
        (8, "mixed and clipped", "bias_corrected"),
        (8, "pruned", "bias_counts"),
    ],
)
def test_auto_does_not_trust_values_that_a_defense_changed(size, facts, method):
    problem = dataclasses.replace(make([2] * size, 5), known=FACTS[facts])
    recovered = labels.recover(problem, "auto", dummies_of(problem))
    assert recovered.method == method and "exact" not in recovered.why


@pytest.mark.parametrize(
    "size, bias, facts, method",
    [
        (1, True, "none", "bias_sign"),
        (1, False, "none", "idlg"),
        (1, True, "mixed", "soft"),
        (8, True, "none", "bias_corrected"),
        (8, True, "clipped", "bias_corrected"),
        (8, True, "pruned", "bias_counts"),
        (8, False, "none", "geng"),
        (8, False, "clipped", "llg"),
    ],
)
def test_auto_after_local_steps_trusts_the_bias_most_and_no_scale_that_clipping_hides(size, bias, facts, method):
    known = {"none": (), "mixed": (Mixed(k=2),), **FACTS}[facts]
    name, why = labels.choose(size, has_bias=bias, known=known, local=True)
    assert name == method and "exact" not in why and "bias" in why


@pytest.mark.parametrize("features, method", [("relu", "llg"), ("signed", "geng")])
def test_auto_without_a_bias_needs_no_scale_under_clipping_where_features_are_not_negative(features, method):
    problem = make([0, 1, 4], 10, features, bias=False, defense=defenses.parse("clip:norm=0.01"))
    recovered = labels.recover(problem, "auto", dummies_of(problem))
    assert recovered.method == method
    if method == "llg":
        np.testing.assert_array_equal(recovered.counts, counts_of([0, 1, 4], 10))


def test_an_attacker_who_is_told_nothing_is_promised_nothing():
    _, why = labels.choose(1, has_bias=True)
    assert why.endswith("exact if no defense changed the gradient")


@pytest.mark.parametrize("text", ["clip:norm=0.01", "prune:p=0.9", "sign"])
def test_the_label_of_one_picture_survives_what_keeps_signs(text):
    for label in range(5):
        problem = make([label], 5, defense=defenses.parse(text))
        recovered = labels.recover(problem, "auto", dummies_of(problem))
        np.testing.assert_array_equal(recovered.counts, counts_of([label], 5))


def test_noise_that_nobody_told_of_does_not_prove_all_classes_present():
    numbers = [0, 0, 0, 1]
    problem = make(numbers, 10, blind=True)
    head = problem.observed["head"]
    noisy = {**problem.observed, "head": {**head, "kernel": head["kernel"].at[0].add(-0.1)}}
    assert (noisy["head"]["kernel"].min(0) < 0).all()
    found_there = found("bias_counts", dataclasses.replace(problem, observed=noisy))
    np.testing.assert_array_equal(found_there, counts_of(numbers, 10))


@pytest.mark.parametrize("law, proved", [("gaussian", True), ("laplacian", False)])
def test_four_scales_of_noise_prove_a_class_present_where_such_noise_is_rare(law, proved):
    numbers = [0, 0, 0, 1]
    problem = make(numbers, 10, blind=True)
    head = problem.observed["head"]
    noisy = {**problem.observed, "head": {**head, "bias": head["bias"].at[5].set(-0.04)}}
    problem = dataclasses.replace(problem, observed=noisy, known=(Noisy(distribution=law, scale=0.01),))
    np.testing.assert_array_equal(found("bias_counts", problem), counts_of([0, 0, 1, 5] if proved else numbers, 10))


def test_noise_goes_as_far_as_three_standard_deviations_of_normal_noise():
    for law, reach in REACH.items():
        np.testing.assert_allclose({"gaussian": norm, "laplacian": laplace}[law].sf(reach), norm.sf(3), rtol=0.02)


@pytest.mark.parametrize("facts, known", [("clipped", True), ("pruned", False), ("noisy", False)])
def test_the_rank_says_nothing_where_single_entries_were_changed(facts, known):
    problem = dataclasses.replace(make([0, 1], 6, "signed"), known=FACTS[facts])
    assert labels.estimate_num_images(problem) == ((2, False) if known else (0, True))


@pytest.mark.parametrize(
    "method, options, needs",
    [
        ("idlg", {}, "one picture"),
        ("soft", {}, "one picture"),
        ("ilrg", {"bias": False}, "a bias in the head"),
        ("llg", {"features": "signed"}, "features that are not negative"),
        ("row_minimum", {"features": "signed"}, "no more pictures than classes and features that are not negative"),
    ],
)
def test_unmet_needs_are_named_in_one_line(method, options, needs):
    with pytest.raises(InputError, match=f"label method '{method}' needs {needs}; try auto"):
        problem = make([0, 1, 1, 0, 2, 3], 5, **options)
        labels.recover(problem, method, dummies_of(problem))


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="did you mean 'ilrg'"):
        problem = make([0], 3)
        labels.recover(problem, "ilgr", dummies_of(problem))


def test_a_network_without_a_head_is_refused():
    victim = dataclasses.replace(toy_victim(PLAIN), params=plain_params(PLAIN, 0, 8, 4))
    problem = observe(victim, RUNNING, defenses.identity, jax.random.key(0))
    with pytest.raises(InputError, match="expected params..head....kernel.. of shape .features, 4."):
        labels.recover(problem, "auto", dummies_of(problem))


def test_a_gradient_of_zero_is_refused():
    problem = make([0, 1], 3)
    zero = dataclasses.replace(problem, observed=jax.tree.map(jnp.zeros_like, problem.observed))
    with pytest.raises(InputError, match="zero throughout"):
        labels.recover(zero, "auto", dummies_of(zero))


def with_head(problem, **changes):
    """The problem with other numbers in the head's gradient; None takes a tensor away."""
    head = {name: leaf for name, leaf in (problem.observed["head"] | changes).items() if leaf is not None}
    return dataclasses.replace(problem, observed={**problem.observed, "head": head})


@pytest.mark.parametrize("method", ["auto", *labels.METHODS])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda problem: with_head(problem, bias=jnp.zeros(3).at[1].set(jnp.nan)), "head/bias holds 1 values"),
        (lambda problem: with_head(problem, kernel=jnp.full((HIDDEN, 3), jnp.inf)), "head/kernel holds 36 values"),
        (lambda problem: with_head(problem, bias=None), "head/bias is missing"),
        (lambda problem: with_head(problem, kernel=jnp.ones((3, HIDDEN))), "head/kernel has shape"),
        (lambda problem: dataclasses.replace(problem, observed={}), "head/bias is missing"),
    ],
)
def test_a_gradient_of_the_head_that_is_none_is_refused(change, message, method):
    problem = change(make([0, 1], 3))
    with pytest.raises(InputError, match=f"observed gradient: {message}"):
        labels.recover(problem, method, dummies_of(problem))


def test_the_rank_of_what_is_not_finite_is_refused():
    with pytest.raises(InputError, match="observed gradient: head/kernel holds"):
        labels.estimate_num_images(with_head(make([0, 1], 3), kernel=jnp.full((HIDDEN, 3), jnp.nan)))


@pytest.mark.parametrize("method", ["bias_sign", "bias_corrected", "bias_counts", "ilrg"])
def test_a_bias_whose_gradient_was_not_sent_tells_nothing(method):
    problem = with_head(make([2, 1], 3), bias=jnp.zeros(3))
    with pytest.raises(InputError, match="needs a bias in the head"):
        labels.recover(problem, method, dummies_of(problem))
    assert labels.recover(problem, "auto", dummies_of(problem)).method == "geng"


def test_no_method_looks_at_the_labels_of_a_problem():
    hidden, told = (make([0, 3, 3], 4, labels_known=known) for known in (False, True))
    assert hidden.labels is None
    lying = dataclasses.replace(told, labels=jnp.roll(told.labels, 1, axis=1))
    for name in labels.METHODS:
        if not labels.unmet(name, hidden, dummies_of(hidden)):
            np.testing.assert_array_equal(found(name, hidden), found(name, lying))


def test_features_and_probabilities_are_the_networks_own():
    problem = make([0, 1], 4, "signed")
    dummies = dummies_of(problem, num_images=3)()
    assert dummies.features.shape == (4, HIDDEN) and dummies.probabilities.shape == (4, 4)  # two batches of two
    head = problem.params["head"]
    logits = dummies.features @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"])
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(dummies.probabilities, expected, rtol=1e-5)


# How many pictures.


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_the_rank_of_the_gradient_is_the_number_of_pictures(size):
    problem = make(np.arange(size) % 6, 6, "signed")
    assert labels.estimate_num_images(problem) == (size, False)


def test_a_rank_at_its_limit_is_a_lower_bound():
    problem = make(np.arange(40) % 6, 6, "signed")
    assert labels.estimate_num_images(problem) == (HIDDEN, True)
    only_head = dataclasses.replace(problem, observed={"head": problem.observed["head"]})
    assert labels.estimate_num_images(only_head) == (5, True)


@pytest.mark.parametrize("view", ["sum", "client"])
def test_the_rank_of_a_rounded_gradient_is_not_reported(view):
    spec = AttackSpec(model="mlp", batch_size=1, num_batches=1, view=view, clients=4)
    assert run_labels(spec, ["bias_counts"])["num_images"] == [{"at_least": 0, "limited": True}]


@pytest.mark.parametrize("normalize, shared", [(Normalize.BATCH, True), (Normalize.GIVEN, False)])
def test_random_pictures_are_shared_where_statistics_do_not_matter(normalize, shared):
    first = dataclasses.replace(make([0, 1], 4), normalize=normalize, statistics={"mean": jnp.zeros(3)})
    other = dataclasses.replace(first, statistics={"mean": jnp.ones(3)})
    one, two, same = _dummies(AttackSpec(), [first, other, first])
    assert one is same and (one is two) == shared


# Scores.


@pytest.mark.parametrize(
    "counts, truth, of_sets, of_counts",
    [
        ([2, 1, 0], [2, 1, 0], 1, 1),
        ([1, 1, 1], [3, 0, 0], 1 / 3, 1 / 3),
        ([0, 3, 0], [3, 0, 0], 0, 0),
        ([0.7, 0.3, 1e-6], [0.6, 0.4, 0], 1, 0.9),
    ],
)
def test_overlaps_known_answers(counts, truth, of_sets, of_counts):
    assert metrics.set_overlap(np.array(counts), np.array(truth)) == pytest.approx(of_sets)
    assert metrics.count_overlap(np.array(counts), np.array(truth)) == pytest.approx(of_counts)


def test_optimized_labels_are_scored_as_what_they_say():
    hard = np.eye(10)[np.arange(16) % 3]
    sure = 0.95 * hard + 0.05 / 9 * (1 - hard)  # nearly every class adds up to more than 0.05 pictures
    assert metrics.label_overlaps(sure[::-1], hard) == {"set_overlap": 1.0, "count_overlap": 1.0}
    wrong = np.roll(sure, 1, axis=1)  # 6, 5, 5 pictures of the next class
    assert metrics.label_overlaps(wrong, hard) == {"set_overlap": 2 / 4, "count_overlap": 10 / 16}
    mixed = (hard + np.roll(hard, 1, axis=1)) / 2
    assert metrics.label_overlaps(mixed, mixed) == {"set_overlap": 1.0, "count_overlap": 1.0}
    assert metrics.label_overlaps(hard, mixed)["set_overlap"] == 3 / 4
    unsure = 0.95 * mixed + 0.05 / 10
    assert metrics.label_overlaps(unsure, mixed)["set_overlap"] == 1.0
    assert 0.95 < metrics.label_overlaps(unsure, mixed)["count_overlap"] < 1.0


def test_labels_of_a_failed_attack_are_none():
    hard, lost = np.eye(3)[[0, 0, 1]], np.full((3, 3), np.nan)
    for truth in (hard, (hard + np.roll(hard, 1, axis=1)) / 2):
        assert metrics.label_overlaps(lost, truth) == {"set_overlap": 0.0, "count_overlap": 0.0}


def test_the_distribution_of_labels_is_that_of_all_batches():
    classes = [0, 0, 0, 0, 1, 1, 2]
    (row,) = label_distribution(counts_of(classes, 4), batch_sizes=(4, 100))
    assert row["batch_size"] == 4
    batches = list(itertools.combinations(classes, 4))
    shared = [batch.count(label) for batch in batches for label in batch]
    assert row["classes"] == pytest.approx(np.mean([len(set(batch)) for batch in batches]))
    for low, high in ((1, 1), (2, 3), (4, 7)):
        share = np.mean([low <= count <= high for count in shared])
        assert row["shared_by"][str(low)] == pytest.approx(share)
    assert sum(row["shared_by"].values()) == pytest.approx(1)


# The command line.


@pytest.fixture
def no_disk_cache(monkeypatch):
    monkeypatch.setattr(cli.terminal, "set_up_compilation", lambda: None)


def test_labels_command_shows_every_method(tmp_path, capsys, no_disk_cache):
    arguments = ["labels", "--model", "mlp", "--batch-size", "12", "--first", "3", "--num-batches", "2"]
    assert cli.main([*arguments, "--method", "all", "--method", "auto", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in labels.METHODS)
    result = json.loads((tmp_path / "labels.json").read_text())
    rows = {row["method"]: row for row in result["methods"]}
    assert rows["idlg"]["missing"] == ["one picture"]
    assert rows["auto: bias_counts"]["count_overlap"] > 0.8
    assert rows["auto: bias_counts"]["counts"] == rows["bias_counts"]["counts"]
    assert result["num_images"] == 2 * [{"at_least": 12, "limited": False}]
    assert [sum(counts) for counts in result["true_counts"]] == [12, 12]


def test_labels_command_draws_the_distribution(tmp_path, capsys):
    assert cli.main(["labels", "--distribution", "--out", str(tmp_path)]) == 0
    assert "16 or more" in capsys.readouterr().out
    result = json.loads((tmp_path / "label_distribution.json").read_text())
    assert [row["batch_size"] for row in result["rows"]] == [1, 2, 4, 8, 16, 32, 64]
    alone = [row["shared_by"]["1"] for row in result["rows"]]
    assert alone[0] == 1 and all(a > b for a, b in itertools.pairwise(alone))
    assert (tmp_path / "label_distribution.png").stat().st_size > 5000


@pytest.mark.parametrize("how, overlap", [("auto", 1.0), ("ilrg", 0.4), ("optimize", 0.0)])
def test_an_attack_recovers_labels_first_or_optimizes_them(how, overlap, tmp_path):
    spec = AttackSpec(model="mlp", batch_size=2, num_batches=1, steps=10, labels=how)
    run = run_attack(spec, tmp_path, Execution()).result["runs"][0]
    assert run["labels"]["from"] == how
    assert run["labels"]["count_overlap"] >= overlap
    words = " ".join(run["threat_model"])
    assert "labels are unknown" in words and "ORACLE" not in words


def test_bad_label_options_are_one_line(tmp_path, capsys):
    for arguments, message in (
        (["labels", "--method", "ilgr"], "did you mean 'ilrg'"),
        (["labels", "--method", "soft", "--batch-size", "2"], "needs one picture"),
        (["attack", "--labels", "ilgr"], "did you mean 'ilrg'"),
        (["attack", "--labels", "auto", "--labels", "auto"], "labels has 'auto' twice"),
        (["labels", "--compare", "none"], "not --compare"),
    ):
        assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1
