"""Defenses that look at the gradient only: exact pruning, the law of the noise, rounding, composition, writing."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import COMPILED, HEADED, QUICK, enable_x64, leaf_names, relative_error, toy_problem, toy_victim
from scipy import stats

from gi_jax import attacks, defenses
from gi_jax.attacks import GradientDescent
from gi_jax.checks import InputError
from gi_jax.defenses import (
    DEFENSES,
    FunctionDefense,
    Kind,
    Mixing,
    add_gaussian_noise,
    add_laplacian_noise,
    add_relative_noise,
    chain,
    encode_victim,
    identity,
    keep_counts,
    keep_largest,
    keep_largest_overall,
    make,
    parse,
    prune_by_magnitude,
    prune_globally,
    quantize_stochastically,
    quantize_uniformly,
    send_signs,
)
from gi_jax.defenses.noise import estimate_scale
from gi_jax.defenses.pruning import largest
from gi_jax.defenses.quantization import stochastic_scale, stochastic_width, uniform_width
from gi_jax.objectives import GradientMatching, Objective, TotalVariation
from gi_jax.threat import (
    RUNNING,
    Clipped,
    Mixed,
    Noisy,
    Quantized,
    Signs,
    Zeroed,
    check_problem,
    observe,
    victim_axes,
)


def send(defense, gradients, key=0):
    """What is sent in the client's first step."""
    transformation = defense(jax.random.key(key)) if hasattr(defense, "known") else defense
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


@pytest.mark.parametrize("prune", [prune_by_magnitude(0), prune_globally(0), keep_largest_overall(21)])
def test_pruning_nothing_is_the_identity(prune):
    gradient = numbers(7, 3)
    np.testing.assert_array_equal(send(prune, gradient), gradient)


@pytest.mark.parametrize("prune", [prune_by_magnitude, prune_globally])
@pytest.mark.parametrize("p", [1, -0.1, 1.5, float("nan")])
def test_pruning_refuses(prune, p):
    with pytest.raises(InputError, match=f"^p={p}: expected a number in .0, 1.$"):
        prune(p)


