"""What the adversary holds. `AttackProblem` has no field for the truth, so an attack cannot peek."""

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks
from gi_jax.models import Network, Normalize, is_factored
from gi_jax.threat.batch_norm import called_first, check_statistics
from gi_jax.threat.client import Batch, Update, client_update
from gi_jax.threat.floats import as_array, as_float32
from gi_jax.threat.knowledge import Fact, Mixed, check_facts
from gi_jax.threat.local import LocalTraining, deal, train_locally
from gi_jax.threat.logits import logits_of, num_outputs
from gi_jax.threat.space import ImageSpace
from gi_jax.threat.victim import check_sums
from gi_jax.types import BatchStats, Gradients, Images, Labels, Params
from gi_jax.words import counted


def _static(**options):
    return field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AttackProblem:
    """What the adversary holds. There is no field for the truth.

    `observe` makes it of a victim; for an update of your own build it from the weights and the gradient.

    Array fields may carry leading axes for lanes; static fields choose the program.

    Attributes:
      network: the architecture; static.
      normalize: how the adversary runs the normalization layers; static. `Normalize.GIVEN`, unless said otherwise: with
        `statistics`, or as a network without such layers does.
      image_shape: (n, h, w, c) of the private batch; static.
      params: the weights that the client's step started from.
      statistics: normalization statistics as far as shared, mean and var a layer; None if nothing was.
      observed: the gradient as it was sent, after the client's defense; after local steps their mean gradient.
      labels: class probabilities [n, num_classes] if known, else None.
      space: units and range of the pictures.
      known: what the adversary is told about the client's defense, in the order of its stages.
      clients: how many clients' mean update was observed, each of whom took a step on its own equal part of the batch,
        one after the other, with its own statistics, which have a leading axis [clients] if there are several; static.
      local: the steps that the adversary takes the update to be made of, right or wrong; None for a single one on all
        pictures, whose gradient it is.
      order: int32 [num_steps, per_step], which pictures each of these steps took, if that is known.
    """

    network: Network = _static()
    normalize: Normalize = _static(default=Normalize.GIVEN)
    image_shape: tuple[int, int, int, int] = _static()
    params: Params
    statistics: BatchStats | None = None
    observed: Gradients
    labels: Labels | None
    space: ImageSpace
    known: tuple[Fact, ...] = ()
    clients: int = _static(default=1)
    local: LocalTraining | None = None
    order: jax.Array | None = None

    def imagine(self, batch: Batch) -> Update:
        """The update that the client would have sent for `batch`: the same function that the client ran.

        Of several clients the mean gradient, and each one's statistics, [clients, ...]. Of several steps the means over
        the steps; `batch` then holds `copies` guesses of each picture, one epoch after the other.
        """
        update = partial(client_update, self.network, self.normalize, self.params)
        given = {} if self.statistics is None else self.statistics
        if self.local is not None:
            order = self.local.same_order(len(batch.images)) if self.order is None else self.order
            run = partial(train_locally, self.network, self.normalize, self.params)
            return run(given, batch, order, self.local.learning_rate).update
        if self.clients == 1:
            return update(given, batch)
        batches = jax.tree.map(lambda leaf: leaf.reshape(self.clients, -1, *leaf.shape[1:]), batch)
        updates = jax.vmap(update)(given, batches)
        return Update(jax.tree.map(self._mean, updates.factored, is_leaf=is_factored), updates.statistics)

    def _mean(self, leaf):
        if is_factored(leaf):  # the product sums over all rows, those of all clients
            return dataclasses.replace(leaf, cotangents=leaf.cotangents / self.clients)
        return leaf.mean(0)

    @property
    def copies(self) -> int:
        """Guesses of each picture that a candidate holds: one an epoch if the order in the epochs is unknown, else one.

        Within one epoch the order of the guesses needs none: nobody asks in which order they come out. What may be
        wrong there is the labels of a step, where they are known as counts.
        """
        n = self.image_shape[0]
        if self.local is None or self.order is not None or not self.local.shuffles(n):
            return 1
        return self.local.num_epochs(n)

    @property
    def candidate_shape(self) -> tuple[int, int, int, int]:
        """(copies * n, h, w, c) of what an attack looks for."""
        return (self.copies * self.image_shape[0], *self.image_shape[1:])

    @property
    def params_after(self) -> Params:
        """The client's model after its local steps, as far as it can be told from what was sent."""
        distance = self.local.learning_rate * self.local.num_steps
        return jax.tree.map(lambda weight, slope: weight - distance * slope, self.params, self.observed)

    @property
    def label_sum(self) -> jax.Array | float:
        """What each label sums to: 1, unless the adversary is told that pictures without a label have a fixed share."""
        sums = [fact.label_sum for fact in self.known if isinstance(fact, Mixed) and fact.label_sum is not None]
        return sums[0] if sums else 1.0

    def with_labels(self, labels: Labels) -> "AttackProblem":
        """The problem with labels [n, num_classes] that are known as counts: which picture has which is unknown.

        Every class is spread evenly over the steps of an epoch (of the first one where orders are known), and over the
        clients of a sum.
        """
        n = self.image_shape[0]
        if self.clients > 1:
            labels = labels.reshape(-1, self.clients, labels.shape[-1]).swapaxes(0, 1).reshape(labels.shape)
        if self.local is not None and self.local.shuffles(n):
            labels = deal(labels, self.local)
            if self.order is not None:
                first = self.order.reshape(-1)[:n]
                labels = jnp.zeros_like(labels).at[first].set(labels)
        return dataclasses.replace(self, labels=labels)

    def logits(self, images: Images) -> jax.Array:
        """The network's output [n, num_classes] for pictures of one client, in the network's units."""
        return logits_of(self.network, self.normalize, self.params, self._given_to_one, images)

    @property
    def num_classes(self) -> int:
        """Width of the network's output."""
        return num_outputs(self.network, self.normalize, self.params, self._given_to_one, self._shape_of_one)

    @property
    def first_layer(self) -> int:
        """Which of the normalization layers, numbered in the order of `statistics`, the network calls first."""
        images = jax.ShapeDtypeStruct(self._shape_of_one, jnp.float32)
        return called_first(self.network, self.normalize, self.params, self._given_to_one, images)

    @property
    def _shape_of_one(self):
        return (self.image_shape[0] // self.clients, *self.image_shape[1:])

    @property
    def _given_to_one(self) -> BatchStats:
        given = {} if self.statistics is None else self.statistics
        return jax.tree.map(lambda leaf: leaf[0], given) if self.clients > 1 else given


def as_float32_arrays(problem: AttackProblem) -> AttackProblem:
    """The problem with its labels as an array, and float32 in place of other floating-point numbers."""
    labels = None if problem.labels is None else as_array("labels", problem.labels).astype(jnp.float32)
    return as_float32(dataclasses.replace(problem, labels=labels))


def check_problem(problem: AttackProblem) -> None:
    """Refuses a problem that no attack can use.

    That is one with NaN, with an update or labels that do not fit the network, with clients or local steps that do not
    fit the batch, with a fact or statistics that cannot be.

    Raises:
      InputError: naming the tensor, what it holds and what was expected.
    """
    if len(problem.image_shape) != 4:
        raise checks.InputError(f"image_shape {problem.image_shape}: expected that of the batch, (n, h, w, c)")
    problem.space.check(problem.image_shape)
    _check_steps(problem)
    checks.same_structure("observed gradient", problem.observed, problem.params)
    # The weights first, since a gradient taken at NaN is NaN.
    for what, tree in (("params", problem.params), ("observed gradient", problem.observed)):
        checks.all_floating(what, tree)
        checks.all_finite(what, tree)
    if problem.statistics is not None:
        check_statistics(problem.statistics)
    check_facts(problem.known, problem.observed)
    expected = (problem.image_shape[0], problem.num_classes)
    if problem.labels is not None:
        if (shape := np.shape(problem.labels)) != expected:
            raise checks.InputError(f"labels have shape {shape}; expected class probabilities {expected}")
        checks.all_finite("labels", problem.labels)
        checks.within(0, 1, labels=problem.labels)
        check_sums(problem.labels, encoded=True)  # whether they are may be untold


def _check_steps(problem):
    """Refuses clients that have no equal parts of the batch, and local steps that are no whole epochs of it."""
    n = problem.image_shape[0]
    checks.counts(clients=problem.clients)
    if n % problem.clients:
        raise checks.InputError(f"clients={problem.clients} of {counted(n, 'picture')}: expected equal parts")
    if problem.local is None:
        return
    problem.local.check(n)
    if problem.order is not None:
        order, shape = np.asarray(problem.order), (problem.local.num_steps, problem.local.per_step(n))
        if order.shape != shape or not np.issubdtype(order.dtype, np.integer) or order.min() < 0 or order.max() >= n:
            raise checks.InputError(
                f"order of type {order.dtype} and shape {order.shape}: expected whole numbers {shape} from 0 to "
                f"{n - 1}, which pictures each step took"
            )


def victim_axes(problem: AttackProblem) -> AttackProblem:
    """The `in_axes` of a stack of problems: 0 for what belongs to one victim, None for what all have in common."""
    shared = dict(params=None, space=None, local=None)
    return dataclasses.replace(problem, **shared, statistics=0, observed=0, labels=0, known=0, order=0)


FEW = 8
"""So many problems are stacked by one program, which with hundreds takes minutes to compile."""


def stack(problems: Iterable[AttackProblem], count: int | None = None) -> AttackProblem:
    """Problems of several victims as one with a leading victim axis. Model and units are shared, not copied.

    Args:
      problems: of an iterator no more than `FEW` are held at once.
      count: how many an iterator yields.

    Raises:
      InputError: if they differ in network, normalization or shape (different programs), or in weights or units.
    """
    count, problems = len(problems) if count is None else count, iter(problems)
    first = next(problems)
    varying = (_varying(_joins(first, problem)) for problem in itertools.chain([first], problems))
    if count <= FEW:
        return dataclasses.replace(first, **_stack(list(varying)))
    joined = _repeat(next(varying), count)
    for number, one in enumerate(varying, 1):
        joined = _put(joined, one, number)
    return dataclasses.replace(first, **joined)


def _varying(problem):
    return {name: getattr(problem, name) for name in ("statistics", "observed", "labels", "known", "order")}


def _joins(first, other):
    """`other`, if it can be of one launch with `first`; raises if not."""
    if other is first:
        return other
    static = ("network", "normalize", "image_shape", "clients")
    same = all(getattr(other, name) == getattr(first, name) for name in static)
    of_structure = ("known", "local", "order")
    facts = all(jax.tree.structure(getattr(other, x)) == jax.tree.structure(getattr(first, x)) for x in of_structure)
    if not same or not facts or (other.labels is None) != (first.labels is None):
        raise checks.InputError(
            "problems of one launch must share network, normalization, shape, label knowledge, local steps and "
            "kind of defense"
        )
    for name in ("params", "space", "local"):
        if not same_numbers(getattr(first, name), getattr(other, name)):
            raise checks.InputError(
                f"problems of one launch must share {name}, and these differ in it; expected one model and one "
                "space for all; attack them one by one"
            )
    for name, value in _varying(first).items():
        if (here := _forms(value)) != (there := _forms(getattr(other, name))):
            pair = next((pair for pair in zip(here, there, strict=False) if pair[0] != pair[1]), ("none", "some"))
            raise checks.InputError(
                f"problems of one launch must have {name} of one form, and these have {pair[0]} and {pair[1]}; attack "
                "them one by one"
            )
    return other


def _forms(tree):
    """Types and shapes of numbers, such as `float32[3, 10]`."""
    return [f"{jnp.result_type(leaf)}{list(np.shape(leaf))}" for leaf in jax.tree.leaves(tree)]


def same_numbers(tree, other) -> bool:
    """Whether two trees hold the same numbers; numbers that are the same objects, or traced, are not looked at."""
    if jax.tree.structure(tree) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    unlike = [pair for pair in pairs if pair[0] is not pair[1]]
    return all(np.array_equal(*pair) for pair in unlike if not any(isinstance(x, jax.core.Tracer) for x in pair))


def _strong(leaf):
    return jnp.asarray(leaf, jnp.result_type(leaf))  # weak types are other programs


@jax.jit
def _stack(trees):
    """At once: tensor by tensor, each of another shape, takes longer to compile than to do."""
    return jax.tree.map(lambda *leaves: jnp.stack([_strong(leaf) for leaf in leaves]), *trees)


@partial(jax.jit, static_argnums=1)
def _repeat(tree, count):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(_strong(leaf), (count, *jnp.shape(leaf))), tree)


@partial(jax.jit, donate_argnums=0)
def _put(joined, tree, number):
    update = partial(jax.lax.dynamic_update_index_in_dim, index=number, axis=0)
    return jax.tree.map(lambda leaf, one: update(leaf, _strong(one)), joined, tree)
