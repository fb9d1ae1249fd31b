"""What is simulated, as a frozen value."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import numpy as np

from gi_jax import checks, defenses, federated, models
from gi_jax.defenses import Kind
from gi_jax.experiments import canonical
from gi_jax.federated import SERVERS, Federation, Policy
from gi_jax.models import MODELS, Normalize
from gi_jax.threat import LocalTraining

PARTITIONS = ("iid", "dirichlet")
CLIENT_BN = {"batch": Normalize.BATCH, "running": Normalize.GIVEN}
SGD_RATE = 0.1
"""Of the server, where its step is one along the mean gradient."""


@dataclass(frozen=True, kw_only=True)
class FederationSpec:
    """Everything that decides the weights.

    Attributes:
      data: `photos`, `cifar10` or `folder:PATH`; its train split.
      image_size: height and width the pictures are resized to; None keeps the data set's own.
      model: a key of `MODELS`.
      clients: how many.
      partition: `iid` or `dirichlet`, see `gi_jax.federated`.
      alpha: concentration of `dirichlet`.
      rounds: how many.
      clients_per_round, batch_size: see `gi_jax.federated.Federation`.
      at_once: clients computed side by side; None takes as many as keep the device busy.
      local_steps: of the client's SGD, in whole epochs of the pictures of a round (FedAvg); None sends one gradient
        (FedSGD).
      local_batch_size, local_rate: of these steps, see `LocalTraining`.
      server: a key of `SERVERS`.
      server_rate: None takes that of the table, or 0.1 for the step of FedSGD.
      client_bn: `batch` or `running`, the statistics that the clients' BatchNorm uses.
      batch_norm: `shared`, `silobn` or `fedbn`, see `gi_jax.federated.Policy`.
      defense: of every client, as `gi_jax.defenses.parse` reads it.
      test_every: rounds between two tests.
      test_pictures: the accuracy is that on the first so many of the test split; None takes all.
      seed: of weights, partition and all that is drawn.
    """

    data: str = "photos"
    image_size: int | None = None
    model: str = "convnet"
    clients: int = 10
    partition: str = "dirichlet"
    alpha: float = 0.5
    rounds: int = 20
    clients_per_round: int | None = None
    batch_size: int | None = None
    at_once: int | None = None
    local_steps: int | None = None
    local_batch_size: int | None = None
    local_rate: float = 0.01
    server: str = "fedavg"
    server_rate: float | None = None
    client_bn: str = "batch"
    batch_norm: str = "shared"
    defense: str = "none"
    test_every: int = 1
    test_pictures: int | None = None
    seed: int = 0

    def __post_init__(self):
        canonical.numbers(self)
        checks.one_of("model", self.model, MODELS)
        checks.one_of("partition", self.partition, PARTITIONS)
        checks.one_of("client_bn", self.client_bn, CLIENT_BN)
        checks.one_of("server", self.server, SERVERS)
        checks.one_of("batch_norm", self.batch_norm, [str(policy) for policy in Policy])
        checks.positive(clients=self.clients, rounds=self.rounds, test_every=self.test_every)
        checks.seed("seed", self.seed)
        if self.local_batch_size is not None and self.local_steps is None:
            raise checks.InputError(
                f"local_batch_size={self.local_batch_size} without local steps: a client that sends a gradient takes "
                "it on all pictures of the round; give local_steps, or batch_size for fewer pictures"
            )
        if self.local_steps is None and self.local_rate != FederationSpec.local_rate:
            raise checks.InputError(
                f"local_rate={self.local_rate:g} without local steps: a client that sends a gradient takes no step; "
                "give local_steps, or server_rate for the server's"
            )
        if self.partition != "dirichlet" and self.alpha != FederationSpec.alpha:
            raise checks.InputError(
                f"alpha={self.alpha:g} with partition={self.partition!r}: expected partition dirichlet, or no alpha"
            )
        if self.test_pictures is not None:
            checks.positive(test_pictures=self.test_pictures)
        for name, values in defenses.parse(self.defense).stages:
            claimed = [parameter for parameter, _ in values if parameter in ("q", "steps", "delta")]
            if defenses.DEFENSES[name].kind == Kind.DP and claimed:
                raise checks.InputError(
                    f"defense {self.defense!r}: {', '.join(claimed)} are for the epsilon of Poisson sampling, which is "
                    "not a federation's; leave them out"
                )

    @property
    def local(self) -> LocalTraining | None:
        """The client's steps."""
        if self.local_steps is None:
            return None
        return LocalTraining(
            num_steps=self.local_steps, batch_size=self.local_batch_size, learning_rate=self.local_rate
        )

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that are equal for equal specifications."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def federation(self, network: models.Network) -> Federation:
        """The settings of the rounds."""
        server = SERVERS[self.server]
        plain = self.local is None and self.server in ("fedavg", "fedavgm")
        rate = SGD_RATE if plain else server.rate
        return Federation(
            network=network,
            normalize=CLIENT_BN[self.client_bn],
            batch_norm=Policy(self.batch_norm),
            local=self.local,
            batch_size=self.batch_size,
            clients_per_round=self.clients_per_round,
            defense=defenses.parse(self.defense),
            server=server.optimizer,
            server_rate=rate if self.server_rate is None else self.server_rate,
            at_once=self.at_once,
        )

    def divide(self, labels: np.ndarray) -> np.ndarray:
        """Which pictures each client holds, int32 [clients, m]."""
        if self.partition == "iid":
            return federated.iid(labels, self.clients, self.seed)
        return federated.dirichlet(labels, self.clients, self.alpha, self.seed)
