"""Decodes MixUp and InstaHide: from true encodings, the floor, and from those that an attack recovered."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from gi_jax import checks, data, defenses, metrics
from gi_jax.attacks.decode import decode_instahide, decode_mixup, decode_paper, sign_decided
from gi_jax.attacks.mapping import infer_mapping
from gi_jax.experiments.environment import environment
from gi_jax.experiments.streams import REVISION, Stream, key_of
from gi_jax.threat import ImageSpace, Mapping, one_hot
from gi_jax.types import Images, Labels

ENCODINGS = "encodings.npz"
MAPPING = "mapping.npz"

RIDGE = 0.01
"""Of least squares, for encodings that an attack recovered, which are noisy: little where there are many, while of as
many as pictures, with noise of 0.1, it lowers the error from 2 or more standard deviations of the pictures to 0.36."""

ORACLE = "ORACLE: the mapping, which the client draws in secret: granted to decoders as an upper bound of what leaks."

INFERRED = (
    "Where the mapping is inferred there is no oracle: the decoder had encodings, their labels, and which are of one "
    "epoch; only for scoring are pictures then put into the order of the originals."
)


@dataclass(frozen=True, kw_only=True)
class DecodeSpec:
    """Everything that decides the numbers of decoding true encodings.

    Attributes:
      data, split, image_size: as in `AttackSpec`.
      first: the pool is the first that many pictures of each class, in scan order (the paper: 5, so 50 pictures).
      encodings: epochs T; each encodes the whole pool once.
      defenses: one run each, input defenses such as `mixup:k=4`.
      batch_size: pictures in a batch of the client; with `mix_index` reference only.
      mix_index: `correct`, or `reference` for the slip of the paper's published code: it encodes the last batch of an
        epoch, if that is smaller than the others, by rows of the mapping that belong to other pictures.
      seed: of the encodings and of the decoder's starts.
    """

    data: str = "photos"
    split: str = "train"
    image_size: int | None = None
    first: int = 5
    encodings: int = 20
    defenses: tuple[str, ...] = ("mixup:k=4", "intra_instahide:k=4")
    batch_size: int | None = None
    mix_index: str = "correct"
    seed: int = 0

    def __post_init__(self):
        checks.positive(first=self.first, encodings=self.encodings)
        checks.one_of("mix_index", self.mix_index, ("correct", "reference"))
        if (self.batch_size is not None) != (self.mix_index == "reference"):
            raise checks.InputError(
                f"batch_size={self.batch_size} with mix_index={self.mix_index!r}: expected a batch size with "
                "reference, and none with correct, where it changes nothing"
            )
        checks.seed("seed", self.seed)
        written = []
        for text in self.defenses:
            defense = defenses.parse(text)
            if defense.mixing is None or len(defense.stages) > 1:
                raise checks.InputError(
                    f"defense {text!r}: expected one that encodes pictures, and nothing else, such as mixup:k=4; "
                    "to decode what an attack recovered under several, give the folder of the attack"
                )
            written.append(str(defense))
        object.__setattr__(self, "defenses", tuple(written))

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that are equal for equal specifications."""
        text = json.dumps({**dataclasses.asdict(self), "revision": REVISION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class EncodedRun(NamedTuple):
    """What is decoded under one defense.

    Attributes:
      defense: as written.
      true: encodings of all epochs, one epoch after the other, [T N, h, w, c] in the network's units.
      recovered: the same as an attack recovered them, or None.
      mapping: ORACLE, of all of them, without signs.
      public: public pictures [m, h, w, c] in the network's units, where some were mixed in.
      labels: what the attack had of the labels.
      mixed_labels: of the encodings, [T N, classes], as the attack had them; None where it had them in another order.
    """

    defense: str
    true: Images
    recovered: Images | None
    mapping: Mapping
    public: Images | None = None
    labels: str = "known"
    mixed_labels: Labels | None = None


class Pool(NamedTuple):
    """The private pictures that were encoded: the truth, for scoring.

    Attributes:
      images: float32 [N, h, w, c] in [0, 1].
      names: of their classes, [N].
      space: their units.
      note: a sentence about where they come from; may be empty.
    """

    images: np.ndarray
    names: list[str]
    space: ImageSpace
    note: str = ""


class DecodeOutcome(NamedTuple):
    """What decoding yields.

    Attributes:
      result: the content of `result.json`.
      pool: the truth.
      encodings: an epoch of true encodings for each defense, as pictures [N, h, w, c] in [0, 1].
      decoded: pictures [N, h, w, c] in [0, 1], in the order of `result["runs"]`.
    """

    result: dict
    pool: Pool
    encodings: dict[str, np.ndarray]
    decoded: list[np.ndarray]


def encode_pool(spec: DecodeSpec, data_dir: str | None = None) -> tuple[Pool, list[EncodedRun]]:
    """Loads a pool of pictures and encodes it T times under each defense.

    Raises:
      InputError: for data that is missing or too small.
    """
    dataset = data.load(spec.data, spec.split, data_dir, image_size=spec.image_size, per_class=spec.first)
    chosen = data.first_per_class(dataset, spec.first)
    space = ImageSpace(mean=jnp.float32(chosen.mean), std=jnp.float32(chosen.std))
    pool = Pool(chosen.as_float(), [chosen.class_names[label] for label in chosen.labels], space, chosen.note)
    images = space.normalize(jnp.asarray(pool.images))
    labels = one_hot(chosen.labels, chosen.num_classes)
    runs = []
    for text in spec.defenses:
        mixing = defenses.parse(text).mixing
        public = public_pictures(spec.data, spec.split, data_dir, spec.image_size) if mixing.num_public else None
        public = None if public is None else space.normalize(public)
        epochs = jax.jit(jax.vmap(mixing, (0, None, None, None)))
        keys = jax.random.split(key_of(spec.seed, Stream.ENCODING), spec.encodings)  # the same for all defenses
        encoded = epochs(keys, images, labels, public)
        if spec.mix_index == "reference":
            encoded = encoded._replace(images=_slipped(encoded.images, spec.batch_size))
        encoded = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), encoded)
        mapping = encoded.mapping.without_signs()
        runs.append(EncodedRun(text, encoded.images, None, mapping, public, mixed_labels=encoded.labels))
    return pool, runs


