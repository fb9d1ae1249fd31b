"""Synthetic cells of experiments, in the form in which results are stored; the numbers mean nothing."""

import dataclasses

import numpy as np

from gi_jax import defenses, metrics
from gi_jax.experiments import published
from gi_jax.experiments.catalogue import total_variation_of
from gi_jax.experiments.labels import label_distribution
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.reports.experiments.found import Found

PICTURES = 6
ENVIRONMENT = {
    "time": "2026-01-01T00:00:00+00:00",
    "gi_jax": "0.1.0",
    "jax": "0.10",
    "processor": "two cores",
    "device": "cpu",
}


def _scores(rng, middle, names):
    centers = {"psnr": 30 - 25 * middle, "ssim": 1 - middle, "mse": 0.01 + 0.05 * middle} | dict.fromkeys(names, middle)
    rows = []
    for _ in range(PICTURES):
        near = 0.35 * rng.standard_normal()
        rows.append({name: float(abs(center * (1 + near))) for name, center in centers.items()})
    return rows


def _block(rng, middle, names=("lpips_vgg", "lpips_alex")):
    images = _scores(rng, middle, names)
    return {"images": images, "summary": metrics.summarize(images)}


def pictures(rng, blur=0.0):
    """uint8 [PICTURES, 32, 32, 3]: soft color fields, with noise."""
    grid = np.linspace(0, np.pi, 32)
    waves = [np.sin(grid[:, None] * (1 + n % 3) + n) * np.cos(grid[None] * (1 + n % 2)) for n in range(PICTURES * 3)]
    images = np.stack(waves).reshape(PICTURES, 3, 32, 32).transpose(0, 2, 3, 1) / 2 + 0.5
    images = (1 - blur) * images + blur * rng.uniform(size=images.shape)
    return np.uint8(255 * images)


def attack(seed, where, column="none", middle=0.4, labels="known", batch_size=1):
    """A cell of kind attack."""
    rng = np.random.default_rng(seed)
    spec = AttackSpec(
        data="cifar10",
        client_bn="batch",
        attack="gradient_inversion_evaluation",
        tv=total_variation_of(column),
        first=1,
        steps=400,
        labels=labels,
        defenses=(column,),
        batch_size=batch_size,
        model="resnet18",
    )
    block = _block(rng, middle)
    reference = [{"psnr": 20.0, "lpips_vgg": 0.9 * row["lpips_vgg"]} for row in block["images"]]
    block |= {
        "defense": column,
        "attack": spec.attack_name,
        "labels": {"from": labels} | ({} if labels == "known" else {"set_overlap": 0.9, "count_overlap": 0.8}),
        "threat_model": ["The adversary sees each update.", f"The client applies {column} before it sends."],
        "reference_summary": metrics.summarize(reference),
        "mended_summaries": dict.fromkeys(("match", "lpips_range"), metrics.summarize(reference)),
        "steps": 400,
    }
    mixing = defenses.parse(column).mixing
    decoded = None
    if mixing is not None:
        better = "sign-aware" if mixing.flipped else "least squares"
        block["decoded"] = [
            {"decoder": decoder, "encodings": source, **_block(rng, middle * share, ("lpips_vgg", "correlation"))}
            for decoder, source, share in (
                (better, "recovered", 0.9),
                ("paper", "recovered", 1.1),
                (better, "true", 0.1),
                ("paper", "true", 0.8),
            )
        ]
        papers = block["decoded"][1]
        mismatched = [{"lpips_vgg": 1.2 * row["lpips_vgg"]} for row in papers["images"]]
        papers["reference_summary"] = metrics.summarize(mismatched)
        decoded = pictures(rng, middle)
    row = {
        "cell": f"{seed:016x}",
        "kind": "attack",
        "spec": dataclasses.asdict(spec),
        "network": {"epochs": 2.0, "model": "resnet18"},
        "result": block,
        "timing": {"compile_seconds": 10.0, "run_seconds": 20.0, "image_iterations_per_second": 120.0},
        "environment": ENVIRONMENT,
        "finished": "2026-01-01T00:01:00+00:00",
    }
    return Found(where, row, pictures(rng), pictures(rng, min(middle, 1.0)), decoded)


