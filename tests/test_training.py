"""Training: theorems about its steps, the weights file and what is wrong with others, and the command end to end."""

import dataclasses
import json
import math
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from PIL import Image

from gi_jax import cli, defenses, models, training
from gi_jax.checks import InputError
from gi_jax.defenses import privacy
from gi_jax.experiments import train_checkpoint, train_folder, train_run, weights
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.study import Study
from gi_jax.experiments.train_seeds import run_seeds
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.experiments.training import run_training
from gi_jax.experiments.victims import make_victims
from gi_jax.models import Normalize
from gi_jax.threat import Batch, ImageSpace

SHAPE = (8, 8, 3)
CLASSES = 2
PLAIN = training.Recipe(batch_size=8, learning_rate=0.02, augment=False)


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch):
    monkeypatch.setattr(cli.terminal, "set_up_compilation", lambda: None)


def toy_pool(count=40, seed=0):
    """Dark and bright pictures with noise: two classes that a network cannot miss."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % CLASSES
    images = rng.integers(0, 100, (count, *SHAPE)) + 150 * labels[:, None, None, None]
    space = ImageSpace(mean=jnp.full(3, 0.5), std=jnp.full(3, 0.25))
    return training.Pool(jnp.asarray(images, jnp.uint8), jax.nn.one_hot(labels, CLASSES), space)


def toy_training(model="convnet", steps=12, recipe=PLAIN, seeds=(0,), defense="none", ends=None, **options):
    """The set-up, and the last state and all losses [lanes, steps] of a training."""
    setup = training.Setup(
        network=models.create(model, CLASSES), recipe=recipe, defense=defenses.parse(defense), **options
    )
    keys = training.training_keys(seeds)
    states = [
        training.start(setup, jax.random.key(seed), *setup.network.init(jax.random.key(seed), SHAPE)) for seed in seeds
    ]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    chunks = list(training.advance(setup, state, toy_pool(), keys, ends=ends or [steps]))
    return setup, chunks[-1].state, np.concatenate([chunk.losses for chunk in chunks], axis=1)


def lane(tree, number=0):
    return jax.tree.map(lambda leaf: leaf[number], tree)


@pytest.fixture(scope="module")
def toy():
    return toy_training()


def test_loss_falls_and_held_out_pictures_are_classified(toy):
    setup, state, losses = toy
    assert losses.shape == (1, 12) and int(state.step[0]) == 12
    assert losses[0, -3:].mean() < 0.2 * losses[0, 0]
    state, held_out = lane(state), toy_pool(seed=1)
    score = training.evaluate(setup.network, state.params, state.batch_stats, held_out)
    assert score.accuracy > 0.95 and 0 < score.loss < 0.5
    # The last of three batches is filled up with pictures that were counted before.
    parts = training.evaluate(setup.network, state.params, state.batch_stats, held_out, batch_size=17)
    np.testing.assert_allclose(parts, score, rtol=1e-5)


@pytest.mark.parametrize("side, together", [(8, 250), (32, 250), (64, 62), (512, 1)])
def test_the_larger_pictures_are_the_fewer_are_looked_at_together(side, together):
    looked_at = []

    def network(params, batch_stats, images):
        looked_at.append(len(images))
        return jnp.zeros((len(images), CLASSES))

    pool = toy_pool(1)
    count = 251 if side <= 32 else together + 1
    large = pool._replace(images=jnp.zeros((count, side, side, 3), jnp.uint8), labels=jnp.ones((count, CLASSES)))
    training.evaluate(models.FunctionNetwork(network), {}, {}, large)
    assert looked_at == [together]


def test_a_network_without_batchnorm_is_trained():
    _, state, losses = toy_training("mlp")
    assert state.batch_stats == {} and losses[0, -1] < losses[0, 0]


def test_one_seed_gives_the_same_bits_however_it_is_cut_and_another_does_not(toy):
    _, state, losses = toy
    _, again, _ = toy_training(ends=[1, 4, 7, 11, 12])
    jax.tree.map(np.testing.assert_array_equal, again, state)
    _, other, _ = toy_training(seeds=(1,))
    assert not np.array_equal(other.params["head"]["kernel"], state.params["head"]["kernel"])


def test_no_length_of_a_chunk_compiles_anew(toy):
    before = training.run_steps._cache_size()
    toy_training(ends=[2, 3, 9], steps=9)
    toy_training(steps=4)
    assert training.run_steps._cache_size() == before


@pytest.mark.parametrize("defense", ["none", "gaussian:sigma=0.01", "mixup:k=2"])
def test_lanes_are_single_trainings(defense):
    _, together, losses = toy_training("mlp", steps=7, seeds=(3, 5), defense=defense)
    for number, seed in enumerate((3, 5)):
        _, alone, loss = toy_training("mlp", steps=7, seeds=(seed,), defense=defense)
        np.testing.assert_allclose(losses[number], loss[0], rtol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            lane(together, number),
            lane(alone),
        )


def test_a_lane_that_has_ended_stays_as_it_is():
    setup = training.Setup(network=models.create("mlp", CLASSES), recipe=PLAIN, defense=defenses.identity)
    keys, pool = training.training_keys((0, 1)), toy_pool()
    start = lambda: training.start(setup, jax.random.key(0), *setup.network.init(jax.random.key(0), SHAPE))  # noqa: E731
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), start(), start())
    run = training.advance(setup, state, pool, keys, ends=[3], active=lambda: jnp.array([False, True]))
    for progress in run:
        state = progress.state
    assert state.step.tolist() == [0, 3]
    jax.tree.map(np.testing.assert_array_equal, lane(state, 0), start())


def plain_loop(network, recipe, pool, batches, defend=lambda gradients: gradients):
    """Momentum SGD with running averages, written out: weights and statistics after these batches."""
    params, stats = jax.device_get(network.init(jax.random.key(0), SHAPE))
    velocity = jax.tree.map(np.zeros_like, params)

    @jax.jit
    def gradient(params, images, labels):
        def loss(params):
            logits, statistics = network(params, {}, images, Normalize.BATCH)
            return -jnp.sum(labels * jax.nn.log_softmax(logits), -1).mean(), statistics

        return jax.grad(loss, has_aux=True)(params)

    rates = recipe.rates(len(batches), len(pool.labels) // recipe.batch_size)
    for chosen, rate in zip(batches, rates, strict=True):
        images = (np.asarray(pool.images)[chosen].astype(np.float32) / 255 - 0.5) / 0.25
        gradients, own = jax.device_get(gradient(params, images, pool.labels[chosen]))
        for name, layer in own.items():
            mean, var, count = (layer["norm"][key] for key in ("mean", "var", "count"))
            old = stats[name]["norm"]
            old["mean"] = 0.9 * old["mean"] + 0.1 * mean
            old["var"] = 0.9 * old["var"] + 0.1 * var * count / (count - 1)
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity, defend(gradients), params)
        params = jax.tree.map(lambda p, v, rate=rate: np.float32(p - rate * v), params, velocity)
    return params, stats


def orders(setup, pool, epochs):
    keys = training.training_keys((0,))
    return np.concatenate([training.draw_epoch(setup, pool, keys, jnp.int32(e)).order[0] for e in range(epochs)])


def clipped(gradients):
    """Scaled down to length 0.1."""
    length = math.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(gradients)))
    return jax.tree.map(lambda leaf: leaf * min(1, 0.1 / length), gradients)


@pytest.mark.parametrize("defense, defend", [("none", lambda g: g), ("clip:norm=0.1", clipped)])
def test_steps_and_running_averages_are_those_of_a_plain_loop(defense, defend):
    # Before momentum and weight decay: a clipped gradient is no clipped step.
    setup, state, _ = toy_training(defense=defense)
    pool = toy_pool()
    params, stats = plain_loop(setup.network, PLAIN, pool, orders(setup, pool, 3)[:12], defend)
    for found, expected in ((lane(state.batch_stats), stats), (lane(state.params), params)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)


def test_an_epoch_of_encodings_is_a_mixture_of_the_pool():
    pool = toy_pool()
    recipe = dataclasses.replace(PLAIN, augment=True)
    epochs = {}
    for name in ("mixup:k=2", "intra_instahide:k=2"):
        setup = training.Setup(network=models.create("mlp", CLASSES), recipe=recipe, defense=defenses.parse(name))
        draw = lambda number, setup=setup: lane(  # noqa: E731
            training.draw_epoch(setup, pool, training.training_keys((0,)), jnp.int32(number))
        )
        epochs[name] = draw(0), draw(1)
    (first, second), (signed, _) = epochs.values()
    np.testing.assert_allclose(first.labels.sum(-1), 1, rtol=1e-5)
    assert first.images.shape == pool.images.shape and not np.allclose(first.images, second.images)
    assert 0.1 < np.mean(np.sign(signed.images) != np.sign(first.images)) < 0.9
    np.testing.assert_allclose(np.abs(signed.images), np.abs(first.images), rtol=1e-4, atol=1e-5)


def test_training_on_encodings_classifies_clean_pictures():
    setup, state, _ = toy_training(steps=30, defense="mixup:k=2")
    state = lane(state)
    assert training.evaluate(setup.network, state.params, state.batch_stats, toy_pool(seed=1)).accuracy > 0.95


def test_private_steps_sample_by_chance_and_divide_by_the_expected_number():
    class Half:
        """Every other picture, padded to 24 of 40."""

        def __call__(self, key, count):
            chosen = jnp.arange(24) < 20
            return privacy.Sample(jnp.where(chosen, 2 * jnp.arange(24), 0) % count, chosen, 0)

    recipe = dataclasses.replace(PLAIN, batch_size=20, schedule="constant")
    options = dict(model="mlp", steps=1, recipe=recipe)
    _, private, _ = toy_training(defense="dpsgd:clip=1e6,sigma=0", sampling=Half(), **options)
    network, pool = models.create("mlp", CLASSES), toy_pool()
    expected, _ = plain_loop(network, recipe, pool, [2 * np.arange(20)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), lane(private.params), expected)
    _, noisy, _ = toy_training(defense="dpsgd:clip=1e6,sigma=1e-6", sampling=Half(), **options)
    assert not np.allclose(noisy.params["head"]["kernel"], private.params["head"]["kernel"], atol=1e-4)


def test_smoothed_labels_keep_their_sum():
    recipe = dataclasses.replace(PLAIN, label_smoothing=0.2)
    setup = training.Setup(network=lambda p, s, x, n: (x @ p, {}), recipe=recipe, defense=defenses.identity)
    batch = Batch(jnp.ones((2, 3)), jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    state = training.start(setup, jax.random.key(0), jnp.zeros((3, 2)), {})
    _, loss, correct = training.train_step(setup, state, batch, jnp.float32(0.1), jax.random.key(0))
    # Two pictures to be divided by the batch size of 8, one of them padding.
    np.testing.assert_allclose(loss, np.log(2) / 8, rtol=1e-6)
    assert int(correct) == 1


def test_rate_rises_and_falls():
    rates = PLAIN.rates(100, 5).tolist()
    assert rates[0] == pytest.approx(0.002) and max(rates) == rates[9] == pytest.approx(0.02)
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False)) and 0 < rates[-1] < 1e-4
    constant = dataclasses.replace(PLAIN, schedule="constant").rates(100, 5)
    np.testing.assert_allclose(constant[[9, 50, 99]], 0.02)
    np.testing.assert_allclose(PLAIN.rates(1, 5), 0.02)


def test_steps_of_the_rate_come_after_fifty_epochs_and_the_delay():
    step = dataclasses.replace(PLAIN, schedule="step", delay=1).rates(2 * 120, 2)
    np.testing.assert_allclose(step[[0, 101]], 0.02)
    np.testing.assert_allclose(step[[102, 201]], 0.002)
    np.testing.assert_allclose(step[202], 0.0002, rtol=1e-5)


def test_a_plateau_halves_the_rate_and_patience_counts():
    recipe = training.Recipe(schedule="plateau", validation=0.1, patience=4, delay=1, learning_rate=0.05)
    watch, seen = training.watch(recipe), []
    # PyTorch's ReduceLROnPlateau(factor=0.5, patience=2, min_lr=1e-4), not asked after the first epoch.
    for epoch, loss in enumerate([0.1, 1.0, 0.9, 0.95, 0.95, 0.95, 0.95, 0.8, *[1.0] * 40]):
        watch = training.look(recipe, watch, jnp.float32(loss), epoch)
        seen.append((float(watch.scale), int(watch.waited)))
    assert [scale for scale, _ in seen[:12]] == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert [waited for _, waited in seen[:4]] == [0, 1, 2, 3]
    assert seen[-1][0] * 0.05 == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "name, defense, expected",
    [
        ("plain", "none", (64, 0.05, "cosine", None)),
        ("published", "prune:p=0.9", (128, 0.05, "plateau", 10)),
        ("published", "mixup:k=4 + prune:p=0.9", (128, 0.1, "plateau", 50)),
        ("published", "intra_instahide:k=4", (128, 0.05, "step", 50)),
        ("appendix", "prune:p=0.99", (128, 0.02, "step", None)),
        ("appendix", "prune:p=0.95", (128, 0.1, "step", None)),
    ],
)
def test_recipes(name, defense, expected):
    found = TrainSpec(recipe=name, defense=defense).settings
    assert (found.batch_size, found.learning_rate, found.schedule, found.patience) == expected
    replaced = TrainSpec(recipe=name, defense=defense, learning_rate=0.5, batch_size=7, epochs=3).settings
    assert (replaced.learning_rate, replaced.batch_size, replaced.epochs) == (0.5, 7, 3)


def test_an_epoch_holds_every_picture_once():
    setup = training.Setup(network=models.create("mlp", CLASSES), recipe=PLAIN, defense=defenses.identity)
    order = orders(setup, toy_pool(), 2).reshape(2, 40)
    assert (np.sort(order) == np.arange(40)).all() and (order[0] != order[1]).any()
    # A remainder is left out, another one in every epoch.
    ragged = orders(dataclasses.replace(setup, recipe=dataclasses.replace(PLAIN, batch_size=16)), toy_pool(), 2)
    assert ragged.shape == (4, 16) and len(set(ragged[:2].ravel())) == 32
    assert set(ragged[:2].ravel()) != set(ragged[2:].ravel())


def test_ends_of_epochs():
    assert training.epoch_ends(3, 2.0) == [3, 6]
    assert training.epoch_ends(25, 0.5) == [12]
    assert training.epoch_ends(25, 1.52) == [25, 38]
    assert training.epoch_ends(3, 0.01) == [1]
    assert training.epoch_ends(4, 2.0, [0.5, 1, 7]) == [2, 4, 8]
    with pytest.raises(InputError, match="batch_size=9 with 8 pictures"):
        training.steps_per_epoch(8, 9)


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


@pytest.mark.parametrize("recipe", ["published", "plain"])
def test_a_last_step_that_diverges_is_noted(recipe, tmp_path, capsys):
    arguments = ["train", "--recipe", recipe, "--batch-size", "16", "--image-size", "8", "--model", "mlp"]
    assert cli.main([*arguments, "--epochs", "0.15", "--lr", "1e38", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "not finite after step 1 of 1" in error and "lower the learning rate" in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["published", "plain"])
def test_a_last_step_that_diverges_spoils_no_other_lane(recipe, tmp_path, monkeypatch):
    advance = training.advance

    def spoiled(*arguments, **options):
        for progress in advance(*arguments, **options):
            if progress.step == options["ends"][-1]:
                params = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), progress.state.params)
                progress = progress._replace(state=progress.state._replace(params=params))
            yield progress

    spec, how = TrainSpec(**SMALL | dict(recipe=recipe, epochs=1)), dict(lanes=2, timing=False)
    whole = run_seeds(spec, (0, 1), **how)
    monkeypatch.setattr(training, "advance", spoiled)
    found = run_seeds(spec, (0, 1), out=tmp_path, **how)
    (other,) = found.outcomes
    last = other.weights.origin.steps
    assert found.diverged == {0: last + 1} and found.result["complete"]
    jax.tree.map(np.testing.assert_array_equal, other.weights.params, whole.outcomes[1].weights.params)
    assert [path.name for path in tmp_path.glob("seed-*")] == ["seed-1"]


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
        ({"train_pictures": 0}, "train_pictures=0"),
        ({"recipe": "publishd"}, "did you mean 'published'"),
        ({"defense": "prun:p=0.9"}, "did you mean 'prune'"),
        ({"schedule": "plateau"}, "without a validation loss"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TrainSpec(**settings)


def test_no_epsilon_covers_a_loss_on_private_pictures_without_noise():
    spec = TrainSpec(**SMALL | dict(model="mlp", defense="dpsgd:clip=1,sigma=1", recipe="published"))
    with pytest.raises(InputError, match="held-out private pictures, without noise.*plain, appendix, fast"):
        run_training(spec)


def test_a_transformation_that_is_a_defense_can_train():
    halve = defenses.FunctionDefense(lambda key: optax.scale(0.5))
    network = models.create("mlp", CLASSES)
    setups = [training.Setup(network=network, recipe=PLAIN, defense=one) for one in (halve, defenses.identity)]
    drawn = [
        training.draw_epoch(setup, toy_pool(), training.training_keys((0,)), jnp.int32(0)).order for setup in setups
    ]
    np.testing.assert_array_equal(*drawn)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`gi-jax train` on the embedded photographs at 16 pixels."""
    out = tmp_path_factory.mktemp("train") / "young"
    arguments = ["train", "--image-size", "16", "--epochs", "1.5", "--batch-size", "16", "--lr", "0.01"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.terminal, "set_up_compilation", lambda: None)
        assert cli.main([*arguments, "--out", str(out)]) == 0
    return out


