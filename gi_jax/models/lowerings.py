"""The table of convolution lowerings, and which one a backend gets."""

import jax

from gi_jax import checks
from gi_jax.models.conv import convolve_lax, convolve_patches, convolve_winograd
from gi_jax.models.lanes import convolve_lanes

LOWERINGS = {
    "patches": convolve_patches,
    "winograd": convolve_winograd,
    "lax": convolve_lax,
    "lanes": convolve_lanes,
}


def convolve(images: jax.Array, kernel: jax.Array, *, stride: int, padding: int, lowering: str) -> jax.Array:
    """Convolution by the named lowering; `auto` takes Winograd's on a CPU and `lanes` elsewhere."""
    if lowering == "auto":
        lowering = "winograd" if jax.default_backend() == "cpu" else "lanes"
    checks.one_of("convolution lowering", lowering, LOWERINGS)
    return LOWERINGS[lowering](images, kernel, stride, padding)
