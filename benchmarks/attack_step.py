"""Speed of one attack step on ResNet-18 at 32x32: batch sizes, lanes, convolution lowerings, beside PyTorch.

The attack is that of Geiping et al. (2020) in training mode, where client and adversary normalize with the batch's own
statistics: cosine distance, total variation 0.1, signed Adam in the box. Both sides start from the same weights,
gradient and images; their matching losses after the timed steps stand beside the speed, for one lane.

The unit is the image-iteration: one picture of one lane, one step. `b1x8` is a batch of 1 in 8 lanes, 8 pictures in
flight. On a CPU lanes are spread over its cores as the command line does it, each a device, and memory is that of one.
PyTorch runs one lane after another, which is what its seconds per image-iteration assume. `vs_torch` is
PyTorch's time over ours: above 1 we are faster. `scan_vs_step` is the time of a step inside the compiled loop over
that of the same step as a program of its own: 1 means that the loop costs nothing, and less than 1 that what does not
change from step to step, such as weights turned over for a matmul, is done once a launch instead of once a step.

On an accelerator the points are others: as many lanes as fill it, and `bfloat16` activations beside float32 ones, whose
matmuls are in the backend's default precision (TF32 on an H100). `floor_fraction` is the time of the nearer floor, the
longer time, over ours: the useful work at the rate of a big float32 matmul, or what has to move at the rate of a copy;
both rates are measured in the same round. What has to move is six passes over the gradient of each lane, in factors
where the step leaves it so (`gi_jax.models.factors`; ResNet-18 at batch 1: 6.4 MB instead of 45), and, once a step,
the weights and the observed gradient, which lanes share.

The useful work of an image-iteration is 6.75 GFLOP: seven passes (forward, cotangents of the input and of the weights,
two matmuls each for the tangents of both) of 0.964 GFLOP, multiplications by padding zeros not counted; at 224x224
373 GFLOP. Fractions of the peak divide the useful work by the time, and by the rate of a big matmul in the same round.
Patches also multiply the zeros, 1.11 GFLOP a pass; Winograd's tiles take half the multiplications, and factored
gradients save one of the seven passes.
"""

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import NamedTuple

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import numpy as np
from beside import Beside, lane_of
from harness import Report, Sample

from gi_jax import attacks, defenses, models, threat
from gi_jax.attacks import loop
from gi_jax.data import load
from gi_jax.experiments import plan
from gi_jax.models.layers import Conv, Linear
from gi_jax.once import jit_once

PASSES, GRADIENT_PASSES = 7, 6
"""Through the network, and over a lane's gradient, in a step."""
TV = 0.1
LEARNING_RATE = 0.1
THREAT = threat.BatchNormThreat(
    client=models.Normalize.BATCH, shared=threat.Shared.NOTHING, adversary=models.Normalize.BATCH
)


def once(function: Callable) -> Callable:
    """For programs that run once: on a CPU half the compile time."""
    if jax.default_backend() != "cpu":
        return jit_once(function)
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


class Point(NamedTuple):
    """One size of one program.

    Attributes:
      batch, lanes: pictures a lane, lanes side by side.
      lowering: of the convolutions.
      step: time a single step as a program of its own, too.
      model: the network; PyTorch takes part with `resnet18`.
      side: pictures are side x side.
      dtype: of the adversary's activations; None for float32.
    """

    batch: int
    lanes: int
    lowering: str = "auto"
    step: bool = False
    model: str = "resnet18"
    side: int = 32
    dtype: str | None = None

    @property
    def images(self) -> int:
        return self.batch * self.lanes

    @property
    def name(self) -> str:
        lowering = "" if self.lowering == "auto" else f"_{self.lowering}"
        model = "" if self.model == "resnet18" else f"_{self.model}"
        side, dtype = "" if self.side == 32 else f"_{self.side}", f"_{self.dtype}" if self.dtype else ""
        return f"b{self.batch}x{self.lanes}{lowering}{model}{side}{dtype}"


