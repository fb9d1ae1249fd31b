"""What of a client's round a threat model grants: `observe` makes the adversary's problem of the client's secret."""

import jax

from gi_jax import checks
from gi_jax.models import Normalize
from gi_jax.threat.batch_norm import BatchNormThreat, Shared
from gi_jax.threat.local import LocalTraining, several, shared_after_training
from gi_jax.threat.problem import AttackProblem
from gi_jax.threat.victim import GradientDefense, Sent, Victim, as_arrays, send
from gi_jax.types import Key


def observe(
    victim: Victim,
    threat: BatchNormThreat,
    defense: GradientDefense,
    key: Key,
    *,
    labels_known: bool = True,
    defense_known: bool = True,
    local: LocalTraining | None = None,
    order_known: bool = False,
    assumed: LocalTraining | None = None,
) -> AttackProblem:
    """Runs the client's step, passes its gradient through the defense, and keeps what the threat model grants.

    A client of several steps sends its model after them, so that `observed` has the rounding of the difference of two
    models; a defense is applied to their mean gradient.

    Args:
      victim: the secret.
      threat: how the client normalizes and what it shares. Running averages are those from before the batch unless
        the threat model says otherwise in its name.
      defense: makes the gradient transformation; `gi_jax.defenses.identity` for none. One that encodes pictures asks
        for a victim that has encoded them (`gi_jax.defenses.encode_victim`).
      key: the client's randomness, unknown to the adversary.
      labels_known: whether the adversary is told the labels (an oracle unless they can be inferred).
      defense_known: whether the adversary is told which defense runs, with its public parameters. If not, it takes
        encodings for pictures, in the space of these.
      local: the client's local steps; None for one on the whole batch, whose gradient it sends.
      order_known: with local steps, whether the adversary is told which pictures each step took, and with
        `labels_known` which labels: an oracle. If not, known labels are counts, and each epoch has an order of its own.
      assumed: the local steps that the adversary takes the update to be made of, if it is not told `local`. It reads
        the update in the units that follow, in which what it knows of a defense would be off: nothing is `known`.

    Returns:
      The problem. Pure; `jax.jit` and `jax.vmap` go through.

    Raises:
      InputError: for local steps that are no whole epochs, or under which statistics or the order cannot be shared;
        for pictures outside [0, 1], for labels that are no probabilities, and for a threat model or a defense that is
        none.
    """
    if not isinstance(threat, BatchNormThreat):
        raise checks.InputError(
            f"threat {threat!r}: expected a BatchNormThreat; try gi_jax.threat.RUNNING, or one of gi_jax.threat.THREATS"
        )
    victim = as_arrays(victim)
    n = len(victim.images)
    if local is None and (assumed is not None or order_known):
        local = LocalTraining(num_steps=1)
    if local is not None:
        check_local(local, assumed, threat, n, order_known)
    if assumed is None:
        local = several(local, n)
    with jax.default_matmul_precision("highest"):  # accelerators would round the evidence to three digits
        sent = send(victim, threat.client, defense, key, local)
    granted = dict(labels_known=labels_known, defense_known=defense_known, order_known=order_known, assumed=assumed)
    return grant(victim, sent, threat, defense, local=local, **granted)


def grant(
    victim: Victim,
    sent: Sent,
    threat: BatchNormThreat,
    defense: GradientDefense,
    *,
    labels_known: bool = True,
    defense_known: bool = True,
    local: LocalTraining | None = None,
    order_known: bool = False,
    assumed: LocalTraining | None = None,
) -> AttackProblem:
    """What the threat model lets the adversary have of a client's part of a round; arguments as for `observe`."""
    n, observed = len(victim.images), sent.observed
    known = defense.known(observed, n) if defense_known and assumed is None else ()
    if assumed is not None:
        units = local.learning_rate * local.num_steps / (assumed.learning_rate * assumed.num_steps)
        observed = jax.tree.map(lambda leaf: units * leaf, observed)
    problem = AttackProblem(
        network=victim.network,
        normalize=threat.adversary,
        image_shape=victim.images.shape,
        params=victim.params,
        statistics=shared_after_training(threat.shared, victim.batch_stats, sent.statistics),
        observed=observed,
        labels=victim.labels if labels_known else None,
        space=victim.space if defense_known else victim.space_before or victim.space,
        known=known,
        local=several(assumed or local, n),
        order=sent.order if order_known else None,
    )
    return problem.with_labels(victim.labels) if labels_known and not order_known else problem


def check_local(
    local: LocalTraining,
    assumed: LocalTraining | None,
    threat: BatchNormThreat,
    n: int,
    order_known: bool,
) -> None:
    """Refuses local steps on n pictures that no adversary of this kind can imagine; arguments as for `observe`.

    Raises:
      InputError: saying what would do.
    """
    for training in (local, assumed):
        if training is not None:
            training.check(n)
    several = max(training.num_steps for training in (local, assumed or local)) > 1
    if several and threat.shared in (Shared.EXACT, Shared.EXACT_UNBIASED) and threat.adversary != Normalize.BATCH:
        raise checks.InputError(
            "exact statistics with local steps: every step has its own, so none can be normalized with; expected the "
            "adversary's own (bn exact or infer) or running ones (bn proxy)"
        )
    if order_known and not (local.shuffles(n) and assumed is None):
        raise checks.InputError(
            "the order of local steps is known: expected steps on parts of the pictures (a local batch size), of a "
            "number that is known too; leave it out"
        )
