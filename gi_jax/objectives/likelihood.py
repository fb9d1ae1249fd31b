"""Matching through a known defense: how badly a candidate explains what was sent."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gi_jax.objectives.channel import Channel, names_of, read, visible
from gi_jax.objectives.kinks import absolute, root
from gi_jax.threat import AttackProblem, Update
from gi_jax.types import Gradients


def _total(terms) -> jax.Array:
    return sum(jax.tree.leaves(terms))


def seen(channel: Channel, sent: Gradients) -> Gradients:
    """Booleans in the shapes of `sent`: the entries that were certainly not zeroed."""
    least = visible(channel)
    shown = [
        jnp.abs(tensor) > least if name in channel.bounds else jnp.ones(tensor.shape, bool)
        for name, tensor in zip(names_of(sent), jax.tree.leaves(sent), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(sent), shown)


def energy(channel: Channel, sent: Gradients) -> jax.Array:
    """||c g||^2 over the entries that are seen, as far as it can be told from what was sent; above 0.

    ||sent||^2 less what the noise is expected to add to it, but not less than one standard deviation of that: an
    update in which only noise can be seen has little energy, not none. At most the square of the clipping norm.
    """
    shown = seen(channel, sent)
    square = _total(jax.tree.map(lambda tensor, shown: jnp.sum(jnp.square(tensor), where=shown), sent, shown))
    count = _total(jax.tree.map(jnp.sum, shown))
    left = jnp.maximum(square - count * channel.variance, jnp.sqrt(2.0 * count) * channel.variance)
    if channel.norm is not None:
        left = jnp.minimum(left, jnp.square(channel.norm))
    return jnp.where(left == 0, 1.0, left)


def fraction_seen(channel: Channel, sent: Gradients) -> jax.Array:
    """Seen entries over all entries, in (0, 1]: where nothing is seen, as if one entry were."""
    shown = jax.tree.leaves(seen(channel, sent))
    return jnp.maximum(sum(jnp.sum(tensor) for tensor in shown), 1) / sum(tensor.size for tensor in shown)


def residuals(channel: Channel, imagined: Gradients, sent: Gradients) -> Gradients:
    """By how much each imagined entry lies outside of what the facts allow, in the units of what was sent.

    An entry that is seen may be as far from what was sent as rounding moves it, one that is not as far from 0 as the
    bound. Where the client shrank its gradient, the imagined one is shrunk to the length that was sent, if it is
    longer.
    """
    shown = seen(channel, sent)
    if channel.norm is not None:
        length = root(_total(jax.tree.map(lambda a, shown: jnp.sum(jnp.square(a), where=shown), imagined, shown)))
        wanted = jnp.sqrt(energy(channel, sent))
        shrinkage = jnp.where(length > wanted, wanted / jnp.where(length > wanted, length, 1.0), 1.0)
        imagined = jax.tree.map(lambda a: shrinkage * a, imagined)
    widths = channel.width
    if widths is None:
        widths = jax.tree.map(lambda _: None, sent)

    def residual(name, a, b, shown, width):
        if name not in channel.bounds and width is None:
            return a - b
        slack = 0.0 if width is None else width
        if name in channel.bounds:
            slack = jnp.where(shown, slack, jnp.maximum(slack, _bound(channel, name, b, shown)))
            b = jnp.where(shown, b, 0.0)
        return (a - b) - jnp.clip(a - b, -slack, slack)

    tree = jax.tree.structure(sent)
    columns = names_of(sent), *(tree.flatten_up_to(part) for part in (imagined, sent, shown, widths))
    return tree.unflatten([residual(*row) for row in zip(*columns, strict=True)])


def _bound(channel, name, sent, shown):
    if channel.hiding is None:
        return channel.bounds[name]
    smallest = jnp.min(jnp.abs(sent), where=shown, initial=jnp.inf)
    return jnp.where(jnp.isinf(channel.bounds[name]), jnp.inf, smallest)


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
    - Without noise the limit of the former, ||r||^2 / (2 ||g||^2): about the cosine distance where that is small.
      What was zeroed costs nothing up to the bound, what was rounded nothing within the rounding.
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
        if channel.law == "laplacian":
            scale = jnp.sqrt(channel.variance / 2)
            return 2 * scale * _total(jax.tree.map(lambda r: jnp.sum(absolute(r)), rest)) / energy(channel, sent)
        return _total(jax.tree.map(lambda r: jnp.sum(jnp.square(r)), rest)) / (2 * energy(channel, sent))