QUICK = (Point(16, 1), Point(1, 8), Point(8, 1, step=True, model="convnet"))
"""The convnet for the loop against the step: a third ResNet-18 program takes a quarter of a minute to compile."""
FULL = (
    *(Point(1, lanes) for lanes in (1, 4, 8, 16)),
    *(Point(batch, lanes) for batch in (4, 16) for lanes in (1, 4)),
    Point(32, 1),
    Point(1, 1, side=224),
    Point(16, 1, model="convnet"),
    Point(1, 16, model="convnet"),
    Point(8, 1, step=True),
    Point(16, 1, "patches"),
    Point(1, 1, "lax"),
)
ACCELERATOR = (
    *(Point(1, lanes) for lanes in (1, 64, 128, 256)),
    Point(16, 16),
    Point(1, 256, dtype="bfloat16"),
    Point(16, 16, dtype="bfloat16"),
)
"""What fills an accelerator."""


class Launch(NamedTuple):
    """The arguments of the engine's loop."""

    attack: attacks.Attack
    problems: threat.AttackProblem
    states: attacks.AttackState


@lru_cache
def _model(name: str, lowering: str, side: int):
    network = models.create(name, 10, **({} if lowering == "auto" else {"lowering": lowering}))
    return network, *once(lambda key: network.init(key, (side, side, 3)))(jax.random.key(0))


@lru_cache
def _problems(batch: int, name: str, lowering: str, side: int) -> threat.AttackProblem:
    network, params, batch_stats = _model(name, lowering, side)
    photos = load("photos", "train", image_size=side).take(np.arange(batch))
    victim = threat.Victim(
        network=network,
        params=params,
        batch_stats=batch_stats,
        images=jnp.array(photos.as_float()),
        labels=threat.one_hot(photos.labels, 10),
        space=threat.ImageSpace(mean=jnp.array(photos.mean), std=jnp.array(photos.std)),
    )
    problem = once(lambda victim, key: threat.observe(victim, THREAT, defenses.identity, key))(
        victim, jax.random.key(1)
    )
    return threat.stack([problem])


def launch(point: Point) -> Launch:
    """The arguments for one point, before the first step. All lanes share one victim; on CPUs cores share the lanes."""
    problems = _problems(point.batch, point.model, point.lowering, point.side)
    if point.dtype is not None:
        problems = dataclasses.replace(problems, network=models.narrowed(problems.network, point.dtype))
    attack = attacks.create("inverting_gradients", tv=TV, learning_rate=LEARNING_RATE, num_steps=10**6)
    attack = dataclasses.replace(jax.tree.map(jnp.float32, attack), num_steps=jnp.int32(10**6))  # no decay here
    states = attacks.start(attack, problems, attacks.lane_keys(jax.random.key(2), [0], point.lanes))
    if jax.default_backend() == "cpu":
        problems, states = plan.on_all_devices(problems, states)
    return Launch(attack, problems, states)


def launches(points: Iterable[Point]) -> dict[Point, Launch]:
    """The arguments for each point, made on the CPU, where the client's one step is soon compiled."""
    with _host():
        found = {point: launch(point) for point in points}
    return {point: jax.device_put(start, jax.devices()[0]) for point, start in found.items()}


def _host():
    """Computes on the CPU, if JAX was not told to leave it alone."""
    try:
        return jax.default_device(jax.devices("cpu")[0])
    except RuntimeError:
        return nullcontext()


@partial(jax.jit, donate_argnums=2)
def single_step(attack: attacks.Attack, problems: threat.AttackProblem, states: attacks.AttackState):
    """What the engine's loop has for a body, as a program of its own."""
    return loop._step(attack, problems, states)


class Runner:
    """Advances one launch by one program, and keeps the states between rounds."""

    def __init__(self, call: Callable[[Launch], attacks.AttackState], launch: Launch):
        self.call, self.launch = call, launch

    def __call__(self) -> attacks.AttackState:
        self.launch = self.launch._replace(states=self.call(self.launch))
        return self.launch.states

    @property
    def matching(self) -> float:
        """Matching loss of the first lane at its last evaluation."""
        return float(self.launch.states.info.parts["matching"][0, 0, 0])


def in_loop(program, steps: int) -> Callable[[Launch], attacks.AttackState]:
    """`steps` steps inside the compiled loop."""
    return lambda launch: program(*launch, jnp.int32(steps))


def step_by_step(program, steps: int) -> Callable[[Launch], attacks.AttackState]:
    """`steps` calls of the single step, dispatched without waiting in between."""

    def call(launch):
        for _ in range(steps):
            launch = launch._replace(states=program(*launch))
        return launch.states

    return call


def programs(point: Point, start: Launch) -> dict[str, tuple]:
    """What is compiled for a point, by side."""
    calls = {"loop": (loop._advance.plain, *start, jnp.int32(1))}
    return calls | {"step": (single_step, *start)} if point.step else calls


