"""Runs an `AttackSpec`: victims, defenses, attack, scores. Keeps what is done at every moment."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import serialization

from gi_jax import attacks, defenses
from gi_jax.attacks.loop import compile_ahead
from gi_jax.experiments import checkpoint
from gi_jax.experiments.decode import EncodedRun, Pool
from gi_jax.experiments.environment import environment
from gi_jax.experiments.scoring import plain, reference_summary, score
from gi_jax.experiments.spec import AttackSpec, Execution, Run
from gi_jax.experiments.victims import encode_victims, make_problems, make_victims, pictures, public_of
from gi_jax.threat import stack


class Report(NamedTuple):
    """Where a run stands, for a progress bar.

    Attributes:
      title: the run: its defense, and its labels if there are several kinds.
      done, total: image-iterations of the whole specification.
      loss: mean best loss of the launch's lanes.
    """

    title: str
    done: int
    total: int
    loss: float


class Outcome(NamedTuple):
    """What a run yields.

    Attributes:
      result: the content of `result.json`.
      originals: float32 [n, h, w, c] in [0, 1].
      reconstructions: the same for each run, in the order of `result["runs"]`; under a defense that encodes pictures
        those of the encodings of all epochs, one epoch after the other.
      encodings: for each run what the client trained on instead of the originals, [epochs * n, h, w, c]; None where it
        did not encode them.
      encoded: for decoders, each complete run under such a defense, with its secret mapping.
      pool: the private pictures as decoders need them.
      spreads: how far restarts are apart, likewise (`gi_jax.attacks.uncertainty`); NaN for a single restart.
      labels: class numbers, int32 [n].
      class_names: of each picture, [n].
      history: a row a chunk of steps and launch, for `history.jsonl`.
    """

    result: dict
    originals: np.ndarray
    reconstructions: list[np.ndarray]
    spreads: list[np.ndarray]
    encodings: list[np.ndarray | None]
    encoded: list[EncodedRun]
    pool: Pool
    labels: np.ndarray
    class_names: list[str]
    history: list[dict]


def make_attack(spec: AttackSpec) -> attacks.Attack:
    """The attack of a single run, from its preset."""
    attack = attacks.create(spec.attack_name, **spec.attack_settings)
    return dataclasses.replace(attack, optimize_labels=spec.labels == ("optimize",))


def lanes_per_launch(spec: AttackSpec, image_shape: tuple[int, ...]) -> int:
    """How many private batches x restarts to attack side by side: a fixed budget of pixels in flight.

    Two CPU cores are busy with eight pictures of 32x32; more in flight only leave the cache.
    """
    # Elsewhere memory counts too: a lane keeps the weights of every local step.
    budget = 2**13 if jax.default_backend() == "cpu" else 2**20 // spec.local_steps
    return max(1, budget // (spec.pictures_per_update * image_shape[0] * image_shape[1]))


def run_attack(
    spec: AttackSpec,
    out: Path,
    execution: Execution | None = None,
    *,
    resume: bool = False,
    on_report: Callable[[Report], None] | None = None,
) -> Outcome:
    """Runs every attack of a specification, `spec.runs`, and scores it.

    Interrupted by Ctrl-C, it scores what it has (`complete` is False in the result) and leaves a file from which
    `resume=True` goes on; so does a kill, up to `save_seconds` before it.

    Args:
      spec: what is studied.
      out: an existing folder, for the file of an unfinished attack.
      execution: how it is run.
      resume: go on from that file if there is one.
      on_report: called after every chunk of steps.

    Returns:
      The `Outcome`; writing it is the caller's.

    Raises:
      InputError: for anything that cannot be run.
      KeyboardInterrupt: if interrupted before any reconstruction existed.
    """
    execution = execution or Execution()
    victims = make_victims(spec, execution.data_dir)
    session = _Session(spec, execution, out, victims, on_report or (lambda report: None))
    if resume:
        session.restore()
    try:
        for run in spec.runs:
            session.run(run)
        complete = True
    except KeyboardInterrupt:
        session.save()
        if not session.finished and session.running is None:
            raise
        complete = False
    originals = pictures(victims.batches)
    space = victims.batches[0].space
    pool = Pool(originals, victims.names, space, victims.note)
    runs, reconstructions, spreads, encodings, encoded = [], [], [], [], []
    for run in spec.runs:
        found = session.found(run)
        if found is None:
            continue
        defense, labels = run
        attacked, mapping = session.attacked[defense]
        truth = pictures(attacked)
        images, spread, block = score(spec.only(run), victims, attacked, defense, found, session.assumed(run))
        if execution.reference_scoring:
            block["reference_summary"] = reference_summary(spec, attacked[0].space, truth, images)
        reconstructions.append(images)
        spreads.append(spread)
        runs.append(block)
        encodings.append(None if mapping is None else truth)
        if mapping is not None and len(images) == len(truth):
            # Known labels tell which recovered picture is which encoding; otherwise that is granted with the mapping.
            in_order = found["images"] if labels == "known" else images
            units = attacked[0].space.normalize
            recovered = in_order.reshape(truth.shape)
            public = public_of(defenses.parse(defense).mixing, victims)
            public = None if public is None else space.normalize(public)
            encoded.append(EncodedRun(defense, units(truth), units(recovered), mapping, public, labels))
    result = {"complete": complete, "environment": environment(), "runs": runs}
    if complete:
        checkpoint.remove(out)
    return Outcome(
        result=result,
        originals=originals,
        reconstructions=reconstructions,
        spreads=spreads,
        encodings=encodings,
        encoded=encoded,
        pool=pool,
        labels=victims.labels,
        class_names=victims.names,
        history=session.history,
    )


class _Session:
    """The mutable part of a run: what is finished, what is under way, and the file that holds both."""

    def __init__(self, spec, execution, out, victims, on_report):
        self.spec, self.execution, self.out = spec, execution, out
        self.on_report = on_report
        self.attacks = {run: make_attack(spec.only(run)) for run in spec.runs}
        self.limit = execution.lanes or lanes_per_launch(spec, victims.batches[0].images.shape[1:])
        self.attacked = {defense: encode_victims(spec, victims, defense) for defense in spec.defenses}
        self.finished = {}  # "defense/labels/launch" -> arrays of that launch
        self.running = None  # (name, arrays so far, states)
        self.history = []
        self.saved_at = time.monotonic()
        self.restored = None
        self._assumed = {}  # run -> number of local steps, and what else was tried

    def assumed(self, run):
        """How many local steps the adversary of a run takes updates to be made of, and the misfits of others.

        A federation has one number of steps, so the first update is enough to tell.
        """
        spec = self.spec.only(run)
        if spec.assume_steps != "auto":
            return spec.assume_steps or spec.local_steps, None
        if run not in self._assumed:

            def assume(steps):
                return make_problems(spec, self.attacked[run.defense][0], run.defense, [0], steps)[0]

            key = jax.random.fold_in(jax.random.key(spec.seed), 5)
            self._assumed[run] = attacks.estimate_num_steps(assume, spec.steps_to_try, self.attacks[run], key)
        return self._assumed[run]

    def launches(self, run):
        """Names of the launches of a run, how many updates each attacks, and how many there are in all."""
        updates = len(self.attacked[run.defense][0]) // self.spec.batches_per_update
        launches = math.ceil(updates / max(1, self.limit // self.spec.restarts))
        names = [f"{run.defense}/{run.labels}/{launch}" for launch in range(launches)]
        return names, math.ceil(updates / launches), updates

    def restore(self):
        content = checkpoint.load(self.out, self.spec.fingerprint)
        if content is not None:
            self.limit = int(content["limit"])
            self.finished, self.history = content["finished"], json.loads(content["history"])
            self.restored = content.get("running")
            self._assumed = {
                Run(*run): (steps, {int(number): misfit for number, misfit in tried.items()})
                for run, steps, tried in json.loads(content.get("assumed", "[]"))
            }

    def save(self):
        history = json.dumps(self.history)
        assumed = json.dumps([(run, *found) for run, found in self._assumed.items()])
        content = {"limit": self.limit, "finished": self.finished, "history": history, "assumed": assumed}
        if self.running is not None:
            name, _, timing, states = self.running
            content["running"] = {"name": name, "timing": timing, "states": serialization.to_state_dict(states)}
        elif self.restored is not None:
            content["running"] = self.restored
        checkpoint.save(self.out, self.spec.fingerprint, content)
        self.saved_at = time.monotonic()

    def run(self, run):
        names, size, updates = self.launches(run)
        for launch, name in enumerate(names):
            if name not in self.finished:
                # Launches of one size share one program: the last one is filled up with its own last update.
                first = launch * size
                numbers = [min(first + i, updates - 1) for i in range(size)]
                self._launch(run, name, numbers, min(size, updates - first))

    def _launch(self, run, name, numbers, count):
        spec = self.spec.only(run)
        assumed = None if spec.assume_steps is None else self.assumed(run)[0]
        problems = make_problems(spec, self.attacked[run.defense][0], run.defense, numbers, assumed)
        attack, stacked = attacks.adapt(self.attacks[run], problems[0]), stack(problems)
        attack = attacks.tie_epochs(attack, stacked, spec.epoch_prior)
        keys = attacks.lane_keys(jax.random.key(self.spec.seed), numbers, self.spec.restarts)
        states = attacks.start(attack, stacked, keys)
        timing = {"compile_seconds": 0.0, "run_seconds": 0.0}
        if self.restored is not None and self.restored["name"] == name:
            states = serialization.from_state_dict(states, self.restored["states"])
            timing = dict(self.restored["timing"])
        began = time.monotonic()
        states = compile_ahead(attack, stacked, states)
        timing["compile_seconds"] += time.monotonic() - began
        began = time.monotonic()
        for latest, progress in attacks.advance(attack, stacked, states, chunk=self.execution.chunk):
            timing["run_seconds"] += time.monotonic() - began
            arrays = _arrays(stacked, latest, count, timing)
            # A copy: the next chunk is given the states themselves, and may be interrupted.
            self.running, self.restored = (name, arrays, dict(timing), jax.tree.map(np.array, latest)), None
            self._note(run, name, progress)
            if time.monotonic() - self.saved_at > self.execution.save_seconds:
                self.save()
            began = time.monotonic()
        self.finished[name] = self.running[1]
        self.running = None

    def _note(self, run, name, progress):
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
        done, total = self._work(run) * progress.step, 0
        for other in self.spec.runs:
            names, work = self.launches(other)[0], self._work(other) * self.attacks[other].num_steps
            done += work * sum(name in self.finished for name in names)
            total += work * len(names)
        self.on_report(Report(run.title, done, total, float(np.mean(progress.best_loss))))

    def _work(self, run):
        # Image-iterations of a step of a launch.
        return self.launches(run)[1] * self.spec.restarts * self.spec.pictures_per_update

    def found(self, run):
        """Arrays of a run's launches, [batches, ...], as far as they got; None if nothing did."""
        arrays = self.finished if self.running is None else self.finished | {self.running[0]: self.running[1]}
        parts = [arrays[name] for name in self.launches(run)[0] if name in arrays]
        if not parts:
            return None
        kept = ("images", "labels", "losses", "alive", "spread")
        joined = {key: np.concatenate([part[key] for part in parts]) for key in kept}
        return joined | {
            "compile_seconds": sum(float(part["compile_seconds"]) for part in parts),
            "run_seconds": sum(float(part["run_seconds"]) for part in parts),
            "steps": min(int(part["steps"]) for part in parts),
        }


def _arrays(stacked, states, count, timing):
    best = [points[0] for points in attacks.reconstructions(stacked, states)][:count]
    return {
        "images": np.stack([found.images for found in best]),
        "labels": np.stack([found.labels for found in best]),
        "losses": np.stack([found.losses for found in best]),
        "alive": np.stack([found.alive for found in best]),
        "spread": np.stack([found.spread for found in best]),
        "steps": int(np.max(states.step)),
        **timing,
    }
