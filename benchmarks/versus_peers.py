"""The same victims, network, gradient, start, objective and steps through other people's loops: speed, and quality.

The attack is that of Geiping et al. (2020): cosine distance, total variation, Adam on the sign of the gradient in the
box of valid pictures, rate divided by ten after 3/8, 5/8 and 7/8 of the steps. ResNet-18 at initialization, whose
weights are copied across, normalizes with running statistics. gi_jax attacks all victims side by side, and one alone;
a peer can only do the latter. In a round every peer attacks one victim, the next one in every round. Each peer lives in
a process of its own.

The ratio of a row is the peer's seconds an image-iteration over those of gi_jax side by side, in the same round: above
1 gi_jax is faster. PSNR and LPIPS (VGG) are means over the victims that all attacked, after equal steps.

Peers that are not installed are left out, with a line on what to install. `torch.compile` needs a C++ compiler on a
CPU, and compiles ResNet-18 for minutes, so that a quick run leaves it out.
"""

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from beside import Beside, lane_of
from harness import Report

from gi_jax import attacks, checks, metrics
from gi_jax.attacks.loop import compile_ahead
from gi_jax.experiments import plan
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import make_problems, make_victims, pictures
from gi_jax.threat import stack

TV = 1e-3
LEARNING_RATE = 1.0
"""With running statistics ten times the published rate finds the picture in a tenth of the steps."""
OURS, ALONE = "gi_jax", "gi_jax, one lane"


class Peer(NamedTuple):
    """A loop of somebody else.

    Attributes:
      package: without which it is left out.
      install: how to get it, after PyTorch.
      module: of this folder, which runs it.
      settings: of its `prepare`.
      quick: whether a quick run has it.
    """

    package: str
    install: str
    module: str
    settings: dict[str, object]
    quick: bool = True


_TORCH = "pip install 'gi_jax[bench]'"
_BREACHING = (
    "pip install torch tqdm hydra-core omegaconf && pip install --no-deps breaching==0.1.2 lpips==0.1.4 torchvision"
)
_GRADATTACK = (
    "pip install torch matplotlib scikit-learn pandas colorama && pip install --no-deps gradattack==0.1.2 "
    "pytorch-lightning==2.6.6 torchmetrics lightning-utilities torchvision"
)
PEERS = {
    "PyTorch loop": Peer("torch", _TORCH, "torch_loop", dict(running=True)),
    "PyTorch loop, torch.compile": Peer("torch", _TORCH, "torch_loop", dict(running=True, compiled=True), quick=False),
    "breaching": Peer("breaching", _BREACHING, "peer_breaching", {}),
    "GradAttack": Peer("gradattack", _GRADATTACK, "peer_gradattack", {}),
}


class Case(NamedTuple):
    """Who is attacked.

    Attributes:
      batch: pictures of a victim.
      victims: of gi_jax, side by side.
      steps: of the attack.
      rounds: victims that each peer attacks.
    """

    batch: int
    victims: int
    steps: int
    rounds: int

    @property
    def name(self) -> str:
        return f"b{self.batch}x{self.victims}"


QUICK = (Case(1, 4, 11, 2),)
FULL = (Case(1, 16, 99, 3), Case(8, 2, 39, 2))
ACCELERATOR = (Case(1, 60, 99, 3),)


class Ours:
    """gi_jax on a stack of victims, spread as the command line does it; a call is a whole attack.

    Attributes:
      found: pictures [victims, n, h, w, c] in [0, 1], of the latest attack.
      compile_seconds: of its program.
    """

    def __init__(self, problems, numbers: Sequence[int], steps: int):
        self.attack = attacks.create("inverting_gradients", tv=TV, learning_rate=LEARNING_RATE, num_steps=steps)
        self.keys = attacks.lane_keys(jax.random.key(1), list(numbers), 1)
        self.problems, _ = plan.on_all_devices(problems, attacks.start(self.attack, problems, self.keys))
        compiled = harness.side(lambda: compile_ahead(self.attack, self.problems, self.start()), units=1)
        self.compile_seconds = compiled()

    def start(self) -> attacks.AttackState:
        """All lanes before the first step."""
        return plan.on_all_devices(self.problems, attacks.start(self.attack, self.problems, self.keys))[1]

    def __call__(self):
        steps = int(self.attack.num_steps)
        for states, _ in attacks.advance(self.attack, self.problems, self.start(), chunk=steps + 1):
            self.found = np.stack([points[0].images for points in attacks.reconstructions(self.problems, states)])
        return self.found


