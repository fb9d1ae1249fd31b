"""Input defenses: the law of the coefficients and indices, what an encoding is, and that its secret stays one."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import QUICK, SPACE, toy_problem, toy_victim, truth

from gi_jax.checks import InputError
from gi_jax.defenses import entropy
from gi_jax.defenses.batch import (
    Encoded,
    Mixing,
    _dirichlet,
    encode,
    encode_victim,
    inter_instahide,
    intra_instahide,
    mixup,
)
from gi_jax.threat import RUNNING, AttackProblem, Mapping, Mixed

EPOCH = 50_000


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(mixing: Mixing, key, images, labels, public=None) -> Encoded:
    return mixing(key, images, labels, public)


def pool(n: int, side: int = 2, channels: int = 1, num_classes: int = 3, seed: int = 0):
    """Random pictures in the network's units, and their labels."""
    draw = np.random.default_rng(seed).standard_normal
    return jnp.float32(draw((n, side, side, channels))), jax.nn.one_hot(jnp.arange(n) % num_classes, num_classes)


# Coefficients: the figures that the published code gives (share of draws accepted, means).

PUBLISHED = {4: (0.749, 0.428, 0.191, 0.489), 6: (0.942, 0.356, 0.129, 0.418)}


@pytest.mark.parametrize("k", PUBLISHED)
def test_an_epoch_of_fifty_thousand_in_one_call_has_the_published_moments(k):
    encoded = run(intra_instahide(k), jax.random.key(0), *pool(EPOCH))
    coefficients = np.asarray(encoded.mapping.coefficients)
    assert coefficients.shape == encoded.mapping.indices.shape == (EPOCH, k)
    assert coefficients.min() >= 0
    assert coefficients.max() <= 0.65
    np.testing.assert_allclose(coefficients.sum(axis=1), 1, atol=1e-6)
    assert encoded.images.shape == (EPOCH, 2, 2, 1)
    _, first, others, largest = PUBLISHED[k]
    columns = [coefficients[:, 0], *coefficients[:, 1:].T, coefficients.max(axis=1)]
    for column, expected in zip(columns, [first, *[others] * (k - 1), largest], strict=True):
        six_standard_errors = 6 * column.std() / np.sqrt(EPOCH)
        assert abs(column.mean() - expected) < six_standard_errors + 0.0005  # the figures have three digits


@pytest.mark.parametrize("k", PUBLISHED)
def test_as_many_draws_are_accepted_as_in_the_published_code(k):
    drawn = jax.jit(lambda key: _dirichlet(key, 3, EPOCH, k), compiler_options=QUICK)(jax.random.key(0))
    accepted = np.mean(np.max(drawn, axis=1) <= 0.65)
    assert abs(accepted - PUBLISHED[k][0]) < 6 * np.sqrt(accepted * (1 - accepted) / EPOCH) + 0.0005


def test_dirichlet_has_the_moments_of_a_dirichlet():
    drawn = np.asarray(jax.jit(lambda key: _dirichlet(key, 3, EPOCH, 4), compiler_options=QUICK)(jax.random.key(0)))
    concentration = np.array([3, 1, 1, 1])
    mean = concentration / 6
    covariance = (np.diag(mean) - np.outer(mean, mean)) / 7
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.005)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.001)


def test_rejection_is_exact():
    # Whatever was drawn again must follow the law of what was accepted at once.
    redrawn = np.sort(np.asarray(run(mixup(4), jax.random.key(0), *pool(EPOCH)).mapping.coefficients)[:, 0])
    drawn = np.random.default_rng(0).dirichlet([3, 1, 1, 1], 2 * EPOCH)
    accepted = np.sort(drawn[drawn.max(axis=1) <= 0.65][:EPOCH, 0])
    grid = np.linspace(0, 0.65, 200)
    distance = np.abs(np.searchsorted(redrawn, grid) - np.searchsorted(accepted, grid)).max() / EPOCH
    assert distance < 2.5 * np.sqrt(2 / EPOCH)  # Kolmogorov-Smirnov, one chance in a hundred thousand


