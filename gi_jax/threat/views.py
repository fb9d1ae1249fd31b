"""Where the adversary sits: what it sees of a round in which several clients send updates.

The mean of FedSGD updates over clients with equal batch sizes is the gradient of the batch of all their pictures, as
long as every picture is normalized by itself (running statistics, no BatchNorm): an attack on the sum is then an attack
on one large batch. With batch statistics it is not, because each client normalizes with its own; the problem then says
how many clients there are, and imagines each client's step apart.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from gi_jax import checks
from gi_jax.models import Normalize
from gi_jax.threat.batch_norm import BatchNormThreat, Shared
from gi_jax.threat.knowledge import Mixed
from gi_jax.threat.local import successive_models
from gi_jax.threat.problem import AttackProblem, same_numbers, stack
from gi_jax.types import Gradients

LEARNING_RATE = 0.1
"""Of the server's step, between the two models that a client sees."""


class View(NamedTuple):
    """A row of the table of views.

    Attributes:
      about: what is seen.
      kind: of the protection: `none`, or `cryptographic`.
      paper: source.
      words: the sentence of the threat model, with {clients} and {batch_size}.
    """

    about: str
    kind: str
    paper: str
    words: str


VIEWS = {
    "server": View(
        "the server, without protection: every client's update",
        "none",
        "McMahan et al. 2017",
        "The adversary sees one gradient of a private batch of {batch_size} and the weights it was taken at.",
    ),
    "sum": View(
        "the server under secure aggregation: the sum of all updates",
        "cryptographic",
        "Bonawitz et al. 2017",
        "The adversary is the server under secure aggregation: it sees the sum of the gradients of {clients} clients, "
        "each of a private batch of {batch_size}, and the weights they were taken at.",
    ),
    "client": View(
        "a participating client: the model before and after the round",
        "none",
        "Hitaj et al. 2017; Melis et al. 2019",
        "The adversary takes part as a client: it sees the model before and after a step of known learning rate on the "
        "mean gradient of {clients} other clients, each of a private batch of {batch_size}; its own part it subtracts.",
    ),
    "eavesdropper": View(
        "a listener under homomorphic encryption: ciphertext, nothing to attack",
        "cryptographic",
        "Phong et al. 2018",
        "The adversary sees ciphertext.",
    ),
}
"""Who looks on, by name."""


def average(updates: Sequence[Gradients]) -> Gradients:
    """The mean of the clients' updates, added up in the clear."""
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *updates)


def look(
    view: str,
    problems: Sequence[AttackProblem],
    threat: BatchNormThreat,
    *,
    aggregate: Callable[[Sequence[Gradients]], Gradients] = average,
    learning_rate: float = LEARNING_RATE,
) -> list[AttackProblem]:
    """What an adversary sees of a round.

    Args:
      view: a key of `VIEWS`.
      problems: of each client, from `observe`: what a server without protection sees. Equal batch sizes.
      threat: the one they were observed under.
      aggregate: from the clients' updates to their mean; such as `gi_jax.defenses.secure_mean` with its key.
      learning_rate: of the server's step, for the view of a client; known to it.

    Returns:
      The problems that can be attacked: those given for `server`, else one, whose pictures are all clients' one after
      the other. Of a sum nothing is `known` of what the clients did to their gradients, and of how they encoded their
      pictures what holds for all.

    Raises:
      InputError: for an unknown view, no clients, or such that differ in model, batch size or encoding, `eavesdropper`,
        and a mean over clients that took several steps each, which no attack imagines.
    """
    checks.one_of("view", view, VIEWS)
    if view == "eavesdropper":
        raise checks.InputError(
            "view 'eavesdropper': nothing is observed, updates travel encrypted; there is nothing to attack. "
            "Expected server, sum or client"
        )
    if not problems:
        raise checks.InputError("problems is empty: expected that of each client")
    if view == "server":
        return list(problems)
    if any(problem.local is not None for problem in problems):
        raise checks.InputError(
            f"view {view!r} with local steps: each client's steps lead to weights of its own, which no attack on their "
            "mean imagines; expected view server, or one step"
        )
    joined = stack(list(problems))
    observed = aggregate([problem.observed for problem in problems])
    if view == "client":
        after = jax.tree.map(lambda weight, step: weight - learning_rate * step, joined.params, observed)
        observed = successive_models(joined.params, after, learning_rate)
    clients, size = len(problems), problems[0].image_shape[0]
    apart = clients > 1 and (threat.adversary != Normalize.GIVEN or threat.shared != Shared.RUNNING)
    return [
        dataclasses.replace(
            joined,
            observed=observed,
            image_shape=(clients * size, *joined.image_shape[1:]),
            labels=None if joined.labels is None else joined.labels.reshape(clients * size, -1),
            statistics=joined.statistics if apart else problems[0].statistics,
            known=_encoding_of_all(problems),
            clients=clients if apart else 1,
        )
    ]


def _encoding_of_all(problems):
    """What is known of the encoding of every picture; facts about a single client's gradient are none about a sum."""
    first, *others = (tuple(fact for fact in problem.known if isinstance(fact, Mixed)) for problem in problems)
    if not all(same_numbers(first, other) for other in others):
        raise checks.InputError(
            "a sum over clients that encode their pictures with different numbers: expected the same defense for all"
        )
    return first
