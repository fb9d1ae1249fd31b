"""Cells: what an experiment is made of. Each is one frozen value that decides one row of the store."""

import dataclasses
import hashlib
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass

from gi_jax import checks
from gi_jax.experiments.decode import DecodeSpec
from gi_jax.experiments.spec import AttackSpec, described
from gi_jax.experiments.streams import REVISION
from gi_jax.experiments.train_spec import TrainSpec


@dataclass(frozen=True, kw_only=True)
class DistributionSpec:
    """How labels are distributed in the batches of a data set: see `gi_jax.experiments.labels.distribution_of`."""

    data: str = "photos"
    split: str = "train"


KINDS = {AttackSpec: "attack", TrainSpec: "training", DecodeSpec: "decoding", DistributionSpec: "distribution"}


@dataclass(frozen=True)
class Cell:
    """What is studied by one row.

    Attributes:
      spec: of an attack (a single run without weights), a training, a decoding of true encodings, or a distribution.
      network: of an attack: the training that makes the attacked weights; None for those at initialization.
    """

    spec: AttackSpec | TrainSpec | DecodeSpec | DistributionSpec
    network: TrainSpec | None = None

    def __post_init__(self):
        if isinstance(self.spec, AttackSpec):
            if len(self.spec.runs) != 1 or self.spec.weights is not None:
                raise checks.InputError(
                    "a cell holds an attack of a single run, whose network is trained by the cell: expected one "
                    "defense, one kind of labels and no weights"
                )
        elif self.network is not None:
            raise checks.InputError(f"a {self.kind} attacks no network: expected none")

    @property
    def kind(self) -> str:
        """`attack`, `training`, `decoding` or `distribution`."""
        return KINDS[type(self.spec)]

    @property
    def description(self) -> dict:
        """The cell as plain values, which its row begins with."""
        network = None if self.network is None else dataclasses.asdict(self.network)
        return {"kind": self.kind, "spec": described(self.spec), "network": network}

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that are equal for equal cells."""
        return self.id_of_revision(REVISION)

    def id_of_revision(self, revision: int) -> str:
        """What it is called in a revision of `gi_jax.experiments.streams`; trainings are the same in all of them."""
        # The first one did not name itself.
        named = {"revision": revision} if revision > 1 and self.kind in ("attack", "decoding") else {}
        text = json.dumps({**self.description, **named}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def words(self) -> str:
        """The cell on one line, for progress bars and messages."""
        spec = self.spec
        match self.kind:
            case "attack":
                return f"{spec.attack_name} on {spec.data}, batch size {spec.batch_size}, {spec.runs[0].title}"
            case "training":
                return f"training of {spec.model} on {spec.data}, {spec.defense}, seed {spec.seed}"
            case "decoding":
                return f"decoding of {spec.data}, {', '.join(spec.defenses)}"
        return f"labels of {spec.data}"


def of_older_revisions(cells: Iterable[Cell], rows: Container[str]) -> int:
    """How many cells have a row of an older revision, which counts no more, and none of this one."""
    older = range(1, REVISION)
    return sum(cell.id not in rows and any(cell.id_of_revision(one) in rows for one in older) for cell in set(cells))