@pytest.mark.parametrize("count", [1, 2, 5, 17, 19, 20, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_are_those_of_a_stable_sort(count, dtype):
    few = [0.0, -0.0, 1e-45, -3.0, 3.0, np.inf, 1e-300, 2.5, -2.5, 1e30]  # ties, zeros, denormals, the largest
    with enable_x64(dtype == "float64"):
        values = jnp.asarray(np.random.default_rng(0).choice(few, 20), dtype)
        order = np.argsort(-np.abs(np.asarray(values)), stable=True)
        np.testing.assert_array_equal(np.flatnonzero(largest(values, count)), np.sort(order[:count]))


def test_what_is_not_a_number_is_sent_not_hidden():
    assert np.isnan(send(prune_by_magnitude(0.5), jnp.array([1.0, jnp.nan, 2.0, 3.0]))[1])


TREE = {"a": jnp.array([1.0, -6.0, 3.0]), "b": {"c": jnp.array([[2.0, 9.0], [-3.0, 0.5]])}}


@pytest.mark.parametrize(
    "prune, a, c",
    [
        (prune_globally(0.5), [0, -6, 3], [[0, 9], [-3, 0]]),
        (prune_globally(0.6), [0, -6, 3], [[0, 9], [0, 0]]),  # of the two threes the first
        (prune_globally(0.9), [0, 0, 0], [[0, 9], [0, 0]]),
        (keep_largest_overall(2), [0, -6, 0], [[0, 9], [0, 0]]),
        (keep_largest_overall(99), [1, -6, 3], [[2, 9], [-3, 0.5]]),
        (keep_largest({"a": 1, "b": {"c": 2}}), [0, -6, 0], [[0, 9], [-3, 0]]),
    ],
)
def test_one_threshold_for_all_tensors_or_a_count_for_each(prune, a, c):
    sent = send(prune, TREE)
    np.testing.assert_array_equal(sent["a"], a)
    np.testing.assert_array_equal(sent["b"]["c"], c)


@pytest.mark.parametrize("p", [0.1, 0.29, 0.5, 0.99, 0.999])
def test_global_pruning_keeps_exactly_the_largest(p):
    gradients = {"a": numbers(30), "b": 10 * numbers(7, 10)}
    sent, flat = send(prune_globally(p), gradients), np.concatenate([gradients["a"], gradients["b"].reshape(-1)])
    kept = np.concatenate([sent["a"], sent["b"].reshape(-1)])
    order = np.argsort(-np.abs(flat))[: math.ceil((1 - Fraction(str(p))) * 100)]
    np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(order))


def test_pruning_a_zero_gradient_leaves_it_zero_and_a_scalar_alone():
    np.testing.assert_array_equal(send(prune_by_magnitude(0.9), jnp.zeros(10)), 0)
    np.testing.assert_array_equal(send(prune_by_magnitude(0.9), jnp.float32(3.0)), 3)


def test_pruning_can_be_compiled_and_mapped():
    gradients = numbers(4, 50)
    prune = lambda gradient: send(prune_by_magnitude(0.8), gradient)  # noqa: E731
    together = jax.jit(jax.vmap(prune))(gradients)
    np.testing.assert_array_equal(together, [prune(gradient) for gradient in gradients])


def test_counts_are_whole_numbers_of_the_ratio_as_written():
    sizes = {"a": jax.ShapeDtypeStruct((100,), "float32"), "b": [jax.ShapeDtypeStruct((2, 5), "float32")]}
    assert keep_counts(0.29, sizes) == {"a": 71, "b": [8]}
    assert keep_counts(0, sizes) == {"a": 100, "b": [10]} and keep_counts(0.999, sizes) == {"a": 1, "b": [1]}
    big = jax.ShapeDtypeStruct((4_718_592,), "float32")  # in float32, p n is wrong by up to a quarter
    assert keep_counts(0.9, big) == 471_860


# Noise.

NOISES = {"gaussian": add_gaussian_noise, "laplacian": add_laplacian_noise}
ZEROS = {"a": jnp.zeros((100, 100)), "b": jnp.zeros((100, 100)), "c": jnp.zeros(3)}


@pytest.mark.parametrize("name", NOISES)
def test_no_noise_is_the_identity(name):
    gradients = {"a": numbers(5), "b": numbers(2, 3)}
    for none in (NOISES[name](0.0, jax.random.key(0)), add_relative_noise(name, 0.0, jax.random.key(0))):
        jax.tree.map(np.testing.assert_array_equal, send(none, gradients), gradients)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_noise_refuses(name, value):
    for make_noise in (NOISES[name], lambda value, key: add_relative_noise(name, value, key)):
        with pytest.raises(InputError, match=f"={value}: expected a number that is 0 or above"):
            make_noise(value, jax.random.key(0))


def assert_law(name, scale, noise):
    """Chi-square: of the squares of normal numbers, and of twice the magnitudes of Laplacian ones, two degrees each."""
    noise = np.float64(noise).reshape(-1) / scale
    statistic, freedom = {
        "gaussian": (np.sum(noise**2), noise.size),
        "laplacian": (2 * np.sum(np.abs(noise)), 2 * noise.size),
    }[name]
    assert 1e-6 < stats.chi2.cdf(statistic, freedom) < 1 - 1e-6
    # Of that scale, and of that shape: six standard errors of the mean, and the fourth moment loosely.
    variance, kurtosis = {"gaussian": (1, 3), "laplacian": (2, 6)}[name]
    assert abs(noise.mean()) < 6 * np.sqrt(variance / noise.size)
    assert abs(np.mean(noise**4) / variance**2 - kurtosis) < 1.2


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("level", [1e-4, 0.3, 20.0])
def test_noise_has_the_scale_that_was_asked_for(name, level):
    sent = send(NOISES[name](level, jax.random.key(1)), ZEROS)
    for tensor in ("a", "b"):
        assert_law(name, level, sent[tensor])


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("relative", [0.1, 3.0])
def test_relative_noise_is_so_many_times_as_long_as_the_update(name, relative):
    gradients = {"a": 1e-3 * numbers(100, 100), "b": 5e-3 * numbers(150, 100, seed=1)}
    sent = send(add_relative_noise(name, relative, jax.random.key(1)), gradients)
    noise = jax.tree.map(jnp.subtract, sent, gradients)
    length = np.float64(optax.tree.norm(gradients))
    np.testing.assert_allclose(optax.tree.norm(noise), relative * length, rtol=0.05)
    scale = relative * length / np.sqrt({"gaussian": 1, "laplacian": 2}[name] * 25_000)
    for tensor in ("a", "b"):  # one scale for all tensors
        assert_law(name, scale, noise[tensor])
    np.testing.assert_allclose(estimate_scale(name, relative, sent), scale, rtol=0.05)


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_added_to_the_gradient(name):
    gradients = {tensor: zeros + 5 for tensor, zeros in ZEROS.items()}
    with_gradient, alone = (send(NOISES[name](0.1, jax.random.key(2)), tree) for tree in (gradients, ZEROS))
    for tensor, noise in alone.items():
        np.testing.assert_allclose(with_gradient[tensor], 5 + noise, rtol=1e-6)


def correlation(a, b) -> float:
    return np.corrcoef(np.asarray(a).reshape(-1), np.asarray(b).reshape(-1))[0, 1]


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_independent_between_tensors_keys_and_steps(name):
    transformation = NOISES[name](1.0, jax.random.key(3))
    first, state = transformation.update(ZEROS, transformation.init(ZEROS))
    second, state = transformation.update(ZEROS, state)
    third, _ = transformation.update(ZEROS, state)
    other = send(NOISES[name](1.0, jax.random.key(4)), ZEROS)
    drawn = [first["a"], first["b"], second["a"], third["a"], other["a"]]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert abs(correlation(a, b)) < 6 / np.sqrt(a.size)
    assert correlation(first["a"], first["a"]) > 0.99
    for later in (second["a"], third["a"]):  # the level does not decay
        np.testing.assert_allclose(later.std(), first["a"].std(), rtol=0.1)


@pytest.mark.parametrize("name", NOISES)
def test_the_same_key_gives_the_same_bits(name):
    first, again = (send(NOISES[name](1.0, jax.random.key(5)), ZEROS) for _ in range(2))
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


# Rounding.


def test_signs_are_signs():
    sent = send(send_signs(), {"a": jnp.array([-2.0, 0.0, 1e-30]), "b": jnp.float32(7)})
    np.testing.assert_array_equal(sent["a"], [-1, 0, 1])
    assert sent["b"] == 1


@pytest.mark.parametrize("levels", [1, 4, 255])
def test_stochastic_rounding_is_unbiased_and_bounded(levels):
    gradient, draws = numbers(50), 4000
    keys = jax.random.split(jax.random.key(0), draws)
    sent = jax.jit(jax.vmap(lambda key: send(quantize_stochastically(levels, key), gradient)))(keys)
    norm = np.linalg.norm(gradient)
    spacing, error = norm / levels, np.float64(sent) - np.float64(gradient)
    np.testing.assert_allclose(sent / spacing, np.round(sent / spacing), atol=1e-3)
    assert np.abs(error).max() < spacing * (1 + 1e-5)
    assert np.abs(error.mean(0)).max() < 6 * spacing / 2 / np.sqrt(draws)
    assert np.sum(error**2, axis=1).mean() <= min(50 / levels**2, np.sqrt(50) / levels) * norm**2
    widths = np.array([stochastic_width(one) for one in sent[:20]])
    assert np.all(widths >= spacing * (1 - 1e-5)) and np.any(widths < spacing * (1 + 1e-5))


@pytest.mark.parametrize("levels", [1, 4, 255])
def test_what_was_sent_tells_how_much_rounding_added(levels):
    gradient = numbers(5000)  # enough entries that one of them is sent as the first level
    sent = [send(quantize_stochastically(levels, jax.random.key(i)), gradient) for i in range(3)]
    scale = np.mean([stochastic_scale(levels, one) for one in sent])
    added = np.sqrt(np.mean([np.square(one - gradient) for one in sent]))
    np.testing.assert_allclose(scale, added, rtol=0.25)


def test_stochastic_rounding_of_nothing_is_nothing():
    sent = send(quantize_stochastically(4, jax.random.key(0)), {"a": jnp.zeros(5), "b": jnp.array([-3.0])})
    np.testing.assert_array_equal(sent["a"], 0)
    np.testing.assert_allclose(sent["b"], -3)  # a single entry is its own norm
    assert stochastic_width(sent)["a"] == np.inf


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_uniform_rounding_takes_the_nearest_value(bits):
    gradient = {"a": numbers(200), "b": jnp.zeros(3), "c": jnp.float32(-2)}
    sent = send(quantize_uniformly(bits), gradient)
    top = np.abs(gradient["a"]).max()
    grid = np.linspace(-top, top, 2**bits - 1)
    nearest = grid[np.abs(np.asarray(gradient["a"])[:, None] - grid).argmin(1)]
    np.testing.assert_allclose(sent["a"], nearest, atol=1e-6 * top)
    np.testing.assert_array_equal(sent["b"], 0)
    assert sent["c"] == -2
    width = uniform_width(bits, sent)
    np.testing.assert_allclose(width["a"], (grid[1] - grid[0]) / 2, rtol=1e-3)
    assert np.abs(sent["a"] - gradient["a"]).max() <= width["a"] * (1 + 1e-4)
    again = send(quantize_uniformly(bits), sent)
    np.testing.assert_allclose(again["a"], sent["a"], atol=1e-6 * top)


@pytest.mark.parametrize("bits", [1, 17, float("nan")])
def test_rounding_refuses(bits):
    with pytest.raises(InputError, match=f"^bits={bits}: expected a number in"):
        quantize_uniformly(bits)
    with pytest.raises(InputError, match="^levels=0: expected a number above 0$"):
        quantize_stochastically(0, jax.random.key(0))


# Clipping of the whole.


def test_clipping_shortens_and_never_lengthens():
    gradients = {"a": numbers(20), "b": numbers(3, 4, seed=1)}
    norm = float(optax.tree.norm(gradients))
    short = send(parse(f"clip:norm={norm / 2}"), gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / 2, rtol=1e-5), short, gradients)
    jax.tree.map(np.testing.assert_array_equal, send(parse(f"clip:norm={norm * 2}"), gradients), gradients)


