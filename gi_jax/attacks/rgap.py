"""R-GAP: from the output back to the picture, one linear system a layer (Zhu & Blaschko 2021, arXiv 2010.07733).

Of a layer o = W x, x = act(o of the layer below), three things are known on the way back: the weights W, the output o
(from the layer above, whose activation is one to one) and the gradient of the weights, G. With k = dL/do, carried along
by the chain rule, the input x solves

    W x = o                    weight constraints, an equation an output
    sum_p k_p x_p^T = G        gradient constraints, an equation a weight (p: positions of a convolution)

in the sense of least squares. Where the equations do not determine x, the recursion ends, and so does the leak: the
same count tells it before any gradient is seen (`analyze`).

Systems are solved by their normal equations in float64, assembled patch by patch. Squaring the condition number costs
nothing here: the gradient has seven digits, and float64 has sixteen.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

from gi_jax import checks
from gi_jax.attacks.closed_form import closed_form
from gi_jax.attacks.gradient_descent import GradientDescent
from gi_jax.models import Chain, FlaxNetwork, Network
from gi_jax.threat import AttackProblem, ImageSpace
from gi_jax.types import Gradients, Images, Key, Params

WORST_CONDITION = 1e6
"""Above it, of the seven digits of a float32 gradient, not even one is left of a layer's input."""

MOST_UNKNOWNS = 2**14
"""Numbers in the input of a layer: its system is dense and takes 2 GiB in float64, its factor as much again."""


class LayerAnalysis(NamedTuple):
    """What a layer's weights say about its inverse.

    Attributes:
      name: in the parameters.
      unknowns: numbers in its input.
      weight_constraints, gradient_constraints: equations of the two kinds.
      condition: of the system for a random k; infinite if the input is not determined.
    """

    name: str
    unknowns: int
    weight_constraints: int
    gradient_constraints: int
    condition: float

    @property
    def fails(self) -> bool:
        """Whether the recursion ends at this layer."""
        return not self.condition < WORST_CONDITION


class Solution(NamedTuple):
    """A picture that the recursion arrived at.

    Attributes:
      images: float64 [1, h, w, c] in the network's units.
      margin: y m of a logistic output, the root that was taken; None for a head with bias.
      sign: y of a logistic output, -1 or 1; None for a head with bias.
      residual: the worst of the layers: how far the equations are from being solved, relative to their right side.
    """

    images: np.ndarray
    margin: float | None
    sign: int | None
    residual: float


class _Layer(NamedTuple):
    """A convolution as a gather and a matmul: output[p] = W^T input[patches[p]].

    Attributes:
      name: in the parameters.
      weights: [j, features], j over kernel positions and channels.
      patches: [positions, j], places in the flat input; `unknowns` stands for a zero of the padding.
      unknowns: numbers in the input.
    """

    name: str
    weights: np.ndarray
    patches: np.ndarray
    unknowns: int


def analyze(network: Network, params: Params, image_shape: tuple[int, int, int, int]) -> tuple[LayerAnalysis, ...]:
    """Which layers R-GAP can invert, from the weights alone, in the order in which it meets them (last layer first).

    Raises:
      InputError: if the network is no `Chain`, or there is more than one picture.
    """
    _, layers = _chain(network, params, image_shape)
    draw = np.random.default_rng(0).standard_normal
    return tuple(_analyze(layer, draw((len(layer.patches), layer.weights.shape[1]))) for layer in reversed(layers))


def _analyze(layer, cotangent):
    weight_constraints = len(layer.patches) * layer.weights.shape[1]
    gradient_constraints = layer.weights.size
    condition = np.inf
    if weight_constraints + gradient_constraints >= layer.unknowns:
        matrix, _ = _normal_matrix(layer, cotangent)
        _, condition = _factor(matrix)
    return LayerAnalysis(layer.name, layer.unknowns, weight_constraints, gradient_constraints, condition)


def recover(
    network: Network, params: Params, observed: Gradients, image_shape: tuple[int, int, int, int]
) -> list[Solution]:
    """All pictures that the recursion finds; runs on the host, in float64.

    A head with bias gives one. A logistic output gives up to four: its margin has up to two roots, and the sign of the
    label is not known. The wrong sign leaves a residual. The other root does not: the network is homogeneous, so a
    picture times a number has the very same gradient.

    Raises:
      InputError: naming the layer that fails.
    """
    module, layers = _chain(network, params, image_shape)
    head = {name: np.asarray(leaf, np.float64) for name, leaf in params["head"].items()}
    gradient = {name: np.asarray(leaf, np.float64) for name, leaf in observed["head"].items()}
    outputs = _logistic_outputs(head, gradient) if module.logistic else _biased_output(gradient)
    solutions = []
    for cotangent, margin, sign in outputs:
        features = gradient["kernel"] @ cotangent / (cotangent @ cotangent)
        images, residual = _walk_back(layers, observed, module.slope, features, head["kernel"] @ cotangent)
        solutions.append(Solution(images.reshape(image_shape), margin, sign, residual))
    return solutions


