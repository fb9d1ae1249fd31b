"""Runs an `AttackSpec`: victims, defenses, attack, scores. Keeps what is done at every moment."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from gi_jax import attacks, checks, data, defenses, metrics, models
from gi_jax.attacks.labels import LazyDummies, choose, recover, simulate
from gi_jax.attacks.loop import compile_ahead
from gi_jax.defenses.batch import encode_victim
from gi_jax.experiments import checkpoint
from gi_jax.experiments.confidence import predictive_power
from gi_jax.experiments.decode import EncodedRun, Pool, public_pictures
from gi_jax.experiments.environment import environment
from gi_jax.experiments.spec import AttackSpec, Execution
from gi_jax.threat import (
    VIEWS,
    AttackProblem,
    ImageSpace,
    Mapping,
    Victim,
    check_problem,
    look,
    observe,
    one_hot,
    stack,
)
from gi_jax.threat.views import average
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


class Victims(NamedTuple):
    """The private batches of a specification, what reports say of them, and the public pictures of its defenses."""

    batches: list[Victim]
    public: Images | None
    labels: np.ndarray
    names: list[str]
    note: str


_observe = jax.jit(observe, static_argnames=("threat", "defense", "labels_known", "defense_known"))
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
        num_updates = spec.num_batches or max(1, min(6, len(chosen) // spec.pictures_per_update))
    else:
        num_updates = spec.num_batches or 6
        chosen = data.choose(dataset, spec.pictures_per_update * num_updates, spec.victim_seed)
    num_batches = num_updates * spec.batches_per_update
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
    first, count = victims.batches[0], len(victims.batches)
    images = jnp.concatenate([victim.images for victim in victims.batches])
    labels = jnp.concatenate([victim.labels for victim in victims.batches])
    pool = dataclasses.replace(first, images=images, labels=labels)
    key = jax.random.fold_in(jax.random.key(spec.seed), 4)
    batches, mappings = [], []
    for epoch in range(spec.encodings):
        encoded, mapping = _encode(mixing, jax.random.fold_in(key, epoch), pool, public_of(mixing, victims))
        parts = zip(jnp.split(encoded.images, count), jnp.split(encoded.labels, count), strict=True)
        batches += [dataclasses.replace(encoded, images=images, labels=labels) for images, labels in parts]
        mappings.append(mapping.without_signs())
    return batches, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *mappings)


def public_of(mixing: defenses.Mixing, victims: Victims) -> Images | None:
    """The public pictures, [m, h, w, c] in [0, 1], if the defense mixes any in."""
    return victims.public if mixing.num_public else None


def make_attack(spec: AttackSpec) -> attacks.Attack:
    """The attack of a specification, from its preset."""
    attack = attacks.create(spec.attack_name, **spec.attack_settings)
    return dataclasses.replace(attack, optimize_labels=True) if spec.labels == "optimize" else attack


def observe_all(
    spec: AttackSpec,
    victims: list[Victim],
    defense: str,
    *,
    labels_known: bool = True,
    updates: Iterable[int] | None = None,
) -> list[AttackProblem]:
    """What the adversary sees of the private batches under a defense; refuses updates that hold NaN.

    Of all of them, or of the updates with these numbers. A plain attacker is told nothing of the defense, so that its
    program is the same under all of them.
    """
    key = jax.random.fold_in(jax.random.key(spec.seed), 1)
    size = spec.batches_per_update
    problems = []
    for update in range(len(victims) // size) if updates is None else updates:
        sent = [
            _observe(
                victims[number],
                threat=spec.threat,
                defense=defenses.parse(defense),
                key=jax.random.fold_in(key, number),
                labels_known=labels_known,
                defense_known=spec.attacker == "adaptive",
            )
            for number in range(update * size, (update + 1) * size)
        ]
        for problem in sent:
            check_problem(problem)
        problems += look(spec.view, sent, spec.threat, aggregate=_aggregate(spec, update))
    return problems


def make_problems(
    spec: AttackSpec, victims: list[Victim], defense: str, updates: Iterable[int] | None = None
) -> list[AttackProblem]:
    """The same, with the labels that the adversary works with: told, recovered from the gradient, or none yet."""
    problems = observe_all(spec, victims, defense, labels_known=spec.labels == "known", updates=updates)
    if spec.labels in ("known", "optimize"):
        return problems
    return [
        dataclasses.replace(problem, labels=recover(problem, spec.labels, dummies_of(spec, problem)).labels)
        for problem in problems
    ]


def dummies_of(spec: AttackSpec, problem: AttackProblem) -> LazyDummies:
    """The random pictures that some label methods look at."""
    return simulate(problem, jax.random.fold_in(jax.random.key(spec.seed), 3))


def _aggregate(spec, number):
    """How the updates of a round are added up: under masks where a server is to see nothing but the sum."""
    if spec.view != "sum":
        return average
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(spec.seed), 2), number)
    return partial(defenses.secure_mean, key=key)


def lanes_per_launch(spec: AttackSpec, image_shape: tuple[int, ...]) -> int:
    """How many private batches x restarts to attack side by side: a fixed budget of pixels in flight.

    Two CPU cores are busy with eight pictures of 32x32; more in flight only leave the cache.
    """
    budget = 2**13 if jax.default_backend() == "cpu" else 2**20
    return max(1, budget // (spec.pictures_per_update * image_shape[0] * image_shape[1]))


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
    originals = _pictures(victims.batches)
    space = victims.batches[0].space
    pool = Pool(originals, victims.names, space, victims.note)
    runs, reconstructions, spreads, encodings, encoded = [], [], [], [], []
    for defense in spec.defenses:
        found = session.found(defense)
        if found is None:
            continue
        attacked, mapping = session.attacked[defense]
        truth = _pictures(attacked)
        images, spread, block = _score(spec, victims, attacked, defense, found)
        if execution.reference_scoring:
            block["reference_summary"] = _reference_summary(spec, attacked[0].space, truth, images)
        reconstructions.append(images)
        spreads.append(spread)
        runs.append(block)
        encodings.append(None if mapping is None else truth)
        if mapping is not None and len(images) == len(truth):
            # Known labels tell which recovered picture is which encoding; otherwise that is granted with the mapping.
            in_order = found["images"] if spec.labels == "known" else images
            units = attacked[0].space.normalize
            recovered = in_order.reshape(truth.shape)
            public = public_of(defenses.parse(defense).mixing, victims)
            public = None if public is None else space.normalize(public)
            encoded.append(EncodedRun(defense, units(truth), units(recovered), mapping, public))
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
        self.attack = make_attack(spec)
        self.limit = execution.lanes or lanes_per_launch(spec, victims.batches[0].images.shape[1:])
        self.attacked = {defense: encode_victims(spec, victims, defense) for defense in spec.defenses}
        self.finished = {}  # "defense/launch" -> arrays of that launch
        self.running = None  # (name, arrays so far, states)
        self.history = []
        self.saved_at = time.monotonic()
        self.restored = None

    def launches(self, defense):
        """How many launches a defense takes, how many updates each attacks, and how many there are in all."""
        updates = len(self.attacked[defense][0]) // self.spec.batches_per_update
        launches = math.ceil(updates / max(1, self.limit // self.spec.restarts))
        return launches, math.ceil(updates / launches), updates

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
        launches, size, updates = self.launches(defense)
        names = [f"{defense}/{launch}" for launch in range(launches)]
        if all(name in self.finished for name in names):
            return
        for launch, name in enumerate(names):
            if name not in self.finished:
                # Launches of one size share one program: the last one is filled up with its own last update.
                first = launch * size
                numbers = [min(first + i, updates - 1) for i in range(size)]
                self._launch(defense, name, numbers, min(size, updates - first))

    def _launch(self, defense, name, numbers, count):
        problems = make_problems(self.spec, self.attacked[defense][0], defense, numbers)
        attack, stacked = attacks.adapt(self.attack, problems[0]), stack(problems)
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
        done = sum(work[name.rpartition("/")[0]] * self.attack.num_steps for name in self.finished)
        total = sum(work[name] * self.launches(name)[0] for name in work) * self.attack.num_steps
        report = Report(defense, done + work[defense] * progress.step, total, float(np.mean(progress.best_loss)))
        self.on_report(report)

    def _work(self, defense):
        # Image-iterations of a step of a launch.
        return self.launches(defense)[1] * self.spec.restarts * self.spec.pictures_per_update

    def found(self, defense):
        """Arrays of a defense's launches, [batches, ...], as far as they got; None if nothing did."""
        parts = [self.finished.get(f"{defense}/{launch}") for launch in range(self.launches(defense)[0])]
        if self.running is not None and self.running[0].rpartition("/")[0] == defense:
            parts[int(self.running[0].rpartition("/")[2])] = self.running[1]
        parts = [part for part in parts if part is not None]
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


