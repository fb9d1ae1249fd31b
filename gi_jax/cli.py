"""The command line. JAX and everything slow is imported where it is needed: `--help` and `--version` are quick."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import signal
import sys
from pathlib import Path

from gi_jax.checks import InputError

ATTACK_EXAMPLES = """\
examples:
  gi-jax attack
      six embedded photographs, no defense against three (the quickstart; a minute on two cores)
  gi-jax attack --defense prune:p=0.9 --defense gaussian:sigma=1e-3 --out pruned
      one run: the client prunes, then adds noise
  gi-jax attack --compare none --compare prune:p=0.9 --compare prune:p=0.99
      one run each, side by side in one picture
  gi-jax attack --data folder:my_pictures --model resnet18 --client-bn batch --bn infer --steps 3000
      your own pictures, a client in training mode, statistics inferred
  gi-jax attack --data cifar10 --data-dir cifar-10-batches-py --model resnet18 --steps 1000
      CIFAR-10 from a local copy

OUT gets result.json, reconstructions.png, reconstructions.npz and history.jsonl.
Under a defense that encodes pictures it gets encodings.npz and mapping.npz too, for gi-jax decode.
After Ctrl-C it holds what was done so far; the same command with --resume goes on.
"""

DECODE_EXAMPLES = """\
examples:
  gi-jax decode
      50 embedded photographs, each in 20 encodings: what MixUp and InstaHide hide from who knows the mapping
  gi-jax decode --data cifar10 --data-dir cifar-10-batches-py --defense intra_instahide:k=6
      the pictures and the number of epochs of the paper
  gi-jax attack --first 5 --num-batches 50 --encodings 20 --defense mixup:k=4 --out mixed
  gi-jax decode mixed
      the same from encodings that an attack recovered from gradients

OUT gets result.json, decoded.png and decoded.npz.
"""

LABELS_EXAMPLES = """\
examples:
  gi-jax labels --batch-size 8 --method all
      every method on the embedded photographs
  gi-jax labels --data cifar10 --data-dir cifar-10-batches-py --model resnet18 --client-bn batch \\
      --victim-seed 0 --batch-size 64 --method auto --method ilrg
      two methods on random batches of CIFAR-10
  gi-jax labels --distribution --data cifar10 --data-dir cifar-10-batches-py
      how many pictures of a batch share a label

