"""Runs an `AttackSpec`: victims, defenses, attack, scores. Keeps what is done at every moment."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from gi_jax import attacks, checks, data, defenses, metrics, models
from gi_jax.attacks.loop import compile_ahead
from gi_jax.defenses.batch import encode_victim
from gi_jax.experiments import checkpoint
from gi_jax.experiments.decode import EncodedRun, Pool, public_pictures
from gi_jax.experiments.environment import environment
from gi_jax.experiments.spec import AttackSpec, Execution
from gi_jax.threat import AttackProblem, ImageSpace, Mapping, Victim, check_problem, observe, one_hot, stack
from gi_jax.types import Images


class Report(NamedTuple):
    """Where a run stands, for a progress bar.

    Attributes:
      defense: the run, as written.
      done, total: image-iterations of the whole specification.
      loss: mean best loss of the launch's lanes.
    """

    defense: str
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
      labels: class numbers, int32 [n].
      class_names: of each picture, [n].
      history: a row a chunk of steps and launch, for `history.jsonl`.
    """

    result: dict
    originals: np.ndarray
    reconstructions: list[np.ndarray]
    encodings: list[np.ndarray | None]
    encoded: list[EncodedRun]
    pool: Pool
    labels: np.ndarray
    class_names: list[str]
    history: list[dict]


class Victims(NamedTuple):
    """The private batches of a specification, what reports say of them, and the public pictures of its defenses."""

    batches: list[Victim]
    public: Images | None
    labels: np.ndarray
    names: list[str]
    note: str


_observe = jax.jit(observe, static_argnames=("threat", "defense"))
_encode = jax.jit(encode_victim, static_argnames="mixing")


