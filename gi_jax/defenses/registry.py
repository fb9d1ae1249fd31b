"""The table of defenses: by name, with parameters and ranges, what each promises and what an adversary knows of it."""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from gi_jax import checks
from gi_jax.defenses import privacy
from gi_jax.defenses.batch import Mixing, inter_instahide, intra_instahide, mixup
from gi_jax.defenses.clipping import clip_examples
from gi_jax.defenses.noise import add_gaussian_noise, add_laplacian_noise, add_relative_noise, estimate_scale
from gi_jax.defenses.pruning import (
    keep_counts,
    keep_largest_overall,
    prune_by_magnitude,
    prune_globally,
    smallest_kept,
    smallest_kept_overall,
)
from gi_jax.defenses.quantization import (
    quantize_stochastically,
    quantize_uniformly,
    send_signs,
    stochastic_scale,
    stochastic_width,
    uniform_width,
)
from gi_jax.defenses.representation import prune_representation
from gi_jax.threat import Clipped, Fact, Noisy, Quantized, Rounded, Signs, Zeroed


class Kind(enum.StrEnum):
    """What a defense promises."""

    DP = "dp"
    """A bound on what leaks, proved for every adversary: (epsilon, delta)-differential privacy."""
    CRYPTOGRAPHIC = "cryptographic"
    """The adversary does not see the update at all, as long as a cryptographic assumption holds."""
    HEURISTIC = "heuristic"
    """Nothing is proved: it is as good as the best attack that was tried on it. It never has an epsilon."""


class Parameter(NamedTuple):
    """A number that a defense takes: what it is, with its range; `type` is float or int."""

    about: str
    type: type = float
    required: bool = True


class Entry(NamedTuple):
    """A row of the table of defenses.

    Attributes:
      make: `make(key, **parameters)` gives the optax transformation; refuses values out of range.
      known: `known(sent, batch_size, **parameters)`: what an adversary that knows the defense can say of what was sent.
      kind: what it promises.
      parameters: by name, in the order in which they are written.
      about, paper: one line each.
      mixing: for a defense that encodes pictures and leaves the gradient alone: `mixing(**parameters)` says how.
      first: it replaces the gradient by one of its own, so it can only be the first stage.
      of_examples: it looks at the single examples of a step, so the client takes one step.
      estimated: `estimated(**parameters)`: whether what is known of it is read off the size of the entries that were
        sent, which no later stage may then change, unless it `overrules`: makes what is known of noise and random
        rounding before it useless.
      withstands: later stages after which what is read off is still right.
    """

    make: Callable[..., optax.GradientTransformation]
    known: Callable[..., tuple[Fact, ...]]
    kind: Kind
    parameters: dict[str, Parameter]
    about: str
    paper: str
    first: bool = False
    of_examples: bool = False
    mixing: Callable[..., Mixing] | None = None
    estimated: Callable[..., bool] = lambda **values: False
    overrules: bool = False
    withstands: tuple[str, ...] = ()


def _encodes(mixing: Callable[..., Mixing], parameters: dict[str, Parameter], about: str, paper: str) -> Entry:
    def make(key, **values):
        mixing(**values)  # refuses values out of range
        return optax.identity()

    def known(sent, batch_size, **values):
        return (mixing(**values).known(),)

    return Entry(make, known, Kind.HEURISTIC, parameters, about, paper, mixing=mixing)


def _top_k(key, k):
    checks.positive(k=k)
    return keep_largest_overall(k)


def _share(count, sent):
    """Of the entries that leave the client, at most: some of the count may be in tensors that do not.

    A fraction of all entries, as of `prune_global`, is no such bound, but the mean that is expected of any of them.
    """
    return min(count / optax.tree.size(sent), 1.0)


def _shares(p, sent):
    return jax.tree.map(lambda tensor, count: count / max(tensor.size, 1), sent, keep_counts(p, sent))


def _relative(relative=None, **values):
    return bool(relative)


def _clip(key, norm):
    checks.positive(norm=norm)
    return optax.clip_by_global_norm(norm)


