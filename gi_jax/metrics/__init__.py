"""How much of the private images an attack recovered."""

from gi_jax.metrics.assignment import match, mse_matrix
from gi_jax.metrics.image import correlation, mse, psnr, ssim
from gi_jax.metrics.labels import count_overlap, set_overlap
from gi_jax.metrics.perceptual import SMALLEST_SIDE, lpips, lpips_matrix
from gi_jax.metrics.score import BEST, reference_scores, score, summarize

__all__ = [
    "BEST",
    "SMALLEST_SIDE",
    "correlation",
    "count_overlap",
    "lpips",
    "lpips_matrix",
    "match",
    "mse",
    "mse_matrix",
    "psnr",
    "reference_scores",
    "score",
    "set_overlap",
    "ssim",
    "summarize",
]