# Composition.

A, B, C = parse("prune:p=0.5"), parse("gaussian:sigma=0.1"), parse("laplacian:scale=0.2")


def test_stages_come_in_the_order_in_which_they_are_written():
    gradient = {"w": numbers(100)}
    pruned_last = send(parse("gaussian:sigma=0.1 + prune:p=0.5"), gradient)["w"]
    noisy_last = send(parse("prune:p=0.5 + gaussian:sigma=0.1"), gradient)["w"]
    assert np.count_nonzero(pruned_last) == 50
    assert np.count_nonzero(noisy_last) == 100
    assert str(chain(A, B)) == "prune:p=0.5 + gaussian:sigma=0.1"


@pytest.mark.parametrize(
    "first, second, third",
    [
        (A, B, C),
        (C, parse("top_k:k=9"), parse("qsgd:levels=3")),
        (parse("quantize:bits=4"), parse("sign"), B),
        (parse("gaussian:relative=0.5"), parse("clip:norm=1"), parse("prune_global:p=0.4")),
    ],
)
def test_composition_is_associative_in_words_and_in_bits(first, second, third):
    left, right = chain(chain(first, second), third), chain(first, chain(second, third))
    assert left == right == chain(first, second, third) and hash(left) == hash(right)
    assert chain(first, second) != chain(second, first)
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


