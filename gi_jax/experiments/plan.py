"""How attacks are put on a device: what shares a program, how many lanes a launch has, and where they lie."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gi_jax import attacks, checks
from gi_jax.attacks import Attack
from gi_jax.attacks.base import AttackState
from gi_jax.experiments.spec import AttackSpec
from gi_jax.threat import AttackProblem, victim_axes

SWEPT = ("tv", "bn_prior", "learning_rate")
"""Fields of an `AttackSpec` that are numbers of one program."""


def make_attack(spec: AttackSpec) -> Attack:
    """The attack of a single run, from its preset."""
    attack = attacks.create(spec.attack_name, **spec.attack_settings)
    return dataclasses.replace(attack, optimize_labels=spec.labels == ("optimize",))


def groups(specs: Sequence[AttackSpec]) -> list[tuple[int, ...]]:
    """Which of these single runs can be lanes of one program: their numbers, in order of appearance.

    Those of a group differ in `SWEPT` fields only, and none of these numbers adds or drops a part of the objective.
    """
    found = {}
    for number, spec in enumerate(specs):
        common = dataclasses.replace(spec, **dict.fromkeys(SWEPT))
        found.setdefault((common, jax.tree.structure(make_attack(spec))), []).append(number)
    return [tuple(numbers) for numbers in found.values()]


def sweep(points: Sequence[Attack], chosen: Sequence[int]) -> Attack:
    """The `chosen` of several attacks of one form as one, whose leaves are vectors where any of `points` differ.

    Where none do, such as a weight and the same one by default, the first is one all the same: a lane a point.
    """
    leaves, form = jax.tree.flatten(points[0])
    columns = list(zip(*(jax.tree.leaves(point) for point in points), strict=True))
    differ = [any(not np.array_equal(value, values[0]) for value in values) for values in columns]
    if len(points) > 1 and not any(differ):
        differ[next(n for n, leaf in enumerate(leaves) if np.issubdtype(np.result_type(leaf), np.floating))] = True
    swept = [
        jnp.asarray([values[number] for number in chosen], jnp.float32) if vector else values[0]
        for values, vector in zip(columns, differ, strict=True)
    ]
    return jax.tree.unflatten(form, swept)


@dataclass(frozen=True)
class Launch:
    """What one launch attacks: these updates, under these points of a sweep.

    Launches of a group have one shape, and share one program: the last ones are filled up by repeating their own last
    entries. `count` updates are new.
    """

    updates: tuple[int, ...]
    points: tuple[int, ...]
    count: int


def launches(num_updates: int, num_points: int, limit: int, devices: int = 1) -> list[Launch]:
    """All pairs of updates and points in launches of at most `limit` (at least one pair).

    Updates are filled up, and launches made smaller, where devices are done sooner so.

    Raises:
      InputError: if there is nothing to launch.
    """
    checks.positive(num_updates=num_updates, num_points=num_points, limit=limit)
    choices = []
    for most in (limit, max(1, limit // devices)):
        columns = _parts(num_points, most)
        sharing = 1 if len(columns[0]) % devices == 0 else devices
        rows = _parts(num_updates, max(1, limit // len(columns[0])), sharing)
        choices.append([Launch(row, points, len(set(row))) for points in columns for row in rows])
    return min(choices, key=lambda found: len(found) * _lanes_of_a_device(found[0], devices))


def _lanes_of_a_device(launch, devices):
    shape = len(launch.updates), len(launch.points)
    return shape[0] * shape[1] // max(_largest_divisor(size, devices) for size in shape)


def launches_of(spec: AttackSpec, num_updates: int, num_points: int, lanes: int, devices: int) -> list[Launch]:
    """The launches of a specification of at most so many `lanes`, private batches x restarts, on so many devices."""
    devices = 1 if spec.restarts % devices == 0 else devices
    return launches(num_updates, num_points, max(1, lanes // spec.restarts), devices)


def pictures_of(spec: AttackSpec, launch: Launch) -> int:
    """How many pictures a launch works on at once."""
    return len(launch.updates) * len(launch.points) * spec.restarts * spec.pictures_per_update


def _parts(count, limit, devices=1):
    """The numbers 0 to count - 1 in parts of one size; the last is filled up by its last.

    As few parts as possible, as equal as possible; or of as many as all devices share, if these are done sooner so.
    """
    smallest = -(-count // -(-count // limit))
    sizes = [*range(smallest, min(limit, smallest + devices) + 1), limit // devices * devices or smallest]
    size = min(sizes, key=lambda size: -(-count // size) * size // _largest_divisor(size, devices))
    return [tuple(min(first + offset, count - 1) for offset in range(size)) for first in range(0, count, size)]


def lanes_per_launch(spec: AttackSpec, image_shape: tuple[int, ...]) -> int:
    """How many private batches x restarts to attack side by side at first.

    What is too wide for a device by the analysis of its program is made narrower.
    """
    return side_by_side(spec.pictures_per_update, image_shape, jax.local_device_count())


def side_by_side(pictures: int, image_shape: tuple[int, ...], devices: int = 1) -> int:
    """How many groups of so many pictures devices work on at once: a fixed budget of pixels in flight.

    A CPU core is busy with four pictures of 32x32; more in flight only leave the cache, and all cores share a memory.
    Elsewhere it is five hundred a device, of which each takes an attack some 30 MB.
    """
    pixels = pictures * image_shape[0] * image_shape[1]
    if jax.default_backend() == "cpu":
        return max(1, 2**12 * max(2, devices) // pixels)  # a single device has several cores
    return devices * max(1, 2**19 // pixels)


def check_memory(needed: Callable[[], int], limit: int | None) -> None:
    """Refuses a program that the device does not hold, before it runs.

    Args:
      needed: gives its bytes, such as `gi_jax.attacks.program_bytes`; asked only if there is a limit.
      limit: bytes; None for what the device says that it has. CPUs do not say.

    Raises:
      TooLarge: by how much.
    """
    if limit is None:
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is not None and (size := needed()) > limit:
        raise TooLarge(size, limit)


class TooLarge(MemoryError):
    """A program needs more memory than there is; both in bytes."""

    def __init__(self, needed: int, available: int):
        super().__init__(f"out of memory: the program needs {needed:,} bytes, the device has {available:,}")
        self.needed, self.available, self.share = needed, available, available / needed


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of the runtime, or of numpy, says that the memory was too small."""
    said = str(error).lower()
    return any(words in said for words in ("resource_exhausted", "out of memory", "unable to allocate"))


