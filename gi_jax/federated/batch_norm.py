"""What of a model's BatchNorm stays with the clients: nothing, the statistics (SiloBN), or all of it (FedBN)."""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gi_jax.types import BatchStats, Params


class Policy(enum.StrEnum):
    """Which part of every normalization layer leaves the client. The rest of the network always does.

    A defense changes the client's whole update; what stays is taken out after it, and stays as it was trained.
    """

    SHARED = "shared"
    """All of it: running averages are averaged over the clients as weights are (McMahan et al. 2017)."""
    SILO_BN = "silobn"
    """Scale and offset; running averages stay (Andreux et al. 2020)."""
    FED_BN = "fedbn"
    """Nothing: scale, offset and running averages stay (Li et al. 2021)."""


class Model(NamedTuple):
    """A network's weights and running averages, or a part of them with None in the place of the rest."""

    params: Params
    batch_stats: BatchStats


def own_part(policy: Policy, model: Model) -> Model:
    """The part of a model that stays with the client."""
    paths = {path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(model.batch_stats)}

    def of_norms(path, leaf):
        return leaf if policy == Policy.FED_BN and path[:-1] in paths else None

    def of_statistics(leaf):
        return None if policy == Policy.SHARED else leaf

    return Model(
        jax.tree_util.tree_map_with_path(of_norms, model.params), jax.tree.map(of_statistics, model.batch_stats)
    )


def join(own: Model, shared: Model) -> Model:
    """The model of a client: its own part, and the server's for the rest."""
    return jax.tree.map(lambda mine, all_: all_ if mine is None else mine, own, shared, is_leaf=_missing)


def without(own, tree):
    """`tree` with None where `own`, of the same structure, has leaves: what leaves a client that keeps `own`."""
    return jax.tree.map(lambda mine, leaf: leaf if mine is None else None, own, tree, is_leaf=_missing)


def fill(own, tree, value: float):
    """The whole of `tree`, from which `own` was taken, with arrays of one value in the place of the latter's leaves."""
    return jax.tree.map(
        lambda mine, leaf: leaf if mine is None else jnp.full_like(mine, value), own, tree, is_leaf=_missing
    )


def _missing(leaf) -> bool:
    return leaf is None
