"""The named experiments: each a function of a scale that lists its cells, with their places in tables and figures."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from gi_jax import checks
from gi_jax.experiments import published
from gi_jax.experiments.cells import Cell, DistributionSpec
from gi_jax.experiments.decode import DecodeSpec
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.models import Normalize
from gi_jax.threat import Shared


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment is.

    Attributes:
      about: a line for help texts.
      data: what is attacked and trained on.
      first: private pictures are the first that many of each class.
      batches: batch sizes, each with the number of private batches and the columns of Table 2 that are run with it.
      network: the training that makes the attacked weights; None for weights at their initialization.
      training: of the accuracies.
      model: that is attacked and trained.
      steps: of every attack.
      instead: settings of Table 2's attack that replace the published ones; with any, the network is at its
        initialization.
      columns: of Table 2, whose accuracy is measured.
      encodings: epochs T in which pictures are encoded.
      seeds: of trainings.
      grid: number of total variation and of statistics weights in the sweep, and the pictures it attacks.
      restarts: of attacks that draw several to their mean.
      large_size, large_model, large_steps: of the large picture of Figure 1.
    """

    about: str
    data: str
    first: int
    batches: tuple[tuple[int, int, tuple[str, ...]], ...]
    model: str
    network: TrainSpec | None
    training: TrainSpec
    steps: int
    instead: dict[str, str | float | None]
    columns: tuple[str, ...]
    encodings: int
    seeds: int
    grid: tuple[int, int, int]
    restarts: int
    large_size: int
    large_model: str
    large_steps: int


_COLUMNS = published.table2().columns
_FEW = ("none", "prune:p=0.9", "prune:p=0.99", "intra_instahide:k=4")
_SMALL_NETWORK = TrainSpec(
    data="cifar10", model="convnet", epochs=1.0, batch_size=64, train_pictures=10_000, test_pictures=1000
)
_PAPER_NETWORK = TrainSpec(
    data="cifar10", model="resnet18", epochs=2.0, batch_size=64, schedule="constant", train_pictures=49_000
)

_EASIER = dict(client_bn="running", bn=None, attack="inverting_gradients", tv=0.01, bn_prior=None, learning_rate=1.0)
"""A client with running statistics, whose pictures show after a hundred steps; the published attack needs thousands."""

SCALES = {
    "smoke": Scale(
        about="embedded photographs, no download, a minute or a few: shows that everything works",
        data="photos",
        first=1,
        batches=((1, 4, _FEW), (4, 1, ("none", "prune:p=0.9"))),
        model="convnet",
        network=None,
        training=TrainSpec(epochs=2.0, batch_size=16),
        steps=100,
        instead=_EASIER,
        columns=("none", "prune:p=0.9", "intra_instahide:k=4"),
        encodings=2,
        seeds=1,
        grid=(2, 2, 1),
        restarts=2,
        large_size=64,
        large_model="convnet",
        large_steps=20,
    ),
    "small": Scale(
        about="CIFAR-10 and a small network, which saw 10,000 pictures where statistics are in question: minutes on "
        "two cores",
        data="cifar10",
        first=4,
        batches=((1, 8, _COLUMNS), (16, 1, _COLUMNS), (32, 1, _COLUMNS)),
        model="convnet",
        network=_SMALL_NETWORK,
        training=dataclasses.replace(_SMALL_NETWORK, epochs=2.0),
        steps=200,
        instead=_EASIER,
        columns=_COLUMNS,
        encodings=2,
        seeds=1,
        grid=(4, 3, 4),
        restarts=4,
        large_size=224,
        large_model="convnet",
        large_steps=200,
    ),
    "paper": Scale(
        about="CIFAR-10 and ResNet-18 as in the paper: for accelerators",
        data="cifar10",
        first=5,
        batches=((1, 50, _COLUMNS), (16, 3, _COLUMNS), (32, 1, _COLUMNS)),
        model="resnet18",
        network=_PAPER_NETWORK,
        training=TrainSpec(data="cifar10", model="resnet18", recipe="published"),
        steps=10_000,
        instead={},
        columns=_COLUMNS,
        encodings=20,
        seeds=5,
        grid=(7, 5, 50),
        restarts=8,
        large_size=224,
        large_model="resnet18_large",
        large_steps=24_000,
    ),
}
"""By name."""

