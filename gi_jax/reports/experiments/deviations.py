"""In what the attacks of a report differ from the paper's, read from their own specifications."""

from collections.abc import Sequence

from gi_jax import defenses
from gi_jax.experiments import published
from gi_jax.reports.experiments.found import Found


def comparable(found: Sequence[Found]) -> bool:
    """Whether the attacks that ran have the paper's threat model and data: a client with batch statistics, CIFAR-10."""
    specs = _specs(found)
    return bool(specs) and all(spec["client_bn"] == "batch" and spec["data"] == "cifar10" for spec in specs)


def sentences(found: Sequence[Found]) -> list[str]:
    """What is not as in the paper's experiments, most important first; empty if nothing ran."""
    specs, paper = _specs(found), published.settings()
    if not specs:
        return []
    rows = [one.row for one in found if one.row is not None and one.row["kind"] == "attack"]
    lines = []
    if any(spec["client_bn"] == "running" for spec in specs):
        lines.append(
            "the client normalizes with running statistics, which the attacker has, an easier case than the paper's, "
            "whose client normalizes with its batch's own"
        )
    for name, words in (("data", "the pictures are of"), ("model", "the network is")):
        others = sorted({spec[name] for spec in specs} - {paper[name]})
        if others:
            lines.append(f"{words} {' and '.join(others)}, not {paper[name]}")
    networks = {
        (row["network"]["epochs"], row["network"]["defense"]) if row["network"] else (0, "none") for row in rows
    }
    trained = " and ".join(
        (f"{age:g} epochs" if age else "no epochs") + (f" under {defense}" if defense != "none" else "")
        for age, defense in sorted(networks)
    )
    lines.append(f"the attacked network was trained for {trained}")
    if any(_encoded(row["spec"]) and not (row["network"] and row["network"]["defense"] != "none") for row in rows):
        lines[-1] += " and without a defense; the paper attacks encoded pictures on networks that were trained on such"
    steps = sorted({spec["steps"] for spec in specs} - {paper["iterations"]})
    if steps:
        lines.append(f"an attack has {' or '.join(f'{n:,}' for n in steps)} iterations, not {paper['iterations']:,}")
    counts = sorted({len(row["result"]["images"]) // row["spec"]["encodings"] for row in rows})
    lines.append(f"there are {' or '.join(map(str, counts))} pictures, not {paper['pictures']}, in full batches only")
    encoded = {spec["encodings"] for spec in specs if _encoded(spec)}
    if encoded - {paper["encoded_epochs"]}:
        epochs = " or ".join(map(str, sorted(encoded)))
        lines.append(f"pictures are encoded in {epochs} epochs, not {paper['encoded_epochs']}")
    if any(spec["box"] == "valid" for spec in specs):
        lines.append(
            "guesses are kept among valid pictures, and encodings decoded by their own mapping; the published code has "
            "a smaller box, and mixes up rows of an incomplete last batch (see the experiment protocol)"
        )
    return lines


def _specs(found):
    return [one.row["spec"] for one in found if one.row is not None and one.row["kind"] == "attack"]


def _encoded(spec):
    return defenses.parse(spec["defenses"][0]).mixing is not None