def _biased_output(gradient):
    """dL/d(logits) [classes], which is the gradient of the bias."""
    if not gradient["bias"].any():
        raise checks.InputError("R-GAP fails at head: its bias has gradient zero everywhere")
    return [(gradient["bias"], None, None)]


def _logistic_outputs(head, gradient):
    """dL/dm [1] for every root and sign: <G, W> = m dL/dm = -u / (1 + e^u) with u = y m, and dL/dm = -y / (1 + e^u)."""
    roots = margins(float(np.vdot(gradient["kernel"], head["kernel"])))
    if not roots:
        raise checks.InputError("R-GAP fails at head: no output has this gradient; it was changed by a defense")
    return [(np.array([-sign / (1 + np.exp(root))]), root, sign) for root in roots for sign in (-1, 1)]


def margins(product: float) -> list[float]:
    """All u with -u / (1 + e^u) = product: one if it is positive, two down to -0.278, none below."""

    def excess(u):
        return -u / (1 + np.exp(u)) - product

    if product >= 0:
        return [scipy.optimize.brentq(excess, -2 * product, 0.0)] if product > 0 else [0.0]
    lowest = 1 + scipy.special.lambertw(np.exp(-1)).real  # where the derivative is zero
    if excess(lowest) > 0:
        return []
    high = 2 * lowest
    while excess(high) < 0:
        high *= 2
    return [scipy.optimize.brentq(excess, 0.0, lowest), scipy.optimize.brentq(excess, lowest, high)]


def _walk_back(layers, observed, slope, features, cotangent):
    """The flat picture, and the worst relative residual on the way to it."""
    worst = 0.0
    for layer in reversed(layers):
        activated = features > 0
        output = np.where(activated, features, features / slope).reshape(len(layer.patches), -1)
        cotangent = (cotangent * np.where(activated, 1.0, slope)).reshape(output.shape)
        gradient = np.asarray(observed[layer.name]["kernel"], np.float64).reshape(layer.weights.shape)
        features, residual = _invert(layer, output, cotangent, gradient)
        cotangent = _scatter(layer, cotangent @ layer.weights.T)
        worst = max(worst, residual)
    return features, worst


def _invert(layer, output, cotangent, gradient):
    """Input [unknowns] of a layer, from output and cotangent [positions, features] and gradient [j, features]."""
    matrix, balance = _normal_matrix(layer, cotangent)
    factor, condition = _factor(matrix)
    if factor is None or not condition < WORST_CONDITION:
        raise checks.InputError(
            f"R-GAP fails at {layer.name}: its input is not determined (condition number {condition:.1e})"
        )
    right = _scatter(layer, output @ layer.weights.T + balance * cotangent @ gradient.T)
    solution = scipy.linalg.cho_solve((factor, True), right)
    padded = np.append(solution, 0.0)[layer.patches]
    errors = padded @ layer.weights - output, padded.T @ cotangent - gradient
    square = np.sum(errors[0] ** 2) + balance * np.sum(errors[1] ** 2)
    return solution, float(np.sqrt(square / (np.sum(output**2) + balance * np.sum(gradient**2))))


def _normal_matrix(layer, cotangent):
    """A^T A + balance K^T K [unknowns, unknowns] of the two kinds of constraints, brought to the same size."""
    matrix = np.zeros((layer.unknowns + 1,) * 2)
    weights, cotangents = layer.weights @ layer.weights.T, cotangent @ cotangent.T
    balance = np.trace(weights) * len(cotangents) / (np.trace(cotangents) * len(weights))
    for patch in layer.patches:
        matrix[np.ix_(patch, patch)] += weights
    for places in layer.patches.T:
        matrix[np.ix_(places, places)] += balance * cotangents
    return matrix[:-1, :-1], balance


