"""Decoders: exact where there is enough to decode from, and the paper's as it is, flaw and all."""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import QUICK, SPACE, pictures

from gi_jax import data
from gi_jax.attacks.decode import align_signs, decode_instahide, decode_mixup, decode_paper, sign_decided
from gi_jax.checks import InputError
from gi_jax.defenses.batch import inter_instahide, intra_instahide, mixup
from gi_jax.metrics import correlation
from gi_jax.threat import ImageSpace, Mapping


@lru_cache
def photos():
    """The first five photographs of each class, in the network's units, and these units."""
    chosen = data.first_per_class(data.load("photos"), 5)
    space = ImageSpace(mean=jnp.float32(chosen.mean), std=jnp.float32(chosen.std))
    return space.normalize(jnp.asarray(chosen.as_float())), space


@lru_cache
def smooth(n: int = 24, side: int = 12):
    """Smooth synthetic pictures in the network's units, and these units."""
    return SPACE.normalize(pictures(jax.random.key(3), n, side, side)), SPACE


@partial(jax.jit, static_argnames=("mixing", "epochs"), compiler_options=QUICK)
def encode_epochs(mixing, images, epochs, public=None):
    """Encodings of all epochs, one after the other, and their mapping."""
    labels = jnp.zeros((len(images), 1))
    one = lambda key: mixing(key, images, labels, public)  # noqa: E731
    encoded = jax.vmap(one)(jax.random.split(jax.random.key(0), epochs))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (encoded.images, encoded.mapping))


def mean_correlation(decoded, images, *, any_sign=False):
    found = correlation(jnp.asarray(decoded), images)
    return float(jnp.mean(jnp.abs(found) if any_sign else found))


@pytest.mark.parametrize("k", [4, 6])
def test_mixup_of_photographs_is_decoded_exactly(k):
    images, _ = photos()
    encodings, mapping = encode_epochs(mixup(k), images, 20)
    decoded = decode_mixup(encodings, mapping, 50)
    assert mean_correlation(decoded, images) > 0.9999  # asked for: 0.99
    np.testing.assert_allclose(decoded, images, atol=1e-3)


@pytest.mark.parametrize("k", [4, 6])
def test_instahide_of_photographs_is_decoded_up_to_nothing(k):
    images, space = photos()
    encodings, mapping = encode_epochs(intra_instahide(k), images, 20)
    decoded = decode_instahide(jax.random.key(1), encodings, mapping.without_signs(), 50, space, num_restarts=2)
    assert mean_correlation(decoded, images, any_sign=True) > 0.999  # asked for: 0.9
    np.testing.assert_allclose(decoded, images, atol=1e-2)  # the sign too: the box of pictures tells it


@pytest.mark.parametrize(("pool", "epochs"), [(smooth, 20), (photos, 20)])
def test_the_papers_decoder_finds_minus_the_magnitude(pool, epochs):
    images, space = pool()
    images = images - images.mean(axis=(1, 2, 3), keepdims=True)
    encodings, mapping = encode_epochs(intra_instahide(4), images, epochs)
    decoded = decode_paper(encodings, mapping, len(images), flipped=True)
    assert mean_correlation(decoded, -jnp.abs(images)) > 0.6
    assert abs(mean_correlation(decoded, images)) < 0.3
    ours = decode_instahide(jax.random.key(1), encodings, mapping, len(images), space, num_restarts=2)
    assert mean_correlation(ours, images, any_sign=True) > mean_correlation(decoded, images, any_sign=True) + 0.4


def test_the_papers_decoder_decodes_mixup():
    images, _ = smooth()
    encodings, mapping = encode_epochs(mixup(4), images, 20)
    decoded = decode_paper(encodings, mapping, len(images), flipped=False)
    assert mean_correlation(decoded, images) > 0.99
    np.testing.assert_allclose(decoded.min(axis=(1, 2, 3)), -1, atol=1e-6)
    np.testing.assert_allclose(decoded.max(axis=(1, 2, 3)), 1, atol=1e-6)


