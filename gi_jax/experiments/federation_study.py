"""What a simulation is made of: data on the device, clients with their pictures, and the program of a round."""

import dataclasses
import time
from collections.abc import Iterator

import jax
import numpy as np

from gi_jax import checks, data, federated, memory, models, training
from gi_jax.experiments.federation_spec import FederationSpec
from gi_jax.experiments.plan import TooLarge, check_memory, side_by_side
from gi_jax.experiments.study import on_device, test_split
from gi_jax.experiments.weights import Origin
from gi_jax.federated import Progress, State


class FederationStudy:
    """The data of a specification on the device, and what decides the program."""

    def __init__(self, spec: FederationSpec, data_dir: str | None):
        self.spec = spec
        self.dataset = data.load(spec.data, "train", data_dir, image_size=spec.image_size)
        tested = test_split(spec, data_dir)
        self.network = models.create(spec.model, self.dataset.num_classes)
        self.federation = spec.federation(self.network)
        self.clients = spec.divide(self.dataset.labels)
        key_weights, self.key = jax.random.split(jax.random.key(spec.seed))
        self._model = self.network.init(key_weights, self.dataset.images.shape[1:])
        self.federation.check(self.clients, self._model[1])
        if spec.at_once is None:
            self.compute_at_once(self._at_once())
        self.pool = on_device(self.dataset, self.dataset)
        self.held_out = None if tested is None else on_device(tested, self.dataset)

    @property
    def per_round(self) -> int:
        """Pictures that are gone through in a round."""
        n, spec = self.federation.pictures(self.clients.shape[1]), self.spec
        return self.federation.sampled(spec.clients) * (
            n if spec.local is None else spec.local_steps * spec.local.per_step(n)
        )

    def compute_at_once(self, number: int) -> None:
        """Computes so many clients side by side from now on."""
        self.federation = dataclasses.replace(self.federation, at_once=number)

    def start(self) -> State:
        """The state before the first round."""
        return federated.start(self.federation, *self._model, self.spec.clients)

    def play(self, state: State, ends: list[int]) -> Iterator[Progress]:
        """As `gi_jax.federated.advance`."""
        return federated.advance(self.federation, state, self.pool, self.clients, self.key, ends=ends)

    def scores(self, state: State) -> list[training.Score]:
        """How the models of the clients, where they have their own, or of the server do on the held-out pictures."""
        return [] if self.held_out is None else federated.scores(self.federation, state, self.held_out)

    def score_of_mean(self, state: State) -> training.Score:
        """How the mean of the clients' models does."""
        return training.evaluate(self.network, *state.mean(), self.held_out)

    def origin(self, number: int, accuracy: float | None) -> Origin:
        """Of the weights after so many rounds."""
        spec, dataset = self.spec, self.dataset
        return Origin(
            model=spec.model,
            num_classes=dataset.num_classes,
            image_shape=tuple(dataset.images.shape[1:]),
            mean=tuple(dataset.mean),
            std=tuple(dataset.std),
            data=spec.data,
            epochs=round(number * self.per_round / self.clients.size, 4),
            steps=number,
            seed=spec.seed,
            test_accuracy=accuracy,
            test_pictures=0 if self.held_out is None else len(self.held_out.labels),
            defense=spec.defense,
            train_pictures=self.clients.size,
            clients=spec.clients,
        )

    def classes_of_clients(self) -> list[list[int]]:
        """Pictures of each class that each client holds."""
        labels, classes = self.dataset.labels, self.dataset.num_classes
        return [np.bincount(labels[own], minlength=classes).tolist() for own in self.clients]

    def compile(self, state: State) -> float:
        """Compiles the program of a round; seconds that it took.

        Raises:
          InputError: if the memory does not hold it.
        """
        began = time.monotonic()
        program = (self.federation, state, self.pool, self.clients, self.key)
        try:
            check_memory(lambda: federated.program_bytes(*program), memory.available())
        except TooLarge as error:
            at_once, pictures = self.federation.at_once, self._in_flight()
            fewer = f"--batch-size {max(1, int(error.share * pictures))}"
            if self.federation.local is not None:  # of which a round has a whole number
                fewer = "a smaller --local-batch-size"
            if at_once > 1:
                fewer = f"--at-once {max(1, int(error.share * at_once))}, or {fewer}"
            raise checks.InputError(
                f"at_once={at_once} clients with {pictures:,} pictures each: a round needs {error.needed / 1e9:.1f} "
                f"GB, there are {error.available / 1e9:.1f} GB; try {fewer}"
            ) from error
        return time.monotonic() - began

    def _in_flight(self) -> int:
        """Pictures that a client works on at a time."""
        pictures = self.federation.pictures(self.clients.shape[1])
        return pictures if self.federation.local is None else self.federation.local.per_step(pictures)

    def _at_once(self) -> int:
        """How many clients to compute side by side."""
        most = side_by_side(self._in_flight(), self.dataset.images.shape[1:])
        return min(self.federation.sampled(self.spec.clients), most)
