"""Which pictures an encoding mixes, and in which shares, inferred from encodings of several epochs.

Carlini et al. (2020, arXiv 2011.05315) tell encodings of one picture by a trained network and a combinatorial search.
Here all is one least-squares problem: encodings y = W x with signs lost, labels l = W c with none lost, where each row
of W has k shares of 0 or above. Who knows x finds W row by row, with far more values than pictures; who knows W finds x
value by value, with far more encodings than pictures. The two are solved in turns, from a start in which every epoch
encodes every picture once as the one with most weight, so that epochs are matched to each other.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from gi_jax import checks
from gi_jax.attacks.decode import exact, inverse, reflections, signed
from gi_jax.threat import Mapping, Mixed
from gi_jax.types import Images, Key, Labels

NUM_VALUES = 1536
"""Of pixels and channels, at random, that are looked at: several times the number of pictures is enough."""

DENSE_ROUNDS = 6
"""Rounds before shares are cut to the k largest."""

LOST = 0.2
"""Median share in the encodings that are matched to a picture, below which there is no such picture."""

PATIENCE = 10
"""Rounds without a loss smaller by a twentieth, after which it ends."""


class InferredMapping(NamedTuple):
    """What `infer_mapping` finds.

    Attributes:
      mapping: of all encodings, one epoch after the other, without signs; pictures in an order of its own.
      loss: mean over encodings of |y - W x|^2 / |y|^2, by which it was chosen.
    """

    mapping: Mapping
    loss: float


@exact
def infer_mapping(
    key: Key,
    encodings: Images,
    labels: Labels,
    mixed: Mixed,
    *,
    public: Images | None = None,
    num_starts: int = 3,
    num_rounds: int = 40,
    on_round: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> InferredMapping:
    """Infers the mapping of encodings without an oracle.

    Args:
      key: of random choices.
      encodings: [T, N, h, w, c] in the network's units, true ones or those that an attack recovered; those of an epoch
        in any order. Each epoch encodes each of N pictures once with most weight, as the defenses here do.
      labels: of the encodings, [T, N, classes], known or read off gradients.
      mixed: what is known of the defense: k, and whether signs are random.
      public: the public pictures in the network's units, if any are mixed in (k - 2 an encoding).
      num_starts: epochs from which the others are matched; the best start goes on.
      num_rounds: of one start at most, of which six come before shares are cut; every other start adds six.
      on_round: called with the rounds done, all rounds and the loss.

    Returns:
      `InferredMapping`.

    Raises:
      InputError: for encodings that are not finite, of one epoch, or of fewer pictures than an encoding mixes; for
        labels and public pictures that do not fit them.
    """
    encodings, labels = np.asarray(encodings), np.asarray(labels)
    private = mixed.k if public is None else 2
    _check(encodings, labels, public, mixed.k - private)
    checks.counts(num_starts=num_starts, num_rounds=num_rounds)
    epochs, size = encodings.shape[:2]
    checks.in_range(private + 1, np.inf, pictures=size)
    values = np.asarray(encodings, np.float32).reshape(epochs * size, -1)
    if mixed.flipped:
        values = np.abs(values)
    features = _features(values, labels.reshape(epochs * size, -1)).reshape(epochs, size, -1)
    key_chosen, key_starts, key_rounds = jax.random.split(key, 3)
    chosen = jax.random.permutation(key_chosen, values.shape[1])[: max(NUM_VALUES, 8 * size)]
    known = jnp.zeros((0, len(chosen))) if public is None else jnp.asarray(public).reshape(len(public), -1)[:, chosen]
    problem = _Problem(jnp.asarray(values)[:, chosen], jnp.float32(labels).reshape(epochs * size, -1), known)
    solve = partial(_round, problem=problem, features=features, k=mixed.k, private=private, flipped=mixed.flipped)

    num_starts = min(num_starts, epochs)
    total = num_starts * DENSE_ROUNDS + max(1, num_rounds - DENSE_ROUNDS)
    done, starts = 0, []
    for start in range(num_starts):
        state = _start(jax.random.fold_in(key_starts, start), features, start, problem)
        for number in range(DENSE_ROUNDS):
            state = solve(jax.random.fold_in(key_rounds, done), state, number, sparse=False)
            done += 1
            on_round(done, total, float(state.loss))
        starts.append(state)
    state = min(starts, key=lambda state: float(state.loss))
    best, since = None, 0
    for number in range(total - done):
        state = solve(jax.random.fold_in(key_rounds, done), state, number, sparse=True)
        done += 1
        on_round(done, total, float(state.loss))
        better = best is None or state.loss < 0.95 * best.loss
        since = 0 if better else since + 1
        best = state if best is None or state.loss < best.loss else best
        if since == PATIENCE:
            break
    shares, indices = _largest(best.weights, size, mixed.k, private)
    return InferredMapping(Mapping(indices=indices, coefficients=shares), float(best.loss))


def _check(encodings, labels, public, num_mixed):
    """Refuses what does not fit; `num_mixed` public pictures are in an encoding."""
    if encodings.ndim != 5:
        raise checks.InputError(
            f"encodings of shape {encodings.shape}: expected [epochs, pictures, h, w, c]; reshape those that lie one "
            "epoch after the other"
        )
    checks.in_range(2, np.inf, epochs=len(encodings))
    if labels.ndim != 3 or labels.shape[:2] != encodings.shape[:2]:
        raise checks.InputError(
            f"labels of shape {labels.shape}: expected those of the encodings, "
            f"[{encodings.shape[0]}, {encodings.shape[1]}, classes]"
        )
    checks.all_finite("encodings", encodings)
    checks.all_finite("labels", labels)
    if public is not None and (len(public) < num_mixed or np.shape(public)[1:] != encodings.shape[2:]):
        shape = ", ".join(map(str, encodings.shape[2:]))
        raise checks.InputError(
            f"public pictures of shape {np.shape(public)}: expected {num_mixed} or more, [m, {shape}]: all of the pool "
            "that the client mixes in"
        )


class _Problem(NamedTuple):
    """Observed: values [n, v] (magnitudes where signs are random), labels [n, classes], public values [m, v]."""

    values: jax.Array
    labels: jax.Array
    public: jax.Array


class _State(NamedTuple):
    """weights [n, N + m] and values [N, v] as found, what each encoding counts [n], and the loss."""

    weights: jax.Array
    values: jax.Array
    trust: jax.Array
    loss: jax.Array


def _features(values, labels):
    """Unit vectors [n, ...] of the encodings, whose inner products tell how much they share.

    What all encodings have in common, and the strongest of what natural pictures have, count less.
    """
    centered = values - values.mean(axis=0)
    basis, scales, _ = np.linalg.svd(centered, full_matrices=False)
    least = np.finfo(np.float32).tiny  # encodings that are all the same have scales of 0
    seen = _unit(basis * (scales / np.hypot(scales, max(0.3 * scales[0], least))))
    return _unit(np.concatenate([seen, 0.5 * _unit(labels - labels.mean(axis=0))], axis=1))


def _unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


def _start(key, features, start, problem):
    """Matches every epoch to epoch `start`, one to one, by k-means; owners have most of the weight of their class."""
    epochs, size, _ = features.shape
    centers, owners = features[start], None
    for _ in range(30):
        likeness = features @ _unit(centers).T
        found = np.stack([linear_sum_assignment(-likeness[epoch])[1] for epoch in range(epochs)])
        if owners is not None and (found == owners).all():
            break
        owners, centers = found, np.zeros_like(centers)
        for epoch in range(epochs):
            centers[found[epoch]] += features[epoch]
    owned = jax.nn.one_hot(owners.ravel(), size)
    classes = _one_hot_of_largest(owned.T @ problem.labels)
    of_class = problem.labels @ classes.T  # [n, N]
    spread = of_class / (classes @ jnp.sum(classes, axis=0))[None]
    left = 1 - jnp.sum(problem.labels, axis=1, keepdims=True)  # public pictures have no label
    public = jnp.tile(left / max(1, len(problem.public)), len(problem.public))
    rivals = owned @ classes @ classes.T  # pictures of the owner's class
    weights = jnp.concatenate([spread * (1 - 0.8 * rivals) + 0.8 * owned * of_class, public], axis=1)
    values = jax.random.normal(key, (size, problem.values.shape[1]))
    return _State(weights, values, jnp.ones(len(owned)), jnp.float32(jnp.inf))


def _one_hot_of_largest(rows):
    return jax.nn.one_hot(jnp.argmax(rows, axis=1), rows.shape[1])


def _round(key, state, number, *, problem, features, k, private, flipped, sparse):
    """Pictures, then shares, and now and then other starts for shares and pictures."""
    if sparse and number % 4 == 0:
        state = _replace_lost(state, features)
    return _improve(key, state, problem, k, private, flipped, sparse, again=number % 3 == 2)


def _replace_lost(state, features):
    """A picture that no epoch has becomes what is in the encoding that fits worst, and in one like it of each epoch."""
    epochs, size, _ = features.shape
    weights, misfit = np.array(state.weights), 1 / np.asarray(state.trust)
    by_epoch = weights[:, :size].reshape(epochs, size, size)
    owned = np.stack([linear_sum_assignment(-found.T)[1] for found in by_epoch])  # by each picture
    shares = np.take_along_axis(by_epoch, owned[:, None], axis=1)[:, 0]
    lost = np.flatnonzero(np.median(shares, axis=0) < LOST)
    weights[:, lost] = 0
    flat = features.reshape(epochs * size, -1)
    for picture in lost:
        likeness = np.maximum(flat @ flat[np.argmax(misfit)], 0) * misfit
        rows = np.arange(epochs) * size + np.argmax(likeness.reshape(epochs, size), axis=1)
        weights[rows] = 0
        weights[rows, picture] = 0.5
        misfit[rows] = 0
    return state._replace(weights=jnp.asarray(weights), trust=jnp.ones(len(weights)) if len(lost) else state.trust)


@partial(jax.jit, static_argnames=("k", "private", "flipped", "sparse", "again"))
def _improve(key, state, problem, k, private, flipped, sparse, again):
    size = len(state.values)
    key_pictures, key_shares = jax.random.split(key)
    values = _pictures(key_pictures, state, problem, flipped, ridge=0.003 if sparse else 0.03)
    own = state.weights[:, :size]
    gram = own.T @ own + 0.1 * jnp.eye(size)
    classes = _one_hot_of_largest(jnp.linalg.solve(gram, own.T @ problem.labels))
    pictures = jnp.concatenate([values, problem.public])
    fit = partial(_shares, problem=problem, pictures=pictures, classes=classes, flipped=flipped)
    weights = fit(state.weights)
    if again:
        weights = _other_starts(key_shares, weights, fit, problem, pictures, classes, flipped)
    weights = _cut(weights, size, k, private) if sparse else weights
    misfit = _misfit(weights, problem, pictures, flipped)
    middle = jnp.median(misfit)
    return _State(weights, values, (middle + 1e-12) / (misfit + 0.3 * middle + 1e-12), jnp.mean(misfit))


def _pictures(key, state, problem, flipped, ridge):
    """Values of all pictures [N, v] that fit the encodings best, each counted by its trust."""
    size = len(state.values)
    root = jnp.sqrt(state.trust)[:, None]
    weights, offset = root * state.weights[:, :size], root * (state.weights[:, size:] @ problem.public)
    observed = root * problem.values
    solve = inverse(weights, ridge)
    if not flipped:
        return solve @ (observed - offset)

    def refine(_, values):
        return solve @ (signed(weights @ values + offset, observed) - offset)

    def fitted(start):
        z = reflections(weights @ start + offset, weights, offset, observed, 60)
        values = jax.lax.fori_loop(0, 20, refine, solve @ (signed(z, observed) - offset))
        return values, jnp.sum(jnp.square(jnp.abs(weights @ values + offset) - observed), axis=0)

    # From where it was, and anew: signs that do not fit would stay.
    (values, misfit), (others, error) = fitted(state.values), fitted(jax.random.normal(key, state.values.shape))
    return jnp.where(error < misfit, others, values)


def _shares(weights, *, problem, pictures, classes, flipped, allowed=None, num_steps=60):
    """Shares of 0 or above by accelerated projected gradient descent on |y - W x|^2 / v + |l - W c|^2.

    Args:
      weights: [n, N + m], where to start.
      problem: the encodings.
      pictures: [N + m, v].
      classes: of the private pictures, [N, classes].
      flipped: whether only magnitudes are known.
      allowed: [n, N + m], shares that may be above 0; all if None.
      num_steps: of descent.
    """
    size, scale = len(classes), problem.values.shape[1]
    labels = jnp.zeros((len(pictures), classes.shape[1])).at[:size].set(classes)
    length = jnp.linalg.norm(pictures @ pictures.T / scale + labels @ labels.T, 2) + jnp.finfo(jnp.float32).tiny

    def gradient(weights):
        mixture = weights @ pictures
        target = signed(mixture, problem.values) if flipped else problem.values
        return (mixture - target) @ pictures.T / scale + (weights @ labels - problem.labels) @ labels.T

    def step(_, state):
        weights, ahead, momentum = state
        found = jnp.maximum(ahead - gradient(ahead) / length, 0)
        found = found if allowed is None else jnp.where(allowed, found, 0)
        faster = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        return found, found + (momentum - 1) / faster * (found - weights), faster

    return jax.lax.fori_loop(0, num_steps, step, (weights, weights, jnp.float32(1)))[0]


def _other_starts(key, weights, fit, problem, pictures, classes, flipped):
    """Shares from eight random starts of the right labels, on some values; the best for each encoding."""
    size = len(classes)
    key_some, key_drawn = jax.random.split(key)
    some = jax.random.permutation(key_some, problem.values.shape[1])[: max(512, 4 * size)]
    problem = problem._replace(values=problem.values[:, some], public=problem.public[:, some])
    pictures = pictures[:, some]
    of_class = problem.labels @ classes.T

    def attempt(number, best):
        weights, misfit = best
        drawn = jax.random.uniform(jax.random.fold_in(key_drawn, number), of_class.shape) ** 4 * of_class
        drawn = drawn / jnp.maximum(drawn @ classes @ classes.T, 1e-6) * of_class
        start = weights.at[:, :size].set(drawn)
        found = fit(start, problem=problem, pictures=pictures, num_steps=30)
        error = _misfit(found, problem, pictures, flipped)
        return jnp.where((error < misfit)[:, None], found, weights), jnp.minimum(error, misfit)

    start = (weights, _misfit(weights, problem, pictures, flipped))
    return fit(jax.lax.fori_loop(0, 8, attempt, start)[0])


def _misfit(weights, problem, pictures, flipped):
    """|y - W x|^2 / |y|^2 of each encoding, [n]."""
    mixture = weights @ pictures
    error = problem.values - (jnp.abs(mixture) if flipped else mixture)
    return jnp.sum(jnp.square(error), axis=1) / (jnp.sum(jnp.square(problem.values), axis=1) + 1e-12)


def _largest(weights, size, k, private):
    """Indices and shares, [n, k] each, of the largest: of private pictures, then of public ones."""
    shares, indices = jax.lax.top_k(weights[:, :size], private)
    if private == k:
        return shares, indices
    public, which = jax.lax.top_k(weights[:, size:], k - private)
    return jnp.concatenate([shares, public], axis=1), jnp.concatenate([indices, which + size], axis=1)


def _cut(weights, size, k, private):
    """The weights with all but the largest shares set to 0."""
    shares, indices = _largest(weights, size, k, private)
    return jnp.zeros_like(weights).at[jnp.arange(len(weights))[:, None], indices].set(shares)
