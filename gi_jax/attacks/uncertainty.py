"""How sure an attacker can be of a reconstruction without the truth: what its other restarts say.

A part of a picture that the gradient determines comes out alike from every start; where restarts differ, the prior and
the start have filled in. Restarts that were drawn to each other (`GroupConsistency`) agree for that reason alone. Those
that are alike to the last bit were one start: a closed form, or the same pictures in every lane. They say nothing.
"""

import numpy as np

from gi_jax.metrics import match


def spread(images: np.ndarray, usable: np.ndarray, chosen: int) -> np.ndarray:
    """How far the other restarts are from the chosen one: root of the mean square difference.

    Each restart is first brought into the order of the chosen one (optimal one-to-one matching of its pictures). Those
    that are the chosen one to the last bit are no other restarts, and left out. The chosen one may have broken after
    its best step: what it found before is an answer all the same.

    Args:
      images: [restarts, n, h, w, c] in [0, 1].
      usable: [restarts], False for those that broke.
      chosen: which restart is the answer.

    Returns:
      float32 [n, h, w, c] in the units of pictures; NaN if no usable restart is another, or the answer is NaN.
    """
    answer = images[chosen]
    others = [other for other in images[usable] if not np.array_equal(other, answer)]
    if not others or not np.isfinite(answer).all():
        return np.full(answer.shape, np.nan, np.float32)
    squares = [np.square(other[match(other, answer)] - answer) for other in others]
    return np.sqrt(np.mean(squares, axis=0, dtype=np.float32))


def agreement(spread: np.ndarray) -> np.ndarray:
    """PSNR of the other restarts, taken together, against the chosen one: the attacker's estimate of its own PSNR.

    Args:
      spread: [n, h, w, c], of pictures in [0, 1].

    Returns:
      [n], decibels, at most 100; NaN where the spread is.
    """
    error = np.mean(np.square(spread, dtype=np.float64), axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(error, 1e-10))