def test_every_row_is_a_function_of_its_parameters():
    for name in DEFENSES:
        assert name in dir(defenses) and getattr(defenses, name).args == (name,)
    from gi_jax.defenses import gaussian, prune

    assert chain(prune(p=0.5), gaussian(sigma=0.1)) == chain(A, B) == chain(make("prune", p=0.5), B)
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = defenses.prunes


@pytest.mark.parametrize("name", [name for name, entry in DEFENSES.items() if entry.first])
def test_what_starts_from_the_examples_comes_first(name):
    values = {"norm": 1.0} if name == "clip_per_example" else {"clip": 1.0, "sigma": 0.5}
    assert str(chain(make(name, **values), A)).endswith("+ prune:p=0.5")
    with pytest.raises(InputError, match=f"^defense '{name}' after 'prune': .*; expected it first$"):
        chain(A, make(name, **values))


def test_nothing_looks_at_private_pictures_after_a_private_gradient():
    private = make("dpsgd", clip=1.0, sigma=1.0)
    assert chain(private, A)
    with pytest.raises(
        InputError, match="^defense 'soteria' after 'dpsgd': it looks at the private pictures once more"
    ):
        chain(private, A, make("soteria", p=0.5))


# What they promise, and what an adversary knows.


def test_only_differential_privacy_has_an_epsilon():
    assert {name for name, entry in DEFENSES.items() if entry.kind == Kind.DP} == {"dpsgd"}
    (told,) = parse("dpsgd:clip=1,sigma=1,q=0.01,steps=100,delta=1e-5").words()
    assert "epsilon 0.718 (PLD; 1.21 by RDP) at delta 1e-05" in told and "100 steps" in told
    (asked,) = parse("dpsgd:clip=1,sigma=1").words()
    assert "give q, steps and delta" in asked and not any(letter.isdigit() for letter in asked)
    (none,) = parse("dpsgd:clip=1,sigma=0,q=0.01,steps=100,delta=1e-5").words()
    assert "nothing is proved" in none and "private" not in none and "epsilon" not in none
    for name, entry in DEFENSES.items():
        if entry.kind != Kind.DP:
            (words,) = parse(EXAMPLES[name]).words()
            assert words.startswith(f"{name} is a heuristic") and "epsilon" not in words
    assert len(chain(A, B).words()) == 2 and identity.words() == ()


HALF = {"head": {"kernel": 0.5, "bias": 0.5}}
SENT = {"head": {"kernel": jnp.array([[4.0, -2.0]]), "bias": jnp.array([0.0, 0.5])}}