# Indices.


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_indices_are_distinct_and_the_first_column_holds_everybody(k, own):
    indices = np.asarray(run(mixup(k, own=own), jax.random.key(0), *pool(50)).mapping.indices)
    assert all(len(set(row)) == k for row in indices)
    assert indices.min() >= 0 and indices.max() < 50
    assert (np.array_equal(indices[:, 0], np.arange(50))) == own
    np.testing.assert_array_equal(np.sort(indices[:, 0]), np.arange(50))


def test_a_pool_of_k_is_used_up():
    indices = np.asarray(run(mixup(4), jax.random.key(0), *pool(4)).mapping.indices)
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(4), (4, 1)))


def test_partners_are_uniform_over_all_choices():
    draw = jax.jit(jax.vmap(lambda key: mixup(3).draw(key, (5, 1, 1, 1)).indices), compiler_options=QUICK)
    indices = np.asarray(draw(jax.random.split(jax.random.key(0), 4800))).reshape(-1, 3)
    steps = (indices[:, 1:] - indices[:, :1]) % 5
    pairs, counts = np.unique(steps, axis=0, return_counts=True)
    assert len(pairs) == 4 * 3
    chi_square = np.sum((counts - counts.mean()) ** 2) / counts.mean()
    assert chi_square < 11 + 6 * np.sqrt(2 * 11)


# Encodings.


def test_an_encoding_is_what_the_equation_says():
    images, labels = pool(6, side=3, channels=2)
    encoded = run(intra_instahide(3), jax.random.key(0), images, labels)
    mapping = jax.tree.map(np.asarray, encoded.mapping)
    for i in range(6):
        rows, shares = mapping.indices[i], mapping.coefficients[i]
        mixture = sum(share * np.asarray(images[row]) for row, share in zip(rows, shares, strict=True))
        np.testing.assert_allclose(encoded.images[i], mapping.signs[i] * mixture, atol=1e-6)
        soft = sum(share * np.asarray(labels[row]) for row, share in zip(rows, shares, strict=True))
        np.testing.assert_allclose(encoded.labels[i], soft, atol=1e-6)
    np.testing.assert_allclose(encoded.labels.sum(axis=1), 1, atol=1e-6)


def test_the_matrix_mixes_as_the_mapping_does():
    images, labels = pool(7)
    mapping = run(mixup(4), jax.random.key(0), images, labels).mapping
    mixed = mapping.matrix(7) @ images.reshape(7, -1)
    np.testing.assert_allclose(mixed, mapping.mix(images).reshape(7, -1), atol=1e-6)
    np.testing.assert_allclose(mapping.matrix(7).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(mapping.matrix(5), mapping.matrix(7)[:, :5])  # what is not asked for is left out


def test_mixing_one_picture_changes_nothing():
    images, labels = pool(20)
    encoded = run(mixup(1), jax.random.key(0), images, labels)
    np.testing.assert_array_equal(encoded.images, images)
    np.testing.assert_array_equal(encoded.labels, labels)
    flipped = run(intra_instahide(1), jax.random.key(0), images, labels)
    np.testing.assert_array_equal(np.abs(flipped.images), np.abs(images))


def test_without_its_own_picture_first_the_same_encodings_come_in_another_order():
    images, labels = pool(30)
    own, other = (run(mixup(1, own=own), jax.random.key(0), images, labels) for own in (True, False))
    order = np.asarray(other.mapping.indices[:, 0])
    assert not np.array_equal(order, np.arange(30))
    np.testing.assert_array_equal(other.images, own.images[order])
    np.testing.assert_array_equal(other.labels, own.labels[order])


def test_masks_are_balanced_and_independent():
    draw = jax.jit(lambda key: intra_instahide(2).draw(key, (2000, 4, 4, 3)).signs, compiler_options=QUICK)
    signs, other = (np.asarray(draw(jax.random.key(seed))) for seed in range(2))
    assert signs.dtype == np.int8 and set(np.unique(signs)) == {-1, 1}
    bound = 6 / np.sqrt(signs.size)
    neighbors = [signs[:, 1:] * signs[:, :-1], signs[..., 1:] * signs[..., :-1], signs[1:] * signs[:-1]]
    for product in [signs, signs * other, *neighbors]:
        assert abs(product.mean(dtype=np.float64)) < 1.2 * bound


def test_epochs_differ_and_equal_keys_do_not():
    images, labels = pool(20)
    first, again, second = (run(intra_instahide(4), jax.random.key(seed), images, labels) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.mapping.indices, second.mapping.indices)
    assert not np.array_equal(first.mapping.coefficients, second.mapping.coefficients)


def test_epochs_are_mapped():
    images, labels = pool(10)
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(intra_instahide(4), (0, None, None)), compiler_options=QUICK)(keys, images, labels)
    one = run(intra_instahide(4), jax.random.split(jax.random.key(0), 3)[1], images, labels)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), jax.tree.map(lambda leaf: leaf[1], together), one)


