"""Clipping: no update, or no example's part of it, is longer than a bound. (The whole: `optax.clip_by_global_norm`.)"""

import jax
import optax

from gi_jax import checks


def clip_examples(norm: float) -> optax.GradientTransformationExtraArgs:
    """The mean over the batch of the examples' own gradients, each scaled down to an l2 norm of at most `norm`.

    Takes the place of the gradient that it is given, so it comes first in a chain. Memory: a gradient an example.

    Args:
      norm: bound on the norm over all tensors, in the units of the gradient, above 0; may be traced.

    Returns:
      A transformation whose update needs `client`, a `gi_jax.threat.ClientStep`.

    Raises:
      InputError: in the update, for a client that normalizes with the statistics of its batch, and for several
        local steps.

    Reference: Abadi et al., Deep Learning with Differential Privacy, 2016, algorithm 1.
    """
    checks.positive(norm=norm)

    def update(gradients, state, params=None, *, client, **others):
        del params, others
        client.check_one_step("clip_per_example")
        examples, structure = jax.tree.flatten(client.gradient_per_example())
        clipped, _ = optax.per_example_global_norm_clip(examples, norm)
        return jax.tree.unflatten(structure, [total / len(client.batch.labels) for total in clipped]), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