@pytest.mark.parametrize(
    "text, facts",
    [
        ("none", ()),
        ("prune:p=0.5", (Zeroed(bound={"head": {"kernel": 2.0, "bias": 0.5}}, kept=HALF),)),
        ("prune:p=0.9", (Zeroed(bound={"head": {"kernel": 2.0, "bias": 0.5}}, kept=HALF),)),  # one of two stays
        ("prune_global:p=0.5", (Zeroed(bound={"head": {"kernel": 0.5, "bias": 0.5}}, kept=0.5),)),
        ("top_k:k=3", (Zeroed(bound={"head": {"kernel": 0.5, "bias": 0.5}}, kept=0.75),)),
        ("prune:p=0 + prune_global:p=0 + gaussian:sigma=0 + laplacian:scale=0 + soteria:p=0", ()),
        ("gaussian:sigma=0.1", (Noisy(distribution="gaussian", scale=0.1),)),
        ("laplacian:scale=0.1", (Noisy(distribution="laplacian", scale=0.1),)),
        ("gaussian:relative=0", ()),
        ("clip:norm=2", (Clipped(bound=2.0),)),
        ("clip_per_example:norm=2", (Clipped(bound=2.0),)),
        ("dpsgd:clip=2,sigma=0.5", (Clipped(bound=2.0), Noisy(distribution="gaussian", scale=0.25))),
        ("dpsgd:clip=2,sigma=0", (Clipped(bound=2.0),)),
        ("sign", (Signs(),)),
        ("soteria:p=0.5", (Zeroed(tensors=("head/kernel",), kept=0.5),)),
        ("clip:norm=3 + gaussian:sigma=1 + sign", (Clipped(bound=3), Noisy(distribution="gaussian", scale=1), Signs())),
    ],
)
def test_what_an_adversary_knows(text, facts):
    assert parse(text).known(SENT, 4) == facts


@pytest.mark.parametrize("text", ["prune:p=0.7", "prune_global:p=0.7", "top_k:k=20"])
def test_nothing_that_was_dropped_is_above_the_bound(text):
    gradients = {"a": numbers(50), "b": 0.1 * numbers(7, 3, seed=1)}
    sent = send(parse(text), gradients)
    (fact,) = parse(text).known(sent, 4)
    for gradient, left, bound in zip(*map(jax.tree.leaves, (gradients, sent, fact.bound)), strict=True):
        dropped = np.abs(gradient)[np.asarray(left) == 0]
        assert dropped.size and dropped.max() <= bound
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    (fact,) = parse(text).known(zeros, 4)
    assert jax.tree.leaves(fact.bound) == [np.inf, np.inf]


def test_what_an_adversary_reads_off_what_was_sent():
    (levels,) = parse("qsgd:levels=2").known({"a": jnp.array([3.0, -6.0, 3.0, 0.0])}, 4)
    assert levels.spacing == {"a": 3.0}
    np.testing.assert_allclose(levels.scale, np.sqrt((54 - 36) / 4))  # two spacings of 3 are the norm
    (steps,) = parse("quantize:bits=3").known(SENT, 4)
    assert isinstance(steps, Quantized)
    np.testing.assert_allclose(steps.width["head"]["kernel"], 4 / 3 / 2)
    (noise,) = parse("laplacian:relative=1").known(SENT, 4)
    np.testing.assert_allclose(noise.scale, np.sqrt(20.25 / 2 / (2 * 4)))


@pytest.mark.parametrize(
    "later", ["prune:p=0.5", "prune_global:p=0.5", "top_k:k=20", "clip:norm=0.1", "quantize:bits=8"]
)
def test_the_width_of_rounding_holds_after_what_keeps_the_largest_entry(later):
    chained, gradients = parse(f"quantize:bits=4 + {later}"), {"a": numbers(40), "b": numbers(9, seed=1)}
    sent = send(chained, gradients)
    widths = [fact.width for fact in chained.known(sent, 1) if isinstance(fact, Quantized)]
    shrunk = max(np.abs(sent["a"])) / max(np.abs(gradients["a"]))
    for name, tensor in sent.items():
        moved = np.abs(tensor - shrunk * gradients[name])[tensor != 0]
        assert moved.max() <= 1.001 * sum(width[name] for width in widths)


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
        ("sign", (("sign", ()),)),
        ("top_k:k=1e3", (("top_k", (("k", 1000),)),)),
        ("dpsgd:sigma=1,clip=2", (("dpsgd", (("clip", 2.0), ("sigma", 1.0))),)),
    ],
)
def test_parse(text, stages):
    assert parse(text).stages == stages


