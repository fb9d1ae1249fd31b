"""Input defenses: a client encodes its pictures before it computes a gradient on them.

`Mixing` is all of them: MixUp mixes k pictures; InstaHide flips the sign of every value of the mixture at random as
well. A pool of n pictures becomes n encodings at once, anew in every epoch, in one vectorized pass.

The draws come from JAX's threefry generator, which is not cryptographic: fit for experiments, not for hiding anything.
`gi_jax.defenses.entropy` has keys and signs from the operating system.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.threat import Mapping, Mixed, Victim
from gi_jax.threat.floats import as_array
from gi_jax.threat.victim import as_arrays
from gi_jax.types import Images, Key, Labels

MAX_COEFFICIENT = 0.65
"""No picture has a larger share of an encoding (Huang et al. 2021, section 5.1)."""

MIN_PRIVATE = 0.3
"""The private pictures of an Inter-InstaHide encoding have at least this share (Huang et al. 2020, c_2)."""


class Encoded(NamedTuple):
    """A pool after encoding.

    Attributes:
      images: float32 [n, h, w, c] in the network's units; with flipped signs outside the box of pictures in [0, 1].
      labels: [n, classes], sum_i lambda_i label_i over the private pictures, which have 1 in all without public ones.
      mapping: the secret.
    """

    images: Images
    labels: Labels
    mapping: Mapping


def encode(mapping: Mapping, images: Images, labels: Labels, public: Images | None = None) -> Encoded:
    """Encodes a pool by a mapping: sigma * sum_i lambda_i x_i (Huang et al. 2021, section 4.3).

    Args:
      mapping: of the pool: `images`, then `public`.
      images: private pictures [n, h, w, c] in the network's units.
      labels: their class probabilities [n, classes].
      public: public pictures [m, h, w, c] in the network's units, which count for no label.
    """
    if public is not None:
        images = jnp.concatenate([images, public])
        labels = jnp.concatenate([labels, jnp.zeros((len(public), labels.shape[1]))])
    mixed = mapping.mix(images)
    return Encoded(mixed if mapping.signs is None else mapping.signs * mixed, mapping.mix(labels), mapping)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """MixUp and InstaHide: `mixing(key, images, labels)` encodes a pool.

    Coefficients are Dirichlet(3, 1, ..., 1), a row drawn again as a whole while its largest exceeds 0.65. Indices of a
    row are distinct: the first is the encoding's own picture, the others are uniform over all choices. (The published
    code of Huang et al. 2021 draws k permutations for columns, and rows with duplicates again: its picture of
    concentration 3 is one of the pool in another order, and each picture is a partner about equally often.)

    Attributes:
      k: pictures in an encoding.
      flipped: whether the sign of every value is flipped with probability 1/2.
      num_public: how many of the k come from a public pool.
      public_sum: what their coefficients sum to: private ones are (1 - public_sum) Dirichlet(3, 1, ..., 1), public ones
        public_sum Dirichlet(1, ..., 1). None leaves it open, as code published with Huang et al. (2020) does: a row is
        drawn again while the private ones sum to less than 0.3.
      own: whether encoding i holds picture i. If not, the same encodings come in random order, as in the published
        code of Huang et al. (2021).
    """

    k: int
    flipped: bool = False
    num_public: int = 0
    public_sum: float | None = None
    own: bool = True

    def __post_init__(self):
        if self.k != int(self.k) or self.k < 1:
            raise checks.InputError(f"k={self.k}: expected a whole number of pictures, 1 or above")
        object.__setattr__(self, "k", int(self.k))
        object.__setattr__(self, "num_public", int(self.num_public))
        if not 0 <= self.num_public < self.k:
            raise checks.InputError(f"num_public={self.num_public}: expected 0 or above, and below k={self.k}")
        if self.public_sum is not None:
            checks.positive(public_sum=self.public_sum)
            checks.in_range(0, MAX_COEFFICIENT, public_sum=self.public_sum)
            if self.num_public == self.k - 1 > 0 and 1 - self.public_sum > MAX_COEFFICIENT:
                raise checks.InputError(
                    f"public_sum={self.public_sum} with one private picture: its share would be above "
                    f"{MAX_COEFFICIENT:g}, which no encoding may have; expected {1 - MAX_COEFFICIENT:.2f} or above, or "
                    "more private pictures"
                )

    def __call__(self, key: Key, images: Images, labels: Labels, public: Images | None = None) -> Encoded:
        """Encodes the pool of an epoch: as many encodings as there are private pictures.

        Args:
          key: the client's randomness.
          images: private pictures [n, h, w, c] in the network's units.
          labels: their class probabilities [n, classes].
          public: public pictures [m, h, w, c] in the network's units; those of defenses with public pictures only.

        Returns:
          `Encoded`. Pure; `jax.jit` and `jax.vmap` over keys go through.

        Raises:
          InputError: for fewer pictures than an encoding takes.
        """
        return encode(self.draw(key, images.shape, 0 if public is None else len(public)), images, labels, public)

    def draw(self, key: Key, shape: tuple[int, ...], pool_public: int = 0) -> Mapping:
        """The secret for a pool of `shape` [n, h, w, c] and `pool_public` public pictures."""
        n, private = shape[0], self.k - self.num_public
        if n < private:
            raise checks.InputError(f"k={self.k} with {n} private pictures: expected {private} or more to mix")
        if pool_public < self.num_public:
            raise checks.InputError(
                f"k={self.k} with {pool_public} public pictures: expected {self.num_public} or more to mix"
            )
        key_order, key_private, key_public, key_coefficients, key_signs = jax.random.split(key, 5)
        first = jnp.arange(n) if self.own else jax.random.permutation(key_order, n)
        indices = _distinct(key_private, n, private, size=n, columns=[first])
        if self.num_public:
            indices += [n + column for column in _distinct(key_public, n, self.num_public, size=pool_public)]
        return Mapping(
            indices=jnp.stack(indices, axis=1),
            coefficients=_until(self._accepts, lambda key: self._coefficients(key, n), key_coefficients),
            signs=jax.random.rademacher(key_signs, shape, jnp.int8) if self.flipped else None,
        )

    def known(self) -> Mixed:
        """What an adversary that knows of the defense is told."""
        open_sum = self.num_public and self.public_sum is None
        label_sum = None if open_sum else 1.0 - (self.public_sum if self.num_public else 0.0)
        return Mixed(k=self.k, flipped=self.flipped, label_sum=label_sum)

    def _coefficients(self, key, n):
        if not self.num_public or self.public_sum is None:
            return _dirichlet(key, 3, n, self.k)
        key_private, key_public = jax.random.split(key)
        private = (1 - self.public_sum) * _dirichlet(key_private, 3, n, self.k - self.num_public)
        public = self.public_sum * _dirichlet(key_public, 1, n, self.num_public)
        return jnp.concatenate([private, public], axis=1)

    def _accepts(self, coefficients):
        if self.k == 1:
            return jnp.full(len(coefficients), True)
        private = jnp.sum(coefficients[:, : self.k - self.num_public], axis=1)
        return (jnp.max(coefficients, axis=1) <= MAX_COEFFICIENT) & (private >= MIN_PRIVATE)


def mixup(k: int, *, own: bool = True) -> Mixing:
    """Mixes k pictures of the pool (Zhang et al. 2018; with k pictures, Huang et al. 2021)."""
    return Mixing(k=k, own=own)


def intra_instahide(k: int, *, own: bool = True) -> Mixing:
    """MixUp of k private pictures with random signs (Huang et al. 2020)."""
    return Mixing(k=k, flipped=True, own=own)


def inter_instahide(k: int, *, public_sum: float | None = 0.3, own: bool = True) -> Mixing:
    """Two private and k - 2 public pictures with random signs (Huang et al. 2020); see `Mixing.public_sum`."""
    if k < 3:
        raise checks.InputError(f"k={k}: expected 3 or above, two private pictures and at least a public one")
    return Mixing(k=k, flipped=True, num_public=k - 2, public_sum=public_sum, own=own)


def encode_victim(mixing: Mixing, key: Key, victim: Victim, public: Images | None = None) -> tuple[Victim, Mapping]:
    """The client that trains on encodings instead of its pictures.

    Args:
      mixing: the defense.
      key: the client's randomness.
      victim: with the whole pool as its batch.
      public: public pictures [m, h, w, c] in [0, 1].

    Returns:
      A victim whose images are the encodings, as pictures of its `space`, with soft labels; and the secret.
    """
    private, units = as_arrays(victim), victim.space.normalize
    others = None if public is None else units(as_array("public", public))
    encoded = mixing(key, units(private.images), private.labels, others)
    space = victim.space.signed() if mixing.flipped else victim.space
    images = space.denormalize(encoded.images)
    encoding = dict(images=images, labels=encoded.labels, space=space, encoded=True, space_before=victim.space)
    return dataclasses.replace(victim, **encoding), encoded.mapping


def _distinct(key, n, k, *, size, columns=()):
    """Columns [n] of numbers below `size`, added up to k of them, each uniform over what its row does not hold yet."""
    columns = list(columns)
    for i in range(len(columns), k):
        drawn = jax.random.randint(jax.random.fold_in(key, i), (n,), 0, size - i)
        if columns:
            # The drawn-th of the numbers left over: step over those that are taken, the smallest first.
            for taken in jnp.sort(jnp.stack(columns), axis=0):
                drawn += drawn >= taken
        columns.append(drawn)
    return columns


def _dirichlet(key, first, n, k):
    """Rows of Dirichlet(first, 1, ..., 1): shares of gamma variables, which are sums of exponential ones."""
    exponential = jax.random.exponential(key, (n, first + k - 1))
    gamma = jnp.concatenate([exponential[:, :first].sum(axis=1, keepdims=True), exponential[:, first:]], axis=1)
    return gamma / gamma.sum(axis=1, keepdims=True)


def _until(accepts, draw, key):
    """Rows of `draw(key)`, those that are not accepted replaced until all are: exact rejection sampling."""

    def redraw(state):
        key, rows = state
        key, key_draw = jax.random.split(key)
        return key, jnp.where(accepts(rows)[:, None], rows, draw(key_draw))

    key, key_draw = jax.random.split(key)
    return jax.lax.while_loop(lambda state: ~jnp.all(accepts(state[1])), redraw, (key, draw(key_draw)))[1]
