"""A federation: clients that train together, and what an adversary among them or above them sees."""

from gi_jax.federated.adversary import Adversary, Secret, Seen
from gi_jax.federated.batch_norm import Model, Policy
from gi_jax.federated.evaluate import accuracies, scores
from gi_jax.federated.federation import Federation
from gi_jax.federated.partition import dirichlet, iid
from gi_jax.federated.rounds import State, keys_of_round, play, start, take_part
from gi_jax.federated.servers import SERVERS
from gi_jax.federated.simulation import Diverged, Progress, Simulation, advance, program_bytes, simulate

__all__ = [
    "SERVERS",
    "Adversary",
    "Diverged",
    "Federation",
    "Model",
    "Policy",
    "Progress",
    "Secret",
    "Seen",
    "Simulation",
    "State",
    "accuracies",
    "advance",
    "dirichlet",
    "iid",
    "keys_of_round",
    "play",
    "program_bytes",
    "scores",
    "simulate",
    "start",
    "take_part",
]