def fewer(limit: int, restarts: int, error: Exception) -> int:
    """Fewer lanes a launch: as many as fit by the analysis of its program, or half if it ran out of memory unforeseen.

    Raises:
      InputError: if there was a single private batch in it, whose restarts are attacked together.
    """
    if limit <= restarts:
        raise checks.InputError(
            f"out of memory with {restarts} lanes of one private batch: take fewer restarts, a smaller batch or a "
            f"smaller model ({str(error).splitlines()[0][:120]})"
        ) from error
    share = 0.95 * error.share if isinstance(error, TooLarge) else 0.5
    return max(restarts, min(limit - 1, int(share * limit)))


def on_all_devices(problems: AttackProblem, states: AttackState) -> tuple[AttackProblem, AttackState]:
    """Spreads the lanes over the local devices: states, [victims, points, restarts], along the axis that most share.

    Of an axis as many devices get a part as divide it. What lanes share is copied to each: the weights, and the
    observed updates unless it is victims that are spread. Programs follow the data, so nothing else changes. On a
    single device, or if no axis divides, all stays where it is.
    """
    devices = jax.local_devices()
    sharing = [_largest_divisor(size, len(devices)) for size in states.best_loss.shape]
    axis = sharing.index(max(sharing))
    if sharing[axis] == 1:
        return problems, states
    mesh = jax.sharding.Mesh(np.array(devices[: sharing[axis]]), ("lanes",))

    def spread(*names):
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names))

    def put(of_victims, leaves):
        return jax.device_put(leaves, spread("lanes") if axis == 0 and of_victims == 0 else spread())

    states = jax.device_put(states, spread(*(None,) * axis, "lanes"))
    return jax.tree.map(put, victim_axes(problems), problems, is_leaf=lambda leaf: leaf is None), states


def _largest_divisor(size, most):
    return next(count for count in range(min(size, most), 0, -1) if size % count == 0)
