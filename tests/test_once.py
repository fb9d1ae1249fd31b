"""Programs that run a few times."""

import jax
import jax.numpy as jnp
import pytest

from gi_jax.once import jit_once


def scaled(x, *, by):
    return x * by


def test_it_is_the_function_alone_and_inside_of_programs():
    once = jit_once(scaled, static_argnames="by")
    assert once(jnp.float32(3), by=2) == 6
    assert jax.jit(lambda x: once(x, by=2))(jnp.float32(3)) == 6
    assert jax.vmap(lambda x: once(x, by=2))(jnp.arange(3.0)).tolist() == [0, 2, 4]
    assert jax.grad(lambda x: once(x, by=2))(3.0) == 2


@pytest.mark.parametrize(("backend", "options"), [("gpu", {"xla_gpu_autotune_level": 0}), ("cpu", None), ("tpu", None)])
def test_a_gpu_is_asked_for_no_tuning_and_programs_inside_of_others_for_nothing(monkeypatch, backend, options):
    asked, jit = [], jax.jit

    def watched(function, compiler_options=None, **other):
        asked.append(compiler_options)
        return jit(function, **other)

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "jit", watched)
    once = jit_once(scaled, static_argnames="by")
    assert asked == []
    assert once(1.0, by=2) == once(jnp.float32(1), by=2) == 2
    assert asked == [options]  # one program for both
    inside = jit_once(scaled, static_argnames="by")
    assert jit(lambda x: inside(x, by=2))(1.0) == 2
    assert asked == [options]
