"""The checks at the door: what passes, and that a message names the value, what was expected, and what to try."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gi_jax import checks
from gi_jax.checks import InputError
from gi_jax.words import counted

CHOICES = ["resnet18", "convnet", "lenet"]
NAN, INF = float("nan"), float("inf")


def test_one_of_returns_the_name():
    assert checks.one_of("model", "lenet", iter(CHOICES)) == "lenet"


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "resnet81",
            "unknown model 'resnet81': did you mean 'resnet18'? choose from resnet18, convnet, lenet",
        ),
        ("conv", "unknown model 'conv': did you mean 'convnet'? choose from resnet18, convnet, lenet"),
        ("zzz", "unknown model 'zzz': choose from resnet18, convnet, lenet"),
        ("", "unknown model '': choose from resnet18, convnet, lenet"),
    ],
)
def test_one_of_suggests_the_nearest(name, message):
    with pytest.raises(InputError) as error:
        checks.one_of("model", name, CHOICES)
    assert str(error.value) == message


def test_nouns_are_counted():
    assert [counted(number, "local step") for number in range(3)] == ["0 local steps", "1 local step", "2 local steps"]


def test_where_there_is_nothing_to_choose():
    with pytest.raises(InputError, match="^unknown parameter 'p': there is none$"):
        checks.one_of("parameter", "p", [])


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3)])
def test_whole_numbers_become_integers(value):
    found = checks.whole("k", value)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [2.5, NAN, INF])
def test_other_numbers_do_not(value):
    with pytest.raises(InputError, match=f"^k={value}: expected a whole number$"):
        checks.whole("k", value)


def test_exactly_one_is_given():
    checks.exactly_one("noise", sigma=0.0, relative=None)
    for values, got in (({"a": None, "b": None}, "none"), ({"a": 1, "b": 0}, "a and b")):
        with pytest.raises(InputError, match=f"^noise takes exactly one of a, b; got {got}$"):
            checks.exactly_one("noise", **values)


def test_traced_numbers_pass():
    def traced(x):
        checks.positive(x=x)
        checks.non_negative(x=x)
        checks.in_range(0, 1, x=x)
        return x

    assert jax.jit(traced)(-5.0) == -5.0


def test_input_errors_are_value_errors():
    assert issubclass(InputError, ValueError)


ABOVE_0 = "expected a number above 0"
FROM_0 = "expected a number that is 0 or above"


@pytest.mark.parametrize(
    "check, value, message",
    [
        (checks.positive, 1, None),
        (checks.positive, 1e-30, None),
        (checks.positive, 0, f"steps=0: {ABOVE_0}"),
        (checks.positive, -2.5, f"steps=-2.5: {ABOVE_0}"),
        (checks.positive, NAN, f"steps=nan: {ABOVE_0}"),
        (checks.positive, INF, f"steps=inf: {ABOVE_0}"),
        (checks.counts, np.int64(3), None),
        (checks.counts, jnp.int32(3), None),
        (checks.counts, 0, f"steps=0: {ABOVE_0}"),
        (checks.counts, 2.5, "steps=2.5: expected a whole number above 0, of type int"),
        (checks.counts, 2.0, "steps=2.0: expected a whole number above 0, of type int"),
        (checks.non_negative, 0, None),
        (checks.non_negative, 3, None),
        (checks.non_negative, -1e-9, f"steps=-1e-09: {FROM_0}"),
        (checks.non_negative, NAN, f"steps=nan: {FROM_0}"),
        (checks.non_negative, INF, f"steps=inf: {FROM_0}"),
    ],
)
def test_numbers(check, value, message):
    if message is None:
        check(steps=value)
    else:
        with pytest.raises(InputError) as error:
            check(fine=1, steps=value)
        assert str(error.value) == message


@pytest.mark.parametrize("value, fits", [(0, True), (0.999, True), (1, False), (-0.1, False), (NAN, False)])
def test_the_interval_is_half_open(value, fits):
    if fits:
        checks.in_range(0, 1, p=value)
    else:
        with pytest.raises(InputError) as error:
            checks.in_range(0, 1, p=value)
        assert str(error.value) == f"p={value}: expected a number in [0, 1)"


def test_all_finite_names_the_leaf_and_counts():
    fine = {"a": jnp.ones(3), "b": {"kernel": np.zeros((2, 2)), "n": 3}}
    checks.all_finite("gradient", fine)
    fine["b"]["kernel"] = np.array([[1, np.nan], [-np.inf, 2]])
    with pytest.raises(InputError) as error:
        checks.all_finite("gradient", fine)
    expected = "gradient: b/kernel holds 2 values that are NaN or infinite; expected finite numbers only"
    assert str(error.value) == expected
    with pytest.raises(InputError, match="^image: value holds 1 values"):
        checks.all_finite("image", jnp.array([1.0, jnp.inf]))


LIKE = {"a": np.zeros(3), "b": {"kernel": np.zeros((2, 4))}}


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a": np.ones(3), "b": {"kernel": np.ones((2, 4))}}, None),
        ({"a": np.ones(3), "b": {}}, "sent: b/kernel is missing; expected shape (2, 4)"),
        ({"a": np.ones(3)}, "sent: b/kernel is missing; expected shape (2, 4)"),
        ({**LIKE, "c": np.ones(1)}, "sent: c is not part of the network; remove it"),
        ({**LIKE, "a": np.ones((3, 1))}, "sent: a has shape (3, 1); expected (3,)"),
    ],
)
def test_same_structure_names_the_first_difference(tree, message):
    if message is None:
        checks.same_structure("sent", tree, LIKE)
    else:
        with pytest.raises(InputError) as error:
            checks.same_structure("sent", tree, LIKE)
        assert str(error.value) == message
