"""The block of `result.json` for a run: what was recovered beside the truth, and the threat model in words."""

import dataclasses
from functools import partial

import jax
import numpy as np

from gi_jax import attacks, defenses, metrics
from gi_jax.attacks.labels import choose
from gi_jax.experiments.confidence import predictive_power
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import Victims, pictures
from gi_jax.threat import VIEWS, ImageSpace, Victim, observe


def score(
    spec: AttackSpec, victims: Victims, attacked: list[Victim], defense: str, found: dict
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Pictures in the order of those that were attacked, their spread, and the block of `result.json` for a run.

    Args:
      spec, victims: what is studied, a single run, and the private pictures.
      attacked: what the client trained on under the defense: `victims.batches`, or their encodings.
      defense: as written.
      found: arrays of the attack by name, [updates, ...].
    """
    images = found["images"]
    batches = len(images)
    truth = pictures(attacked)
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
            "loss": plain(losses[batch].min())[0],
            "restart": int(losses[batch].argmin()),
            "diverged_restarts": int((~alive[batch]).sum()),
        }
    values = [{key: row[key] for key in row if key in metrics.BEST} for row in rows]
    iterations = batches * spec.pictures_per_update * spec.restarts * found["steps"]
    block = {
        "defense": defense,
        "labels": _score_labels(spec, attacked, found["labels"]),
        "spec": dataclasses.asdict(spec),
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
    if spec.restarts > 1:
        agreements = attacks.agreement(spreads)
        for row, value in zip(rows, plain(agreements), strict=True):
            row["agreement"] = value
        block["confidence"] = predictive_power(spreads, agreements, matched, truth.reshape(matched.shape))
    return matched, spreads, block


def plain(values) -> list[float | None]:
    """Losses for JSON: None where not finite."""
    return [float(value) if np.isfinite(value) else None for value in np.ravel(values)]


def _score_labels(spec, attacked, found):
    """Where labels, [updates, n, classes], are from; recovered ones against the truth: mean overlaps over updates."""
    (how,) = spec.labels
    if how == "known":
        return {"from": how}
    truth = np.concatenate([np.asarray(victim.labels) for victim in attacked])
    truth = truth.reshape(-1, *found.shape[1:])[: len(found)].sum(1)
    pairs = list(zip(found.sum(1), truth, strict=True))
    return {
        "from": how,
        "set_overlap": float(np.mean([metrics.set_overlap(*pair) for pair in pairs])),
        "count_overlap": float(np.mean([metrics.count_overlap(*pair) for pair in pairs])),
    }


def _label_words(spec, victims):
    """The sentence of the threat model on labels."""
    (how,) = spec.labels
    if how == "optimize":
        return "The labels are unknown; the attack optimizes them together with the pictures."
    if how == "auto":
        has_bias = "bias" in victims.batches[0].params["head"]
        method, why = choose(spec.pictures_per_update, has_bias=has_bias)
        return f"The labels are unknown and recovered from the gradient by {method} ({why})."
    if how != "known":
        return f"The labels are unknown and recovered from the gradient by {how}."
    if spec.pictures_per_update > 1:
        return "ORACLE: the labels of the private batch are known."
    return "The label is known (for a single picture it follows from the gradient)."


def reference_summary(spec: AttackSpec, space: ImageSpace, originals: np.ndarray, images: np.ndarray) -> dict:
    """Scores by the rules of the paper's published code; comparable with its tables, and flawed (see metrics)."""
    rows = []
    for first in range(0, len(images), spec.pictures_per_update):
        batch = slice(first, first + spec.pictures_per_update)
        rows += metrics.reference_scores(originals[batch], images[batch], np.array(space.mean), np.array(space.std))
    return metrics.summarize(rows)


def threat_words(spec: AttackSpec, victims: Victims, defense: str) -> list[str]:
    """The threat model of a single run in sentences, oracles named."""
    has_norm = bool(victims.batches[0].batch_stats)
    return [
        VIEWS[spec.view].words.format(clients=spec.clients, batch_size=spec.batch_size),
        victims.age,
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