# Public pictures.


def test_two_private_pictures_and_the_rest_public_with_a_fixed_sum():
    (images, labels), (public, _) = pool(40), pool(9, seed=1)
    encoded = run(inter_instahide(6), jax.random.key(0), images, labels, public)
    indices, coefficients = np.asarray(encoded.mapping.indices), np.asarray(encoded.mapping.coefficients)
    assert np.all(indices[:, :2] < 40)
    assert np.all((40 <= indices[:, 2:]) & (indices[:, 2:] < 49))
    assert all(len(set(row)) == 6 for row in indices)
    np.testing.assert_allclose(coefficients[:, 2:].sum(axis=1), 0.3, atol=1e-6)
    np.testing.assert_allclose(encoded.labels.sum(axis=1), 0.7, atol=1e-6)
    expected = encoded.mapping.matrix(49)[:, :40] @ labels
    np.testing.assert_allclose(encoded.labels, expected, atol=1e-6)
    mixed = encoded.mapping.mix(jnp.concatenate([images, public]))
    np.testing.assert_allclose(encoded.images, encoded.mapping.signs * mixed, atol=1e-6)


def test_private_shares_follow_the_same_law_below_the_bound():
    (images, labels), (public, _) = pool(EPOCH), pool(5, seed=1)
    coefficients = np.asarray(run(inter_instahide(4), jax.random.key(0), images, labels, public).mapping.coefficients)
    assert coefficients.max() <= 0.65 and coefficients.min() >= 0
    # Beta(3, 1) has distribution function t^3; accepted where 0.7 t and 0.7 (1 - t) are at most 0.65.
    low, high = 1 - 0.65 / 0.7, 0.65 / 0.7
    expected = 0.7 * 0.75 * (high**4 - low**4) / (high**3 - low**3)
    assert abs(coefficients[:, 0].mean() - expected) < 6 * coefficients[:, 0].std() / np.sqrt(EPOCH)


def test_an_open_sum_keeps_the_published_bound():
    (images, labels), (public, _) = pool(EPOCH), pool(5, seed=1)
    mapping = run(inter_instahide(4, public_sum=None), jax.random.key(0), images, labels, public).mapping
    private = np.asarray(mapping.coefficients)[:, :2].sum(axis=1)
    assert 0.3 <= private.min() < 0.31 and private.std() > 0.1
    assert mapping.coefficients.max() <= 0.65


# A victim that encodes.


@pytest.mark.parametrize("mixing", [mixup(2), intra_instahide(2)])
def test_a_victim_trains_on_its_encodings(mixing):
    victim = toy_victim(n=4)
    encoded_victim, mapping = encode_victim(mixing, jax.random.key(0), victim)
    expected = encode(mapping, truth(victim), victim.labels)
    np.testing.assert_allclose(truth(encoded_victim), expected.images, atol=1e-5)
    np.testing.assert_allclose(encoded_victim.labels, expected.labels)
    assert 0 <= encoded_victim.images.min() and encoded_victim.images.max() <= 1
    assert encoded_victim.params is victim.params


def test_the_secret_is_no_part_of_the_problem():
    victim, mapping = encode_victim(intra_instahide(2), jax.random.key(0), toy_victim(n=4))
    problem = toy_problem(victim, RUNNING)
    assert not {"mapping", "indices", "coefficients", "signs"} & {
        item.name for item in dataclasses.fields(AttackProblem)
    }
    is_mapping = lambda leaf: isinstance(leaf, Mapping)  # noqa: E731
    assert not any(map(is_mapping, jax.tree.leaves(problem, is_leaf=is_mapping)))
    secrets = jax.tree.leaves(mapping)
    for leaf in jax.tree.leaves(problem):
        assert not any(leaf.shape == secret.shape and np.allclose(leaf, secret) for secret in secrets)
    assert mapping.without_signs().signs is None and mapping.signs is not None


