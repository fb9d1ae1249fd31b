"""`gi-jax train`: a network that is older than its initialization, for the attacks to look at."""

import argparse
import sys
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.cli.arguments import data_arguments, numbers
from gi_jax.errors import InputError
from gi_jax.words import counted

EXAMPLES = """\
examples:
  gi-jax train
      convnet on the embedded thumbnails of ten photographs: seconds, no download; shows how it works, and is far too
      little data for anything else
  gi-jax train --data cifar10 --data-dir cifar-10-batches-py --model resnet18 --epochs 0.5 --out young
      half an epoch: the early age at which attacks are usually judged
  gi-jax attack --weights young --data cifar10 --data-dir cifar-10-batches-py
      attacks that network instead of one at its initialization
  gi-jax labels --weights young --data cifar10 --data-dir cifar-10-batches-py --batch-size 8 --method all
  gi-jax train --data cifar10 --defense mixup:k=4 --defense prune:p=0.9 --recipe published --num-seeds 5 --out accuracy
      what a defense costs: mean and spread of the test accuracy, and seconds a step with and without it
  gi-jax train --data cifar10 --model convnet_group --defense dpsgd:clip=1,sigma=1 --out private
      with Poisson sampling, and the epsilon of the training

OUT gets weights.msgpack and training.json (loss and accuracy of every epoch, environment, settings, timing); with
several seeds, seed-K/ with both for each. Ctrl-C ends the training early and keeps the weights so far; --resume goes
on, to the weights of an undisturbed run, also after a kill. A second Ctrl-C gives up.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network for attack --weights and labels --weights, with or without a defense",
        description="Trains a network on the train split by stochastic gradient descent (momentum 0.9, weight decay "
        "0.0005, random crops and mirror images) and tests it on the test split, with running averages.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("data and network").add_argument
    data_arguments(add)
    add("--train-pictures", type=int, metavar="N", help="train on the first N pictures only (default: all)")
    add("--model", default="convnet", metavar="M", help="see gi-jax list models (default: convnet)")
    add = parser.add_argument_group("training").add_argument
    add(
        "--defense",
        action="append",
        metavar="NAME:P=V",
        help="the client's defense in every step, such as prune:p=0.9 or mixup:k=4; repeated: one after the other; see "
        "gi-jax list defenses",
    )
    add(
        "--recipe",
        default="plain",
        metavar="plain|published|appendix|fast",
        help="plain: 10 epochs, batch 64, cosine from 0.05; published, appendix: of the paper's code and text, 200 "
        "epochs, batch 128; fast: 15 epochs, batch 256, Nesterov, smoothed labels (default: plain)",
    )
    add("--epochs", type=float, metavar="E", help="also a fraction, such as 0.5 (default: that of the recipe)")
    add("--batch-size", type=int, metavar="B", help="pictures a step (default: that of the recipe)")
    add("--lr", type=float, metavar="L", help="highest learning rate (default: that of the recipe)")
    add("--schedule", metavar="cosine|constant|step|plateau", help="of the rate (default: that of the recipe)")
    add("--no-augment", dest="augment", action="store_false", help="no random crops and mirror images")
    add("--seed", type=int, default=0, metavar="K", help="of weights, order, crops and the defense (default: 0)")
    add("--seeds", type=numbers(int), metavar="K,K,...", help="a training for each: mean and spread of the accuracy")
    add("--num-seeds", type=int, metavar="N", help="the same for seeds 0 to N - 1")
    add = parser.add_argument_group("running").add_argument
    add("--test-pictures", type=int, metavar="N", help="test on the first N pictures only (default: all)")
    add("--lanes", type=int, metavar="N", help="seeds side by side in one program (default: all; on a CPU 1)")
    add(
        "--checkpoint-epochs",
        type=numbers(float),
        default=(),
        metavar="E,E,...",
        help="keep the weights at these times too, in DIR/epoch-E; also fractions",
    )
    add("--no-timing", dest="timing", action="store_false", help="do not time steps with and without the defense")
    add("--out", type=Path, default=Path("gi-jax-train"), metavar="DIR", help="default: gi-jax-train")
    add("--resume", action="store_true", help="go on with an interrupted training in DIR")
    add("--overwrite", action="store_true", help="replace the weights in DIR")
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax.experiments import train_folder, weights
    from gi_jax.experiments.study import Study
    from gi_jax.experiments.train_spec import TrainSpec

    terminal.set_up_compilation()
    names = ("data", "image_size", "train_pictures", "model", "recipe", "epochs", "batch_size", "schedule", "augment")
    settings = {name: getattr(options, name) for name in (*names, "seed", "test_pictures")}
    defense = " + ".join(options.defense or ["none"])
    spec = TrainSpec(**settings, learning_rate=options.lr, defense=defense)
    seeds = _seeds(options)
    with terminal.held(options.out):
        with terminal.refusing_after(lambda: Study(spec, options.data_dir)):
            others = [options.out / weights.NAME, *sorted(options.out.glob(f"seed-*/{weights.NAME}"))]
            parts = options.out.glob(f"seed-*/{train_folder.RECORD}")
            how = dict(resume=options.resume, overwrite=options.overwrite)
            terminal.check_trained(options.out / train_folder.RECORD, others, parts, **how)
        return _run(options, spec, seeds)


def _run(options, spec, seeds) -> int:
    from gi_jax.experiments import train_folder
    from gi_jax.experiments.train_seeds import run_seeds
    from gi_jax.experiments.training import run_training

    running = dict(
        out=options.out, resume=options.resume, checkpoint_epochs=options.checkpoint_epochs, timing=options.timing
    )
    with terminal.Interrupt() as interrupt, terminal.progress_bar("pictures/s") as on_report:
        running |= dict(on_report=on_report, should_stop=interrupt.requested)
        if seeds is None:
            trained = run_training(spec, options.data_dir, **running)
            outcomes = (trained,)
        else:
            trained = run_seeds(spec, seeds, options.data_dir, lanes=options.lanes, **running)
            outcomes = trained.outcomes
    say = _printer()
    for outcome in outcomes:
        if seeds is not None:
            say(f"seed {outcome.weights.origin.seed}")
        _print_training(say, outcome)
        if outcome.result["complete"]:
            folder = options.out if seeds is None else options.out / f"seed-{outcome.weights.origin.seed}"
            _print_not_kept(say, train_folder.not_kept(folder, options.checkpoint_epochs))
    for seed, step in trained.diverged.items() if seeds is not None else ():
        say(f"seed {seed} diverged at step {step}: its loss is not a finite number")
    if seeds is not None and (accuracy := trained.result["test_accuracy"]) is not None:
        spread = "" if accuracy["std"] is None else f" +- {100 * accuracy['std']:.2f}"
        say(f"test accuracy of {counted(len(outcomes), 'seed')}: {100 * accuracy['mean']:.2f}{spread} %")
    _print_timing(say, trained.result["timing"])
    say(f"weights and figures: {options.out}")
    if not trained.result["complete"]:
        print("gi-jax: interrupted; the weights so far are kept, and --resume goes on", file=sys.stderr)
        return 130
    return 0


def _seeds(options) -> tuple[int, ...] | None:
    """The seeds, or None for the single one."""
    if options.seeds is not None and options.num_seeds is not None:
        raise InputError("--seeds and --num-seeds: expected one of them")
    if options.seeds is None and options.num_seeds is None:
        if options.lanes is not None:
            raise InputError(f"--lanes {options.lanes} with one seed: expected --seeds or --num-seeds")
        return None
    if options.seed:
        raise InputError(f"--seed {options.seed} with --seeds or --num-seeds: expected --seeds with that among them")
    if options.num_seeds is not None and options.num_seeds < 1:
        raise InputError(f"num_seeds={options.num_seeds}: expected 1 or above")
    return options.seeds if options.num_seeds is None else tuple(range(options.num_seeds))


def _printer():
    console = terminal.stdout()
    return lambda text: console.print(text, highlight=False)


ROWS = 10
"""Of so many epochs, the last ones, the terminal shows the figures."""


def _print_training(say, outcome) -> None:
    rows = outcome.result["epochs"]
    if len(rows) > ROWS:
        say(f"({len(rows) - ROWS} epochs before these are in the figures)")
    for row in rows[-ROWS:]:
        tested = "" if row["test_accuracy"] is None else f"   test accuracy {100 * row['test_accuracy']:.1f} %"
        train = f"loss {row['loss']:.4f}   train accuracy {100 * row['train_accuracy']:.1f} %"
        say(f"epoch {row['epochs']:g}   {train}{tested}")
    say(outcome.weights.origin.words())
    for words in outcome.result["defense"]["words"]:
        say(words)


def _print_not_kept(say, epochs) -> None:
    if epochs:
        times = ", ".join(f"{time:g}" for time in epochs)
        say(f"no weights are kept at epoch {times}: the training had ended by then, or was past it before it was asked")


def _print_timing(say, timing) -> None:
    if "seconds_per_step" not in timing:
        return
    cost = ""
    if "ratio" in timing:
        low, high = (timing["spread"]["ratio"][name] for name in ("lowest", "highest"))
        cost = f", {timing['ratio']:.2f} times that without the defense ({low:.2f} to {high:.2f})"
    say(f"{1000 * timing['seconds_per_step']:.1f} ms a step{cost}")
