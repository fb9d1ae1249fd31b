"""Simulates a federation: what is simulated as a frozen value, and the run that makes weights and their record."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks, data, defenses, federated, memory, models, training
from gi_jax.defenses import Kind
from gi_jax.experiments.environment import environment
from gi_jax.experiments.plan import TooLarge, check_memory, side_by_side
from gi_jax.experiments.study import on_device, test_split
from gi_jax.experiments.training import Report, TrainingOutcome
from gi_jax.experiments.weights import Origin, Weights
from gi_jax.federated import SERVERS, Diverged, Federation, Policy, Progress
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


def run_federation(
    spec: FederationSpec,
    data_dir: str | None = None,
    *,
    on_report: Callable[[Report], None] | None = None,
    on_test: Callable[[TrainingOutcome], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingOutcome:
    """Simulates from initialization.

    Args:
      spec: what is simulated.
      data_dir: where a copy of the data set lies.
      on_report: called after every chunk of rounds.
      on_test: called with what there is after a test, once the next round showed that its loss is finite.
      should_stop: asked after every chunk; a simulation that is told to stop yields the weights so far, and `complete`
        is False in its result.

    Returns:
      The server's weights, and the content of `federation.json`. Where BatchNorm stays with the clients, the weights
      hold the mean over them of what they keep, and have the accuracy of that; `test_accuracy` of a round is the mean
      of the clients' own models'.

    Raises:
      InputError: for data that is missing, for settings that do not fit it, for rounds that the memory does not hold,
        and for a first round that diverges; after a later one the result is that of the last round of which weights and
        loss are finite, and `reason` in it says why.
    """
    dataset = data.load(spec.data, "train", data_dir, image_size=spec.image_size)
    tested = test_split(spec, data_dir)
    network = models.create(spec.model, dataset.num_classes)
    image_shape = dataset.images.shape[1:]
    federation = spec.federation(network)
    clients = spec.divide(dataset.labels)
    key_weights, key_rounds = jax.random.split(jax.random.key(spec.seed))
    params, batch_stats = network.init(key_weights, image_shape)
    federation.check(clients, batch_stats)
    if spec.at_once is None:
        federation = dataclasses.replace(federation, at_once=_at_once(federation, clients, image_shape))
    state = federated.start(federation, params, batch_stats, spec.clients)
    pool, held_out = on_device(dataset, dataset), None if tested is None else on_device(tested, dataset)
    ends = sorted({*range(spec.test_every, spec.rounds, spec.test_every), spec.rounds})
    n = federation.pictures(clients.shape[1])
    per_client = n if spec.local is None else spec.local_steps * spec.local.per_step(n)
    per_round = federation.sampled(spec.clients) * per_client  # pictures gone through
    rows, losses, stopped, diverged = [], [], False, None
    seconds = {"first": 0.0, "rounds": 0.0, "test": 0.0}

    def play(state, ends):
        return federated.advance(federation, state, pool, clients, key_rounds, ends=ends)

    def close(number, state):
        began = time.monotonic()
        found = [] if held_out is None else federated.scores(federation, state, held_out)
        scores = [score.accuracy for score in found]
        since = rows[-1]["round"] if rows else 0
        mean = float(np.mean(scores)) if scores else None
        rows.append({"round": number, "loss": float(np.mean(losses[since:])), "test_accuracy": mean})
        if len(scores) > 1:
            of_mean = training.evaluate(network, *state.mean(), held_out)
            rows[-1] |= {"test_accuracy_of_clients": scores, "test_accuracy_of_mean": of_mean.accuracy}
        seconds["test"] += time.monotonic() - began
        return all(np.isfinite(score.loss) for score in found)

    def outcome(kept, timed, *, complete, diverged=None):
        origin = Origin(
            model=spec.model,
            num_classes=dataset.num_classes,
            image_shape=tuple(image_shape),
            mean=tuple(dataset.mean),
            std=tuple(dataset.std),
            data=spec.data,
            epochs=round(kept.round * per_round / clients.size, 4),
            steps=kept.round,
            seed=spec.seed,
            test_accuracy=rows[-1].get("test_accuracy_of_mean", rows[-1]["test_accuracy"]),
            test_pictures=0 if tested is None else len(tested),
            defense=spec.defense,
            train_pictures=clients.size,
            clients=spec.clients,
        )
        result = {
            "complete": complete,
            "reason": diverged and f"{diverged}; the weights after round {kept.round} are kept",
            "environment": environment(),
            "spec": dataclasses.asdict(spec) | {"at_once": federation.at_once},
            "network": dataclasses.asdict(origin),
            "note": dataset.note,
            "classes_of_clients": [
                np.bincount(dataset.labels[own], minlength=dataset.num_classes).tolist() for own in clients
            ],
            "losses": list(losses),
            "rounds": list(rows),
            "timing": {
                "first_round_seconds": seconds["first"],
                "seconds_per_round": seconds["rounds"] / max(1, timed - 1),
                "test_seconds": seconds["test"],
            },
        }
        return TrainingOutcome(Weights(origin, *kept.state.mean()), result)

    before = latest = _copied(Progress(0, state, np.zeros(0), [], [], 0.0))
    began = time.monotonic()
    _check_memory(federation, state, pool, clients, key_rounds)
    seconds["first"] += time.monotonic() - began
    try:
        for progress in play(state, ends):
            before, latest = latest, _copied(progress)
            if on_test is not None and rows and rows[-1]["round"] == before.round:  # and its loss is finite
                on_test(outcome(before, before.round, complete=False))
            seconds["rounds" if losses else "first"] += progress.seconds
            losses += progress.losses.tolist()
            if on_report is not None:
                done, total = progress.round * per_round, spec.rounds * per_round
                on_report(Report(f"round {progress.round} of {spec.rounds}", done, total, losses[-1]))
            last = progress.round == spec.rounds
            stopped = not last and should_stop()
            finite = close(progress.round, progress.state) if stopped or progress.round in ends else True
            if not finite and (stopped or last):  # no round comes that would tell
                raise Diverged(f"the loss is not finite after round {progress.round} of {spec.rounds}", progress.round)
            if stopped:
                break
        kept = latest
    except Diverged as error:
        # A loss is that of the weights before its round, so the latest ones may be those that diverged.
        base = latest if latest.round < error.round else before
        kept, since, diverged = _last_finite(play, base, error, spec.rounds)
        if not kept.round:
            raise checks.InputError(f"{diverged}; nothing is kept") from error
        losses[base.round :] = since
        rows[:] = [row for row in rows if row["round"] <= kept.round]
        if not rows or rows[-1]["round"] < kept.round:
            close(kept.round, kept.state)
    return outcome(kept, latest.round, complete=not (stopped or diverged), diverged=diverged)


def _in_flight(federation, held):
    """Pictures that a client, which holds so many, works on at a time."""
    pictures = federation.pictures(held)
    return pictures if federation.local is None else federation.local.per_step(pictures)


def _at_once(federation, clients, image_shape):
    """How many clients to compute side by side."""
    count, held = clients.shape
    return min(federation.sampled(count), side_by_side(_in_flight(federation, held), image_shape))


def _check_memory(federation, state, pool, clients, key):
    """Refuses rounds that the memory does not hold, before the first one."""
    try:
        check_memory(lambda: federated.program_bytes(federation, state, pool, clients, key), memory.available())
    except TooLarge as error:
        pictures = _in_flight(federation, clients.shape[1])
        fewer = f"--batch-size {max(1, int(error.share * pictures))}"
        if federation.local is not None:  # of which a round has a whole number
            fewer = "a smaller --local-batch-size"
        if federation.at_once > 1:
            fewer = f"--at-once {max(1, int(error.share * federation.at_once))}, or {fewer}"
        raise checks.InputError(
            f"at_once={federation.at_once} clients with {pictures:,} pictures each: a round needs "
            f"{error.needed / 1e9:.1f} GB, there are {error.available / 1e9:.1f} GB; try {fewer}"
        ) from error


def _copied(progress):
    """A `Progress` with a state of its own: that of the loop is given away."""
    return progress._replace(state=jax.tree.map(jnp.copy, progress.state))


def _last_finite(play, base, error, rounds):
    """Plays the rounds from `base` to the one that diverged once more, one by one, whatever the chunks were.

    Returns:
      The progress after the last one of finite weights and loss, the losses since `base`, and the error after it.
    """
    kept, losses = base, []
    try:
        for progress in play(_copied(base).state, list(range(base.round + 1, rounds + 1))):
            if progress.round >= error.round:
                break
            kept = _copied(progress)
            losses += progress.losses.tolist()
    except Diverged as earlier:
        error = earlier
    return kept, losses, str(error)