def test_what_is_known_is_the_kind_of_defense():
    assert mixup(4).known() == Mixed(k=4) and intra_instahide(6).known() == Mixed(k=6, flipped=True)
    assert inter_instahide(4).known() == Mixed(k=4, flipped=True, label_sum=0.7)
    assert inter_instahide(4, public_sum=None).known().label_sum is None


def test_the_signed_box_holds_both_signs_and_keeps_the_units():
    space = SPACE.signed()
    pictures = jnp.float32(np.random.default_rng(0).random((5, 2, 2, 3)))
    images = SPACE.normalize(pictures)
    for signed in (images, -images):
        np.testing.assert_allclose(space.clip(signed), signed, atol=1e-6)
        np.testing.assert_allclose(space.normalize(space.denormalize(signed)), signed, atol=1e-5)
    np.testing.assert_allclose(space.denormalize(-images), 1 - space.denormalize(images), atol=1e-6)
    corners = SPACE.normalize(jnp.stack([jnp.zeros((1, 1, 3)), jnp.ones((1, 1, 3))]))
    limit = np.abs(corners).max(axis=(0, 1, 2))
    np.testing.assert_allclose(space.clip(jnp.full((1, 1, 1, 3), 99.0))[0, 0, 0], limit, rtol=1e-6)
    np.testing.assert_allclose(space.clip(jnp.full((1, 1, 1, 3), -99.0))[0, 0, 0], -limit, rtol=1e-6)


# Entropy of the operating system.


def test_keys_and_signs_of_the_operating_system_are_new_each_time():
    keys = [entropy.entropy_key() for _ in range(8)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 8
    assert jax.random.uniform(keys[0]).shape == ()
    shape = (40, 7, 7, 3)  # not a multiple of eight bits
    first, second = (np.asarray(entropy.entropy_signs(shape)) for _ in range(2))
    assert first.shape == shape and first.dtype == np.int8 and set(np.unique(first)) == {-1, 1}
    for signs in (first, first * second):
        assert abs(signs.mean(dtype=np.float64)) < 8 / np.sqrt(first.size)


def test_signs_of_the_operating_system_can_take_the_place_of_those_drawn():
    images, labels = pool(8)
    mapping = intra_instahide(2).draw(entropy.entropy_key(), images.shape)
    mapping = dataclasses.replace(mapping, signs=entropy.entropy_signs(images.shape))
    encoded = encode(mapping, images, labels)
    np.testing.assert_allclose(encoded.images, mapping.signs * mapping.mix(images), atol=1e-6)


# Bad input.


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mixup(0), "k=0: expected a whole number of pictures, 1 or above"),
        (lambda: mixup(2.5), "k=2.5: expected a whole number of pictures, 1 or above"),
        (lambda: inter_instahide(2), "k=2: expected 3 or above, two private pictures and at least a public one"),
        (lambda: inter_instahide(4, public_sum=0.0), "public_sum=0.0: expected a number above 0"),
        (lambda: inter_instahide(4, public_sum=0.7), "public_sum=0.7: expected a number in [0, 0.65)"),
        (lambda: Mixing(k=2, num_public=2), "num_public=2: expected 0 or above, and below k=2"),
        (
            lambda: Mixing(k=2, flipped=True, num_public=1, public_sum=0.3),
            "public_sum=0.3 with one private picture: its share would be above 0.65, which no encoding may have; "
            "expected 0.35 or above, or more private pictures",
        ),
        (lambda: mixup(4)(jax.random.key(0), *pool(3)), "k=4 with 3 private pictures: expected 4 or more to mix"),
        (
            lambda: inter_instahide(6)(jax.random.key(0), *pool(3), pool(3)[0]),
            "k=6 with 3 public pictures: expected 4 or more to mix",
        ),
        (
            lambda: inter_instahide(6)(jax.random.key(0), *pool(3)),
            "k=6 with 0 public pictures: expected 4 or more to mix",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == message


def test_a_victim_of_lists_is_encoded_as_one_of_arrays():
    victim = toy_victim(n=4)
    plain = dataclasses.replace(victim, images=np.asarray(victim.images).tolist(), labels=victim.labels.tolist())
    (one, _), (other, _) = (encode_victim(mixup(2), jax.random.key(0), client) for client in (victim, plain))
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)
