"""What the server makes of the mean update: an optax optimizer, for which the update is the gradient.

Reddi et al. (2021), Adaptive federated optimization: averaging models is a step of SGD with rate 1 on the mean of
(before - after); other optimizers of the same pseudo-gradient are as good.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import optax


class Server(NamedTuple):
    """A row of the table of servers: `optimizer(rate)` is an optax transformation, `rate` one to begin with."""

    optimizer: Callable[..., optax.GradientTransformation]
    rate: float
    about: str
    paper: str


_ADAPTIVE = dict(eps=1e-3)  # tau of Reddi et al. (2021): how adaptive, not a guard against division by zero
_MOMENTS = dict(b1=0.9, b2=0.99, **_ADAPTIVE)

SERVERS = {
    "fedavg": Server(optax.sgd, 1.0, "the mean of the clients' models", "McMahan et al. 2017"),
    "fedavgm": Server(partial(optax.sgd, momentum=0.9), 1.0, "with momentum 0.9", "Hsu et al. 2019"),
    "fedadagrad": Server(partial(optax.adagrad, **_ADAPTIVE), 0.01, "Adagrad", "Reddi et al. 2021"),
    "fedadam": Server(partial(optax.adam, **_MOMENTS), 0.01, "Adam, bias-corrected as optax's", "Reddi et al. 2021"),
    "fedyogi": Server(partial(optax.yogi, **_MOMENTS), 0.01, "Yogi, bias-corrected as optax's", "Reddi et al. 2021"),
}
"""Servers by name."""