def measure_point(
    report: Report,
    point: Point,
    start: Launch,
    built: dict[str, harness.Built],
    torch: Beside | None,
    *,
    rounds: int,
    steps: int,
) -> dict[str, Sample]:
    """Runs all sides in turns, and adds a table row a side.

    Args:
      report: gets the rows.
      point: what to measure.
      start: of `launch`.
      built: its `programs`.
      torch: the other side, if there is one.
      rounds: recorded rounds, after one of warm-up.
      steps: a round.

    Returns:
      Side to seconds per image-iteration (`matmul`: per FLOP); empty if nothing was measured.
    """
    needed, free = max(program.bytes for program in built.values()), harness.free_bytes()
    if free is not None and needed > free:
        report.note(f"{point.name}: left out for memory, needs {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free.")
        return {}

    sides, runners = {"matmul": harness.matmul_peak(), "copy": harness.copy_bandwidth()}, {}
    if torch is not None and point.model == "resnet18" and point.dtype is None:
        settings = dict(tv=TV, learning_rate=LEARNING_RATE, device=torch("best_device"))
        torch("prepare", **lane_of(start.problems, start.states), **settings)
        its_steps = min(steps, 20)
        sides["torch"] = torch.side(its_steps, units=its_steps * point.batch)
    for name, program in built.items():
        call = (in_loop if name == "loop" else step_by_step)(program.program, steps)
        # Each side donates its own copy of the states.
        runners[name] = Runner(call, start._replace(states=jax.tree.map(jnp.copy, start.states)))
        sides[name] = harness.side(runners[name], units=steps * point.images)
    samples = harness.interleave(sides, rounds)

    for name in ("torch", *runners):
        if name not in samples:
            continue
        seconds = samples[name]
        report.add(
            {
                "point": point.name,
                "side": name,
                "s / image-iteration": seconds.summary(),
                "image-iterations / s": 1 / seconds.median,
                "fraction of peak": _peak_fraction(samples, name, point).summary(4)
                if point.model == "resnet18"
                else None,
                "matching loss": torch.loss if name == "torch" else runners[name].matching,
                "after steps": (its_steps if name == "torch" else steps) * (len(seconds.values) + 1),
                "compile s": built[name].seconds if name in built else None,
                "program GB": built[name].bytes / 1e9 if name in built else None,
            }
        )
    return samples


def _add_ratios(ratios: dict[str, Sample], point: Point, samples: dict[str, Sample]) -> None:
    if not samples:
        return
    if point.model == "resnet18":
        ratios[f"{point.name}_peak_fraction"] = _peak_fraction(samples, "loop", point)
        ratios[f"{point.name}_floor_fraction"] = _floor_fraction(samples, point)
    if "torch" in samples:
        ratios[f"{point.name}_vs_torch"] = samples["torch"].over(samples["loop"])
    if "step" in samples:
        ratios[f"{point.name}_scan_vs_step"] = samples["loop"].over(samples["step"])


def _peak_fraction(samples: dict[str, Sample], name: str, point: Point) -> Sample:
    useful = useful_flop(point.model, point.side)
    return Sample(tuple(useful * value for value in samples["matmul"].values)).over(samples[name])


def _floor_fraction(samples: dict[str, Sample], point: Point) -> Sample:
    work, traffic = useful_flop(point.model, point.side), traffic_bytes(point)
    floors = [
        max(work * flop, traffic * byte)
        for flop, byte in zip(samples["matmul"].values, samples["copy"].values, strict=True)
    ]
    return Sample(tuple(floors)).over(samples["loop"])


