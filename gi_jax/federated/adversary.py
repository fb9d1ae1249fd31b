"""Who watches a federation, when, and what of it: problems to attack, and apart from them the truth."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gi_jax import checks
from gi_jax.defenses import secure_mean
from gi_jax.federated.batch_norm import Policy, fill, own_part, without
from gi_jax.federated.federation import Federation
from gi_jax.federated.rounds import Part, State
from gi_jax.models import Normalize
from gi_jax.threat import VIEWS, AttackProblem, BatchNormThreat, Mapping, Shared, Victim, Zeroed, grant, look
from gi_jax.threat.knowledge import BY_TENSOR
from gi_jax.threat.local import several
from gi_jax.threat.observation import check_local
from gi_jax.threat.views import average
from gi_jax.types import Key


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """Who watches. Changes nothing of what it watches, but for the rounding of its rounds, which are another program.

    Attributes:
      view: a key of `gi_jax.threat.VIEWS` from which there is something to see: `server`, `sum` or `client`.
      threat: what is shared of the normalization layers, and how the adversary runs them.
      rounds: those that it looks at, counted from 0: round 3 starts from the weights after three rounds.
      clients: numbers of those it is after; None for all. In the views of a mean the others are with the adversary,
        which knows their part and subtracts it; the adversary of the view `client` is one of them.
      labels_known: whether it is told the labels, as counts: of a mean those of all clients together, every class
        spread evenly over the clients.
      defense_known: whether it is told which defense runs, with its public parameters. If not, the pictures of its
        problem are in the space of before any encoding, and not in that of the victim.
    """

    threat: BatchNormThreat
    view: str = "server"
    rounds: tuple[int, ...] = (0,)
    clients: tuple[int, ...] | None = None
    labels_known: bool = True
    defense_known: bool = True

    def check(self, federation: Federation, num_clients: int, held: int) -> None:
        """Refuses what nobody can see in this federation.

        Raises:
          InputError: saying what would do.
        """
        checks.one_of("view", self.view, VIEWS)
        if self.view == "eavesdropper":
            look(self.view, [], self.threat)
        for number in self.rounds:
            checks.non_negative(round=number)
        for number in self.clients or ():
            checks.in_range(0, num_clients, client=number)
        if self.threat.client != federation.normalize:
            raise checks.InputError(
                f"an adversary of clients that normalize with {str(self.threat.client)!r} statistics, in a federation "
                f"of clients that do with {str(federation.normalize)!r}: expected the same"
            )
        kept = federation.batch_norm != Policy.SHARED and federation.normalize == Normalize.BATCH
        if kept and self.threat.shared in (Shared.RUNNING, Shared.RUNNING_AFTER):
            raise checks.InputError(
                f"shared statistics {str(self.threat.shared)!r} with batch_norm {str(federation.batch_norm)!r}, under "
                "which running averages stay with the clients: expected shared='nothing'"
            )
        if self.view != "server" and several(federation.local, federation.pictures(held)) is not None:
            raise checks.InputError(
                f"view {self.view!r} with local steps: each client's steps lead to weights of its own, which no attack "
                "on their mean imagines; expected view server, or one step"
            )
        if federation.local is not None:
            check_local(federation.local, None, self.threat, federation.pictures(held), False)
        if self.view == "sum" and federation.sampled(num_clients) < 2:
            raise checks.InputError(
                "view 'sum' of one client a round, whose sum would be its update: expected two or more, or view server"
            )
        if self.view == "client" and federation.server is not optax.sgd:
            raise checks.InputError(
                "view 'client' of a server with an optimizer of its own: two models say what the mean update was only "
                "if one is a step of known rate from the other; expected server optax.sgd"
            )


class Seen(NamedTuple):
    """What the adversary has of a round, without the truth.

    Attributes:
      round: its number.
      clients: those whose update, or the mean of whose updates, it is.
      problem: what an attack takes.
    """

    round: int
    clients: tuple[int, ...]
    problem: AttackProblem


class Secret(NamedTuple):
    """The truth of a client's part of a round: for scoring.

    Attributes:
      client: its number.
      pictures: int32 [n], which of the data set it drew.
      victim: what it computed on, encodings if its defense makes some, and the model it computed with.
      mapping: which pictures the encodings are of; None without.
    """

    client: int
    pictures: jax.Array
    victim: Victim
    mapping: Mapping | None


_grant = jax.jit(grant, static_argnames=("threat", "defense", "labels_known", "defense_known"))


def watch(
    adversary: Adversary, federation: Federation, before: State, drawn: jax.Array, parts: Part, key: Key
) -> tuple[list[Seen], list[tuple[Secret, ...]]]:
    """What the adversary sees of a round, and the truth of each of these problems.

    Args:
      adversary, federation: who watches what.
      before: the state that the round started from.
      drawn: int32 [sampled], the clients that took part.
      parts: what they did, with a leading axis [sampled].
      key: of the masks of secure aggregation.

    Returns:
      A `Seen` a problem, and for each the secrets of its clients, in the order of the problem's clients.
    """
    chosen = [
        (lane, int(number))
        for lane, number in enumerate(drawn)
        if adversary.clients is None or int(number) in adversary.clients
    ]
    own = own_part(federation.batch_norm, before.model).params
    problems, secrets = [], []
    for lane, number in chosen:
        part = jax.tree.map(lambda leaf, lane=lane: leaf[lane], parts)
        victim = dataclasses.replace(part.batch, **before.client(number)._asdict())
        n = len(victim.images)
        granted = dict(labels_known=adversary.labels_known, defense_known=adversary.defense_known)
        local = several(federation.local, n)
        # What is known of a defense is read off the tensors that leave the client, as who sees no others reads it.
        sent = part.sent._replace(observed=without(own, part.sent.observed))
        problem = _grant(victim, sent, threat=adversary.threat, defense=federation.defense, local=local, **granted)
        problems.append(_as_sent(own, before, problem))
        secrets.append(Secret(number, part.pictures, victim, part.mapping))
    if not problems:
        return [], []
    # Of a sum from which the others' parts are subtracted, until one is left, this one is left.
    masked = adversary.view == "sum" and len(problems) > 1
    aggregate = partial(secure_mean, key=key) if masked else average
    rate = float(federation.server_rate * federation.distance)
    seen = look(adversary.view, problems, adversary.threat, aggregate=aggregate, learning_rate=rate)
    groups = [(secret,) for secret in secrets] if adversary.view == "server" else [tuple(secrets)]
    fact = _unseen(own)
    labeled = zip(seen, groups, strict=True)
    number = int(before.round)
    return [
        Seen(
            number,
            tuple(secret.client for secret in group),
            dataclasses.replace(_with_counts(problem), known=(*problem.known, *fact)),
        )
        for problem, group in labeled
    ], groups


def _with_counts(problem):
    """The problem without the order of the labels of several clients, which says who has which."""
    if problem.labels is None or problem.clients == 1:
        return problem
    return problem.with_labels(problem.labels[jnp.lexsort(problem.labels.T)])


def _as_sent(own, before, problem):
    """The problem in the shapes of the whole network: the server's weights, and for what stays zeros, and no facts."""
    known = tuple(_of_all_tensors(own, fact) for fact in problem.known)
    return dataclasses.replace(
        problem, params=before.model.params, observed=fill(own, problem.observed, 0.0), known=known
    )


def _of_all_tensors(own, fact):
    """A fact about the tensors that were sent, with what says nothing of the others."""
    scalars = jax.tree.map(lambda leaf: leaf.reshape(-1)[0], own)
    trees = {name: (getattr(fact, name), blank) for name, blank in BY_TENSOR.get(type(fact), {}).items()}
    filled = {name: fill(scalars, tree, blank) for name, (tree, blank) in trees.items() if isinstance(tree, dict)}
    return dataclasses.replace(fact, **filled)


def _unseen(own):
    """What an adversary knows of the tensors that never leave a client: that it has not seen them."""
    paths = jax.tree_util.tree_leaves_with_path(own)
    names = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)
    return (Zeroed(tensors=names, kept=0.0),) if names else ()
