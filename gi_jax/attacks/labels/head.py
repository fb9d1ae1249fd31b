"""What every label method reads: the last linear layer, its gradient, and what the network does to random pictures.

With the mean cross-entropy over n pictures, features h_k, probabilities p_k and labels y_k, the gradient of the last
layer is

    kernel, column i:  (1/n) sum_k (p_k[i] - y_k[i]) h_k        bias, entry i:  (1/n) sum_k (p_k[i] - y_k[i]),

and everything about labels follows from those two lines. Where labels sum to s, p_k[i] has the factor s; divided by s,
the gradient is that of the labels y_k / s, which sum to 1, and the lines hold for these.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import jax
import numpy as np

from gi_jax import checks
from gi_jax.attacks.labels.rank_one import factors
from gi_jax.threat import AttackProblem, Clipped, Mixed, Zeroed
from gi_jax.types import Key, Params

NUM_DUMMIES = 100
"""Random pictures at least that a method looks at (Geng et al. 2021 take 100 to 1,000)."""


class Head(NamedTuple):
    """The last linear layer and its gradient, float64 on the host: label recovery runs once, on small arrays.

    Attributes:
      kernel, kernel_gradient: [features, classes].
      bias, bias_gradient: [classes], or None. Of one picture, entries of both gradients that a client set to zero are
        here what its other entries tell.
      batch_size: pictures behind the gradient.
      label_sum: s, by which both gradients were divided. Where the adversary is not told, that of one picture is
        s = max_i (bias gradient)_i / p_i, since y_i = s p_i - (bias gradient)_i is 0 for a class that it has nothing
        of; of several pictures 1. If one picture's gradient was clipped, and nothing else, that maximum holds the
        factor of clipping too: the gradients are divided by it, whatever the sum that the adversary is told.
    """

    kernel: np.ndarray
    kernel_gradient: np.ndarray
    bias: np.ndarray | None
    bias_gradient: np.ndarray | None
    batch_size: int
    label_sum: float = 1.0

    @property
    def has_bias(self) -> bool:
        """Whether there is one, and its gradient was sent: one of zero throughout says nothing."""
        return self.bias is not None and bool(self.bias_gradient.any())

    @property
    def features_of_one(self) -> np.ndarray:
        """Of a single picture, [features], with a bias: the kernel's gradient is their product with the bias's."""
        return self.kernel_gradient @ self.bias_gradient / (self.bias_gradient @ self.bias_gradient)


class Dummies(NamedTuple):
    """What the network makes of random normal pictures: probabilities [m, classes], features [m, features]."""

    probabilities: np.ndarray
    features: np.ndarray


def find_head(problem: AttackProblem) -> Head:
    """The layer called `head` in the parameters.

    Raises:
      InputError: if there is none that fits, or its gradient is missing, not finite, or zero throughout.
    """
    params, observed = problem.params, problem.observed
    head = params.get("head") if isinstance(params, Mapping) else None
    kernel = head.get("kernel") if isinstance(head, Mapping) else None
    if getattr(kernel, "ndim", 0) != 2 or kernel.shape[1] != problem.num_classes:
        raise checks.InputError(
            f"labels from the gradient: expected params['head']['kernel'] of shape [features, {problem.num_classes}], "
            "the last linear layer; name it so, or take labels known or optimize"
        )
    sent = {"head": observed.get("head") if isinstance(observed, Mapping) else None}
    checks.same_structure("observed gradient", sent, {"head": head})
    checks.all_finite("observed gradient", sent)
    if not np.any(observed["head"]["kernel"]):
        raise checks.InputError("labels from the gradient: that of the last layer is zero throughout and says nothing")
    double = lambda leaf: None if leaf is None else np.asarray(leaf, np.float64)  # noqa: E731
    found = Head(
        kernel=double(kernel),
        kernel_gradient=double(observed["head"]["kernel"]),
        bias=double(head.get("bias")),
        bias_gradient=double(observed["head"].get("bias")),
        batch_size=problem.image_shape[0],
    )
    completed = _zeroed_entries(problem)
    if completed:
        found = _completed(found)
    told = all(fact.label_sum is not None for fact in problem.known if isinstance(fact, Mixed))
    label_sum = float(problem.label_sum) if told else _scale(found)
    scale = _scale(found) if _clipped_only(problem, completed) else label_sum
    return found._replace(
        kernel_gradient=found.kernel_gradient / scale,
        bias_gradient=None if found.bias_gradient is None else found.bias_gradient / scale,
        label_sum=label_sum,
    )


def _clipped_only(problem, completed):
    """Whether clipping alone changed the gradient, as it is completed, and a label has nothing of some class."""
    undone = (Mixed, Zeroed) if completed else Mixed
    facts = [fact for fact in problem.known if not isinstance(fact, undone)]
    pictures = max([fact.k for fact in problem.known if isinstance(fact, Mixed)], default=1)
    clipped = bool(facts) and all(isinstance(fact, Clipped) for fact in facts)
    return clipped and problem.local is None and problem.num_classes > pictures


def _zeroed_entries(problem):
    """Whether entries of one picture's gradient were set to zero, and no others were changed but in scale."""
    facts = [fact for fact in problem.known if not isinstance(fact, Mixed)]
    zeroed = any(isinstance(fact, Zeroed) and fact.holds_for(f"head/{part}") for fact in facts for part in _PARTS)
    scaled = all(isinstance(fact, Zeroed | Clipped) for fact in facts)
    return problem.image_shape[0] == 1 and problem.local is None and zeroed and scaled


