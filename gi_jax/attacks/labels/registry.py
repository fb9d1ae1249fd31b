"""Label methods by name: what each needs, and which one fits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.attacks.labels.bias_corrected import bias_corrected
from gi_jax.attacks.labels.bias_counts import bias_counts
from gi_jax.attacks.labels.bias_sign import bias_sign
from gi_jax.attacks.labels.counts import assign
from gi_jax.attacks.labels.geng import geng
from gi_jax.attacks.labels.head import LazyDummies, find_head
from gi_jax.attacks.labels.idlg import idlg
from gi_jax.attacks.labels.ilrg import ilrg
from gi_jax.attacks.labels.llg import llg
from gi_jax.attacks.labels.llg_plus import llg_plus
from gi_jax.attacks.labels.row_minimum import row_minimum
from gi_jax.attacks.labels.soft import soft
from gi_jax.threat import AttackProblem, Clipped, Fact, Mixed, Zeroed
from gi_jax.types import Labels


class Method(NamedTuple):
    """A row of the table: (problem, dummies) to counts [classes] that sum to the batch size, and keys of `NEEDS`."""

    estimate: Callable[[AttackProblem, LazyDummies], np.ndarray]
    needs: tuple[str, ...]
    about: str
    paper: str


NEEDS: dict[str, Callable[[AttackProblem, LazyDummies], bool]] = {
    "one picture": lambda problem, dummies: problem.image_shape[0] == 1,
    "no more pictures than classes": lambda problem, dummies: problem.image_shape[0] <= problem.num_classes,
    "a bias in the head": lambda problem, dummies: find_head(problem).has_bias,
    "a bias in the head, or six classes": lambda problem, dummies: (
        find_head(problem).has_bias or problem.num_classes >= 6
    ),
    "a bias in the head, three classes, or features that are not negative": lambda problem, dummies: (
        find_head(problem).has_bias or problem.num_classes >= 3 or bool(dummies().features.min() >= 0)
    ),
    "features that are not negative": lambda problem, dummies: bool(dummies().features.min() >= 0),
}
"""What a method may ask for. A bias whose gradient is zero throughout, as if it had not been sent, is none."""

METHODS = {
    "idlg": Method(
        idlg,
        ("one picture", "a bias in the head, three classes, or features that are not negative"),
        "the row that opposes all others",
        "Zhao et al. 2020, arXiv 2001.02610",
    ),
    "soft": Method(
        soft,
        ("one picture", "a bias in the head, or six classes"),
        "one hard or mixed label, exact with a bias",
        "from the gradient's two lines",
    ),
    "row_minimum": Method(
        row_minimum,
        ("no more pictures than classes", "features that are not negative"),
        "the rows with the smallest minimum, no label twice",
        "Yin et al. 2021, arXiv 2104.07586",
    ),
    "bias_sign": Method(
        bias_sign, ("a bias in the head",), "classes of negative bias gradient, evenly", "Geiping et al. 2020"
    ),
    "bias_corrected": Method(
        bias_corrected,
        ("a bias in the head",),
        "the same, then by the mean share of a picture",
        "breaching, Geiping and Fowl 2021",
    ),
    "bias_counts": Method(
        bias_counts,
        ("a bias in the head",),
        "bias gradient against the probabilities of random pictures",
        "Geng et al. 2021, on the bias",
    ),
    "llg": Method(
        llg, ("features that are not negative",), "row sums, impact from the gradient", "Wainakh et al. 2022"
    ),
    "llg_plus": Method(
        llg_plus, ("features that are not negative",), "row sums, impact from random pictures", "Wainakh et al. 2022"
    ),
    "geng": Method(geng, (), "row sums against probabilities and features of random pictures", "Geng et al. 2021"),
    "ilrg": Method(ilrg, ("a bias in the head",), "a linear system for the counts", "Ma et al. 2023"),
}
"""All methods, by name."""


class Recovered(NamedTuple):
    """What was recovered, and how.

    Attributes:
      method: a key of `METHODS`.
      why: the reason for it; empty if it was asked for.
      counts: pictures of each class, float64 [classes], summing to the batch size; fractions for one soft label, and
        where labels sum to less than 1 that much less of each.
      labels: [n, classes] with these counts, in the order of the classes.
    """

    method: str
    why: str
    counts: np.ndarray
    labels: Labels


def choose(batch_size: int, *, has_bias: bool, known: Sequence[Fact] = (), local: bool = False) -> tuple[str, str]:
    """The method that fits what the adversary holds, and why.

    Args:
      batch_size: pictures behind the gradient.
      has_bias: whether the head has one, whose gradient was sent.
      known: facts about the client's defense.
      local: whether it is the mean gradient of several local steps.
    """
    mixed, clipped = (any(isinstance(fact, kind) for fact in known) for kind in (Mixed, Clipped))
    zeroed = any(isinstance(fact, Zeroed) and fact.holds_for("head/bias") for fact in known)
    open_sum = any(isinstance(fact, Mixed) and fact.label_sum is None for fact in known)
    changed = any(not isinstance(fact, Mixed) for fact in known)
    if local and batch_size == 1 and mixed:
        return "soft", "one mixed picture, several local steps: its label as if they were one, with a bias or without"
    if local and batch_size == 1 and has_bias:
        return "bias_sign", "one picture, a bias, several local steps: the label's entry is negative in each of them"
    if local and batch_size == 1:
        return "idlg", "one picture, no bias, several local steps: the label's row opposes all others in each of them"
    if local and has_bias and zeroed and not clipped:
        return "bias_counts", (
            "several pictures, a bias, several local steps, and entries set to zero: its gradient counts them, and "
            "row sums do where its entries are missing"
        )
    if local and has_bias:
        return "bias_corrected", (
            "several pictures, a bias, several local steps: it asks for no probabilities, which change on the way, and "
            "for no scale"
        )
    if clipped and not has_bias and batch_size > 1:
        return "llg", (
            "several pictures, no bias, and clipping: row sums, with no scale, which clipping hides; geng, which needs "
            "it, where features are negative"
        )
    if local:
        return "geng", (
            "no bias, several local steps: row sums, with random pictures seen by the models before and after them, as "
            "probabilities and features change on the way"
        )
    if batch_size == 1 and has_bias and changed and not mixed:
        return "bias_sign", "one picture, a bias, and a defense that changes values: the lowest of them is the label's"
    if batch_size == 1 and has_bias:
        exact = "" if changed or open_sum else ", is exact if no defense changed the gradient"
        return "soft", f"one picture and a bias: its label, hard or mixed{exact}"
    if batch_size == 1 and mixed:
        return "soft", "one mixed picture, no bias: the size of its features is searched for"
    if batch_size == 1:
        return "idlg", (
            "one picture, no bias: the label's row opposes all others, of three classes or more whatever the sign of "
            "the features"
        )
    if mixed and has_bias and not clipped:
        return "bias_counts", (
            "several mixtures and a bias: its gradient counts classes; which mixture has which is not told apart, so "
            "labels known or optimize fit better"
        )
    if has_bias and clipped:
        return "bias_corrected", "several pictures, a bias, and clipping: it needs no scale, which clipping hides"
    if has_bias and zeroed:
        return "bias_counts", (
            "several pictures, a bias, and entries set to zero: its gradient counts them, and row sums do where its "
            "entries are missing, as far as random pictures tell the network's mean probabilities and features"
        )
    if has_bias:
        return "bias_counts", (
            "several pictures and a bias: its gradient counts them, as far as random pictures tell the network's mean "
            "probabilities (closely before training, roughly after)"
        )
    return "geng", "several pictures, no bias: row sums, with random pictures for what the network adds to them"


def unmet(name: str, problem: AttackProblem, dummies: LazyDummies) -> list[str]:
    """Keys of `NEEDS` that a method asks for and the problem does not offer."""
    return [need for need in METHODS[name].needs if not NEEDS[need](problem, dummies)]


def recover(
    problem: AttackProblem, method: str, dummies: LazyDummies, *, dummies_after: LazyDummies | None = None
) -> Recovered:
    """The labels of the private batch, from the gradient of the last layer.

    Args:
      problem: its labels are not looked at.
      method: a key of `METHODS`, or `auto`.
      dummies: from `simulate`, for methods that look at random pictures.
      dummies_after: the same with `problem.params_after`, after local steps; for `geng`.

    Raises:
      InputError: for an unknown method, one whose needs are not met, and what `find_head` refuses.
    """
    checks.one_of("label method", method, ["auto", *METHODS])
    head = find_head(problem)
    why, instead = "", "try auto"
    if method == "auto":
        local = problem.local is not None
        method, why = choose(head.batch_size, has_bias=head.has_bias, known=problem.known, local=local)
        instead = "take labels known or optimize"
        if method == "llg" and unmet(method, problem, dummies):
            method = "geng"
    missing = unmet(method, problem, dummies)
    if missing:
        raise checks.InputError(f"label method {method!r} needs {' and '.join(missing)}; {instead}")
    estimate = METHODS[method].estimate
    if method == "geng":
        estimate = partial(geng, dummies_after=dummies_after)
    counts = estimate(problem, dummies)
    rows = assign(counts, head.batch_size)
    return Recovered(method, why, head.label_sum * counts, jnp.float32(head.label_sum * rows))