def _factor(matrix):
    """The lower Cholesky factor, or None, and the condition number of the system that the matrix is the square of."""
    try:
        factor = scipy.linalg.cholesky(matrix, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return None, np.inf
    reciprocal, _ = scipy.linalg.lapack.dpocon(factor, np.linalg.norm(matrix, 1), uplo="L")
    return factor, float(1 / np.sqrt(max(reciprocal, np.finfo(np.float64).tiny)))


def _scatter(layer, values):
    """Adds values [positions, j] up at their places in the flat input."""
    total = np.zeros(layer.unknowns + 1)
    np.add.at(total, layer.patches, values)
    return total[:-1]


def _chain(network, params, image_shape):
    """The module, and its convolutions with their weights."""
    _check_chain(network, image_shape)
    layers, shapes = [], _input_shapes(network.module.stages, image_shape[1:])
    for number, (shape, stage) in enumerate(zip(shapes, network.module.stages, strict=True)):
        features, size, stride, padding = stage
        name = f"block{number}"
        unknowns = int(np.prod(shape))
        places = np.pad(
            np.arange(unknowns).reshape(shape), ((padding,) * 2, (padding,) * 2, (0, 0)), constant_values=unknowns
        )
        windows = np.lib.stride_tricks.sliding_window_view(places, (size, size), (0, 1))[::stride, ::stride]
        rows, columns = windows.shape[:2]
        patches = windows.transpose(0, 1, 3, 4, 2).reshape(rows * columns, -1)
        weights = np.asarray(params[name]["kernel"], np.float64).reshape(-1, features)
        layers.append(_Layer(name, weights, patches, unknowns))
    return network.module, layers


def _check_chain(network, image_shape):
    if not (isinstance(network, FlaxNetwork) and isinstance(network.module, Chain)):
        raise checks.InputError(
            "R-GAP walks back through a chain of convolutions without bias, pooling or BatchNorm: expected a network "
            "of gi_jax.models.Chain, such as the model rgap_cnn"
        )
    if image_shape[0] > 1:
        raise checks.InputError(
            f"R-GAP with a batch of {image_shape[0]}: it would recover a mixture of the pictures; expected batch size 1"
        )


@dataclass(frozen=True)
class RecursiveInversion:
    """The picture that R-GAP recovers, as a start; of several solutions the one that most looks like pixels."""

    def __call__(self, key: Key, problem: AttackProblem) -> Images:
        del key
        network, shape = problem.network, problem.image_shape

        def on_the_host(params, observed, space):
            try:
                solutions = recover(network, params, observed, shape)
            except (ValueError, MemoryError):  # an InputError or LinAlgError too; neighbors go on
                return np.full(shape, np.nan, np.float32)
            return min(solutions, key=lambda found: _implausibility(found, space)).images.astype(np.float32)

        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.pure_callback(
            on_the_host, result, problem.params, problem.observed, problem.space, vmap_method="sequential"
        )

    def check(self, problems: AttackProblem) -> None:
        """Raises an `InputError` that names the layer at which the recursion will end."""
        if problems.local is not None:
            raise checks.InputError(
                "R-GAP after local steps: their mean gradient mixes several models; expected one step, or to be taken "
                "for one (assume_steps=1)"
            )
        try:
            jax.devices("cpu")
        except RuntimeError as error:
            raise checks.InputError(
                "R-GAP runs on the CPU, which JAX was told to leave alone: expected cpu among JAX_PLATFORMS, such as "
                "cuda,cpu"
            ) from error
        _check_sizes(problems.network, problems.image_shape)
        for layer in analyze(problems.network, problems.params, problems.image_shape):
            if layer.fails:
                raise checks.InputError(
                    f"R-GAP will fail at {layer.name}: {layer.weight_constraints} + {layer.gradient_constraints} "
                    f"equations for {layer.unknowns} unknowns, condition number {layer.condition:.1e}; expected below "
                    f"{WORST_CONDITION:.0e}, which takes more features or smaller strides"
                )


def _check_sizes(network, image_shape):
    """Refuses a chain that cannot be walked back, by its settings alone."""
    _check_chain(network, image_shape)
    if not network.module.slope > 0:
        raise checks.InputError(
            f"R-GAP with slope={network.module.slope:g}: an activation that is not one to one; expected a slope above 0"
        )
    for number, shape in enumerate(_input_shapes(network.module.stages, image_shape[1:])):
        if (unknowns := math.prod(shape)) > MOST_UNKNOWNS:
            raise checks.InputError(
                f"R-GAP at block{number}: an input of {' x '.join(map(str, shape))} is {unknowns} unknowns, whose "
                f"system takes {8 * unknowns**2 / 2**30:.0f} GiB; expected at most {MOST_UNKNOWNS}; try smaller "
                "pictures (image_size)"
            )


def _input_shapes(stages, shape):
    """Height, width and channels of what goes into each stage."""
    for stage in stages:
        yield shape
        sides = [(side + 2 * stage.padding - stage.kernel_size) // stage.stride + 1 for side in shape[:2]]
        shape = (*sides, stage.features)


def _implausibility(found: Solution, space: ImageSpace) -> float:
    """Residual, plus the part of the picture that lies outside the box of pictures."""
    mean, std = (np.asarray(numbers, np.float64) for numbers in (space.mean, space.std))
    inside = np.clip(found.images, -mean / std, (1 - mean) / std)
    return found.residual + np.linalg.norm(found.images - inside) / np.linalg.norm(found.images)


def rgap() -> GradientDescent:
    """R-GAP as an attack."""
    return closed_form(RecursiveInversion())
