"""`gi-jax decode`: private pictures from their encodings, with the mapping granted or inferred."""

import argparse
import json
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.errors import InputError

EXAMPLES = """\
examples:
  gi-jax decode
      50 embedded photographs, each in 20 encodings: what MixUp and InstaHide hide from who knows the mapping
  gi-jax decode --data cifar10 --data-dir cifar-10-batches-py --defense intra_instahide:k=6
      the pictures and the number of epochs of the paper
  gi-jax decode --data cifar10 --defense intra_instahide:k=4 --infer-mapping
      the same beside what is found without being told which pictures were mixed
  gi-jax attack --first 5 --num-batches 50 --encodings 20 --defense mixup:k=4 --out mixed
  gi-jax decode mixed
      the same from encodings that an attack recovered from gradients

OUT gets result.json, decoded.png and decoded.npz.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "decode",
        help="decode MixUp and InstaHide encodings, with the mapping granted or inferred",
        description="Rebuilds private pictures from their encodings in several epochs, true ones or those that an "
        "attack recovered, by the paper's decoder and by a better one. Both are granted the secret mapping: what they "
        "find is an upper bound. The floor, what a decoder leaves undone on true encodings, stands beside it. "
        "--infer-mapping adds what they find by a mapping that is inferred from the encodings and their labels.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="of a finished gi-jax attack under such a defense; left out: true encodings of --data",
    )
    add = parser.add_argument_group("true encodings").add_argument
    add("--data", metavar="D", help="photos (embedded), cifar10 or folder:PATH (default: photos)")
    add("--data-dir", metavar="P", help="a copy of cifar10: folder or tar archive, in any of its usual forms")
    add("--split", metavar="train|test", help="default: train")
    add("--image-size", type=int, metavar="S", help="resize to S x S (default: the data set's own; folders 32)")
    add("--first", type=int, metavar="N", help="the pool is the first N of each class (default: 5)")
    add("--encodings", type=int, metavar="T", help="epochs, each with an encoding a picture (default: 20)")
    add("--defense", action="append", metavar="NAME:P=V", help="mixup:k=K, intra_instahide:k=K or inter_instahide:k=K")
    add(
        "--compare", action="append", metavar="DEFENSE", help="a run for each (default: mixup:k=4, intra_instahide:k=4)"
    )
    add = parser.add_argument_group("running").add_argument
    add(
        "--infer-mapping",
        action="store_true",
        help="also without the oracle: infer which pictures each encoding mixes (a minute or two for 1,000 encodings)",
    )
    add("--seed", type=int, default=0, metavar="K", help="of encodings and of the decoder's starts (default: 0)")
    add("--out", type=Path, default=Path("gi-jax-decode"), metavar="DIR", help="default: gi-jax-decode")
    add("--overwrite", action="store_true", help="replace results of other settings in DIR")
    parser.set_defaults(command=run)


def run(options) -> int:
    terminal.set_up_compilation()
    if options.defense and options.compare:
        raise InputError("--defense and --compare: take --compare for each defense")
    if len(options.defense or ()) > 1:
        raise InputError(f"--defense {' and '.join(options.defense)}: take --compare for each")
    settings = {name: getattr(options, name) for name in ("data", "split", "image_size", "first", "encodings")}
    settings["defenses"] = tuple(options.compare or options.defense or ()) or None
    settings = {name: value for name, value in settings.items() if value is not None}
    if options.folder and (settings or options.data_dir):
        raise InputError(
            f"{options.folder} and settings of true encodings: the folder says what was encoded and how; "
            "give one or the other"
        )
    from gi_jax.experiments import decode

    if options.folder:
        pool, runs = decode.read_attack(options.folder)
        fingerprint = decode.fingerprint_of_attack(options.folder, options.seed)
    else:
        spec = decode.DecodeSpec(**settings, seed=options.seed)
        pool, runs = decode.encode_pool(spec, options.data_dir)
        fingerprint = spec.fingerprint
    fingerprint += "-inferred" * options.infer_mapping
    with terminal.held(options.out):
        terminal.finished(options.out, fingerprint, resume=False, overwrite=options.overwrite)
        return _decode(options, fingerprint, pool, runs)


def _decode(options, fingerprint, pool, runs) -> int:
    from rich.console import Console

    from gi_jax.experiments import decode

    console = terminal.stdout()
    with Console(stderr=True).status("decoding") as status:
        outcome = decode.decode(pool, runs, seed=options.seed, infer=options.infer_mapping, on_report=status.update)
    result = {"fingerprint": fingerprint, **outcome.result}
    _write_decoded(options.out, outcome, result)
    console.print(f"- {result['oracle']}", highlight=False)
    from gi_jax.reports.terminal import print_decoded

    print_decoded(console, result["runs"])
    console.print(f"picture: {options.out / 'decoded.png'}   figures: {options.out / 'result.json'}", highlight=False)
    return 0


def _write_decoded(out: Path, outcome, result: dict) -> None:
    import numpy as np

    from gi_jax.experiments.checkpoint import write_atomically
    from gi_jax.reports import picture

    pool, runs = outcome.pool, result["runs"]
    numbered = {f"run{number}": images for number, images in enumerate(outcome.decoded)}
    np.savez_compressed(out / "decoded.npz", originals=pool.images, **numbered)
    picture.draw_decoded(out / "decoded.png", pool.images, pool.names, runs, outcome.decoded, outcome.encodings)
    write_atomically(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
