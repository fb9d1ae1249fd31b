"""One round: clients are drawn, each does what `gi_jax.threat.send` says, and the server steps along their mean.

It is the function that `gi_jax.threat.observe` runs for a victim, so that an adversary of this federation sees nothing
but what attacks are judged on.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gi_jax.defenses import encode_victim
from gi_jax.federated.batch_norm import Model, Policy, fill, join, own_part
from gi_jax.federated.federation import Federation
from gi_jax.models import Normalize
from gi_jax.threat import Mapping, Sent, Shared, Victim, cross_entropy, send
from gi_jax.threat.local import several, shared_after_training
from gi_jax.training.step import Pool, to_floats
from gi_jax.types import BatchStats, Key, Params


class State(NamedTuple):
    """What the next round needs.

    Attributes:
      model: the server's. What stays with the clients is in it as it was in the beginning, which is all that the server
        knows of it.
      own: what stays with every client, leaves [num_clients, ...]; None in the place of the rest.
      optimizer: the server's.
      round: rounds done, int32.
    """

    model: Model
    own: Model
    optimizer: Any
    round: jax.Array

    def client(self, number: int) -> Model:
        """The model that a client has: the server's with its own part."""
        return join(jax.tree.map(lambda leaf: leaf[number], self.own), self.model)

    def mean(self) -> Model:
        """The server's model with the mean over all clients of what they keep."""
        return join(jax.tree.map(lambda leaf: leaf.mean(0), self.own), self.model)


class Part(NamedTuple):
    """A client's part of a round; of several clients, with a leading axis.

    Attributes:
      pictures: int32 [n], which of the data set it drew.
      batch: what it computed on, encoded if its defense says so; a `Victim` that names no model.
      mapping: the secret of the encoding; None without.
      sent: what left it, and its steps.
      loss: mean cross-entropy of the batch before the first step.
      after: its model after its steps, before any defense.
    """

    pictures: jax.Array
    batch: Victim
    mapping: Mapping | None
    sent: Sent
    loss: jax.Array
    after: Model


def start(federation: Federation, params: Params, batch_stats: BatchStats, num_clients: int) -> State:
    """The state before the first round: all clients have the same model. It takes a copy, which rounds overwrite."""
    model = jax.tree.map(jnp.array, Model(params, batch_stats))
    own = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_clients), own_part(federation.batch_norm, model))
    return State(model, own, federation.server(federation.server_rate).init(model.params), jnp.int32(0))


class RoundKeys(NamedTuple):
    """The randomness of a round: for drawing clients, for the masks of their sum, and for each client's own draws."""

    draw: Key
    masks: Key
    clients: Key

    def client(self, number: int | jax.Array) -> Key:
        """Of a client."""
        return jax.random.fold_in(self.clients, number)


def keys_of_round(key: Key, number: int | jax.Array) -> RoundKeys:
    """The keys of a round, from that of the federation and the number of the round."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(key, number), 3))


def take_part(federation: Federation, model: Model, pool: Pool, held: jax.Array, key: Key) -> Part:
    """What a client does in a round.

    Args:
      federation: its settings.
      model: the server's with the client's own part.
      pool: all pictures of all clients.
      held: int32 [m], which of them are the client's.
      key: of the client in this round.
    """
    key_pictures, key_encode, key_send = jax.random.split(key, 3)
    n = federation.pictures(len(held))
    pictures = held if n == len(held) else jax.random.choice(key_pictures, held, (n,), replace=False)
    images, normalize = to_floats(pool.images[pictures]), federation.normalize
    logits_of = lambda images: federation.network(*model, images, normalize)[0]  # noqa: E731
    labels = pool.labels[pictures]
    client = Victim(network=federation.network, **model._asdict(), images=images, labels=labels, space=pool.space)
    mapping = None
    if federation.mixing is not None:
        client, mapping = encode_victim(federation.mixing, key_encode, client)
    local = several(federation.local, n)
    sent = send(client, normalize, federation.defense, key_send, local)
    averages = model.batch_stats
    if normalize == Normalize.BATCH:
        averages = shared_after_training(Shared.RUNNING_AFTER, averages, sent.statistics)
    params = jax.tree.map(lambda w, g: w - federation.distance * g, model.params, sent.gradients)
    loss = cross_entropy(logits_of(client.space.normalize(client.images)), client.labels)
    batch = dataclasses.replace(client, params=None, batch_stats=None)
    return Part(pictures, batch, mapping, sent, loss, Model(params, averages))


def play(
    federation: Federation, state: State, pool: Pool, clients: jax.Array, key: Key
) -> tuple[State, jax.Array, Part]:
    """One round.

    Args:
      federation: its settings.
      state: before the round.
      pool: all pictures.
      clients: int32 [num_clients, m], which pictures each client holds.
      key: of the whole federation; the number of the round is folded in.

    Returns:
      The state after the round, the numbers of the clients that took part, int32 [sampled], and their parts.
    """
    keys = keys_of_round(key, state.round)
    count, sampled = len(clients), federation.sampled(len(clients))
    drawn = jnp.arange(count)
    if sampled < count:
        drawn = jax.random.choice(keys.draw, count, (sampled,), replace=False)

    def part_of(number):
        return take_part(federation, state.client(number), pool, clients[number], keys.client(number))

    if federation.at_once is None:
        parts = jax.vmap(part_of)(drawn)
    else:
        parts = jax.lax.map(part_of, drawn, batch_size=federation.at_once)
    return serve(federation, state, drawn, parts), drawn, parts


def serve(federation: Federation, state: State, drawn: jax.Array, parts: Part) -> State:
    """The server's part of a round: it steps along the clients' mean update, and averages what they share."""
    own = own_part(federation.batch_norm, state.model)
    update = jax.tree.map(lambda leaf: federation.distance * leaf.mean(0), parts.sent.observed)
    step, optimizer = federation.server(federation.server_rate).update(
        fill(own.params, update, 0.0), state.optimizer, state.model.params
    )
    params = optax.apply_updates(state.model.params, step)
    averages = state.model.batch_stats
    if federation.batch_norm == Policy.SHARED:
        averages = jax.tree.map(lambda leaf: leaf.mean(0), parts.after.batch_stats)
    kept = own_part(federation.batch_norm, parts.after)
    own = jax.tree.map(lambda old, new: old.at[drawn].set(new), state.own, kept)
    return State(Model(params, averages), own, optimizer, state.round + 1)
