"""Weights of PyTorch: golden numbers of torchvision (golden/make_resnet18_large.py), files, and `gi-jax convert`."""

import json
import re
import sys
import warnings
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_resnet18_large as golden_of
from problems import QUICK, to_torch
from safetensors.numpy import save_file

from gi_jax import ImageSpace, InputError, data, models
from gi_jax.cli import main
from gi_jax.experiments import weights
from gi_jax.experiments.torch_files import read_tensors
from gi_jax.models import Normalize
from gi_jax.models.layers import Conv, Linear

GOLDEN = json.loads((Path(__file__).parent / "golden" / "resnet18_large.json").read_text())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_resnet18_large_equals_torchvisions(mode):
    network = models.create("resnet18_large", golden_of.NUM_CLASSES)
    shape = (golden_of.SIDE, golden_of.SIDE, 3)
    params, batch_stats = jax.tree.map(
        jnp.asarray, models.from_torch(network, shape, golden_of.tensors(GOLDEN["shapes"]))
    )
    normalize = Normalize.BATCH if mode == "train" else Normalize.GIVEN
    labels = jax.nn.one_hot(jnp.array(golden_of.LABELS), golden_of.NUM_CLASSES)

    def loss(params):
        logits, _ = network(params, batch_stats, jnp.float32(golden_of.images()), normalize)
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), -1)), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)(params)
    golden = GOLDEN[mode]
    np.testing.assert_allclose(logits, golden["logits"], atol=5e-5 * np.abs(golden["logits"]).max())

    def ours(make):  # a tree of ours of arrays by name
        of = {name: make(number, name) for number, name in enumerate(golden["gradients"])}
        return jax.tree.leaves(models.from_torch(network, shape, of)[0])

    shapes = GOLDEN["shapes"]
    numbers = ours(lambda number, name: np.full(shapes[name], number))
    waves = ours(lambda number, name: golden_of.wave(np.prod(shapes[name]), 500 + number).reshape(shapes[name]))
    lengths = list(golden["gradients"].values())
    for leaf, number, wave in zip(jax.tree.leaves(gradient), numbers, waves, strict=True):
        length, product = lengths[int(number.flat[0])]
        np.testing.assert_allclose(np.linalg.norm(leaf), length, rtol=1e-3)
        # In the first block an activation that is nearly 0 falls on the other side of its kink in float32.
        np.testing.assert_allclose(np.sum(np.asarray(leaf) * wave), product, atol=5e-3 * length)


def test_flat_features_are_turned_over():
    network = models.create("mlp", 3)
    rng = np.random.default_rng(0)
    sizes = ((256, 2 * 4 * 3), (256, 256), (3, 256))
    tensors = {}
    for number, shape in enumerate(sizes):
        tensors |= {f"{number}.weight": rng.normal(size=shape) / 9, f"{number}.bias": rng.normal(size=shape[:1])}
    picture = rng.normal(size=(2, 4, 3))  # height, width, channels
    expected = picture.transpose(2, 0, 1).reshape(-1)
    for number in range(3):
        expected = tensors[f"{number}.weight"] @ expected + tensors[f"{number}.bias"]
        expected = np.maximum(expected, 0) if number < 2 else expected
    params, batch_stats = models.from_torch(network, (2, 4, 3), tensors)
    assert batch_stats == {}
    logits, _ = network(params, {}, jnp.float32(picture[None]), Normalize.GIVEN)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4)


def test_flat_features_of_a_convolution_are_turned_over():
    network = models.create("lenet", 3)
    params, _ = network.init(jax.random.key(0), (8, 8, 3))
    tensors = to_torch(params)
    rows = params["head"]["kernel"]  # [h * w * c, classes]
    turned = np.asarray(rows).reshape(2, 2, 12, 3).transpose(3, 2, 0, 1)  # classes, c, h, w
    found, _ = models.from_torch(network, (8, 8, 3), tensors | {"head.weight": turned.reshape(3, -1)})
    jax.tree.map(np.testing.assert_array_equal, found, params)


class Deep(nn.Module):
    """More than ten layers, which flax numbers: by text the tenth would come before the second."""

    @nn.compact
    def __call__(self, images):
        x = images
        for _ in range(12):
            x = Conv(3)(x)
        return Linear(2)(x.mean((1, 2)))


def test_layers_are_in_the_order_of_their_numbers():
    network = models.FlaxNetwork(Deep())
    tensors = {f"{number}.weight": np.full((3, 3, 3, 3), number) for number in range(12)}
    tensors |= {"head.weight": np.ones((2, 3)), "head.bias": np.ones(2)}
    params, _ = models.from_torch(network, (4, 4, 3), tensors)
    assert [params[f"Conv_{number}"]["kernel"][0, 0, 0, 0] for number in range(12)] == list(range(12))


