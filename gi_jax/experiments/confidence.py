"""How well the attacker's own confidence predicts its error: read from the truth, so on the scoring side."""

import numpy as np
from scipy.stats import spearmanr


def predictive_power(spreads: np.ndarray, agreements: np.ndarray, images: np.ndarray, originals: np.ndarray) -> dict:
    """Rank correlations (Spearman) of the spread over restarts with the true error.

    Args:
      spreads: [n, h, w, c] of `gi_jax.attacks.uncertainty.spread`.
      agreements: [n], decibels.
      images, originals: [n, h, w, c] in [0, 1], matched.

    Returns:
      pixels: spread against absolute error over the pixels of a picture, mean over pictures; pictures: agreement
      against PSNR over the pictures. None where there is nothing to rank.
    """
    errors = np.abs(images - originals)
    within = [_rank_correlation(spread, error) for spread, error in zip(spreads, errors, strict=True)]
    within = [value for value in within if value is not None]
    closeness = -np.mean(np.square(errors), axis=(1, 2, 3))  # ranks as PSNR does
    return {
        "pixels": float(np.mean(within)) if within else None,
        "pictures": _rank_correlation(agreements, closeness),
    }


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    a, b = np.ravel(a), np.ravel(b)
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)
