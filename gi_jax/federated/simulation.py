"""The rounds of a federation, compiled as one loop, in chunks that a caller can look at and end."""

import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks, memory
from gi_jax.federated.adversary import Adversary, Secret, Seen, watch
from gi_jax.federated.federation import Federation
from gi_jax.federated.rounds import State, keys_of_round, play, start
from gi_jax.training import Pool, is_finite
from gi_jax.types import BatchStats, Key, Params

CHUNK_SECONDS = 0.5
"""Rounds are not waited for one by one; this is about how long until the next look."""
LONGEST_CHUNK = 64


class Diverged(checks.InputError):
    """Weights that are not finite, or of which the loss is not.

    Attributes:
      round: rounds after which they are the model's.
    """

    def __init__(self, message: str, number: int):
        super().__init__(f"{message}; expected finite numbers: lower the learning rates, of the clients or the server")
        self.round = number


class Progress(NamedTuple):
    """Where a federation stands after a chunk of rounds.

    Attributes:
      round: rounds done.
      state: given away with the next chunk; take what you need before.
      losses: float [chunk], mean over the clients of each round of the loss that they started from.
      seen, secrets: what the adversary saw in the chunk, and the truth of each of these problems.
      seconds: of the chunk; the first one's includes compilation.
    """

    round: int
    state: State
    losses: np.ndarray
    seen: list[Seen]
    secrets: list[tuple[Secret, ...]]
    seconds: float


class Simulation(NamedTuple):
    """A federation after its last round.

    Attributes:
      state: the models.
      losses: float [num_rounds], see `Progress`.
      seen: what the adversary saw, ready for `gi_jax.reconstruct`; no truth in it.
      secrets: the truth of each of `seen`, a `Secret` a client.
    """

    state: State
    losses: np.ndarray
    seen: list[Seen]
    secrets: list[tuple[Secret, ...]]


def simulate(
    federation: Federation,
    params: Params,
    batch_stats: BatchStats,
    pool: Pool,
    clients: np.ndarray,
    key: Key,
    *,
    num_rounds: int,
    adversary: Adversary | None = None,
) -> Simulation:
    """Runs a federation from a model that all clients share.

        clients = federated.dirichlet(labels, 10, alpha=0.5, seed=0)
        federation = federated.Federation(network=network, batch_size=4, server_rate=0.1)
        adversary = federated.Adversary(threat=THREATS["infer"], rounds=(0, 10), clients=(3,))
        run = federated.simulate(federation, *model, pool, clients, key, num_rounds=20, adversary=adversary)
        found = gi_jax.reconstruct(attack, run.seen[0].problem, key)

    Args:
      federation: its settings. Another rate or seed compiles nothing anew.
      params, batch_stats: the model before the first round.
      pool: all pictures.
      clients: int32 [num_clients, m], which of them each client holds; from `iid` or `dirichlet`.
      key: of everything that is drawn: clients, pictures, orders, and what defenses draw.
      num_rounds: how many.
      adversary: who watches; changes no number but for rounding.

    Raises:
      InputError: for settings that do not fit each other, and `Diverged` as soon as a loss or a model is not finite.
    """
    checks.positive(num_rounds=num_rounds)
    if adversary is not None:
        for number in adversary.rounds:
            checks.in_range(0, num_rounds, round=number)
    state = start(federation, params, batch_stats, len(clients))
    losses, seen, secrets = [], [], []
    for progress in advance(federation, state, pool, clients, key, ends=[num_rounds], adversary=adversary):
        losses.append(progress.losses)
        seen += progress.seen
        secrets += progress.secrets
    return Simulation(progress.state, np.concatenate(losses), seen, secrets)


def advance(
    federation: Federation,
    state: State,
    pool: Pool,
    clients: np.ndarray,
    key: Key,
    *,
    ends: list[int],
    adversary: Adversary | None = None,
) -> Iterator[Progress]:
    """Plays from the round of the state to the last of `ends`, in chunks that none of them lies inside of.

    Rounds are the same however they are cut.

    Args:
      federation, pool, clients, key, adversary: as for `simulate`.
      state: of `start` or a `Progress`; given away.
      ends: round numbers, increasing.

    Raises:
      InputError: as `simulate`.
    """
    federation.check(clients, state.model.batch_stats)
    if adversary is not None:
        adversary.check(federation, *clients.shape)
    rounds = () if adversary is None else adversary.rounds
    clients = jnp.asarray(clients)
    done, chunk = int(state.round), 1
    for end in ends:
        while done < end:
            began = time.monotonic()
            seen, secrets = [], []
            if done in rounds:
                taken = 1
                before = state
                state, drawn, parts = _watched(federation, before, pool, clients, key)
                losses = np.array(parts.loss.mean(keepdims=True))
                masks = keys_of_round(key, done).masks
                seen, secrets = watch(adversary, federation, before, drawn, parts, masks)
            else:
                taken = min(chunk, *(stop - done for stop in (end, *rounds) if stop > done))
                state, losses = _unwatched(federation, state, pool, clients, key, jnp.int32(taken))
                losses = np.array(losses)[:taken]
            seconds = time.monotonic() - began
            if not np.isfinite(losses).all():
                bad = int(np.argmin(np.isfinite(losses)))
                raise Diverged(f"the loss is {losses[bad]} in round {done + bad + 1} of {ends[-1]}", done + bad)
            done += taken
            if not is_finite((state.model, state.own)):
                raise Diverged(f"the weights are not finite after round {done} of {ends[-1]}", done)
            yield Progress(done, state, losses, seen, secrets, seconds)
            if not seen:
                chunk = max(1, min(2 * chunk, LONGEST_CHUNK, int(CHUNK_SECONDS * taken / max(seconds, 1e-9))))


def program_bytes(federation: Federation, state: State, pool: Pool, clients: np.ndarray, key: Key) -> int:
    """Memory on one device that rounds need which nobody watches; 0 where it is not known.

    Compiles their program, which `advance` then finds.
    """
    return memory.needed(_unwatched.lower(federation, state, pool, jnp.asarray(clients), key, jnp.int32(1)).compile())


@partial(jax.jit, donate_argnames="state")
def _unwatched(federation, state, pool, clients, key, count):
    # The number of rounds is a number that goes in, unlike the length of a scan: chunks of all lengths are one program.
    def body(number, carry):
        state, losses = carry
        state, _, parts = play(federation, state, pool, clients, key)
        return state, losses.at[number].set(parts.loss.mean())

    return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(LONGEST_CHUNK)))


@jax.jit
def _watched(federation, state, pool, clients, key):
    state, drawn, parts = play(federation, state, pool, clients, key)
    return state, drawn, parts._replace(after=None)
