"""`gi-jax labels`: label recovery alone, and how labels repeat in batches."""

import argparse
import dataclasses
import json
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.cli.arguments import network_settings, victim_arguments
from gi_jax.errors import InputError

EXAMPLES = """\
examples:
  gi-jax labels --batch-size 8 --method all
      every method on the embedded photographs
  gi-jax labels --data cifar10 --data-dir cifar-10-batches-py --model resnet18 --client-bn batch \\
      --victim-seed 0 --batch-size 64 --method auto --method ilrg
      two methods on random batches of CIFAR-10
  gi-jax labels --weights young --data cifar10 --data-dir cifar-10-batches-py --batch-size 8
      the gradient of a network of gi-jax train
  gi-jax labels --distribution --data cifar10 --data-dir cifar-10-batches-py
      how many pictures of a batch share a label

OUT gets labels.json; with --distribution label_distribution.json and label_distribution.png.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "labels",
        help="recover labels alone, by one method or all",
        description="Recovers the labels of private batches from the gradient of the last layer, and says how many "
        "are right.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    victim_arguments(parser)
    add = parser.add_argument_group("adversary").add_argument
    add(
        "--method",
        action="append",
        metavar="M",
        help="auto, all, or a name of gi-jax list labels; repeat it for several (default: auto)",
    )
    add("--seed", type=int, default=0, metavar="K", help="of noise and random pictures (default: 0)")
    add("--out", type=Path, default=Path("gi-jax-labels"), metavar="DIR", help="default: gi-jax-labels")
    add(
        "--distribution",
        action="store_true",
        help="no recovery: how labels repeat in batches of --data, against the batch size (Figure 2a of the paper)",
    )
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax.experiments.checkpoint import write_atomically
    from gi_jax.experiments.labels import distribution_of, run_labels
    from gi_jax.experiments.spec import AttackSpec
    from gi_jax.reports import labels as reports

    terminal.set_up_compilation()
    console = terminal.stdout()
    if options.distribution:
        found = distribution_of(options.data, options.split, options.data_dir)
        options.out.mkdir(parents=True, exist_ok=True)
        reports.draw_distribution(options.out / "label_distribution.png", found)
        write_atomically(options.out / "label_distribution.json", json.dumps(found, indent=1) + "\n")
        reports.print_distribution(console, found)
        console.print(f"picture and figures: {options.out / 'label_distribution'}.png, .json", highlight=False)
        return 0
    if options.compare:
        raise InputError("labels takes one client: --defense, not --compare")
    same = {field.name for field in dataclasses.fields(AttackSpec)} & vars(options).keys()
    settings = {name: getattr(options, name) for name in same} | network_settings(options)
    if options.client_bn == "batch":
        settings["bn"] = "infer"  # grants nothing
    spec = AttackSpec(**settings, defenses=(" + ".join(options.defense or ["none"]),))
    result = {"spec": dataclasses.asdict(spec), **run_labels(spec, options.method or ["auto"], options.data_dir)}
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "labels.json", json.dumps(result, indent=1) + "\n")
    reports.print_methods(console, result)
    console.print(f"counts of every batch: {options.out / 'labels.json'}", highlight=False)
    return 0