_FEWER = re.compile(r"batches=([1-9][0-9]{0,5})")


def scale_named(text: str) -> Scale:
    """A scale by its name, `paper`, or by that and the private batches of an attack at most, `paper:batches=10`.

    Under encodings the private pictures are mixed with each other, so there are fewer to mix then.

    Raises:
      InputError: for an unknown name, and for what is not a number of batches.
    """
    name, colon, rest = text.partition(":")
    scale = SCALES[checks.one_of("scale", name, SCALES)]
    if not colon:
        return scale
    found = _FEWER.fullmatch(rest)
    if found is None:
        raise checks.InputError(f"scale {text!r}: expected {name}, or fewer private batches, such as {name}:batches=10")
    most = int(found[1])
    batches = tuple((size, min(count, most), columns) for size, count, columns in scale.batches)
    *weights, pictures = scale.grid
    return dataclasses.replace(scale, batches=batches, grid=(*weights, min(pictures, most)))


def in_words(where: Mapping[str, str | int | float]) -> str:
    """Coordinates in an experiment in words: `batch size 16, column none`; what it is where there are no others."""
    others = (f"{name.replace('_', ' ')} {value}" for name, value in where.items() if name != "what")
    return ", ".join(others) or str(where.get("what"))


class Placed(NamedTuple):
    """A cell and its coordinates in an experiment."""

    where: dict[str, str | int | float]
    cell: Cell

    @property
    def words(self) -> str:
        """Its place in words."""
        return in_words(self.where)


class Experiment(NamedTuple):
    """A named experiment.

    Attributes:
      title: of its report.
      about: a sentence or two.
      cells: its cells at a scale, in the order in which they are computed.
    """

    title: str
    about: str
    cells: Callable[[Scale], Iterator[Placed]]


def total_variation_of(column: str) -> float:
    """The published weights: 0.05 for pruning, 0.1 for MixUp, 0.01 for InstaHide, mixed or not; 0.05 undefended.

    The paper states none for no defense and for combinations.
    """
    if "instahide" in column:
        return 0.01
    return 0.1 if "mixup" in column else 0.05


def attacked_network(scale: Scale, column: str = "none") -> TrainSpec | None:
    """The training behind the weights that Table 2's attack meets; None for weights at their initialization.

    Encoded pictures meet a network that was trained on such: one of MixUp and one of InstaHide, both of k = 4, for all
    their columns. Pruning meets one that was trained without a defense. So does the published code.
    """
    if scale.network is None or scale.instead:
        return None
    encoding = next((name for name in ("mixup", "intra_instahide") if name in column), None)
    return scale.network if encoding is None else dataclasses.replace(scale.network, defense=f"{encoding}:k=4")


def published_attack(
    scale: Scale, defense: str = "none", batch_size: int = 1, num_batches: int = 1, **changes
) -> AttackSpec:
    """The attack of Table 2 of Huang et al. (2021): statistics and labels known, as their code runs it.

    At scales `smoke` and `small` an easier one.

    Under pruning the attacker does not use what it sees, zeros; under encodings it knows of the signs, and no more
    where encodings are pruned too.
    """
    settings = dict(
        data=scale.data,
        first=scale.first,
        num_batches=num_batches,
        model=scale.model,
        batch_size=batch_size,
        client_bn="batch",
        bn="exact-reference",
        labels="known",
        attack="gradient_inversion_evaluation",
        attacker="encodings" if "k=" in defense else "plain",
        tv=total_variation_of(defense),
        bn_prior=1e-3,
        steps=scale.steps,
        defenses=(defense,),
        encodings=scale.encodings if "k=" in defense else 1,
    )
    return AttackSpec(**settings | scale.instead | changes)


def statistics_attack(scale: Scale, bn: str, **changes) -> AttackSpec:
    """The same against a client that normalizes with its batch's statistics at every scale; `bn` as in `AttackSpec`."""
    settings = dict(client_bn="batch", bn=bn, attack="gradient_inversion_evaluation", tv=0.05, bn_prior=1e-3)
    if "learning_rate" in scale.instead:
        settings["learning_rate"] = 0.1  # elsewhere the default, under which Table 2 has the same cells
    if bn == "proxy":
        settings["bn_prior"] = None  # it has used up what it has
    return published_attack(scale, **settings | changes)


