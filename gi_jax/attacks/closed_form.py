"""Attacks that are over when they start."""

from gi_jax.attacks.gradient_descent import GradientDescent
from gi_jax.attacks.initial import Start
from gi_jax.attacks.optimizers import stay
from gi_jax.objectives import GradientMatching, Objective


def closed_form(solve: Start) -> GradientDescent:
    """Starts at the solution and stays: the one thing left to do is to see how well its gradient matches.

    The same `solve` is a start (`initialize`) for any other attack.
    """
    return GradientDescent(
        objective=Objective(parts={"matching": GradientMatching()}),
        initialize=solve,
        optimizer=stay(),
        num_steps=1,
        boxed=False,
    )