ALL = ", ".join(DEFENSES)


@pytest.mark.parametrize(
    "text, message",
    [
        ("prun:p=0.9", f"unknown defense 'prun': did you mean 'prune'? choose from {ALL}"),
        ("prune", "defense 'prune' needs p (fraction set to zero in each tensor, in [0, 1)): try prune:p=..."),
        ("gaussian:", "gaussian takes exactly one of sigma, relative; got none"),
        ("laplacian:scale=1,relative=1", "laplacian takes exactly one of scale, relative; got scale and relative"),
        ("laplacian:relative=-1", "relative=-1.0: expected a number that is 0 or above"),
        ("sign:p=1", "unknown parameter of defense 'sign' 'p': there is none"),
        ("top_k:k=2.5", "k=2.5: expected a whole number"),
        ("top_k:k=nan", "k=nan: expected a whole number"),
        ("top_k:k=0", "k=0: expected a number above 0"),
        ("qsgd:levels=-4", "levels=-4: expected a number above 0"),
        ("quantize:bits=1", "bits=1: expected a number in [2, 17)"),
        ("clip:norm=0", "norm=0.0: expected a number above 0"),
        ("clip_per_example:norm=inf", "norm=inf: expected a number above 0"),
        ("soteria:p=1", "p=1.0: expected a number in [0, 1)"),
        ("dpsgd:clip=0,sigma=1", "clip=0.0: expected a number above 0"),
        ("dpsgd:clip=1,sigma=-1", "sigma=-1.0: expected a number that is 0 or above"),
        (
            "dpsgd:clip=1,sigma=1,q=0.1",
            "dpsgd: q, steps and delta describe the whole training; expected all three, or none",
        ),
        (
            "dpsgd:clip=1,sigma=1,q=2,steps=10,delta=1e-5",
            "sampling probability 2.0: expected a number in (0, 1]",
        ),
        (
            "dpsgd:clip=1,sigma=1,q=0.1,steps=0,delta=1e-5",
            "steps=0: expected a number above 0",
        ),
        (
            "dpsgd:clip=1,sigma=1,q=0.1,steps=10,delta=1",
            "delta=1.0: expected a number in (0, 1), such as 1e-5",
        ),
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
        (
            "mixup:k=2 + dpsgd:clip=1,sigma=1",
            "defense 'dpsgd' after 'mixup': a picture is in several mixtures, so a bound for one mixture is none for a "
            "picture; expected one or the other",
        ),
        (
            "quantize:bits=4 + clip:norm=1 + gaussian:sigma=1",
            "defense 'quantize' before 'gaussian': what an adversary can say of it is read off what was sent, which "
            "'gaussian' changes; expected it last",
        ),
        (
            "quantize:bits=4 + soteria:p=0.5",
            "defense 'quantize' before 'soteria': what an adversary can say of it is read off what was sent, which "
            "'soteria' changes; expected it last",
        ),
        (
            "prune:p=0.5 + qsgd:levels=4 + gaussian:sigma=1",
            "defense 'qsgd' before 'gaussian': what an adversary can say of it is read off what was sent, which "
            "'gaussian' changes; expected it last",
        ),
        (
            "gaussian:relative=1 + prune:p=0.5",
            "defense 'gaussian' before 'prune': what an adversary can say of it is read off what was sent, which "
            "'prune' changes; expected it last",
        ),
        ("prune:p=0.9 + none", f"unknown defense 'none': choose from {ALL}"),
        ("prune:p=0.9 +", f"unknown defense '': choose from {ALL}"),
        ("", f"unknown defense '': choose from {ALL}"),
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
        "laplacian:relative=1 + clip:norm=2",  # of noise that was scaled down nothing is known anyway
        "qsgd:levels=4 + sign",
        "sign + top_k:k=123456789 + prune:p=0.5 + qsgd:levels=16",
        "quantize:bits=8 + top_k:k=123456789 + clip:norm=2 + sign + gaussian:sigma=1",
        "dpsgd:clip=1,sigma=1.1,q=0.01,steps=1234567,delta=1e-05 + gaussian:relative=0.1",
    ],
)
def test_what_is_written_is_what_is_meant(text):
    assert parse(str(parse(text))) == parse(text)
    assert str(parse(text)) == text


