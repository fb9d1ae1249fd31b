"""Strict JAX for every test: silent broadcasting and reused keys are errors."""

import os
import signal

import jax
import pytest

from gi_jax.experiments import environment

os.environ.pop("COLUMNS", None)  # what is printed is as wide as in a pipe
environment.compile_quickly()  # as the command line does
jax.config.update("jax_numpy_rank_promotion", "raise")
if jax.__version_info__ >= (0, 10):  # that of 0.7 takes a key folded in twice, with two numbers, for reused
    jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True, scope="session")
def hear_ctrl_c():
    """A shell's background jobs ignore SIGINT, and so would the commands that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """The compiled programs of a file are not those of the next, and fill the memory."""
    yield
    jax.clear_caches()
