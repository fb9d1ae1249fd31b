"""A network's output by itself: its numbers, and its width before anything is computed."""

from functools import partial

import jax
import jax.numpy as jnp

from gi_jax import checks
from gi_jax.models import Network, Normalize
from gi_jax.types import BatchStats, Params


@partial(jax.jit, static_argnums=(0, 1))
def logits_of(network, normalize, params, given, images):
    """The network's output [n, num_classes] for pictures in its units."""
    return network(params, given, images, normalize)[0]


def num_outputs(
    network: Network, normalize: Normalize, params: Params, given: BatchStats, shape: tuple[int, int, int, int]
) -> int:
    """Width of the output for pictures of `shape` = (n, h, w, c), from shapes alone.

    Raises:
      InputError: for a network that cannot be run so, or whose output is something else than logits.
    """
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    try:
        logits = logits_of.eval_shape(network, normalize, params, given, images)
    except checks.InputError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise _unusable(network, f"on images of shape {shape}: {reason}") from error
    if not hasattr(logits, "ndim"):
        raise _unusable(network, f"returns a {type(logits).__name__}")
    if logits.ndim != 2 or logits.shape[0] != shape[0]:
        raise _unusable(network, f"returns shape {logits.shape} for {shape[0]} images")
    return logits.shape[1]


def _unusable(network, what: str) -> checks.InputError:
    inner = getattr(network, "function", None) or type(getattr(network, "module", network))
    name = getattr(inner, "__name__", type(inner).__name__)
    return checks.InputError(
        f"network {name} {what}; expected a pure function (params, batch_stats, images) -> logits [n, num_classes] "
        "that needs no random key (dropout off) and takes images [n, h, w, c]"
    )