def test_the_papers_decoder_takes_the_steps_of_adam_from_zeros():
    images, _ = smooth()
    encodings, mapping = encode_epochs(mixup(4), images, 20)
    one_step = decode_paper(encodings, mapping, len(images), flipped=False, num_steps=1)
    size = len(images)
    gradient = -2 * mapping.matrix(size).T @ encodings.reshape(len(encodings), -1) / encodings.size
    step = np.asarray(-gradient / (jnp.abs(gradient) + 1e-8))
    lowest, highest = step.min(axis=1, keepdims=True), step.max(axis=1, keepdims=True)
    expected = 2 * (step - lowest) / (highest - lowest) - 1
    np.testing.assert_allclose(one_step.reshape(size, -1), expected, atol=1e-2)


def test_fewer_encodings_than_pictures_give_the_smallest_pictures_that_explain_them():
    images, _ = smooth()
    encodings, mapping = (jax.tree.map(lambda leaf: leaf[:10], tree) for tree in encode_epochs(mixup(4), images, 1))
    decoded = decode_mixup(encodings, mapping, len(images))
    np.testing.assert_allclose(mapping.mix(decoded), encodings, atol=1e-3)
    assert jnp.linalg.norm(decoded) < jnp.linalg.norm(images)


def test_mixup_of_as_many_encodings_as_pictures_is_decoded_where_they_tell():
    images = jax.random.normal(jax.random.key(3), (500, 2, 2, 3))
    keys = jax.random.split(jax.random.key(2), 1)  # its smallest singular value is 6e-4 of the largest
    encoded = jax.jit(jax.vmap(lambda key: mixup(4)(key, images, jnp.zeros((500, 1)), None)))(keys)
    encodings, mapping = jax.tree.map(lambda leaf: leaf[0], (encoded.images, encoded.mapping))
    np.testing.assert_allclose(decode_mixup(encodings, mapping, 500), images, atol=5e-3)


def test_a_sign_that_nothing_tells_is_that_of_the_brighter_pictures():
    images, space = smooth()
    images = 0.2 * images + jnp.float32(0.05)  # inside the box with both signs
    for sign in (1, -1):
        assert not sign_decided(sign * images, space)
        encodings, mapping = encode_epochs(intra_instahide(4), sign * images, 10)
        for seed in range(4):
            decoded = decode_instahide(jax.random.key(seed), encodings, mapping, 24, space)
            assert mean_correlation(decoded, images * jnp.sign(images.sum())) > 0.9
    assert sign_decided(smooth()[0], space)


def test_a_ridge_solves_its_equation():
    images, _ = smooth()
    encodings, mapping = encode_epochs(mixup(4), images, 3)
    weights, values = np.float64(mapping.matrix(24)), np.float64(encodings).reshape(len(encodings), -1)
    expected = np.linalg.solve(weights.T @ weights + 0.7 * np.eye(24), weights.T @ values)
    decoded = decode_mixup(encodings, mapping, 24, ridge=0.7)
    np.testing.assert_allclose(decoded.reshape(24, -1), expected, atol=1e-4)


def test_noise_on_the_encodings_averages_out():
    images, space = smooth()
    for mixing in (mixup(4), intra_instahide(4)):
        encodings, mapping = encode_epochs(mixing, images, 20)
        noisy = encodings + 0.1 * jax.random.normal(jax.random.key(5), encodings.shape)
        if mixing.flipped:
            decoded = decode_instahide(jax.random.key(1), noisy, mapping, 24, space)
        else:
            decoded = decode_mixup(noisy, mapping, 24)
        assert mean_correlation(decoded, images, any_sign=True) > 0.98