@lru_cache
def useful_flop(model: str, side: int) -> int:
    """Of an image-iteration: all passes through convolutions and linear layers, padding zeros not counted."""
    counted = []

    def count(call, arguments, keywords, context):
        layer = context.module
        if isinstance(layer, Conv):
            (x,) = arguments
            padding = layer.kernel_size // 2 if layer.padding is None else layer.padding
            window = (layer.kernel_size, layer.stride, padding)
            counted.append(taps(x.shape[1], *window) * taps(x.shape[2], *window) * x.shape[-1] * layer.features)
        elif isinstance(layer, Linear):
            counted.append(arguments[0].shape[-1] * layer.features)
        return call(*arguments, **keywords)

    with nn.intercept_methods(count):  # the module's own `init`: a network's is traced once a process
        jax.eval_shape(models.create(model, 10).module.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    return PASSES * 2 * sum(counted)


def taps(extent: int, size: int, stride: int, padding: int) -> int:
    """How many pairs of an output and an input that is no padding a window of `size` has along one axis."""
    firsts = range(-padding, extent + padding - size + 1, stride)
    return sum(min(first + size, extent) - max(first, 0) for first in firsts)


def traffic_bytes(point: Point) -> float:
    """What has to move for an image-iteration: passes over a lane's gradient; weights and observed gradient once."""
    lane, shared = _gradient_bytes(point._replace(lanes=1, lowering="auto", step=False))
    return GRADIENT_PASSES * lane / point.batch + 2 * shared / point.images


@lru_cache
def _gradient_bytes(point: Point) -> tuple[int, int]:
    """Of a lane's gradient, in factors where the step leaves it so, and of the weights."""
    network, shape = models.create(point.model, 10), (point.side, point.side, 3)
    params, batch_stats = jax.eval_shape(lambda key: network.init(key, shape), jax.random.key(0))
    if point.dtype is not None:
        network = models.narrowed(network, point.dtype)

    def gradient(params, batch_stats, images, labels):
        batch = threat.Batch(images, labels)
        return threat.ClientStep(network, THREAT.client, params, batch_stats, batch).update().factored

    batch = [jax.ShapeDtypeStruct((point.batch, *tail), jnp.float32) for tail in (shape, (10,))]
    trees = jax.eval_shape(gradient, params, batch_stats, *batch), params
    return tuple(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in trees)


GOALS = {
    "b1x8_vs_torch": "b1x8_vs_torch",
    "b1x16_vs_torch": "b1x16_vs_torch",
    "b16_vs_torch": "b16x1_vs_torch",
    "scan_vs_step_b8": "b8x1_scan_vs_step",
    "peak_fraction_16": "b16x1_peak_fraction",
}
"""The names of the ratios that are held against goals, to the points they are taken from."""
QUICK_GOALS = {name: GOALS[name] for name in ("b1x8_vs_torch", "b16_vs_torch", "peak_fraction_16")} | {
    "scan_vs_step_b8": "b8x1_convnet_scan_vs_step"
}


def measure(report: Report, quick: bool) -> None:
    """All points, then the ratios that are held against goals."""
    if not quick:
        ceilings = harness.interleave({"matmul": harness.matmul_peak(), "copy": harness.copy_bandwidth()}, rounds=5)
        for name, sample in ceilings.items():
            rate = Sample(tuple(1e-9 / value for value in sample.values))
            report.note(f"{name}: {rate.words('.0f')} {'GFLOP/s' if name == 'matmul' else 'GB/s, read and written'}.")
    torch = Beside() if harness.has("torch") else None
    if torch is None:
        report.note("PyTorch is not installed, so the comparison is left out: pip install 'gi_jax[bench]'.")
    try:
        cpu = jax.default_backend() == "cpu"
        points = QUICK if quick else FULL if cpu else ACCELERATOR
        starts = launches([] if cpu else points)
        built = harness.build_all(
            {f"{point.name}/{side}": call for point in starts for side, call in programs(point, starts[point]).items()}
        )
        for point in points:
            start = starts.pop(point, None) or launch(point)
            calls = programs(point, start)
            mine = {side: built.get(f"{point.name}/{side}") or harness.build(*call) for side, call in calls.items()}
            # Enough steps that what a launch does once (turning weights over) does not count for much.
            pictures = point.images * point.side**2 / 32**2
            if cpu:
                steps = max(1, int((32 if quick or pictures >= 32 else 48) / pictures))
            else:
                steps = min(200, max(8, int(2000 / pictures)))
            samples = measure_point(report, point, start, mine, torch, rounds=2 if quick else 3, steps=steps)
            if samples:
                print(f"{point.name}: {1 / samples['loop'].median:.4g} image-iterations a second", flush=True)
            _add_ratios(report.ratios, point, samples)
            harness.end_if_stopped()
    finally:
        if torch is not None:
            torch.close()
    goals = {
        goal: report.ratios[name] for goal, name in (QUICK_GOALS if quick else GOALS).items() if name in report.ratios
    }
    report.ratios = goals | report.ratios


if __name__ == "__main__":
    harness.main("attack_step", __doc__, measure)
