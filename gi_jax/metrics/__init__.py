"""How much of the private images an attack recovered."""

from gi_jax.metrics.assignment import match, mse_matrix
from gi_jax.metrics.image import correlation, mse, psnr, ssim
from gi_jax.metrics.labels import count_overlap, label_overlaps, set_overlap
from gi_jax.metrics.perceptual import SMALLEST_SIDE, has_lpips, lacks_lpips, lpips, lpips_matrix, nets_for
from gi_jax.metrics.score import BEST, reference_decoded_scores, reference_scores, score, summarize

__all__ = [
    "BEST",
    "SMALLEST_SIDE",
    "correlation",
    "count_overlap",
    "has_lpips",
    "label_overlaps",
    "lacks_lpips",
    "lpips",
    "lpips_matrix",
    "match",
    "mse",
    "mse_matrix",
    "nets_for",
    "psnr",
    "reference_decoded_scores",
    "reference_scores",
    "score",
    "set_overlap",
    "ssim",
    "summarize",
]
