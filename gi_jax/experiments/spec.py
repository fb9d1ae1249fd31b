"""What an attack run studies, as a frozen value. How it is run is `gi_jax.experiments.execution`."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

from gi_jax import defenses
from gi_jax.attacks import ATTACKS
from gi_jax.experiments import canonical, spec_checks
from gi_jax.experiments.streams import REVISION
from gi_jax.models import Normalize
from gi_jax.threat import RUNNING, THREATS, BatchNormThreat, LocalTraining, Shared

NUM_EPOCHS = (1, 2, 4, 8, 16)
"""Numbers of epochs that an adversary that is not told tries."""

_NO_PRIOR = ("running", "proxy", "proxy-reference", "exact-paper")
"""Threat models that call for no statistics prior: their adversary has used up what it has in the normalization."""

_AVERAGES = (Shared.RUNNING, Shared.RUNNING_AFTER)
_INFERRED_PRIOR = 0.003
"""Weight of the prior of `layerwise` where its target are running averages, which are those of no batch.

ResNet-18 after 0.19 epochs, two pictures of CIFAR-10, 200 steps: distance of the gradients 0.58 and 0.59 with it, 0.81
and 0.73 with the 0.03 that is best for the batch's own statistics.
"""

_COSINE = ("inverting_gradients", "gradient_inversion_evaluation", "modern")
"""Attacks that take weight and rate of the threat model; the others have their own, or losses in other units."""


class Run(NamedTuple):
    """One of the attacks that a specification compares: a defense, and what the adversary has of the labels."""

    defense: str
    labels: str

    @property
    def title(self) -> str:
        """On one line; known labels go without saying."""
        return self.defense if self.labels == "known" else f"{self.defense}, labels {self.labels}"


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """Everything that decides the numbers of a run.

    Attributes:
      data: `photos`, `cifar10` or `folder:PATH`.
      split: `train` or `test`.
      image_size: height and width the pictures are resized to; None keeps the data set's own.
      first: victims are the first that many pictures of each class, in scan order.
      victim_seed: draw the victims at random with this seed instead.
      model: a key of `MODELS`.
      model_seed: of the weights at initialization.
      weights, weights_hash: take trained weights instead: where they lie, and the hash of that file's content, which
        alone counts for the fingerprint. `gi_jax.experiments.weights.settings_of` fills in these two and `model`.
      batch_size: pictures in a private batch.
      num_batches: observed updates; None takes as many as there are, six at most.
      clients, view: clients of a round, and who looks on, a key of `VIEWS`; of a sum of clients each has a batch.
      local_steps, local_batch_size, local_rate: the client takes that many steps of SGD, each on that many of its
        pictures (None: all), at that rate, and sends its model; whole epochs. One step on all sends its gradient.
      order: whether the adversary is told which pictures each local step took: `known` (an oracle) or `unknown`.
      assume_steps: how many local steps the adversary takes the update to be made of if it is not told; `auto` for the
        number that fits best. None: it is told.
      epoch_prior: weight of the prior that ties the epochs' guesses together; None for 0.1.
      client_bn: how the client normalizes: `running` or `batch` statistics.
      bn: the adversary's setting with a client in batch mode, a key of `THREATS`; None for running, and with a client
        in batch mode for `exact`, or `infer` after local steps.
      labels: what the adversary has of the private labels: `known`, `optimize` (jointly with the pictures), `auto` or a
        key of `gi_jax.attacks.labels.METHODS` (recovered from the gradient first). Several: a run for each, under each
        of the defenses, in this order; a single one may be given as a string. None: what the published attack has.
      attack: a key of `ATTACKS`; None takes the strongest known for the threat model.
      attacker: `adaptive` is told the defense, its parameters included, and fits the attack to it; `encodings` is told
        how pictures are encoded, and nothing of what is done to the gradient; `plain` neither.
      tv, bn_prior, learning_rate: weights and rate; None takes the default of the threat model.
      steps, restarts: of the attack.
      box: what keeps its guesses valid: `valid` (pictures in [0, 1]) or `reference` (that of the paper's published
        code, whose constants, of CIFAR-10, belong to another normalization and cut dark and bright values off).
      precision: in which the adversary imagines the client's step: `float32`, or `bfloat16` activations, which take
        half the bytes on accelerators (and longer on CPUs). The client always computes in float32.
      defenses: one run each, in this order; each `name:parameter=value`, stages joined by ` + `.
      encodings: epochs in which a defense that encodes pictures encodes all of them, each time anew.
      seed: of starts and of the client's noise.
    """

    data: str = "photos"
    split: str = "train"
    image_size: int | None = None
    first: int = 1
    victim_seed: int | None = None
    model: str = "convnet"
    model_seed: int = 0
    weights: str | None = None
    weights_hash: str | None = None
    batch_size: int = 1
    num_batches: int | None = None
    clients: int = 1
    view: str = "server"
    local_steps: int = 1
    local_batch_size: int | None = None
    local_rate: float = 0.01
    order: str = "unknown"
    assume_steps: int | str | None = None
    epoch_prior: float | None = None
    client_bn: str = "running"
    bn: str | None = None
    labels: tuple[str, ...] | str | None = None
    attack: str | None = None
    attacker: str = "adaptive"
    tv: float | None = None
    bn_prior: float | None = None
    learning_rate: float | None = None
    steps: int = 400
    restarts: int = 1
    box: str = "valid"
    precision: str = "float32"
    defenses: tuple[str, ...] = ("none",)
    encodings: int = 1
    seed: int = 0

    def __post_init__(self):
        canonical.numbers(self)
        spec_checks.check_names(self)
        labels = ATTACKS[self.attack_name].labels if self.labels is None else self.labels
        object.__setattr__(self, "labels", (labels,) if isinstance(labels, str) else tuple(labels))
        # The undefended run comes first; the rest keep their order.
        written = (str(defenses.parse(text)) for text in self.defenses)
        object.__setattr__(self, "defenses", tuple(sorted(written, key=lambda text: text != "none")))
        if isinstance(self.assume_steps, str) and self.assume_steps.isdecimal():
            object.__setattr__(self, "assume_steps", int(self.assume_steps))
        spec_checks.check(self)

    @property
    def local(self) -> LocalTraining | None:
        """The client's local steps; None for a single one, which the adversary knows of."""
        if self.local_steps == 1 and self.assume_steps is None:
            return None
        return self.assumption(self.local_steps)

    def assumption(self, steps: int) -> LocalTraining:
        """That many local steps; a single one is on all pictures."""
        size = None if steps == 1 else self.local_batch_size
        return LocalTraining(num_steps=steps, batch_size=size, learning_rate=self.local_rate)

    @property
    def steps_to_try(self) -> tuple[int, ...]:
        """Numbers of local steps that an adversary that is not told considers."""
        per_epoch = self.batch_size // (self.local_batch_size or self.batch_size)
        return tuple(per_epoch * epochs for epochs in NUM_EPOCHS)

    @property
    def runs(self) -> tuple[Run, ...]:
        """What is compared, in the order of the results: each defense with each kind of labels."""
        return tuple(Run(defense, labels) for defense in self.defenses for labels in self.labels)

    def only(self, run: Run) -> "AttackSpec":
        """The specification of a single one of its runs; it gives the same numbers.

        All runs have the attack that is chosen for the whole: a comparison of defenses compares no attacks.
        """
        encodings = 1 if defenses.parse(run.defense).mixing is None else self.encodings
        alone = dict(defenses=(run.defense,), labels=(run.labels,), encodings=encodings)
        return dataclasses.replace(self, **alone, attack=self.attack_name)

    @property
    def batches_per_update(self) -> int:
        """Private batches behind one observed update: those of all clients where only their sum is seen."""
        return self.clients if self.view in ("sum", "client") else 1

    @property
    def pictures_per_update(self) -> int:
        """Pictures behind one observed update."""
        return self.batch_size * self.batches_per_update

    @property
    def threat(self) -> BatchNormThreat:
        """The BatchNorm threat model."""
        return RUNNING if self.client_bn == "running" else THREATS[self._bn]

    @property
    def _bn(self):
        if self.client_bn == "running":
            return "running"
        return self.bn or ("exact" if self.local is None else "infer")

    @property
    def has_prior(self) -> bool:
        """Whether there is a statistics prior: as told, or where the threat model calls for it."""
        return self._bn not in _NO_PRIOR if self.bn_prior is None else self.bn_prior > 0

    @property
    def tv_weight(self) -> float:
        """Weight of total variation with a cosine: the given one, or 0.001 (running) and 0.05 (batch statistics)."""
        if self.tv is not None:
            return self.tv
        return 1e-3 if self.client_bn == "running" else 0.05

    @property
    def rate(self) -> float:
        """Learning rate: the given one; the published 0.1 with batch statistics, more with running ones.

        With running statistics the first steps decide where things are in the picture. At 0.1 signed steps can settle
        on a rearranged picture (first CIFAR-10 airplane, ResNet-18: 10.6 dB after 1,000 steps, in each of six restarts
        alike); at 1 they cross the box in a few (30.7 dB after 400). Soft signs cross it at 0.3, and go on: four
        photographs, ResNet-18, 200 steps, 22.7 dB signed and 33.4 dB soft.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        if self.client_bn == "batch":
            return 0.1
        return 0.3 if self.attack_name == "modern" else 1.0

    @property
    def attack_name(self) -> str:
        """The named attack, or the strongest known for the threat model.

        That is `modern` with running statistics, and `layerwise` where the statistics are guessed, unless a defense
        changes the gradient, whose likelihood knows no layers, or the threat model is one of published code, which gets
        the paper's attack.
        """
        if self.attack is not None:
            return self.attack
        if self._bn in _NO_PRIOR and not self.bn_prior:
            return "modern" if self.client_bn == "running" else "inverting_gradients"
        defended = any(defenses.parse(text).gradient_stages for text in self.defenses)
        published = self._bn in _NO_PRIOR or self._bn.endswith("-reference")
        return "gradient_inversion_evaluation" if published or defended else "layerwise"

    @property
    def attack_settings(self) -> dict[str, float]:
        """What replaces published settings of the attack."""
        given = {"num_steps": self.steps, "tv": self.tv, "learning_rate": self.learning_rate, "bn_prior": self.bn_prior}
        if not self.has_prior:
            given["bn_prior"] = 0.0
        elif self.attack_name == "layerwise" and self.threat.shared in _AVERAGES and self.bn_prior is None:
            given["bn_prior"] = _INFERRED_PRIOR
        if self.attack_name in _COSINE:
            given |= {"tv": self.tv_weight, "learning_rate": self.rate}
        offered = ATTACKS[self.attack_name].settings
        return {name: value for name, value in given.items() if name in offered and value is not None}

    @property
    def uses_statistics(self) -> bool:
        """Whether the shared statistics enter the attack: in its normalization, or as the target of a prior."""
        weights = ATTACKS[self.attack_name].published | self.attack_settings
        return self.threat.adversary != Normalize.BATCH or weights.get("bn_prior", 0.0) > 0

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that are equal for equal specifications."""
        settings = described(self)
        del settings["weights"]
        text = json.dumps({**settings, "revision": REVISION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def described(spec) -> dict:
    """A specification as plain values, by which it is known.

    The precision is left out where it is float32, as it was before there was a choice; and weights that are zero are a
    whole 0, as the published lists have it.
    """
    settings = dataclasses.asdict(spec)
    settings |= {name: 0 for name in ("tv", "bn_prior") if settings.get(name) == 0}
    if settings.get("precision") == AttackSpec.precision:
        del settings["precision"]
    return settings
