"""Mappings are inferred without an oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gi_jax import data, defenses
from gi_jax.attacks.mapping import infer_mapping
from gi_jax.errors import InputError
from gi_jax.experiments.decode import mapping_overlap
from gi_jax.threat import ImageSpace, Mapping, Mixed, one_hot

EPOCHS = 20


def encoded(defense, size=16):
    """Encodings [T, N, ...] of ten photographs, two a class, with orders of their own in each epoch, and the secret."""
    photos = data.first_per_class(data.load("photos", image_size=size, per_class=1), 1)
    space = ImageSpace(mean=jnp.float32(photos.mean), std=jnp.float32(photos.std))
    images, labels = space.normalize(jnp.asarray(photos.as_float())), one_hot(photos.labels // 2, 5)
    mixing = defenses.parse(defense).mixing
    public = None
    if mixing.num_public:
        public = space.normalize(jnp.asarray(data.load("photos", image_size=size).as_float()[-12:]))
    epochs = jax.vmap(lambda key: mixing(key, images, labels, public))(jax.random.split(jax.random.key(0), EPOCHS))
    order = np.stack([np.random.default_rng(epoch).permutation(len(images)) for epoch in range(EPOCHS)])
    epochs = jax.tree.map(lambda leaf: leaf[np.arange(EPOCHS)[:, None], order], epochs)
    return epochs, mixing, public


def overlap(epochs, found):
    true = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), epochs.mapping.without_signs())
    return mapping_overlap(true, found.mapping, epochs.images.shape[1])


@pytest.mark.parametrize("defense", ["mixup:k=2", "intra_instahide:k=2", "inter_instahide:k=4"])
def test_mappings_of_perfect_encodings_are_found(defense):
    epochs, mixing, public = encoded(defense)
    told = []
    found = infer_mapping(
        jax.random.key(1),
        epochs.images,
        epochs.labels,
        mixing.known(),
        public=public,
        num_starts=1,
        on_round=lambda *state: told.append(state),
    )
    assert overlap(epochs, found) == 1.0
    assert found.loss < 0.01 and found.loss == min(loss for _, _, loss in told[6:])
    assert found.mapping.indices.shape == (200, mixing.k) and found.mapping.signs is None


def test_pictures_that_no_class_tells_apart_are_found_by_what_they_look_like():
    epochs, mixing, _ = encoded("mixup:k=2")
    alike = jnp.ones_like(epochs.labels[..., :1])  # all of one class
    found = infer_mapping(jax.random.key(1), epochs.images, alike, mixing.known(), num_starts=1)
    assert overlap(epochs, found) > 0.9


def test_what_no_mapping_is_inferred_from():
    epochs, mixing, _ = encoded("mixup:k=3")
    images, labels, key = epochs.images, epochs.labels, jax.random.key(0)
    two = dict(public=images[0, :2])
    for broken, options, error in (
        ((images[:1], labels[:1]), {}, "epochs=1"),
        ((images[:, :3], labels[:, :3]), {}, "pictures=3"),
        ((images.at[0, 1].set(jnp.nan), labels), {}, "encodings"),
        ((images, labels.at[0, 1].set(jnp.inf)), {}, "labels"),
        ((images[0], labels[0]), {}, r"encodings of shape \(10, 16, 16, 3\): expected \[epochs, pictures, h, w, c\]"),
        ((images, labels.swapaxes(0, 1)), {}, r"labels of shape \(10, 20, 5\): expected .* \[20, 10, classes\]"),
        ((images, labels[:, 1:]), {}, r"labels of shape \(20, 9, 5\)"),
        ((images, labels), dict(num_starts=0), "num_starts=0"),
        ((images, labels), two | dict(mixed=Mixed(k=6)), r"of shape \(2, 16, 16, 3\): expected 4 or more"),
        ((images[..., :1], labels), two, r"expected 1 or more, \[m, 16, 16, 1\]"),
    ):
        with pytest.raises(InputError, match=error):
            infer_mapping(key, *broken, **{"mixed": mixing.known()} | options)


@pytest.mark.parametrize("flipped", [False, True])
def test_encodings_of_nothing_have_a_mapping_of_finite_shares(flipped):
    some = np.tile(np.eye(3)[[0, 1, 2, 0, 1]], (4, 1, 1))
    for labels in (some, 0 * some):
        nothing = np.zeros((4, 5, 4, 4, 3)).tolist()  # lists are arrays
        found = infer_mapping(jax.random.key(0), nothing, labels.tolist(), Mixed(k=2, flipped=flipped), num_starts=1)
        assert found.mapping.indices.shape == (20, 2) and np.isfinite(found.mapping.coefficients).all()
        assert np.isfinite(found.loss)


def test_the_overlap_does_not_depend_on_the_order_of_pictures():
    true = Mapping(indices=jnp.array([[0, 1], [2, 0], [1, 2]]), coefficients=jnp.array([[0.6, 0.4]] * 3))
    renamed = dataclasses.replace(true, indices=jnp.array([2, 0, 1])[true.indices])
    assert mapping_overlap(true, renamed, 3) == 1.0
    wrong = dataclasses.replace(true, indices=true.indices.at[0, 1].set(2))
    assert mapping_overlap(true, wrong, 3) == pytest.approx(5 / 6)
