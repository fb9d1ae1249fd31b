"""Decoding: private pictures from their encodings in T epochs, when it is granted which pictures each one mixes.

ORACLE: every function here receives the client's `Mapping`, indices and coefficients, as the decoders of Huang et al.
(2021), section 5.1, do: what they return bounds from above what an adversary without it can have. Signs are never read.

With the mapping known each value (pixel and channel) of the n encodings is y = W x: W [n, N] holds the coefficients and
is the same for all values, x [N] are the values of the N private pictures there. MixUp is a least-squares problem.
InstaHide shows |y| only: a problem of phase retrieval with real numbers, for which n well above N is enough.

An encoding with a value that is not finite, as one whose reconstruction failed, tells nothing: it is left out.
"""

from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from gi_jax import checks
from gi_jax.objectives.kinks import absolute
from gi_jax.threat import ImageSpace, Mapping
from gi_jax.types import Images, Key

SMALLEST = 1e-5
"""Singular values below it, relative to the largest, are none: float32 rounds those of a matrix to about 1e-6."""

RELAXATION = 0.75
"""Of the averaged reflections: 1 wanders forever, 0 stops at the next local minimum."""


def exact(function):
    """A decorator: matmuls in float32 on every device; accelerators round operands to three digits by default."""

    @wraps(function)
    def run(*args, **options):
        with jax.default_matmul_precision("highest"):
            return function(*args, **options)

    return run


@exact
def decode_paper(
    encodings: Images, mapping: Mapping, num_pictures: int, *, flipped: bool, num_steps: int = 1000
) -> Images:
    """The decoder of Huang et al. (2021), as its published code runs it (after Carlini et al. 2020, arXiv 2011.05315).

    Adam (0.01) from zeros on mean(r^2) + 0.05 mean(1 - |x|), with r = y - W x, or, for flipped signs, the smaller in
    magnitude of |y| - W x and -|y| - W x. From zeros the second is taken everywhere and never left: of perfect
    InstaHide encodings it returns about -|x|. That is a weakness of the decoder, not a protection of the pictures.

    Args:
      encodings: [n, h, w, c] in the network's units, true ones or those that an attack recovered.
      mapping: ORACLE, of all n.
      num_pictures: private pictures N; public ones, whose indices are N and above, are taken for noise.
      flipped: whether the encodings have random signs (InstaHide).
      num_steps: of Adam.

    Returns:
      [N, h, w, c], each picture stretched to [-1, 1]; NaN if no encoding is finite.

    Raises:
      InputError: for encodings, a mapping, public pictures and numbers that do not fit each other.
    """
    checks.counts(num_steps=num_steps)
    encodings, mapping = _usable(encodings, mapping, num_pictures)
    if not len(encodings):
        return _nothing(encodings, num_pictures)
    return _descend(encodings, mapping, num_pictures, flipped, num_steps)


