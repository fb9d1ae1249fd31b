"""Defenses: exact pruning, the law of the noise, composition, and how they are written."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import leaf_names

from gi_jax import defenses
from gi_jax.checks import InputError
from gi_jax.defenses import (
    DEFENSES,
    Defense,
    add_gaussian_noise,
    add_laplacian_noise,
    chain,
    identity,
    parse,
    prune_by_magnitude,
)


def send(defense, gradients, key=0):
    """What is sent in the client's first step."""
    transformation = defense(jax.random.key(key)) if isinstance(defense, Defense) else defense
    return transformation.update(gradients, transformation.init(gradients), None)[0]


def numbers(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).standard_normal(shape))


# Pruning.


@pytest.mark.parametrize("p", [0.1, 0.29, 0.5, 0.7, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("shape", [(1,), (10,), (8, 8), (5, 2, 100)])
def test_pruning_keeps_exactly_the_largest(p, shape):
    gradient = numbers(*shape)
    sent = np.asarray(send(prune_by_magnitude(p), gradient))
    size = gradient.size
    keep = math.ceil((1 - Fraction(str(p))) * size)
    assert np.count_nonzero(sent) == keep
    order = np.argsort(-np.abs(np.asarray(gradient)).reshape(-1))
    expected = np.zeros(size, np.float32)
    expected[order[:keep]] = np.asarray(gradient).reshape(-1)[order[:keep]]
    np.testing.assert_array_equal(sent.reshape(-1), expected)


@pytest.mark.parametrize("p, keep", [(0.29, 71), (0.57, 43), (0.9, 10), (0.99, 1), (0.995, 1), (0.001, 100)])
def test_the_ratio_is_meant_as_written(p, keep):
    # 0.29 * 100 and (1 - 0.9) * 100 in binary are not 29 and 10.
    assert np.count_nonzero(send(prune_by_magnitude(p), numbers(100))) == keep


@pytest.mark.parametrize("p, keep", [(0.3, 7), (0.5, 5), (0.9, 1)])
def test_of_equal_magnitudes_the_first_are_kept(p, keep):
    gradient = jnp.array([2.0, -2.0] * 5)
    np.testing.assert_array_equal(send(prune_by_magnitude(p), gradient), [*gradient[:keep], *[0] * (10 - keep)])
    some = jnp.array([1.0, 3.0, -1.0, 1.0, -3.0])
    np.testing.assert_array_equal(send(prune_by_magnitude(0.4), some), [1, 3, 0, 0, -3])


def test_pruning_is_by_tensor_and_keeps_structure():
    gradients = {"a": jnp.array([1.0, 2.0, 3.0, 4.0]), "b": {"c": jnp.array([[100.0, 300.0], [-200.0, 50.0]])}}
    sent = send(prune_by_magnitude(0.5), gradients)
    np.testing.assert_array_equal(sent["a"], [0, 0, 3, 4])
    np.testing.assert_array_equal(sent["b"]["c"], [[0, 300], [-200, 0]])


def test_pruning_nothing_is_the_identity():
    gradient = numbers(7, 3)
    np.testing.assert_array_equal(send(prune_by_magnitude(0), gradient), gradient)


@pytest.mark.parametrize("p", [1, -0.1, 1.5, float("nan")])
def test_pruning_refuses(p):
    with pytest.raises(InputError, match=f"^p={p}: expected a number in .0, 1.$"):
        prune_by_magnitude(p)


def test_pruning_a_zero_gradient_leaves_it_zero_and_a_scalar_alone():
    np.testing.assert_array_equal(send(prune_by_magnitude(0.9), jnp.zeros(10)), 0)
    np.testing.assert_array_equal(send(prune_by_magnitude(0.9), jnp.float32(3.0)), 3)


def test_pruning_can_be_compiled_and_mapped():
    gradients = numbers(4, 50)
    prune = lambda gradient: send(prune_by_magnitude(0.8), gradient)  # noqa: E731
    together = jax.jit(jax.vmap(prune))(gradients)
    np.testing.assert_array_equal(together, [prune(gradient) for gradient in gradients])


# Noise.

NOISES = {
    "gaussian": (add_gaussian_noise, lambda sigma: sigma**2),
    "laplacian": (add_laplacian_noise, lambda scale: 2 * scale**2),
}
ZEROS = {"a": jnp.zeros((100, 100)), "b": jnp.zeros((100, 100)), "c": jnp.zeros(3)}


@pytest.mark.parametrize("name", NOISES)
def test_no_noise_is_the_identity(name):
    gradients = {"a": numbers(5), "b": numbers(2, 3)}
    jax.tree.map(np.testing.assert_array_equal, send(NOISES[name][0](0.0, jax.random.key(0)), gradients), gradients)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_noise_refuses(name, value):
    with pytest.raises(InputError, match=f"={value}: expected a number that is 0 or above"):
        NOISES[name][0](value, jax.random.key(0))


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("level", [1e-4, 0.3, 20.0])
def test_noise_has_the_variance_that_was_asked_for(name, level):
    make, variance = NOISES[name]
    sent = send(make(level, jax.random.key(1)), ZEROS)
    for tensor in ("a", "b"):
        noise = np.float64(sent[tensor]) / np.sqrt(variance(level))
        n, kurtosis = noise.size, {"gaussian": 3, "laplacian": 6}[name]
        # Six standard errors: of the mean, of the variance, of the fourth moment (looser, only to tell the two apart).
        assert abs(noise.mean()) < 6 / np.sqrt(n)
        assert abs(noise.var() - 1) < 6 * np.sqrt((kurtosis - 1) / n)
        assert abs(np.mean(noise**4) - kurtosis) < 1.2


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_added_to_the_gradient(name):
    gradients = {tensor: zeros + 5 for tensor, zeros in ZEROS.items()}
    make, _ = NOISES[name]
    with_gradient, alone = (send(make(0.1, jax.random.key(2)), tree) for tree in (gradients, ZEROS))
    for tensor, noise in alone.items():
        np.testing.assert_allclose(with_gradient[tensor], 5 + noise, rtol=1e-6)


def correlation(a, b) -> float:
    return np.corrcoef(np.asarray(a).reshape(-1), np.asarray(b).reshape(-1))[0, 1]


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_independent_between_tensors_keys_and_steps(name):
    make, _ = NOISES[name]
    transformation = make(1.0, jax.random.key(3))
    first, state = transformation.update(ZEROS, transformation.init(ZEROS))
    second, state = transformation.update(ZEROS, state)
    third, _ = transformation.update(ZEROS, state)
    other = send(make(1.0, jax.random.key(4)), ZEROS)
    drawn = [first["a"], first["b"], second["a"], third["a"], other["a"]]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert abs(correlation(a, b)) < 6 / np.sqrt(a.size)
    assert correlation(first["a"], first["a"]) > 0.99
    for later in (second["a"], third["a"]):  # the level does not decay
        np.testing.assert_allclose(later.std(), first["a"].std(), rtol=0.1)


@pytest.mark.parametrize("name", NOISES)
def test_the_same_key_gives_the_same_bits(name):
    make, _ = NOISES[name]
    first, again = (send(make(1.0, jax.random.key(5)), ZEROS) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize(
    "text, variance",
    [
        ("gaussian:sigma=0.5 + gaussian:sigma=0.5", 2 * 0.25),
        ("gaussian:sigma=0.5 + gaussian:sigma=0.5 + gaussian:sigma=1", 1.5),
        ("gaussian:sigma=0.5 + laplacian:scale=0.5", 0.25 + 0.5),
        ("laplacian:scale=1 + laplacian:scale=1", 4),
    ],
)
def test_chained_noise_is_independent_so_variances_add(text, variance):
    noise = np.float64(send(parse(text), ZEROS)["a"])
    np.testing.assert_allclose(noise.var(), variance, rtol=0.15)


# Composition.

A, B, C = parse("prune:p=0.5"), parse("gaussian:sigma=0.1"), parse("laplacian:scale=0.2")


def test_stages_come_in_the_order_in_which_they_are_written():
    gradient = {"w": numbers(100)}
    pruned_last = send(parse("gaussian:sigma=0.1 + prune:p=0.5"), gradient)["w"]
    noisy_last = send(parse("prune:p=0.5 + gaussian:sigma=0.1"), gradient)["w"]
    assert np.count_nonzero(pruned_last) == 50
    assert np.count_nonzero(noisy_last) == 100
    assert str(chain(A, B)) == "prune:p=0.5 + gaussian:sigma=0.1"


def test_composition_is_associative_in_words_and_in_bits():
    left, right = chain(chain(A, B), C), chain(A, chain(B, C))
    assert left == right == chain(A, B, C) and hash(left) == hash(right)
    assert chain(A, B) != chain(B, A)
    gradient = {"w": numbers(30), "b": numbers(4)}
    jax.tree.map(np.testing.assert_array_equal, send(left, gradient), send(right, gradient))


def test_a_chain_is_its_stages_one_after_the_other():
    gradient = {"w": numbers(30)}
    key = jax.random.key(7)
    by_hand = optax.chain(
        prune_by_magnitude(0.5),
        add_gaussian_noise(0.1, jax.random.fold_in(key, 1)),
        add_laplacian_noise(0.2, jax.random.fold_in(key, 2)),
    )
    np.testing.assert_array_equal(send(chain(A, B, C), gradient, key=7)["w"], send(by_hand, gradient)["w"])


def test_no_defense_is_the_neutral_element():
    gradient = {"w": numbers(30)}
    np.testing.assert_array_equal(send(identity, gradient)["w"], gradient["w"])
    assert chain() == identity and chain(identity, A, identity) == A
    assert str(identity) == "none"


def test_a_defense_advances_from_step_to_step():
    transformation = chain(A, B)(jax.random.key(0))
    gradient = {"w": numbers(30)}
    first, state = transformation.update(gradient, transformation.init(gradient))
    second, _ = transformation.update(gradient, state)
    assert np.all(first["w"] != second["w"])


# How they are written.


@pytest.mark.parametrize(
    "text, stages",
    [
        ("none", ()),
        (" none ", ()),
        ("prune:p=0.9", (("prune", (("p", 0.9),)),)),
        ("prune: p = 0.9 ", (("prune", (("p", 0.9),)),)),
        ("gaussian:sigma=1e-3", (("gaussian", (("sigma", 0.001),)),)),
        ("gaussian:sigma=1e+3", (("gaussian", (("sigma", 1000.0),)),)),
        (
            "prune:p=0.9 + gaussian:sigma=1e-3",
            (("prune", (("p", 0.9),)), ("gaussian", (("sigma", 0.001),))),
        ),
        (
            "gaussian:sigma=1E+2+laplacian:scale=0",
            (("gaussian", (("sigma", 100.0),)), ("laplacian", (("scale", 0.0),))),
        ),
    ],
)
def test_parse(text, stages):
    assert parse(text).stages == stages


@pytest.mark.parametrize(
    "text, message",
    [
        ("prun:p=0.9", "unknown defense 'prun': did you mean 'prune'? choose from prune, gaussian, laplacian"),
        ("prune", "defense 'prune' needs p (fraction set to zero in each tensor, in [0, 1)): try prune:p=..."),
        ("gaussian:", "defense 'gaussian' needs sigma (standard deviation, 0 or above): try gaussian:sigma=..."),
        ("prune:q=1", "unknown parameter of defense 'prune' 'q': choose from p"),
        ("prune:p=abc", "defense 'prune:p=abc': expected name:parameter=number, such as prune:p=0.9"),
        ("prune:0.9", "defense 'prune:0.9': expected name:parameter=number, such as prune:p=0.9"),
        ("prune:p=", "defense 'prune:p=': expected name:parameter=number, such as prune:p=0.9"),
        ("prune:p=1", "p=1.0: expected a number in [0, 1)"),
        ("prune:p=-0.1", "p=-0.1: expected a number in [0, 1)"),
        ("prune:p=nan", "p=nan: expected a number in [0, 1)"),
        ("gaussian:sigma=-1", "sigma=-1.0: expected a number that is 0 or above"),
        ("laplacian:scale=inf", "scale=inf: expected a number that is 0 or above"),
        ("prune:p=0.5,p=0.9", "defense 'prune' has p twice; expected it once"),
        ("prune:p=0.9 + none", "unknown defense 'none': choose from prune, gaussian, laplacian"),
        ("prune:p=0.9 +", "unknown defense '': choose from prune, gaussian, laplacian"),
        ("", "unknown defense '': choose from prune, gaussian, laplacian"),
    ],
)
def test_bad_texts_are_told_in_one_line(text, message):
    with pytest.raises(InputError) as error:
        parse(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "prune:p=0.9 + gaussian:sigma=0.001",
        "prune:p=0.9999999",
        "gaussian:sigma=1.23456789e-07",
        "laplacian:scale=1e+20",
    ],
)
def test_what_is_written_is_what_is_meant(text):
    assert parse(str(parse(text))) == parse(text)
    assert str(parse(text)) == text


@pytest.mark.parametrize("name", DEFENSES)
def test_every_entry_of_the_table_can_be_used(name):
    entry = DEFENSES[name]
    assert entry.about and entry.paper and all(entry.parameters.values())
    gradients = {"w": numbers(20)}
    sent = send(Defense(((name, tuple((parameter, 0.5) for parameter in entry.parameters)),)), gradients)
    assert leaf_names(sent) == ["w"] and np.any(sent["w"] != gradients["w"])
    assert name in parse(f"{name}:" + ",".join(f"{p}=0.5" for p in entry.parameters)).stages[0]
    assert defenses.DEFENSES is DEFENSES
