"""`gi-jax invert`: updates from files are the problems that they came from, and pictures are found in them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import to_torch

from gi_jax import InputError, Victim, data, defenses, models, observe, one_hot
from gi_jax.cli import main
from gi_jax.experiments import weights
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.invert import fingerprint, invert, read_problem
from gi_jax.experiments.spec import AttackSpec
from gi_jax.threat import RUNNING, THREATS, ImageSpace
from gi_jax.threat.batch_norm import running_average

RATE = 0.1


def save_torch(file, params, batch_stats=None, *, flat="head", shape=(8, 8, 128)):
    """As PyTorch has a network whose layer `flat`, a convnet's last, takes features flattened channels first."""
    tensors = to_torch(params, batch_stats)
    rows = tensors[f"{flat}.weight"]
    tensors[f"{flat}.weight"] = rows.reshape(-1, *shape).transpose(0, 3, 1, 2).reshape(rows.shape)
    np.savez(file, **tensors)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A folder with the weights before, and a client in training mode with two photographs; of each what it sends."""
    folder = tmp_path_factory.mktemp("client")
    photos = data.load("photos")
    network = models.create("convnet", 10)
    params, batch_stats = network.init(jax.random.key(0), (32, 32, 3))
    victim = Victim(
        network=network,
        params=params,
        batch_stats=batch_stats,
        images=jnp.asarray(photos.as_float()[1:3]),
        labels=one_hot(photos.labels[1:3], 10),
        space=ImageSpace(mean=jnp.float32(photos.mean), std=jnp.float32(photos.std)),
    )
    save_torch(folder / "before.npz", params, batch_stats)
    command = ["convert", str(folder / "before.npz"), "--model", "convnet", "--data", "photos", "--test-pictures", "2"]
    assert main([*command, "--out", str(folder / "weights")]) == 0
    for name, threat in {"running": RUNNING, "batch": THREATS["exact"]}.items():
        problem = observe(victim, threat, defenses.identity, jax.random.key(1))
        save_torch(folder / f"{name}.npz", problem.observed)
        after = jax.tree.map(lambda weight, slope: weight - RATE * slope, params, problem.observed)
        averages = batch_stats
        if name == "batch":
            _, own = network(params, batch_stats, victim.space.normalize(victim.images), models.Normalize.BATCH)
            averages = running_average(batch_stats, own)
        save_torch(folder / f"{name}_after.npz", after, averages)
    return folder, victim


def spec_for(folder, **changes):
    return AttackSpec(**weights.settings_of(folder / "weights"), batch_size=2, **{"labels": "auto"} | changes)


@pytest.mark.parametrize("client_bn, bn", [("running", None), ("batch", "infer"), ("batch", "proxy")])
def test_a_gradient_from_a_file_is_the_problem_that_it_came_from(client, client_bn, bn):
    folder, victim = client
    spec = spec_for(folder, client_bn=client_bn, bn=bn)
    found, words = read_problem(folder / f"{client_bn}.npz", weights.load(folder / "weights"), spec)
    expected = observe(victim, spec.threat, defenses.identity, jax.random.key(1))
    assert found.network == expected.network and found.image_shape == expected.image_shape
    assert found.normalize == expected.normalize and found.local is None
    same = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)  # noqa: E731
    same(found.observed, expected.observed)
    same(found.params, expected.params)
    same(found.statistics, expected.statistics)
    np.testing.assert_array_equal(found.labels.sum(0), expected.labels.sum(0))
    assert "bias_counts" in words


def test_the_model_that_is_sent_back_gives_gradient_and_statistics_away(client):
    folder, victim = client
    spec = spec_for(folder, client_bn="batch", bn="exact", labels="known")
    found, _ = read_problem(
        folder / "batch_after.npz", weights.load(folder / "weights"), spec, after=RATE, labels=[1, 2]
    )
    expected = observe(victim, THREATS["exact"], defenses.identity, jax.random.key(1))
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected.observed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), found.observed, expected.observed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found.statistics, expected.statistics
    )
    np.testing.assert_array_equal(found.labels, one_hot([1, 2], 10))


def test_several_local_steps_are_read_as_their_mean_gradient(client):
    folder, victim = client
    spec = spec_for(folder, local_steps=2, local_rate=RATE, labels="known")
    found, _ = read_problem(
        folder / "running_after.npz", weights.load(folder / "weights"), spec, after=RATE, labels=[1, 2]
    )
    assert found.local.num_steps == 2
    once, _ = read_problem(
        folder / "running_after.npz",
        weights.load(folder / "weights"),
        spec_for(folder, labels="known"),
        after=RATE,
        labels=[1, 2],
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-5), found.observed, once.observed)


def test_a_picture_is_found_in_a_file(client, tmp_path, capsys):
    folder, victim = client
    command = ["invert", str(folder / "running.npz"), "--weights", str(folder / "weights"), "--batch-size", "2"]
    command += ["--steps", "150", "--restarts", "2", "--out", str(tmp_path / "a")]
    assert main(command) == 0
    found = np.load(tmp_path / "a" / "reconstructions.npz")
    for image in np.asarray(victim.images):
        errors = np.mean(np.square(found["images"] - image), axis=(1, 2, 3))
        assert -10 * np.log10(errors.min()) > 18
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["complete"] and result["steps"] == 150 and result["labels"][1:3] == [1, 1]
    assert (tmp_path / "a" / "reconstructions.png").stat().st_size > 1000
    numbers = "mean 0.4855, 0.3658, 0.3379 and std 0.2913, 0.2291, 0.2313"
    units = f"Pictures are taken to be normalized by {numbers} (of the weights)."
    assert units in result["threat_model"]
    said = capsys.readouterr().out
    assert units in " ".join(said.split())
    assert "classes (pictures): 1 (1), 2 (1)" in said and "agreement of starts" in said
    assert main(command) == 0
    assert "holds this already, complete" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    assert "holds results of other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("no.npz", [], "no.npz is missing"),
        ("before.npz", ["--after"], "before.npz holds no change"),
        ("running.npz", ["--labels", "1"], "1 label for a batch of 2"),
        ("running.npz", ["--labels", "1,10"], "label 10: expected class numbers from 0 to 9"),
        ("running.npz", ["--labels", "many"], "unknown labels 'many'"),
        ("batch.npz", ["--client-bn", "batch", "--bn", "exact"], "expected bn infer or proxy"),
        ("batch.npz", ["--client-bn", "batch", "--bn", "infer-reference"], "expected exact, infer or proxy"),
        ("running_after.npz", [], "running_after.npz holds running statistics, so these are weights: add --after"),
        ("running.npz", ["--local-rate", "0.5"], "--local-rate 0.5 with the gradient of one step: leave it out"),
        ("running.npz", ["--defense", "mixup:k=2"], "expected one of the gradient"),
        ("running_after.npz", ["--after", "--local-rate", "0"], "local_rate=0.0: expected a number above 0"),
        ("running.npz", ["--defense", "prune:p=2"], r"p=2.0: expected a number in \[0, 1\)"),
    ],
)
def test_what_cannot_be_inverted_is_one_line(client, tmp_path, capsys, name, arguments, message):
    folder, _ = client
    command = ["invert", str(folder / name), "--weights", str(folder / "weights"), "--batch-size", "2", *arguments]
    assert main([*command, "--steps", "2", "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error


def test_an_update_that_is_not_finite_is_refused(client, tmp_path):
    folder, _ = client
    tensors = dict(np.load(folder / "running.npz"))
    tensors["block0.conv.weight"] = np.full_like(tensors["block0.conv.weight"], np.nan)
    np.savez(tmp_path / "nan.npz", **tensors)
    with pytest.raises(InputError, match="observed gradient: block0/conv/kernel holds 864 values that are NaN"):
        read_problem(tmp_path / "nan.npz", weights.load(folder / "weights"), spec_for(folder))


class Unhurried:
    """A terminal's Interrupt that says so after some chunks."""

    after = 1

    def __enter__(self):
        self.asked = 0
        return self

    def __exit__(self, *exception):
        pass

    def requested(self):
        self.asked += 1
        return self.asked >= self.after