@partial(jax.jit, static_argnames=("num_pictures", "flipped", "num_steps"))
def _descend(encodings, mapping, num_pictures, flipped, num_steps):
    weights = mapping.matrix(num_pictures)
    observed = encodings.reshape(len(encodings), -1)
    magnitude = jnp.abs(observed)

    def loss(values):
        mixed = weights @ values
        if flipped:
            positive, negative = magnitude - mixed, -(magnitude + mixed)
            residual = jnp.where(jnp.abs(positive) < jnp.abs(negative), positive, negative)
        else:
            residual = observed - mixed
        return jnp.mean(jnp.square(residual)) + 0.05 * jnp.mean(1 - absolute(values))

    optimizer = optax.adam(0.01)

    def step(_, state):
        values, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(values), moments)
        return values + updates, moments

    start = jnp.zeros((num_pictures, observed.shape[1]))
    values, _ = jax.lax.fori_loop(0, num_steps, step, (start, optimizer.init(start)))
    values = values - values.min(axis=1, keepdims=True)
    values = 2 * values / jnp.maximum(values.max(axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny) - 1
    return values.reshape(num_pictures, *encodings.shape[1:])


@exact
def decode_mixup(
    encodings: Images,
    mapping: Mapping,
    num_pictures: int,
    *,
    public: Images | None = None,
    ridge: jax.Array | float = 0.0,
) -> Images:
    """The pictures of least squared error: argmin_x |y - W x|^2 + ridge |x|^2.

    Exact for true encodings as soon as W has rank N by more than rounding (`SMALLEST`); of fewer encodings the solution
    of smallest norm. Dense: n x N. Where W only just has rank N, noise on encodings is amplified: it takes a ridge.

    Args:
      encodings: [n, h, w, c] in the network's units, true ones or those that an attack recovered.
      mapping: ORACLE, of all n.
      num_pictures: private pictures N; indices of N and above are those of public pictures.
      public: the public pictures of the pool in the network's units, if any were mixed in.
      ridge: weight of the squared norm, 0 or above, for few or noisy encodings.

    Returns:
      [N, h, w, c] in the network's units; NaN if no encoding is finite.

    Raises:
      InputError: for encodings, a mapping, public pictures and numbers that do not fit each other.
    """
    checks.non_negative(ridge=ridge)
    encodings, mapping = _usable(encodings, mapping, num_pictures, public)
    if not len(encodings):
        return _nothing(encodings, num_pictures)
    return _solve(encodings, mapping, num_pictures, public, ridge)


@partial(jax.jit, static_argnames="num_pictures")
def _solve(encodings, mapping, num_pictures, public, ridge):
    weights, offset = _system(encodings, mapping, num_pictures, public)
    values = inverse(weights, ridge) @ (encodings.reshape(len(encodings), -1) - offset)
    return values.reshape(num_pictures, *encodings.shape[1:])


@exact
def decode_instahide(
    key: Key,
    encodings: Images,
    mapping: Mapping,
    num_pictures: int,
    space: ImageSpace,
    *,
    public: Images | None = None,
    num_steps: int = 100,
    num_restarts: int = 4,
) -> Images:
    """A decoder that finds the signs: phase retrieval by value, then signs that agree between neighbors.

    For each value the relaxed averaged alternating reflections of Luke (2005, Inverse Problems 21) between {W x} and
    {z: |z| = |y|}, from random starts; the one that fits best is kept. Nothing tells x from -x at a value for all
    pictures together, but neighboring values of natural pictures go together: signs are carried along the maximum
    spanning tree of the correlations over pictures, between neighbors in space and color. The one sign that is left is
    that with which the pictures fit the box of valid ones; where both fit, nothing tells, and the brighter pictures are
    returned, which may be the negatives (`sign_decided`). Public pictures that are known leave no ambiguity at all.

    Args:
      key: of the starts.
      encodings: [n, h, w, c] in the network's units; of the values only the magnitudes are read.
      mapping: ORACLE, of all n; its signs are not read.
      num_pictures: private pictures N; indices of N and above are those of public pictures.
      space: units of the private pictures (not those of the encodings, whose box holds both signs).
      public: the public pictures of the pool in the network's units, if any were mixed in.
      num_steps: reflections of each start.
      num_restarts: starts for each value.

    Returns:
      [N, h, w, c] in the network's units; NaN if no encoding is finite.

    Raises:
      InputError: for encodings, a mapping, public pictures and numbers that do not fit each other.
    """
    checks.counts(num_steps=num_steps, num_restarts=num_restarts)
    encodings, mapping = _usable(encodings, mapping, num_pictures, public)
    if not len(encodings):
        return _nothing(encodings, num_pictures)
    weights, offset = _system(encodings, mapping, num_pictures, public)
    magnitude = jnp.abs(encodings.reshape(len(encodings), -1))
    values = _retrieve(key, weights, offset, magnitude, jnp.int32(num_steps), jnp.int32(num_restarts))
    images = values.reshape(num_pictures, *encodings.shape[1:])
    if public is not None:
        return images
    images = images * align_signs(np.asarray(images))[None]
    if sign_decided(images, space):
        return images if _outside(images, space) < _outside(-images, space) else -images
    return images if jnp.sum(images) >= 0 else -images


def sign_decided(images: Images, space: ImageSpace) -> bool:
    """Whether the box of valid pictures tells pictures [n, h, w, c] in the network's units from their negatives."""
    rounding = 1e-6 * float(jnp.sum(jnp.abs(images)))
    return abs(_outside(images, space) - _outside(-images, space)) > rounding


def _outside(images, space):
    """How far pictures are outside of the box, in all."""
    return float(jnp.sum(jnp.abs(images - space.clip(images))))


def inverse(weights: jax.Array, ridge: jax.Array | float = 0.0) -> jax.Array:
    """(W^T W + ridge)^-1 W^T [N, n], in the directions that W [n, N] has."""
    left, values, right = jnp.linalg.svd(weights, full_matrices=False)
    values = jnp.where(values > SMALLEST * values[0], values, jnp.inf)
    return (right.T / (values + ridge / values)[None]) @ left.T


def _usable(encodings, mapping, num_pictures, public=None):
    """The encodings that are finite, and their rows of the mapping; raises unless all fit together."""
    checks.counts(num_pictures=num_pictures)
    encodings, indices = jnp.asarray(encodings), np.asarray(mapping.indices)
    if encodings.ndim != 4:
        raise checks.InputError(
            f"encodings of shape {encodings.shape}: expected [n, h, w, c], the epochs one after the other"
        )
    if indices.ndim != 2 or len(indices) != len(encodings) or np.shape(mapping.coefficients) != indices.shape:
        raise checks.InputError(
            f"mapping with indices {indices.shape} and coefficients {np.shape(mapping.coefficients)} of "
            f"{len(encodings)} encodings: expected [n, k] both, a row an encoding"
        )
    checks.all_finite("mapping", mapping.coefficients)
    if public is not None and np.shape(public)[1:] != encodings.shape[1:]:
        raise checks.InputError(
            f"public pictures of shape {np.shape(public)}: expected [m, {', '.join(map(str, encodings.shape[1:]))}]"
        )
    last = np.inf if public is None else num_pictures + len(public) - 1
    private = (indices < num_pictures).any(axis=1)
    if ((indices < 0) | (indices > last)).any() or not private.all():
        raise checks.InputError(
            f"mapping with indices from {indices.min()} to {indices.max()} for num_pictures={num_pictures} and "
            f"{'no' if public is None else len(public)} public ones: expected a private picture, which come first, in "
            "each encoding, and none that there is not"
        )
    finite = np.isfinite(np.asarray(encodings)).all(axis=(1, 2, 3))
    return jax.tree.map(lambda leaf: leaf[finite], (encodings, mapping))


def _nothing(encodings, num_pictures):
    return jnp.full((num_pictures, *encodings.shape[1:]), jnp.nan)


def _system(encodings, mapping, num_pictures, public):
    """W [n, N] of the private pictures, and what the public ones add to each value: [n, h w c], or 0."""
    if public is None:
        return mapping.matrix(num_pictures), 0.0
    pool = jnp.concatenate([jnp.zeros((num_pictures, *public.shape[1:])), public])
    return mapping.matrix(num_pictures), mapping.mix(pool).reshape(len(encodings), -1)


def signed(z: jax.Array, magnitude: jax.Array) -> jax.Array:
    """The magnitudes with the signs of z."""
    return jnp.where(z < 0, -magnitude, magnitude)


def reflections(
    z: jax.Array, weights: jax.Array, offset: jax.Array | float, magnitude: jax.Array, num_steps: jax.Array | int
) -> jax.Array:
    """Relaxed averaged alternating reflections from z [n, values] between {W x + offset} and {z: |z| = magnitude}."""
    basis, _ = jnp.linalg.qr(weights)

    def reflect(_, z):
        valid = signed(z, magnitude)
        mixture = basis @ (basis.T @ (2 * valid - z - offset)) + offset
        return RELAXATION * (z + mixture - valid) + (1 - RELAXATION) * valid

    return jax.lax.fori_loop(0, num_steps, reflect, z)


@jax.jit
def _retrieve(key, weights, offset, magnitude, num_steps, num_restarts):
    """x [N, values] of smallest | |W x + offset| - magnitude | over all starts, value by value."""
    solve = inverse(weights)

    def restart(number, best):
        values, misfit = best
        start = weights @ jax.random.normal(jax.random.fold_in(key, number), values.shape) + offset
        found = solve @ (signed(reflections(start, weights, offset, magnitude, num_steps), magnitude) - offset)
        error = jnp.sum(jnp.square(jnp.abs(weights @ found + offset) - magnitude), axis=0)
        return jnp.where(error < misfit, found, values), jnp.minimum(error, misfit)

    start = jnp.zeros((weights.shape[1], magnitude.shape[1]))
    return jax.lax.fori_loop(0, num_restarts, restart, (start, jnp.full(magnitude.shape[1], jnp.inf)))[0]


def align_signs(images: np.ndarray) -> np.ndarray:
    """Signs [h, w, c] that make neighboring values go together over the pictures [n, h, w, c]; the first value's is 1.

    Neighbors differ by one in a row, a column or a channel. Of all paths between two values the signs follow the one
    whose weakest correlation is strongest (maximum spanning tree).
    """
    shape = images.shape[1:]
    unit = images / np.maximum(np.linalg.norm(images, axis=0), np.finfo(np.float32).tiny)
    number = np.arange(np.prod(shape)).reshape(shape)
    starts, ends, cosines = [], [], []
    for axis in range(3):
        a, b = (np.delete(number, place, axis) for place in (-1, 0))
        before, after = (np.delete(unit, place, axis + 1) for place in (-1, 0))
        starts.append(a.ravel())
        ends.append(b.ravel())
        cosines.append(np.einsum("n...,n...->...", before, after).ravel())
    starts, ends, cosines = (np.concatenate(parts) for parts in (starts, ends, cosines))
    graph = coo_array((2 - np.abs(cosines), (starts, ends)), (number.size, number.size))
    order, parents = breadth_first_order(minimum_spanning_tree(graph), 0, directed=False)
    flat = unit.reshape(len(unit), -1)
    signs = np.ones(number.size, images.dtype)
    for value in order[1:]:
        signs[value] = signs[parents[value]] * (1 if flat[:, value] @ flat[:, parents[value]] >= 0 else -1)
    return signs.reshape(shape)
