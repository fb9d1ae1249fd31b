"""Which part of the default attack helps: each taken out of it, and each put alone into its predecessor.

    python benchmarks/ablation.py --quick
    python benchmarks/ablation.py --json result.json

The default for a client with running statistics, `modern` at rate 0.3, differs from `inverting_gradients` at rate 0.1
(Geiping et al. 2020) in five parts. All contenders have the same gradient, pictures, starts (but for the part that is
about starts), number of steps and weight of the total variation. Every start counts by itself, none is selected. `wins`
says for how many pairs of picture and start PSNR is higher than with the whole default (for parts taken out) or than
with none of the parts (for parts alone).
"""

import dataclasses

import harness
import jax
import numpy as np
from harness import Report

from gi_jax import attacks, metrics
from gi_jax.attacks import initial, schedules
from gi_jax.attacks.optimizers import soft_signed_adam
from gi_jax.experiments.spec import AttackSpec
from gi_jax.experiments.victims import make_problems, make_victims, pictures
from gi_jax.objectives import GradientMatching, Objective, TotalVariation
from gi_jax.threat import stack

TV = 1e-3
PARTS = {
    "soft signs": dict(optimizer=soft_signed_adam()),
    "warm-up and cosine decay": dict(schedule=schedules.warm_up(schedules.cosine_decay, 50 / 24_000)),
    "a pattern to start from": dict(initialize=initial.patterned(4)),
    "variation of colors, isotropic": dict(
        objective=Objective(
            parts={
                "matching": GradientMatching(),
                "tv": TotalVariation(isotropic=True, opponents=True, weight=TV),
            }
        )
    ),
    "rate 0.3": dict(learning_rate=0.3),
}


def attack_with(parts: list[str], steps: int) -> attacks.Attack:
    """`inverting_gradients` at rate 0.1 with some of the parts."""
    plain = attacks.create("inverting_gradients", tv=TV, learning_rate=0.1, num_steps=steps)
    return dataclasses.replace(plain, **{name: value for part in parts for name, value in PARTS[part].items()})


def scores(attack: attacks.Attack, problems, truth: np.ndarray, restarts: int) -> dict[str, np.ndarray]:
    """PSNR and LPIPS of every start of every picture, [restarts, n]; NaN where one failed."""
    keys = attacks.lane_keys(jax.random.key(0), list(range(len(truth))), restarts)
    *_, (states, _) = attacks.advance(attack, problems, attacks.start(attack, problems, keys))
    images = np.asarray(problems.space.denormalize(states.best.images))[:, 0, :, 0]  # batch size 1
    rows = [metrics.score(truth, images[:, restart], ("vgg",)) for restart in range(restarts)]
    return {name: np.array([[row[name] for row in of] for of in rows], float) for name in ("psnr", "lpips_vgg")}


def measure(report: Report, quick: bool) -> None:
    """A row for the default, for each part taken out, for none, and for each part alone."""
    harness.need_lpips()
    count, restarts, steps = (2, 1, 24) if quick else (6, 3, 400)
    spec = AttackSpec(num_batches=count)
    batches = make_victims(spec).batches
    problems, truth = stack(make_problems(spec, batches, "none")), pictures(batches)
    every = list(PARTS)
    contenders = {"all parts": every}
    contenders |= {f"without {part}": [one for one in every if one != part] for part in every}
    contenders |= {"none of them": [], **{f"only {part}": [part] for part in every}}
    beside = {}
    for name, parts in contenders.items():
        found = scores(attack_with(parts, steps), problems, truth, restarts)
        beside[name] = found
        reference = {"without": "all parts", "only": "none of them"}.get(name.split()[0])
        wins = None if reference is None else int((found["psnr"] > beside[reference]["psnr"]).sum())
        psnr = found["psnr"].mean(1)
        report.add(
            {
                "attack": name,
                "PSNR": round(float(psnr.mean()), 2),
                "of starts": f"{psnr.min():.2f}..{psnr.max():.2f}" if np.isfinite(psnr).all() else None,
                "LPIPS": round(float(found["lpips_vgg"].mean()), 4),
                "wins": wins,
                "n": found["psnr"].size,
                "steps": steps,
            }
        )
        print(" | ".join(str(value) for value in report.figures[-1].values()), flush=True)


if __name__ == "__main__":
    harness.main("ablation", __doc__, measure)
