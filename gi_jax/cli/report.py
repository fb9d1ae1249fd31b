"""`gi-jax report`: what a store has of named experiments, as one HTML page and as Markdown."""

import argparse
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.cli.run import expand
from gi_jax.errors import InputError
from gi_jax.words import counted

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
    add(
        "--scale",
        metavar="smoke|small|paper[:batches=N]",
        help="as in gi-jax run (default: that of which most was run, the largest of several; with fewer batches only "
        "where nothing ran with all)",
    )
    add("--out", type=Path, default=Path("gi-jax-report"), metavar="DIR", help="default: gi-jax-report")
    add("--no-pictures", dest="pictures", action="store_false", help="leave out pictures of data not to be passed on")
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax.experiments.catalogue import EXPERIMENTS, SCALES, placed, scale_named
    from gi_jax.experiments.cells import of_older_revisions
    from gi_jax.experiments.checkpoint import write_atomically
    from gi_jax.experiments.store import Store
    from gi_jax.reports import html, markdown
    from gi_jax.reports.experiments import report
    from gi_jax.reports.experiments.gather import count, gather

    if options.scale is not None:
        scale_named(options.scale)
    store = Store(options.store)
    if not len(store):
        raise InputError(f"{store.path} holds no rows: expected a store of gi-jax run, see --store")
    scales = [options.scale] if options.scale else list(reversed(SCALES))  # of equal shares the largest scale
    names = expand(options.names or ["all"])

    def most_run(scales):
        return {name: max((count(name, scale, store) for scale in scales), key=lambda one: one.share) for name in names}

    chosen = most_run(scales)
    if not options.scale and not any(one.ran for one in chosen.values()):
        chosen = most_run(_fewer(store))
    for name, one in chosen.items():
        if not one.ran and options.names and "all" not in options.names:
            raise _nothing([name], options.scale, store)
    if not any(one.ran for one in chosen.values()):
        raise _nothing(list(chosen), options.scale, store)
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
        words = f"{name}: {one.ran} of {counted(one.total, 'cell')} at scale {scale}: {options.out / name}.html"
        console.print(words, highlight=False)
        older = of_older_revisions((one.cell for one in placed(name, scale)), store)
        if older:
            words = f"{counted(older, 'row')} of an older revision of gi_jax; gi-jax run {name} computes anew"
            console.print(words, highlight=False)
    return 0


def _fewer(store) -> list[str]:
    """The scales with as few private batches as an attack of the store has, the largest first."""
    from gi_jax.experiments.catalogue import SCALES

    counts = {(row.get("spec") or {}).get("num_batches") for row in store if row.get("kind") == "attack"}
    counts = sorted((count for count in counts if isinstance(count, int)), reverse=True)
    counts = counts or [1]  # of a store without attacks: where nothing ran, that is what the caller learns
    return [f"{scale}:batches={count}" for scale in reversed(SCALES) for count in counts]


def _nothing(names, scale, store) -> InputError:
    """A store has nothing of these experiments, at a scale if one was asked for: what it has, and what to do."""
    from gi_jax.experiments.catalogue import SCALES, placed
    from gi_jax.experiments.cells import of_older_revisions
    from gi_jax.reports.experiments.gather import count

    there = [one for one in SCALES if any(count(name, one, store).ran for name in names)]
    scales = [scale] if scale else SCALES
    older = of_older_revisions((one.cell for name in names for each in scales for one in placed(name, each)), store)
    name, what = (names[0], names[0]) if len(names) == 1 else ("NAME", "any experiment")
    at, option = (f" at scale {scale}", f" --scale {scale}") if scale else ("", "")
    only = f", only at {' and '.join(there)}" if there else ""
    stale = f"; {counted(older, 'row')} of an older revision of gi_jax" if older else ""
    instead = f", or --scale {there[-1]}" if there else ""
    return InputError(
        f"{store.path} holds nothing of {what}{at}{only}{stale}: expected gi-jax run {name}{option} --out "
        f"{store.folder} first{instead}"
    )
