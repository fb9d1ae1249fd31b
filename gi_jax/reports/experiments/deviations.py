"""In what the attacks and trainings of a report differ from the paper's, read from their own specifications."""

from collections.abc import Sequence

from gi_jax import defenses
from gi_jax.experiments import published
from gi_jax.experiments.catalogue import total_variation_of
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.reports.experiments.found import Found

LOSSY = "a lossy copy of"
"""In the note of a data set whose pixels are not the published ones."""


def comparable(found: Sequence[Found]) -> bool:
    """Whether the attacks that ran have the paper's threat model and data: a client with batch statistics, CIFAR-10."""
    rows = _rows(found, "attack")
    as_published = all(row["spec"]["client_bn"] == "batch" and row["spec"]["data"] == "cifar10" for row in rows)
    return bool(rows) and as_published and not _of_copies(rows)


def sentences(name: str, found: Sequence[Found]) -> list[str]:
    """What is not as in the experiment of this name in the paper, most important first; empty if nothing ran."""
    copies = _of_copies([one.row for one in found if one.row is not None])
    return copies + _of_attacks(name, found) + _of_trainings(found)


def accuracies_comparable(found: Sequence[Found]) -> bool:
    """Whether the trainings that accuracies are measured by are the published ones, in whatever number."""
    return not _of_copies(_rows(found, "training")) and not _of_recipes(_trainings(found))


def _of_copies(rows):
    """On pictures that rows say are a lossy copy of their data set."""
    said = {note for row in rows for note in (row["result"].get("note"), *row["result"].get("threat_model", ()))}
    return [f"the pictures are not the published ones: {note}" for note in sorted(said - {None}) if LOSSY in note]


def _of_trainings(found):
    specs, wanted = _trainings(found), published.settings()["training_runs"]
    seeds = len({spec.seed for spec in specs})
    few = [f"{seeds} training{'s' if seeds > 1 else ''} of each kind, not {wanted}"] if 0 < seeds < wanted else []
    return _of_recipes(specs) + few


def _of_recipes(specs):
    paper = published.settings()
    values = [vars(spec) for spec in specs]
    lines = _others(values, paper, {"data": "accuracies are measured on", "model": "accuracies are those of"})
    pictures = sorted({spec.train_pictures for spec in specs} - {None})
    if pictures:
        lines.append(f"trainings see {_either(f'{count:,}' for count in pictures)} pictures of the train split only")
    tested = sorted({spec.test_pictures for spec in specs} - {None})
    if tested:
        lines.append(f"accuracies are those on {_either(f'{n:,}' for n in tested)} pictures of the test split only")
    if not all(spec.recipe == "published" and spec.augment and _untouched(spec) for spec in specs):
        lengths = _either(sorted({_epochs(spec.settings.epochs) for spec in specs}))
        lines.append(f"trainings have a recipe of their own, of {lengths}")
    return lines


def _untouched(spec):
    return all(getattr(spec, name) is None for name in ("epochs", "batch_size", "learning_rate", "schedule"))


def _trainings(found):
    return [TrainSpec(**row["spec"]) for row in _rows(found, "training")]


