"""`gi-jax convert`: a PyTorch network for attack --weights and labels --weights."""

import argparse
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.cli.arguments import data_arguments, numbers

EXAMPLES = """\
examples:
  gi-jax convert resnet18.pth --model resnet18_large --image-size 224 --out pretrained
      torchvision's ResNet-18 with its 1000 classes, in the units of ImageNet
  gi-jax convert resnet18.pth --model resnet18_large --data photos_large --new-head --out pretrained
  gi-jax attack --data photos_large --weights pretrained --client-bn batch --batch-size 1
      as at the start of a fine-tuning: the same with a fresh last layer for ten classes, then attacked
  gi-jax convert cifar.safetensors --model resnet18_basic --data cifar10 --data-dir cifar-10-batches-py \\
      --mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616 --out theirs
      says the accuracy on the test split, which is only right with the right model and units

FILE is .npz (numpy.savez), .safetensors, or what torch.save wrote of a state_dict, which PyTorch reads. Layers are
matched by kind and order, whatever they are called, and every shape is checked.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="take over the weights of a PyTorch network",
        description="Converts the weights of a PyTorch network for attack --weights and labels --weights, and tests "
        "it on the data it is for, unless its last layer is fresh.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help=".npz, .safetensors, or a state_dict of torch.save")
    add = parser.add_argument_group("network").add_argument
    add("--model", required=True, metavar="M", help="the one with the same layers; see gi-jax list models")
    add(
        "--mean", type=numbers(float), metavar="R,G,B", help="of pictures in [0, 1] (default: the data's or ImageNet's)"
    )
    add("--std", type=numbers(float), metavar="R,G,B", help="by which they are divided (default: the same)")
    add("--new-head", action="store_true", help="a fresh last layer with as many outputs as the data has classes")
    add("--seed", type=int, default=0, metavar="K", help="of the fresh layer (default: 0)")
    add = parser.add_argument_group("what it is for").add_argument
    data_arguments(add, default=None)
    add("--test-pictures", type=int, metavar="N", help="test on the first N pictures only (default: all)")
    add("--out", type=Path, default=Path("gi-jax-convert"), metavar="DIR", help="default: gi-jax-convert")
    add("--overwrite", action="store_true", help="replace the weights in DIR")
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax.experiments import weights
    from gi_jax.experiments.convert import convert

    terminal.set_up_compilation()
    target = options.out / weights.NAME
    terminal.check_absent(target, overwrite=options.overwrite)
    names = ("data_dir", "image_size", "mean", "std", "new_head", "seed", "test_pictures")
    settings = {name: getattr(options, name) for name in names}
    converted = convert(options.file, options.model, data_name=options.data, **settings)
    options.out.mkdir(parents=True, exist_ok=True)
    weights.save(target, converted)
    console = terminal.stdout()
    console.print(converted.origin.words(), highlight=False)
    console.print(f"weights: {target}; next: gi-jax attack --weights {options.out}", highlight=False)
    return 0
