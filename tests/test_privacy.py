"""Differential privacy: epsilons against published ones, the inverse, and the sampling that they assume."""

import logging

import jax
import numpy as np
import pytest
from scipy import stats

from gi_jax.checks import InputError
from gi_jax.defenses.privacy import ACCOUNTANTS, epsilon, noise_multiplier, poisson_sample, sample_size

PUBLISHED = [
    # dp-accounting 0.6.0, pld/pld_privacy_accountant_test.py, test_self_composed_subsampled_gaussian.
    ("pld", 0.2, 0.5, 3, 0.15594, 1.0, 1e-3),
    # dp-accounting 0.6.0, rdp/rdp_privacy_accountant_test.py, test_compute_epsilon_delta_gaussian (finer orders).
    ("rdp", 1.0, 4.530877117, 1, 1e-6, 1.0, 1e-6),
    # TensorFlow Privacy on dp-accounting, analysis/compute_dp_sgd_privacy_test.py: test_compute_dp_sgd_privacy,
    # Test0 (60,000 examples, batches of 150, 15 epochs) and Test1 (100,000, 100, 30);
    ("rdp", 150 / 60_000, 1.3, 6_000, 1e-5, 0.7242234026109595, 1e-7),
    ("rdp", 100 / 100_000, 1.0, 30_000, 1e-7, 1.4154988495444845, 1e-7),
    # test_compute_dp_sgd_example_privacy without micro-batches (its orders differ a little);
    ("rdp", 1.0, 0.7, 2, 1e-5, 10.8602036, 1e-6),
    ("rdp", 0.01, 0.7, 120, 1e-5, 3.2391922, 1e-4),
    ("pld", 1.0, 0.7, 2, 1e-5, 10.1224946, 1e-6),
    ("pld", 0.01, 0.7, 120, 1e-5, 2.4612381, 1e-6),
    # test_dp_sgd_privacy_statement: 10,000 examples, batches of 64, 5 epochs, noise 2 over a sensitivity of 2.
    ("rdp", 0.0064, 1.0, 782, 1e-6, 1.616, 5e-4),
    ("pld", 0.0064, 1.0, 782, 1e-6, 1.199, 5e-4),
]


@pytest.mark.parametrize("accountant, probability, multiplier, steps, delta, expected, tolerance", PUBLISHED)
def test_epsilon_is_the_published_one(accountant, probability, multiplier, steps, delta, expected, tolerance):
    training = dict(sampling_probability=probability, steps=steps, delta=delta, accountant=accountant)
    found = epsilon(noise_multiplier=multiplier, **training)
    assert abs(found - expected) <= tolerance * max(1, expected)


TRAINING = dict(sampling_probability=0.01, steps=100, delta=1e-5)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_more_noise_less_sampling_and_fewer_steps_leak_less(accountant):
    told = lambda **changes: epsilon(**{"noise_multiplier": 2.0, **TRAINING, "accountant": accountant, **changes})  # noqa: E731
    assert told(noise_multiplier=3.0) < told() < told(noise_multiplier=1.5)
    assert told(sampling_probability=0.005) < told() < told(sampling_probability=0.02)
    assert told(steps=50) < told() < told(steps=200)
    assert told(noise_multiplier=0) == np.inf


def test_the_tight_accountant_is_below_the_usual_one():
    tight, usual = (epsilon(noise_multiplier=1.0, **TRAINING, accountant=name) for name in ("pld", "rdp"))
    assert tight < usual


