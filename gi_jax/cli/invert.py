"""`gi-jax invert`: attack an update that was really sent."""

import argparse
import json
import sys
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.errors import InputError
from gi_jax.words import counted

EXAMPLES = """\
examples:
  gi-jax convert model.pth --model resnet18_basic --data cifar10 --out theirs
  gi-jax invert gradient.npz --weights theirs
      the gradient of one picture: numpy.savez("gradient.npz", **{n: p.grad for n, p in model.named_parameters()})
  gi-jax invert after.pth --after --weights theirs --batch-size 8 --client-bn batch --bn exact --local-rate 0.1
      the model that a client sent back after one step at rate 0.1, whose BatchNorm buffers tell the statistics
  gi-jax invert gradient.npz --weights theirs --defense prune:p=0.9 --restarts 8 --steps 2000 --out pruned

FILE is as for gi-jax convert. OUT gets reconstructions.png, reconstructions.npz and result.json; after Ctrl-C those of
the steps so far, and the same command with --resume goes on.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "invert",
        help="attack an update that was really sent, from a file",
        description="Attacks a gradient, or the weights after a client's local steps, from a file of PyTorch tensors. "
        "There is no truth to score with: several starts that agree are the sign that a picture was found.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="the gradient; with --after the weights after the client's steps")
    add = parser.add_argument_group("client").add_argument
    add("--weights", required=True, metavar="W", help="before the step; of gi-jax convert or train, folder or file")
    add("--after", action="store_true", help="FILE holds the weights after the client's steps")
    add("--batch-size", type=int, default=1, metavar="B", help="pictures behind the update (default: 1)")
    add(
        "--client-bn", default="running", metavar="batch|running", help="training or evaluation mode (default: running)"
    )
    add("--defense", action="append", metavar="NAME:P=V", help="what the client is taken to do to its gradient")
    add("--local-steps", type=int, default=1, metavar="M", help="steps of the client (default: 1)")
    add("--local-batch-size", type=int, metavar="B", help="pictures of each (default: all)")
    add(
        "--local-rate",
        type=float,
        metavar="L",
        help="learning rate of its steps, with --after or several (default: 0.01)",
    )
    add = parser.add_argument_group("adversary").add_argument
    add(
        "--labels", default="auto", metavar="K,K,...|L", help="class numbers, optimize, or a name of gi-jax list labels"
    )
    add(
        "--bn",
        metavar="exact|infer|proxy",
        help="with --client-bn batch (default: infer; exact reads the BatchNorm buffers of --after, after one step)",
    )
    add("--attack", metavar="NAME", help="see gi-jax list attacks (default: the strongest known for the client)")
    add("--tv", type=float, metavar="A", help="weight of total variation (default: the attack's)")
    add("--bn-prior", type=float, metavar="A", help="weight of the statistics prior (default: the attack's)")
    add("--lr", dest="learning_rate", type=float, metavar="L", help="learning rate (default: the attack's)")
    add("--steps", type=int, metavar="S", help="default: 1000")
    add("--restarts", type=int, default=4, metavar="R", help="starts, side by side (default: 4)")
    add("--seed", type=int, default=0, metavar="K", help="of the starts (default: 0)")
    add("--out", type=Path, default=Path("gi-jax-invert"), metavar="DIR", help="default: gi-jax-invert")
    add("--resume", action="store_true", help="go on where an interrupted one in DIR stopped")
    add("--overwrite", action="store_true", help="replace results in DIR")
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax.attacks import ATTACKS
    from gi_jax.experiments.invert import fingerprint
    from gi_jax.experiments.spec import AttackSpec
    from gi_jax.experiments.weights import settings_of

    terminal.set_up_compilation()
    names = ("batch_size", "client_bn", "local_steps", "local_batch_size", "attack", "tv", "bn_prior", "learning_rate")
    settings = {name: getattr(options, name) for name in (*names, "restarts", "seed")}
    iterates = options.attack not in ATTACKS or not ATTACKS[options.attack].closed_form
    if options.steps is not None or iterates:
        settings["steps"] = 1000 if options.steps is None else options.steps
    rate = 0.01 if options.local_rate is None else options.local_rate
    if options.local_steps > 1:
        settings["local_rate"] = rate
    elif options.local_rate is not None and not options.after:
        raise InputError(f"--local-rate {rate:g} with the gradient of one step: leave it out, or add --after")
    labels = _class_numbers(options.labels)
    settings["labels"] = options.labels if labels is None else "known"
    settings["bn"] = options.bn or ("infer" if options.client_bn == "batch" else None)
    spec = AttackSpec(**settings, **settings_of(options.weights), defenses=(" + ".join(options.defense or ["none"]),))
    meant = dict(after=rate if options.after else None, labels=labels)
    wanted = fingerprint(options.file, spec, **meant)
    with terminal.held(options.out):
        return _run(options, spec, wanted, meant)


def _run(options, spec, wanted, meant) -> int:
    from gi_jax.experiments import checkpoint
    from gi_jax.experiments.invert import invert

    done = terminal.finished(options.out, wanted, resume=options.resume, overwrite=options.overwrite)
    if done is not None:
        checkpoint.remove(options.out)
        print(f"{options.out} holds this already, complete: it is shown, and --overwrite runs it again")
        _show(options.out, done)
        return 0
    with terminal.Interrupt() as interrupt, terminal.progress_bar() as on_report:
        running = dict(resume=options.resume, on_report=on_report, should_stop=interrupt.requested)
        found = invert(options.file, spec, options.out, **meant, **running)
    _write(options.out, found)
    if found.result["complete"]:
        checkpoint.remove(options.out)
    _show(options.out, found.result)
    if not found.result["complete"]:
        print("gi-jax: interrupted; go on with the same command and --resume", file=sys.stderr)
        return 130
    return 0


def _class_numbers(text) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        return None


def _write(out: Path, found) -> None:
    import numpy as np

    from gi_jax.experiments.checkpoint import write_atomically
    from gi_jax.reports import picture

    np.savez_compressed(out / "reconstructions.npz", images=found.images, spread=found.spread, labels=found.labels)
    picture.draw_found(out / "reconstructions.png", found.images, found.labels, found.result["agreement"])
    write_atomically(out / "result.json", json.dumps(found.result, indent=1, allow_nan=False) + "\n")


def _show(out: Path, result: dict) -> None:
    console = terminal.stdout()
    for sentence in result["threat_model"]:
        console.print(f"- {sentence}")
    counts = {number: count for number, count in enumerate(result["labels"]) if count >= 0.01}
    said = ", ".join(f"{number} ({count:g})" for number, count in counts.items())
    console.print(f"classes (pictures): {said}")
    console.print(f"loss of the attack: {result['loss']:.4g} after {counted(result['steps'], 'step')}")
    agreements = [value for value in result["agreement"] if value is not None]
    if agreements:
        console.print(f"agreement of starts: {min(agreements):.1f} to {max(agreements):.1f} dB")
    console.print(f"picture: {out / 'reconstructions.png'}   figures: {out / 'result.json'}")
