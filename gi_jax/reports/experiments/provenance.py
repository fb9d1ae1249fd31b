"""How the numbers of a report were made: threat model, settings, hardware, and the command of each."""

import dataclasses
import json
import shlex
from collections.abc import Sequence

from gi_jax.attacks import ATTACKS
from gi_jax.experiments.catalogue import in_words
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.reports.experiments.found import Found
from gi_jax.reports.page import Code, Column, Details, Notes, Section, Table, Text
from gi_jax.words import counted

_FLAGS = {"learning_rate": "lr", "local_rate": "local-lr", "defenses": "compare"}
"""Field of `AttackSpec` to its option, where they differ."""


def section(found: Sequence[Found], notes: Sequence[str]) -> Section:
    """Everything that was not needed to read the tables, folded away.

    Args:
      found: all cells of the experiment.
      notes: on the published numbers.
    """
    ran = [one for one in found if one.row is not None]
    blocks = [
        Details("Threat model", _threat_model(ran)),
        Details("Protocol: settings of every cell", _protocol(ran)),
        Details("Hardware and versions", _hardware(ran)),
        Details("Commands", _commands(ran)),
        Details("Where the published numbers are from", (Notes(tuple(notes)),)),
        Details("What was not run", _missing(found)),
    ]
    return Section("How these numbers were made", tuple(block for block in blocks if block.blocks))


def attack_command(spec: dict, *, reference_scoring: bool = False) -> str:
    """The command line of an attack, from the specification in its block of results."""
    defaults = dataclasses.asdict(AttackSpec())
    if spec.get("attack") is not None:  # it comes with labels of its own
        defaults["labels"] = (ATTACKS[spec["attack"]].labels,)
    skipped = {"weights_hash"} | ({"model"} if spec.get("weights") is not None else set())
    words = ["gi-jax", "attack"]
    for field, default in defaults.items():
        value = spec.get(field, default)
        changed = _plain(value) != _plain(default) or field == "defenses"
        if value is None or not changed or field in skipped:
            continue
        option = f"--{_FLAGS.get(field, field.replace('_', '-'))}"
        for one in value if isinstance(value, list | tuple) else (value,):
            words += [option, str(one)]
    return shlex.join(words + ["--reference-scoring"] * reference_scoring)


def _threat_model(ran):
    attacks = [one for one in ran if "threat_model" in one.row["result"]]
    sentences = dict.fromkeys(text for one in attacks for text in one.row["result"]["threat_model"])
    count = {text: sum(text in one.row["result"]["threat_model"] for one in attacks) for text in sentences}
    common = tuple(text for text in sentences if count[text] == len(attacks))
    some = tuple((text, float(count[text])) for text in sentences if count[text] < len(attacks))
    blocks = []
    if common:
        blocks.append(Notes(common))
    if some:
        columns = (Column("of some attacks only"), Column(f"of {len(attacks)}", "{:.0f}"))
        blocks.append(Table(columns, some))
    return tuple(blocks)


def _protocol(ran):
    if not ran:
        return ()
    specs = [one.row["spec"] for one in ran]
    names = dict.fromkeys(name for spec in specs for name in spec)
    common = [name for name in names if len({_plain(spec[name]) if name in spec else None for spec in specs}) == 1]
    rows = []
    for one in ran:
        row = one.row
        own = "; ".join(f"{name} {_plain(value)}" for name, value in row["spec"].items() if name not in common)
        seconds = row.get("timing", {}).get("run_seconds")
        rows.append(
            (
                row["kind"],
                in_words(one.where),
                own,
                _network(row.get("network")),
                "-" if seconds is None else seconds,
                row["finished"],
                row["cell"],
            )
        )
    columns = (
        Column("kind"),
        Column("cell"),
        Column("settings of its own"),
        Column("training of the network"),
        Column("run, s", "{:.1f}"),
        Column("finished"),
        Column("hash of the settings"),
    )
    shared = "\n".join(f"{name}: {_plain(specs[0][name])}" for name in common)
    head = (Text("Settings that all cells share:"), Code(shared)) if common else ()
    return (*head, Table(columns, tuple(rows)))


def _network(network):
    if network is None:
        return "-"
    spec = TrainSpec(**network)
    return f"{spec.settings.epochs:g} epochs" + ("" if spec.defense == "none" else f", {spec.defense}")


def _hardware(ran):
    machines = {}
    for one in ran:
        environment = {name: value for name, value in one.row["environment"].items() if name != "time"}
        machines.setdefault(", ".join(f"{name} {value}" for name, value in environment.items()), []).append(one)
    lines = tuple(f"{counted(len(cells), 'cell')}: {text}" for text, cells in machines.items())
    return (Notes(lines),) if machines else ()


def _commands(ran):
    lines = []
    for one in ran:
        result = one.row["result"]
        if one.row["kind"] == "attack":
            spec = one.row["spec"] | _weights(one.row["network"])
            command = attack_command(spec, reference_scoring="reference_summary" in result)
            lines.append(f"# {in_words(one.where)}\n{command}")
    if not lines:
        return ()
    return (Text("Each attack by itself; give --data-dir where the data lie."), Code("\n".join(lines)))


def _weights(network):
    """Where a store keeps the network of a row; nothing for weights at their initialization."""
    return {} if network is None else {"weights": f"STORE/networks/{TrainSpec(**network).fingerprint}"}


def _missing(found):
    missing = tuple(in_words(one.where) for one in found if one.row is None)
    return (Notes(missing),) if missing else ()


def _plain(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