def training(seed, where, accuracy):
    """A cell of kind training."""
    timing = {"seconds_per_step": 0.11, "seconds_per_step_undefended": 0.1, "ratio": 1.1 + 0.01 * (seed % 3)}
    row = {
        "cell": f"{seed:016x}",
        "kind": "training",
        "spec": dataclasses.asdict(
            TrainSpec(data="cifar10", model="resnet18", recipe="published", seed=where["seed"], defense=where["column"])
        ),
        "network": None,
        "result": {"test_accuracy": accuracy, "epochs": [{"loss": 1.0}]},
        "timing": timing,
        "environment": ENVIRONMENT,
        "finished": "2026-01-01T00:02:00+00:00",
    }
    return Found(where, row)


def distribution(where):
    """A cell of kind distribution."""
    counts = [5000] * 10
    result = {"data": "cifar10", "split": "train", "class_counts": counts, "rows": label_distribution(counts)}
    row = {
        "cell": "d" * 16,
        "kind": "distribution",
        "spec": {"data": "cifar10"},
        "network": None,
        "result": result,
        "timing": {},
        "environment": ENVIRONMENT,
        "finished": "2026-01-01T00:03:00+00:00",
    }
    return Found(where, row)


def _table2():
    paper = published.table2()
    for number, ((column, batch_size), lpips) in enumerate(paper.lpips.items()):
        where = {"what": "attack", "column": column, "batch_size": batch_size}
        yield attack(number, where, column, middle=lpips.mean + 0.05, batch_size=batch_size)
    for number, (column, accuracy) in enumerate(paper.test_accuracy.items()):
        for seed in range(2):
            where = {"what": "training", "column": column, "seed": seed}
            yield training(100 + 2 * number + seed, where, accuracy / 100 - 0.03 - 0.004 * seed)


def _figure2():
    yield distribution({"what": "distribution"})
    for number, labels in enumerate(("known", "optimize", "auto")):
        yield attack(
            number, {"what": "attack", "labels": labels}, middle=0.3 + 0.1 * number, labels=labels, batch_size=16
        )


def _alpha_bn():
    for number, (bn, tv, prior) in enumerate(
        (bn, tv, prior) for bn in ("exact", "infer") for tv in (0.0, 0.01, 0.1) for prior in (0.0, 0.001, 0.01, 0.05)
    ):
        yield attack(number, {"tv": tv, "bn_prior": prior, "bn": bn}, middle=0.3 + abs(tv - 0.01) + abs(prior - 0.001))


def _protocol():
    yield attack(0, {"switch": "all", "value": "reference"})
    yield attack(1, {"switch": "all", "value": "corrected"}, middle=0.5)
    yield attack(9, {"switch": "match", "value": "both"}, middle=0.6, batch_size=16)
    for number, switch in enumerate(("box", "bn_var", "mask_pruned", "bn_stats")):
        yield attack(2 + number, {"switch": switch, "value": "corrected"}, middle=0.4 + 0.02 * number)


def _table1():
    cells = (
        ("dlg", "none", "optimize"),
        ("dlg", "none", "known"),
        ("idlg", "none", "auto"),
        ("inverting_gradients", "given", "known"),
        ("inverting_gradients", "unknown", "known"),
        ("inverting_gradients", "given", "auto"),
        ("grad_inversion", "given", "auto"),
        ("grad_inversion", "unknown", "auto"),
    )
    for number, (name, statistics, labels) in enumerate(cells):
        where = {"attack": name, "statistics": statistics, "labels": labels}
        yield attack(number, where, middle=0.3 + 0.03 * number, labels=labels)


def _figure1():
    for panel, count in (("cifar10", 3), ("large", 2)):
        for number, bn in enumerate(("exact", "infer", "proxy")[:count]):
            yield attack(number, {"panel": panel, "bn": bn}, middle=0.2 + 0.2 * number, batch_size=16)


CELLS = {
    "table1": _table1,
    "figure1": _figure1,
    "figure2": _figure2,
    "table2": _table2,
    "tradeoff": _table2,
    "figure3": _table2,
    "table3": lambda: iter([attack(0, {"what": "attack"}, batch_size=16)]),
    "alpha_bn": _alpha_bn,
    "protocol": _protocol,
}


def full(name):
    """All cells of an experiment, all run."""
    return list(CELLS[name]())


def partial(name):
    """Every second cell has run."""
    return [one if number % 2 == 0 else Found(one.where, None) for number, one in enumerate(full(name))]


def empty(name):
    """No cell has run."""
    return [Found(one.where, None) for one in full(name)]
