"""What a defense is worth against an attacker that knows it: adaptive beside plain, on the embedded photographs.

Each row is one defense at one setting. `plain` attacks as if there were none (cosine distance, total variation 0.001);
`adaptive` is told the defense and its parameters, and the objective is fitted to that (`gi_jax.attacks.adapt`). All
else is equal: the network, the pictures, the starts, the noise, the number of steps. The attacks are those of
`gi-jax attack --attack inverting_gradients --compare DEFENSE --attacker plain|adaptive`, the one of Geiping et al. that
defenses are usually judged by; the default, `modern`, finds more under pruning. Means are over the pictures.

A defense that protects against the plain attacker only protects nobody: judge it by the adaptive columns.

Rows are measured one by one and kept in the file given by `--json`, each with its environment; the same command again
measures what is missing.
"""

import argparse
import json
import tempfile
from pathlib import Path

import harness
from rich.console import Console
from rich.table import Table

from gi_jax.checks import InputError
from gi_jax.experiments.attack import run_attack
from gi_jax.experiments.environment import environment, use_compilation_cache
from gi_jax.experiments.spec import AttackSpec
from gi_jax.words import counted

DEFENSES = (
    "none",
    "prune:p=0.9",
    "prune:p=0.99",
    "prune_global:p=0.99",
    "top_k:k=1000",
    "gaussian:sigma=0.01",
    "gaussian:sigma=0.03",
    "gaussian:relative=1",
    "laplacian:scale=0.01",
    "clip:norm=1",
    "clip_per_example:norm=1",
    "dpsgd:clip=3,sigma=0.003",
    "sign",
    "qsgd:levels=16",
    "qsgd:levels=256",
    "quantize:bits=4",
    "soteria:p=0.5",
    "prune:p=0.9 + gaussian:sigma=0.003",
    "prune:p=0.5 + gaussian:sigma=0.03",
    "gaussian:sigma=0.003 + prune:p=0.9",
    "mixup:k=4",
    "intra_instahide:k=4",
    "inter_instahide:k=4",
)
"""Every defense, most at a strength that troubles the plain attacker, and one pair in both orders."""
QUICK = ("prune:p=0.99", "gaussian:sigma=0.03")

ATTACKERS = ("plain", "adaptive")
METRICS = ("psnr", "lpips_vgg")


def measure(defense: str, pictures: int, steps: int) -> dict[str, object]:
    """A row: means over the pictures of each metric for each attacker, and each picture's PSNR."""
    row: dict[str, object] = {"defense": defense, "environment": environment()}
    for attacker in ATTACKERS:
        model = "convnet_group" if defense.startswith("dpsgd") else "convnet"  # DP-SGD refuses BatchNorm
        spec = AttackSpec(
            attack="inverting_gradients",
            model=model,
            num_batches=pictures,
            steps=steps,
            defenses=(defense,),
            attacker=attacker,
        )
        with tempfile.TemporaryDirectory() as folder:
            (run,) = run_attack(spec, Path(folder)).result["runs"]
        row["n"] = len(run["images"])
        for metric in METRICS:  # none where a picture failed: without it, the others' mean would be too good
            summary = run["summary"][metric]
            row[f"{metric} {attacker}"] = None if summary["failed"] else summary["mean"]
        row[f"psnr of each, {attacker}"] = [image["psnr"] for image in run["images"]]
    return row


def cells(row: dict[str, object]) -> list[str]:
    """The row as text: defense, PSNR plain and adaptive and their difference, LPIPS likewise, n."""
    columns = []
    for metric, digits in zip(METRICS, (1, 3), strict=True):
        plain, adaptive = (row[f"{metric} {attacker}"] for attacker in ATTACKERS)
        gain = None if None in (plain, adaptive) else adaptive - plain
        columns += [_text(plain, f".{digits}f"), _text(adaptive, f".{digits}f"), _text(gain, f"+.{digits}f")]
    return [row["defense"], *columns, str(row["n"])]


def _text(value: float | None, pattern: str) -> str:
    return "-" if value is None else f"{value:{pattern}}"


HEADER = ("defense", "PSNR plain", "adaptive", "", "LPIPS plain", "adaptive", "", "n")


def kept(path: Path | None, settings: dict[str, int]) -> dict[str, object]:
    """What the file holds, or the beginning of it.

    Raises:
      InputError: for a file of other settings.
    """
    if path is None or not path.exists():
        return {"settings": settings, "rows": []}
    try:
        record = json.loads(path.read_text())
        rows = [cells(row) for row in record["rows"]]
        found = record["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--json {path}: {type(error).__name__}: {error}; expected a file of this benchmark, or none yet"
        ) from error
    if found != settings:
        raise InputError(
            f"{path} has {counted(len(rows), 'row')} of {found}: expected {settings}; name another file, "
            "or remove this one"
        )
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two defenses, two pictures, 200 steps: half a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="keep rows here")
    options = parser.parse_args()
    use_compilation_cache()
    settings = dict(pictures=2, steps=200) if options.quick else dict(pictures=6, steps=400)

    try:
        harness.need_lpips()
        record = kept(options.json, settings)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    done = {row["defense"]: row for row in record["rows"]}
    table = Table(*HEADER, title="mean over pictures")
    for defense in QUICK if options.quick else DEFENSES:
        row = done.get(defense) or measure(defense, **settings)
        done[defense] = row
        table.add_row(*cells(row))
        print(" | ".join(cells(row)), flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            partial = options.json.with_name(f"{options.json.name}.partial")
            partial.write_text(json.dumps(record | {"rows": list(done.values())}, indent=1) + "\n")
            partial.replace(options.json)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
