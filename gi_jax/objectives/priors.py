"""What pictures look like, before any gradient is seen: scalars of a candidate. All in the network's units."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.objectives.candidate import Candidate
from gi_jax.objectives.channel import read
from gi_jax.objectives.kinks import absolute, root
from gi_jax.objectives.likelihood import energy, fraction_seen
from gi_jax.threat import AttackProblem, Update
from gi_jax.threat.batch_norm import map_layers
from gi_jax.types import BatchStats, Images


def total_variation(images: Images, *, isotropic: bool = False) -> jax.Array:
    """Mean absolute difference of neighbors, across plus down; isotropic: mean length of the two together.

    Args:
      images: [n, h, w, c].
      isotropic: sqrt(across^2 + down^2) a pixel instead of |across| + |down|, which are the same along one axis only.

    Returns:
      A scalar: means over images, positions and channels (Rudin et al. 1992; scale of Geiping et al. 2020); 0 along
      an axis of one pixel.
    """
    down = images[:, 1:] - images[:, :-1]
    across = images[:, :, 1:] - images[:, :, :-1]
    if not isotropic or min(images.shape[1:3]) == 1:
        return _mean(absolute(down)) + _mean(absolute(across))
    return _mean(root(jnp.square(down[:, :, :-1]) + jnp.square(across[:, :-1])))


def _mean(values):
    return jnp.mean(values) if values.size else jnp.float32(0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TotalVariation:
    """R_TV, see `total_variation`.

    Attributes:
      isotropic: see there; static.
      magnitude: take it of |x|, for sign-flipped (InstaHide) images; static.
      opponents: of the differences of the channels too (red - green and so on), which punishes noise of the colors;
        static.
      scarce: divide it by the root of the fraction of the gradient's entries that the problem shows, since the fewer
        they are the more they leave to the prior; static. (The root is a fit: of the weights 0.001 times 1, 3, 10, 30
        and 100, the best on three photographs grew so from 50 % to 99.9 % pruned.)
      weight: of this term.
    """

    isotropic: bool = field(default=False, metadata={"static": True})
    magnitude: bool = field(default=False, metadata={"static": True})
    scarce: bool = field(default=False, metadata={"static": True})
    opponents: bool = field(default=False, metadata={"static": True})
    weight: jax.Array | float = 0.1

    def __call__(self, problem: AttackProblem, candidate: Candidate, update: Update) -> jax.Array:
        del update
        images = absolute(candidate.images) if self.magnitude else candidate.images
        if self.opponents:
            first, second = jnp.triu_indices(images.shape[-1], 1)
            images = jnp.concatenate([images, images[..., first] - images[..., second]], -1)
        value = total_variation(images, isotropic=self.isotropic)
        if self.scarce:
            value = value / jnp.sqrt(fraction_seen(read(problem), problem.observed))
        return value


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NoisePrior:
    """-log p(pictures) in the units of `GradientLikelihood`: total variation whose weight grows with the noise.

    Differences d of neighbors in natural pictures follow about exp(-|d| / spread), so that -log p = D TV / spread for
    the D values of a batch and the mean TV of `total_variation`. In units of ||g||^2 / variance that is

        R = variance / ||g||^2 * D / spread * TV,

    and likelihood + R is smallest at the most probable batch a posteriori. R is 0 without noise.

    Attributes:
      magnitude: of |x|, for sign-flipped (InstaHide) images; static.
      weight: 1 is the posterior.
      spread: in the network's units. A mean absolute difference of 0.27, as in the embedded photographs, times two,
        because a value has two neighbors, whose differences are not independent.
    """

    magnitude: bool = field(default=False, metadata={"static": True})
    weight: jax.Array | float = 1.0
    spread: jax.Array | float = 0.5

    def __call__(self, problem: AttackProblem, candidate: Candidate, update: Update) -> jax.Array:
        del update
        channel = read(problem)
        images = absolute(candidate.images) if self.magnitude else candidate.images
        noise = channel.variance / energy(channel, problem.observed)
        return noise * images.size / problem.copies / self.spread * total_variation(images)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SquaredNorm:
    """Mean of x^2 over all entries: the l2 prior."""

    weight: jax.Array | float = 1e-6

    def __call__(self, problem: AttackProblem, candidate: Candidate, update: Update) -> jax.Array:
        del problem, update
        return jnp.mean(jnp.square(candidate.images))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BatchNormPrior:
    """R_BN = sum_l ||mean(x_l) - mu_l|| + sum_l ||var(x_l) - sigma_l^2||, Eq. 3 of Huang et al. (2021).

    The target (mu, sigma^2) is what the problem holds: the exact statistics of the batch under an exact threat model,
    running averages otherwise. Variances of the candidate are biased.

    Attributes:
      squared: squares of the norms instead of the norms (not the paper's); static.
      weight: of this term.
      first_layer: weight of the layer that is called first, relative to the others (10 in code derived from
        DeepInversion).
    """

    squared: bool = field(default=False, metadata={"static": True})
    weight: jax.Array | float = 1e-3
    first_layer: jax.Array | float = 1.0

    def __call__(self, problem: AttackProblem, candidate: Candidate, update: Update) -> jax.Array:
        del candidate
        if problem.statistics is None:
            raise checks.InputError(
                "BatchNorm prior: the threat model shares no statistics; expected some, or weight none"
            )
        if not jax.tree.leaves(update.statistics):
            raise checks.InputError(
                "BatchNorm prior: this network reports no BatchNorm statistics; leave the prior out, or normalize with "
                "gi_jax.models.layers.BatchNorm, which writes the collection 'statistics'"
            )
        terms = layer_distances(update.statistics, problem.statistics, squared=self.squared)
        first = terms.pop(problem.first_layer)
        return self.first_layer * first + sum(terms)


def layer_distances(statistics: BatchStats, target: BatchStats, *, squared: bool = False) -> list[jax.Array]:
    """One scalar a layer, in the order of the pytree: distance of the means plus distance of the variances."""

    def size(vector):
        square = jnp.sum(jnp.square(vector))
        return square if squared else root(square)

    def distance(own, wanted):
        return size(own["mean"] - wanted["mean"]) + size(own["var"] - wanted["var"])

    return jax.tree.leaves(map_layers(distance, statistics, target))
