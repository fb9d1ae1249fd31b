"""Matching through a known defense: how badly a candidate explains what was sent."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gi_jax.objectives.channel import Channel, Hidden, names_of, read
from gi_jax.objectives.kinks import absolute, root
from gi_jax.threat import AttackProblem, Update
from gi_jax.types import Gradients


def _total(terms) -> jax.Array:
    return sum(jax.tree.leaves(terms))


def seen(channel: Channel, sent: Gradients) -> Gradients:
    """How certain it is of each entry that it was not zeroed, in [0, 1] and in the shapes of `sent`.

    Zeros that show are 0. Under noise that hides them it is the probability, given what was sent of this entry, and of
    its tensor for the size of what was kept. Nothing imagined counts, so a likelihood stays convex.
    """

    def certain(name, tensor):
        shown = jnp.where(tensor != 0, 1.0, 0.0) if name in channel.bounds else jnp.ones(tensor.shape)
        return shown * jax.nn.sigmoid(_odds(channel, name, tensor)) if name in channel.hidden else shown

    return _map_named(certain, sent, sent)


def _map_named(function, sent, *trees):
    """`function(name, *leaves)` of each tensor, in the structure of `sent`."""
    tree = jax.tree.structure(sent)
    return tree.unflatten(map(function, names_of(sent), *map(tree.flatten_up_to, trees)))


def _odds(channel, name, tensor):
    """log P(not zeroed | sent) / P(zeroed | sent) of each entry: noise and an entry of usual size, or noise alone."""
    hidden = channel.hidden[name]
    tiny = jnp.finfo(tensor.dtype).tiny ** 0.5
    kept_size = jnp.mean(jnp.square(tensor)) - hidden.kept * channel.variance - (1 - hidden.kept) * hidden.variance
    spread = channel.variance + jnp.maximum(kept_size, 0.0) / jnp.maximum(hidden.kept, tiny)
    odds = _log_density(channel.law, tensor, spread + tiny) - _log_density(channel.law, tensor, hidden.variance + tiny)
    return odds + jnp.log(hidden.kept) - jnp.log1p(-hidden.kept)


def _log_density(law, size, variance):
    deviation = jnp.sqrt(variance)
    size = jnp.abs(size) / deviation
    return (-jnp.sqrt(2.0) * size if law == "laplacian" else -jnp.square(size) / 2) - jnp.log(deviation)


def energy(channel: Channel, sent: Gradients) -> jax.Array:
    """||c g||^2 over the entries that were not zeroed, as far as it can be told from what was sent; above 0.

    ||sent||^2 less what the noise is expected to add to it, but not less than one standard deviation of that: an
    update in which only noise can be seen has little energy, not none. At most the square of the clipping norm.

    Entries that were kept for their size after noise was added were kept for their noise too: more is taken off, what
    is expected if those near the bound are noise. So it is too large where the gradient's own entries are as many
    there: under noise three times as large as normal entries, five times with a tenth kept, where the variance alone
    would leave 26 times.
    """

    def noise(name, tensor):
        kept, least, _ = channel.hidden.get(name, Hidden(1.0, 0.0, True))
        count = _count_shown(channel, name, tensor)
        chosen = tensor.size * _excess(channel.law, channel.variance, channel.bounds.get(name, 0.0))
        return jnp.stack([count, count * (kept * channel.variance + (1 - kept) * least) + chosen])

    count, expected = _total(_map_named(noise, sent, sent))
    square = _total(jax.tree.map(lambda tensor: jnp.sum(jnp.square(tensor)), sent))
    left = jnp.maximum(square - expected, jnp.sqrt(2.0 * count) * channel.variance)
    if channel.norm is not None:
        left = jnp.minimum(left, jnp.square(channel.norm))
    return jnp.where(left == 0, 1.0, left)


def _excess(law, variance, bound):
    """E[z^2 - variance; |z| > bound] of noise z; 0 where there is none, or no bound is known."""
    known = (variance > 0) & jnp.isfinite(bound)
    t = jnp.where(known, bound, 0.0) / jnp.sqrt(jnp.where(known, variance, 1.0))
    if law == "laplacian":
        t = jnp.sqrt(2.0) * t
        return variance / 2 * (jnp.square(t) + 2 * t) * jnp.exp(-t)
    return variance * t * jnp.sqrt(2 / jnp.pi) * jnp.exp(-jnp.square(t) / 2)


def fraction_seen(channel: Channel, sent: Gradients) -> jax.Array:
    """Entries that were not zeroed over all entries, in (0, 1]: of hidden zeros the expected number, at least one."""

    def count(name, tensor):
        kept = channel.hidden[name].kept if name in channel.hidden else 1.0
        return kept * _count_shown(channel, name, tensor)

    counts = _map_named(count, sent, sent)
    return jnp.maximum(_total(counts), 1) / sum(tensor.size for tensor in jax.tree.leaves(sent))


def _count_shown(channel, name, tensor):
    """Entries that do not show that they were zeroed."""
    return jnp.sum(tensor != 0) if name in channel.bounds else tensor.size


class Residuals(NamedTuple):
    """By how much imagined entries lie outside of what the facts allow, in the units and the shapes of what was sent.

    Attributes:
      seen: of an entry that was not zeroed, from what was sent.
      zeroed: of one that was, from 0; 0 in tensors of which none were.
      certain: see `seen`.
    """

    seen: Gradients
    zeroed: Gradients
    certain: Gradients


def residuals(channel: Channel, imagined: Gradients, sent: Gradients) -> Residuals:
    """What an imagined gradient leaves unexplained.

    An entry that was not zeroed may be as far from what was sent as rounding moves it, one that was as far from 0 as
    the bound and that. Where the client shrank its gradient, the imagined one is shrunk to the length that was sent, if
    it is longer.
    """
    certain = seen(channel, sent)
    if channel.norm is not None:
        length = root(_total(jax.tree.map(lambda a, certain: jnp.sum(certain * jnp.square(a)), imagined, certain)))
        wanted = jnp.sqrt(energy(channel, sent))
        shrinkage = jnp.where(length > wanted, wanted / jnp.where(length > wanted, length, 1.0), 1.0)
        imagined = jax.tree.map(lambda a: shrinkage * a, imagined)
    widths = channel.width
    if widths is None:
        widths = jax.tree.map(lambda _: None, sent)

    def beyond(size, slack):
        return size if slack is None else size - jnp.clip(size, -slack, slack)

    def zeroed(name, a, b, width):
        if name not in channel.bounds and name not in channel.hidden:
            return jnp.zeros(())
        return beyond(a, _bound(channel, name, b) + (0.0 if width is None else width))

    from_sent = _map_named(lambda name, a, b, width: beyond(a - b, width), sent, imagined, sent, widths)
    return Residuals(from_sent, _map_named(zeroed, sent, imagined, sent, widths), certain)


def _bound(channel, name, sent):
    """No entry of a tensor that was zeroed was larger."""
    if name not in channel.hidden:
        return channel.bounds[name]
    if name in channel.bounds:
        return jnp.inf  # of which zeros it speaks is unknown
    # Noise hides which were: the smallest that surely was not. One time in ten one of all entries is mistaken for it.
    certain = _odds(channel, name, sent) > jnp.log(10.0 * sent.size)
    return jnp.where(channel.hidden[name].bounded, jnp.min(jnp.abs(sent), where=certain, initial=jnp.inf), jnp.inf)


def _cost(channel, rest, spacing, sent):
    """-variance log p(residual), up to a constant."""
    match channel.law:
        case "laplacian":
            return jnp.sqrt(2.0 * channel.variance) * absolute(rest)
        case "rounding":
            odds = _log_odds_of_rounding(absolute(rest) / spacing)
            fine = jnp.mean(jnp.abs(sent)) > spacing
            return jnp.where(fine, jnp.square(rest) / 2, -channel.variance * odds)
        case _:
            return jnp.square(rest) / 2


_FURTHEST = 0.9


def _log_odds_of_rounding(moved):
    """log(1 - moved), the probability of a move by this share of the spacing; from 0.9 on its tangent, not infinity."""
    within = jnp.minimum(moved, _FURTHEST)
    return jnp.log1p(-within) - (moved - within) / (1 - _FURTHEST)


def sign_disagreement(imagined: Gradients, sent: Gradients) -> jax.Array:
    """Share of the imagined gradient whose sign is not the one that was sent, in [0, 1]; 0 where all signs agree.

    sum |g_i| over the entries that disagree, over sum |g_i|, tensor by tensor, and the mean of these by number of
    entries. No length is compared. An entry whose sent sign is 0 agrees with anything.
    """
    size = sum(tensor.size for tensor in jax.tree.leaves(sent))

    def share(a, b):
        length, sign = absolute(a), jnp.sign(b)
        total = jnp.sum(length)
        wrong = (jnp.vdot(length, jnp.abs(sign)) - jnp.vdot(a, sign)) / 2
        return a.size / size * wrong / jnp.where(total == 0, 1.0, total)

    return _total(jax.tree.map(share, imagined, sent))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GradientLikelihood:
    """L_grad through a known defense: -log p(sent | candidate) up to a constant, as `problem.known` says.

    - Normal noise: ||r||^2 / (2 sigma^2) for the `residuals` r. Laplacian noise: ||r||_1 / scale. Both in units of
      ||g||^2 / variance for the estimated `energy` ||g||^2, so that 0.01 means as much under any noise.
    - Random rounding: -sum log(1 - |r| / spacing), the probability that an entry is rounded to what was sent, in
      tensors most of whose entries are below the spacing; in others normal noise. (A variance a tensor would be right
      there too, and is harder to follow: at 256 levels 18 dB on six photographs, against 34 with that of all.)
    - Without noise the limit of the former, ||r||^2 / (2 ||g||^2): about the cosine distance where that is small.
      What was zeroed costs nothing up to the bound, what was rounded nothing within the rounding.
    - Under noise that hides which entries were zeroed before it, both weighed by how certain each is (`seen`). If
      there is a bound, it is then the smallest entry of a tensor that surely was not.
    - Signs: `sign_disagreement`.

    All numbers come from the problem, so problems with different scales are lanes of one program.
    """

    weight: jax.Array | float = 1.0

    def __call__(self, problem: AttackProblem, candidate, update: Update) -> jax.Array:
        del candidate  # the update is what it imagines
        channel, imagined, sent = read(problem), update.gradients, problem.observed
        if channel.signs:
            return sign_disagreement(imagined, sent)
        rest = residuals(channel, imagined, sent)
        spacing = channel.spacing if channel.law == "rounding" else jax.tree.map(lambda _: 1.0, sent)

        def of_tensor(certain, seen, zeroed, spacing, sent):
            seen, zeroed = (_cost(channel, size, spacing, sent) for size in (seen, zeroed))
            return jnp.sum(certain * seen + (1.0 - certain) * zeroed)

        costs = jax.tree.map(of_tensor, rest.certain, rest.seen, rest.zeroed, spacing, sent)
        return _total(costs) / energy(channel, sent)
