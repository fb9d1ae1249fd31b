"""Training: theorems about its steps, the weights file and what is wrong with others, and the command end to end."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from PIL import Image

from gi_jax import cli, models, training
from gi_jax.checks import InputError
from gi_jax.experiments import weights
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.training import TrainSpec, run_training
from gi_jax.experiments.victims import make_victims
from gi_jax.models import Normalize
from gi_jax.threat import ImageSpace

SHAPE = (8, 8, 3)
CLASSES = 2
PLAIN = training.Recipe(batch_size=8, learning_rate=0.02, augment=False)


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch):
    monkeypatch.setattr(cli.terminal, "use_compilation_cache", lambda: None)


def toy_pool(count=40, seed=0):
    """Dark and bright pictures with noise: two classes that a network cannot miss."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % CLASSES
    images = rng.integers(0, 100, (count, *SHAPE)) + 150 * labels[:, None, None, None]
    space = ImageSpace(mean=jnp.full(3, 0.5), std=jnp.full(3, 0.25))
    return training.Pool(jnp.asarray(images, jnp.uint8), jnp.asarray(labels), space)


def toy_training(model="convnet", steps=12, recipe=PLAIN, seed=0):
    """The network, and everything that the chunks of a training yield, joined."""
    network = models.create(model, CLASSES)
    state = training.start(recipe, *network.init(jax.random.key(0), SHAPE))
    chunks = list(training.advance(network, recipe, state, toy_pool(), ends=[steps], seed=seed))
    return network, chunks[-1].state, np.concatenate([chunk.losses for chunk in chunks])


@pytest.fixture(scope="module")
def toy():
    return toy_training()


def test_loss_falls_and_held_out_pictures_are_classified(toy):
    network, state, losses = toy
    assert len(losses) == int(state.step) == 12
    assert losses[-3:].mean() < 0.2 * losses[0]
    held_out = toy_pool(seed=1)
    assert training.accuracy(network, state.params, state.batch_stats, held_out) > 0.95
    # The last of three batches is filled up with pictures that were counted before.
    by_hand = training.accuracy(network, state.params, state.batch_stats, held_out, batch_size=17)
    assert by_hand == training.accuracy(network, state.params, state.batch_stats, held_out)


def test_a_network_without_batchnorm_is_trained():
    _, state, losses = toy_training("mlp")
    assert state.batch_stats == {} and losses[-1] < losses[0]


def test_one_seed_gives_the_same_bits_and_another_does_not(toy):
    _, state, _ = toy
    _, again, _ = toy_training()
    jax.tree.map(np.testing.assert_array_equal, again, state)
    _, other, _ = toy_training(seed=1)
    assert not np.array_equal(other.params["head"]["kernel"], state.params["head"]["kernel"])


def test_steps_and_running_averages_are_those_of_a_plain_loop(toy):
    network, state, _ = toy
    pool = toy_pool()
    params, stats = network.init(jax.random.key(0), SHAPE)
    params, stats = jax.device_get((params, stats))
    velocity = jax.tree.map(np.zeros_like, params)
    batches = training.index_batches(40, 8, 0)

    @jax.jit
    def gradient(params, images, labels):
        def loss(params):
            logits, statistics = network(params, {}, images, Normalize.BATCH)
            scores = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(scores, labels[:, None], 1).mean(), statistics

        return jax.grad(loss, has_aux=True)(params)

    for step in range(12):
        chosen = next(batches)
        images = (np.asarray(pool.images)[chosen].astype(np.float32) / 255 - 0.5) / 0.25
        gradients, own = jax.device_get(gradient(params, images, np.asarray(pool.labels)[chosen]))
        for name, layer in own.items():
            mean, var, count = (layer["norm"][key] for key in ("mean", "var", "count"))
            old = stats[name]["norm"]
            old["mean"] = 0.9 * old["mean"] + 0.1 * mean
            old["var"] = 0.9 * old["var"] + 0.1 * var * count / (count - 1)
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity, gradients, params)
        rate = PLAIN.rate(step, 12)
        params = jax.tree.map(lambda p, v, rate=rate: np.float32(p - rate * v), params, velocity)
    for found, expected in ((state.batch_stats, stats), (state.params, params)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)


