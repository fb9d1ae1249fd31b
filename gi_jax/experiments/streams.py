"""Who draws from a seed: each has a stream of its own, so that none knows the numbers of another."""

import enum

import jax

from gi_jax.types import Key

REVISION = 2
"""Goes up when somebody draws other numbers or a score means another thing: old results do not mix with new ones."""


class Stream(enum.IntEnum):
    """The parts of an experiment that draw."""

    DEFENSE = 1
    """The clients, in their defenses, and for the order of local steps."""
    AGGREGATION = 2
    """The masks of a sum."""
    DUMMIES = 3
    """The random pictures of label methods."""
    ENCODING = 4
    """The clients, where they encode their pictures."""
    NUM_STEPS = 5
    """The attacks that try numbers of local steps."""
    START = 6
    """The starts of the attack."""
    DECODER = 7
    """The starts of decoders."""


def key_of(seed: int, stream: Stream) -> Key:
    """The key of one of them."""
    return jax.random.fold_in(jax.random.key(seed), int(stream))