class Theirs:
    """A peer; a call attacks the next victim.

    Attributes:
      found: pictures [n, h, w, c] in [0, 1] of each victim, by number.
      compile_seconds: of its first preparation, if it compiles; None before, and if it does not.
    """

    def __init__(self, peer: Peer, ours: Ours, steps: int):
        self.beside, self.peer, self.ours, self.steps = Beside(peer.module), peer, ours, steps
        self.found, self.turn, self.compile_seconds = {}, 0, None

    def __call__(self) -> float:
        states, number = self.ours.start(), self.turn % len(self.ours.keys)
        if self.turn == 0:
            began = time.perf_counter()
            self._prepare(states, number)
            if self.peer.settings.get("compiled"):
                self.compile_seconds = time.perf_counter() - began
            self.beside("advance", steps=1)  # warm-up
        self._prepare(states, number)
        seconds = self.beside.side(self.steps, units=self.steps * states.candidate.images.shape[3])()
        space = self.ours.problems.space
        self.found[number] = np.asarray(space.denormalize(jnp.asarray(self.beside("images"))))
        self.turn += 1
        return seconds

    def _prepare(self, states, number):
        settings = dict(tv=TV, learning_rate=LEARNING_RATE, model="resnet18", device=self.beside("best_device"))
        if self.peer.module == "torch_loop":  # others know the schedule by its name
            settings["decay_at"] = decay_at(self.steps)
        self.beside("prepare", **lane_of(self.ours.problems, states, (number, 0, 0)), **settings, **self.peer.settings)


def decay_at(steps: int) -> tuple[int, ...]:
    """The steps from which the rate is a tenth of what it was: `gi_jax.attacks.schedules.step_decay`."""
    return tuple(-(-part * steps // 8) for part in (3, 5, 7))


def measure_case(report: Report, case: Case, peers: dict[str, Peer]) -> None:
    """Runs all sides in turns; adds a row a peer and its ratio."""
    spec = AttackSpec(
        model="resnet18",
        batch_size=case.batch,
        num_batches=case.victims,
        first=-(-case.batch * case.victims // 10),
    )
    batches = make_victims(spec).batches
    problems = make_problems(spec, batches, "none")
    truth = pictures(batches).reshape(case.victims, case.batch, *batches[0].images.shape[1:])
    with harness.compilers() as pool:
        together, alone = pool.map(
            Ours, (stack(problems), stack(problems[:1])), (range(case.victims), [0]), [case.steps] * 2
        )
    theirs = {name: Theirs(peer, together, case.steps) for name, peer in peers.items()}
    evaluations = (case.steps + 1) * case.batch
    sides = {
        OURS: harness.side(together, units=evaluations * case.victims),
        ALONE: harness.side(alone, units=evaluations),
        **theirs,
    }
    try:
        for peer in theirs.values():
            peer.beside.wait()
        for ours in (together, alone):  # a peer warms up by itself, as every round of it is another victim
            ours()
        samples = harness.interleave(sides, case.rounds, warmup=0, whole=False)
    finally:
        for other in theirs.values():
            other.beside.close()
    for name, seconds in samples.items():
        runner = {OURS: together, ALONE: alone}.get(name) or theirs[name]
        found = runner.found if name in theirs else dict(enumerate(runner.found[: len(seconds.values)]))
        ratio = seconds.over(samples[OURS])
        report.add(
            {
                "ratio": ratio.summary(3),
                "loop": name,
                "case": case.name,
                "image-iterations / s": 1 / seconds.median,
                "s / image-iteration": seconds.summary(),
                **(quality(truth, found) if name != ALONE else {}),
                "steps": case.steps,
                "compile s": runner.compile_seconds,
            }
        )
        if name != OURS:
            report.ratios[f"{case.name}_vs_{name}"] = ratio
    harness.end_if_stopped()


def quality(truth: np.ndarray, found: dict[int, np.ndarray]) -> dict[str, float | int]:
    """Means over the victims that were attacked.

    Args:
      truth: [victims, n, h, w, c] in [0, 1].
      found: [n, h, w, c] by number of the victim; pictures of a batch are matched to the true ones.
    """
    matched = [pictures[metrics.match(pictures, truth[number])] for number, pictures in found.items()]
    nets = ("vgg",) if metrics.has_lpips() else ()
    rows = metrics.score(np.concatenate([truth[number] for number in found]), np.concatenate(matched), nets)
    # NaN where a picture failed: without it, the others' mean would be too good.
    means = {name: float(np.mean(np.array([row[name] for row in rows], float))) for name in rows[0]}
    lpips = round(means["lpips_vgg"], 4) if nets else None
    return {"PSNR": round(means["psnr"], 2), "LPIPS": lpips, "victims": len(found)}


def installed(report: Report, quick: bool) -> dict[str, Peer]:
    """The peers that can take part; a note on each that cannot."""
    found = {}
    for name, peer in PEERS.items():
        if not harness.has(peer.package):
            report.note(f"{name} is left out, as {peer.package} is not installed: {peer.install}")
        elif quick and not peer.quick:
            report.note(f"{name} is left out of a quick run.")
        else:
            found[name] = peer
    return found


def measure(report: Report, quick: bool, leave_out: list[str] | None = None) -> None:
    """All cases.

    Raises:
      InputError: for an unknown peer.
    """
    for name in leave_out or ():
        checks.one_of("peer", name, PEERS)
        report.note(f"{name} is left out, as it was told.")
    peers = {name: peer for name, peer in installed(report, quick).items() if name not in (leave_out or ())}
    for case in QUICK if quick else FULL if jax.default_backend() == "cpu" else ACCELERATOR:
        measure_case(report, case, peers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beyond those of every benchmark."""
    parser.add_argument("--leave-out", action="append", metavar="PEER", help="do not run this one; repeat it for more")


if __name__ == "__main__":
    harness.main("versus_peers", __doc__, measure, add_arguments)
