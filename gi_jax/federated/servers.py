"""What the server makes of the mean update: an optax optimizer, for which the update is the gradient.

Reddi et al. (2021), Adaptive federated optimization: averaging models is a step of SGD with rate 1 on the mean of
(before - after); other optimizers of the same pseudo-gradient are as good. Theirs are in `gi_jax.federated.adaptive`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import optax

from gi_jax.federated.adaptive import fed_adagrad, fed_adam, fed_yogi


class Server(NamedTuple):
    """A row of the table of servers: `optimizer(rate)` is an optax transformation, `rate` one to begin with."""

    optimizer: Callable[..., optax.GradientTransformation]
    rate: float
    about: str
    paper: str


SERVERS = {
    "fedavg": Server(optax.sgd, 1.0, "the mean of the clients' models", "McMahan et al. 2017"),
    "fedavgm": Server(partial(optax.sgd, momentum=0.9), 1.0, "with momentum 0.9", "Hsu et al. 2019"),
    "fedadagrad": Server(fed_adagrad, 0.01, "Adagrad, without momentum", "Reddi et al. 2021"),
    "fedadam": Server(fed_adam, 0.01, "Adam, without bias correction", "Reddi et al. 2021"),
    "fedyogi": Server(fed_yogi, 0.01, "Yogi, without bias correction", "Reddi et al. 2021"),
}
"""Servers by name."""