def test_a_layer_of_another_kind_in_the_network_is_named():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, images):
            return Linear(2)(nn.PReLU()(images).mean((1, 2)))

    with pytest.raises(InputError, match=r"layer PReLU_0 of the network holds negative_slope \(\): expected conv"):
        models.from_torch(models.FlaxNetwork(Odd()), (4, 4, 3), {})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda of: of.update(note=np.array("mine")), "tensor 'note' holds no numbers"),
        (lambda of: of.update(note=np.ones(3, "V2")), "tensor 'note' holds no numbers: .*; of bfloat16 save tensor.fl"),
        (
            lambda of: of.update({"head.bias": np.ones(4, "c8")}),
            "tensor 'head.bias' is of type complex64: expected real",
        ),
        (lambda of: of.update({"head.weight": np.ones((4, 9))}), "layer 'head' has kernel .* another --image-size"),
        (lambda of: of.pop("block2.norm.weight") is None, "layer 'block2.norm' has weights of shape ()"),
        (lambda of: of.update({"a.in_proj": np.ones(3)}), "tensor 'a.in_proj': expected those of convolutions"),
        (lambda of: of.update({"a": np.ones(3)}), "tensor 'a': expected .* whose names end in .weight, .bias"),
        (lambda of: of.update({"a.weight": np.ones((2, 3, 4))}), r"layer 'a' has weights of shape \(2, 3, 4\)"),
        (lambda of: of.update({"a.weight": np.ones(3)}), r"4 of the kind normalization \(.*\) for a network with 3"),
        (
            lambda of: of.update({"block1.conv.weight": np.ones((64, 31, 3, 3))}),
            r"layer 'block1.conv' has kernel \(3, 3, 31, 64\) .* block1/conv kernel \(3, 3, 32, 64\)",
        ),
        (lambda of: of.pop("head.bias") is None, r"layer 'head' has kernel .* head kernel .* and bias \(4,\)"),
        (
            lambda of: of.pop("block0.norm.running_var") is None,
            r"layer 'block0.norm' has mean \(32,\) .* block0/norm var",
        ),
        (
            lambda of: of.update({"block1.norm.running_var": np.linspace(-0.5, 1, 64)}),
            "layer 'block1.norm' has a running variance of -0.5: expected 0 or above",
        ),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    network = models.create("convnet", 4)
    tensors = to_torch(*network.init(jax.random.key(0), (8, 8, 3)))
    change(tensors)
    with pytest.raises(InputError, match=message):
        models.from_torch(network, (8, 8, 3), tensors)


def test_numbers_beyond_float32_are_infinite_without_a_warning():
    network = models.create("mlp", 4)
    tensors = to_torch(*network.init(jax.random.key(0), (2, 2, 3)))
    with warnings.catch_warnings(action="error"):
        params, _ = models.from_torch(network, (2, 2, 3), tensors | {"head.bias": np.full(4, -1e200)})
    assert np.all(np.isneginf(params["head"]["bias"]))


# Files.