def test_an_interrupted_one_goes_on_as_if_it_had_not_been(client, tmp_path, capsys, monkeypatch):
    folder, _ = client
    command = ["invert", str(folder / "running.npz"), "--weights", str(folder / "weights"), "--batch-size", "2"]
    command += ["--steps", "120", "--restarts", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*command, "--out", str(whole)]) == 0
    with monkeypatch.context() as patched:
        patched.setattr("gi_jax.cli.terminal.Interrupt", Unhurried)
        for steps in (50, 100):
            assert main([*command, "--out", str(parts), *(["--resume"] if steps > 50 else [])]) == 130
            assert "go on with the same command and --resume" in capsys.readouterr().err
            result = json.loads((parts / "result.json").read_text())
            assert not result["complete"] and result["steps"] == steps
    assert main([*command, "--out", str(parts)]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--out", str(parts), "--resume"]) == 2  # another attack
    assert main([*command, "--out", str(parts), "--resume"]) == 0
    assert not (parts / "unfinished.msgpack").exists()
    one, other = (np.load(out / "reconstructions.npz") for out in (whole, parts))
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])
    loss = [json.loads((out / "result.json").read_text())["loss"] for out in (whole, parts)]
    assert loss[0] == loss[1]


def test_a_file_is_known_by_what_is_in_it(client, tmp_path):
    folder, _ = client
    spec = spec_for(folder)
    (tmp_path / "copy.npz").write_bytes((folder / "running.npz").read_bytes())
    name = fingerprint(folder / "running.npz", spec)
    assert name == fingerprint(tmp_path / "copy.npz", spec)
    others = [
        fingerprint(folder / "batch.npz", spec),
        fingerprint(folder / "running.npz", spec, labels=[1, 2]),
        fingerprint(folder / "running.npz", spec, after=RATE),
        fingerprint(folder / "running.npz", spec_for(folder, restarts=3)),
    ]
    assert len({name, *others}) == 5


