"""Compiling what runs a few times only."""

from collections.abc import Callable
from functools import cache, wraps

import jax


def jit_once(function: Callable, **options) -> Callable:
    """`jax.jit` for a program that runs a few times: a GPU takes its first guess of a kernel.

    By default it times many kernels for each matmul and convolution, which for full float32 takes minutes, more than
    such a program ever runs (an attack step on an H100, beside other compilations: 120 s; in its default precision 29
    to 79). Inside other programs it is the plain function, and their compilation decides.

    Args:
      function: pure.
      **options: of `jax.jit`.
    """

    @cache
    def program():  # not sooner: asking for the backend starts it
        untimed = {"xla_gpu_autotune_level": 0} if jax.default_backend() == "gpu" else None
        return jax.jit(function, compiler_options=untimed, **options)

    @wraps(function)
    def run(*args, **named):
        inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, named)))
        return (function if inside else program())(*args, **named)

    return run