def test_training_leaves_its_record(trained):
    result = json.loads((trained / "training.json").read_text())
    assert result["complete"] and [row["epochs"] for row in result["epochs"]] == [1, 1.4286]
    assert result["network"]["steps"] == result["epochs"][-1]["step"] == 10
    assert result["timing"]["seconds_per_step"] > 0 and "ratio" not in result["timing"]
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
        "The network (convnet) was trained for 1.43 epochs on 116 pictures of the train split of photos (test accuracy "
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
    assert "was trained for 1.43 epochs" in capsys.readouterr().out


def test_ctrl_c_keeps_the_weights_so_far(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.terminal.progress_bar, "report", lambda self, report: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    arguments = ["train", "--image-size", "8", "--epochs", "9", "--model", "mlp", "--out", str(tmp_path)]
    arguments += ["--batch-size", "16"]
    assert cli.main(arguments) == 130
    assert "weights so far are kept" in capsys.readouterr().err
    origin = weights.load(tmp_path).origin
    assert origin.steps == 1 and origin.test_accuracy is None  # testing takes longer than a user waits
    assert not json.loads((tmp_path / "training.json").read_text())["complete"]
    assert signal.getsignal(signal.SIGINT) is before
    assert cli.main(arguments) == 2
    assert "--resume" in capsys.readouterr().err


SMALL = dict(image_size=8, model="mlp", epochs=3, batch_size=16, test_pictures=16)


def undisturbed_and_resumed(spec, tmp_path, stop_at, **options):
    """The weights of a training, and of one that was stopped at a step and resumed, both from their files."""
    run_training(spec, out=tmp_path / "one", timing=False, **options)
    steps = iter(range(10**6))
    cut = run_training(spec, out=tmp_path / "two", timing=False, should_stop=lambda: next(steps) >= stop_at, **options)
    assert not cut.result["complete"] and train_checkpoint.exists(tmp_path / "two")
    again = run_training(spec, out=tmp_path / "two", timing=False, resume=True, **options)
    assert again.result["complete"] and not train_checkpoint.exists(tmp_path / "two")
    return [weights.load(tmp_path / name) for name in ("one", "two")], cut, again


@pytest.mark.parametrize(
    "settings",
    [
        dict(defense="gaussian:sigma=0.01"),
        dict(defense="intra_instahide:k=2"),
        dict(recipe="published", learning_rate=0.01),
    ],
)
def test_a_resumed_training_has_the_bits_of_an_undisturbed_one(settings, tmp_path):
    spec = TrainSpec(**SMALL | settings)
    (one, two), cut, again = undisturbed_and_resumed(spec, tmp_path, stop_at=2, checkpoint_epochs=(0.5, 1))
    assert 0 < cut.weights.origin.steps < one.origin.steps
    assert one.origin == two.origin
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    first, second = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two"))
    for different in ("timing", "environment"):
        del first[different], second[different]
    assert first == second
    for epoch in ("epoch-0.5", "epoch-1"):
        early = [weights.load(tmp_path / name / epoch) for name in ("one", "two")]
        jax.tree.map(np.testing.assert_array_equal, early[0].params, early[1].params)
    assert early[0].origin.epochs == 1 and early[0].origin.steps < one.origin.steps
    # What is complete is read.
    assert run_training(spec, out=tmp_path / "two", resume=True, timing=False).result == again.result
    with pytest.raises(InputError, match="other settings"):
        run_training(dataclasses.replace(spec, seed=1), out=tmp_path / "two", resume=True)


def test_times_that_a_kill_prevented_are_measured_on_resuming(tmp_path):
    spec = TrainSpec(**SMALL)
    before = run_training(spec, out=tmp_path, timing=False).result
    assert "seconds_per_step" not in before["timing"]
    after = run_training(spec, out=tmp_path, resume=True).result
    assert after["timing"]["seconds_per_step"] > 0 and after["epochs"] == before["epochs"]
    assert json.loads((tmp_path / "training.json").read_text()) == after


def test_an_unfinished_training_is_not_that_of_other_settings(tmp_path):
    spec = TrainSpec(**SMALL)
    run_training(spec, out=tmp_path, timing=False, should_stop=lambda: True)
    (tmp_path / "training.json").unlink()
    with pytest.raises(InputError, match="belongs to a training with other settings"):
        run_training(dataclasses.replace(spec, seed=1), out=tmp_path, resume=True)


@pytest.mark.parametrize("seeds", [None, (0, 1)])
def test_a_kill_while_the_checkpoint_is_removed_is_in_nobodys_way(seeds, tmp_path, monkeypatch):
    spec, how = TrainSpec(**SMALL | dict(epochs=1)), dict(out=tmp_path, timing=False)
    train = partial(run_training, spec) if seeds is None else partial(run_seeds, spec, seeds)
    train(**how, should_stop=lambda: True)
    rmtree = train_checkpoint.shutil.rmtree

    def killed(folder, **options):
        if folder.exists():
            for records in folder.glob("*/records"):
                rmtree(records)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train(**how, resume=True)
    assert train(**how, resume=True).result["complete"]
    assert not list(tmp_path.glob("unfinished*"))


@pytest.mark.parametrize("lanes", [1, 2])
def test_seeds_are_single_trainings_with_mean_and_spread(lanes, tmp_path):
    spec = TrainSpec(**SMALL)
    found = run_seeds(spec, (0, 4, 1), out=tmp_path, lanes=lanes, timing=False)
    assert [outcome.weights.origin.seed for outcome in found.outcomes] == [0, 4, 1]
    each = found.result["test_accuracy"]["each"]
    assert found.result["test_accuracy"]["mean"] == pytest.approx(np.mean(each))
    assert found.result["test_accuracy"]["std"] == pytest.approx(np.std(each, ddof=1))
    alone = run_training(dataclasses.replace(spec, seed=4), timing=False)
    saved = weights.load(tmp_path / "seed-4")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), saved.params, alone.weights.params
    )
    assert run_seeds(spec, (0, 4, 1), out=tmp_path, lanes=lanes, timing=False, resume=True).outcomes[1].result == (
        found.outcomes[1].result
    )


