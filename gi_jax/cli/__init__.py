"""The command line. JAX and everything slow is imported where it is needed: `--help` and `--version` are quick."""

import argparse
import importlib.metadata
import os
import sys

from gi_jax.cli import attack, convert, decode, federate, invert, labels, listing, report, rows, run, terminal, train
from gi_jax.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 nobody reads on, 2 bad input, 130 interrupted.

    Without arguments it is the command of this process (`sys.argv`), which ends at once when it was interrupted: XLA
    may be at work in its threads, and to take the interpreter down under them can crash or hang.
    """
    try:
        try:
            status = _run(arguments)
        finally:
            sys.stdout.flush()  # here, where its error is caught
    except BrokenPipeError:  # such as `gi-jax rows | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the end
        return 1
    if status == 130 and arguments is None:
        sys.stderr.flush()
        os._exit(status)
    return status


def _run(arguments) -> int:
    try:
        parser, names = _parser()
        _check_command(sys.argv[1:] if arguments is None else arguments, names)
        options = parser.parse_args(arguments)
        if vars(options).get("resume") and vars(options).get("overwrite"):
            raise InputError(
                f"--resume and --overwrite: expected one of them; --resume goes on with what lies in {options.out}, "
                "--overwrite starts anew"
            )
        return options.command(options)
    except BrokenPipeError:
        raise
    except InputError as error:
        print(f"gi-jax: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = str(error.strerror or error)
        if error.filename:
            reason += f": {error.filename}: expected a path that can be used; try another one"
        print(f"gi-jax: error: {reason}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from gi_jax.experiments.plan import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0][:120]
        print(f"gi-jax: error: out of memory: take smaller batches or fewer lanes ({reason})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gi-jax: interrupted; what was saved before is kept", file=sys.stderr)
        return 130


def _check_command(arguments, names):
    """Refuses a command that is none, with the nearest one."""
    name = next(iter(arguments), "-")
    if name not in names and not name.startswith("-"):
        from gi_jax import checks

        checks.one_of("command", name, names)


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and the names of the commands."""
    parser = terminal.Parser(
        prog="gi-jax",
        description="Gradient inversion in federated learning: how much does a training set-up leak?",
    )
    parser.add_argument("--version", action="version", version=f"gi-jax {importlib.metadata.version('gi_jax')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=terminal.Parser)
    for command in (attack, decode, labels, train, convert, invert, federate, run, report, rows, listing):
        command.add_parser(commands)
    return parser, list(commands.choices)
