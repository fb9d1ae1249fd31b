"""The block of `result.json` for a run: what was recovered beside the truth, and the threat model in words."""

import dataclasses
import time
from functools import partial

import jax
import numpy as np

from gi_jax import attacks, defenses, metrics
from gi_jax.attacks.labels import choose
from gi_jax.experiments.confidence import predictive_power
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import Victims, pictures, told
from gi_jax.threat import VIEWS, ImageSpace, Mixed, Shared, Victim, observe
from gi_jax.words import counted


def score(
    spec: AttackSpec,
    victims: Victims,
    attacked: list[Victim],
    defense: str,
    found: dict,
    assumed: tuple[int, dict | None] = (1, None),
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Pictures in the order of those that were attacked, their spread, and the block of `result.json` for a run.

    Args:
      spec, victims: what is studied, a single run, and the private pictures.
      attacked: what the client trained on under the defense: `victims.batches`, or their encodings.
      defense: as written.
      found: arrays of the attack by name, [updates, ...].
      assumed: how many local steps the adversary took the updates to be made of, and the misfit of each it tried.
    """
    began, images = time.monotonic(), found["images"]
    batches = len(images)
    truth = pictures(attacked)
    truth = truth.reshape(-1, spec.pictures_per_update, *truth.shape[1:])[:batches]
    order = [metrics.match(guess, batch) for guess, batch in zip(images, truth, strict=True)]
    matched, spreads = (
        np.concatenate([batch[permutation] for batch, permutation in zip(arrays, order, strict=True)])
        for arrays in (images, found["spread"])
    )
    rows = metrics.score(truth.reshape(matched.shape), matched, metrics.nets_for(matched.shape[1:]))
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
        if "truth_losses" in found:
            row["loss_at_truth"] = plain(found["truth_losses"])[batch]
    values = [{key: row[key] for key in row if key in metrics.BEST} for row in rows]
    iterations = batches * spec.pictures_per_update * spec.restarts * found["steps"]
    block = {
        "defense": defense,
        "attack": spec.attack_name,
        "settings": attacks.ATTACKS[spec.attack_name].published | spec.attack_settings,
        "labels": _score_labels(spec, attacked, found["labels"]),
        "spec": dataclasses.asdict(spec),
        "threat_model": threat_words(spec, victims, defense, assumed[0]),
        **({} if spec.local is None else {"local": _local_block(*assumed)}),
        "images": rows,
        "summary": metrics.summarize(values),
        "timing": {
            "compile_seconds": found["compile_seconds"],
            "run_seconds": found["run_seconds"],
            "image_iterations_per_second": iterations / max(found["run_seconds"], 1e-9),
            "pictures_per_launch": found["pictures_per_launch"],
            "scoring_seconds": time.monotonic() - began,
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
    truth = truth.reshape(-1, *found.shape[1:])[: len(found)]
    overlaps = [metrics.label_overlaps(*pair) for pair in zip(found, truth, strict=True)]
    return {"from": how} | {name: float(np.mean([one[name] for one in overlaps])) for name in overlaps[0]}


def _local_block(steps, misfits):
    """How many local steps were assumed, and how badly each number that was tried fitted; None where it blew up."""
    tried = None if misfits is None else {number: plain(misfit)[0] for number, misfit in misfits.items()}
    return {"assumed_steps": steps, "misfits": tried}


_SHOWS_LABEL = {"prune", "quantize", "sign", "clip", "clip_per_example"}
"""Gradient defenses that leave the sign of a bias's largest entry: p - y is negative at the label of a single picture,
and nowhere larger in magnitude."""


def _label_words(spec, victims, defense, assumed_steps, known):
    """The sentence of the threat model on labels."""
    (how,) = spec.labels
    if how == "known" and spec.assumption(assumed_steps).shuffles(spec.batch_size):
        if spec.order == "known":
            return "ORACLE: the labels of the private batch, and so of every local step, are known."
        return (
            "ORACLE: the labels of the private batch are known, but not which step saw them: every class is spread "
            "evenly over the steps of an epoch."
        )
    if how == "optimize":
        return "The labels are unknown; the attack optimizes them together with the pictures."
    if how == "auto":
        has_bias = "bias" in victims.batches[0].params["head"]
        method, why = choose(spec.pictures_per_update, has_bias=has_bias, local=assumed_steps > 1, known=known)
        return f"The labels are unknown and recovered from the gradient by {method} ({why})."
    if how != "known":
        return f"The labels are unknown and recovered from the gradient by {how}."
    if spec.pictures_per_update > 1:
        return "ORACLE: the labels of the private batch are known."
    if _label_follows(defenses.parse(defense)):
        return "The label is known (for a single picture it follows from the gradient)."
    return "ORACLE: the label of the private picture is known."


def _label_follows(defense):
    names = {name for name, _ in defense.gradient_stages}
    if defense.mixing is not None:  # shares in several classes, of which the public ones may take some
        return not names and not defense.mixing.num_public
    return names <= _SHOWS_LABEL


def reference_summary(spec: AttackSpec, space: ImageSpace, originals: np.ndarray, images: np.ndarray, **mended) -> dict:
    """Scores by the rules of the paper's published code; comparable with its tables, and flawed (see metrics).

    `mended` are the flaws to leave out, see `metrics.reference_scores`.
    """
    size = spec.pictures_per_update
    together = max(1, 64 // size) * size  # whole batches; every pair of pictures is compared
    rows = []
    for first in range(0, len(images), together):
        some = slice(first, min(first + together, len(images)))  # an interrupted run has not all of them
        units = np.array(space.mean), np.array(space.std)
        rows += metrics.reference_scores(originals[some], images[some], *units, batch_size=size, **mended)
    return metrics.summarize(rows)


def threat_words(spec: AttackSpec, victims: Victims, defense: str, assumed_steps: int | None = None) -> list[str]:
    """The threat model of a single run in sentences, oracles named; with the local steps that the adversary assumes."""
    assumed_steps = assumed_steps or spec.local_steps
    has_norm = bool(victims.batches[0].batch_stats)
    known = _known(spec, victims.batches[0], defense)
    return [
        *_words_of_view(spec, assumed_steps),
        victims.age,
        *(words_of_statistics(spec) if has_norm else ("The network has no BatchNorm.",)),
        _label_words(spec, victims, defense, assumed_steps, known),
        *_words_of_shares(spec),
        "The adversary knows the size of the batch and the normalization of the data.",
        *_words_of_encoding(spec, victims, defense),
        *_defense_words(spec, defense, known),
        *defenses.parse(defense).words(),
        *_words_of_precision(spec),
        "Restarts are selected by the attacker's own loss; only scoring matches pictures of a batch to the truth.",
        *((victims.note,) if victims.note else ()),
    ]


def words_of_statistics(spec: AttackSpec) -> tuple[str, ...]:
    """The sentences of the threat model on a network with BatchNorm."""
    unused = "The attack makes no use of the shared statistics: it has no statistics prior."
    return (*spec.threat.words(), *(() if spec.uses_statistics else (unused,)))


def _words_of_precision(spec):
    if spec.precision == AttackSpec.precision:
        return ()
    return (f"The adversary computes its activations in {spec.precision}; the client computes in float32.",)


def _words_of_shares(spec):
    """Of a sum: what the adversary is granted of each client apart."""
    if spec.view == "server":
        return ()
    of_batch = spec.threat.shared in (Shared.EXACT, Shared.EXACT_UNBIASED, Shared.RUNNING_AFTER)
    what = ["statistics"] * of_batch + ["labels"] * ("known" in spec.labels)
    return (f"ORACLE: these {' and '.join(what)} are those of each client apart; a sum shows neither.",) if what else ()


def _words_of_view(spec, assumed_steps):
    """The sentences of the threat model on what is seen."""
    local = spec.local
    if local is None:
        return (VIEWS[spec.view].words.format(clients=spec.clients, batch_size=spec.batch_size),)
    n = spec.batch_size
    words = [
        f"The adversary sees the client's model before and after {counted(local.num_steps, 'local step')} of SGD at "
        f"the known learning rate {spec.local_rate:g}, each on {local.per_step(n)} of {counted(n, 'private picture')} "
        f"({counted(local.num_epochs(n), 'epoch')}); it reads the mean gradient of the steps."
    ]
    if spec.assume_steps is None:
        words.append("The number of local steps is known.")
    else:
        how = "the number that fits how far the model went best" if spec.assume_steps == "auto" else "right or wrong"
        words.append(
            f"The number of local steps is unknown; the adversary assumes {assumed_steps} ({how}). It knows how many "
            "pictures a step takes, and that epochs are whole."
        )
    assumed = spec.assumption(assumed_steps)
    if spec.order == "known":
        words.append("ORACLE: it is known which pictures each local step took.")
    elif assumed.shuffles(n) and assumed.num_epochs(n) > 1:
        words.append(
            "The order of the pictures in each epoch is unknown: every epoch has guesses of its own, tied together by "
            "a prior that does not depend on the order, and merged in the end."
        )
    elif assumed.shuffles(n):
        words.append("Which step took which pictures is unknown.")
    return tuple(words)


def _known(spec, victim, defense):
    """The facts that the adversary has of a defense, of a mean those that `look` keeps; their numbers are missing."""
    if defense == "none" or spec.attacker == "plain" or spec.assume_steps is not None:
        return ()
    granted = partial(observe, threat=spec.threat, defense=defenses.parse(defense))
    victim = dataclasses.replace(victim, encoded=True)  # of its shapes alone
    facts = told(spec, jax.eval_shape(granted, victim, key=jax.random.key(0)).known)
    return facts if spec.view == "server" else tuple(fact for fact in facts if isinstance(fact, Mixed))


def _defense_words(spec, defense, known):
    if defense == "none":
        return ("The client applies no defense.",)
    applies = f"The client applies {defense} before it sends"
    if attacks.ATTACKS[spec.attack_name].closed_form:
        return (f"{applies}; the attack is a closed form: no objective is fitted to that.",)
    if spec.attacker == "plain" or (spec.attacker == "encodings" and not known):
        return (f"{applies}; the adversary is not told, and its attack does not adapt.",)
    if spec.assume_steps is not None:
        return (
            f"{applies}; the adversary knows that, but not the number of steps, which its parameters depend on, and "
            "its attack does not adapt.",
        )
    if spec.view != "server" and not known:
        return (f"Every client applies {defense} before it sends; the attack on their sum does not adapt to it.",)
    adapted = "; ".join(attacks.adaptation_words(known)) or "there is nothing to adapt to"
    knows = "that and the parameters" if spec.attacker == "adaptive" else "how pictures are encoded, nothing else of it"
    return (
        f"{applies}; the adversary knows {knows}, but not the client's random choices.",
        f"The attack adapts: {adapted}.",
    )


def _words_of_encoding(spec, victims, defense):
    if defenses.parse(defense).mixing is None:
        return ()
    pictures = f"the {len(victims.names)} private pictures are one pool, encoded {spec.encodings} times"
    return (f"What is attacked are encodings: {pictures}, all at the same weights.",)