def _table2(scale):
    for batch_size, num_batches, columns in scale.batches:
        for column in columns:
            spec = published_attack(scale, column, batch_size, num_batches)
            where = {"what": "attack", "column": column, "batch_size": batch_size}
            yield Placed(where, Cell(spec, attacked_network(scale, column)))
    for column, seed in product(scale.columns, range(scale.seeds)):
        spec = dataclasses.replace(scale.training, defense=column, seed=seed)
        yield Placed({"what": "training", "column": column, "seed": seed}, Cell(spec))


def _figure3(scale):
    return (placed for placed in _table2(scale) if placed.where["what"] == "attack")


def _table3(scale):
    batch_size, num_batches, _ = scale.batches[0]
    spec = published_attack(scale, "none", batch_size, num_batches)
    yield Placed({"what": "attack"}, Cell(spec, attacked_network(scale)))


def _figure1(scale):
    size = 16 if scale.data == "cifar10" else 4
    large = dict(
        data="photos_large",
        image_size=scale.large_size,
        model=scale.large_model,
        first=1,
        tv=0.1,
        steps=scale.large_steps,
    )
    panels = {scale.data: (dict(batch_size=size), scale.network), "large": (large, None)}
    for (panel, (settings, network)), bn in product(panels.items(), ("exact", "infer", "proxy")):
        spec = statistics_attack(scale, bn, **settings)
        yield Placed({"panel": panel, "bn": bn}, Cell(spec, network))


def _figure2(scale):
    yield Placed({"what": "distribution"}, Cell(DistributionSpec(data=scale.data)))
    for labels in ("known", "optimize", "auto"):
        spec = published_attack(scale, batch_size=16 if scale.data == "cifar10" else 4, labels=labels)
        yield Placed({"what": "attack", "labels": labels}, Cell(spec, attacked_network(scale)))


def _alpha_bn(scale):
    searched = published.settings()
    tv, bn_prior = (sorted(set(searched[name])) for name in ("tv_searched", "bn_prior_searched"))
    num_tv, num_prior, pictures = scale.grid
    for bn in ("exact", "infer"):
        for weights in product(_spread(tv, num_tv), _spread(bn_prior, num_prior)):
            settings = dict(zip(("tv", "bn_prior"), weights, strict=True))
            spec = statistics_attack(scale, bn, num_batches=pictures, **settings)
            yield Placed({**settings, "bn": bn}, Cell(spec, scale.network))


def _spread(values, count):
    """`count` of the values, the first and the last among them."""
    return [values[round(number * (len(values) - 1) / (count - 1))] for number in range(count)]


def _table1(scale):
    """Each attack first with what its paper grants it, then with less or more."""
    num_batches = min(2, scale.batches[0][1])
    common = dict(attacker="adaptive", tv=None, bn_prior=None, learning_rate=None, num_batches=num_batches)
    plain = dict(model="lenet", client_bn="running", bn=None)  # no BatchNorm, as where these were published
    for attack, labels in (("dlg", "optimize"), ("dlg", "known"), ("idlg", "auto")):
        spec = published_attack(scale, **common, **plain, attack=attack, labels=labels)
        yield Placed(_granted(spec), Cell(spec))
    threats = (
        ("inverting_gradients", "exact-paper", "known"),
        ("inverting_gradients", "proxy", "known"),
        ("inverting_gradients", "exact-paper", "auto"),
        ("grad_inversion", "exact", "auto"),
        ("grad_inversion", "infer", "auto"),
    )
    for attack, bn, labels in threats:
        # Yin et al. draw several restarts to their mean.
        restarts = scale.restarts if attack == "grad_inversion" else 1
        spec = statistics_attack(scale, bn, attack=attack, labels=labels, restarts=restarts, **common)
        yield Placed(_granted(spec), Cell(spec, scale.network))


def _granted(spec):
    """What an attack is told, read off its threat model."""
    told = "given" if spec.threat.shared in (Shared.EXACT, Shared.EXACT_UNBIASED) else "unknown"
    statistics = "none" if spec.threat.client == Normalize.GIVEN else told
    return {"attack": spec.attack, "statistics": statistics, "labels": spec.labels[0]}