def _slipped(encoded: Images, batch_size: int) -> Images:
    """Encodings [epochs, N, ...] as the published code makes them: batch i begins at row i times its own size."""
    count = encoded.shape[1]
    rows = np.arange(count)
    last = count % batch_size
    if last:
        rows[-last:] = (count // batch_size) * last + np.arange(last)
    return encoded[:, rows]


def public_pictures(name: str, split: str, data_dir: str | None, image_size: int | None) -> Images:
    """The public pool that goes with a data set: the first pictures of its other split, at most 20 of a class."""
    other = "test" if split == "train" else "train"
    dataset = data.load(name, other, data_dir, image_size=image_size, per_class=20)
    return jnp.asarray(dataset.as_float())


def save_attack(folder: Path, pool: Pool, runs: list[EncodedRun]) -> None:
    """Leaves for `read_attack` what an attack recovered; the mapping, an oracle, in a file of its own."""
    arrays = {"pictures": pool.images, "names": np.array(pool.names), "note": np.array(pool.note)}
    arrays |= {"mean": pool.space.mean, "std": pool.space.std, "defenses": np.array([run.defense for run in runs])}
    secrets = {"note": np.array(ORACLE)}
    for number, run in enumerate(runs):
        arrays |= {f"true{number}": run.true, f"recovered{number}": run.recovered, f"labels{number}": run.labels}
        if run.public is not None:
            arrays[f"public{number}"] = run.public
        if run.mixed_labels is not None:
            arrays[f"mixed_labels{number}"] = run.mixed_labels
        secrets |= {f"indices{number}": run.mapping.indices, f"coefficients{number}": run.mapping.coefficients}
    np.savez_compressed(folder / ENCODINGS, **arrays)
    np.savez_compressed(folder / MAPPING, **secrets)


def remove_attack(folder: Path) -> None:
    """Removes what `save_attack` left, if it did."""
    for name in (ENCODINGS, MAPPING):
        (folder / name).unlink(missing_ok=True)


def read_attack(folder: Path) -> tuple[Pool, list[EncodedRun]]:
    """What `save_attack` left.

    Raises:
      InputError: if there is nothing, or it is damaged.
    """
    for name in (ENCODINGS, MAPPING):
        if not (folder / name).exists():
            raise checks.InputError(
                f"{folder} holds no {name}: expected the folder of a finished gi-jax attack under a defense that "
                "encodes pictures, such as mixup:k=4"
            )
    try:
        with (folder / ENCODINGS).open("rb") as encodings, (folder / MAPPING).open("rb") as mapping:
            arrays, secrets = np.load(encodings), np.load(mapping)
            space = ImageSpace(mean=jnp.asarray(arrays["mean"]), std=jnp.asarray(arrays["std"]))
            pool = Pool(arrays["pictures"], arrays["names"].tolist(), space, str(arrays["note"]))
            runs = [
                EncodedRun(
                    defense=defense,
                    true=jnp.asarray(arrays[f"true{number}"]),
                    recovered=jnp.asarray(arrays[f"recovered{number}"]),
                    mapping=Mapping(
                        indices=jnp.asarray(secrets[f"indices{number}"]),
                        coefficients=jnp.asarray(secrets[f"coefficients{number}"]),
                    ),
                    public=jnp.asarray(arrays[f"public{number}"]) if f"public{number}" in arrays else None,
                    labels=str(arrays[f"labels{number}"]),
                    mixed_labels=arrays.get(f"mixed_labels{number}"),
                )
                for number, defense in enumerate(arrays["defenses"].tolist())
            ]
    except Exception as error:  # zip, zlib and numpy raise errors of many kinds on damaged files
        raise checks.InputError(f"{folder} is damaged ({type(error).__name__}): run the attack again") from error
    return pool, runs


def fingerprint_of_attack(folder: Path, seed: int) -> str:
    """Sixteen hexadecimal digits that are equal for equal encodings and seeds."""
    return hashlib.sha256((folder / ENCODINGS).read_bytes() + str(seed).encode()).hexdigest()[:16]


def decode(
    pool: Pool,
    runs: list[EncodedRun],
    *,
    seed: int = 0,
    infer: bool = False,
    on_report: Callable[[str], None] = lambda text: None,
) -> DecodeOutcome:
    """Decodes every run, by the paper's decoder and by a better one, from true encodings and from recovered ones.

    Args:
      pool: the truth; decoders get its units and its size.
      runs: what to decode.
      seed: of the sign-aware decoder's starts.
      infer: decode by mappings that are inferred too, beside those that are granted.
      on_report: told what comes next.

    Raises:
      InputError: if a mapping cannot be inferred, as encodings or their labels are missing.
    """
    for run in runs if infer else ():
        _check_inferable(run)
    blocks, decoded, shown = [], [], {}
    sources = len({run.defense for run in runs}) + sum(run.recovered is not None for run in runs)
    total = sources * 2 * (1 + infer)
    for run in runs:
        mixing = defenses.parse(run.defense).mixing
        space = pool.space.signed() if mixing.flipped else pool.space
        # The floor is the same for all that was recovered under a defense.
        true = None if run.defense in shown else run.true
        shown[run.defense] = np.asarray(space.denormalize(run.true[: len(pool.images)]))
        for source, encodings in (("recovered", run.recovered), ("true", true)):
            if encodings is None:
                continue
            mappings = [("granted", run.mapping, {})]
            if infer:
                # Of true encodings labels are known, if a run of that defense had them.
                known = (one for one in runs if one.defense == run.defense and one.labels == "known")
                labels = (next(known, run) if source == "true" else run).mixed_labels
                mappings.append(("inferred", *_inferred(source, run, labels, pool, mixing, seed, on_report)))
            for (origin, mapping, facts), decoder in itertools.product(
                mappings, ("sign-aware" if mixing.flipped else "least squares", "paper")
            ):
                on_report(
                    f"{len(blocks) + 1}/{total}: {run.defense}, {source} encodings, mapping {origin}, decoder {decoder}"
                )
                images = _decoded(decoder, source, run._replace(mapping=mapping), pool, mixing.flipped, seed)
                if origin == "inferred":
                    images = images[alignment(run.mapping, mapping, len(images))]
                block = {"defense": run.defense, "decoder": decoder, "encodings": source, "mapping": origin, **facts}
                block |= {} if source == "true" else {"labels": {"from": run.labels}}
                if decoder == "sign-aware":
                    block["sign_decided"] = run.public is not None or sign_decided(
                        pool.space.normalize(jnp.asarray(images)), pool.space
                    )
                block |= {"count": len(encodings), "images": _score(pool, images)}
                block["summary"] = metrics.summarize(
                    [{name: row[name] for name in row if name in metrics.BEST} for row in block["images"]]
                )
                if decoder == "paper" and metrics.nets_for(images.shape[1:]):
                    units = np.array(pool.space.mean), np.array(pool.space.std)
                    scores = metrics.reference_decoded_scores(pool.images, images, *units)
                    block["reference_summary"] = metrics.summarize(scores)
                blocks.append(block)
                decoded.append(images)
    oracle = f"{ORACLE} {INFERRED}" if infer else ORACLE
    result = {"complete": True, "environment": environment(), "oracle": oracle, "note": pool.note, "runs": blocks}
    return DecodeOutcome(result, pool, shown, decoded)


def _check_inferable(run):
    if run.mixed_labels is None:
        raise checks.InputError(
            f"{run.defense}: the labels of its encodings are not there in their order, without which no mapping is "
            "inferred; attack again with --labels known or with --batch-size 1"
        )
    if run.recovered is not None and not np.isfinite(run.recovered).all():
        raise checks.InputError(
            f"{run.defense}: encodings diverged, while a mapping is inferred from all those of an epoch; decode "
            "without --infer-mapping, or attack again with a smaller learning rate"
        )


def _inferred(source, run, labels, pool, mixing, seed, on_report):
    """A mapping without an oracle, and how well it fits and is right."""
    encodings = run.true if source == "true" else run.recovered
    size = len(pool.images)

    def by_epoch(leaf):
        return leaf.reshape(-1, size, *leaf.shape[1:])

    def told(done, total, misfit):
        on_report(
            f"{run.defense}, {source} encodings, inferring the mapping: round {done}/{total}, misfit {misfit:.4f}"
        )

    found = infer_mapping(
        key_of(seed, Stream.DECODER),
        by_epoch(encodings),
        by_epoch(labels),
        mixing.known(),
        public=run.public,
        on_round=told,
    )
    return found.mapping, {"misfit": found.loss, "mapping_right": mapping_overlap(run.mapping, found.mapping, size)}


def alignment(true: Mapping, found: Mapping, num_pictures: int) -> np.ndarray:
    """Which picture of a mapping is which of the true one, by their shares: `pictures[alignment]` are in true order."""
    weights, guesses = (np.asarray(mapping.matrix(num_pictures)) for mapping in (true, found))
    return linear_sum_assignment(-(weights.T @ guesses))[1]


def mapping_overlap(true: Mapping, found: Mapping, num_pictures: int) -> float:
    """The part of the private pictures in encodings that a mapping names rightly, in any order of pictures."""
    weights, guesses = (np.asarray(mapping.matrix(num_pictures)) for mapping in (true, found))
    guesses = guesses[:, alignment(true, found, num_pictures)]
    return float(np.sum((guesses > 0) & (weights > 0)) / np.sum(weights > 0))


def _decoded(decoder, source, run, pool, flipped, seed):
    """Pictures [N, h, w, c] in [0, 1], from the encodings that were recovered at all; NaN if none was."""
    size, mapping = len(pool.images), run.mapping
    encodings = run.true if source == "true" else run.recovered
    if decoder == "paper":
        return np.asarray((decode_paper(encodings, mapping, size, flipped=flipped) + 1) / 2)
    if flipped:
        key = key_of(seed, Stream.DECODER)
        images = decode_instahide(key, encodings, mapping, size, pool.space, public=run.public)
    else:
        ridge = 0.0 if source == "true" else RIDGE
        images = decode_mixup(encodings, mapping, size, public=run.public, ridge=ridge)
    return np.asarray(pool.space.denormalize(images))


def _score(pool, images):
    rows = metrics.score(pool.images, images, metrics.nets_for(images.shape[1:]))
    for row, name, found in zip(rows, pool.names, metrics.correlation(pool.images, images).tolist(), strict=True):
        found = found if np.isfinite(found) else None
        row |= {"label": name, "correlation": found, "correlation_any_sign": found and abs(found)}
    return rows
