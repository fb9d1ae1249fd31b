"""From the command line: decoding true encodings, attacking encodings, and decoding what the attack recovered."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from gi_jax import cli
from gi_jax.checks import InputError
from gi_jax.defenses.batch import encode
from gi_jax.experiments.decode import DecodeSpec, decode, encode_pool, read_attack
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import encode_victims, make_victims
from gi_jax.threat import one_hot


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch):
    monkeypatch.setattr(cli.terminal, "set_up_compilation", lambda: None)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """An attack on two epochs of encodings of four photographs in two batches, beside one on the photographs."""
    out = tmp_path_factory.mktemp("attacked") / "out"
    arguments = [
        "attack",
        "--batch-size",
        "2",
        "--num-batches",
        "2",
        "--steps",
        "20",
        "--encodings",
        "2",
        "--model",
        "mlp",
    ]
    arguments += ["--compare", "none", "--compare", "intra_instahide:k=2 + prune:p=0.1", "--compare", "mixup:k=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.terminal, "set_up_compilation", lambda: None)
        assert cli.main([*arguments, "--out", str(out)]) == 0
    return out


def test_decode_without_an_attack(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["decode", "--first", "2", "--encodings", "8", "--defense", "intra_instahide:k=3", "--out", str(out)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr()
    assert "ORACLE" in shown.out and "floor" in shown.out and shown.err == ""
    result = json.loads((out / "result.json").read_text())
    ours, paper = result["runs"]
    assert (ours["decoder"], paper["decoder"]) == ("sign-aware", "paper")
    for block in (ours, paper):
        assert block["encodings"] == "true" and block["count"] == 160 and len(block["images"]) == 20
    assert ours["summary"]["correlation_any_sign"]["mean"] > 0.9
    assert paper["summary"]["correlation_any_sign"]["mean"] < 0.6
    arrays = np.load(out / "decoded.npz")
    assert arrays["originals"].shape == arrays["run0"].shape == arrays["run1"].shape == (20, 32, 32, 3)
    with Image.open(out / "decoded.png") as picture:
        assert min(picture.size) > 200
    assert cli.main([*arguments, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_an_attack_on_encodings_leaves_what_decoders_need(attacked):
    pool, runs = read_attack(attacked)
    assert pool.images.shape == (4, 32, 32, 3)
    assert [run.defense for run in runs] == ["intra_instahide:k=2 + prune:p=0.1", "mixup:k=2"]
    images = pool.space.normalize(pool.images)
    for run in runs:
        assert run.true.shape == run.recovered.shape == (8, 32, 32, 3)
        assert run.mapping.signs is None
        np.testing.assert_array_equal(run.mapping.indices[:, 0], [0, 1, 2, 3] * 2)
        mixed = run.mapping.mix(images)
        if run.defense.startswith("mixup"):
            np.testing.assert_allclose(run.true, mixed, atol=1e-3)
        else:
            np.testing.assert_allclose(np.abs(run.true), np.abs(mixed), atol=1e-3)
            assert np.any(np.sign(run.true) != np.sign(mixed))
    assert "ORACLE" in str(np.load(attacked / "mapping.npz")["note"])
    result = json.loads((attacked / "result.json").read_text())
    assert [len(block["images"]) for block in result["runs"]] == [4, 8, 8]
    for block, encoded in zip(result["runs"], (False, True, True), strict=True):
        assert any("encodings" in sentence for sentence in block["threat_model"]) == encoded
    assert not any("mapping" in name for name in np.load(attacked / "encodings.npz").files)


def test_recovered_encodings_are_decoded_beside_the_floor(attacked, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["decode", str(attacked), "--out", str(out)]) == 0
    runs = json.loads((out / "result.json").read_text())["runs"]
    kinds = [(block["encodings"], block["decoder"]) for block in runs]
    instahide, mixup = ([(e, d) for e in ("recovered", "true") for d in (name, "paper")] for name in DECODERS)
    assert kinds == [*instahide, *mixup]
    recovered, floor = runs[4], runs[6]
    assert floor["summary"]["correlation"]["mean"] > 0.99
    assert recovered["summary"]["correlation"]["mean"] < floor["summary"]["correlation"]["mean"]


@pytest.mark.parametrize("defense", ["mixup:k=2", "intra_instahide:k=2"])
def test_encodings_that_were_not_recovered_are_left_out(defense):
    pool, (run,) = encode_pool(DecodeSpec(first=1, image_size=8, encodings=12, defenses=(defense,)))
    block, *_ = decode(pool, [run._replace(recovered=run.true.at[3].set(np.nan))]).result["runs"]
    summary = block["summary"]["correlation_any_sign"]
    assert block["encodings"] == "recovered" and summary["failed"] == 0 and summary["mean"] > 0.98


def test_encodings_of_an_attack_that_was_replaced_are_gone(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    quick = [
        "attack",
        "--model",
        "mlp",
        "--image-size",
        "12",
        "--steps",
        "2",
        "--num-batches",
        "2",
        "--batch-size",
        "2",
    ]
    assert cli.main([*quick, "--defense", "mixup:k=2", *out]) == 0
    assert cli.main([*quick, "--defense", "none", "--overwrite", *out]) == 0
    assert cli.main(["decode", str(tmp_path / "out"), "--out", str(tmp_path / "decoded")]) == 2
    assert "holds no encodings.npz" in capsys.readouterr().err


def test_encodings_recovered_with_and_without_labels_are_told_apart(tmp_path, capsys):
    arguments = ["attack", "--batch-size", "2", "--num-batches", "2", "--steps", "5", "--model", "mlp"]
    arguments += ["--defense", "mixup:k=2", "--labels", "known", "--labels", "optimize"]
    assert cli.main([*arguments, "--out", str(tmp_path / "attacked")]) == 0
    assert [run.labels for run in read_attack(tmp_path / "attacked")[1]] == ["known", "optimize"]
    capsys.readouterr()
    assert cli.main(["decode", str(tmp_path / "attacked"), "--out", str(tmp_path / "out")]) == 0
    assert "optimize" in capsys.readouterr().out
    runs = json.loads((tmp_path / "out" / "result.json").read_text())["runs"]
    kinds = [(block["encodings"], block.get("labels", {}).get("from")) for block in runs[::2]]
    assert kinds == [("recovered", "known"), ("true", None), ("recovered", "optimize")]


DECODERS = ("sign-aware", "least squares")


@pytest.mark.parametrize("text", ["mixup:k=3", "intra_instahide:k=3", "inter_instahide:k=4"])
def test_batches_of_a_client_are_cut_from_one_pool(text):
    spec = AttackSpec(batch_size=2, num_batches=3, encodings=2, defenses=(text,))
    victims = make_victims(spec)
    batches, mapping = encode_victims(spec, victims, text)
    assert len(batches) == 6 and all(len(batch.images) == 2 for batch in batches)
    assert mapping.indices.shape[0] == 12 and mapping.signs is None
    space = victims.batches[0].space
    pool = space.normalize(np.concatenate([batch.images for batch in victims.batches]))
    labels = np.concatenate([batch.labels for batch in victims.batches])
    public = None if victims.public is None else space.normalize(victims.public)
    expected = encode(mapping, pool, labels, public)
    found = np.concatenate([batch.space.normalize(batch.images) for batch in batches])
    np.testing.assert_allclose(np.abs(found), np.abs(expected.images), atol=1e-3)
    np.testing.assert_allclose(np.concatenate([batch.labels for batch in batches]), expected.labels, atol=1e-6)
    again, _ = encode_victims(spec, victims, "none")
    assert again is victims.batches


def test_encoding_twice_gives_the_same_and_a_seed_another():
    spec = DecodeSpec(first=1, encodings=2, defenses=("mixup:k=2",))
    (_, [one]), (_, [two]) = (encode_pool(spec) for _ in range(2))
    np.testing.assert_array_equal(one.true, two.true)
    (_, [other]) = encode_pool(DecodeSpec(first=1, encodings=2, defenses=("mixup:k=2",), seed=1))
    assert not np.array_equal(one.true, other.true)
    assert spec.fingerprint != DecodeSpec(first=1, encodings=2, defenses=("mixup:k=3",)).fingerprint


BAD = {
    "gradients": (["decode", "--defense", "prune:p=0.9"], "expected one that encodes pictures"),
    "gradients too": (["decode", "--defense", "mixup:k=4 + prune:p=0.9"], "expected one that encodes pictures"),
    "none": (["decode", "--defense", "none"], "expected one that encodes pictures"),
    "misspelled": (["decode", "--defense", "mixupp:k=4"], "did you mean 'mixup'"),
    "no k": (["decode", "--defense", "mixup"], "try mixup:k="),
    "half a picture": (["decode", "--defense", "mixup:k=2.5"], "k=2.5"),
    "more than there are": (["decode", "--first", "1", "--defense", "mixup:k=11"], "k=11 with 10 private pictures"),
    "epochs": (["decode", "--encodings", "0"], "encodings=0"),
    "pool": (["decode", "--first", "7"], "--first"),
    "folder": (["decode", "nowhere"], "holds no encodings.npz"),
    "folder and settings": (["decode", "nowhere", "--first", "3"], "give one or the other"),
    "both": (["decode", "--defense", "mixup:k=4", "--compare", "mixup:k=6"], "--compare"),
    "nothing to encode": (["attack", "--encodings", "3"], "none of the defenses encodes pictures"),
    "order": (["attack", "--defense", "prune:p=0.9", "--defense", "mixup:k=4"], "expected it first"),
    "twice": (["attack", "--defense", "mixup:k=4", "--defense", "mixup:k=4"], "expected it first"),
    "two public": (["attack", "--defense", "inter_instahide:k=2"], "k=2: expected 3 or above"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_a_status(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_a_damaged_folder_is_refused(tmp_path, attacked):
    for name in ("encodings.npz", "mapping.npz"):
        (tmp_path / name).write_bytes((attacked / name).read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        read_attack(tmp_path)


def test_the_mapping_is_inferred_beside_the_granted_one(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["decode", "--first", "1", "--image-size", "16", "--encodings", "10", "--defense", "mixup:k=2"]
    assert cli.main([*arguments, "--infer-mapping", "--out", str(out)]) == 0
    assert "there is no oracle" in " ".join(capsys.readouterr().out.split())
    blocks = json.loads((out / "result.json").read_text())["runs"]
    assert [(block["mapping"], block["decoder"]) for block in blocks[::2]] == [
        ("granted", "least squares"),
        ("inferred", "least squares"),
    ]
    assert blocks[2]["mapping_right"] == 1.0 and blocks[2]["misfit"] < 1e-3
    assert blocks[2]["summary"]["psnr"]["mean"] > 25 and "mapping_right" not in blocks[0]
    assert cli.main([*arguments, "--out", str(out)]) == 2  # another question than with it
    assert "--overwrite" in capsys.readouterr().err


def test_what_the_mapping_is_inferred_from_is_kept_with_an_attack(attacked):
    pool, runs = read_attack(attacked)
    size = len(pool.images)
    for run in runs:
        labels = np.asarray(run.mapping.mix(one_hot(range(size), size)))  # each photograph is of a class of its own
        np.testing.assert_allclose(np.sort(labels, axis=1), np.sort(run.mixed_labels, axis=1)[:, -size:], atol=1e-6)
    blocks = decode(pool, runs[1:], infer=True).result["runs"]
    assert [(block["encodings"], block["mapping"]) for block in blocks[::2]] == [
        ("recovered", "granted"),
        ("recovered", "inferred"),
        ("true", "granted"),
        ("true", "inferred"),
    ]
    with pytest.raises(InputError, match="--labels known"):
        decode(pool, [runs[1]._replace(mixed_labels=None)], infer=True)


def test_inferred_pictures_are_scored_against_their_own_originals():
    pool, (run,) = encode_pool(DecodeSpec(first=1, image_size=16, encodings=10, defenses=("mixup:k=2",)))
    order = np.concatenate([epoch * 10 + np.random.default_rng(epoch).permutation(10) for epoch in range(10)])
    mapping = jax.tree.map(lambda leaf: leaf[order], run.mapping)
    shuffled = run._replace(true=run.true[order], mapping=mapping, mixed_labels=run.mixed_labels[order])
    blocks = decode(pool, [shuffled], infer=True).result["runs"]
    assert blocks[2]["mapping"] == "inferred" and blocks[2]["summary"]["psnr"]["mean"] > 25
