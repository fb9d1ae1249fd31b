"""Differential privacy: DP-SGD's gradient, Poisson sampling of its batches, and the epsilon of the whole training.

The guarantee is about one example more or less in the training set (add-or-remove-one), for whoever sees all updates
or models of the training. It rests on three things that the caller has to do: batches drawn by `poisson_sample`, the
same clip and noise in every step, and nothing else computed of the private data.
"""

import logging
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gi_jax import checks
from gi_jax.types import Key


def dp_sgd(clip: float, sigma: float, key: jax.Array) -> optax.GradientTransformationExtraArgs:
    """The gradient of DP-SGD: (sum_i g_i min(1, clip / ||g_i||_2) + N(0, (sigma clip)^2)) / n.

    Takes the place of the gradient that it is given, so it comes first in a chain; what comes after keeps the
    guarantee if it reads the update only. n is the size of the batch as it is handed in, padding of `poisson_sample`
    included.

    Args:
      clip: bound on the l2 norm of an example's gradient over all tensors, above 0; may be traced.
      sigma: noise multiplier, 0 or above; may be traced. 0 is clipping alone, without a guarantee.
      key: the client's randomness.

    Returns:
      A transformation whose update needs `client`, a `gi_jax.threat.ClientStep`.

    Raises:
      InputError: in the update, for a network with BatchNorm, whichever statistics it uses, and for several local
        steps.

    Reference: Abadi et al., Deep Learning with Differential Privacy, 2016, algorithm 1.
    """
    checks.positive(clip=clip)
    checks.non_negative(sigma=sigma)
    aggregate = optax.contrib.differentially_private_aggregate(clip, sigma, key)

    def update(gradients, state, params=None, *, client, **others):
        del gradients, others
        client.check_one_step("dpsgd")
        if client.batch_stats:
            raise checks.InputError(
                "dpsgd with BatchNorm: its statistics, of the batch or running, are computed of private pictures "
                "without noise, so no epsilon holds; take a network with GroupNorm (convnet_group, resnet18_group)"
            )
        return aggregate.update(client.gradient_per_example(), state, params)

    return optax.GradientTransformationExtraArgs(aggregate.init, update)


class Sample(NamedTuple):
    """A Poisson-sampled batch of a fixed size.

    Attributes:
      indices: int32 [size], the chosen examples, then zeros.
      chosen: bool [size], which of them count. Labels times `chosen` are labels of which the padding's cross-entropy,
        and with it its gradient, is exactly zero.
      dropped: how many were drawn beyond `size`; with `sample_size` it stays 0 with near certainty.
    """

    indices: jax.Array
    chosen: jax.Array
    dropped: jax.Array


def poisson_sample(key: Key, num_examples: int, sampling_probability: float, size: int) -> Sample:
    """Draws every example independently with the same probability: the sampling that the epsilon of DP-SGD assumes.

    The number of examples drawn is itself private: divide sums by `size` or by the expected number, never by it.

    Args:
      key: randomness.
      num_examples: in the training set; static.
      sampling_probability: q in [0, 1]; may be traced.
      size: of the padded batch; static. `sample_size` gives one that is large enough.
    """
    drawn = jax.random.bernoulli(key, sampling_probability, (num_examples,))
    count = jnp.sum(drawn)
    (indices,) = jnp.nonzero(drawn, size=size, fill_value=0)
    return Sample(indices, jnp.arange(size) < count, jnp.maximum(count - size, 0))


def sample_size(num_examples: int, sampling_probability: float, tail: float = 1e-12) -> int:
    """The smallest batch that a Poisson sample exceeds with a probability of at most `tail`.

    A training of T steps in which surplus examples are dropped has T * tail added to its delta.
    """
    from scipy import stats  # most of a second to import

    return int(stats.binom.isf(tail, num_examples, sampling_probability))


ACCOUNTANTS = ("pld", "rdp")
"""Privacy loss distributions (tight), and Renyi differential privacy (the bound that most papers quote)."""


def epsilon(
    *, sampling_probability: float, noise_multiplier: float, steps: int, delta: float, accountant: str = "pld"
) -> float:
    """The epsilon of a whole training by DP-SGD with Poisson sampling; infinite without noise.

    Args:
      sampling_probability: q, of an example being in a step's batch, in (0, 1]; batch size over training set size.
      noise_multiplier: sigma, standard deviation of the noise on the sum over the clip, 0 or above.
      steps: of the whole training, 1 or above.
      delta: in (0, 1); well below one over the size of the training set.
      accountant: `pld` or `rdp`; both are upper bounds.

    Raises:
      InputError: for a value out of range.

    Reference: dp-accounting (Google). Mironov et al. 2019 (RDP); Koskela et al. 2020, Doroshenko et al. 2022 (PLD).
    """
    checks.non_negative(noise_multiplier=noise_multiplier)
    checks.one_of("accountant", accountant, ACCOUNTANTS)
    check_training(sampling_probability, steps, delta)
    return _epsilon(accountant, _training(sampling_probability, noise_multiplier, steps), delta)


def noise_multiplier(
    *, epsilon: float, sampling_probability: float, steps: int, delta: float, accountant: str = "pld"
) -> float:
    """The smallest noise multiplier, to 1e-4, with which a whole training has at most this epsilon.

    Args:
      epsilon: above 0; as the others, see `epsilon`.

    Raises:
      InputError: for a value out of range, or an epsilon so large that a multiplier below 0.1 would do.
    """
    import dp_accounting

    checks.positive(epsilon=epsilon)
    checks.one_of("accountant", accountant, ACCOUNTANTS)
    check_training(sampling_probability, steps, delta)

    make_event = partial(_training, sampling_probability, steps=steps)

    def calibrate(name, low, guess):
        bracket = dp_accounting.LowerEndpointAndGuess(low, guess)
        with _silence():
            found = dp_accounting.calibrate_dp_mechanism(
                _accountant(name), make_event, epsilon, delta, bracket, tol=1e-4
            )
        return float(found)

    if _epsilon("rdp", make_event(0.1), delta) <= epsilon:
        raise checks.InputError(
            f"epsilon={epsilon}: a noise multiplier below 0.1 would do, which protects nothing; expected less"
        )
    found = calibrate("rdp", 0.1, 1.0)
    if accountant == "rdp":
        return found
    # A bracket for the accountant that takes its time: seconds where there is little noise.
    low = found / 2
    while _epsilon(accountant, make_event(low), delta) <= epsilon:
        low /= 2
    return calibrate(accountant, low, found)


def check_training(sampling_probability: float, steps: int, delta: float) -> None:
    """Raises unless the values describe a training."""
    if not 0 < sampling_probability <= 1:
        raise checks.InputError(f"sampling probability {sampling_probability}: expected a number in (0, 1]")
    if not 0 < delta < 1:
        raise checks.InputError(f"delta={delta}: expected a number in (0, 1), such as 1e-5")
    checks.positive(steps=steps)


def _training(sampling_probability, multiplier, steps):
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    step = PoissonSampledDpEvent(sampling_probability, GaussianDpEvent(multiplier))
    return SelfComposedDpEvent(step, steps)


def _accountant(name):
    import dp_accounting

    return {"pld": dp_accounting.pld.PLDAccountant, "rdp": dp_accounting.rdp.RdpAccountant}[name]


def _epsilon(accountant, event, delta):
    with _silence():
        return float(_accountant(accountant)().compose(event).get_epsilon(delta))


@contextmanager
def _silence():
    # The accountants log a line for every order of RDP that they leave out, which makes the bound looser, never wrong.
    logger = logging.getLogger("absl")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
