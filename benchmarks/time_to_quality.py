"""Seconds until the attacker's picks reach a mean LPIPS (VGG) of 0.3, 0.2 and 0.1, per attack setting.

At every look, between two chunks of steps, the best guess so far by the attacker's own loss is scored against the
truth; scoring and compilation are not counted. The time of a threshold is that of the first look at or below it, so it
is right to one look; a setting that never gets there has none. How long a schedule is matters as much as how fast a
step is: settings have their own.

A ratio is the time of the first setting, the default of the command line, over that of another to the same threshold:
above 1 the other is faster; there is none where one of the two does not get there. Victims are single pictures (batch
size 1) whose label is known, attacked side by side, and the clock is that of all of them together.

With `--data-dir`, a copy of CIFAR-10, ResNet-18 is attacked too, at initialization or, with `--weights`, trained.
"""

import argparse
from typing import NamedTuple

import harness
from harness import Report, Sample
from leaderboard import Contender, Look, draw, preset, run

from gi_jax import checks
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import make_problems, make_victims, pictures
from gi_jax.experiments.weights import settings_of
from gi_jax.threat import stack

THRESHOLDS = (0.3, 0.2, 0.1)


class Setting(NamedTuple):
    """An attack with its schedule.

    Attributes:
      contender: the attack, and its restarts.
      steps: length of the schedule.
    """

    contender: Contender
    steps: int


class Case(NamedTuple):
    """Who is attacked, by what.

    Attributes:
      name: of the case.
      spec: victims and threat model; its attack is not used.
      settings: by name; the first one is what the others are held against.
      data_dir: where the data set lies, if it is not embedded.
    """

    name: str
    spec: AttackSpec
    settings: dict[str, Setting]
    data_dir: str | None = None


def running(steps: int) -> dict[str, Setting]:
    """For running statistics: the default, the published rate, others, shorter schedules, restarts."""
    signed, soft = "inverting_gradients", "modern"
    return {
        f"{soft}, rate 0.3": Setting(preset(soft, tv=1e-3, learning_rate=0.3), steps),
        f"{signed}, rate 1": Setting(preset(signed, tv=1e-3, learning_rate=1.0), steps),
        f"{signed}, rate 0.1": Setting(preset(signed, tv=1e-3), steps),
        f"{soft}, rate 0.1": Setting(preset(soft, tv=1e-3), steps),
        f"{signed}, rate 1, a quarter of the steps": Setting(preset(signed, tv=1e-3, learning_rate=1.0), steps // 4),
        f"{soft}, rate 0.3, a quarter of the steps": Setting(preset(soft, tv=1e-3, learning_rate=0.3), steps // 4),
        f"{soft}, rate 0.1, 4 restarts": Setting(preset(soft, 4, tv=1e-3), steps),
    }


def batch(steps: int) -> dict[str, Setting]:
    """For batch statistics that are known."""
    return {
        "layerwise": Setting(preset("layerwise"), steps),
        "gradient_inversion_evaluation": Setting(preset("gradient_inversion_evaluation"), steps),
        "layerwise, a quarter of the steps": Setting(preset("layerwise"), steps // 4),
        "layerwise, 4 restarts": Setting(preset("layerwise", 4), steps),
    }


def cases(quick: bool, data_dir: str | None, weights: str | None) -> list[Case]:
    """The embedded photographs always, CIFAR-10 if there is a copy of it.

    Raises:
      InputError: for weights without the data set that they are for.
    """
    if weights is not None and data_dir is None:
        raise checks.InputError(
            "--weights without --data-dir: they are for the cases of CIFAR-10, which needs a copy of it"
        )
    settings = running(120 if quick else 400)
    if quick:
        settings = {name: settings[name] for name in list(settings)[:4]}
    photos = AttackSpec(num_batches=2 if quick else 6)
    found = [Case("photos, convnet, running statistics", photos, settings)]
    if data_dir is not None:
        network = dict(model="resnet18") if weights is None else settings_of(weights)
        age = "at initialization" if weights is None else "trained"
        common = AttackSpec(data="cifar10", num_batches=2, **network)
        known = AttackSpec(data="cifar10", num_batches=2, client_bn="batch", bn="exact", **network)
        name = f"cifar10, {common.model} {age}"
        found += [
            Case(f"{name}, running statistics", common, running(40 if quick else 400), data_dir),
            Case(f"{name}, batch statistics", known, batch(40 if quick else 400), data_dir),
        ]
    return found


def seconds_to(looks: list[Look], threshold: float) -> float | None:
    """Of the first look whose LPIPS is at or below the threshold; None if there is none."""
    return next((look.seconds for look in looks if look.lpips <= threshold), None)


def measure_case(report: Report, case: Case, rounds: int, looks: int) -> list[tuple[str, list[Look]]]:
    """Runs all settings in turns; adds a row each, and ratios to the first; returns the curves of the last round."""
    victims = make_victims(case.spec, case.data_dir)
    problems, truth = stack(make_problems(case.spec, victims.batches, "none")), pictures(victims.batches)
    taken, curves = {name: [] for name in case.settings}, {}
    with harness.until_stopped():
        for _ in range(rounds):
            for name, (contender, steps) in case.settings.items():
                curves[name] = run(contender, steps, problems, truth, looks=looks)
                taken[name].append([seconds_to(curves[name], threshold) for threshold in THRESHOLDS])
    done = [name for name in case.settings if taken[name]]  # all, unless stopped in the first round
    complete = min((len(taken[name]) for name in done), default=0)
    # What is reached does not depend on the machine, so a threshold has a time in all rounds or in none.
    times = {
        name: [None if None in column else Sample(column) for column in zip(*taken[name][:complete], strict=True)]
        for name in done
    }
    for name in done:
        (contender, steps), last = case.settings[name], curves[name][-1]
        report.add(
            {"case": case.name, "setting": name}
            | {
                f"s to {threshold}": None if sample is None else sample.summary(4)
                for threshold, sample in zip(THRESHOLDS, times[name], strict=True)
            }
            | {
                "steps": steps,
                "restarts": contender.restarts,
                "s in all": round(last.seconds, 2),
                "final LPIPS": round(last.lpips, 4),
                "final PSNR": round(last.psnr, 2),
                "pictures": len(truth),
            }
        )
    for first, name in ((done[0], name) for name in done[1:]):
        for threshold, own, default in zip(THRESHOLDS, times[name], times[first], strict=True):
            if own is not None and default is not None:
                report.ratios[f"{case.name}: {name}, to {threshold}"] = default.over(own)
    return list(curves.items())


def measure(report: Report, quick: bool, data_dir: str | None = None, weights: str | None = None) -> None:
    """A table row for each setting, and a plot a case."""
    harness.need_lpips()
    harness.check_cifar10(data_dir)
    for number, case in enumerate(cases(quick, data_dir, weights)):
        curves = measure_case(report, case, rounds=1 if quick else 2, looks=20 if quick else 40)
        report.pictures[f"case{number}.png"] = draw(case.name, curves)
        harness.end_if_stopped()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beyond those of every benchmark."""
    parser.add_argument("--data-dir", metavar="P", help="a copy of CIFAR-10: adds its cases")
    parser.add_argument("--weights", metavar="W", help="of gi-jax train, for the cases of CIFAR-10")


if __name__ == "__main__":
    harness.main("time_to_quality", __doc__, measure, add_arguments)