_PARTS = ("kernel", "bias")


def _completed(head):
    """The gradients of one picture are a product: features times the bias's, whose own feature is 1.

    Features of which nothing was sent are taken for 0, as they are small. What the bias's gradient lacks to a sum of 0
    is that of the classes of which nothing was sent, in proportion to their probabilities, as where a label has nothing
    of them.
    """
    count, with_bias = len(head.kernel), head.has_bias
    rows = np.vstack([head.kernel_gradient, head.bias_gradient]) if with_bias else head.kernel_gradient
    features, gradient = factors(rows, count if with_bias else None)
    features, unknown = np.nan_to_num(features[:count]), np.isnan(gradient)
    if unknown.any():
        bias = 0 if head.bias is None else head.bias
        shares = softmax(features @ head.kernel + bias)[unknown] if with_bias else np.ones(unknown.sum())
        gradient[unknown] = -np.nansum(gradient) * shares / shares.sum()
    return head._replace(
        kernel_gradient=np.outer(features, gradient), bias_gradient=gradient if with_bias else head.bias_gradient
    )


def _scale(head):
    """Of one picture's gradient, from its likelier half of classes, if it has nothing of one of them; see `Head`."""
    if head.batch_size > 1 or not head.has_bias:
        return 1.0
    probabilities = softmax(head.features_of_one @ head.kernel + head.bias)
    likely = np.argsort(probabilities)[-max(2, len(probabilities) // 2) :]
    scale = np.max(head.bias_gradient[likely] / probabilities[likely])
    return float(min(scale, 1.0)) if scale > 0 else 1.0


@jax.jit
def _probabilities_and_features(problem, images):
    def first_logit(column):
        head = {**problem.params["head"], "kernel": problem.params["head"]["kernel"].at[:, 0].set(column)}
        return dataclasses.replace(problem, params={**problem.params, "head": head}).logits(images)[:, 0]

    # The logit is linear in the column, with the features as its derivative; nothing else is differentiated.
    features = jax.jacrev(first_logit)(problem.params["head"]["kernel"][:, 0])
    return jax.nn.softmax(problem.logits(images)), features


LazyDummies = Callable[[], Dummies]
"""Computed when first asked for, by methods that look at them at all."""


def simulate(
    problem: AttackProblem, key: Key, *, params: Params | None = None, num_images: int = NUM_DUMMIES
) -> LazyDummies:
    """Probabilities and features of at least `num_images` random pictures, in batches of the size of a client's.

    They do not depend on the observed gradient: methods may share them, and problems of one model and batch size whose
    statistics are equal or not used.

    Args:
      problem: for its network.
      key: draws N(0, 1) images in the network's units.
      params: other weights than the problem's.
      num_images: one batch at least.

    Returns:
      A function without arguments that computes them in its first call.
    """
    # The observed gradient goes into no forward pass.
    problem = dataclasses.replace(problem, params=problem.params if params is None else params, observed=None)
    size = problem.image_shape[0] // problem.clients
    if problem.local is not None:  # a client that normalizes with its batch's statistics does so in each step
        size = problem.local.per_step(size)

    @cache
    def dummies():
        found = []
        for number in range(-(-num_images // size)):
            images = jax.random.normal(jax.random.fold_in(key, number), (size, *problem.image_shape[1:]))
            found.append(_probabilities_and_features(problem, images))
        probabilities, features = (np.concatenate(parts).astype(np.float64) for parts in zip(*found, strict=True))
        return Dummies(probabilities, features)

    return dummies


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