def _gaussian(key, sigma=None, relative=None):
    checks.exactly_one("gaussian", sigma=sigma, relative=relative)
    return add_gaussian_noise(sigma, key) if relative is None else add_relative_noise("gaussian", relative, key)


def _laplacian(key, scale=None, relative=None):
    checks.exactly_one("laplacian", scale=scale, relative=relative)
    return add_laplacian_noise(scale, key) if relative is None else add_relative_noise("laplacian", relative, key)


def _noisy(distribution, sent, scale, relative):
    if not (scale or relative):
        return ()
    return (Noisy(distribution=distribution, scale=scale or estimate_scale(distribution, relative, sent)),)


def _dpsgd(key, clip, sigma, q=None, steps=None, delta=None):
    training = (q, steps, delta)
    if any(value is None for value in training) and training != (None, None, None):
        raise checks.InputError("dpsgd: q, steps and delta describe the whole training; expected all three, or none")
    if q is not None:
        privacy.check_training(q, steps, delta)
    return privacy.dp_sgd(clip, sigma, key)


def _private(sent, batch_size, clip, sigma, q=None, steps=None, delta=None):
    noisy = (Noisy(distribution="gaussian", scale=sigma * clip / batch_size),) if sigma > 0 else ()
    return (Clipped(bound=clip), *noisy)


