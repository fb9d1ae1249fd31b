"""Every attack on the same pictures, at equal work and at equal time: quality against image-iterations and seconds.

A contender is an attack with a number of restarts. At equal work each has the same number of gradient evaluations a
picture, all its restarts together, so four restarts get a quarter of the steps and a schedule of that length. A step of
L-BFGS evaluates as often as its line search wants, and all evaluations count. At equal time each has as long as the
first contender took for its work; one whose time was within a tenth of that is not run again.

Attacks see one gradient a picture (batch size 1), know the label, and answer with the restart that their own loss
prefers; scores are means over the pictures. Seconds do not include compilation, nor scoring. Attacks that do not apply
are left out: the closed forms (`phong` wants a linear first layer, `rgap` a chain without BatchNorm), and `dlg`, which
optimizes labels that are known here, so that it would be `idlg`.

With `--data-dir`, a copy of CIFAR-10, the case of the paper is run instead: ResNet-18, a client in training mode, at
initialization or, with `--weights`, trained.
"""

import argparse
import io
import time
from collections.abc import Callable
from typing import NamedTuple

import harness
import jax
import numpy as np
import optax
from harness import Report

from gi_jax import attacks, checks, metrics
from gi_jax.attacks.loop import compile_ahead
from gi_jax.attacks.optimizers import lbfgs
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import make_problems, make_victims, pictures
from gi_jax.experiments.weights import settings_of
from gi_jax.threat import AttackProblem, stack

LOOKS = 12
"""At a contender's pictures while it runs: points of its curve."""


class Contender(NamedTuple):
    """An attack that takes part.

    Attributes:
      make: from a number of steps to the attack.
      restarts: starts of each picture.
    """

    make: Callable[[int], attacks.Attack]
    restarts: int = 1


class Case(NamedTuple):
    """What is attacked, and by how much work.

    Attributes:
      name: in the record.
      spec: victims and threat model; its attack is not used.
      evaluations: gradient evaluations a picture.
      contenders: by name; the first one's time is everybody's.
      data_dir: where the data set lies, if it is not embedded.
    """

    name: str
    spec: AttackSpec
    evaluations: int
    contenders: dict[str, Contender]
    data_dir: str | None = None


class Look(NamedTuple):
    """At a contender on its way; means over the pictures."""

    steps: int
    seconds: float
    evaluations: float
    psnr: float
    lpips: float


def preset(name: str, restarts: int = 1, **settings) -> Contender:
    """A published attack, with some settings replaced."""
    return Contender(lambda steps: attacks.create(name, num_steps=steps, **settings), restarts)


RUNNING = {
    "inverting_gradients": preset("inverting_gradients", tv=1e-3),
    "inverting_gradients, 4 restarts": preset("inverting_gradients", 4, tv=1e-3),
    "inverting_gradients, rate 1": preset("inverting_gradients", tv=1e-3, learning_rate=1.0),
    "inverting_gradients, rate 1, 4 restarts": preset("inverting_gradients", 4, tv=1e-3, learning_rate=1.0),
    "modern": preset("modern", tv=1e-3),
    "grad_inversion, 4 restarts": preset("grad_inversion", 4, bn_prior=0.0),
    "grad_inversion without its group, 4 restarts": preset("grad_inversion", 4, bn_prior=0.0, group=0.0),
    "idlg": preset("idlg"),
    "cpl": preset("cpl"),
}
"""For a client with running statistics: total variation as the command line takes it, no statistics prior."""

BATCH = {
    "gradient_inversion_evaluation": preset("gradient_inversion_evaluation"),
    "gradient_inversion_evaluation, 4 restarts": preset("gradient_inversion_evaluation", 4),
    "layerwise": preset("layerwise"),
    "layerwise, 4 restarts": preset("layerwise", 4),
    "inverting_gradients": preset("inverting_gradients", tv=0.05),
    "modern": preset("modern"),
    "grad_inversion, 4 restarts": preset("grad_inversion", 4),
    "grad_inversion without its group, 4 restarts": preset("grad_inversion", 4, group=0.0),
    "idlg": preset("idlg"),
    "cpl": preset("cpl"),
}
"""For a client with batch statistics that are known exactly: as published; total variation of Huang et al. (2021).

Those without a statistics prior make no use of them.
"""


