"""Who takes part, what a client does in a round, and what the server makes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np
import optax

from gi_jax import checks, defenses
from gi_jax.federated.batch_norm import Policy
from gi_jax.models import Network, Normalize
from gi_jax.threat import LocalTraining
from gi_jax.threat.victim import GradientDefense
from gi_jax.types import BatchStats


def _static(**options):
    return field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Federation:
    """A federation's settings. Rates are leaves; everything else is static.

    Every client holds, and in a round works on, the same number of pictures, so that weighting the clients by their
    pictures (McMahan et al. 2017) is the plain mean.

    Attributes:
      network: static.
      normalize: how the clients run the normalization layers: `BATCH`, after which their running averages hold the
        round's pictures, or `GIVEN`, under which these stay as they are.
      batch_norm: what of these layers stays with the clients.
      local: the client's steps (FedAvg, which averages models); None for one gradient of all pictures of the round,
        which the server steps along (FedSGD).
      batch_size: pictures that a client works on in a round, drawn anew among its own; None for all of them.
      clients_per_round: drawn anew for every round; None for all.
      defense: what a client does to its pictures and its update.
      server: from the server's rate to its optimizer, such as those of `SERVERS`. A function is equal to itself only,
        so build a `partial` once.
      server_rate: for FedSGD the learning rate; 1 averages the models of FedAvg.
      at_once: clients computed side by side; the others wait, which takes less memory, and with 1 was faster on two
        CPU cores (convnet, 14 instead of 23 seconds a round, busy machine, n = 1). None for all.
    """

    network: Network = _static()
    normalize: Normalize = _static(default=Normalize.BATCH)
    batch_norm: Policy = _static(default=Policy.SHARED)
    local: LocalTraining | None = None
    batch_size: int | None = _static(default=None)
    clients_per_round: int | None = _static(default=None)
    defense: GradientDefense = _static(default=defenses.identity)
    server: Callable[..., optax.GradientTransformation] = _static(default=optax.sgd)
    server_rate: jax.Array | float = 1.0
    at_once: int | None = _static(default=None)

    @property
    def mixing(self) -> defenses.Mixing | None:
        """How clients encode their pictures; None if they do not."""
        return getattr(self.defense, "mixing", None)

    @property
    def distance(self) -> jax.Array | float:
        """How far a client goes along its mean gradient in a round: rate times steps; 1 for FedSGD."""
        return 1.0 if self.local is None else self.local.learning_rate * self.local.num_steps

    def sampled(self, num_clients: int) -> int:
        """Clients of a round."""
        return num_clients if self.clients_per_round is None else self.clients_per_round

    def pictures(self, held: int) -> int:
        """Pictures that a client which holds so many works on in a round."""
        return held if self.batch_size is None else self.batch_size

    def check(self, clients: np.ndarray, batch_stats: BatchStats) -> None:
        """Refuses what cannot be run.

        Args:
          clients: int [num_clients, pictures], from `iid` or `dirichlet`.
          batch_stats: of the network.

        Raises:
          InputError: saying what would do.
        """
        num_clients, held = clients.shape
        checks.positive(server_rate=self.server_rate)
        for name, most in (("clients_per_round", num_clients), ("batch_size", held), ("at_once", num_clients)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                has = "clients there are" if most == num_clients and name != "batch_size" else "pictures a client holds"
                raise checks.InputError(f"{name}={value}: expected 1 to {most}, as many {has}, or None for all")
        if self.local is not None:
            self.local.check(self.pictures(held))
        if self.batch_norm != Policy.SHARED and not batch_stats:
            raise checks.InputError(
                f"batch_norm {str(self.batch_norm)!r} for a network without BatchNorm: there is nothing to keep; "
                "expected 'shared'"
            )
        if self.batch_norm == Policy.FED_BN and self.local is None:
            raise checks.InputError(
                "batch_norm 'fedbn' without local steps: what stays with a client, nobody else can train; give local, "
                "of one step or more"
            )
        if self.mixing is not None and self.mixing.num_public:
            raise checks.InputError(
                f"defense '{self.defense}' mixes in public pictures, which a federation has none of; expected mixup or "
                "intra_instahide"
            )
