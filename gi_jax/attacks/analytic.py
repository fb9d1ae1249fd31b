"""The input of a linear layer, in closed form from the layer's gradient.

For z = W x + b and any loss, dL/dW_i = dL/db_i x: every row of the weight's gradient is the input, times a number that
the bias's gradient gives (Phong et al. 2018, "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption",
section 3; Geiping et al. 2020, proposition 3.1). With a batch both are sums over its examples: a row is then a mixture
of all inputs that its unit responds to, and the input itself only where that is one.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.attacks.closed_form import closed_form
from gi_jax.attacks.gradient_descent import GradientDescent
from gi_jax.threat import AttackProblem, Zeroed
from gi_jax.types import Images, Key


def input_from_row(kernel_gradient: jax.Array, bias_gradient: jax.Array, row: int | jax.Array) -> jax.Array:
    """x = dL/dW_i / dL/db_i, from one unit.

    Args:
      kernel_gradient: [d, units].
      bias_gradient: [units].
      row: which unit; its bias must have a gradient.

    Returns:
      [d]; NaN or infinite where the bias has none.
    """
    return kernel_gradient[:, row] / bias_gradient[row]


def input_from_all_rows(kernel_gradient: jax.Array, bias_gradient: jax.Array, *, dropped: bool = False) -> jax.Array:
    """The x that explains all rows best: argmin_x sum_i ||dL/dW_i - dL/db_i x||^2, exact where one row is.

    Args:
      kernel_gradient: [d, units].
      bias_gradient: [units], not all zero.
      dropped: entries of dL/dW that are zero were set to it, so they are left out.

    Returns:
      [d]; 0 where all rows are left out, NaN if no bias has a gradient. Rows count by the square of their bias's
      gradient, so that noise on the rest hardly matters.
    """
    largest = jnp.max(jnp.abs(bias_gradient))  # squares of small gradients would be 0 in float32
    weights = bias_gradient / largest
    with jax.default_matmul_precision("highest"):
        counted = (kernel_gradient != 0) | (not dropped)
        told = jnp.where(counted, 1.0, 0.0) @ jnp.square(weights)
        return (kernel_gradient / largest) @ weights / jnp.where(told == 0, 1.0, told)


@dataclass(frozen=True)
class FirstLayer:
    """The picture of a network that begins with a linear layer, by `input_from_all_rows`: a start.

    The first layer is the one whose tensor `kernel` takes as many numbers as the picture has. Where its bias has no
    gradient there is nothing to divide by: the start is NaN, a lane that failed.
    """

    def __call__(self, key: Key, problem: AttackProblem) -> Images:
        del key
        kernel, bias = _first_layer(problem)
        dropped = any(isinstance(fact, Zeroed) for fact in problem.known)
        return input_from_all_rows(kernel, bias, dropped=dropped).reshape(problem.image_shape)

    def check(self, problems: AttackProblem) -> None:
        """Raises an `InputError` unless there is one picture, a linear first layer, and some gradient of its bias."""
        _, bias = _first_layer(problems)
        if not np.any(bias):
            raise checks.InputError(
                "the first bias has gradient zero everywhere: there is nothing to divide by; no unit responded, or a "
                "defense dropped it"
            )


def _first_layer(problem: AttackProblem) -> tuple[jax.Array, jax.Array]:
    """Observed gradients of kernel and bias, with the leading axes that the problem has."""
    batch = problem.image_shape[0]
    if problem.local is not None:
        raise checks.InputError(
            "closed form of the first layer after local steps: their mean gradient mixes several models; expected one "
            "step, or to be taken for one (assume_steps=1)"
        )
    if batch > 1:
        raise checks.InputError(
            f"closed form of the first layer with a batch of {batch}: its gradient holds mixtures of the pictures; "
            "expected batch size 1"
        )
    params, observed = _by_name(problem.params), _by_name(problem.observed)
    kernel = _kernel_on_pictures(params, math.prod(problem.image_shape))
    layer = kernel.removesuffix("kernel")
    bias = f"{layer}bias"
    if bias not in params:
        raise checks.InputError(
            f"closed form of the first layer: there is no {bias}, whose gradient the rows are divided by; without a "
            "bias the input is known up to a factor only"
        )
    return observed[kernel], observed[bias]


def _kernel_on_pictures(params: dict[str, jax.Array], size: int) -> str:
    """The name of the one kernel of shape [size, units] in a network without convolutions."""
    kernels = {name: leaf.shape for name, leaf in params.items() if name.rpartition("/")[2] == "kernel"}
    if not kernels:
        raise checks.InputError(
            "closed form of the first layer: the network has no tensor called kernel; apply "
            "gi_jax.attacks.input_from_all_rows to the observed gradients of weight and bias of its first layer"
        )
    fitting = [name for name, shape in kernels.items() if len(shape) == 2 and shape[0] == size]
    strange = [name for name, shape in kernels.items() if len(shape) != 2] or ([] if fitting else list(kernels))
    if strange:
        raise checks.InputError(
            f"closed form of the first layer: {strange[0]} has shape {kernels[strange[0]]}; expected a linear layer on "
            f"the whole picture, ({size}, units), such as that of the model mlp"
        )
    if len(fitting) > 1:
        raise checks.InputError(
            f"closed form of the first layer: {' and '.join(fitting)} take {size} numbers, as many as a picture has, "
            "and which comes first is not known; apply gi_jax.attacks.input_from_all_rows to the observed gradients of "
            "the first one"
        )
    return fitting[0]


def _by_name(tree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def phong() -> GradientDescent:
    """The closed form of a linear first layer; exact for one picture and no defense."""
    return closed_form(FirstLayer())
