"""What the specification of an attack may not say: unknown names, and what is out of range or has no meaning."""

from gi_jax import checks, defenses, models
from gi_jax.attacks import ATTACKS
from gi_jax.attacks.labels import METHODS
from gi_jax.models import MODELS, Normalize
from gi_jax.threat import THREATS, VIEWS, LocalTraining, Shared

CLIENT_BN = ("running", "batch")
ATTACKERS = ("adaptive", "encodings", "plain")
LABELS = ("known", "auto", "optimize", *METHODS)
ORDERS = ("unknown", "known")
BOXES = ("valid", "reference")
PRECISIONS = ("float32", "bfloat16")

_SETTINGS = {
    "tv": ("tv", "total variation"),
    "bn_prior": ("bn_prior", "statistics prior"),
    "learning_rate": ("learning_rate", "learning rate"),
    "steps": ("num_steps", "steps"),
}
"""Field to the setting of a preset, and words for it."""


def check_names(spec) -> None:
    """Refuses names that do not exist.

    Args:
      spec: an `AttackSpec`, whose labels may not be filled in yet.
    """
    checks.one_of("model", spec.model, MODELS)
    checks.one_of("client_bn", spec.client_bn, CLIENT_BN)
    if spec.bn is not None:
        checks.one_of("bn", spec.bn, THREATS)
    checks.one_of("attacker", spec.attacker, ATTACKERS)
    checks.one_of("box", spec.box, BOXES)
    checks.one_of("precision", spec.precision, PRECISIONS)
    checks.one_of("view", spec.view, VIEWS)
    checks.one_of("order", spec.order, ORDERS)
    if spec.attack is not None:
        checks.one_of("attack", spec.attack, ATTACKS)
    if not spec.defenses:
        raise checks.InputError("defenses is empty: expected at least one, 'none' for no defense")
    checks.distinct("defenses", [str(defenses.parse(text)) for text in spec.defenses])


def check(spec) -> None:
    """Refuses numbers out of range, and what has no meaning together, in an `AttackSpec` whose names exist."""
    _check_numbers(spec)
    _check_network(spec)
    _check_view(spec)
    _check_labels(spec)
    _check_attack(spec)
    _check_encodings(spec)
    _check_steps(spec)
    if spec.local is not None:
        _check_local(spec)


def _check_numbers(spec):
    checks.positive(clients=spec.clients, encodings=spec.encodings)
    checks.positive(first=spec.first, batch_size=spec.batch_size, steps=spec.steps, restarts=spec.restarts)
    checks.positive(local_steps=spec.local_steps, local_rate=spec.local_rate)
    for name in ("seed", "model_seed", "victim_seed"):
        checks.seed(name, getattr(spec, name) or 0)
    for name in ("learning_rate", "num_batches"):
        if getattr(spec, name) is not None:
            checks.positive(**{name: getattr(spec, name)})
    for name in ("tv", "bn_prior", "epoch_prior"):
        if getattr(spec, name) is not None:
            checks.non_negative(**{name: getattr(spec, name)})


def _check_network(spec):
    if (spec.weights is None) != (spec.weights_hash is None):
        raise checks.InputError(
            f"weights={spec.weights!r} with weights_hash={spec.weights_hash!r}: expected both or neither; "
            "gi_jax.experiments.weights.settings_of(path) gives both"
        )
    if spec.weights is not None and spec.model_seed != 0:
        raise checks.InputError(
            f"model_seed={spec.model_seed} with weights={spec.weights!r}: nothing is drawn; leave one of them out"
        )
    if spec.client_bn == "running" and spec.bn is not None:
        raise checks.InputError(
            f"bn={spec.bn!r} with client_bn='running': the adversary has the client's statistics anyway; "
            "leave bn out, or take client_bn batch"
        )


def _check_view(spec):
    if spec.view == "server" and spec.clients > 1:
        raise checks.InputError(
            f"clients={spec.clients} with view='server': the server sees each client's own update, however many "
            "there are; expected view sum or client, or one client"
        )
    if spec.view == "sum" and spec.clients < 2:
        raise checks.InputError("view='sum' with clients=1: the sum is the update itself; expected 2 clients or more")