def _of_attacks(name, found):
    # The large picture of Figure 1 has no counterpart here that is to be had: its own panel says what it is.
    rows = _rows([one for one in found if one.where.get("panel") != "large"], "attack")
    specs, paper = [row["spec"] for row in rows], published.settings()
    if not specs:
        return []
    lines = []
    if any(spec["client_bn"] == "running" for spec in specs):
        lines.append(
            "the client normalizes with running statistics, which the attacker has, an easier case than the paper's, "
            "whose client normalizes with its batch's own"
        )
    lines += _others(specs, paper, {"data": "the pictures are of", "model": "the network is"})
    if _several_copies(rows):
        lines.append("attacks that should have the same pictures met different ones: copies of the data set differ")
    lines += _of_settings(name, specs, paper)
    lines += _of_networks(rows, paper)
    steps = sorted({spec["steps"] for spec in specs} - {paper["iterations"]})
    if steps:
        lines.append(f"an attack has {_either(f'{n:,}' for n in steps)} iterations, not {paper['iterations']:,}")
    shown = {"figure1": paper["figure1"]["pictures"]["cifar10"], "figure2": paper["figure2"]["pictures"]}
    wanted = shown.get(name, paper["pictures"])
    counts = sorted({len(row["result"]["images"]) // row["spec"]["encodings"] for row in rows} - {wanted})
    if counts:
        lines.append(f"there are {_either(counts)} pictures, not {wanted}, in full batches only")
    encoded = {spec["encodings"] for spec in specs if _encoded(spec)}
    if encoded - {paper["encoded_epochs"]}:
        lines.append(f"pictures are encoded in {_either(sorted(encoded))} epochs, not {paper['encoded_epochs']}")
    if name != "protocol" and any(spec["box"] == "valid" for spec in specs):
        lines.append(
            "guesses are kept among valid pictures; the published code has a smaller box (see the experiment protocol)"
        )
        if encoded:
            lines.append(
                "encodings are decoded by their own mapping; the published code mixes up rows of an incomplete last "
                "batch (see the experiment protocol)"
            )
    return lines


def _several_copies(rows):
    """Whether rows whose specifications choose the same pictures had others; older rows do not say."""
    chosen = ("data", "split", "image_size", "first", "victim_seed", "batch_size", "num_batches", "clients", "view")
    seen = {}
    for row in rows:
        if "victims" in row["result"]:
            seen.setdefault(tuple(row["spec"][name] for name in chosen), set()).add(row["result"]["victims"])
    return any(len(digests) > 1 for digests in seen.values())


def _of_settings(name, specs, paper):
    """On the attack itself, its rate and its weights."""
    lines = _others(specs, paper, {"attack": "the attack is"})
    rates = sorted({spec["learning_rate"] for spec in specs} - {None, paper["learning_rate"]})
    if rates:
        lines.append(f"its rate is {_either(f'{rate:g}' for rate in rates)}, not {paper['learning_rate']:g}")
    if name != "alpha_bn":  # sweeps both weights
        weights = {(spec["tv"], total_variation_of(spec["defenses"][0])) for spec in specs}
        pairs = [pair for pair in weights if pair[0] not in (None, pair[1])]
        if pairs:
            ours, theirs = (_either(f"{weight:g}" for weight in sorted(set(some))) for some in zip(*pairs, strict=True))
            lines.append(f"total variation weighs {ours}, not {theirs}")
    if name == "figure1":
        lines.append("the weight of the statistics prior is that of Table 2; the paper tunes it for this figure")
    return lines


def _of_networks(rows, paper):
    """On the attacked networks: how long they were trained, and on what."""
    lines = []
    ages = {_age(TrainSpec(**row["network"]), paper) if row["network"] else (0, None) for row in rows}
    if ages != {(paper["network_epochs"], None)}:
        spans = [_epochs(age) + (f" of {pictures:,} pictures" if pictures else "") for age, pictures in ages]
        wanted = f"{paper['network_epochs']} of {paper['network_pictures']:,} pictures"
        lines.append(f"the attacked network was trained for {' and '.join(sorted(spans))}, not {wanted}")
    if any(_encoded(row["spec"]) and (row["network"] or {}).get("defense", "none") == "none" for row in rows):
        lines.append("encoded pictures meet a network that was not trained on such")
    return lines


def _epochs(number):
    return {0: "no epoch", 1: "1 epoch"}.get(number, f"{number:g} epochs")


def _age(spec, paper):
    """Epochs of a training, and its pictures where they are fewer than in the paper."""
    few = spec.train_pictures is not None and spec.train_pictures < paper["network_pictures"]
    return spec.settings.epochs, spec.train_pictures if few else None


def _others(specs, paper, words):
    """Values that are not the paper's, of the fields that `words` begin a sentence on."""
    lines = []
    for field, beginning in words.items():
        values = {spec[field] for spec in specs} - {None, paper[field]}
        if values:
            lines.append(f"{beginning} {' and '.join(sorted(values))}, not {paper[field]}")
    return lines


def _either(values) -> str:
    return " or ".join(map(str, values))


def _encoded(spec):
    return defenses.parse(spec["defenses"][0]).mixing is not None


def _rows(found, kind):
    return [one.row for one in found if one.row is not None and one.row["kind"] == kind]
