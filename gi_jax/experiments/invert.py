"""An update that was really sent, from a file: what it gives away to whoever has the model that it started from.

There is no truth here to score with. What can be said is how well the guesses explain the update, and how alike those
of several starts are.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from gi_jax import attacks, checks, defenses, models
from gi_jax.attacks.loop import compile_ahead
from gi_jax.attacks.uncertainty import agreement
from gi_jax.experiments import checkpoint
from gi_jax.experiments.environment import environment
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.plan import check_memory, make_attack
from gi_jax.experiments.scoring import words_of_statistics
from gi_jax.experiments.session import Report
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.streams import Stream, key_of
from gi_jax.experiments.torch_files import existing, read_tensors
from gi_jax.experiments.victims import recover_labels, told
from gi_jax.experiments.weights import Weights, load_for
from gi_jax.threat import AttackProblem, ImageSpace, check_problem, one_hot, stack
from gi_jax.threat.batch_norm import MOMENTUM, Shared, map_layers
from gi_jax.threat.local import several, successive_models
from gi_jax.words import counted


class Inverted(NamedTuple):
    """What came out.

    Attributes:
      images: [n, h, w, c] in [0, 1], the best start's by the attacker's own loss.
      spread: how far the other starts are from it, the same shape; NaN if there are none.
      labels: class probabilities [n, num_classes] that go with the images.
      result: plain values, for JSON.
    """

    images: np.ndarray
    spread: np.ndarray
    labels: np.ndarray
    result: dict


def read_problem(
    file: str, weights: Weights, spec: AttackSpec, *, after: float | None = None, labels: Sequence[int] | None = None
) -> tuple[AttackProblem, str]:
    """The problem that a file holds, for the model, the threat model and the local steps of a specification.

    Args:
      file: see `read_tensors`: the gradient under the names of the parameters, of one step or the mean of several.
      weights: the model before the step.
      spec: threat model, local steps and defense; what it says of pictures does not matter.
      after: the file holds the weights after the client's steps at this rate instead. With the buffers of BatchNorm
        after one step it gives the exact statistics of the batch away.
      labels: of the private pictures; None to recover them from the gradient.

    Returns:
      The problem, its labels set, and a sentence on them.

    Raises:
      InputError: for a file or labels that do not fit the model, and exact statistics that the file does not hold.
    """
    n = spec.batch_size
    before = jax.tree.map(jnp.asarray, (weights.params, weights.batch_stats))
    sent, buffers = models.from_torch(weights.network, weights.origin.image_shape, read_tensors(file))
    if defenses.parse(spec.defenses[0]).mixing is not None:
        raise checks.InputError(f"defense {spec.defenses[0]} with an update from a file: expected one of the gradient")
    if buffers:
        checks.same_structure(f"{file}: running statistics", buffers, before[1])
        checks.all_finite(f"{file}: running statistics", buffers)
        if after is None:
            raise checks.InputError(f"{file} holds running statistics, so these are weights: add --after")
    if after is not None:
        checks.positive(local_rate=after)
        if spec.local is not None and after != spec.local_rate:
            raise checks.InputError(f"after={after:g} with local_rate={spec.local_rate:g}: expected the same rate")
        sent = successive_models(before[0], sent, after * spec.local_steps)
    if not any(np.any(leaf) for leaf in jax.tree.leaves(sent)):
        raise checks.InputError(f"{file} holds no change: expected the gradient, or with --after the weights after it")
    statistics = before[1]
    if spec.threat.shared == Shared.EXACT:
        if after is None or not buffers or spec.local_steps > 1:
            raise checks.InputError(
                f"bn 'exact' with {file}: the statistics of the batch are known from the BatchNorm buffers in weights "
                "after one local step (--after); expected bn infer or proxy"
            )
        statistics = _statistics_of_the_batch(weights, buffers, n)
    elif spec.threat.shared != Shared.RUNNING:
        raise checks.InputError(f"bn {spec.bn!r} with an update from a file: expected exact, infer or proxy")
    origin = weights.origin
    problem = AttackProblem(
        network=weights.network,
        normalize=spec.threat.adversary,
        image_shape=(n, *origin.image_shape),
        params=before[0],
        statistics=statistics,
        observed=jax.tree.map(jnp.asarray, sent),
        labels=None,
        space=ImageSpace(mean=jnp.float32(origin.mean), std=jnp.float32(origin.std)),
        known=told(spec, defenses.parse(spec.defenses[0]).known(sent, n)),
        local=several(spec.local, n),
        order=None,
    )
    check_problem(problem)
    if labels is not None:
        if len(labels) != n:
            raise checks.InputError(f"{counted(len(labels), 'label')} for a batch of {n}: expected one a picture")
        return problem.with_labels(one_hot(labels, origin.num_classes)), "The labels are known."
    if spec.labels == ("optimize",):
        return problem, "The labels are unknown; the attack optimizes them together with the pictures."
    found = recover_labels(spec, problem, spec.labels[0])
    why = f" ({found.why})" if found.why else ""
    return problem.with_labels(found.labels), f"The labels are recovered from the gradient by {found.method}{why}."


def _statistics_of_the_batch(weights: Weights, buffers, n):
    """Mean and biased variance of the batch, from running averages (PyTorch's: unbiased) before and after it."""
    shape = (n, *weights.origin.image_shape)
    network, params, averages = weights.network, weights.params, weights.batch_stats
    _, own = network(params, averages, jnp.zeros(shape), models.Normalize.GIVEN)

    def of_layer(before, after, own):
        mean, var = ((after[name] - (1 - MOMENTUM) * before[name]) / MOMENTUM for name in ("mean", "var"))
        return {"mean": mean, "var": jnp.maximum(var * (own["count"] - 1) / own["count"], 0.0)}

    return map_layers(of_layer, averages, buffers, own)


def fingerprint(file: str, spec: AttackSpec, *, after: float | None = None, labels: Sequence[int] | None = None) -> str:
    """Sixteen hexadecimal digits that are equal for what `invert` does alike: to the content of a file, not its name.

    Raises:
      InputError: for a file that is missing.
    """
    content = hashlib.sha256(existing(file).read_bytes()).hexdigest()
    labels = None if labels is None else tuple(labels)
    return hashlib.sha256(repr((spec.fingerprint, content, after, labels)).encode()).hexdigest()[:16]


def invert(
    file: str,
    spec: AttackSpec,
    out: Path,
    execution: Execution | None = None,
    *,
    after: float | None = None,
    labels: Sequence[int] | None = None,
    resume: bool = False,
    on_report: Callable[[Report], None] = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Inverted:
    """Attacks the update in a file, against the weights that the specification names; else as `read_problem`.

    Stops after the chunk in which `should_stop` says so, with what is there, and leaves a file from which `resume=True`
    goes on; so does a kill, up to `save_seconds` before it. A complete one leaves it too, for `checkpoint.remove` once
    its results are written.

    Args:
      file, after, labels: as for `read_problem`.
      spec: threat model, local steps, defense and attack.
      out: an existing folder, for the file of an unfinished attack.
      execution: how it is run; all starts are always lanes of one program.
      resume: go on from that file if there is one.
      on_report: called after every chunk of steps.
      should_stop: asked after every chunk of steps.

    Raises:
      InputError: as `read_problem`, for a program that the device does not hold, and if every start broke.
    """
    execution, name = execution or Execution(), fingerprint(file, spec, after=after, labels=labels)
    weights = load_for(spec)
    problem, label_words = read_problem(file, weights, spec, after=after, labels=labels)
    problems = stack([problem])
    attack = attacks.tie_epochs(attacks.adapt(make_attack(spec), problem), problem, spec.epoch_prior)
    states = attacks.start(attack, problems, attacks.lane_keys(key_of(spec.seed, Stream.START), [0], spec.restarts))
    restored = checkpoint.load(out, name) if resume else None
    if restored is not None:
        states = jax.tree.map(jnp.asarray, serialization.from_state_dict(states, restored["states"]))
    try:
        check_memory(lambda: attacks.program_bytes(attack, problems, states), execution.memory_bytes)
    except MemoryError as error:
        raise checks.InputError(f"{spec.restarts} starts side by side: {error}; try fewer --restarts") from error
    states = compile_ahead(attack, problems, states)
    work, num_steps = spec.batch_size * spec.restarts, make_attack(spec).num_steps
    saved_at, complete = time.monotonic(), True

    def save():
        state = serialization.to_state_dict(jax.device_get(states))
        checkpoint.save(out, name, {"states": state})

    for latest, progress in attacks.advance(attack, problems, states, chunk=execution.chunk):
        states = latest
        on_report(Report("inverting", progress.step * work, num_steps * work, float(np.min(progress.best_loss))))
        if should_stop():
            complete = progress.step >= num_steps
            break
        if time.monotonic() - saved_at > execution.save_seconds:
            save()
            saved_at = time.monotonic()
    found = attacks.reconstructions(problems, states)[0][0]
    if not np.isfinite(found.loss):
        raise checks.InputError(
            f"{file}: every start broke on numbers that are not finite; try a smaller learning rate"
        )
    save()
    counts = np.sum(found.labels, axis=0)
    agreements = agreement(found.spread)
    result = {
        "fingerprint": name,
        "complete": complete,
        "environment": environment(),
        "update": str(file),
        "spec": dataclasses.asdict(spec),
        "threat_model": [*_words(weights, spec, problem, label_words)],
        "steps": int(np.max(states.step)),
        "loss": float(found.loss),
        "losses": [float(loss) if np.isfinite(loss) else None for loss in found.losses],
        "labels": [round(float(count), 3) for count in counts],
        "agreement": [None if np.isnan(value) else float(value) for value in agreements],
    }
    return Inverted(np.asarray(found.images), np.asarray(found.spread), np.asarray(found.labels), result)


def _words(weights, spec, problem, label_words):
    yield weights.origin.words()
    units = (weights.origin.mean, weights.origin.std)
    mean, std = (", ".join(f"{number:.4g}" for number in numbers) for numbers in units)
    yield f"Pictures are taken to be normalized by mean {mean} and std {std} (of the weights)."
    if jax.tree.leaves(problem.statistics):
        client, shared, *rest = words_of_statistics(spec)
        if spec.threat.shared == Shared.EXACT:
            shared = "The update's BatchNorm buffers give the exact statistics of the private batch away."
        yield from (client, shared, *rest)
    yield label_words
    defense = spec.defenses[0]
    yield (
        "The client is taken to apply no defense." if defense == "none" else f"The client is taken to apply {defense}."
    )
    if problem.known:
        yield f"The attack adapts: {'; '.join(attacks.adaptation_words(problem.known))}."
    yield "There is no truth to compare with: agreement is that of the other starts with the best, and no proof."
