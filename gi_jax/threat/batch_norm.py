"""Who normalizes with what, and who sends what: the BatchNorm part of a threat model.

Three independent facts, so three fields: how the client normalized its batch, which statistics it shared, and how the
adversary normalizes its guess. Named constants give the settings of Huang et al. (2021), section 3, in two readings:
as the paper words them, and as its published code runs them.
"""

import enum
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.models import Normalize
from gi_jax.types import BatchStats

MOMENTUM = 0.1
"""Share of the new batch in the running average (PyTorch's convention; Flax calls 1 - 0.1 = 0.9 momentum)."""


class Shared(enum.StrEnum):
    """Which statistics the adversary receives."""

    NOTHING = "nothing"
    RUNNING = "running"
    """Running averages from before the victim's batch: what any participant has."""
    RUNNING_AFTER = "running-after"
    """Running averages updated by the victim's batch: 10 % of its statistics leak (the published code does this)."""
    EXACT = "exact"
    """The batch's own mean and biased variance: those it was normalized with. An oracle in most federations."""
    EXACT_UNBIASED = "exact-unbiased"
    """The same with the variance times n / (n - 1), as PyTorch's buffers hold it."""


@dataclass(frozen=True, kw_only=True)
class BatchNormThreat:
    """Three static choices.

    Attributes:
      client: `BATCH` (training mode, the paper's setting) or `GIVEN` (running averages).
      shared: what the adversary receives.
      adversary: `BATCH` (its own guess's statistics), `GIVEN` (what was shared, as constants) or `STRAIGHT_THROUGH`
        (what was shared in value, its own guess's in the derivative).
    """

    client: Normalize
    shared: Shared
    adversary: Normalize

    def __post_init__(self):
        if self.client == Normalize.STRAIGHT_THROUGH:
            raise checks.InputError("client normalization 'straight-through': expected 'batch' or 'given' (running)")
        if self.shared == Shared.NOTHING and self.adversary != Normalize.BATCH:
            raise checks.InputError(
                f"adversary normalization {str(self.adversary)!r} with shared='nothing': there are no statistics to "
                "use; expected 'batch', or share some"
            )

        if self.client == Normalize.GIVEN and self.shared == Shared.NOTHING:
            raise checks.InputError(
                "client normalization 'given' with shared='nothing': running statistics that the adversary does not "
                "have are not modelled; expected shared='running', or client 'batch'"
            )
        if self.client == Normalize.GIVEN and self.shared != Shared.RUNNING:
            raise checks.InputError(
                f"client normalization 'given' with shared={str(self.shared)!r}: such a client computes no statistics "
                "of its batch; expected shared='running', or client 'batch'"
            )

    def words(self) -> tuple[str, ...]:
        """The threat model in sentences, oracles named."""
        client = {
            Normalize.BATCH: "The client normalizes with the statistics of its own batch (training mode).",
            Normalize.GIVEN: "The client normalizes with running statistics that the adversary also has.",
        }[self.client]
        shared = {
            Shared.NOTHING: "No normalization statistics are shared.",
            Shared.RUNNING: "Shared: running statistics from before the batch.",
            Shared.RUNNING_AFTER: "ORACLE: the shared running statistics hold the batch (10 % of it a step).",
            Shared.EXACT: "ORACLE: the exact statistics of the private batch are shared.",
            Shared.EXACT_UNBIASED: "ORACLE: the exact statistics of the private batch are shared (unbiased variance).",
        }[self.shared]
        adversary = {
            Normalize.BATCH: "The adversary normalizes with the statistics of its own guess.",
            Normalize.GIVEN: "The adversary normalizes with the shared statistics.",
            Normalize.STRAIGHT_THROUGH: "The adversary normalizes with the shared statistics in value and "
            "differentiates through its own guess's.",
        }[self.adversary]
        return client, shared, adversary


RUNNING = BatchNormThreat(client=Normalize.GIVEN, shared=Shared.RUNNING, adversary=Normalize.GIVEN)
"""Everybody uses the running averages (Geiping et al. 2020, evaluation mode)."""

EXACT = BatchNormThreat(client=Normalize.BATCH, shared=Shared.EXACT, adversary=Normalize.BATCH)
"""BN_exact for an attack: the adversary's own statistics, drawn by the prior to those of the batch.

Zero loss at the truth, as in the next one, and unlike it something to follow from afar: on ResNet-18 after 0.19 epochs
the cosine distance of noise is 0.15 here and 1.00 there, where shared numbers that do not fit a guess blow it up from
layer to layer.
"""
EXACT_STRAIGHT_THROUGH = BatchNormThreat(
    client=Normalize.BATCH, shared=Shared.EXACT, adversary=Normalize.STRAIGHT_THROUGH
)
"""BN_exact in the paper's words with the right derivative: zero loss at the truth, and no scale is left free."""
EXACT_PAPER = BatchNormThreat(client=Normalize.BATCH, shared=Shared.EXACT, adversary=Normalize.GIVEN)
"""BN_exact in the paper's words. Right logits, wrong gradient: the client's derivative went through its statistics."""
EXACT_REFERENCE = BatchNormThreat(client=Normalize.BATCH, shared=Shared.EXACT_UNBIASED, adversary=Normalize.BATCH)
"""BN_exact as published code runs it: the statistics serve as the target of the prior only."""