OUT gets labels.json; with --distribution label_distribution.json and label_distribution.png.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except InputError as error:
        print(f"gi-jax: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"gi-jax: error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gi-jax: interrupted; what was saved before is kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gi-jax",
        description="Gradient inversion in federated learning: how much does a training set-up leak?",
    )
    parser.add_argument("--version", action="version", version=f"gi-jax {importlib.metadata.version('gi_jax')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _attack_parser(commands)
    _decode_parser(commands)
    _labels_parser(commands)
    listing = commands.add_parser(
        "list",
        help="what there is: attacks, defenses, views, labels, models, data",
        description="Lists what there is, each with one line and its paper.",
        epilog="examples:\n  gi-jax list\n  gi-jax list models --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listing.add_argument(
        "kind", nargs="?", help="attacks, defenses, views, labels, models or data; all of them if left out"
    )
    listing.add_argument("--json", action="store_true", help="as JSON, for programs")
    listing.set_defaults(command=_list)
    return parser


def _attack_parser(commands) -> None:
    parser = commands.add_parser(
        "attack",
        help="attack pictures and score what was recovered",
        description="Takes pictures as a client's private data, computes the update that the client would send, "
        "attacks it, and scores the reconstruction. Without arguments: the quickstart.",
        epilog=f"{ATTACK_EXAMPLES}\n{_defense_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _victim_arguments(parser)
    _adversary_arguments(parser)
    parser.set_defaults(command=_attack)


def _victim_arguments(parser) -> None:
    add = parser.add_argument_group("private data").add_argument
    add(
        "--data",
        default="photos",
        metavar="D",
        help="photos (embedded), cifar10 or folder:PATH (default: photos)",
    )
    add("--data-dir", metavar="P", help="a copy of cifar10: folder or tar archive, in any of its usual forms")
    add("--split", default="train", metavar="train|test", help="default: train")
    add(
        "--image-size",
        type=int,
        metavar="S",
        help="resize to S x S (default: the data set's own; folders 32)",
    )
    add("--first", type=int, default=1, metavar="N", help="victims are the first N of each class (default: 1)")
    add("--victim-seed", type=int, metavar="K", help="draw the victims at random instead")
    add("--batch-size", type=int, default=1, metavar="B", help="pictures in a private batch (default: 1)")
    add(
        "--num-batches",
        type=int,
        metavar="N",
        help="observed updates (default: as many as there are, at most 6)",
    )

    add = parser.add_argument_group("client").add_argument
    add("--model", default="convnet", metavar="M", help="see gi-jax list models (default: convnet)")
    add("--model-seed", type=int, default=0, metavar="K", help="seed of the network's weights (default: 0)")
    add(
        "--client-bn",
        default="running",
        metavar="batch|running",
        help="statistics that the client's BatchNorm uses (default: running; the paper: batch)",
    )
    add(
        "--defense",
        action="append",
        metavar="NAME:P=V",
        help="the client's defense, such as prune:p=0.9; repeated: one after the other; see gi-jax list defenses",
    )
    add(
        "--compare",
        action="append",
        metavar="DEFENSE",
        help="a run for each: none, a defense, or several joined by +; repeat it",
    )
    add(
        "--encodings",
        type=int,
        default=1,
        metavar="T",
        help="epochs in which a defense that encodes pictures encodes all of them, for gi-jax decode (default: 1)",
    )
    add("--clients", type=int, default=1, metavar="K", help="clients of a round, see --view (default: 1)")


def _adversary_arguments(parser) -> None:
    add = parser.add_argument_group("adversary").add_argument
    add(
        "--view",
        default="server",
        metavar="V",
        help="server (each update), sum (the server under secure aggregation: the sum over --clients), client (two "
        "successive models) or eavesdropper (ciphertext only); see gi-jax list views (default: server)",
    )
    add(
        "--bn",
        metavar="exact|proxy|infer",
        help="with --client-bn batch: knows the batch's statistics, takes running ones for them, or infers them "
        "(default: exact); -paper and -reference after the name: the two published readings",
    )
    add(
        "--labels",
        default="known",
        metavar="L",
        help="known, optimize (jointly with the pictures), or recovered first: auto, or a name of gi-jax list labels "
        "(default: known)",
    )
    add("--attack", metavar="NAME", help="see gi-jax list attacks (default: the one that fits --bn-prior)")
    add(
        "--attacker",
        default="adaptive",
        metavar="adaptive|plain",
        help="adaptive: knows the defense and its parameters, and fits the attack to it; plain: does neither "
        "(default: adaptive)",
    )
    add(
        "--tv",
        type=float,
        metavar="A",
        help="weight of total variation (default with a cosine: 0.001; client-bn batch: 0.05; else as published)",
    )
    add(
        "--bn-prior",
        type=float,
        metavar="A",
        help="weight of the BatchNorm statistics prior (default: 0.001 where --bn calls for it, else 0)",
    )
    add(
        "--lr",
        type=float,
        metavar="L",
        help="learning rate (default: 1; client-bn batch, or no cosine: the published one)",
    )
    add("--steps", type=int, default=400, metavar="S", help="steps of the attack (default: 400)")
    add(
        "--restarts",
        type=int,
        default=1,
        metavar="R",
        help="starts; the best by the attacker's loss wins (default: 1)",
    )
    add("--seed", type=int, default=0, metavar="K", help="of starts and noise (default: 0)")

    add = parser.add_argument_group("running").add_argument
    add("--out", type=Path, default=Path("gi-jax-attack"), metavar="DIR", help="default: gi-jax-attack")
    add("--resume", action="store_true", help="go on where an interrupted attack in DIR stopped")
    add("--overwrite", action="store_true", help="replace results of other settings in DIR")
    add("--lanes", type=int, metavar="N", help="batches x restarts side by side (default: fills the device)")
    add(
        "--reference-scoring",
        action="store_true",
        help="adds reference_summary to result.json: the scoring of the paper's published code, flaws and all",
    )


def _labels_parser(commands) -> None:
    parser = commands.add_parser(
        "labels",
        help="recover labels alone, by one method or all",
        description="Recovers the labels of private batches from the gradient of the last layer, and says how many "
        "are right.",
        epilog=LABELS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _victim_arguments(parser)
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
    parser.set_defaults(command=_labels)


def _defense_help() -> str:
    from gi_jax.defenses import DEFENSES

    lines = ["defenses (what each promises; dp is proved, heuristic is not):"]
    for name, entry in DEFENSES.items():
        lines += [f"  {name} ({entry.kind}): {entry.about}"]
        lines += [f"      {key}: {parameter.about}" for key, parameter in entry.parameters.items()]
        lines += [f"      {entry.paper}"]
    return "\n".join(lines) + "\n"


def _decode_parser(commands) -> None:
    parser = commands.add_parser(
        "decode",
        help="decode MixUp and InstaHide encodings, with the mapping granted",
        description="Rebuilds private pictures from their encodings in several epochs, true ones or those that an "
        "attack recovered, by the paper's decoder and by a better one. Both are granted the secret mapping: what they "
        "find is an upper bound. The floor, what a decoder leaves undone on true encodings, stands beside it.",
        epilog=DECODE_EXAMPLES,
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
    add("--defense", metavar="NAME:P=V", help="mixup:k=K, intra_instahide:k=K or inter_instahide:k=K")
    add(
        "--compare", action="append", metavar="DEFENSE", help="a run for each (default: mixup:k=4, intra_instahide:k=4)"
    )
    add = parser.add_argument_group("running").add_argument
    add("--seed", type=int, default=0, metavar="K", help="of encodings and of the decoder's starts (default: 0)")
    add("--out", type=Path, default=Path("gi-jax-decode"), metavar="DIR", help="default: gi-jax-decode")
    add("--overwrite", action="store_true", help="replace results of other settings in DIR")
    parser.set_defaults(command=_decode)


def _decode(options) -> int:
    if options.defense and options.compare:
        raise InputError("--defense and --compare: take --compare for each defense")
    settings = {name: getattr(options, name) for name in ("data", "split", "image_size", "first", "encodings")}
    settings["defenses"] = tuple(options.compare or ([options.defense] if options.defense else ())) or None
    settings = {name: value for name, value in settings.items() if value is not None}
    if options.folder and (settings or options.data_dir):
        raise InputError(
            f"{options.folder} and settings of true encodings: the folder says what was encoded and how; "
            "give one or the other"
        )
    _use_compilation_cache()
    from gi_jax.experiments import decode

    if options.folder:
        pool, runs = decode.read_attack(options.folder)
        fingerprint = decode.fingerprint_of_attack(options.folder, options.seed)
    else:
        spec = decode.DecodeSpec(**settings, seed=options.seed)
        pool, runs = decode.encode_pool(spec, options.data_dir)
        fingerprint = spec.fingerprint
    _finished(options.out, fingerprint, resume=False, overwrite=options.overwrite)
    options.out.mkdir(parents=True, exist_ok=True)
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110)
    with Console(stderr=True).status("decoding") as status:
        outcome = decode.decode(pool, runs, seed=options.seed, on_report=status.update)
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


def _attack(options) -> int:
    from gi_jax.experiments.spec import DEMONSTRATION, AttackSpec, Execution

    if options.defense and options.compare:
        raise InputError(
            "--defense and --compare: take --compare with the stages joined by +, such as 'prune:p=0.9 + ...'"
        )
    same = {field.name for field in dataclasses.fields(AttackSpec)} & vars(options).keys()
    settings = {name: getattr(options, name) for name in same} | {"learning_rate": options.lr}
    if options.compare:
        compared = tuple(options.compare)
    elif options.defense:
        compared = (" + ".join(options.defense),)
    else:
        compared = DEMONSTRATION if AttackSpec(**settings) == AttackSpec() else ("none",)
    spec = AttackSpec(**settings, defenses=compared)
    execution = Execution(data_dir=options.data_dir, lanes=options.lanes, reference_scoring=options.reference_scoring)

    finished = _finished(options.out, spec.fingerprint, resume=options.resume, overwrite=options.overwrite)
    if finished is not None:
        return _show(options.out, finished)

    _use_compilation_cache()
    from gi_jax.experiments.attack import run_attack

    options.out.mkdir(parents=True, exist_ok=True)
    # A termination request keeps what is there, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _progress_bar() as on_report:
        outcome = run_attack(spec, options.out, execution, resume=options.resume, on_report=on_report)
    _write(options.out, spec, outcome)
    status = _show(options.out, outcome.result)
    if not outcome.result["complete"]:
        print("gi-jax: interrupted; go on with the same command and --resume", file=sys.stderr)
        return 130
    return status


def _labels(options) -> int:
    from rich.console import Console

    from gi_jax.experiments.checkpoint import write_atomically
    from gi_jax.experiments.labels import distribution_of, run_labels
    from gi_jax.experiments.spec import AttackSpec
    from gi_jax.reports import labels as reports

    console = Console(width=None if sys.stdout.isatty() else 110)
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
    settings = {name: getattr(options, name) for name in same}
    if options.client_bn == "batch":
        settings["bn"] = "infer"  # grants nothing
    spec = AttackSpec(**settings, defenses=(" + ".join(options.defense or ["none"]),))
    _use_compilation_cache()
    result = {"spec": dataclasses.asdict(spec), **run_labels(spec, options.method or ["auto"], options.data_dir)}
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "labels.json", json.dumps(result, indent=1) + "\n")
    reports.print_methods(console, result)
    console.print(f"counts of every batch: {options.out / 'labels.json'}", highlight=False)
    return 0


def _finished(out: Path, wanted: str, *, resume: bool, overwrite: bool) -> dict | None:
    """The result that lies in `out`, if it is complete, has this fingerprint, and `--resume` asks for it."""
    from gi_jax.experiments import checkpoint

    unfinished = out / checkpoint.NAME
    if unfinished.exists() and not (resume or overwrite):
        raise InputError(f"{unfinished} is an unfinished attack: add --resume to go on, or --overwrite to start anew")
    path = out / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        fingerprint = result["fingerprint"]
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is not a result of gi-jax ({error}): choose another --out") from error
    if fingerprint != wanted and not overwrite:
        raise InputError(f"{path} holds results of other settings: choose another --out, or add --overwrite")
    return result if resume and fingerprint == wanted and result["complete"] else None


def _write(out: Path, spec, outcome) -> None:
    import numpy as np

    from gi_jax.experiments.checkpoint import write_atomically
    from gi_jax.experiments.decode import save_attack
    from gi_jax.reports import picture

    result = {"fingerprint": spec.fingerprint, **outcome.result}
    rows = "".join(json.dumps(row) + "\n" for row in outcome.history)
    write_atomically(out / "history.jsonl", rows)
    first = outcome.reconstructions[0]
    np.savez_compressed(
        out / "reconstructions.npz",
        originals=outcome.originals[: len(first)],
        reconstructions=first,
        labels=outcome.labels[: len(first)],
        **{f"run{number}": images for number, images in enumerate(outcome.reconstructions)},
        **({f"spread{number}": spread for number, spread in enumerate(outcome.spreads)} if spec.restarts > 1 else {}),
    )
    picture.draw(
        out / "reconstructions.png",
        outcome.originals,
        outcome.reconstructions,
        outcome.result["runs"],
        outcome.class_names,
        outcome.encodings,
    )
    if outcome.encoded:
        save_attack(out, outcome.pool, outcome.encoded)
    write_atomically(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def _show(out: Path, result: dict) -> int:
    from rich.console import Console

    from gi_jax.reports.terminal import print_runs

    console = Console(width=None if sys.stdout.isatty() else 110)
    for sentence in result["runs"][0]["threat_model"]:
        console.print(f"- {sentence}", highlight=False)
    print_runs(console, result["runs"])
    console.print(f"picture: {out / 'reconstructions.png'}   figures: {out / 'result.json'}", highlight=False)
    return 0


def _use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second start does not compile."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "gi_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class _progress_bar:
    """A bar with loss, rate and time left on a terminal; silent elsewhere."""

    def __enter__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% loss {task.fields[loss]:.4f} {task.fields[rate]:.0f} image-it/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self.bar.start()
        self.task = self.bar.add_task("compiling", total=None, loss=float("nan"), rate=0.0)
        return self.report

    def report(self, report) -> None:
        task = self.bar.tasks[0]
        self.bar.update(
            self.task,
            description=report.defense,
            total=report.total,
            completed=report.done,
            loss=report.loss,
            rate=task.speed or 0.0,
        )

    def __exit__(self, *exception) -> None:
        self.bar.stop()


def _list(options) -> int:
    from gi_jax.checks import one_of

    kinds = {
        "attacks": _attacks,
        "defenses": _defenses,
        "views": _views,
        "labels": _label_methods,
        "models": _models,
        "data": _data,
    }
    chosen = list(kinds) if options.kind is None else [one_of("list", options.kind, kinds)]
    listing = {kind: kinds[kind]() for kind in chosen}
    if options.json:
        print(json.dumps(listing if options.kind is None else listing[options.kind], indent=1))
        return 0
    from rich.console import Console

    from gi_jax.reports.terminal import print_table

    console = Console(width=None if sys.stdout.isatty() else 110)
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
