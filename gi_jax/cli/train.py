"""`gi-jax train`: a network that is older than its initialization, for the attacks to look at."""

import argparse
import json
import sys
from pathlib import Path

from gi_jax.checks import InputError
from gi_jax.cli import terminal

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

OUT gets weights.msgpack and training.json (loss and accuracy of every epoch, environment, settings).
Ctrl-C ends the training early and keeps the weights so far; a second one gives up.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network for attack --weights and labels --weights",
        description="Trains a network on the train split by stochastic gradient descent (momentum 0.9, weight decay "
        "0.0005, random crops and mirror images) and tests it on the test split, with running averages.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("data and network").add_argument
    add("--data", default="photos", metavar="D", help="photos (embedded), cifar10 or folder:PATH (default: photos)")
    add("--data-dir", metavar="P", help="a copy of cifar10: folder or tar archive, in any of its usual forms")
    add("--image-size", type=int, metavar="S", help="resize to S x S (default: the data set's own; folders 32)")
    add("--model", default="convnet", metavar="M", help="see gi-jax list models (default: convnet)")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=float, default=10.0, metavar="E", help="also a fraction, such as 0.5 (default: 10)")
    add("--batch-size", type=int, default=64, metavar="B", help="pictures a step (default: 64)")
    add("--lr", type=float, default=0.05, metavar="L", help="highest learning rate, after a warm-up (default: 0.05)")
    add("--schedule", default="cosine", metavar="cosine|constant", help="of the learning rate (default: cosine)")
    add("--no-augment", dest="augment", action="store_false", help="no random crops and mirror images")
    add("--seed", type=int, default=0, metavar="K", help="of weights, order and crops (default: 0)")
    add = parser.add_argument_group("running").add_argument
    add("--test-pictures", type=int, metavar="N", help="test on the first N pictures only (default: all)")
    add("--out", type=Path, default=Path("gi-jax-train"), metavar="DIR", help="default: gi-jax-train")
    add("--overwrite", action="store_true", help="replace the weights in DIR")
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax.experiments import weights
    from gi_jax.experiments.checkpoint import write_atomically
    from gi_jax.experiments.training import TrainSpec, run_training

    names = ("data", "image_size", "model", "epochs", "batch_size", "schedule", "augment", "seed", "test_pictures")
    spec = TrainSpec(**{name: getattr(options, name) for name in names}, learning_rate=options.lr)
    file = options.out / weights.NAME
    if file.exists() and not options.overwrite:
        raise InputError(f"{file} is there already: choose another --out, or add --overwrite")
    terminal.use_compilation_cache()
    options.out.mkdir(parents=True, exist_ok=True)
    with terminal.Interrupt() as interrupt, terminal.progress_bar("pictures/s") as on_report:
        trained = run_training(spec, options.data_dir, on_report=on_report, should_stop=interrupt.requested)
    weights.save(file, trained.weights)
    text = json.dumps(trained.result, indent=1, allow_nan=False) + "\n"
    write_atomically(options.out / "training.json", text)
    console = terminal.stdout()
    for row in trained.result["epochs"]:
        tested = "" if row["test_accuracy"] is None else f"   test accuracy {100 * row['test_accuracy']:.1f} %"
        train = f"loss {row['loss']:.4f}   train accuracy {100 * row['train_accuracy']:.1f} %"
        console.print(f"epoch {row['epochs']:g}   {train}{tested}", highlight=False)
    console.print(trained.weights.origin.words(), highlight=False)
    console.print(f"weights: {file}   figures: {options.out / 'training.json'}", highlight=False)
    if not trained.result["complete"]:
        print("gi-jax: interrupted; the weights so far are kept", file=sys.stderr)
        return 130
    return 0