@pytest.mark.parametrize("accountant, multiplier", [("rdp", 1.3), ("rdp", 0.7), ("pld", 5.0)])
def test_the_noise_for_an_epsilon_is_the_least_that_keeps_it(accountant, multiplier):
    training = {**TRAINING, "accountant": accountant}
    target = epsilon(noise_multiplier=multiplier, **training)
    found = noise_multiplier(epsilon=target, **training)
    assert abs(found - multiplier) <= 2e-4
    assert epsilon(noise_multiplier=found, **training) <= target


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sampling_probability": 0}, "sampling probability 0: expected a number in (0, 1]"),
        ({"sampling_probability": 1.5}, "sampling probability 1.5: expected a number in (0, 1]"),
        ({"delta": 0}, "delta=0: expected a number in (0, 1), such as 1e-5"),
        ({"delta": float("nan")}, "delta=nan: expected a number in (0, 1), such as 1e-5"),
        ({"steps": 0}, "steps=0: expected a number above 0"),
        ({"accountant": "rpd"}, "unknown accountant 'rpd': did you mean 'rdp'? choose from pld, rdp"),
    ],
)
def test_what_is_no_training_is_told_in_one_line(change, message):
    for function, value in ((epsilon, {"noise_multiplier": 1.0}), (noise_multiplier, {"epsilon": 1.0})):
        with pytest.raises(InputError) as error:
            function(**{**TRAINING, **value, **change})
        assert str(error.value) == message


def test_noise_and_targets_out_of_range():
    with pytest.raises(InputError, match="^noise_multiplier=-1: expected a number that is 0 or above$"):
        epsilon(noise_multiplier=-1, **TRAINING)
    with pytest.raises(InputError, match="^epsilon=0: expected a number above 0$"):
        noise_multiplier(epsilon=0, **TRAINING)
    with pytest.raises(InputError, match="^epsilon=100000.0: a noise multiplier below 0.1 would do"):
        noise_multiplier(epsilon=1e5, **TRAINING)


def test_orders_that_are_left_out_are_not_news(caplog):
    with caplog.at_level(logging.WARNING):
        epsilon(sampling_probability=0.1, noise_multiplier=1.0, steps=10, delta=1e-5, accountant="rdp")
    assert caplog.records == [] and not logging.getLogger("absl").disabled


# Sampling.


def test_every_example_is_drawn_independently_with_the_same_probability():
    examples, q, draws = 40, 0.3, 4000
    keys = jax.random.split(jax.random.key(0), draws)
    sample = jax.jit(jax.vmap(lambda key: poisson_sample(key, examples, q, examples)))(keys)
    drawn = np.zeros((draws, examples))
    rows = np.repeat(np.arange(draws)[:, None], examples, 1)
    drawn[rows[sample.chosen], np.asarray(sample.indices)[sample.chosen]] = 1
    assert np.all(sample.dropped == 0) and drawn.sum() == sample.chosen.sum()  # no example twice
    assert np.abs(drawn.mean(0) - q).max() < 6 * np.sqrt(q * (1 - q) / draws)
    together = np.cov(drawn.T) - np.diag(np.var(drawn, axis=0, ddof=1))
    assert np.abs(together).max() < 6 * q * (1 - q) / np.sqrt(draws)
    counts = np.bincount(drawn.sum(1).astype(int), minlength=examples + 1)
    expected = stats.binom.pmf(np.arange(examples + 1), examples, q) * draws
    likely = expected > 10
    assert stats.chi2.sf(np.sum((counts - expected)[likely] ** 2 / expected[likely]), likely.sum()) > 1e-6


def test_a_batch_has_a_fixed_size_and_says_what_did_not_fit():
    examples = 100
    sample = lambda q, size: poisson_sample(jax.random.key(1), examples, q, size)  # noqa: E731
    whole = sample(0.2, examples)
    count = int(whole.chosen.sum())
    small = sample(0.2, count - 3)
    assert small.indices.shape == (count - 3,) and small.chosen.all() and small.dropped == 3
    np.testing.assert_array_equal(small.indices, whole.indices[: count - 3])
    for q, number in ((0.0, 0), (1.0, examples)):
        assert sample(q, examples).chosen.sum() == number


@pytest.mark.parametrize("examples, q", [(50_000, 0.01), (1000, 0.5), (10, 0.9)])
def test_the_padded_size_is_the_smallest_that_is_enough(examples, q):
    size = sample_size(examples, q, tail=1e-6)
    exceeded = lambda size: stats.binom.sf(size, examples, q)  # noqa: E731
    assert exceeded(size) <= 1e-6 < exceeded(size - 1) and q * examples < size <= examples
