"""`gi-jax list`: what there is, each with one line and its paper."""

import argparse
import json

from gi_jax.cli import terminal


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "list",
        help="what there is: attacks, defenses, views, servers, labels, models, data",
        description="Lists what there is, each with one line and its paper.",
        epilog="examples:\n  gi-jax list\n  gi-jax list models --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "kind",
        nargs="?",
        help="attacks, defenses, views, servers, labels, models, data, recipes, experiments or scales; all if left out",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax.checks import one_of

    kinds = {
        "attacks": _attacks,
        "defenses": _defenses,
        "views": _views,
        "servers": _servers,
        "labels": _label_methods,
        "models": _models,
        "data": _data,
        "recipes": _recipes,
        "experiments": _experiments,
        "scales": _scales,
    }
    chosen = list(kinds) if options.kind is None else [one_of("list", options.kind, kinds)]
    listing = {kind: kinds[kind]() for kind in chosen}
    if options.json:
        print(json.dumps(listing if options.kind is None else listing[options.kind], indent=1))
        return 0
    from gi_jax.reports.terminal import print_table

    console = terminal.stdout()
    for kind, rows in listing.items():
        print_table(console, kind, rows)
    return 0


def _attacks() -> list[dict]:
    from gi_jax.attacks import ATTACKS

    return [{"name": name, "about": entry.about, "paper": entry.paper} for name, entry in ATTACKS.items()]


def _defenses() -> list[dict]:
    from gi_jax.defenses import DEFENSES

    return [
        {
            "name": name,
            "kind": str(entry.kind),
            "parameters": "\n".join(f"{key}: {parameter.about}" for key, parameter in entry.parameters.items()) or "-",
            "about": entry.about,
            "paper": entry.paper,
        }
        for name, entry in DEFENSES.items()
    ]


def _views() -> list[dict]:
    from gi_jax.threat import VIEWS

    return [{"name": name, "about": view.about, "kind": view.kind, "paper": view.paper} for name, view in VIEWS.items()]


def _servers() -> list[dict]:
    from gi_jax.federated import SERVERS

    return [{"name": name, "about": server.about, "paper": server.paper} for name, server in SERVERS.items()]


def _label_methods() -> list[dict]:
    from gi_jax.attacks.labels import METHODS

    return [
        {"name": name, "needs": ", ".join(method.needs) or "-", "about": method.about, "paper": method.paper}
        for name, method in METHODS.items()
    ]


def _models() -> list[dict]:
    import jax

    from gi_jax.models import MODELS, count_parameters, create

    rows = []
    for name, entry in MODELS.items():
        params, _ = jax.eval_shape(lambda key, name=name: create(name, 10).init(key, (32, 32, 3)), jax.random.key(0))
        rows.append({"name": name, "parameters": count_parameters(params), "about": entry.about, "paper": entry.paper})
    return rows


def _data() -> list[dict]:
    from gi_jax.data import DATASETS

    return [{"name": name, "about": about, "source": source} for name, (about, source) in DATASETS.items()]


def _recipes() -> list[dict]:
    from gi_jax.experiments.recipes import RECIPES

    return [{"name": name, "about": entry.about, "paper": entry.source} for name, entry in RECIPES.items()]


def _experiments() -> list[dict]:
    from gi_jax.experiments.catalogue import EXPERIMENTS

    return [
        {"name": name, "about": f"{entry.title}. {entry.about}", "paper": "Huang et al. 2021, arXiv 2112.00059"}
        for name, entry in EXPERIMENTS.items()
    ]


def _scales() -> list[dict]:
    from gi_jax.experiments.catalogue import SCALES

    return [{"name": name, "about": entry.about, "paper": ""} for name, entry in SCALES.items()]
