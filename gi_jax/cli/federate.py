"""`gi-jax federate`: clients that train together, and the network that comes of it."""

import argparse
import sys
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.cli.arguments import data_arguments

EXAMPLES = """\
examples:
  gi-jax federate
      ten clients send gradients of all their photographs' thumbnails (FedSGD): seconds, no download
  gi-jax federate --data cifar10 --data-dir cifar-10-batches-py --batch-size 500 --local-steps 10 \\
          --local-batch-size 50 --local-lr 0.05 --rounds 50
      FedAvg: in every round a client draws 500 of its pictures and goes over them once, in ten steps
  gi-jax federate --alpha 0.1 --batch-norm silobn --local-steps 2 --server fedadam
      clients that differ more, keep their running averages to themselves, and a server with Adam
  gi-jax federate --partition iid --defense clip:norm=1 --defense gaussian:sigma=0.001
  gi-jax attack --weights gi-jax-federate --client-bn batch --bn infer
      attacks the network that came of it instead of one at its initialization

OUT gets weights.msgpack and federation.json (loss and accuracy by round, each client's classes, environment, settings).
Both are written at every test too, so that a kill leaves them as they were at the last one. Ctrl-C ends the simulation
early and keeps the weights so far; --resume goes on, to the weights of an undisturbed run, also after a kill. A second
Ctrl-C gives up.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "federate",
        help="simulate a federation, whose weights attack --weights and labels --weights take",
        description="Simulates federated training on the train split: in every round clients work on their own "
        "pictures with the code that attacks imagine, and a server averages what they send. Tested on the test split.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("data and network").add_argument
    data_arguments(add)
    add("--model", default="convnet", metavar="M", help="see gi-jax list models (default: convnet)")
    add = parser.add_argument_group("clients").add_argument
    add("--clients", type=int, default=10, metavar="K", help="all of equally many pictures (default: 10)")
    add("--partition", default="dirichlet", metavar="iid|dirichlet", help="of the pictures (default: dirichlet)")
    add(
        "--alpha",
        type=float,
        default=0.5,
        metavar="A",
        help="of dirichlet: near 0 a client has one class, far above 1 all of them (default: 0.5)",
    )
    add("--clients-per-round", type=int, metavar="M", help="drawn anew for every round (default: all)")
    add("--batch-size", type=int, metavar="B", help="pictures that a client draws for a round (default: all it has)")
    add(
        "--local-steps",
        type=int,
        metavar="N",
        help="steps of SGD before a client sends its model, in whole epochs of the round's pictures (FedAvg; default: "
        "it sends one gradient, FedSGD)",
    )
    add("--local-batch-size", type=int, metavar="B", help="pictures in a local step (default: all of the round)")
    add("--local-lr", dest="local_rate", type=float, default=0.01, metavar="L", help="of these steps (default: 0.01)")
    add(
        "--client-bn",
        default="batch",
        metavar="batch|running",
        help="statistics that the clients' BatchNorm uses; running ones stay as they are (default: batch)",
    )
    add(
        "--batch-norm",
        default="shared",
        metavar="shared|silobn|fedbn",
        help="what of BatchNorm is averaged: all; scale and offset; nothing (default: shared)",
    )
    add(
        "--defense",
        action="append",
        default=[],
        metavar="NAME:P=V",
        help="of every client, such as prune:p=0.9; repeated: one after the other; see gi-jax list defenses",
    )
    add = parser.add_argument_group("server").add_argument
    add("--rounds", type=int, default=20, metavar="R", help="default: 20")
    add(
        "--server",
        default="fedavg",
        metavar="S",
        help="see gi-jax list servers (default: fedavg)",
    )
    add(
        "--server-lr",
        dest="server_rate",
        type=float,
        metavar="L",
        help="default: 1, which averages models; 0.1 for gradients; 0.01 for adaptive servers",
    )
    add = parser.add_argument_group("running").add_argument
    add("--seed", type=int, default=0, metavar="K", help="of weights, partition and all that is drawn (default: 0)")
    add(
        "--at-once",
        type=int,
        metavar="M",
        help="clients computed side by side (default: as many as the device is busy with)",
    )
    add("--test-every", type=int, default=1, metavar="R", help="rounds between two tests (default: 1)")
    add("--test-pictures", type=int, metavar="N", help="test on the first N pictures only (default: all)")
    add("--out", type=Path, default=Path("gi-jax-federate"), metavar="DIR", help="default: gi-jax-federate")
    add("--resume", action="store_true", help="go on with an interrupted simulation in DIR")
    add("--overwrite", action="store_true", help="replace the weights in DIR")
    parser.set_defaults(command=run)


def run(options) -> int:
    import dataclasses

    from gi_jax.experiments import weights
    from gi_jax.experiments.federation import RECORD
    from gi_jax.experiments.federation_spec import FederationSpec
    from gi_jax.experiments.federation_study import FederationStudy

    terminal.set_up_compilation()
    names = {field.name for field in dataclasses.fields(FederationSpec)} - {"defense"}
    settings = {name: getattr(options, name) for name in names}
    spec = FederationSpec(**settings, defense=" + ".join(options.defense) or "none")
    how = dict(resume=options.resume, overwrite=options.overwrite)
    with terminal.held(options.out):
        with terminal.refusing_after(lambda: FederationStudy(spec, options.data_dir)):
            terminal.check_trained(options.out / RECORD, [options.out / weights.NAME], **how)
        return _run(options, spec)


def _run(options, spec) -> int:
    from gi_jax.experiments import weights
    from gi_jax.experiments.federation import RECORD, run_federation
    from gi_jax.reports.terminal import print_table

    with terminal.Interrupt() as interrupt, terminal.progress_bar("pictures/s") as on_report:
        outcome = run_federation(
            spec,
            options.data_dir,
            out=options.out,
            resume=options.resume,
            on_report=on_report,
            should_stop=interrupt.requested,
        )
    console = terminal.stdout()
    print_table(console, "rounds", [_row(row) for row in outcome.result["rounds"]])
    console.print(outcome.weights.origin.words(), highlight=False)
    console.print(f"weights: {options.out / weights.NAME}   figures: {options.out / RECORD}", highlight=False)
    if outcome.result["reason"] is not None:
        print(f"gi-jax: error: {outcome.result['reason']}", file=sys.stderr)
        return 2
    if not outcome.result["complete"]:
        print("gi-jax: interrupted; the weights so far are kept, and --resume goes on", file=sys.stderr)
        return 130
    return 0


def _row(row: dict) -> dict[str, str]:
    percent = lambda share: "-" if share is None else f"{100 * share:.1f} %"  # noqa: E731
    cells = {"round": row["round"], "loss": f"{row['loss']:.4f}", "test accuracy": percent(row["test_accuracy"])}
    own = row.get("test_accuracy_of_clients")
    if own:
        cells["of clients"] = f"{percent(min(own))} to {percent(max(own))}"
        cells["of their mean"] = percent(row["test_accuracy_of_mean"])
    return cells