def make_victims(spec: AttackSpec, data_dir: str | None = None) -> Victims:
    """Loads the data, draws the network's weights, and cuts the private batches.

    Raises:
      InputError: for data that is missing or too small, or a network that does not fit the threat model.
    """
    per_class = None if spec.victim_seed is not None else spec.first
    dataset = data.load(spec.data, spec.split, data_dir, image_size=spec.image_size, per_class=per_class)
    if spec.victim_seed is None:
        chosen = data.first_per_class(dataset, spec.first)
        num_batches = spec.num_batches or max(1, min(6, len(chosen) // spec.batch_size))
    else:
        num_batches = spec.num_batches or 6
        chosen = data.choose(dataset, spec.batch_size * num_batches, spec.victim_seed)
    network = models.create(spec.model, dataset.num_classes)
    image_shape = chosen.images.shape[1:]
    params, batch_stats = network.init(jax.random.key(spec.model_seed), image_shape)
    if not batch_stats and (spec.client_bn == "batch" or spec.bn_prior):
        raise checks.InputError(
            f"model {spec.model!r} has no BatchNorm: leave out client_bn batch and bn_prior, or take a model that has"
        )
    space = ImageSpace(mean=jnp.float32(dataset.mean), std=jnp.float32(dataset.std))
    victims = [
        Victim(
            network=network,
            params=params,
            batch_stats=batch_stats,
            images=jnp.asarray(batch.as_float()),
            labels=one_hot(batch.labels, dataset.num_classes),
            space=space,
        )
        for batch in data.batches(chosen, spec.batch_size, num_batches)
    ]
    labels = chosen.labels[: spec.batch_size * num_batches]
    mixings = [defenses.parse(text).mixing for text in spec.defenses]
    needs_public = any(mixing is not None and mixing.num_public for mixing in mixings)
    public = public_pictures(spec.data, spec.split, data_dir, spec.image_size) if needs_public else None
    return Victims(victims, public, labels, [dataset.class_names[label] for label in labels], dataset.note)


def encode_victims(spec: AttackSpec, victims: Victims, defense: str) -> tuple[list[Victim], Mapping | None]:
    """What the client trains on under a defense, and the secret of its encodings if it encodes its pictures.

    Each of `spec.encodings` epochs encodes the pictures of all private batches anew, as one pool, and cuts the
    encodings into batches again.

    Raises:
      InputError: for a pool that is smaller than a mixture.
    """
    mixing = defenses.parse(defense).mixing
    if mixing is None:
        return victims.batches, None
    images, labels = (jnp.concatenate([getattr(victim, name) for victim in victims.batches]) for name in _OF_PICTURES)
    pool = dataclasses.replace(victims.batches[0], images=images, labels=labels)
    key = jax.random.fold_in(jax.random.key(spec.seed), 2)
    batches, mappings = [], []
    for epoch in range(spec.encodings):
        encoded, mapping = _encode(mixing, jax.random.fold_in(key, epoch), pool, victims.public)
        parts = [jnp.split(getattr(encoded, name), len(victims.batches)) for name in _OF_PICTURES]
        batches += [
            dataclasses.replace(encoded, images=images, labels=labels) for images, labels in zip(*parts, strict=True)
        ]
        mappings.append(mapping.without_signs())
    return batches, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *mappings)


_OF_PICTURES = ("images", "labels")


def make_attack(spec: AttackSpec) -> attacks.Attack:
    """The attack of a specification, from its preset."""
    settings = dict(tv=spec.tv_weight, learning_rate=spec.rate, num_steps=spec.steps)
    if spec.prior_weight > 0:
        return attacks.create(spec.attack or "gradient_inversion_evaluation", bn_prior=spec.prior_weight, **settings)
    return attacks.create("inverting_gradients", **settings)


def observe_all(
    spec: AttackSpec, victims: list[Victim], defense: str, numbers: list[int] | None = None
) -> list[AttackProblem]:
    """What the adversary sees of the private batches with these numbers, or of all, under a defense; refuses NaN."""
    key = jax.random.fold_in(jax.random.key(spec.seed), 1)
    problems = [
        _observe(
            victims[number], threat=spec.threat, defense=defenses.parse(defense), key=jax.random.fold_in(key, number)
        )
        for number in (range(len(victims)) if numbers is None else numbers)
    ]
    for problem in problems:
        check_problem(problem)
    return problems


def lanes_per_launch(spec: AttackSpec, image_shape: tuple[int, ...]) -> int:
    """How many private batches x restarts to attack side by side: a fixed budget of pixels in flight."""
    budget = 2**15 if jax.default_backend() == "cpu" else 2**20
    return max(1, budget // (spec.batch_size * image_shape[0] * image_shape[1]))


def run_attack(
    spec: AttackSpec,
    out: Path,
    execution: Execution | None = None,
    *,
    resume: bool = False,
    on_report: Callable[[Report], None] | None = None,
) -> Outcome:
    """Runs every defense of a specification and scores it.

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
        for defense in spec.defenses:
            session.run(defense)
        complete = True
    except KeyboardInterrupt:
        session.save()
        if not session.finished and session.running is None:
            raise
        complete = False
    originals = np.concatenate([np.asarray(victim.images) for victim in victims.batches])
    space = victims.batches[0].space
    pool = Pool(originals, victims.names, space, victims.note)
    runs, reconstructions, encodings, encoded = [], [], [], []
    for defense in spec.defenses:
        found = session.found(defense)
        if found is None:
            continue
        attacked, mapping = session.attacked[defense]
        truth = np.concatenate([np.asarray(victim.images) for victim in attacked])
        images, block = _score(spec, victims, truth, defense, found)
        if execution.reference_scoring:
            block["reference_summary"] = _reference_summary(spec, attacked[0].space, truth, images)
        reconstructions.append(images)
        runs.append(block)
        encodings.append(None if mapping is None else truth)
        if mapping is not None and len(images) == len(truth):
            # Known labels tell the order of a batch, so nothing is matched here.
            units = attacked[0].space.normalize
            recovered = found["images"].reshape(truth.shape)
            public = None if victims.public is None else space.normalize(victims.public)
            encoded.append(EncodedRun(defense, units(truth), units(recovered), mapping, public))
    result = {"complete": complete, "environment": environment(), "runs": runs}
    if complete:
        checkpoint.remove(out)
    return Outcome(
        result=result,
        originals=originals,
        reconstructions=reconstructions,
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
        self.attack = make_attack(spec)
        self.limit = execution.lanes or lanes_per_launch(spec, victims.batches[0].images.shape[1:])
        self.attacked = {defense: encode_victims(spec, victims, defense) for defense in spec.defenses}
        self.finished = {}  # "defense/launch" -> arrays of that launch
        self.running = None  # (name, arrays so far, states)
        self.history = []
        self.saved_at = time.monotonic()
        self.restored = None

    def launches(self, defense):
        """How many launches a defense takes, and how many batches each attacks."""
        batches = len(self.attacked[defense][0])
        launches = math.ceil(batches / max(1, self.limit // self.spec.restarts))
        return launches, math.ceil(batches / launches)

    def restore(self):
        content = checkpoint.load(self.out, self.spec.fingerprint)
        if content is not None:
            self.limit = int(content["limit"])
            self.finished, self.history = content["finished"], json.loads(content["history"])
            self.restored = content.get("running")

    def save(self):
        history = json.dumps(self.history)
        content = {"limit": self.limit, "finished": self.finished, "history": history}
        if self.running is not None:
            name, _, timing, states = self.running
            content["running"] = {"name": name, "timing": timing, "states": serialization.to_state_dict(states)}
        elif self.restored is not None:
            content["running"] = self.restored
        checkpoint.save(self.out, self.spec.fingerprint, content)
        self.saved_at = time.monotonic()

    def run(self, defense):
        launches, size = self.launches(defense)
        names = [f"{defense}/{launch}" for launch in range(launches)]
        if all(name in self.finished for name in names):
            return
        for launch, name in enumerate(names):
            if name not in self.finished:
                self._launch(defense, name, launch * size, size)

    def _launch(self, defense, name, first, size):
        # Launches of one size share one program: the last one is filled up with its own last victim.
        victims = self.attacked[defense][0]
        numbers = [min(first + i, len(victims) - 1) for i in range(size)]
        stacked = stack(observe_all(self.spec, victims, defense, numbers))
        keys = attacks.lane_keys(jax.random.key(self.spec.seed), numbers, self.spec.restarts)
        states = attacks.start(self.attack, stacked, keys)
        timing = {"compile_seconds": 0.0, "run_seconds": 0.0}
        if self.restored is not None and self.restored["name"] == name:
            states = serialization.from_state_dict(states, self.restored["states"])
            timing = dict(self.restored["timing"])
        began = time.monotonic()
        states = compile_ahead(self.attack, stacked, states)
        timing["compile_seconds"] += time.monotonic() - began
        began = time.monotonic()
        for latest, progress in attacks.advance(self.attack, stacked, states, chunk=self.execution.chunk):
            timing["run_seconds"] += time.monotonic() - began
            arrays = _arrays(stacked, latest, len(victims) - first, timing)
            # A copy: the next chunk is given the states themselves, and may be interrupted.
            self.running, self.restored = (name, arrays, dict(timing), jax.tree.map(np.array, latest)), None
            self._note(defense, name, progress)
            if time.monotonic() - self.saved_at > self.execution.save_seconds:
                self.save()
            began = time.monotonic()
        self.finished[name] = self.running[1]
        self.running = None

    def _note(self, defense, name, progress):
        self.history = [row for row in self.history if row["launch"] != name or row["step"] < progress.step]
        self.history.append(
            {
                "defense": defense,
                "launch": name,
                "step": progress.step,
                "loss": _plain(progress.loss),
                "best_loss": _plain(progress.best_loss),
                "parts": {part: _plain(values) for part, values in progress.parts.items()},
                "alive": progress.alive.ravel().tolist(),
            }
        )
        work = {name: self._work(name) for name in self.spec.defenses}
        done = sum(work[name.rpartition("/")[0]] * self.spec.steps for name in self.finished)
        total = sum(work[name] * self.launches(name)[0] for name in work) * self.spec.steps
        report = Report(defense, done + work[defense] * progress.step, total, float(np.mean(progress.best_loss)))
        self.on_report(report)

    def _work(self, defense):
        # Image-iterations of a step of a launch.
        return self.launches(defense)[1] * self.spec.restarts * self.spec.batch_size

    def found(self, defense):
        """Arrays of a defense's launches, [batches, ...], as far as they got; None if nothing did."""
        parts = [self.finished.get(f"{defense}/{launch}") for launch in range(self.launches(defense)[0])]
        if self.running is not None and self.running[0].rpartition("/")[0] == defense:
            parts[int(self.running[0].rpartition("/")[2])] = self.running[1]
        parts = [part for part in parts if part is not None]
        if not parts:
            return None
        joined = {key: np.concatenate([part[key] for part in parts]) for key in ("images", "losses", "alive")}
        return joined | {
            "compile_seconds": sum(float(part["compile_seconds"]) for part in parts),
            "run_seconds": sum(float(part["run_seconds"]) for part in parts),
            "steps": min(int(part["steps"]) for part in parts),
        }


def _arrays(stacked, states, count, timing):
    best = [points[0] for points in attacks.reconstructions(stacked, states)][:count]
    return {
        "images": np.stack([found.images for found in best]),
        "losses": np.stack([found.losses for found in best]),
        "alive": np.stack([found.alive for found in best]),
        "steps": int(np.max(states.step)),
        **timing,
    }


def _plain(values):
    # Losses for JSON: None where not finite.
    return [float(value) if np.isfinite(value) else None for value in np.ravel(values)]


def _score(spec, victims, private, defense, found):
    """Pictures in the order of the private ones that were attacked, and the block of `result.json` for one defense."""
    images = found["images"]
    batches = len(images)
    truth = private.reshape(-1, spec.batch_size, *private.shape[1:])[:batches]
    order = [metrics.match(guess, batch) for guess, batch in zip(images, truth, strict=True)]
    matched = np.concatenate([guess[permutation] for guess, permutation in zip(images, order, strict=True)])
    nets = ("vgg", "alex") if min(matched.shape[1:3]) >= 31 and matched.shape[3] == 3 else ()
    rows = metrics.score(truth.reshape(matched.shape), matched, nets)
    losses, alive = found["losses"], found["alive"]
    for number, row in enumerate(rows):
        batch = number // spec.batch_size
        row |= {
            "label": victims.names[number % len(victims.names)],
            "batch": batch,
            "loss": _plain(losses[batch].min())[0],
            "restart": int(losses[batch].argmin()),
            "diverged_restarts": int((~alive[batch]).sum()),
        }
    values = [{key: row[key] for key in row if key in metrics.BEST} for row in rows]
    iterations = batches * spec.batch_size * spec.restarts * found["steps"]
    block = {
        "defense": defense,
        "spec": dataclasses.asdict(dataclasses.replace(spec, defenses=(defense,))),
        "threat_model": threat_words(spec, victims, defense),
        "images": rows,
        "summary": metrics.summarize(values),
        "timing": {
            "compile_seconds": found["compile_seconds"],
            "run_seconds": found["run_seconds"],
            "image_iterations_per_second": iterations / max(found["run_seconds"], 1e-9),
        },
        "steps": found["steps"],
    }
    return matched, block


def _reference_summary(spec, space, originals, images):
    """Scores by the rules of the paper's published code; comparable with its tables, and flawed (see metrics)."""
    rows = []
    for first in range(0, len(images), spec.batch_size):
        batch = slice(first, first + spec.batch_size)
        rows += metrics.reference_scores(originals[batch], images[batch], np.array(space.mean), np.array(space.std))
    return metrics.summarize(rows)


def threat_words(spec: AttackSpec, victims: Victims, defense: str) -> list[str]:
    """The threat model of a run in sentences, oracles named."""
    has_norm = bool(victims.batches[0].batch_stats)
    return [
        f"The adversary sees one gradient of a private batch of {spec.batch_size} and the weights it was taken at.",
        f"The network ({spec.model}) is at its initialization: nothing was trained.",
        *(spec.threat.words() if has_norm else ("The network has no BatchNorm.",)),
        "ORACLE: the labels of the private batch are known."
        if spec.batch_size > 1
        else "The label is known (for a single picture it follows from the gradient).",
        "The adversary knows the size of the batch and the normalization of the data.",
        *_words_of_encoding(spec, victims, defense),
        "The client applies no defense."
        if defense == "none"
        else f"The client applies {defense} before it sends; the attack does not adapt to it.",
        "Restarts are selected by the attacker's own loss; only scoring matches pictures of a batch to the truth.",
        *((victims.note,) if victims.note else ()),
    ]


def _words_of_encoding(spec, victims, defense):
    if defenses.parse(defense).mixing is None:
        return ()
    pictures = f"the {len(victims.names)} private pictures are one pool, encoded {spec.encodings} times"
    return (f"What is attacked are encodings: {pictures}, all at the same weights.",)
