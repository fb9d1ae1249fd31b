"""Which reconstruction belongs to which original: the optimal one-to-one assignment on pixel distances.

A gradient does not tell the order of its batch, so a reconstructed batch comes in any order. One to one
matters: if every reconstruction just took its nearest original, one that leaked would count several times.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from gi_jax import checks
from gi_jax.metrics.image import check_images
from gi_jax.types import Images


def match(reconstructions: Images, originals: Images) -> np.ndarray:
    """The order of the reconstructions that has the smallest total squared error.

    Args:
        reconstructions: float [n, h, w, c]. An image that is not finite is equally far from every original;
            it gets what the others leave over.
        originals: float [n, h, w, c], finite, in the units of the reconstructions.

    Returns:
        int64 [n], a permutation p: `reconstructions[p[i]]` belongs to `originals[i]`, so
        `reconstructions[p]` is in the order of the originals.

    Raises:
        InputError: if the shapes differ or an original is not finite.
    """
    check_images(originals=originals, reconstructions=reconstructions)
    checks.all_finite("originals", originals)
    cost = mse_matrix(originals, reconstructions)
    finite = np.isfinite(cost)
    worst = np.max(cost, where=finite, initial=0.0) + 1.0
    return linear_sum_assignment(np.where(finite, cost, worst))[1]


def mse_matrix(a: Images, b: Images) -> np.ndarray:
    """Mean squared error of every image of `a` with every image of `b`, by one matrix product on the host.

    `|x - y|^2 = |x|^2 + |y|^2 - 2 x.y`, in double precision because the terms nearly cancel for like images.

    Args:
        a: float [n, h, w, c].
        b: float [m, h, w, c].

    Returns:
        float64 [n, m]; NaN in the rows and columns of images that are not finite.

    Raises:
        InputError: if the two are not float images of one size.
    """
    check_images(same_count=False, a=a, b=b)
    x, y = (np.asarray(images, np.float64).reshape(len(images), -1) for images in (a, b))
    x_bad, y_bad = (~np.isfinite(flat).all(axis=1) for flat in (x, y))
    x, y = np.where(x_bad[:, None], 0.0, x), np.where(y_bad[:, None], 0.0, y)
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None, :]
    distances = np.maximum(squares - 2 * x @ y.T, 0.0) / x.shape[1]
    return np.where(x_bad[:, None] | y_bad[None, :], np.nan, distances)