EXAMPLES = {
    "prune": "prune:p=0.5",
    "prune_global": "prune_global:p=0.5",
    "top_k": "top_k:k=5",
    "gaussian": "gaussian:sigma=0.5",
    "laplacian": "laplacian:relative=0.5",
    "clip": "clip:norm=0.001",
    "clip_per_example": "clip_per_example:norm=0.001",
    "dpsgd": "dpsgd:clip=1,sigma=1.5,q=0.01,steps=1000000,delta=1e-05",
    "sign": "sign",
    "qsgd": "qsgd:levels=4",
    "quantize": "quantize:bits=4",
    "soteria": "soteria:p=0.5",
    "mixup": "mixup:k=2",
    "intra_instahide": "intra_instahide:k=2",
    "inter_instahide": "inter_instahide:k=3,public_sum=0.2",
}
VICTIM = toy_victim(HEADED)


@pytest.mark.parametrize("name", DEFENSES)
def test_every_entry_of_the_table_can_be_used(name):
    entry, text = DEFENSES[name], EXAMPLES[name]
    assert entry.about and entry.paper and all(parameter.about for parameter in entry.parameters.values())
    assert str(parse(text)) == text
    victim = VICTIM
    if entry.mixing is not None:
        public = VICTIM.images[:, ::-1] if name == "inter_instahide" else None
        victim, _ = encode_victim(parse(text).mixing, jax.random.key(0), VICTIM, public)
    plain, defended = toy_problem(VICTIM, RUNNING), toy_problem(victim, RUNNING, parse(text))
    assert leaf_names(defended.observed) == leaf_names(plain.observed)
    assert relative_error(defended.observed, plain.observed) > 1e-3
    assert defended.known and plain.known == ()
    check_problem(defended)


def test_pictures_are_encoded_first_and_once():
    encoded = parse("intra_instahide:k=4 + clip_per_example:norm=1")  # which has to be the first on the gradient only
    assert encoded.mixing == Mixing(k=4, flipped=True) and parse("prune:p=0.5").mixing is None
    assert encoded.known(SENT, 2)[0] == Mixed(k=4, flipped=True)
    assert chain(make("mixup", k=4), A).mixing == Mixing(k=4) and identity.mixing is None
    for text in ("prune:p=0.5 + mixup:k=4", "mixup:k=4 + mixup:k=4"):
        with pytest.raises(InputError, match="pictures are encoded once"):
            parse(text)
    with pytest.raises(InputError, match="after 'prune'"):
        parse("mixup:k=4 + prune:p=0.5 + clip_per_example:norm=1")


# Functions among the named ones.


HALVE = FunctionDefense(lambda key: optax.scale(0.5), lambda sent: (Clipped(bound=0.5),))
NOISE = FunctionDefense(lambda key: add_gaussian_noise(0.1, key))


def test_functions_chain_with_named_defenses():
    gradient = toy_problem(VICTIM, RUNNING).observed
    halved = jax.tree.map(lambda leaf: 0.5 * leaf, send(A, gradient))
    for both in (chain(HALVE, A), chain(A, HALVE), chain(identity, chain(A, identity), HALVE)):
        jax.tree.map(np.testing.assert_array_equal, send(both, gradient), halved)
        kinds = [type(fact) for fact in both.known(halved, 2)]
        assert sorted(kinds, key=str) == [Clipped, Zeroed] and (kinds[0] is Clipped) == (both.parts[0] is HALVE)
    twice = chain(NOISE, chain(NOISE, A))
    assert twice == chain(chain(NOISE, NOISE), A) and hash(twice) == hash(chain(NOISE, NOISE, A))
    noise = jax.tree.map(lambda a, b: a - b, send(twice, gradient), gradient)["head"]["kernel"]
    np.testing.assert_allclose(np.std(noise[send(twice, gradient)["head"]["kernel"] != 0]), 0.1 * 2**0.5, rtol=0.5)


def test_functions_chain_after_what_looks_at_the_client():
    clip = parse("clip_per_example:norm=1")
    chained, alone = (toy_problem(VICTIM, RUNNING, defense) for defense in (chain(clip, HALVE), clip))
    assert relative_error(jax.tree.map(lambda leaf: 2 * leaf, chained.observed), alone.observed) < 1e-5
    mixed = chain(make("mixup", k=2), HALVE)
    assert mixed.mixing == Mixing(k=2) and chain(HALVE, A).mixing is None


@pytest.mark.parametrize(
    "defenses, message",
    [
        ((A, optax.clip(1.0)), "in a chain: expected defenses; wrap an optax transformation"),
        ((HALVE, "prune:p=0.9"), r"str in a chain: expected defenses; try gi_jax.defenses.parse\('prune:p=0.9'\)"),
        ((HALVE, make("clip_per_example", norm=1.0)), "defense 'clip_per_example' after another"),
        ((HALVE, make("mixup", k=2)), "defense 'mixup' after another"),
        ((make("qsgd", levels=4), HALVE), "defense 'qsgd' before 'a function': what an adversary can say"),
        ((make("dpsgd", clip=1.0, sigma=1.0), HALVE, make("soteria", p=0.5)), "'soteria' after 'dpsgd': it looks at"),
    ],
)
def test_chains_that_cannot_be(defenses, message):
    with pytest.raises(InputError, match=message):
        chain(*defenses)


