"""A module of this folder in a process of its own, where its threads and those of JAX never meet."""

import importlib
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np
from harness import Side

from gi_jax.attacks import AttackState
from gi_jax.threat import AttackProblem


class Beside:
    """Calls functions of `module` over there, by name. What it prepared last is what `advance` advances.

    The libraries of the module begin to load over there at once; `wait` for them before something else is timed.

    Attributes:
      loss: before the last step of `advance`.
    """

    def __init__(self, module: str = "torch_loop"):
        self._module, self.loss = module, float("nan")
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._process = self._pool.submit(os.getpid)
        self._loaded = self._pool.submit(_call, module, "load", {})

    def wait(self) -> None:
        """Until the libraries are loaded over there."""
        self._loaded.result()

    def __call__(self, name: str, **arguments):
        return self._pool.submit(_call, self._module, name, arguments).result()

    def side(self, steps: int, units: float) -> Side:
        """Rounds of `steps` steps, timed over there; `units` of work a round."""

        def run():
            seconds, self.loss = self("advance", steps=steps)
            return seconds / units

        return run

    def close(self) -> None:
        """Ends the process, whatever it is at."""
        os.kill(self._process.result(), signal.SIGKILL)  # an attack of a peer, once begun, takes minutes
        self._pool.shutdown()


def _call(module, name, arguments):
    return getattr(importlib.import_module(module), name)(**arguments)


def named(tree) -> dict[str, np.ndarray]:
    """Path to array, such as `block0/conv/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def lane_of(problems: AttackProblem, states: AttackState, lane: tuple[int, int, int] = (0, 0, 0)) -> dict:
    """What a loop elsewhere needs of one lane: weights, observed gradient, statistics, start, labels, box.

    Args:
      problems: a stack, with a leading victim axis.
      states: before the first step.
      lane: (victim, point, restart).
    """
    space = problems.space
    return {
        "params": named(problems.params),
        "observed": named(jax.tree.map(lambda leaf: leaf[lane[0]], problems.observed)),
        "statistics": named(jax.tree.map(lambda leaf: leaf[lane[0]], problems.statistics)) or None,
        "images": np.asarray(states.candidate.images[lane]),
        "labels": np.asarray(problems.labels[lane[0]].argmax(-1)),
        "low": np.asarray(-space.mean / space.std),
        "high": np.asarray((1 - space.mean) / space.std),
    }