def _plain(values):
    # Losses for JSON: None where not finite.
    return [float(value) if np.isfinite(value) else None for value in np.ravel(values)]


def _pictures(batches):
    return np.concatenate([np.asarray(victim.images) for victim in batches])


def _score(spec, victims, attacked, defense, found):
    """Pictures in the order of those that were attacked, their spread, and the block of `result.json` for a defense."""
    images = found["images"]
    batches = len(images)
    truth = _pictures(attacked)
    truth = truth.reshape(-1, spec.pictures_per_update, *truth.shape[1:])[:batches]
    order = [metrics.match(guess, batch) for guess, batch in zip(images, truth, strict=True)]
    matched, spreads = (
        np.concatenate([batch[permutation] for batch, permutation in zip(arrays, order, strict=True)])
        for arrays in (images, found["spread"])
    )
    nets = ("vgg", "alex") if min(matched.shape[1:3]) >= 31 and matched.shape[3] == 3 else ()
    rows = metrics.score(truth.reshape(matched.shape), matched, nets)
    losses, alive = found["losses"], found["alive"]
    for number, row in enumerate(rows):
        batch = number // spec.pictures_per_update
        row |= {
            "label": victims.names[number % len(victims.names)],
            "batch": batch,
            "loss": _plain(losses[batch].min())[0],
            "restart": int(losses[batch].argmin()),
            "diverged_restarts": int((~alive[batch]).sum()),
        }
    values = [{key: row[key] for key in row if key in metrics.BEST} for row in rows]
    iterations = batches * spec.pictures_per_update * spec.restarts * found["steps"]
    encodings = 1 if defenses.parse(defense).mixing is None else spec.encodings
    block = {
        "defense": defense,
        "spec": dataclasses.asdict(dataclasses.replace(spec, defenses=(defense,), encodings=encodings)),
        "threat_model": threat_words(spec, victims, defense),
        "images": rows,
        **({} if spec.labels == "known" else {"labels": _score_labels(spec, attacked, found["labels"])}),
        "summary": metrics.summarize(values),
        "timing": {
            "compile_seconds": found["compile_seconds"],
            "run_seconds": found["run_seconds"],
            "image_iterations_per_second": iterations / max(found["run_seconds"], 1e-9),
        },
        "steps": found["steps"],
    }
    if spec.restarts > 1:
        agreements = attacks.agreement(spreads)
        for row, value in zip(rows, _plain(agreements), strict=True):
            row["agreement"] = value
        block["confidence"] = predictive_power(spreads, agreements, matched, truth.reshape(matched.shape))
    return matched, spreads, block


