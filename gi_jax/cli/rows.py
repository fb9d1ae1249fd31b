"""`gi-jax rows`: what a store holds, listed and filtered."""

import argparse
import functools
import json
from pathlib import Path

from gi_jax.errors import InputError
from gi_jax.words import counted

EXAMPLES = """\
examples:
  gi-jax rows
  gi-jax rows --store store --where kind=attack --where defenses=prune:p=0.9 --where batch_size=16
  gi-jax rows --where kind=training --json
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "rows",
        help="list what gi-jax run computed",
        description="Lists the rows of a store, one line each.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--store", type=Path, default=Path("gi-jax-store"), metavar="STORE", help="default: gi-jax-store")
    add(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only rows with this kind, cell or setting; repeat it",
    )
    add("--json", action="store_true", help="the rows whole, one JSON object a line")
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax.experiments.store import Store

    store = Store(options.store)
    if not len(store):
        raise InputError(f"{store.path} holds no rows: expected a store of gi-jax run, see --store")
    wanted = [_condition(text) for text in options.where]
    kind, count = dict(wanted).get("kind"), 0
    for row in store if kind is None else store.of_kind(kind):
        try:
            if not all(_has(row, name, value) for name, value in wanted):
                continue
            line = json.dumps(row) if options.json else _line(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise store.damaged(row["cell"], error) from error
        count += 1
        print(line)
    if not count:
        _check_names(wanted, store)
    if not options.json:
        print(f"{count} of {counted(len(store), 'row')}")
    return 0


def _check_names(wanted, store):
    """Raises for names, and for kinds, that no row has: that none was found is no answer then."""
    known, kinds = {"kind", "cell"}, set()
    for row in store:
        try:
            known |= row["spec"].keys()
            kinds.add(row["kind"])
        except (KeyError, TypeError, AttributeError) as error:
            raise store.damaged(row["cell"], error) from error
    for name, value in wanted:
        if name not in known:
            raise InputError(f"--where {name}=...: no row has it; expected one of {', '.join(sorted(known))}")
        if name == "kind" and value not in kinds:
            raise InputError(f"--where kind={value}: no row is; expected one of {', '.join(sorted(kinds))}")


def _condition(text):
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise InputError(f"--where {text!r}: expected NAME=VALUE, such as batch_size=16")
    return name.replace("-", "_"), value


def _has(row, name, value):
    settings = row if name in ("kind", "cell") else row["spec"]
    if name not in settings:
        return False
    found = settings[name]
    same = _same_defense if name in ("defense", "defenses") else _same
    return any(same(one, value) for one in (found if isinstance(found, list) else [found]))


def _same(found, text):
    """Whether a setting is what was written; numbers however they are spelled."""
    if isinstance(found, str):
        return found == text
    return json.dumps(found) == text or (_is_number(found) and _number(text) == found)


def _number(text):
    """The number that is written; None if it is none."""
    try:
        number = json.loads(text)
    except ValueError:
        return None
    return number if _is_number(number) else None


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_defense(found, text):
    return found == text or (_defense(found) is not None and _defense(found) == _defense(text))


@functools.cache
def _defense(text):
    """The defense that is written; None if it is none."""
    from gi_jax import defenses

    try:
        return defenses.parse(text)
    except InputError:
        return None


def _line(row):
    spec, result = row["spec"], row["result"]
    words = [row["cell"], f"{row['kind']:<12}", row["finished"]]
    if row["kind"] == "attack":
        lpips = result["summary"].get("lpips_vgg", {}).get("mean")
        score = "of encodings: " if "decoded" in result else ""  # reports have the scores of the decoded pictures
        score += "" if lpips is None else f"LPIPS {lpips:.3f}  "
        psnr = result["summary"]["psnr"]["mean"]
        words += ["diverged" if psnr is None else f"{score}PSNR {psnr:.1f} dB"]
        words += [f"{result['attack']} on {spec['data']}, batch size {spec['batch_size']}, {result['defense']}"]
    elif row["kind"] == "training":
        accuracy = result["test_accuracy"]
        failed = f"diverged at step {result['diverged']}" if "diverged" in result else ""
        words += [failed if accuracy is None else f"accuracy {100 * accuracy:.2f} %"]
        words += [f"{spec['model']} on {spec['data']}, {spec['defense']}, seed {spec['seed']}"]
    else:
        words += [", ".join([spec["data"], *spec.get("defenses", ())])]
    return "  ".join(words)
