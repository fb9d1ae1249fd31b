"""The loop, written once: lanes side by side in one compiled program, chunks of steps on the host.

A lane is one guess at one victim's batch. Lanes are victims x sweep points x restarts, three nested `vmap`s: the model
is shared by all, the observed gradient by all lanes of a victim. The innermost `vmap` has a name, `RESTARTS`, by which
an objective can look at the other restarts of its victim and point (`GroupConsistency`); all other lanes are alone. A
program depends on the model, the shapes and the form of the objective; steps, rates, weights and seeds are numbers that
go in.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import checks, memory
from gi_jax.attacks.adaptive import adapt
from gi_jax.attacks.base import Attack, AttackState
from gi_jax.attacks.entrance import check_attack, check_call
from gi_jax.attacks.epochs import merge_epochs, tie_epochs
from gi_jax.attacks.uncertainty import spread
from gi_jax.kept import jit_kept
from gi_jax.objectives import RESTARTS
from gi_jax.threat import AttackProblem, as_float32_arrays, check_problem, stack, victim_axes
from gi_jax.types import Images, Key


def sweep_axes(attack: Attack):
    """The `in_axes` of an attack: 0 for leaves [w] that are swept, None for scalars.

    Raises:
      InputError: if swept leaves differ in length, or a leaf has more than one axis.
    """
    lengths = {jnp.shape(leaf) for leaf in jax.tree.leaves(attack)} - {()}
    if len(lengths) > 1 or any(len(shape) > 1 for shape in lengths):
        raise checks.InputError(
            f"swept numbers of shapes {sorted(lengths)}: expected scalars, or vectors of one length"
        )
    return jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, attack)


def num_sweep_points(attack: Attack) -> int:
    """Length of the vectors among an attack's leaves; 1 if there are none."""
    return max((jnp.shape(leaf)[0] for leaf in jax.tree.leaves(attack) if jnp.ndim(leaf)), default=1)


def _over_lanes(function, attack: Attack, problems: AttackProblem, num_restarts: int, lane_axes: int | None):
    """`function(attack, problem, lane)` for one lane, mapped over [victims, points, restarts]."""
    num_victims = len(jax.tree.leaves(problems.observed)[0])
    function = _over(function, (None, None, 0), num_restarts, RESTARTS)
    function = _over(function, (sweep_axes(attack), None, lane_axes), num_sweep_points(attack))
    return _over(function, (None, victim_axes(problems), 0), num_victims)


def _over(function, in_axes, size: int, axis_name: str | None = None):
    """`jax.vmap`, which over an axis of length 1 batches nothing: a level less to trace every operation at."""
    if size > 1:
        return jax.vmap(function, in_axes, axis_name=axis_name)
    alone = jax.vmap(function, in_axes=None, axis_size=1, axis_name=axis_name)
    return lambda *arguments: alone(*jax.tree.map(_first, in_axes, arguments, is_leaf=lambda axis: axis is None))


def _first(axis, tree):
    return tree if axis is None else jax.tree.map(lambda leaf: leaf[0], tree)


@jit_kept
def _init(attack: Attack, problems: AttackProblem, keys: jax.Array) -> AttackState:
    start = lambda attack, problem, key: attack.init(key, problem)  # noqa: E731
    return _over_lanes(start, attack, problems, keys.shape[1], None)(attack, problems, keys)


@partial(jit_kept, donate_argnums=(2,))
def _advance(attack: Attack, problems: AttackProblem, states: AttackState, count: jax.Array) -> AttackState:
    return jax.lax.fori_loop(0, count, lambda _, states: _step(attack, problems, states), states)


def _step(attack, problems, states):
    step = lambda attack, problem, state: attack.step(problem, state)  # noqa: E731
    num_restarts = jax.tree.leaves(states)[0].shape[2]
    return _over_lanes(step, attack, problems, num_restarts, 0)(attack, problems, states)


class Progress(NamedTuple):
    """One row of the history: what the lanes of a launch look like between two chunks.

    Attributes:
      step: how many steps are done, by the lane that took most.
      loss, best_loss: [victims, points, restarts].
      parts: name to [victims, points, restarts], unweighted.
      alive: [victims, points, restarts]; False where a lane was frozen by a value that is not finite.
    """

    step: int
    loss: jax.Array
    best_loss: jax.Array
    parts: dict[str, jax.Array]
    alive: jax.Array


def lane_keys(key: Key, victims: list[int], num_restarts: int) -> jax.Array:
    """A key a lane, [victims, restarts], from the victims' own numbers: no lane depends on its neighbors."""
    of_restart = jax.vmap(lambda key, number: jax.random.fold_in(key, number), in_axes=(None, 0))
    of_victim = jax.vmap(
        lambda key, victim: of_restart(jax.random.fold_in(key, victim), jnp.arange(num_restarts)), (None, 0)
    )
    return of_victim(key, jnp.array(victims))