def test_files_keep_the_order_or_sort_numbers_as_numbers(tmp_path):
    names = ["conv1.weight", "layer2.0.weight", "layer10.0.weight"]
    tensors = {name: np.full(2, number, "f4") for number, name in enumerate(names)}
    np.savez(tmp_path / "a.npz", **dict(reversed(tensors.items())))
    save_file(tensors, tmp_path / "a.safetensors")
    assert list(read_tensors(tmp_path / "a.npz")) == names[::-1]
    found = read_tensors(tmp_path / "a.safetensors")
    assert list(found) == names
    for number, name in enumerate(names):
        np.testing.assert_array_equal(found[name], np.full(2, number))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("no.npz", None, "no.npz is missing: expected what torch.save"),
        (".", None, "is a folder: name a file in it; expected what torch.save"),
        ("a.npz", b"PK\x03\x04 and no more", "a.npz is damaged or no file of weights"),
        ("a.safetensors", b"\x10\x00\x00", "a.safetensors is damaged or no file of weights"),
        ("a.pth", b"PK", "a.pth is read by PyTorch, which is not installed: pip install torch"),
        ("a.txt", b"notes", "a.txt is no file of torch.save; expected what torch.save"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setitem(sys.modules, "torch", None)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_tensors(tmp_path / name)


def test_a_checkpoint_of_pytorch_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    held = {
        "conv.weight": torch.ones(2, 3, 1, 1),
        "odd.weight": torch.ones(2, dtype=torch.complex64),
        "norm.num_batches_tracked": torch.tensor(3),
    }
    torch.save({"epoch": 3, "state_dict": held}, tmp_path / "a.pth")
    found = read_tensors(tmp_path / "a.pth")
    assert list(found) == list(held)
    np.testing.assert_array_equal(found["conv.weight"], np.ones((2, 3, 1, 1)))
    assert np.iscomplexobj(found["odd.weight"])  # and refused


# The command.


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A convnet of ours with running statistics, and the file that PyTorch would have of it."""
    params, batch_stats = models.create("convnet", 10).init(jax.random.key(1), (32, 32, 3))
    batch_stats = jax.tree.map(lambda leaf: leaf + jnp.linspace(0, 0.5, leaf.size), batch_stats)
    tensors = to_torch(params, batch_stats)
    rows = tensors["head.weight"]  # [classes, h * w * c]
    tensors["head.weight"] = rows.reshape(10, 8, 8, 128).transpose(0, 3, 1, 2).reshape(10, -1)
    file = tmp_path_factory.mktemp("theirs") / "theirs.npz"
    np.savez(file, **tensors)
    return file, params, batch_stats


def test_converted_weights_are_the_same_network(theirs, tmp_path, capsys):
    file, *ours = theirs
    command = ["convert", str(file), "--model", "convnet", "--data", "photos"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    found = weights.load(tmp_path / "a")
    jax.tree.map(np.testing.assert_array_equal, [found.params, found.batch_stats], ours)
    tested = data.load("photos", "test")
    units = ImageSpace(mean=jnp.float32(tested.mean), std=jnp.float32(tested.std))
    logits, _ = found.network(*ours, units.normalize(tested.as_float()), Normalize.GIVEN)
    assert found.origin.test_accuracy == np.mean(np.argmax(logits, -1) == tested.labels) > 0
    assert found.origin.mean == tested.mean and found.origin.std == tested.std
    assert "has the weights of theirs.npz, converted from PyTorch (test accuracy" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "a")]) == 2
    assert "is there already: choose another --out, or add --overwrite" in capsys.readouterr().err


def test_converted_weights_are_attacked(theirs, tmp_path, capsys):
    command = ["convert", str(theirs[0]), "--model", "convnet", "--new-head", "--data", "photos"]
    assert main([*command, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--out", str(tmp_path / "a")]) == 0
    arguments = ["--weights", str(tmp_path / "a"), "--num-batches", "1", "--steps", "3", "--out", str(tmp_path / "b")]
    assert main(["attack", *arguments]) == 0
    assert "weights of theirs.npz with a fresh last layer, converted from PyTorch." in capsys.readouterr().out
    found = weights.load(tmp_path / "a")
    assert found.origin.mean == (0.5, 0.5, 0.5) and found.origin.test_accuracy is None
    fresh = models.create("convnet", 10).init(jax.random.key(0), (32, 32, 3))[0]["head"]
    jax.tree.map(np.testing.assert_array_equal, found.params["head"], fresh)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "convnot", "--data", "photos"], "unknown model 'convnot': did you mean 'convnet'?"),
        (["--model", "convnet", "--image-size", "32", "--test-pictures", "5"], "on what is missing: add --data"),
        (["--model", "convnet"], "the size of the pictures is not in the file: add --data .*, or --image-size"),
        (["--model", "convnet", "--image-size", "32", "--new-head"], "the number of classes of a fresh last layer"),
        (["--model", "convnet", "--image-size", "0"], "image_size=0: expected a number above 0"),
        (["--model", "convnet", "--data", "photos", "--std", "1,0,1"], "std=0.0: expected a number above 0"),
        (["--model", "convnet", "--data", "photos", "--mean", "1,1"], "expected a number for each of the 3 channels"),
        (["--model", "convnet_group", "--data", "photos"], "theirs.npz: running statistics: .* remove it"),
        (["--model", "resnet18", "--data", "photos"], "3 of the kind convolution .* for a network with 20"),
    ],
)
def test_bad_arguments_are_one_line(theirs, tmp_path, capsys, arguments, message):
    command = ["convert", str(theirs[0]), *arguments, "--out", str(tmp_path / "a")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_a_file_that_is_missing_is_missed_first(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "nope.pth"), "--model", "convnet", "--out", str(tmp_path / "a")]) == 2
    assert "nope.pth is missing: expected what torch.save" in capsys.readouterr().err


def test_weights_for_other_classes_are_refused(tmp_path, capsys):
    network = models.create("lenet", 4)
    tensors = to_torch(network.init(jax.random.key(0), (32, 32, 3))[0])
    np.savez(tmp_path / "four.npz", **tensors)
    command = ["convert", str(tmp_path / "four.npz"), "--model", "lenet", "--data", "photos"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 2
    assert "four.npz is for 4 classes, photos has 10: expected the same number; add --new-head" in (
        capsys.readouterr().err
    )
    for outputs in (1, 0):
        np.savez(tmp_path / "one.npz", **tensors | {"head.weight": tensors["head.weight"][:outputs]})
        assert main(["convert", str(tmp_path / "one.npz"), *command[2:], "--out", str(tmp_path / "a")]) == 2
        error = capsys.readouterr().err
        assert f"one.npz: the last linear layer, 'head.weight', has {outputs} outputs: expected 2 or more" in error
    tensors["head.bias"] = np.full(4, np.nan, "f4")
    np.savez(tmp_path / "four.npz", **tensors)
    assert main([*command, "--out", str(tmp_path / "a")]) == 2
    assert "weights: head/bias holds 4 values that are NaN" in capsys.readouterr().err