def _check_labels(spec):
    if not spec.labels:
        raise checks.InputError("labels is empty: expected at least one, 'known' for what the client has")
    for labels in spec.labels:
        checks.one_of("labels", labels, LABELS)
    checks.distinct("labels", spec.labels)
    if "optimize" in spec.labels and ATTACKS[spec.attack_name].closed_form:
        raise checks.InputError(
            f"labels='optimize': the attack {spec.attack_name!r} is a closed form and optimizes nothing; expected "
            "known, or a method that recovers labels first"
        )


def _check_attack(spec):
    if spec.precision != "float32":
        if ATTACKS[spec.attack_name].closed_form:
            raise checks.InputError(
                f"precision={spec.precision!r}: the attack {spec.attack_name!r} is a closed form, which solves "
                "equations; expected float32"
            )
        models.narrowed(models.create(spec.model, 2), spec.precision)
    for field, (setting, words) in _SETTINGS.items():
        value, default = getattr(spec, field), getattr(type(spec), field)
        if value and value != default and setting not in ATTACKS[spec.attack_name].settings:
            having = ", ".join(name for name, entry in ATTACKS.items() if setting in entry.settings)
            raise checks.InputError(
                f"{field}={value:g}: the attack {spec.attack_name!r} has no {words}; leave it out, or take one of "
                f"{having}"
            )


def _check_encodings(spec):
    mixing = [text for text in spec.defenses if defenses.parse(text).mixing is not None]
    if mixing and spec.batches_per_update > 1:
        raise checks.InputError(
            f"view={spec.view!r} with {' and '.join(mixing)}: clients do not mix each other's pictures; expected "
            "view server"
        )
    if spec.encodings > 1 and not mixing:
        raise checks.InputError(
            f"encodings={spec.encodings}: none of the defenses encodes pictures; expected one that does, such as "
            "mixup:k=4, or encodings 1"
        )


def _check_steps(spec):
    """Refuses local steps that are no whole epochs, and knowledge of them that makes no difference."""
    if not isinstance(spec.assume_steps, int | None) and spec.assume_steps != "auto":
        raise checks.InputError(f"assume_steps={spec.assume_steps!r}: expected a number of local steps, or auto")
    if spec.local_rate != type(spec).local_rate and spec.local is None:
        raise checks.InputError(f"local_rate={spec.local_rate:g}: the client takes no local steps; leave it out")
    training = LocalTraining(
        num_steps=spec.local_steps, batch_size=spec.local_batch_size, learning_rate=spec.local_rate
    )
    training.check(spec.batch_size)
    if isinstance(spec.assume_steps, int):
        spec.assumption(spec.assume_steps).check(spec.batch_size)
    shuffles = training.shuffles(spec.batch_size)
    if spec.order == "known" and not (shuffles and spec.assume_steps is None):
        raise checks.InputError(
            "order='known': expected local steps on parts of the pictures (local_batch_size), of a number that is "
            "known too; leave it out"
        )
    if spec.epoch_prior is not None:
        guesses = spec.local is not None and shuffles and spec.order == "unknown"
        if not guesses or (spec.assume_steps is None and training.num_epochs(spec.batch_size) == 1):
            raise checks.InputError(
                f"epoch_prior={spec.epoch_prior:g}: epochs have guesses of their own only after local steps on "
                "parts of the pictures in an unknown order; leave it out"
            )


def _check_local(spec):
    """Refuses what has no meaning for several local steps."""
    if spec.view != "server":
        raise checks.InputError(
            f"view={spec.view!r} with local steps: each client's steps lead to weights of its own, which no attack "
            "on their mean imagines; expected view server, or local_steps 1"
        )
    if ATTACKS[spec.attack_name].closed_form and spec.assume_steps != 1:
        raise checks.InputError(
            f"attack={spec.attack!r} with local steps: their mean gradient mixes several models, and a closed form "
            "holds for one; expected an attack by optimization, or assume_steps 1"
        )
    exact = spec.threat.shared in (Shared.EXACT, Shared.EXACT_UNBIASED)
    if exact and spec.threat.adversary != Normalize.BATCH:
        raise checks.InputError(
            f"bn={spec.bn!r} with local steps: every step has exact statistics of its own, so none can be "
            "normalized with; expected exact, infer or proxy"
        )
    for text in spec.defenses:
        defense = defenses.parse(text)
        if defense.mixing is not None or defense.of_examples:
            what = "encodes pictures anew in every epoch" if defense.mixing else "looks at the examples of one step"
            raise checks.InputError(
                f"defense {text} with local steps: it {what}; expected one of the whole update, such as clip, "
                "gaussian or prune, or local_steps 1"
            )