def start(attack: Attack, problems: AttackProblem, keys: jax.Array) -> AttackState:
    """States of all lanes before the first step; keys [victims, restarts].

    For whoever wants to hold the states between chunks. What `reconstruct_all` does before, this does not: it neither
    checks the problems (`check_problem`), nor fits the attack to them (`adapt`, `tie_epochs`).

    Raises:
      InputError: for numbers that no attack can have, and problems that this attack cannot be used on.
    """
    check_attack(attack)
    attack.check(problems)
    return _init(_as_arrays(attack), problems, keys)


def compile_ahead(attack: Attack, problems: AttackProblem, states: AttackState) -> AttackState:
    """Compiles the program that `advance` runs, and returns the states (donated) unchanged: to time the two apart."""
    return _advance(_as_arrays(attack), problems, states, jnp.int32(0))


def program_bytes(attack: Attack, problems: AttackProblem, states: AttackState) -> int:
    """Memory on one device that the program of `advance` needs, with what goes in and out; 0 where it is not known.

    Compiles the program, which `advance` then finds in the compilation cache if there is one.
    """
    return memory.needed(_advance.compile(_as_arrays(attack), problems, states, jnp.int32(0)))


def advance(
    attack: Attack,
    problems: AttackProblem,
    states: AttackState,
    *,
    chunk: int = 100,
    target_loss: float | None = None,
) -> Iterator[tuple[AttackState, Progress]]:
    """Runs the lanes to their end, yielding after each chunk of steps; neither checks nor adapts, see `start`.

    After the last step one more evaluation takes place, so that the best candidate may be the last one. The end is that
    of the longest lane that lives, where `num_steps` is swept.

    Args:
      attack: see `Attack`.
      problems: a stack, with a leading victim axis.
      states: from `start`, or saved between two chunks. Donated: use those that are yielded.
      chunk: steps between two looks; any number, no recompilation.
      target_loss: stop early once the best loss of every living lane is at or below it.

    Yields:
      (states, Progress).
    """
    checks.counts(chunk=chunk)
    attack = _as_arrays(attack)
    num_steps, steps, alive = jax.device_get((attack.num_steps, states.step, states.alive))
    done, reached = int(steps.max()), False
    while not reached:
        count = max(1, min(chunk, _evaluations(num_steps, alive) - done))
        states = _advance(attack, problems, states, jnp.int32(count))
        done += count
        steps, loss, best_loss, alive, parts = jax.device_get(
            (states.step, states.info.loss, states.best_loss, states.alive, states.info.parts)
        )
        yield states, Progress(int(steps.max()), loss, best_loss, parts, alive)
        reached = done >= _evaluations(num_steps, alive)
        if target_loss is not None:
            reached |= bool(((best_loss <= target_loss) | ~alive).all())


def _evaluations(num_steps, alive):
    """Of the longest lane that lives, [victims, points, restarts]: its steps, and one that only looks."""
    return int(np.where(alive, np.reshape(num_steps, (-1, 1)), 0).max()) + 1


def losses_at(attack: Attack, problems: AttackProblem, states: AttackState, images: jax.Array) -> np.ndarray:
    """The objective of every lane at pictures that are given: one evaluation by the program of `advance`.

    At the true ones an oracle, for whoever judges an attack: a loss above it says that the attack did not find what it
    looked for, one below that the objective prefers something else to the truth.

    Args:
      attack, problems: as in `advance`.
      states: of lanes that have taken all their steps. Donated.
      images: [victims, n, h, w, c] in the network's units, as the candidates have them.

    Returns:
      [victims, points, restarts].
    """
    candidates = states.candidate.images
    images = jnp.broadcast_to(images[:, None, None], candidates.shape).astype(candidates.dtype)
    if candidates.committed:  # what is not is another program's once it is
        images = jax.device_put(images, candidates.sharding)
    given = states.candidate._replace(images=images)
    states = _advance(_as_arrays(attack), problems, states._replace(candidate=given), jnp.int32(1))
    return jax.device_get(states.info.loss)


class Reconstruction(NamedTuple):
    """What an attack returns for one victim, best restart by the attacker's own loss first.

    Attributes:
      images: pictures [n, h, w, c] in [0, 1]; NaN if no evaluation was finite: a random start is no reconstruction.
      labels: class probabilities [n, num_classes] that go with them, or None if the problem knows none; NaN like the
        pictures if they were optimized.
      loss: the attacker's objective at its guess, infinite if no evaluation was finite. That is `images` before they
        were clipped, where an attack is not boxed, such as `dlg`.
      restart: which restart it was.
      losses: best loss of each restart, [restarts].
      alive: [restarts]; False where a lane was frozen by a value that is not finite.
      spread: how far the other restarts are from `images`, [n, h, w, c]; NaN if there are none, or all are the same.
        See `uncertainty`.
    """

    images: Images
    labels: jax.Array | None
    loss: float
    restart: int
    losses: jax.Array
    alive: jax.Array
    spread: jax.Array


