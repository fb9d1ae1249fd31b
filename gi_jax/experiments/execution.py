"""How an experiment is run, which changes none of its numbers."""

from dataclasses import dataclass

from gi_jax import checks


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a specification is run; changes no number.

    Attributes:
      data_dir: where a copy of the data set lies.
      lanes: private batches x restarts attacked side by side in one launch; None fills the device.
      chunk: steps between two looks at the attack.
      save_seconds: time between two saves of an unfinished attack.
      reference_scoring: score as the paper's published code does too, beside our own scores.
      memory_bytes: launches are made so small that a program needs no more; None for what the device says it has.
    """

    data_dir: str | None = None
    lanes: int | None = None
    chunk: int = 50
    save_seconds: float = 20.0
    reference_scoring: bool = False
    memory_bytes: int | None = None

    def __post_init__(self):
        checks.positive(chunk=self.chunk, save_seconds=self.save_seconds)
        if self.lanes is not None:
            checks.positive(lanes=self.lanes)