PROXY = BatchNormThreat(client=Normalize.BATCH, shared=Shared.RUNNING, adversary=Normalize.GIVEN)
"""BN_proxy: running averages stand in for the batch's."""
PROXY_REFERENCE = BatchNormThreat(client=Normalize.BATCH, shared=Shared.RUNNING_AFTER, adversary=Normalize.GIVEN)
"""BN_proxy as published code runs it, with 10 % of the private batch in the running averages."""

INFER = BatchNormThreat(client=Normalize.BATCH, shared=Shared.RUNNING, adversary=Normalize.BATCH)
"""BN_infer: the adversary's own statistics, drawn by the prior towards the running averages."""
INFER_REFERENCE = BatchNormThreat(client=Normalize.BATCH, shared=Shared.RUNNING_AFTER, adversary=Normalize.BATCH)
"""BN_infer as published code runs it, with 10 % of the private batch in the running averages."""

THREATS = {
    "exact": EXACT,
    "exact-straight-through": EXACT_STRAIGHT_THROUGH,
    "exact-paper": EXACT_PAPER,
    "exact-reference": EXACT_REFERENCE,
    "proxy": PROXY,
    "proxy-reference": PROXY_REFERENCE,
    "infer": INFER,
    "infer-reference": INFER_REFERENCE,
}
"""For a client in batch mode; `RUNNING` is the one for a client in running mode."""


def _is_layer(node) -> bool:
    return isinstance(node, dict) and "mean" in node and "var" in node


def map_layers(function, *trees):
    """Applies `function` to the statistics dictionary of every normalization layer of the trees."""
    return jax.tree.map(function, *trees, is_leaf=_is_layer)


def check_statistics(statistics: BatchStats) -> None:
    """Refuses statistics that are of whole numbers or not finite, and layers with a negative variance.

    Raises:
      InputError: naming the tensor.
    """
    checks.all_floating("statistics", statistics)
    checks.all_finite("statistics", statistics)
    for path, layer in jax.tree_util.tree_leaves_with_path(statistics, is_leaf=_is_layer):
        if _is_layer(layer) and (least := float(np.min(layer["var"]))) < 0:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise checks.InputError(
                f"statistics: {name}/var holds {least:g}; expected variances, 0 or above; clip them"
            )


def called_first(network, normalize: Normalize, params, given: BatchStats, images) -> int:
    """Which of a network's normalization layers, numbered in the order of a pytree, it calls first; from shapes alone.

    A pytree sorts by names. Flax, and functions that fill a dictionary, return statistics in the order of the calls.
    """
    number = []

    def run(params, given, images):
        _, statistics = network(params, given, images, normalize)
        first = next(_in_order(statistics))
        number.extend(n for n, layer in enumerate(jax.tree.leaves(statistics, is_leaf=_is_layer)) if layer is first)

    jax.eval_shape(run, params, given, images)
    return number[0]


def _in_order(statistics):
    if isinstance(statistics, dict) and not _is_layer(statistics):
        for inner in statistics.values():
            yield from _in_order(inner)
    else:
        yield from jax.tree.leaves(statistics, is_leaf=_is_layer)


def mean_and_var(statistics: BatchStats, *, unbiased: bool = False) -> BatchStats:
    """Drops the count from a network's `statistics`; with `unbiased`, the variance times n / (n - 1)."""

    def layer(own):
        correction = own["count"] / jnp.maximum(own["count"] - 1, 1) if unbiased else 1.0
        return {"mean": own["mean"], "var": own["var"] * correction}

    return map_layers(layer, statistics)


def running_average(batch_stats: BatchStats, statistics: BatchStats, momentum: float = MOMENTUM) -> BatchStats:
    """The running averages after a batch: (1 - momentum) old + momentum new, the variance unbiased (PyTorch)."""
    new = mean_and_var(statistics, unbiased=True)
    return jax.tree.map(lambda old, own: (1 - momentum) * old + momentum * own, batch_stats, new)


def shared_statistics(shared: Shared, batch_stats: BatchStats, statistics: BatchStats) -> BatchStats | None:
    """What `shared` lets the adversary have: `batch_stats` are from before the batch, `statistics` the batch's own."""
    match shared:
        case Shared.NOTHING:
            return None
        case Shared.RUNNING:
            return batch_stats
        case Shared.RUNNING_AFTER:
            return running_average(batch_stats, statistics)
        case Shared.EXACT:
            return mean_and_var(statistics)
        case Shared.EXACT_UNBIASED:
            return mean_and_var(statistics, unbiased=True)
