"""How much leaked: a row of metrics per image, their summary, and the reference implementation's scoring.

A row holds plain numbers, ready for a JSON file; a metric without a number (the reconstruction is not finite)
is `None`, never NaN.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gi_jax import checks
from gi_jax.metrics.assignment import mse_matrix
from gi_jax.metrics.image import MAX_PSNR, SSIM_WINDOW, check_images, check_unit_range, mse, psnr, ssim
from gi_jax.metrics.perceptual import NETS, lpips, lpips_matrix
from gi_jax.types import Images

Row = dict[str, float | None]
"""Metric -> value for one image."""

BEST = {
    "psnr": max,
    "ssim": max,
    "mse": min,
    "lpips_vgg": min,
    "lpips_alex": min,
    "correlation": max,
    "correlation_any_sign": max,
}
"""Metric -> the function that picks the most leaked value, the worst case for privacy."""


def score(originals: Images, reconstructions: Images, lpips_nets: Sequence[str] = ("vgg", "alex")) -> list[Row]:
    """Scores each reconstruction against the original of the same index; order them with `match` first.

    Args:
        originals: float [n, h, w, c] in [0, 1], finite; 3 channels if LPIPS is asked for.
        reconstructions: float [n, h, w, c] in [0, 1]; images that are not finite are scored `None`.
        lpips_nets: the LPIPS networks, of "vgg" and "alex"; `()` leaves LPIPS out.

    Returns:
        One row per image: psnr (decibels, at most 100), ssim unless the images are smaller than its window, mse, and
        lpips_<net> for each network.

    Raises:
        InputError: if shapes or ranges do not fit, an original is not finite, or a network is unknown.
    """
    for net in lpips_nets:
        checks.one_of("LPIPS network", net, NETS)
    check_images(originals=originals, reconstructions=reconstructions)
    checks.all_finite("originals", originals)
    check_unit_range(originals=originals, reconstructions=reconstructions)
    metrics = {"psnr": psnr, "ssim": ssim, "mse": mse}
    if min(np.shape(originals)[1:3]) < SSIM_WINDOW:
        del metrics["ssim"]
    columns = {name: metric(originals, reconstructions) for name, metric in metrics.items()}
    columns |= {f"lpips_{net}": lpips(originals, reconstructions, net) for net in lpips_nets}
    return _rows(columns)


def summarize(rows: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | int | None]]:
    """Mean, most leaked value and spread of each metric over the images that have a number.

    Failed images are left out of the mean, which then speaks of the others only: report `failed` beside it.

    Args:
        rows: rows of `score` or `reference_scores`, all with the same metrics.

    Returns:
        `{metric: {mean, best, std, count, failed}}`. best is the maximum for psnr and ssim, the minimum for
        mse and LPIPS; std is the population's; count is the number of images with a number, failed of those
        without (`None`, NaN or infinite). mean, best and std are `None` if every image failed.

    Raises:
        InputError: if there are no rows, or a metric is unknown or missing in some rows.
    """
    if not rows:
        raise checks.InputError("rows is empty: expected at least one scored image; score some images first")
    summary = {}
    for metric in rows[0]:
        checks.one_of("metric", metric, BEST)
    for index, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise checks.InputError(
                f"row {index} has the metrics {', '.join(row)}; expected {', '.join(rows[0])}, as in row 0;"
                " summarize rows of one kind at a time"
            )
    for metric in rows[0]:
        values = [row[metric] for row in rows if row[metric] is not None and np.isfinite(row[metric])]
        summary[metric] = {
            "mean": float(np.mean(values)) if values else None,
            "best": float(BEST[metric](values)) if values else None,
            "std": float(np.std(values)) if values else None,
            "count": len(values),
            "failed": len(rows) - len(values),
        }
    return summary


def reference_scores(
    originals: Images,
    reconstructions: Images,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int | None = None,
    one_to_one: bool = False,
    value_range: str = "raw",
) -> list[Row]:
    """The scoring `reference`, the reference implementation's: for comparison with its numbers.

    It reproduces what the code of Huang et al. 2021, "Evaluating Gradient Inversion Attacks and Defenses in
    Federated Learning", computes (GradAttack, `examples/calc_metric.py`), with these flaws:

    - Every reconstruction takes its smallest LPIPS and its largest PSNR over all originals of the batch, each
      metric on its own. One original that leaked can thus be counted for every reconstruction, and blurs that
      resemble any original count too: leakage is overstated, the more so the larger the batch.
    - LPIPS gets values normalized by mean and std as if they were in [-1, 1].
    - PSNR is in normalized units with the data range of each original, maximum minus minimum.

    Here PSNR ends at 100 dB, where the reference reaches infinity.

    Args:
        originals: float [n, h, w, 3] in [0, 1], finite.
        reconstructions: float [n, h, w, 3] in [0, 1]; within a batch the order does not matter.
        mean: [3], of the data set's normalization.
        std: [3], likewise, above zero.
        batch_size: pictures of a batch, which lie one after the other; None: all are one.
        one_to_one: mend the first flaw: every reconstruction is scored against the original of the same index; order
            them with `match` first.
        value_range: `unit` mends the second one: LPIPS gets values in [-1, 1].

    Returns:
        One row per reconstruction: psnr (decibels) and lpips_vgg; `None` where it is not finite.

    Raises:
        InputError: if shapes or ranges do not fit, or an original is not finite.
    """
    check_images(originals=originals, reconstructions=reconstructions)
    checks.all_finite("originals", originals)
    check_unit_range(originals=originals, reconstructions=reconstructions)
    if batch_size is not None:
        checks.counts(batch_size=batch_size)
    targets, recovered = (_normalized(images, mean, std) for images in (originals, reconstructions))
    data_range = np.ptp(targets, axis=(1, 2, 3))[None, :]
    error = np.maximum(mse_matrix(recovered, targets), np.finfo(np.float64).tiny)
    with np.errstate(divide="ignore"):  # an original of one color has no range: minus infinity, never the maximum
        decibels = np.minimum(20 * np.log10(data_range) - 10 * np.log10(error), MAX_PSNR)
    pair = (recovered, targets) if value_range == "raw" else (reconstructions, originals)
    distances = np.asarray(lpips_matrix(*pair, "vgg", value_range=value_range))
    of_batch = np.arange(len(targets)) // (batch_size or len(targets))
    same = np.eye(len(targets), dtype=bool) if one_to_one else of_batch[:, None] == of_batch
    psnr_of, lpips_of = np.where(same, decibels, -np.inf).max(1), np.where(same, distances, np.inf).min(1)
    return _rows({"psnr": psnr_of, "lpips_vgg": lpips_of})


def reference_decoded_scores(
    originals: Images, decoded: Images, mean: Sequence[float], std: Sequence[float]
) -> list[Row]:
    """The scoring `reference` of decoded pictures: LPIPS between two ranges that do not fit.

    The original of the same index is normalized by mean and std, the decoded picture lies in [-1, 1], and both are
    handed to the network as they are (GradAttack, `examples/calc_metric.py`).

    Args:
        originals: float [n, h, w, 3] in [0, 1], finite.
        decoded: float [n, h, w, 3] in [0, 1].
        mean: [3], of the data set's normalization.
        std: [3], likewise, above zero.

    Returns:
        One row per picture: lpips_vgg; `None` where it is not finite.

    Raises:
        InputError: as `reference_scores`.
    """
    check_images(originals=originals, decoded=decoded)
    checks.all_finite("originals", originals)
    check_unit_range(originals=originals, decoded=decoded)
    targets = _normalized(originals, mean, std)
    return _rows({"lpips_vgg": lpips(targets, 2 * np.asarray(decoded, np.float32) - 1, "vgg", value_range="raw")})


def _normalized(images: Images, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    mean, std = _per_channel("mean", mean), _per_channel("std", std)
    checks.positive(**{f"std[{channel}]": value for channel, value in enumerate(std)})
    return (np.asarray(images, np.float32) - mean) / std


def _rows(columns: Mapping[str, Sequence[float]]) -> list[Row]:
    """`{metric: [n]}` -> n rows of plain numbers, `None` for what is not finite."""
    table = {name: np.asarray(column).tolist() for name, column in columns.items()}
    return [
        {name: value if np.isfinite(value) else None for name, value in zip(table, values, strict=True)}
        for values in zip(*table.values(), strict=True)
    ]


def _per_channel(name: str, values: Sequence[float]) -> np.ndarray:
    """float32 [3], or an InputError that names the value."""
    array = np.asarray(values, np.float32)
    if array.shape != (3,) or not np.isfinite(array).all():
        raise checks.InputError(
            f"{name}={values}: expected three finite numbers, one per channel; take the data set's own"
        )
    return array