def test_a_program_that_the_device_does_not_hold_is_refused(client, tmp_path):
    folder, _ = client
    with pytest.raises(InputError, match="4 starts side by side: out of memory.*; try fewer --restarts"):
        invert(folder / "running.npz", spec_for(folder, steps=2, restarts=4), tmp_path, Execution(memory_bytes=1000))


def test_a_closed_form_needs_no_steps(tmp_path):
    network = models.create("mlp", 10)
    params, _ = network.init(jax.random.key(0), (32, 32, 3))
    photos = data.load("photos")
    victim = Victim(
        network=network,
        params=params,
        batch_stats={},
        images=jnp.asarray(photos.as_float()[1:2]),
        labels=one_hot(photos.labels[1:2], 10),
        space=ImageSpace(mean=jnp.float32(photos.mean), std=jnp.float32(photos.std)),
    )
    save_torch(tmp_path / "before.npz", params, flat="block0", shape=(32, 32, 3))
    problem = observe(victim, RUNNING, defenses.identity, jax.random.key(1))
    save_torch(tmp_path / "gradient.npz", problem.observed, flat="block0", shape=(32, 32, 3))
    folder = str(tmp_path / "weights")
    command = ["convert", str(tmp_path / "before.npz"), "--model", "mlp", "--data", "photos", "--test-pictures", "2"]
    assert main([*command, "--out", folder]) == 0
    command = ["invert", str(tmp_path / "gradient.npz"), "--weights", folder, "--attack", "phong", "--restarts", "1"]
    assert main([*command, "--out", str(tmp_path / "found")]) == 0
    found = np.load(tmp_path / "found" / "reconstructions.npz")["images"]
    assert np.mean(np.square(found - np.asarray(victim.images))) < 1e-4
