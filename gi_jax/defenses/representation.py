"""Soteria: the gradient of the last layer, without the features that give the picture away."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax

from gi_jax import checks
from gi_jax.defenses.pruning import keep_count
from gi_jax.threat import ClientStep


def prune_representation(p: float) -> optax.GradientTransformationExtraArgs:
    """Zeroes the rows of the head's kernel gradient that belong to the features of the largest |r_j| / ||dr_j / dx||.

    r [d] is the representation, the input of the last linear layer, `head`. To first order, dropping r_j moves the
    picture that explains the representation by |r_j| / ||dr_j / dx||, so the features that move it most are dropped
    (Sun et al. 2021; their code drops the smallest of the inverse ratio). Only the head's kernel changes: its bias and
    all other tensors are sent as they are, which is the defense's weakness. The other choices:

    - Batches: a feature's score is the mean over the examples, and its row is dropped for the whole batch. (The
      published code adds the inverse ratios, in which one inactive feature outweighs all others.)
    - A feature with r_j = 0 scores 0, also where its derivative is 0 as well (inactive ReLU): its row holds nothing.
    - With batch statistics an example's features depend on all pictures. dr_j / dx is then the derivative of the
      batch's sum of r_j in the example's picture.

    The scores take d backward passes a step: for 8,192 features (`convnet` at 32x32) that is most of the step.

    Args:
      p: the fraction of features dropped, in [0, 1): d - ceil((1 - p) d) of them.

    Returns:
      A transformation whose update needs `client`, a `gi_jax.threat.ClientStep`.

    Raises:
      InputError: for p outside [0, 1); in the update, for a network without `head/kernel` [d, num_classes], and for
        several local steps.

    Reference: Sun et al., Soteria: Provable Defense against Privacy Leakage in Federated Learning from Representation
    Perspective, 2021.
    """
    checks.in_range(0, 1, p=p)

    def update(gradients, state, params=None, *, client, **others):
        del params, others
        client.check_one_step("soteria")
        scores = jnp.mean(leakage_scores(client), axis=0)
        dropped = jnp.argsort(-scores)[: scores.size - keep_count(p, scores.size)]
        head = gradients["head"]
        return {**gradients, "head": {**head, "kernel": head["kernel"].at[dropped].set(0)}}, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def leakage_scores(client: ClientStep) -> jax.Array:
    """|r_j| / ||dr_j / dx|| of every example and feature, [n, d]; 0 where r_j is 0."""
    representation, backward = jax.vjp(partial(_representation, client), client.batch.images)

    def gradient_norms(feature):
        (gradients,) = backward(jnp.zeros_like(representation).at[:, feature].set(1))
        return jnp.sqrt(jnp.sum(jnp.square(gradients), axis=(1, 2, 3)))

    count, features = representation.shape
    norms = lax.map(gradient_norms, jnp.arange(features), batch_size=max(1, _IN_FLIGHT // count)).T
    return jnp.where(representation == 0, 0, jnp.abs(representation) / norms)


_IN_FLIGHT = 64
"""Pictures x features that are taken backwards side by side: enough to keep a device busy, and little memory."""


def _representation(client, images):
    # A logit is linear in its column of the head's kernel, and the coefficients are the features: no hook needed.
    head = client.params.get("head") if isinstance(client.params, dict) else None
    if head is None or jnp.ndim(head.get("kernel")) != 2:
        raise checks.InputError(
            "soteria needs the input of the last linear layer, whose weights it looks for at head/kernel "
            "[d, num_classes]; this network has none (every network of gi_jax.models.MODELS has)"
        )

    def first_logit(column):
        kernel = head["kernel"].at[:, 0].set(column)
        params = {**client.params, "head": {**head, "kernel": kernel}}
        return client.network(params, client.batch_stats, images, client.normalize)[0][:, 0]

    return jax.jacrev(first_logit)(head["kernel"][:, 0])
