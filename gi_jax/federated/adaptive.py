"""The adaptive server steps of Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 2, as written there.

What optax has under these names is near, not the same: its Adagrad has the constant inside of the root and begins at
0.1; its Adam and Yogi correct the moments for their beginning, and its Yogi begins the first moment above 0, so that
tensors that never leave a client would move.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gi_jax.types import Params


class Moments(NamedTuple):
    """The state: `first` is m_t, `second` is v_t, both in the structure of the parameters."""

    first: Params
    second: Params


def _adagrad(second, square, beta2):
    return second + square


def _adam(second, square, beta2):
    return beta2 * second + (1 - beta2) * square


def _yogi(second, square, beta2):
    return second - (1 - beta2) * square * jnp.sign(second - square)


def _step(rate, accumulate: Callable, beta1: float, beta2: float, tau: float) -> optax.GradientTransformation:
    """m_t = beta1 m_{t-1} + (1 - beta1) d_t, v_t by `accumulate`, and a step of -rate m_t / (sqrt(v_t) + tau).

    The update d_t is (before - after), so the sign is opposite to the paper's. m_{-1} = 0, and v_{-1} = tau^2, the
    least that the paper allows. Nothing is corrected for that beginning.
    """

    def init(params):
        return Moments(optax.tree.zeros_like(params), optax.tree.full_like(params, tau**2))

    def update(updates, state, params=None):
        del params
        first = jax.tree.map(lambda m, d: beta1 * m + (1 - beta1) * d, state.first, updates)
        second = jax.tree.map(lambda v, d: accumulate(v, jnp.square(d), beta2), state.second, updates)
        steps = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + tau), first, second)
        return steps, Moments(first, second)

    return optax.GradientTransformation(init, update)


def fed_adagrad(rate, *, beta1: float = 0.0, tau: float = 1e-3) -> optax.GradientTransformation:
    """FedAdagrad: v_t = v_{t-1} + d_t^2.

    Args:
      rate: eta of the paper; may be traced.
      beta1: of the first moment, in [0, 1); 0 for no momentum.
      tau: how adaptive, in the units of an update: far above its entries the step is that of SGD with rate / tau.
    """
    return _step(rate, _adagrad, beta1, 0.0, tau)


def fed_adam(rate, *, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> optax.GradientTransformation:
    """FedAdam: v_t = beta2 v_{t-1} + (1 - beta2) d_t^2; arguments as for `fed_adagrad`, beta2 in [0, 1)."""
    return _step(rate, _adam, beta1, beta2, tau)


def fed_yogi(rate, *, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> optax.GradientTransformation:
    """FedYogi: v_t = v_{t-1} - (1 - beta2) d_t^2 sign(v_{t-1} - d_t^2); arguments as for `fed_adam`."""
    return _step(rate, _yogi, beta1, beta2, tau)
