"""Pictures: data sets by name, which of them are victims, and seeded stand-ins."""

from gi_jax.data.datasets import DATASETS, Dataset, load
from gi_jax.data.synthetic import smooth_images
from gi_jax.data.victims import batches, choose, first_per_class

__all__ = ["DATASETS", "Dataset", "batches", "choose", "first_per_class", "load", "smooth_images"]