def test_rate_rises_and_falls():
    rates = [PLAIN.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.002) and max(rates) == rates[9] == 0.02
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False)) and 0 < rates[-1] < 1e-4
    constant = dataclasses.replace(PLAIN, schedule="constant")
    assert [constant.rate(step, 100) for step in (9, 50, 99)] == [0.02] * 3
    assert PLAIN.rate(0, 1) == 0.02


def test_an_epoch_holds_every_picture_once():
    batches = training.index_batches(10, 4, 0)
    order = np.concatenate([next(batches) for _ in range(5)])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()
    assert training.epoch_ends(10, 4, 2.0) == [3, 5]
    assert training.epoch_ends(100, 4, 0.5) == [12]
    assert training.epoch_ends(100, 4, 1.5) == [25, 38]
    assert training.epoch_ends(10, 4, 0.01) == [1]


def test_crops_are_shifts_with_zeros_and_mirrors():
    image = np.arange(1, 37, dtype=np.uint8).reshape(1, 6, 6, 1)
    many = np.repeat(image, 64, 0)
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    allowed = [padded[i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
    allowed = {window.tobytes() for shift in allowed for window in (shift, shift[:, ::-1])}
    seen = {picture.tobytes() for picture in np.asarray(training.crop_and_flip(jax.random.key(0), many, 1))}
    assert seen <= allowed and len(seen) > 12


def test_a_loss_that_is_not_finite_stops_the_training():
    with pytest.raises(InputError, match="lower the learning rate") as error:
        toy_training(steps=50, recipe=dataclasses.replace(PLAIN, learning_rate=1e30))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 0.0}, "epochs=0"),
        ({"epochs": float("nan")}, "epochs=nan"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"model": "convnt"}, "did you mean 'convnet'"),
        ({"seed": -1}, "seed=-1"),
        ({"test_pictures": 0}, "test_pictures=0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TrainSpec(**settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`gi-jax train` on the embedded photographs at 16 pixels."""
    out = tmp_path_factory.mktemp("train") / "young"
    arguments = ["train", "--image-size", "16", "--epochs", "1.5", "--batch-size", "16", "--lr", "0.01"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.terminal, "use_compilation_cache", lambda: None)
        assert cli.main([*arguments, "--out", str(out)]) == 0
    return out


def test_training_leaves_its_record(trained):
    result = json.loads((trained / "training.json").read_text())
    assert result["complete"] and [row["epochs"] for row in result["epochs"]] == [1.1034, 1.5172]
    assert result["network"]["steps"] == result["epochs"][-1]["step"] == 11
    assert 0 <= result["network"]["test_accuracy"] <= 1
    assert TrainSpec(**result["spec"]).batch_size == 16


def test_saved_weights_give_the_same_logits(trained, tmp_path):
    first = weights.load(trained)
    weights.save(tmp_path / "copy.msgpack", first)
    second = weights.load(tmp_path / "copy.msgpack")
    assert second.origin == first.origin
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    logits = [one.network(one.params, one.batch_stats, images, Normalize.GIVEN)[0] for one in (first, second)]
    np.testing.assert_array_equal(*logits)


def test_attack_looks_at_the_trained_network(trained, tmp_path, capsys):
    common = ["--image-size", "16", "--steps", "3", "--num-batches", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["attack", "--weights", str(trained), *common]) == 0
    block = json.loads((tmp_path / "out" / "result.json").read_text())["runs"][0]
    sentence = next(words for words in block["threat_model"] if words.startswith("The network"))
    assert sentence == weights.load(trained).origin.words()
    assert sentence.startswith(
        "The network (convnet) was trained for 1.52 epochs on the train split of photos (test accuracy "
    )
    spec = AttackSpec(**{**block["spec"], "defenses": tuple(block["spec"]["defenses"])})
    assert spec.weights_hash == weights.settings_of(trained / weights.NAME)["weights_hash"]
    victim = make_victims(spec).batches[0]
    jax.tree.map(np.testing.assert_array_equal, victim.params, weights.load(trained).params)
    # Where the file lies does not count, what it holds does.
    assert dataclasses.replace(spec, weights="elsewhere").fingerprint == spec.fingerprint
    assert dataclasses.replace(spec, weights_hash="0" * 16).fingerprint != spec.fingerprint
    with pytest.raises(InputError, match="the file was replaced"):
        make_victims(dataclasses.replace(spec, weights_hash="0" * 16))
    capsys.readouterr()
    assert cli.main(["labels", "--weights", str(trained), "--image-size", "16", "--out", str(tmp_path / "labels")]) == 0
    assert "was trained for 1.52 epochs" in capsys.readouterr().out


def test_ctrl_c_keeps_the_weights_so_far(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.terminal.progress_bar, "report", lambda self, report: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    arguments = ["train", "--image-size", "8", "--epochs", "9", "--model", "mlp", "--out", str(tmp_path)]
    assert cli.main(arguments) == 130
    assert "weights so far are kept" in capsys.readouterr().err
    assert weights.load(tmp_path).origin.steps == 1
    assert not json.loads((tmp_path / "training.json").read_text())["complete"]
    assert signal.getsignal(signal.SIGINT) is before
    assert cli.main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_folder_without_a_test_split_has_no_test_accuracy(tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / name / "0.png")
    found = run_training(TrainSpec(data=f"folder:{tmp_path}", image_size=8, model="mlp", epochs=1, batch_size=2))
    assert found.weights.origin.test_accuracy is None
    assert "accuracy" not in found.weights.origin.words()


def _changed(change):
    """A weights file whose content was changed by `change`, a function of the dictionary."""

    def write(trained, tmp_path):
        content = serialization.msgpack_restore((trained / weights.NAME).read_bytes())
        change(content)
        (tmp_path / "bad").write_bytes(serialization.msgpack_serialize(content))
        return tmp_path / "bad"

    return write


def _bytes(content):
    def write(trained, tmp_path):
        whole = (trained / weights.NAME).read_bytes()
        (tmp_path / "bad").write_bytes(content(whole) if callable(content) else content)
        return tmp_path / "bad"

    return write


def _folder_of_three(tmp_path):
    for name in ("ants", "bees", "wasps"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(tmp_path / "in" / name / "0.png")
    return ["--data", f"folder:{tmp_path / 'in'}", "--image-size", "16"]


SAME = ["--image-size", "16"]
BAD = {
    "missing": (lambda trained, tmp_path: tmp_path / "nowhere", SAME, "is missing"),
    "empty folder": (lambda trained, tmp_path: tmp_path, SAME, "is missing"),
    "truncated": (_bytes(lambda whole: whole[: len(whole) // 2]), SAME, "is damaged or no weights file"),
    "empty": (_bytes(b""), SAME, "no weights file"),
    "text": (_bytes(b"hello"), SAME, "no weights file"),
    "foreign": (_bytes(serialization.msgpack_serialize({"params": {}})), SAME, "no weights file of this version"),
    "no list": (_bytes(serialization.msgpack_serialize([1])), SAME, "no weights file of this version"),
    "header": (_changed(lambda content: content["origin"].pop("seed")), SAME, "lacks a part of its header"),
    "unknown model": (_changed(lambda content: content["origin"].update(model="vgg")), SAME, "unknown model 'vgg'"),
    "layer": (_changed(lambda content: content["params"]["head"].pop("bias")), SAME, "head/bias is missing"),
    "nan": (
        _changed(lambda content: content["params"]["head"].update(bias=np.full(10, np.nan, np.float32))),
        SAME,
        "head/bias holds 10 values that are NaN",
    ),
    "other model": (lambda trained, _: trained, ["--model", "resnet18", *SAME], "which are of convnet"),
    "model seed": (lambda trained, _: trained, ["--model-seed", "1", *SAME], "nothing is drawn"),
    "shape": (lambda trained, _: trained, [], "pictures of 16x16x3 (photos) with photos, whose pictures are 32x32x3"),
    "classes": (lambda trained, _: trained, _folder_of_three, "weights for 10 classes (photos) with folder:"),
}


@pytest.mark.parametrize("command", ["attack", "labels"])
@pytest.mark.parametrize("case", BAD)
def test_weights_that_do_not_fit_are_one_line(case, command, trained, tmp_path, capsys):
    make, arguments, message = BAD[case]
    path = make(trained, tmp_path)
    arguments = arguments(tmp_path) if callable(arguments) else arguments
    assert cli.main([command, "--weights", str(path), *arguments, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