def run(
    contender: Contender,
    steps: int,
    problems: AttackProblem,
    truth: np.ndarray,
    evaluations: float | None = None,
    looks: int = LOOKS,
) -> list[Look]:
    """Runs a contender on a stack of problems and looks at it from time to time.

    Args:
      contender: who.
      steps: of its schedule; it stops earlier where its evaluations run out.
      problems: what the adversary holds, one a picture.
      truth: [n, h, w, c] in [0, 1], to score with.
      evaluations: gradient evaluations a picture, of all restarts together; None for all steps.
      looks: at most so many, apart from the one at the end; eight times as many where a step searches a line.
    """
    attack = contender.make(steps)
    keys = attacks.lane_keys(jax.random.key(0), list(range(len(truth))), contender.restarts)
    states = compile_ahead(attack, problems, attacks.start(attack, problems, keys))
    found, done, used, seconds = [], 0, 0.0, 0.0
    searches = attack.optimizer is lbfgs()  # takes several evaluations a step, and so ends after few
    chunk = -(-steps // (looks * 8 if searches else looks))
    progress = attacks.advance(attack, problems, states, chunk=chunk)
    while True:
        began = time.perf_counter()
        states, now = next(progress, (None, None))
        seconds += time.perf_counter() - began
        if states is None:
            return found
        used += (now.step - done) * evaluations_per_step(states) * contender.restarts
        done = now.step
        best = [points[0].images for points in attacks.reconstructions(problems, states)]
        rows = metrics.score(truth, np.concatenate(best), ("vgg",))
        # NaN where a picture failed: without it, the others' mean would be too good.
        psnr, lpips = (float(np.mean(np.array([row[name] for row in rows], float))) for name in ("psnr", "lpips_vgg"))
        found.append(Look(now.step, seconds, used, psnr, lpips))
        if evaluations is not None and used >= evaluations:
            return found


def evaluations_per_step(states: attacks.AttackState) -> float:
    """One, and those of a line search: lanes search side by side, so all wait for the longest (a sample)."""
    searched = optax.tree.get(states.optimizer, "num_linesearch_steps")
    return 1.0 if searched is None else 1.0 + float(np.max(searched))


def measure_case(report: Report, case: Case) -> list[tuple[str, list[Look]]]:
    """Adds a row for each contender at equal work, and one at equal time where that differs; returns the curves."""
    victims = make_victims(case.spec, case.data_dir)
    problems, truth = stack(make_problems(case.spec, victims.batches, "none")), pictures(victims.batches)
    curves, time_of_first = [], None

    def add(name, contender, terms, looks):
        last = looks[-1]
        report.add(
            {
                "case": case.name,
                "attack": name,
                "at equal": terms,
                "restarts": contender.restarts,
                "evaluations": round(last.evaluations),
                "seconds": round(last.seconds, 1),
                "PSNR": round(last.psnr, 2),
                "LPIPS": round(last.lpips, 4),
                "n": len(truth),
            }
        )
        print(" | ".join(str(value) for value in report.figures[-1].values()), flush=True)

    for name, contender in case.contenders.items():
        steps = max(1, case.evaluations // contender.restarts)
        looks = run(contender, steps, problems, truth, case.evaluations)
        add(name, contender, "work", looks)
        curves.append((name, looks))
        seconds = looks[-1].seconds
        time_of_first = time_of_first or seconds
        ratio = time_of_first / seconds
        if abs(ratio - 1) > 0.1:
            add(name, contender, "time", run(contender, max(1, round(looks[-1].steps * ratio)), problems, truth))
    return curves


def draw(title: str, curves: list[tuple[str, list[Look]]]) -> bytes:
    """LPIPS against seconds, a line a contender, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, looks) in enumerate(curves):
        style = ("-", "--", ":")[number // 10 % 3]
        axes.plot([look.seconds for look in looks], [look.lpips for look in looks], style, marker=".", label=name)
    axes.set(title=title, xlabel="seconds, compilation left out", ylabel="LPIPS (VGG), mean; lower leaks more")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getvalue()


def cases(quick: bool, data_dir: str | None, weights: str | None) -> list[Case]:
    """The embedded photographs, or CIFAR-10 if there is a copy of it."""
    pictures, evaluations = (2, 48) if quick else (6, 400)
    photos = AttackSpec(num_batches=pictures)
    board = {name: RUNNING[name] for name in ("inverting_gradients", "idlg")} if quick else RUNNING
    if weights is not None and data_dir is None:
        raise checks.InputError(
            "--weights without --data-dir: they are for the case of CIFAR-10, which needs a copy of it"
        )
    if data_dir is None:
        return [Case("photos, convnet, running statistics", photos, evaluations, board)]
    network = dict(model="resnet18") if weights is None else settings_of(weights)
    age = "at initialization" if weights is None else "trained"
    spec = AttackSpec(data="cifar10", num_batches=2, client_bn="batch", bn="exact", **network)
    return [Case(f"cifar10, {spec.model} {age}, batch statistics", spec, 160, BATCH, data_dir)]


def measure(
    report: Report,
    quick: bool,
    data_dir: str | None = None,
    weights: str | None = None,
    only: list[str] | None = None,
) -> None:
    """A table row for each case, contender and budget, and a plot a case.

    Raises:
      InputError: for a contender that does not take part.
    """
    harness.need_lpips()
    found = cases(quick, data_dir, weights)
    for name in only or ():
        checks.one_of("contender", name, {name: None for case in found for name in case.contenders})
    for number, case in enumerate(found):
        taking_part = {name: one for name, one in case.contenders.items() if only is None or name in only}
        curves = measure_case(report, case._replace(contenders=taking_part))
        report.pictures[f"case{number}.png"] = draw(case.name, curves)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beyond those of every benchmark."""
    parser.add_argument("--data-dir", metavar="P", help="a copy of CIFAR-10: its case, instead of the photographs")
    parser.add_argument("--only", action="append", metavar="NAME", help="this contender; repeat it for several")
    parser.add_argument("--weights", metavar="W", help="of gi-jax train, for the case of CIFAR-10")


if __name__ == "__main__":
    harness.main("leaderboard", __doc__, measure, add_arguments)