DECODERS = {
    "paper": lambda *given: decode_paper(*given, flipped=True, num_steps=20),
    "mixup": decode_mixup,
    "instahide": lambda *given: decode_instahide(jax.random.key(1), *given, SPACE, num_steps=20, num_restarts=1),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_encodings_that_are_not_finite_are_left_out(decoder):
    images, _ = smooth()
    encodings, mapping = encode_epochs(intra_instahide(4), images, 3)
    decode = lambda encodings, mapping: DECODERS[decoder](encodings, mapping, len(images))  # noqa: E731
    broken = encodings.at[5, 0, 0, 0].set(jnp.nan).at[9].set(jnp.inf)
    others = np.delete(np.arange(len(encodings)), [5, 9])
    expected = decode(*jax.tree.map(lambda leaf: leaf[others], (encodings, mapping)))
    np.testing.assert_array_equal(decode(broken, mapping), expected)
    assert np.isfinite(expected).all() and np.ptp(expected) > 0
    nothing = decode(jnp.full_like(encodings, jnp.nan), mapping)
    assert nothing.shape == images.shape and np.isnan(nothing).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(encodings=jnp.zeros((2, 3, 4, 4, 3))), r"encodings of shape \(2, 3, 4, 4, 3\): expected \[n, h, w, c\]"),
        (dict(indices=jnp.int32([[0, 1]])), r"indices \(1, 2\).* of 2 encodings: expected \[n, k\]"),
        (dict(coefficients=jnp.ones((2, 3))), r"coefficients \(2, 3\)"),
        (dict(coefficients=jnp.full((2, 2), jnp.nan)), "mapping: .* NaN"),
        (dict(public=jnp.zeros((3, 4, 4, 1))), r"public pictures of shape .*: expected \[m, 4, 4, 3\]"),
        (dict(indices=jnp.int32([[0, 1], [1, 5]]), public=jnp.zeros((3, 4, 4, 3))), "from 0 to 5 .* 3 public"),
        (dict(indices=jnp.int32([[0, 1], [1, -1]])), "from -1 to 1"),
        (dict(indices=jnp.int32([[0, 1], [2, 3]])), "num_pictures=2 .*: expected a private picture"),
        (dict(num_pictures=1.5), "num_pictures=1.5: expected a whole number"),
        (dict(ridge=-0.5), "ridge=-0.5"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = dict(encodings=jnp.zeros((2, 4, 4, 3)), indices=jnp.int32([[0, 1], [1, 0]]), coefficients=jnp.ones((2, 2)))
    given |= dict(num_pictures=2) | change
    mapping = Mapping(indices=given.pop("indices"), coefficients=given.pop("coefficients"))
    with pytest.raises(InputError, match=message):
        decode_mixup(mapping=mapping, **given)


def test_known_public_pictures_are_taken_out():
    images, space = smooth()
    public = -SPACE.normalize(pictures(jax.random.key(4), 9, 12, 12))
    encodings, mapping = encode_epochs(inter_instahide(4), images, 20, public=public)
    decoded = decode_instahide(jax.random.key(1), encodings, mapping, 24, space, public=public)
    assert mean_correlation(decoded, images) > 0.995
    taken_for_noise = decode_instahide(jax.random.key(1), encodings, mapping, 24, space)
    assert mean_correlation(taken_for_noise, images, any_sign=True) < 0.97
    plain = dataclasses.replace(inter_instahide(4), flipped=False)
    encodings, mapping = encode_epochs(plain, images, 20, public=public)
    np.testing.assert_allclose(decode_mixup(encodings, mapping, 24, public=public), images, atol=1e-3)


def test_signs_of_the_mapping_are_not_read():
    images, space = smooth()
    encodings, mapping = encode_epochs(intra_instahide(4), images, 6)
    other = dataclasses.replace(mapping, signs=-mapping.signs)
    decode = lambda mapping: decode_instahide(jax.random.key(0), encodings, mapping, 24, space, num_restarts=1)  # noqa: E731
    np.testing.assert_array_equal(decode(mapping), decode(other))
    np.testing.assert_array_equal(decode(mapping), decode(mapping.without_signs()))


def test_neighbors_tell_the_signs_of_values():
    images, _ = photos()
    scrambled = np.asarray(images) * np.random.default_rng(0).choice([-1, 1], images.shape[1:])
    aligned = scrambled * align_signs(scrambled.astype(np.float32))
    assert np.all(aligned == images) or np.all(aligned == -images)