def test_finished_seeds_are_not_replaced_unasked(tmp_path, capsys):
    arguments = ["train", "--model", "mlp", "--image-size", "8", "--epochs", "0.2", "--batch-size", "16", "--no-timing"]
    arguments += ["--out", str(tmp_path), "--num-seeds", "2"]
    assert cli.main(arguments) == 0
    (tmp_path / "training.json").unlink()  # as after a seed that diverged
    capsys.readouterr()
    assert cli.main(arguments) == 2
    assert "seed-0" in capsys.readouterr().err


QUICK = ["train", "--model", "mlp", "--image-size", "8", "--epochs", "0.3", "--batch-size", "16", "--no-timing"]
KINDS = {
    "one": ([], {"weights.msgpack", "training.json", "epoch-0.2"}),
    "two": (["--num-seeds", "2"], {"training.json", "seed-0", "seed-1"}),
    "three": (["--num-seeds", "3"], {"training.json", "seed-0", "seed-1", "seed-2"}),
}


@pytest.mark.parametrize("before, after", [("one", "two"), ("two", "one"), ("three", "two")])
def test_overwriting_leaves_nothing_of_the_training_before(before, after, tmp_path):
    arguments = [*QUICK, "--checkpoint-epochs", "0.2", "--out", str(tmp_path)]
    assert cli.main([*arguments, *KINDS[before][0]]) == 0
    assert {path.name for path in tmp_path.iterdir()} == KINDS[before][1]
    assert cli.main([*arguments, *KINDS[after][0], "--overwrite"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == KINDS[after][1]


@pytest.mark.parametrize("before, after", [("one", "two"), ("two", "one")])
def test_one_seed_does_not_go_on_as_several_nor_several_as_one(before, after, tmp_path, capsys):
    arguments = [*QUICK, "--out", str(tmp_path)]
    assert cli.main([*arguments, *KINDS[before][0]]) == 0
    record = (tmp_path / "training.json").read_bytes()
    capsys.readouterr()
    assert cli.main([*arguments, *KINDS[after][0], "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path) in error and "--overwrite in place of --resume" in error
    assert (tmp_path / "training.json").read_bytes() == record


def printed(arguments, capsys):
    assert cli.main(arguments) == 0
    return " ".join(capsys.readouterr().out.split())


def test_weights_that_are_asked_for_too_late_are_named(tmp_path, capsys):
    arguments = [*QUICK, "--out", str(tmp_path)]
    assert "no weights are kept" not in printed([*arguments, "--checkpoint-epochs", "0.1,0.15"], capsys)
    assert {path.name for path in tmp_path.glob("epoch-*")} == {"epoch-0.1", "epoch-0.15"}  # of one step
    late = printed([*arguments, "--checkpoint-epochs", "0.1,0.2", "--resume"], capsys)
    assert "no weights are kept at epoch 0.2: the training" in late


def test_after_its_early_end_a_training_keeps_no_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "look", lambda recipe, watch, loss, epoch: watch._replace(waited=jnp.int32(99)))
    arguments = [*QUICK, "--recipe", "published", "--epochs", "2", "--checkpoint-epochs", "1,1.5"]
    words = printed([*arguments, "--out", str(tmp_path)], capsys)
    assert "no weights are kept at epoch 1.5: the training had ended" in words
    assert [path.name for path in tmp_path.glob("epoch-*")] == ["epoch-1"]


def test_a_lane_that_has_ended_keeps_no_weights(tmp_path, monkeypatch):
    def first_lane_ends(recipe, watch, loss, epoch):
        return watch._replace(waited=jnp.where(loss == 0, 99, 0))

    def score(study, pool, state):
        return [training.Score(0.0, 0.5), training.Score(1.0, 0.5)]

    monkeypatch.setattr(training, "look", first_lane_ends)
    monkeypatch.setattr(Study, "score", score)
    spec = TrainSpec(**SMALL | dict(recipe="published", epochs=2))
    found = run_seeds(spec, (0, 1), out=tmp_path, lanes=2, checkpoint_epochs=(1, 1.5), timing=False)
    assert [one.weights.origin.epochs for one in found.outcomes] == [1, 2]
    assert train_folder.not_kept(tmp_path / "seed-0", (1, 1.5)) == [1.5]
    assert train_folder.not_kept(tmp_path / "seed-1", (1, 1.5)) == []


def test_interrupted_seeds_go_on(tmp_path):
    spec, seeds = TrainSpec(**SMALL), (0, 1, 2)
    reports = iter(range(10**6))
    cut = run_seeds(spec, seeds, out=tmp_path, lanes=2, timing=False, should_stop=lambda: next(reports) >= 2)
    assert not cut.result["complete"] and len(cut.outcomes) == 2
    found = run_seeds(spec, seeds, out=tmp_path, lanes=2, timing=False, resume=True)
    whole = run_seeds(spec, seeds, lanes=2, timing=False)
    for one, two in zip(found.outcomes, whole.outcomes, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.weights.params, two.weights.params)


def test_a_kill_between_seeds_loses_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.terminal, "set_up_compilation", lambda: None)
    command = ["train", "--model", "mlp", "--epochs", "0.2", "--batch-size", "16", "--no-timing", "--lanes", "1"]
    command += ["--num-seeds", "2", "--out", str(tmp_path)]
    train, trained = train_run.TrainingRun.train, []

    def second_is_killed(run, *arguments):
        if trained == [(0,)]:
            raise SystemExit(9)
        trained.append(run.seeds)
        return train(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_run.TrainingRun, "train", second_is_killed)
        with pytest.raises(SystemExit):
            cli.main(command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0"]
    written = (tmp_path / "seed-0" / "weights.msgpack").stat().st_mtime_ns
    assert cli.main([*command, "--resume"]) == 0
    assert "nothing to resume" not in capsys.readouterr().out
    assert (tmp_path / "seed-0" / "weights.msgpack").stat().st_mtime_ns == written
    assert (tmp_path / "seed-1" / "weights.msgpack").exists()


def test_a_kill_after_an_early_end_was_saved_adds_no_step(tmp_path, monkeypatch):
    spec = TrainSpec(**SMALL | dict(recipe="published", epochs=60, learning_rate=1e-12))
    whole = run_training(spec, timing=False)

    def killed(run, state, stopped):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_run, "SAVE_SECONDS", 0)
        patch.setattr(train_run.TrainingRun, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_training(spec, out=tmp_path, timing=False)
    again = run_training(spec, out=tmp_path, timing=False, resume=True)
    assert again.weights.origin == whole.weights.origin and again.result["complete"]
    jax.tree.map(np.testing.assert_array_equal, again.weights.params, whole.weights.params)


def test_patience_ends_a_training():
    spec = TrainSpec(**SMALL | dict(recipe="published", epochs=60, learning_rate=1e-12))
    rows = run_training(spec, timing=False).result["epochs"]
    assert len(rows) == 11 and len({row["validation_loss"] for row in rows}) == 1


@pytest.mark.parametrize(
    "defense, message",
    [
        ("dpsgd:clip=1,sigma=1", "take a network without, such as convnet_group"),
        ("clip_per_example:norm=1", "take a network without, such as convnet_group"),
        ("mixup:k=500", "k=500 with 116 private pictures"),
    ],
)
def test_defenses_that_do_not_fit_are_refused(defense, message):
    with pytest.raises(InputError, match=message) as error:
        run_training(TrainSpec(image_size=8, defense=defense, batch_size=16))
    assert "\n" not in str(error.value)


def test_privacy_is_that_of_the_training_that_took_place():
    spec = TrainSpec(**SMALL | dict(epochs=1, defense="dpsgd:clip=1,sigma=2"))
    found = run_training(spec, timing=False).result["defense"]
    expected = dict(sampling_probability=16 / 116, steps=7, delta=1e-5)
    assert {name: found["privacy"][name] for name in expected} == expected
    assert found["privacy"]["epsilon"] == pytest.approx(privacy.epsilon(noise_multiplier=2, **expected))
    assert "differentially private: epsilon" in found["words"][0]
    claimed = dataclasses.replace(spec, defense="dpsgd:clip=1,sigma=2,q=0.01,steps=7,delta=1e-5")
    with pytest.raises(InputError, match="this training has q=0.137931, steps=7"):
        run_training(claimed)


def test_public_pictures_are_set_aside():
    pictures = run_training(TrainSpec(**SMALL | dict(epochs=1, defense="inter_instahide:k=4")), timing=False).result[
        "pictures"
    ]
    assert pictures == {"train": 104, "validation": 0, "public": 12, "test": 16}


def test_a_defense_is_timed_beside_none(capsys, tmp_path):
    arguments = ["train", "--image-size", "8", "--epochs", "1", "--batch-size", "16", "--model", "mlp"]
    arguments += ["--defense", "mixup:k=2", "--defense", "prune:p=0.5", "--num-seeds", "2", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    timing = json.loads((tmp_path / "training.json").read_text())["timing"]
    assert timing["ratio"] > 0 and timing["seconds_per_step_undefended"] > 0 and timing["blocks"] == 5
    words = capsys.readouterr().out
    assert "times that without the defense" in words and "test accuracy of 2 seeds" in words
    assert (tmp_path / "seed-1" / weights.NAME).exists()
    assert cli.main(arguments) == 2 and "--overwrite" in capsys.readouterr().err


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
    "header": (_changed(lambda content: content["origin"].pop("seed")), SAME, "has a damaged header"),
    "shape in the header": (
        _changed(lambda content: content["origin"].update(image_shape=[32, 32])),
        SAME,
        "expected (h, w, c)",
    ),
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


def test_one_seed_and_several_are_refused_together(tmp_path, capsys):
    assert cli.main(["train", "--seed", "7", "--num-seeds", "3", "--out", str(tmp_path / "out")]) == 2
    assert "--seed 7 with --seeds or --num-seeds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