@pytest.mark.parametrize(
    "make_defense, message",
    [
        (
            lambda: FunctionDefense(lambda: optax.scale(0.5)),
            "make of a defense: expected a function of one argument, key",
        ),
        (lambda: FunctionDefense(optax.scale(0.5)), "make of a defense: expected a function of one argument, key"),
        (lambda: FunctionDefense(HALVE.make, lambda: ()), "facts of a defense: expected .* one argument, sent; try"),
        (lambda: FunctionDefense(lambda key: jnp.sign)(jax.random.key(0)), "a function makes a .*: expected an optax"),
        (lambda: defenses.prune(0.9), r"'prune' with a bare 0.9: expected parameters by name; try prune\(p=0.9\)"),
        (lambda: defenses.sign(1), "'sign' with a bare 1: expected parameters by name$"),
    ],
)
def test_functions_that_are_no_defense(make_defense, message):
    with pytest.raises(InputError, match=message):
        make_defense()


def test_functions_are_written_by_their_names():
    def halve(key):
        return optax.scale(0.5)

    assert str(chain(FunctionDefense(halve), A, HALVE)) == f"halve + {A} + a function"


# Sweeps.


def sweep(make_transformation, values, facts=lambda sent: ()):
    """Problems of as many defenses as there are values, from one program."""

    def see(value):
        defense = FunctionDefense(lambda key: make_transformation(value, key), facts)
        return observe(VICTIM, RUNNING, defense, jax.random.key(3))

    one = jax.eval_shape(see, jax.tree.map(lambda leaf: leaf[0], values))
    return jax.jit(jax.vmap(see, out_axes=victim_axes(one)), compiler_options=QUICK)(values)


RATIOS = [0, 0.1, 0.2, 0.29, 0.3, 0.4, 0.5, 0.57, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
SCALES = np.geomspace(1e-4, 1, 16, dtype=np.float32)


def test_sixteen_ratios_are_one_launch():
    plain = toy_problem(VICTIM, RUNNING).observed
    counts = jax.tree.map(lambda *each: jnp.array(each), *(keep_counts(p, plain) for p in RATIOS))
    problems, compiled = launch(
        lambda: sweep(lambda counts, key: keep_largest(counts), counts, lambda sent: (Zeroed(),))
    )
    assert compiled[0] == "jit(see)" and len(set(compiled)) == len(compiled)
    for number, p in enumerate(RATIOS):
        observed = jax.tree.map(lambda leaf, number=number: leaf[number], problems.observed)
        alone = send(prune_by_magnitude(p), plain)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a == 0, b == 0), observed, alone)
        assert relative_error(observed, alone) < 1e-5


@pytest.mark.parametrize("make_noise", [add_gaussian_noise, add_laplacian_noise])
def test_sixteen_noise_scales_are_one_launch(make_noise):
    problems, compiled = launch(lambda: sweep(make_noise, SCALES))
    assert compiled[0] == "jit(see)" and len(set(compiled)) == len(compiled)
    plain = toy_problem(VICTIM, RUNNING).observed
    noise = jax.tree.map(lambda leaf, mean: leaf - mean[None], problems.observed, plain)
    for leaf in jax.tree.leaves(noise):  # the same draw in every lane, as long as the scale says
        units = leaf / SCALES.reshape(-1, *(1,) * (leaf.ndim - 1))
        np.testing.assert_allclose(units[8:], jnp.broadcast_to(units[-1], units[8:].shape), rtol=1e-2, atol=1e-2)


def launch(make_problems):
    """The problems, and the names of the programs it takes to make and to attack them."""
    parts = {"matching": GradientMatching(), "tv": TotalVariation(weight=0.01)}
    attack = GradientDescent(objective=Objective(parts=parts), learning_rate=0.1, num_steps=3)
    before = len(COMPILED)
    problems = make_problems()
    states = attacks.start(attack, problems, attacks.lane_keys(jax.random.key(0), range(16), 1))
    (*_, (_, progress)) = attacks.advance(attack, problems, states)
    assert progress.loss.shape == (16, 1, 1) and np.all(np.isfinite(progress.loss))
    return problems, [name for name in COMPILED[before:] if name in ("jit(see)", "jit(_init)", "jit(_advance)")]