DEFENSES = {
    "prune": Entry(
        lambda key, p: prune_by_magnitude(p),
        lambda sent, batch_size, p: (Zeroed(bound=smallest_kept(sent), kept=_shares(p, sent)),) if p > 0 else (),
        Kind.HEURISTIC,
        {"p": Parameter("fraction set to zero in each tensor, in [0, 1)")},
        "keeps the largest entries of each tensor",
        "Zhu et al. 2019, arXiv 1906.08935",
    ),
    "prune_global": Entry(
        lambda key, p: prune_globally(p),
        lambda sent, batch_size, p: (Zeroed(bound=smallest_kept_overall(sent), kept=1 - p),) if p > 0 else (),
        Kind.HEURISTIC,
        {"p": Parameter("fraction set to zero over all tensors, in [0, 1)")},
        "keeps the largest entries of the whole update",
        "Wei et al. 2020, arXiv 2004.10397",
    ),
    "top_k": Entry(
        _top_k,
        lambda sent, batch_size, k: (Zeroed(bound=smallest_kept_overall(sent), kept=_share(k, sent)),),
        Kind.HEURISTIC,
        {"k": Parameter("entries sent, over all tensors; a whole number, 1 or above", int)},
        "keeps the k largest entries of the whole update",
        "Aji and Heafield 2017, arXiv 1704.05021; Stich et al. 2018, arXiv 1809.07599",
    ),
    "gaussian": Entry(
        _gaussian,
        lambda sent, batch_size, sigma=None, relative=None: _noisy("gaussian", sent, sigma, relative),
        Kind.HEURISTIC,
        {
            "sigma": Parameter("standard deviation, 0 or above", required=False),
            "relative": Parameter("instead: length of the noise over that of the update, 0 or above", required=False),
        },
        "adds normal noise to every entry",
        "Zhu et al. 2019; Wei et al. 2020, arXiv 2004.10397",
        estimated=_relative,
    ),
    "laplacian": Entry(
        _laplacian,
        lambda sent, batch_size, scale=None, relative=None: _noisy("laplacian", sent, scale, relative),
        Kind.HEURISTIC,
        {
            "scale": Parameter("mean absolute value, 0 or above", required=False),
            "relative": Parameter("instead: length of the noise over that of the update, 0 or above", required=False),
        },
        "adds Laplacian noise to every entry",
        "Zhu et al. 2019",
        estimated=_relative,
    ),
    "clip": Entry(
        _clip,
        lambda sent, batch_size, norm: (Clipped(bound=norm),),
        Kind.HEURISTIC,
        {"norm": Parameter("largest l2 norm of the update, above 0")},
        "scales the update down to the norm",
        "Pascanu et al. 2013, arXiv 1211.5063",
        overrules=True,
    ),
    "clip_per_example": Entry(
        lambda key, norm: clip_examples(norm),
        lambda sent, batch_size, norm: (Clipped(bound=norm),),
        Kind.HEURISTIC,
        {"norm": Parameter("largest l2 norm of an example's gradient, above 0")},
        "scales each example's gradient down to the norm",
        "Abadi et al. 2016, arXiv 1607.00133",
        first=True,
        of_examples=True,
    ),
    "dpsgd": Entry(
        _dpsgd,
        _private,
        Kind.DP,
        {
            "clip": Parameter("largest l2 norm of an example's gradient, above 0"),
            "sigma": Parameter("noise multiplier: standard deviation over clip, on the sum, 0 or above"),
            "q": Parameter("for epsilon: sampling probability, in (0, 1]", required=False),
            "steps": Parameter(
                "for epsilon: steps of the whole training; a whole number, 1 or above", int, required=False
            ),
            "delta": Parameter("for epsilon: in (0, 1)", required=False),
        },
        "clips each example's gradient and adds normal noise to the sum; no BatchNorm",
        "Abadi et al. 2016, arXiv 1607.00133",
        first=True,
        of_examples=True,
    ),
    "sign": Entry(
        lambda key: send_signs(),
        lambda sent, batch_size: (Signs(),),
        Kind.HEURISTIC,
        {},
        "sends signs only",
        "Bernstein et al. 2018, arXiv 1802.04434",
        overrules=True,
    ),
    "qsgd": Entry(
        lambda key, levels: quantize_stochastically(levels, key),
        lambda sent, batch_size, levels: (
            Rounded(spacing=stochastic_width(sent), scale=stochastic_scale(levels, sent)),
        ),
        Kind.HEURISTIC,
        {"levels": Parameter("steps from 0 to the norm of a tensor; a whole number, 1 or above", int)},
        "rounds at random to a few levels, unbiased",
        "Alistarh et al. 2017, arXiv 1610.02132",
        estimated=lambda levels: True,
    ),
    "quantize": Entry(
        lambda key, bits: quantize_uniformly(bits),
        lambda sent, batch_size, bits: (Quantized(width=uniform_width(bits, sent)),),
        Kind.HEURISTIC,
        {"bits": Parameter("of an entry with its sign; a whole number, 2 to 16", int)},
        "rounds to evenly spaced values, the largest entry of a tensor being the last",
        "Krishnamoorthi 2018, arXiv 1806.08342",
        estimated=lambda bits: True,
        withstands=("prune", "prune_global", "top_k", "clip", "quantize"),  # the largest is sent, or scaled with all
    ),
    "soteria": Entry(
        lambda key, p: prune_representation(p),
        lambda sent, batch_size, p: (Zeroed(tensors=("head/kernel",), kept=1 - p),) if p > 0 else (),
        Kind.HEURISTIC,
        {"p": Parameter("fraction of the features dropped, in [0, 1)")},
        "drops the features that give most away from the last layer's gradient",
        "Sun et al. 2021, arXiv 2012.06043",
        of_examples=True,
    ),
    "mixup": _encodes(
        mixup,
        {"k": Parameter("pictures in a mixture, 1 or above", int)},
        "trains on mixtures of the client's pictures, with mixed labels",
        "Zhang et al. 2018, arXiv 1710.09412; Huang et al. 2021, arXiv 2112.00059",
    ),
    "intra_instahide": _encodes(
        intra_instahide,
        {"k": Parameter("pictures in a mixture, 1 or above", int)},
        "mixup, then a random sign for each value",
        "Huang et al. 2020, arXiv 2010.02772",
    ),
    "inter_instahide": _encodes(
        inter_instahide,
        {
            "k": Parameter("pictures in a mixture, two of them private, 3 or above", int),
            "public_sum": Parameter("share of the public ones, in (0, 0.65); 0.3 if left out", required=False),
        },
        "two private pictures mixed with public ones, then a random sign for each value",
        "Huang et al. 2020, arXiv 2010.02772",
    ),
}
