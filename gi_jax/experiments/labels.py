"""Label recovery alone: every method on the same private batches, and how labels repeat in a batch at all."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import hypergeom

from gi_jax import checks, data, metrics
from gi_jax.attacks import labels
from gi_jax.experiments.environment import environment
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import dummies_of, encode_victims, make_victims, observe_all, recover_labels
from gi_jax.models import Normalize
from gi_jax.threat.problem import same_numbers

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARED_BY = (1, 2, 4, 8, 16)
"""Lower ends of the groups of Figure 2a: how many pictures of a batch, itself included, carry a picture's label."""


def run_labels(spec: AttackSpec, methods: Sequence[str], data_dir: str | None = None) -> dict:
    """Recovers the labels of every private batch by every method, and compares them with the truth.

    Args:
      spec: victims, client, defense (the first one) and view; its `labels` are not used.
      methods: keys of `METHODS`, `auto`, or `all` of the former.
      data_dir: where a copy of the data set lies.

    Returns:
      The content of `labels.json`: a row a method, means over the observed updates, and the counts of each.

    Raises:
      InputError: for an unknown method, for one asked for by name whose needs are not met, for bad data.
    """
    listed = [name for method in methods for name in (labels.METHODS if method == "all" else (method,))]
    for name in listed:
        checks.one_of("label method", name, ["auto", "all", *labels.METHODS])
    victims = make_victims(spec, data_dir)
    batches, _ = encode_victims(spec, victims, spec.defenses[0])
    problems = observe_all(spec, batches, spec.defenses[0], labels_known=False)
    truth = np.concatenate([np.asarray(victim.labels, np.float64) for victim in batches])
    truth = truth.reshape(len(problems), -1, truth.shape[1]).sum(1)
    dummies = _dummies(spec, problems)
    rows = []
    for name in listed:
        missing = labels.unmet(name, problems[0], dummies[0]) if "all" in methods and name != "auto" else []
        if missing:
            rows.append({"method": name, "why": "", "missing": missing})
        else:
            pairs = zip(problems, dummies, strict=True)
            found = [recover_labels(spec, problem, name, seen) for problem, seen in pairs]
            rows.append(_row(name, found, truth))
    # A sum or a difference of models is rounded, and its rank that of the rounding.
    rounded = spec.view != "server"
    sizes = [labels.NumImages(0, True) if rounded else labels.estimate_num_images(problem) for problem in problems]
    return {
        "environment": environment(),
        "network": victims.age,
        "batch_size": spec.pictures_per_update,
        "true_counts": truth.tolist(),
        "num_images": [size._asdict() for size in sizes],
        "methods": rows,
    }


def _dummies(spec, problems):
    """Random pictures for every problem, shared where the network makes the same of them."""
    first = problems[0]
    own = first.normalize == Normalize.BATCH  # the statistics that were shared are not used
    shared = dummies_of(spec, first)
    alike = [own or same_numbers(problem.statistics, first.statistics) for problem in problems]
    return [shared if same else dummies_of(spec, one) for one, same in zip(problems, alike, strict=True)]


def _row(name, found, truth):
    pairs = [(one.counts, counts) for one, counts in zip(found, truth, strict=True)]
    return {
        "method": name if name == found[0].method else f"{name}: {found[0].method}",
        "why": found[0].why or labels.METHODS[found[0].method].about,
        "set_overlap": float(np.mean([metrics.set_overlap(*pair) for pair in pairs])),
        "count_overlap": float(np.mean([metrics.count_overlap(*pair) for pair in pairs])),
        "all_counts_right": float(np.mean([np.allclose(*pair, atol=metrics.labels.PRESENT) for pair in pairs])),
        "counts": [one.counts.tolist() for one in found],
    }


def label_distribution(class_counts: Sequence[int], batch_sizes: Sequence[int] = BATCH_SIZES) -> list[dict]:
    """How labels are distributed in a batch: Figure 2a of Huang et al. (2021), as an exact expectation.

    Batches are drawn without replacement, so that the number of pictures of a class in one is hypergeometric.

    Args:
      class_counts: pictures of each class in the data set.
      batch_sizes: those larger than the data set are left out.

    Returns:
      A row a batch size: the expected number of different `classes`, and by `shared_by` the share of pictures whose
      label is carried by that many pictures of the batch: 1 is only itself, 2 stands for 2 to 3, and so on.
    """
    counts = np.asarray(class_counts)
    counts = counts[counts > 0]
    total = int(counts.sum())
    rows = []
    for size in batch_sizes:
        if size > total:
            continue
        # The other pictures of the batch, given that one picture has class c.
        others = np.arange(size)
        same = sum(n / total * hypergeom.pmf(others, total - 1, n - 1, size - 1) for n in counts)
        edges = [*SHARED_BY, max(size, SHARED_BY[-1]) + 1]
        rows.append(
            {
                "batch_size": int(size),
                "classes": float(np.sum(1 - hypergeom.pmf(0, total, counts, size))),
                "shared_by": {
                    str(low): float(np.sum(same[low - 1 : high - 1]))
                    for low, high in zip(edges, edges[1:], strict=False)
                },
            }
        )
    return rows


def distribution_of(name: str, split: str, data_dir: str | None = None) -> dict:
    """`label_distribution` of a data set, with its name and class counts."""
    dataset = data.load(name, split, data_dir)
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    return {"data": name, "split": split, "class_counts": counts.tolist(), "rows": label_distribution(counts)}