def _protocol(scale):
    """The published code's protocol, each switch corrected alone, and all together."""
    (batch_size, num_batches, _), (several, _, _), *_ = scale.batches
    largest = scale.batches[-1][0]
    some = dict(batch_size=batch_size, num_batches=num_batches, box="reference")
    base = statistics_attack(scale, "exact-reference", **some)
    pruned = statistics_attack(scale, "exact-reference", defense="prune:p=0.9", **some)
    attacks = {
        ("all", "reference"): base,
        ("box", "corrected"): dataclasses.replace(base, box="valid"),
        ("bn_var", "corrected"): dataclasses.replace(base, bn="exact"),
        ("bn_stats", "reference"): dataclasses.replace(base, bn="infer-reference"),
        ("bn_stats", "corrected"): dataclasses.replace(base, bn="infer"),
        ("match", "both"): statistics_attack(scale, "exact-reference", batch_size=several, box="reference"),
        ("mask_pruned", "reference"): pruned,
        ("mask_pruned", "corrected"): dataclasses.replace(pruned, attacker="adaptive"),
        ("all", "corrected"): dataclasses.replace(base, box="valid", bn="exact"),
    }
    for (switch, value), spec in attacks.items():
        yield Placed({"switch": switch, "value": value}, Cell(spec, scale.network))
    decoding = DecodeSpec(data=scale.data, first=scale.first, encodings=scale.encodings, defenses=("mixup:k=4",))
    slipped = dataclasses.replace(decoding, mix_index="reference", batch_size=largest)
    yield Placed({"switch": "mix_index", "value": "reference"}, Cell(slipped))
    yield Placed({"switch": "mix_index", "value": "corrected"}, Cell(decoding))
    signs = dataclasses.replace(decoding, defenses=("intra_instahide:k=4",))
    yield Placed({"switch": "decode", "value": "both"}, Cell(signs))


EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(
        "Table 1: what attacks assume",
        "Published attacks assume more or less of the private batch's statistics and labels. Each is run with what "
        "its paper grants it, and with other grants.",
        _table1,
    ),
    "figure1": Experiment(
        "Figure 1: attacks without exact BatchNorm statistics",
        "The same attack that knows the private batch's statistics, infers them, or takes running averages for them.",
        _figure1,
    ),
    "figure2": Experiment(
        "Figure 2: labels",
        "How often labels repeat in a batch, which methods that infer labels assume they do not; and attacks with "
        "known labels, with labels optimized jointly, and with labels recovered first.",
        _figure2,
    ),
    "table2": Experiment(
        "Table 2: utility and privacy of defenses",
        "What each defense costs in accuracy and training time, and how much leaks under it to an attacker that knows "
        "the statistics and the labels of the private batch.",
        _table2,
    ),
    "figure3": Experiment(
        "Figure 3: reconstructions under defenses",
        "The pictures behind the LPIPS scores of Table 2.",
        _figure3,
    ),
    "table3": Experiment(
        "Table 3: cost of recovering one picture",
        "An estimate of the time of an end-to-end attack on InstaHide, every assumption of which is an argument, with "
        "the seconds that were measured here.",
        _table3,
    ),
    "tradeoff": Experiment(
        "Privacy against accuracy",
        "The two scatter plots under Table 2: leakage of each defense against the accuracy that it leaves.",
        _table2,
    ),
    "alpha_bn": Experiment(
        "Weights of the priors",
        "A sweep of the weights of total variation and of the statistics prior, its points lanes of a few programs.",
        _alpha_bn,
    ),
    "protocol": Experiment(
        "The published protocol against a corrected one",
        "The published code differs from the paper, and has flaws, in a handful of places. Each is a switch here.",
        _protocol,
    ),
}
"""By name."""


def placed(name: str, scale: str) -> list[Placed]:
    """The cells of an experiment at a scale, which `scale_named` reads.

    Raises:
      InputError: for an unknown name.
    """
    experiment = EXPERIMENTS[checks.one_of("experiment", name, EXPERIMENTS)]
    return list(experiment.cells(scale_named(scale)))
