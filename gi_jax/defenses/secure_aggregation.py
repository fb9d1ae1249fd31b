"""Secure aggregation, simulated: the server learns the sum of the clients' updates and nothing else.

Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017: every pair of clients
agrees on a seed; the client of the lower number adds the stream that grows from it, the other subtracts it, so that the
streams cancel in the sum. A stream of each client's own hides its update should it be declared missing and arrive
late. The server is given, for each client, either its own seed (it survived) or its pairwise seeds (it dropped out),
never both. Kind of defense: cryptographic. It protects an update from the server, and nothing that the sum reveals.

Updates are encoded as fixed-point numbers modulo 2^32, where sums are exact and a masked entry is uniform. What is lost
is the rounding: each encoded entry is off by up to 1 / (2 scale), the sum over n clients by up to n / (2 scale).

A simulation in three respects: seeds come from one key instead of key agreement and secret sharing between clients,
JAX's generator (Threefry) is not claimed to be cryptographic here, and nobody lies. Seeds are one-time: new ones in
every round.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gi_jax import checks
from gi_jax.types import Gradients, Key

SCALE = 2.0**20
"""Steps to a unit: entries of a sum are known to 5e-7 for each client in it, and may reach 2048 in magnitude."""


class Seeds(NamedTuple):
    """What the clients of one round agreed on.

    Attributes:
      pair: keys [clients, clients], symmetric; the diagonal is unused.
      own: keys [clients].
    """

    pair: Key
    own: Key


def agree_on_seeds(key: Key, num_clients: int) -> Seeds:
    """The seeds of one round, which in a deployment come from Diffie-Hellman key agreement."""
    key_pair, key_own = jax.random.split(key)
    numbers = jnp.arange(num_clients)

    def pair(i, j):
        return jax.random.fold_in(jax.random.fold_in(key_pair, jnp.minimum(i, j)), jnp.maximum(i, j))

    of_row = jax.vmap(pair, in_axes=(None, 0))
    return Seeds(jax.vmap(of_row, in_axes=(0, None))(numbers, numbers), jax.random.split(key_own, num_clients))


def encode(update: Gradients, scale: float = SCALE) -> Gradients:
    """round(scale x) modulo 2^32 of every entry, as uint32. Entries must be below 2^31 / scale in magnitude."""
    fixed = lambda x: jax.lax.bitcast_convert_type(jnp.round(scale * x).astype(jnp.int32), jnp.uint32)  # noqa: E731
    return jax.tree.map(fixed, update)


def decode(total: Gradients, scale: float = SCALE) -> Gradients:
    """The numbers that a sum of encoded updates stands for, in [-2^31, 2^31) / scale, as float32."""
    return jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x, jnp.int32) / jnp.float32(scale), total)


@partial(jax.jit, static_argnums=0)
def _combine(operation: Callable, total: Gradients, seeds: Key, *index: int) -> Gradients:
    # A clone, because a stream grows from its seed more than once on purpose: on both sides, and at the server.
    stream = optax.tree.random_like(jax.random.clone(seeds)[index], total, jax.random.bits, jnp.uint32)
    return jax.tree.map(operation, total, stream)  # unsigned arithmetic is modulo 2^32


def _pairwise(client: int, other: int) -> Callable:
    return operator.add if client < other else operator.sub


def mask(encoded: Gradients, client: int, seeds: Seeds) -> Gradients:
    """What `client` sends: its encoded update plus its own stream, plus or minus the streams shared with the others."""
    masked = _combine(operator.add, encoded, seeds.own, client)
    for other in range(len(seeds.own)):
        if other != client:
            masked = _combine(_pairwise(client, other), masked, seeds.pair, client, other)
    return masked


def add(masked: Sequence[Gradients]) -> Gradients:
    """The sum modulo 2^32."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *masked)


def unmask(total: Gradients, survivors: Sequence[int], seeds: Seeds) -> Gradients:
    """The encoded sum of the survivors' updates, from the sum of what they sent: the server's part.

    Args:
      total: from `add`, over the survivors.
      survivors: numbers of the clients whose masked update arrived.
      seeds: of these the server uses the survivors' own ones, and those that survivors share with who dropped out.

    Raises:
      InputError: for fewer than two survivors, whose sum would be an update itself, one named twice, whose masks would
        not cancel, and one that is not among the clients.
    """
    _check_survivors(survivors, len(seeds.own))
    dropped = set(range(len(seeds.own))) - set(survivors)
    for client in survivors:
        total = _combine(operator.sub, total, seeds.own, client)
        for other in dropped:  # the opposite of what the client did
            total = _combine(_pairwise(other, client), total, seeds.pair, client, other)
    return total


def _check_survivors(survivors, num_clients):
    names = f"secure aggregation with survivors {list(map(int, survivors))}"
    if len(set(survivors)) < 2:
        raise checks.InputError(f"{names}: the sum would be an update itself, or nothing; expected 2 clients or more")
    if len(set(survivors)) < len(survivors):
        raise checks.InputError(f"{names}: masks of one that counts twice do not cancel; expected each client once")
    if min(survivors) < 0 or max(survivors) >= num_clients:
        raise checks.InputError(f"{names} of {num_clients} clients: expected numbers from 0 to {num_clients - 1}")


def _nan_first(value):
    return math.isnan(value), value


def secure_mean(
    updates: Sequence[Gradients], key: Key, *, survivors: Sequence[int] | None = None, scale: float = SCALE
) -> Gradients:
    """The protocol from end to end: the mean of the survivors' updates, the only thing that the server learns.

    Args:
      updates: of each client.
      key: new in every round.
      survivors: numbers of the clients that do not drop out after the seeds were agreed on; None for all.
      scale: of the fixed-point numbers; each entry of the mean is rounded by up to 1 / (2 scale).

    Raises:
      InputError: for survivors that `unmask` refuses, and for entries that a sum of fixed-point numbers could not hold.
    """
    survivors = range(len(updates)) if survivors is None else survivors
    _check_survivors(survivors, len(updates))
    limit = 2.0**31 / (scale * len(updates))
    largest = max((float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(list(updates))), key=_nan_first)
    if not largest < limit:
        raise checks.InputError(
            f"secure aggregation of an entry of magnitude {largest:.4g}: at scale {scale:g} the sum of "
            f"{len(updates)} clients holds entries below {limit:.4g}; lower the scale, or clip"
        )
    seeds = agree_on_seeds(key, len(updates))
    sent = [mask(encode(updates[client], scale), client, seeds) for client in survivors]
    total = decode(unmask(add(sent), survivors, seeds), scale)
    return jax.tree.map(lambda leaf: leaf / len(survivors), total)