def _score_labels(spec, attacked, found):
    """Recovered labels, [updates, n, classes], against the true ones: mean overlaps over the observed updates."""
    truth = np.concatenate([np.asarray(victim.labels) for victim in attacked])
    truth = truth.reshape(-1, *found.shape[1:])[: len(found)].sum(1)
    pairs = list(zip(found.sum(1), truth, strict=True))
    return {
        "from": spec.labels,
        "set_overlap": float(np.mean([metrics.set_overlap(*pair) for pair in pairs])),
        "count_overlap": float(np.mean([metrics.count_overlap(*pair) for pair in pairs])),
    }


def _label_words(spec, victims):
    """The sentence of the threat model on labels."""
    if spec.labels == "optimize":
        return "The labels are unknown; the attack optimizes them together with the pictures."
    if spec.labels == "auto":
        has_bias = "bias" in victims.batches[0].params["head"]
        method, why = choose(spec.pictures_per_update, has_bias=has_bias)
        return f"The labels are unknown and recovered from the gradient by {method} ({why})."
    if spec.labels != "known":
        return f"The labels are unknown and recovered from the gradient by {spec.labels}."
    if spec.pictures_per_update > 1:
        return "ORACLE: the labels of the private batch are known."
    return "The label is known (for a single picture it follows from the gradient)."


def _reference_summary(spec, space, originals, images):
    """Scores by the rules of the paper's published code; comparable with its tables, and flawed (see metrics)."""
    rows = []
    for first in range(0, len(images), spec.pictures_per_update):
        batch = slice(first, first + spec.pictures_per_update)
        rows += metrics.reference_scores(originals[batch], images[batch], np.array(space.mean), np.array(space.std))
    return metrics.summarize(rows)


def threat_words(spec: AttackSpec, victims: Victims, defense: str) -> list[str]:
    """The threat model of a run in sentences, oracles named."""
    has_norm = bool(victims.batches[0].batch_stats)
    return [
        VIEWS[spec.view].words.format(clients=spec.clients, batch_size=spec.batch_size),
        f"The network ({spec.model}) is at its initialization: nothing was trained.",
        *(spec.threat.words() if has_norm else ("The network has no BatchNorm.",)),
        _label_words(spec, victims),
        "The adversary knows the size of the batch and the normalization of the data.",
        *_words_of_encoding(spec, victims, defense),
        *_defense_words(spec, victims.batches[0], defense),
        *defenses.parse(defense).words(),
        "Restarts are selected by the attacker's own loss; only scoring matches pictures of a batch to the truth.",
        *((victims.note,) if victims.note else ()),
    ]


def _defense_words(spec, victim, defense):
    if defense == "none":
        return ("The client applies no defense.",)
    applies = f"The client applies {defense} before it sends"
    if spec.attacker == "plain":
        return (f"{applies}; the adversary is not told, and its attack does not adapt.",)
    if spec.view != "server":
        return (f"Every client applies {defense} before it sends; the attack on their sum does not adapt to it.",)
    granted = partial(observe, threat=spec.threat, defense=defenses.parse(defense))
    known = jax.eval_shape(granted, victim, key=jax.random.key(0)).known
    adapted = "; ".join(attacks.adaptation_words(known)) or "there is nothing to adapt to"
    return (
        f"{applies}; the adversary knows that and the parameters, but not the client's random choices.",
        f"The attack adapts: {adapted}.",
    )


def _words_of_encoding(spec, victims, defense):
    if defenses.parse(defense).mixing is None:
        return ()
    pictures = f"the {len(victims.names)} private pictures are one pool, encoded {spec.encodings} times"
    return (f"What is attacked are encodings: {pictures}, all at the same weights.",)
