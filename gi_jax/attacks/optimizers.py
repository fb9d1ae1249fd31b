"""Optimizers: optax transformations of a `Candidate` that make descending updates at learning rate 1.

An attack compares its optimizer by identity, so each of these is built once for given arguments.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import optax

from gi_jax.objectives import Candidate

_ONLY_IMAGES = Candidate(images=True, label_logits=False)


def scale_by_soft_sign() -> optax.GradientTransformation:
    """tanh(g / mean |g|) a tensor: the sign of what is large, in proportion what is small.

    Measured by its own mean, it does not depend on the scale of the loss; tanh(g) itself, which published code takes,
    is the identity on the small gradients of a cosine.
    """

    def soften(gradient):
        mean = jnp.mean(jnp.abs(gradient))
        return jnp.tanh(gradient / jnp.where(mean == 0, 1.0, mean))

    return optax.stateless(lambda gradients, params: jax.tree.map(soften, gradients))


def add_langevin_noise(scale: float) -> optax.GradientTransformationExtraArgs:
    """Adds scale * N(0, 1) to the update of the images, new in every step and lane (Yin et al. 2021, section 3).

    Last in a chain it is multiplied by the learning rate, as there: x <- x + rate * scale * N(0, 1). Its `update` takes
    the `key` that `GradientDescent` hands to every optimizer.
    """

    def update(updates, state, params=None, *, key, **extra):
        del params, extra
        noise = jax.random.normal(key, updates.images.shape)
        return updates._replace(images=updates.images + scale * noise), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@lru_cache
def adam() -> optax.GradientTransformation:
    """Adam."""
    return optax.adam(1.0)


@lru_cache
def signed_adam() -> optax.GradientTransformation:
    """Adam on the sign of the gradient; label logits keep their gradient (Geiping et al. 2020)."""
    return optax.chain(optax.masked(optax.scale_by_sign(), _ONLY_IMAGES), optax.adam(1.0))


@lru_cache
def soft_signed_adam() -> optax.GradientTransformation:
    """Adam on the soft sign of the gradient; label logits keep their gradient."""
    return optax.chain(optax.masked(scale_by_soft_sign(), _ONLY_IMAGES), optax.adam(1.0))


@lru_cache
def noisy_adam(scale: float) -> optax.GradientTransformationExtraArgs:
    """Adam with Langevin noise on the images, see `add_langevin_noise`."""
    return optax.chain(optax.adam(1.0), add_langevin_noise(scale))


@lru_cache
def lbfgs() -> optax.GradientTransformationExtraArgs:
    """L-BFGS with a line search of at most 5 points; takes a learning rate of 1.

    It remembers 100 steps, as PyTorch's does: gradient matching is so badly conditioned that 10 need twice as many.
    Lanes search side by side, so each step takes as many evaluations as the lane that needs most. Near the end float32
    blurs the loss by a thousandth of itself, and one lane that looks for a lower value in vain would have all others
    wait; so where the loss has not grown by more than a hundredth, slopes decide (the approximate Wolfe conditions,
    Hager and Zhang 2005). A search that fails altogether takes its last point, however high: an attack keeps its best.
    """
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=5, approx_dec_rtol=0.01, initial_guess_strategy="one")
    return optax.lbfgs(memory_size=100, linesearch=search)


@lru_cache
def stay() -> optax.GradientTransformation:
    """No move at all: the attack only looks at where it starts."""
    return optax.set_to_zero()
