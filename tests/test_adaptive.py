"""Adaptive attackers: what each fact makes of the likelihood, in which order facts are read, and that it pays."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PLAIN, QUICK, as_float64, enable_x64, random_like, toy_problem, toy_victim, tree_dot, truth

from gi_jax import attacks, defenses
from gi_jax.attacks import ADAPTATIONS, GradientDescent, adam, adapt, adaptation_words, reconstruct
from gi_jax.checks import InputError
from gi_jax.defenses.pruning import largest, smallest_kept
from gi_jax.metrics import psnr
from gi_jax.objectives import (
    Candidate,
    GradientLikelihood,
    GradientMatching,
    NoisePrior,
    Objective,
    TotalVariation,
    total_variation,
)
from gi_jax.objectives.channel import READ, read
from gi_jax.objectives.likelihood import energy, fraction_seen, seen, sign_disagreement
from gi_jax.threat import RUNNING, Clipped, Fact, Mixed, Noisy, Quantized, Rounded, Signs, Update, Zeroed

SENT = {"b": jnp.array([0.0, 1.0]), "w": jnp.array([[3.0, 0.0]])}
OTHER = {"b": jnp.array([1.0, 3.0]), "w": jnp.array([[-1.0, 2.0]])}
BOUND = {"b": 1.0, "w": 3.0}
ROUNDED = Rounded(spacing={"b": 2.0, "w": 10.0}, scale=0.5)

GAUSSIAN = Noisy(distribution="gaussian", scale=0.5)
LAPLACIAN = Noisy(distribution="laplacian", scale=0.5)


@pytest.fixture(scope="module")
def problem():
    return toy_problem(toy_victim(PLAIN), RUNNING)


def under(problem, *facts, sent=SENT):
    """The problem in which this was sent, and these facts are known."""
    return dataclasses.replace(problem, observed=sent, known=facts)


def likelihood(problem, imagined):
    return float(GradientLikelihood()(problem, None, Update(imagined, {})))


def with_spacing(numbers):
    return Rounded(spacing=numbers, scale=0.5)


def weighted(kept, bounded=False, again=False):
    """Sum of w (a - b)^2 / 2 + (1 - w) excess^2 / 2, for P(kept | b) = w under noise of variance 0.25, written out."""
    total = 0.0
    for name, sent in SENT.items():
        b, a = np.ravel(np.float64(sent)), np.ravel(np.float64(OTHER[name]))
        size = max(np.mean(b**2) - 0.25, 0) / kept
        density = lambda variance: np.exp(-(b**2) / (2 * variance)) / np.sqrt(variance)  # noqa: E731, B023
        w = kept * density(0.25 + size) / (kept * density(0.25 + size) + (1 - kept) * density(0.25))
        bound = min(np.abs(b[w > (1 - w) * 10 * b.size]), default=np.inf) if bounded else np.inf
        if again:
            w = w * (b != 0)
        total += np.sum(w * (a - b) ** 2 / 2 + (1 - w) * np.maximum(np.abs(a) - bound, 0) ** 2 / 2)
    return total


# Known answers. SENT has the squared length 10, OTHER differs from it by (1, 2) and (-4, 2).


@pytest.mark.parametrize(
    "facts, expected",
    [
        ((), 25 / 20),
        ((GAUSSIAN,), 25 / (2 * (10 - 4 * 0.25))),
        ((LAPLACIAN,), 2 * 0.5 * 9 / (10 - 4 * 0.5)),
        ((GAUSSIAN, LAPLACIAN), 25 / (2 * (10 - 4 * 0.75))),
        ((GAUSSIAN, GAUSSIAN), 25 / (2 * (10 - 4 * 0.5))),
        ((Zeroed(),), (4 + 16) / 20),
        ((Zeroed(bound={"b": 0.5, "w": 1.5}),), (0.25 + 4 + 16 + 0.25) / 20),
        ((Zeroed(bound=BOUND),), (4 + 16) / 20),
        ((Zeroed(tensors=("w",)),), (1 + 4 + 16) / 20),
        ((Zeroed(tensors=("head",)),), 25 / 20),
        ((Zeroed(kept=1.0), GAUSSIAN), 25 / (2 * (10 - 4 * 0.25))),
        ((Zeroed(kept=0.0), GAUSSIAN), 0),  # noise alone
        ((Zeroed(tensors=("w",), kept=0.0), GAUSSIAN), 5 / (2 * (10 - 4 * 0.25))),
        ((Zeroed(kept={"b": 1.0, "w": 0.0}), GAUSSIAN), 5 / (2 * (10 - 4 * 0.25))),
        ((Zeroed(kept={"b": 0.3, "w": 0.3}), GAUSSIAN), weighted(0.3) / (10 - 4 * 0.25)),
        ((Zeroed(kept=0.3), GAUSSIAN), weighted(0.3) / (10 - 4 * 0.25)),
        ((Zeroed(kept=0.3, bound=BOUND), GAUSSIAN), weighted(0.3, bounded=True) / (10 - 4 * 0.25)),
        ((Zeroed(kept=0.3), GAUSSIAN, Zeroed(kept=0.5)), weighted(0.3, again=True) / (10 - 2 * 0.25)),
        # Selections by magnitude are nested; others are not.
        ((Zeroed(kept=0.3, bound=BOUND), Zeroed(kept=0.5, bound=BOUND), GAUSSIAN), weighted(0.3, bounded=True) / 9),
        ((Zeroed(kept=0.5), Zeroed(kept=0.6), GAUSSIAN), weighted(0.3) / 9),
        ((GAUSSIAN, Zeroed()), (4 + 16) / (2 * (10 - 2 * 0.25))),
        ((Quantized(width={"b": 1.0, "w": 3.0}),), (1 + 1) / 20),
        ((Quantized(width={"b": 0.5, "w": 1.0}), Quantized(width={"b": 0.5, "w": 2.0})), (1 + 1) / 20),
        ((Quantized(width={"b": 0.5, "w": 1.0}), Zeroed(bound={"b": 0.1, "w": 9.0})), (0.16 + 2.25 + 9) / 20),
        # Shares 0.5, 1 (on the tangent at 0.9), 0.4 and 0.2 of the spacing.
        ((ROUNDED,), 0.25 * (1 - np.log(0.5 * 0.1 * 0.6 * 0.8)) / (10 - 4 * 0.25)),
        ((Rounded(spacing={"b": 0.2, "w": 0.5}, scale=0.5),), 25 / (2 * (10 - 4 * 0.25))),
        ((ROUNDED, GAUSSIAN), 25 / (2 * (10 - 4 * 0.5))),
        ((Zeroed(bound=BOUND), ROUNDED), 0.25 * (1 - np.log(0.1 * 0.6)) / (10 - 2 * 0.25)),
        ((Clipped(bound=100.0),), 2 * 10 * (1 - np.sqrt(1 / 10) * 0) / 20),
        ((Signs(),), (0 + 1 / 3) / 2),
        ((Mixed(k=4),), 25 / 20),
    ],
)
def test_known_answers(problem, facts, expected):
    np.testing.assert_allclose(likelihood(under(problem, *facts), OTHER), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda x: Zeroed(bound=x), lambda x: Zeroed(kept=x), lambda x: Quantized(width=x), with_spacing]
)
def test_a_scalar_holds_for_all_tensors(problem, make):
    found, expected = (
        likelihood(under(problem, make(numbers), GAUSSIAN), OTHER) for numbers in (0.4, {"b": 0.4, "w": 0.4})
    )
    assert found == expected


def test_what_is_imagined_is_clipped_to_what_was_sent(problem):
    clipped = under(problem, Clipped(bound=100.0))
    times = lambda factor: jax.tree.map(lambda leaf: factor * leaf, SENT)  # noqa: E731
    for factor in (1.0, 1.5, 1e6):
        np.testing.assert_allclose(likelihood(clipped, times(factor)), 0, atol=1e-6)
    np.testing.assert_allclose(likelihood(clipped, times(0.5)), 0.25 / 2, rtol=1e-5)
    np.testing.assert_allclose(likelihood(clipped, times(-7.0)), 4 / 2, rtol=1e-5)


@pytest.mark.parametrize(
    "imagined, expected",
    [
        ({"b": [5.0, 7.0], "w": [[0.1, -9.0]]}, 0),  # a sent 0 agrees with anything
        ({"b": [5.0, -5.0], "w": [[1.0, 0.0]]}, (0.5 + 0) / 2),
        ({"b": [0.0, 0.0], "w": [[-1.0, 1.0]]}, (0 + 0.5) / 2),
    ],
)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_signs_know_no_length(imagined, expected, scale):
    imagined = jax.tree.map(lambda x: scale * jnp.float32(x), imagined, is_leaf=lambda x: isinstance(x, list))
    np.testing.assert_allclose(sign_disagreement(imagined, SENT), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [(), (GAUSSIAN,), (LAPLACIAN,), (Zeroed(),), (Clipped(bound=1.0),), (Signs(),)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_likelihood_hides_a_number_that_is_not_finite(problem, kind, bad):
    spoiled = {"b": OTHER["b"], "w": OTHER["w"].at[0, 0].set(bad)}
    assert not np.isfinite(likelihood(under(problem, *kind), spoiled))


@pytest.mark.parametrize("facts", [(), (Zeroed(),), (Clipped(bound=1.0),), (Signs(),), (Zeroed(), GAUSSIAN)])
def test_an_update_of_zeros_is_finite(problem, facts):
    zeros = jax.tree.map(jnp.zeros_like, SENT)
    assert np.isfinite(likelihood(under(problem, *facts, sent=zeros), OTHER))
    slope = jax.grad(lambda g: GradientLikelihood()(under(problem, *facts), None, Update(g, {})))(zeros)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


# At the truth.


def noise(sent, seed=5):
    return random_like(sent, seed)


def pruned(sent):
    return jax.tree.map(lambda leaf: jnp.where(jnp.abs(leaf) >= jnp.median(jnp.abs(leaf)), leaf, 0.0), sent)


def rounded(sent):
    return jax.tree.map(lambda leaf: 0.01 * jnp.round(leaf / 0.01), sent)


EXACT = {
    "nothing": (lambda g: g, lambda sent: ()),
    "pruned": (pruned, lambda sent: (Zeroed(bound=smallest_kept(sent)),)),
    "some dropped": (lambda g: {**g, "w2": g["w2"].at[3].set(0)}, lambda sent: (Zeroed(tensors=("w2",)),)),
    "rounded": (rounded, lambda sent: (Quantized(width=jax.tree.map(lambda _: 0.005, sent)),)),
    "clipped": (lambda g: jax.tree.map(lambda x: 0.3 * x, g), lambda sent: (Clipped(bound=1e3),)),
    "signs": (lambda g: jax.tree.map(jnp.sign, g), lambda sent: (Signs(),)),
    "pruned and rounded": (
        lambda g: rounded(pruned(g)),
        lambda sent: (Zeroed(bound=smallest_kept(sent)), Quantized(width=jax.tree.map(lambda _: 0.005, sent))),
    ),
    "pruned and clipped": (
        lambda g: jax.tree.map(lambda x: 0.3 * x, pruned(g)),
        lambda sent: (Zeroed(bound=smallest_kept(sent)), Clipped(bound=1e3)),
    ),
}


@pytest.fixture(scope="module")
def gradient(problem):
    return problem.observed


@pytest.mark.parametrize("defense", EXACT)
def test_the_truth_costs_nothing_without_noise(problem, gradient, defense):
    send, facts = EXACT[defense]
    sent = send(gradient)
    known = under(problem, *facts(sent), sent=sent)
    np.testing.assert_allclose(likelihood(known, gradient), 0, atol=1e-6)
    assert likelihood(known, jax.tree.map(lambda a, b: a + b, gradient, noise(gradient))) > 0.05


@pytest.mark.parametrize("fact", [GAUSSIAN, LAPLACIAN])
def test_under_noise_the_truth_beats_what_is_away_from_it(problem, gradient, fact):
    # Ten thousand entries: what noise adds to the loss is certain, to a percent.
    wide = {"w": jnp.float32(np.random.default_rng(0).standard_normal(10_000))}
    draw = {"gaussian": jax.random.normal, "laplacian": jax.random.laplace}[fact.distribution]
    sent = {"w": wide["w"] + 0.5 * draw(jax.random.key(1), (10_000,))}
    known = under(problem, fact, sent=sent)
    at = [likelihood(known, {"w": factor * wide["w"]}) for factor in (0.8, 1.0, 1.2)]
    assert at[1] < min(at[0], at[2])
    np.testing.assert_allclose(energy(read(known), sent), jnp.vdot(wide["w"], wide["w"]), rtol=0.05)
    expected = {"gaussian": 0.25 / 2, "laplacian": 2 * 0.5 * 0.5}[fact.distribution]
    np.testing.assert_allclose(at[1], expected, rtol=0.1)


def test_under_random_rounding_the_truth_beats_what_is_away_from_it(problem):
    wide = {"w": jnp.float32(np.random.default_rng(0).standard_normal(10_000))}
    rounding = defenses.parse("qsgd:levels=20")
    sent, _ = rounding(jax.random.key(1)).update(wide, rounding(jax.random.key(1)).init(wide))
    known = under(problem, *rounding.known(sent, 1), sent=sent)
    at = [likelihood(known, {"w": factor * wide["w"]}) for factor in (0.8, 1.0, 1.2)]
    assert at[1] < min(at[0], at[2])
    np.testing.assert_allclose(energy(read(known), sent), jnp.vdot(wide["w"], wide["w"]), rtol=0.05)


DIFFERENTIATED = {
    "gaussian": (GAUSSIAN,),
    "laplacian": (LAPLACIAN,),
    "zeroed": (Zeroed(tensors=("w1",)),),
    "clipped": (Clipped(bound=1e3),),
    "clipped and noisy": (Clipped(bound=1e3), GAUSSIAN),
    "hidden": (Zeroed(kept=0.4), GAUSSIAN),
    "hidden, Laplacian": (Zeroed(tensors=("w1",)), LAPLACIAN),
    "signs": (Signs(),),
}


@pytest.mark.parametrize("facts", [*DIFFERENTIATED, "quantized", "randomly rounded", "bounded"])
def test_derivatives_agree_with_finite_differences(facts):
    victim = toy_victim(PLAIN)
    with enable_x64(True):
        problem = as_float64(toy_problem(victim, RUNNING))
        every = lambda value: jax.tree.map(lambda _: value, problem.observed)  # noqa: E731
        more = {
            "quantized": (Quantized(width=every(0.01)),),
            "randomly rounded": (Rounded(spacing=every(5.0), scale=0.01),),
            "bounded": (Zeroed(bound=every(0.01)),),
        }
        known = dataclasses.replace(problem, observed=pruned(problem.observed), known=(DIFFERENTIATED | more)[facts])
        objective = Objective(parts={"matching": GradientLikelihood()})
        loss = lambda x: objective(known, Candidate(x))[0]  # noqa: E731
        value, slope = (jax.jit(function, compiler_options=QUICK) for function in (loss, jax.grad(loss)))
        x, along = (as_float64(random_like(truth(victim), seed)) for seed in (1, 2))
        step = 1e-6
        expected = (value(x + step * along) - value(x - step * along)) / (2 * step)
        found = tree_dot(slope(x), along)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


# The order of facts.


def test_noise_before_clipping_or_signs_is_forgotten_and_noise_after_it_counts(problem):
    for rescaling in (Clipped(bound=1.0), Signs()):
        forgotten = read(under(problem, Zeroed(), GAUSSIAN, rescaling))
        assert (forgotten.law, forgotten.variance, forgotten.hidden) == (None, 0.0, {})
        channel = read(under(problem, rescaling, GAUSSIAN))
        assert channel.law == "gaussian" and channel.variance == 0.25
    assert read(under(problem, Clipped(bound=2.0), Clipped(bound=1.0))).norm == 1.0
    assert read(under(problem, Clipped(bound=1.0), Clipped(bound=2.0))).norm == 1.0


def test_noise_on_top_hides_zeros_and_noise_below_does_not(problem):
    below, above = (read(under(problem, *facts)) for facts in ((GAUSSIAN, Zeroed()), (Zeroed(kept=0.3), GAUSSIAN)))
    np.testing.assert_allclose([fraction_seen(below, SENT), fraction_seen(above, SENT)], [2 / 4, 0.3], rtol=1e-6)
    assert not below.hidden and not above.bounds
    again = read(under(problem, Zeroed(kept=0.3), GAUSSIAN, Zeroed(tensors=("b",), kept=0.5), LAPLACIAN))
    np.testing.assert_allclose(again.hidden["w"], (0.3, 0.75, False), rtol=1e-6)
    np.testing.assert_allclose(again.hidden["b"], (0.15, 0.5, False), rtol=1e-6)
    assert read(under(problem, Zeroed(bound=BOUND), GAUSSIAN)).hidden["b"].bounded
    assert read(under(problem, GAUSSIAN)).hidden == {}
    rounded = read(under(problem, Zeroed(kept=0.3), GAUSSIAN, ROUNDED))
    np.testing.assert_allclose(rounded.hidden["w"], (0.3, 0.5, False), rtol=1e-6)


def test_random_rounding_of_hidden_zeros_is_no_sign_that_they_were_kept(problem):
    wide = {"w": jnp.float32(np.random.default_rng(0).standard_normal(10_000))}
    defense = defenses.parse("prune:p=0.9 + gaussian:sigma=0.01 + qsgd:levels=1000")
    sent, _ = defense(jax.random.key(1)).update(wide, defense(jax.random.key(1)).init(wide))
    kept = np.asarray(largest(wide["w"], 1000))
    certain = np.asarray(seen(read(under(problem, *defense.known(sent, 1), sent=sent)), sent)["w"])
    assert certain[kept].min() > 0.9 and certain[~kept].mean() < 0.05


@pytest.mark.parametrize("law", ["gaussian", "laplacian"])
def test_hidden_zeros_show_themselves_where_the_noise_is_small(problem, law):
    wanted = likelihood(under(problem, Zeroed(bound=BOUND)), OTHER)
    for scale in (0.0, 1e-5):
        facts = Zeroed(kept=0.5, bound=BOUND), Noisy(distribution=law, scale=scale)
        np.testing.assert_allclose(seen(read(under(problem, *facts)), SENT)["b"], [0, 1], atol=1e-3)
        if law == "gaussian":
            np.testing.assert_allclose(likelihood(under(problem, *facts), OTHER), wanted, rtol=1e-3)


def test_in_strong_noise_every_entry_is_as_certain_as_any(problem):
    channel = read(under(problem, Zeroed(kept=0.3), Noisy(distribution="gaussian", scale=1e3)))
    np.testing.assert_allclose(seen(channel, SENT)["w"], [[0.3, 0.3]], rtol=1e-3)


def test_what_was_zeroed_twice_has_the_looser_bound(problem):
    channel = read(under(problem, Zeroed(bound=BOUND), Zeroed(tensors=("w",))))
    assert channel.bounds == {"b": 1.0, "w": jnp.inf}
    assert read(under(problem, Zeroed(tensors=("w",)))).bounds == {"w": jnp.inf}


@pytest.mark.parametrize(
    "facts, expected",
    [
        ((Noisy(distribution="gaussian", scale=0.0),), 10),
        ((Noisy(distribution="gaussian", scale=1.0),), 6),
        ((Noisy(distribution="gaussian", scale=100.0),), np.sqrt(8) * 1e4),  # one standard deviation of the noise's
        ((Clipped(bound=2.0),), 4),
        ((Clipped(bound=2.0), Noisy(distribution="gaussian", scale=100.0)), 4),
        ((Clipped(bound=9.0),), 10),
    ],
)
def test_energy_below_the_noise(problem, facts, expected):
    np.testing.assert_allclose(energy(read(under(problem, *facts)), SENT), expected, rtol=1e-5)


@pytest.mark.parametrize("law", ["gaussian", "laplacian"])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_what_was_kept_for_its_noise_is_no_energy(problem, law, p):
    draw = np.random.default_rng(0).standard_normal
    heavy = {"a": jnp.float32(draw(10_000) * np.exp(1.5 * draw(10_000))), "b": jnp.float32(draw(5_000) ** 3)}
    length = np.sqrt(np.mean(np.square(heavy["b"]))) / (1 if law == "gaussian" else 2**0.5)

    def estimated(gradient, relative):
        noise = f"{law}:{'sigma' if law == 'gaussian' else 'scale'}={relative * length}"
        defense = defenses.parse(f"{noise} + prune:p={p}")
        transformation = defense(jax.random.key(0))
        sent, _ = transformation.update(gradient, transformation.init(gradient))
        kept = jax.tree.map(lambda own, sent: own * (sent != 0), gradient, sent)
        found = energy(read(under(problem, *defense.known(sent, 1), sent=sent)), sent)
        return found, tree_dot(kept, kept), tree_dot(sent, sent)

    for relative in (0.1, 0.3, 1.0, 2.0):
        found, wanted, _ = estimated(heavy, relative)
        assert 0.7 < found / wanted < 1.5
    found, _, whole = estimated(jax.tree.map(lambda tensor: 1e-6 * tensor, heavy), 1.0)
    assert found < 0.1 * whole  # noise alone


# The prior.


def test_likelihood_and_prior_make_the_posterior(problem):
    noisy = under(problem, GAUSSIAN)
    images = random_like(truth(toy_victim(PLAIN)))
    nats = 9 / 0.25  # energy / variance
    prior = NoisePrior(spread=0.4)(noisy, Candidate(images), None)
    np.testing.assert_allclose(nats * prior, images.size * total_variation(images) / 0.4, rtol=1e-5)
    np.testing.assert_allclose(nats * likelihood(noisy, OTHER), 25 / (2 * 0.25), rtol=1e-5)
    assert NoisePrior()(under(problem), Candidate(images), None) == 0
    signless = NoisePrior(magnitude=True)
    np.testing.assert_allclose(
        signless(noisy, Candidate(images), None), signless(noisy, Candidate(-images), None), rtol=1e-6
    )


def test_what_is_scarce_is_smoothed_more(problem):
    images = Candidate(random_like(truth(toy_victim(PLAIN))))
    plain, scarce = TotalVariation(), TotalVariation(scarce=True)
    half = under(problem, Zeroed())
    np.testing.assert_allclose(scarce(half, images, None), plain(half, images, None) * 2**0.5, rtol=1e-5)
    np.testing.assert_allclose(scarce(under(problem), images, None), plain(half, images, None), rtol=1e-6)


# From facts to attacks.


def attack(**options):
    parts = {"matching": GradientMatching(weight=2.0), "tv": TotalVariation(weight=1e-3)}
    settings = {"optimizer": adam(), "num_steps": 300, "learning_rate": 0.1, **options}
    return GradientDescent(objective=Objective(parts=parts), **settings)


def test_every_kind_of_fact_has_an_adaptation():
    assert set(ADAPTATIONS) == set(READ) == set(get_args(Fact))
    assert len({entry.words for entry in ADAPTATIONS.values()}) == len(ADAPTATIONS)


@pytest.mark.parametrize(
    "facts, kind, prior, tv",
    [
        ((), GradientMatching, None, TotalVariation(weight=1e-3)),
        ((Zeroed(),), GradientLikelihood, None, TotalVariation(weight=1e-3, scarce=True)),
        ((GAUSSIAN,), GradientLikelihood, NoisePrior(), TotalVariation(weight=1e-3)),
        ((Quantized(width=BOUND),), GradientLikelihood, None, TotalVariation(weight=1e-3)),
        ((Clipped(bound=1.0),), GradientLikelihood, None, TotalVariation(weight=1e-3)),
        ((Signs(),), GradientLikelihood, None, TotalVariation(weight=0.01)),
        ((Mixed(k=4),), GradientMatching, None, TotalVariation(weight=1e-3)),
        ((Mixed(k=4, flipped=True),), GradientMatching, None, TotalVariation(weight=1e-3, magnitude=True)),
        (
            (Mixed(k=4, flipped=True), Zeroed(), LAPLACIAN),
            GradientLikelihood,
            NoisePrior(magnitude=True),
            TotalVariation(weight=1e-3, magnitude=True, scarce=True),
        ),
    ],
)
def test_facts_choose_the_parts(problem, facts, kind, prior, tv):
    parts = adapt(attack(), under(problem, *facts)).objective.parts
    assert type(parts["matching"]) is kind and parts["matching"].weight == 2.0
    assert parts.get("noise_prior") == prior
    assert jax.tree.structure(parts["tv"]) == jax.tree.structure(tv)
    np.testing.assert_allclose(parts["tv"].weight, tv.weight, rtol=1e-6)


def test_noise_on_flipped_mixtures_has_the_prior_of_magnitudes_without_total_variation_too(problem):
    for facts, flipped in (((Mixed(k=2, flipped=True),), True), ((Mixed(k=2),), False), ((), False)):
        adapted = adapt(attacks.create("idlg"), under(problem, *facts, GAUSSIAN))
        assert adapted.objective.parts["noise_prior"] == NoisePrior(magnitude=flipped)


@pytest.mark.parametrize("distance, weight", [("squared", 1.0), ("absolute", 1.0), ("cosine-per-layer", 1e-4)])
def test_a_likelihood_has_no_weight_in_units_of_the_gradient(problem, distance, weight):
    parts = {"matching": GradientMatching(distance=distance, weight=1e-4)}
    adapted = adapt(GradientDescent(objective=Objective(parts=parts)), under(problem, GAUSSIAN)).objective.parts
    assert adapted["matching"].weight == weight and adapted["noise_prior"].weight == 1


def test_a_weight_that_is_high_already_stays(problem):
    strong = attacks.create("inverting_gradients", tv=0.5)
    for fact in (Signs(), Mixed(k=2), Mixed(k=2, flipped=True)):
        assert adapt(strong, under(problem, fact)).objective.parts["tv"].weight == 0.5


def test_an_attack_without_parts_is_left_alone(problem):
    other = object()
    assert adapt(other, under(problem, GAUSSIAN)) is other


def test_facts_of_an_unknown_kind_are_refused(problem):
    strange = dataclasses.replace(problem, known=("encrypted",))
    for refuse in (lambda: adapt(attack(), strange), lambda: read(strange), lambda: adaptation_words(("x",))):
        with pytest.raises(InputError, match="unknown fact .*: expected one of Zeroed, Noisy"):
            refuse()
    with pytest.raises(InputError, match="did you mean 'gaussian'"):
        read(under(problem, Noisy(distribution="gausian", scale=1.0)))


def test_words_name_each_kind_once():
    assert adaptation_words(()) == ()
    assert adaptation_words((GAUSSIAN, Signs(), LAPLACIAN)) == (ADAPTATIONS[Noisy].words, ADAPTATIONS[Signs].words)


@pytest.mark.parametrize("defense", ["gaussian:sigma=0.2", "laplacian:scale=0.05", "prune:p=0.9"])
def test_who_knows_the_defense_sees_more(defense):
    victim = toy_victim(PLAIN)
    told = toy_problem(victim, RUNNING, defenses.parse(defense))
    assert told.known
    scores = [
        psnr(reconstruct(attack(), told, jax.random.key(0), num_restarts=2, adaptive=adaptive).images, victim.images)
        for adaptive in (False, True)
    ]
    assert scores[1].mean() > scores[0].mean() + 1
