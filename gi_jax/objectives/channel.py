"""From the client's gradient to what was sent: the facts of a problem, read together in the order of their stages."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.threat import AttackProblem, Clipped, Fact, Mixed, Noisy, Quantized, Rounded, Signs, Zeroed
from gi_jax.threat.knowledge import by_tensor
from gi_jax.types import Gradients

VARIANCE = {"gaussian": 1.0, "laplacian": 2.0}
"""Of noise of scale 1, by distribution."""


class Hidden(NamedTuple):
    """What is known of the entries of a tensor of which some were zeroed before noise hid which.

    Attributes:
      kept: share that was not zeroed; a scalar.
      variance: of all noise since, which is all that the others hold; a scalar.
      bounded: whether those that were kept are the largest.
    """

    kept: jax.Array | float
    variance: jax.Array | float
    bounded: jax.Array | bool


class Channel(NamedTuple):
    """What is known of the way from a gradient g to what was sent: c g + noise, rounded, some entries zeroed.

    Attributes:
      bounds: name of a tensor to a scalar, for tensors whose zeros were set: none was larger before (infinite: nothing
        is known of them).
      kept: the same names to the share that was not zeroed.
      hidden: name of a tensor to the `Hidden` zeros in it.
      law, variance: distribution of the noise on every entry, a key of `VARIANCE` or `rounding` (that of a sum is taken
        as normal), and its variance in the units of what was sent, a mean over entries. None and 0 without noise.
      spacing: of `rounding`, a scalar a tensor, in the structure of the gradient.
      width: a scalar a tensor, in the structure of the gradient: rounding moved no entry further. None without.
      norm: c is unknown, from 0 to 1, and the l2 norm of c g at most this. None for c = 1.
      signs: nothing but the signs of the entries means anything.
    """

    bounds: dict[str, jax.Array | float]
    kept: dict[str, jax.Array | float]
    hidden: dict[str, Hidden]
    law: str | None = None
    variance: jax.Array | float = 0.0
    spacing: Gradients | None = None
    width: Gradients | None = None
    norm: jax.Array | float | None = None
    signs: bool = False


def _zeroed(channel: Channel, fact: Zeroed, names: list[str]) -> Channel:
    largest = [jnp.inf] * len(names) if fact.bound is None else jax.tree.leaves(fact.bound)
    concerned = {
        name: (bound, share)
        for name, bound, share in zip(names, largest, jax.tree.leaves(fact.kept), strict=True)
        if fact.holds_for(name)
    }
    bounds = {name: jnp.maximum(channel.bounds.get(name, 0.0), bound) for name, (bound, _) in concerned.items()}
    kept = {name: _kept_by_both(channel, name, *concerned[name]) for name in concerned}
    return channel._replace(bounds=channel.bounds | bounds, kept=channel.kept | kept)


def _kept_by_both(channel, name, bound, share):
    """Share of the entries that two selections leave: the smaller one of two by magnitude, which are nested."""
    before = channel.kept.get(name, 1.0)
    nested = jnp.isfinite(bound) & jnp.isfinite(channel.bounds.get(name, jnp.inf))
    return jnp.where(nested, jnp.minimum(before, share), before * share)


def _noisy(channel: Channel, fact: Noisy, names: list[str]) -> Channel:
    variance = VARIANCE[checks.one_of("distribution of noise", fact.distribution, VARIANCE)] * jnp.square(fact.scale)
    hidden = dict(channel.hidden)
    for name, kept in channel.kept.items():
        before = hidden.get(name, Hidden(1.0, 0.0, True))
        hidden[name] = Hidden(before.kept * kept, 0.0, before.bounded & jnp.isfinite(channel.bounds[name]))
    return channel._replace(
        bounds={},
        kept={},
        hidden=_with_variance(hidden, variance),
        law=fact.distribution if channel.law is None else "gaussian",
        variance=channel.variance + variance,
    )


def _with_variance(hidden: dict[str, Hidden], added) -> dict[str, Hidden]:
    return {name: one._replace(variance=one.variance + added) for name, one in hidden.items()}


def _rounded(channel: Channel, fact: Rounded, names: list[str]) -> Channel:
    added = jnp.square(fact.scale)
    return channel._replace(
        bounds=dict.fromkeys(channel.bounds, jnp.inf),  # it made zeros of its own
        hidden=_with_variance(channel.hidden, added),
        law="rounding" if channel.law is None else "gaussian",
        variance=channel.variance + added,
        spacing=fact.spacing,
    )


def _quantized(channel: Channel, fact: Quantized, names: list[str]) -> Channel:
    width = fact.width if channel.width is None else jax.tree.map(jnp.add, channel.width, fact.width)
    return channel._replace(width=width)


def _without_noise(channel: Channel) -> Channel:
    # Of noise that nobody knows the size of, zeros in it cannot be told; as if none were.
    return channel._replace(law=None, variance=0.0, hidden={})


def _clipped(channel: Channel, fact: Clipped, names: list[str]) -> Channel:
    norm = fact.bound if channel.norm is None else jnp.minimum(channel.norm, fact.bound)
    return _without_noise(channel)._replace(norm=norm)


def _signs(channel: Channel, fact: Signs, names: list[str]) -> Channel:
    return _without_noise(channel)._replace(signs=True)


def _mixed(channel: Channel, fact: Mixed, names: list[str]) -> Channel:
    return channel  # pictures were mixed, before there was a gradient


READ: dict[type, Callable[[Channel, Fact, list[str]], Channel]] = {
    Zeroed: _zeroed,
    Noisy: _noisy,
    Quantized: _quantized,
    Rounded: _rounded,
    Clipped: _clipped,
    Signs: _signs,
    Mixed: _mixed,
}
"""What each kind of fact adds to what is known; also given the names of the tensors, in order."""


def names_of(gradients: Gradients) -> list[str]:
    """`head/kernel` and so on, in the order of the leaves."""
    paths = jax.tree_util.tree_leaves_with_path(gradients)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def read(problem: AttackProblem) -> Channel:
    """The facts of a problem, one after the other, as one channel.

    The order counts:

    - Variances of independent noises add up, and so do the widths of roundings.
    - Noise before clipping was scaled down with the gradient by an unknown factor, and noise before signs flips some:
      both are left out.
    - Noise on top of zeroed entries hides which they are: each then holds noise alone with the probability that the
      defense's own numbers give.

    Raises:
      InputError: for a fact of an unknown kind, or noise of an unknown distribution.
    """
    channel, names = Channel(bounds={}, kept={}, hidden={}), names_of(problem.observed)
    for fact in problem.known:
        if type(fact) not in READ:
            kinds = ", ".join(kind.__name__ for kind in READ)
            raise checks.InputError(f"unknown fact {fact!r}: expected one of {kinds}")
        channel = READ[type(fact)](channel, by_tensor(fact, problem.observed), names)
    return channel
