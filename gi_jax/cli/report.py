"""`gi-jax report`: what a store has of named experiments, as one HTML page and as Markdown."""

import argparse
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.cli.run import expand
from gi_jax.errors import InputError

EXAMPLES = """\
examples:
  gi-jax run table2 --scale smoke && gi-jax report table2
  gi-jax report --store store --scale small --out report
      every experiment of which the store has something

OUT gets a page NAME.html for each experiment, which needs nothing beside it, and NAME.md with its pictures.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "report",
        help="show what gi-jax run computed, beside the published numbers",
        description="Writes reports of named experiments from the rows of a store. It computes nothing: what has not "
        "run is shown as missing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="default: every experiment of which the store has rows")
    add("--store", type=Path, default=Path("gi-jax-store"), metavar="STORE", help="default: gi-jax-store")
    add("--scale", metavar="smoke|small|paper", help="default: that of which most was run")
    add("--out", type=Path, default=Path("gi-jax-report"), metavar="DIR", help="default: gi-jax-report")
    add("--no-pictures", dest="pictures", action="store_false", help="leave out pictures of data not to be passed on")
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax import checks
    from gi_jax.experiments.catalogue import EXPERIMENTS, SCALES
    from gi_jax.experiments.checkpoint import write_atomically
    from gi_jax.experiments.store import Store
    from gi_jax.reports import html, markdown
    from gi_jax.reports.experiments import report
    from gi_jax.reports.experiments.gather import count, gather

    if options.scale is not None:
        checks.one_of("scale", options.scale, SCALES)
    store = Store(options.store)
    if not len(store):
        raise InputError(f"{store.path} holds no rows: expected a store of gi-jax run, see --store")
    scales = [options.scale] if options.scale else list(SCALES)
    chosen = {}
    for name in expand(options.names or ["all"]):
        chosen[name] = max((count(name, scale, store) for scale in scales), key=lambda one: one.share)
        if not chosen[name].ran and options.names and "all" not in options.names:
            raise InputError(
                f"{store.path} holds nothing of {name}: expected gi-jax run {name} --out {options.store} first"
            )
    if not any(one.ran for one in chosen.values()):
        raise InputError(f"{store.path} holds rows, but of no experiment: expected a store of gi-jax run")
    options.out.mkdir(parents=True, exist_ok=True)
    console = terminal.stdout()
    for name, one in chosen.items():
        if not one.ran:
            continue
        scale, found = one.scale, gather(name, one.scale, store, pictures=options.pictures)
        experiment = EXPERIMENTS[name]
        page = report(name, experiment.title, experiment.about, found, scale)
        write_atomically(options.out / f"{name}.html", html.render(page))
        markdown.write(page, options.out / f"{name}.md")
        words = f"{name}: {one.ran} of {one.total} cells at scale {scale}: {options.out / name}.html"
        console.print(words, highlight=False)
    return 0