def reconstructions(problems: AttackProblem, states: AttackState) -> list[list[Reconstruction]]:
    """The best restart of every victim and sweep point, [victims][points], chosen by the attacker's own loss.

    Where every epoch of local training had guesses of its own, their means (`merge_epochs`); losses are those of the
    guesses.
    """
    # On the host first: lanes may be spread over several devices, and the space lie on one.
    guesses, losses, alive = jax.device_get((states.best, states.best_loss, states.alive))
    images, logits = jax.device_get(problems.space.denormalize(guesses.images)), guesses.label_logits
    sums = jnp.reshape(problems.label_sum, (-1, 1, 1, 1, 1))  # of [victims, points, restarts, n, classes]
    probabilities = None if logits is None else jax.device_get(sums * jax.nn.softmax(logits))
    known = jax.device_get(problems.labels)
    if (copies := problems.copies) > 1:
        images, probabilities = _merged(problems, images, probabilities, copies)
    images = _evaluated(images, losses)
    probabilities = None if probabilities is None else _evaluated(probabilities, losses)

    def best(victim, point):
        restart = int(losses[victim, point].argmin())
        if probabilities is not None:
            labels = probabilities[victim, point, restart]
        else:
            labels = None if known is None else known[victim]
        return Reconstruction(
            images=images[victim, point, restart],
            labels=labels,
            loss=float(losses[victim, point, restart]),
            restart=restart,
            losses=losses[victim, point],
            alive=alive[victim, point],
            spread=spread(images[victim, point], alive[victim, point], restart),
        )

    victims, points = losses.shape[:2]
    return [[best(victim, point) for point in range(points)] for victim in range(victims)]


def _evaluated(guesses, losses):
    """Guesses [victims, points, restarts, ...], NaN where no loss [victims, points, restarts] was finite."""
    return np.where(np.isfinite(losses).reshape(losses.shape + (1,) * (guesses.ndim - 3)), guesses, np.float32(np.nan))


def _merged(problems, images, probabilities, copies):
    """Guesses of all epochs made one, in every lane: images and, if they were optimized, labels."""
    lanes = list(np.ndindex(images.shape[:3]))
    if probabilities is None:
        known = np.tile(jax.device_get(problems.labels), (1, copies, 1))
    pairs = [
        merge_epochs(images[lane], known[lane[0]] if probabilities is None else probabilities[lane], copies)
        for lane in lanes
    ]
    images, merged = (
        np.stack(leaves).reshape(*images.shape[:3], *leaves[0].shape) for leaves in zip(*pairs, strict=True)
    )
    return images, None if probabilities is None else merged


def reconstruct_all(
    attack: Attack,
    problems: Sequence[AttackProblem],
    key: Key,
    *,
    num_restarts: int = 1,
    adaptive: bool = True,
    chunk: int = 100,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[list[Reconstruction]]:
    """Attacks several problems of one model under several settings, all side by side in one program.

    After local steps in an unknown order, `EpochConsistency` joins the objective (`gi_jax.attacks.epochs`).

    Args:
      attack: a preset of `gi_jax.attacks.presets`, or your own; its numbers may be vectors of one length, a sweep.
      problems: what the adversary holds, from `gi_jax.threat.observe` or built from real updates.
      key: `jax.random.key(seed)`.
      num_restarts: independent starts a problem and setting; the best by the attacker's loss is returned.
      adaptive: fit the objective to what the problems say of the client's defense, see `gi_jax.attacks.adapt`.
      chunk: steps between two calls of `on_progress`.
      on_progress: gets a `Progress` after each chunk.

    Returns:
      A `Reconstruction` each, [victims][sweep points].

    Raises:
      InputError: for an update that does not fit the network, or holds NaN; for problems that are no single program
        (`gi_jax.threat.stack`), and numbers that no attack can have.
    """
    check_call(attack, problems, key, num_restarts)
    problems = [as_float32_arrays(problem) for problem in problems]
    for problem in problems:
        check_problem(problem)
    stacked = stack(problems)
    if adaptive:
        attack = adapt(attack, stacked)
    attack = tie_epochs(attack, stacked)
    states = start(attack, stacked, lane_keys(key, list(range(len(problems))), num_restarts))
    for latest, progress in advance(attack, stacked, states, chunk=chunk):
        states = latest
        if on_progress is not None:
            on_progress(progress)
    return reconstructions(stacked, states)


def reconstruct(
    attack: Attack,
    problem: AttackProblem,
    key: Key,
    *,
    num_restarts: int = 1,
    adaptive: bool = True,
    chunk: int = 100,
    on_progress: Callable[[Progress], None] | None = None,
) -> Reconstruction:
    """Attacks one problem under one setting: the whole of gi_jax in one call.

    Args: those of `reconstruct_all`, for one problem and without swept numbers.

    Returns:
      The `Reconstruction`.

    Raises:
      InputError: as `reconstruct_all`, and for a sweep.
    """
    check_attack(attack)
    if num_sweep_points(attack) > 1:
        raise checks.InputError("reconstruct attacks with one setting; use reconstruct_all for a sweep")
    options = dict(num_restarts=num_restarts, adaptive=adaptive, chunk=chunk, on_progress=on_progress)
    return reconstruct_all(attack, [problem], key, **options)[0][0]


def _as_arrays(attack: Attack) -> Attack:
    # Python numbers and arrays would be different programs. Whole numbers above 2^24 are no float32.
    return dataclasses.replace(jax.tree.map(jnp.float32, attack), num_steps=jnp.int32(attack.num_steps))
