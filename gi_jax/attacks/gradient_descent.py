"""Objective and optax optimizer, put together into an attack."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import optax

from gi_jax import checks
from gi_jax.attacks import initial, schedules
from gi_jax.attacks.base import AttackInfo, AttackState
from gi_jax.attacks.optimizers import signed_adam
from gi_jax.objectives import Candidate, Objective
from gi_jax.threat import AttackProblem
from gi_jax.threat.floats import as_float32
from gi_jax.types import Key


def _static(**options):
    return field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GradientDescent:
    """Minimizes an objective from a random start, inside the box of valid pictures.

    Attributes:
      objective: its weights are leaves.
      learning_rate, num_steps: leaves. Each update of the optimizer is multiplied by learning_rate * schedule.
      optimizer: any optax transformation that makes descending updates at learning rate 1 (`optax.adam(1.0)`,
        `optax.lbfgs()`, those of `optimizers`); static, compared by identity, so build it once. Its update is also
        handed `value`, `grad`, `value_fn`, and a `key` that is new in every step and lane.
      schedule: from the fraction done to a factor; static.
      initialize: (key, problem) to images in the network's units; static. One that cannot start from every problem
        has a method `check(problems)`.
      boxed: keep the candidate among pictures in [0, 1] after each step; static.
      optimize_labels: optimize label logits too, starting from N(0, 1) (Zhu et al. 2019); static.
    """

    objective: Objective
    learning_rate: jax.Array | float = 0.1
    num_steps: jax.Array | int = 1000
    optimizer: optax.GradientTransformation = _static(default_factory=signed_adam)
    schedule: Callable[[jax.Array], jax.Array] = _static(default=schedules.step_decay)
    initialize: Callable[[Key, AttackProblem], jax.Array] = _static(default=initial.normal)
    boxed: bool = _static(default=True)
    optimize_labels: bool = _static(default=False)

    def with_parts(self, **parts) -> "GradientDescent":
        """The attack with these parts added to its objective, each in the place of one of its name: see `Objective`."""
        return dataclasses.replace(self, objective=Objective(parts={**self.objective.parts, **parts}))

    def check(self, problems: AttackProblem) -> None:
        """Refuses a stack of problems that the start or a part cannot be computed from, see `Attack`."""
        for name, part in self.objective.parts.items():
            if (weights := getattr(part, "layer_weights", None)) is not None:
                weights, like = (jax.tree.map(lambda _: 0.0, tree) for tree in (weights, problems.params))
                checks.same_structure(f"layer_weights of {name}", weights, like)
        if hasattr(self.initialize, "check"):
            self.initialize.check(problems)

    def init(self, key: Key, problem: AttackProblem) -> AttackState:
        seed = jax.random.bits(jax.random.fold_in(key, 2))
        key_images, key_labels = jax.random.split(key)
        # A start makes one batch; where every epoch has guesses of its own, it makes as many.
        wanted = dataclasses.replace(problem, image_shape=problem.candidate_shape)
        images = jnp.asarray(self.initialize(key_images, wanted), jnp.float32)
        if images.shape != wanted.image_shape:
            name = getattr(self.initialize, "__name__", type(self.initialize).__name__)
            raise checks.InputError(f"initialize {name} gives shape {images.shape}: expected {wanted.image_shape}")
        images = self._project(problem, images)
        logits = None
        if self.optimize_labels:
            logits = jax.random.normal(key_labels, (len(images), problem.num_classes), jnp.float32)
        candidate = Candidate(images, logits)
        info = AttackInfo(jnp.inf, dict.fromkeys(self.objective.parts, jnp.inf))
        return AttackState(
            step=jnp.int32(0),
            candidate=candidate,
            optimizer=jax.tree.map(_strongly_typed, self.optimizer.init(candidate)),
            best=candidate,
            best_loss=jnp.float32(jnp.inf),
            alive=jnp.bool(True),
            info=jax.tree.map(jnp.float32, info),
            seed=seed,
        )

    def step(self, problem: AttackProblem, state: AttackState) -> AttackState:
        """Evaluates the candidate, remembers it if it is the best, and moves on unless it was the last."""

        def objective(candidate):
            return as_float32(self.objective(problem, as_float32(candidate)))  # a line search may have left it

        (loss, parts), gradient = jax.value_and_grad(objective, has_aux=True)(state.candidate)
        better = jnp.isfinite(loss) & (loss < state.best_loss) & state.alive
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((loss, gradient))]))
        alive = state.alive & finite
        moving = alive & (state.step < self.num_steps)

        optimizer = optax.with_extra_args_support(self.optimizer)
        updates, optimizer_state = optimizer.update(
            gradient,
            state.optimizer,
            state.candidate,
            value=loss,
            grad=gradient,
            value_fn=lambda candidate, key: objective(candidate)[0],  # line searches hand it whatever they are handed
            key=jax.random.fold_in(jax.random.key(state.seed), state.step),
        )
        rate = self.learning_rate * self.schedule(state.step / self.num_steps)
        updates = jax.tree.map(lambda update: rate * update, updates)
        moved = optax.apply_updates(state.candidate, updates)
        moved = moved._replace(images=self._project(problem, moved.images))
        return AttackState(
            step=state.step + moving,
            candidate=_select(moving, moved, state.candidate),
            optimizer=_select(moving, optimizer_state, state.optimizer),
            best=_select(better, state.candidate, state.best),
            best_loss=jnp.where(better, loss, state.best_loss),
            alive=alive,
            info=AttackInfo(loss, parts),
            seed=state.seed,
        )

    def _project(self, problem, images):
        return problem.space.clip(images) if self.boxed else images


def _strongly_typed(leaf):
    # Optax starts some numbers as Python would; the first step would then be another program than the second.
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _select(condition, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b).astype(b.dtype), yes, no)
