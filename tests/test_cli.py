"""The command line as a user meets it: real pictures end to end, and one line for everything that goes wrong."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from gi_jax import cli
from gi_jax.defenses import DEFENSES
from gi_jax.errors import InputError
from gi_jax.experiments import checkpoint
from gi_jax.experiments.session import Report
from gi_jax.experiments.spec import AttackSpec


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch):
    monkeypatch.setattr(cli.terminal, "set_up_compilation", lambda: None)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """`python -m gi_jax attack` on two embedded photographs, twice, with a compilation cache of its own."""
    folder = tmp_path_factory.mktemp("cli")
    cache = folder / "cache"
    runs = []
    for out in ("first", "second"):
        command = [sys.executable, "-m", "gi_jax", "attack", "--num-batches", "2", "--steps", "250"]
        command += ["--compare", "gaussian:sigma=0.03", "--compare", "none", "--out", str(folder / out)]
        # Every program is kept: which ones take longer than a threshold differs from run to run.
        kept = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        environment = os.environ | kept
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        assert done.returncode == 0, done.stderr
        runs.append((folder / out, done, {path.name for path in cache.iterdir() if path.name.endswith("-cache")}))
    return runs


def test_attack_recovers_real_pictures_and_a_defense_prevents_it(attacked):
    out, done, _ = attacked[0]
    result = json.loads((out / "result.json").read_text())
    undefended, defended = result["runs"]
    assert undefended["defense"] == "none"
    assert undefended["summary"]["psnr"]["mean"] > 22
    assert defended["summary"]["psnr"]["mean"] < undefended["summary"]["psnr"]["mean"] - 5
    assert defended["summary"]["lpips_vgg"]["mean"] > undefended["summary"]["lpips_vgg"]["mean"] + 0.1
    assert "gaussian:sigma=0.03" in done.stdout
    assert done.stderr == ""  # no progress bar where there is no terminal


def test_attack_leaves_its_files(attacked):
    out, _, _ = attacked[0]
    arrays = np.load(out / "reconstructions.npz")
    assert arrays["originals"].shape == arrays["reconstructions"].shape == (2, 32, 32, 3)
    assert arrays["reconstructions"].dtype == np.float32
    assert 0 <= arrays["reconstructions"].min() and arrays["reconstructions"].max() <= 1
    assert arrays["labels"].tolist() == [0, 1]
    with Image.open(out / "reconstructions.png") as picture:
        assert min(picture.size) > 200
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 250
    for before, after in zip(rows, rows[1:], strict=False):
        if before["launch"] == after["launch"]:
            assert all(a <= b for a, b in zip(after["best_loss"], before["best_loss"], strict=True))


def test_same_seed_gives_the_same_bits_in_another_process(attacked):
    first, second = (np.load(out / "reconstructions.npz") for out, _, _ in attacked)
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])


def test_second_process_compiles_nothing_new(attacked):
    assert attacked[0][2] and attacked[0][2] == attacked[1][2]


def test_resume_of_a_finished_attack_shows_it(attacked, capsys):
    out, _, _ = attacked[0]
    arguments = ["attack", "--num-batches", "2", "--steps", "250", "--compare", "none"]
    arguments += ["--compare", "gaussian:sigma=0.03", "--out", str(out)]
    assert cli.main([*arguments, "--resume"]) == 0
    assert "gaussian:sigma=0.03" in capsys.readouterr().out


def test_an_estimate_prints_the_cost_and_writes_nothing(tmp_path, capsys):
    arguments = ["attack", "--model", "lenet", "--steps", "40", "--estimate", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert "6 lanes" in (said := capsys.readouterr().out) and said.rstrip().endswith("and scoring")
    assert not (tmp_path / "out").exists()


def test_results_of_other_settings_are_not_overwritten(attacked, capsys):
    assert cli.main(["attack", "--steps", "7", "--out", str(attacked[0][0])]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_what_is_wrong_with_a_command_comes_before_the_folder(attacked, tmp_path, capsys):
    out, _, _ = attacked[0]
    for command in ("attack", "train", "federate"):
        if command != "attack":
            out = tmp_path
            (out / "weights.msgpack").touch()
        assert cli.main([command, "--data", "folder:nowhere", "--out", str(out)]) == 2
        assert "nowhere: no such file" in capsys.readouterr().err


def test_settings_that_differ_are_named(attacked, capsys):
    out, _, _ = attacked[0]
    defenses = ["--compare", "gaussian:sigma=0.03", "--compare", "none"]
    assert cli.main(["attack", "--num-batches", "2", "--steps", "251", *defenses, "--out", str(out)]) == 2
    assert "holds results of other settings (steps 250, not 251): choose" in capsys.readouterr().err


QUICK = ["attack", "--model", "mlp", "--image-size", "8", "--num-batches", "1", "--steps", "3", "--compare", "none"]


@pytest.mark.parametrize("command", [QUICK, ["train", "--epochs", "0.1"], ["federate", "--rounds", "1"], ["decode"]])
def test_two_runs_do_not_share_a_folder(command, tmp_path, capsys):
    with cli.terminal.held(tmp_path):
        assert cli.main([*command, "--out", str(tmp_path)]) == 2
        assert f"{tmp_path}: another gi-jax works there; wait for it" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    with cli.terminal.held(tmp_path):  # let go of
        pass


def test_who_is_refused_a_folder_leaves_it_to_the_other(tmp_path, monkeypatch):
    out = tmp_path / "new"
    with cli.terminal.held(out):
        with monkeypatch.context() as patch:  # as of one who looked before the other made it
            patch.setattr(cli.terminal.Path, "exists", lambda self: False)
            with pytest.raises(InputError, match="another gi-jax works there"), cli.terminal.held(out):
                pass
        assert out.is_dir()
        (out / "result").touch()
    assert out.is_dir()


def test_too_little_memory_for_a_check_does_not_hide_what_is_refused():
    def check():
        raise RuntimeError("RESOURCE_EXHAUSTED")

    with pytest.raises(InputError, match="there already"), cli.terminal.refusing_after(check):
        raise InputError("there already")


def test_a_command_that_is_refused_leaves_no_folder(tmp_path):
    out, mine = tmp_path / "a" / "new", tmp_path / "mine"
    mine.mkdir()
    for folder in (out, mine):
        assert cli.main([*QUICK, "--data", "folder:nowhere", "--out", str(folder)]) == 2
    assert not out.exists() and mine.exists()


def test_an_unfinished_attack_of_other_settings_is_not_to_be_resumed(tmp_path, capsys):
    checkpoint.save(tmp_path, "another", {})
    assert cli.main([*QUICK, "--out", str(tmp_path)]) == 2
    assert "belongs to an attack with other settings" in capsys.readouterr().err


def test_a_resume_of_nothing_says_that_it_starts_anew(tmp_path, capsys):
    arguments = ["attack", "--image-size", "8", "--model", "mlp", "--steps", "2", "--num-batches", "1", "--resume"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"nothing to resume in {tmp_path}: starting anew\n")
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "nothing to resume" not in capsys.readouterr().out


@pytest.mark.parametrize("defense, said", [([], True), (["--compare", "none"], False), (["--defense", "none"], False)])
def test_an_attack_with_options_says_that_the_quickstarts_defenses_are_left_out(defense, said, tmp_path, capsys):
    arguments = ["attack", "--image-size", "8", "--model", "mlp", "--steps", "2", "--num-batches", "1", *defense]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    assert ("--compare none --compare prune:p=0.95" in capsys.readouterr().out) == said


@pytest.mark.parametrize("command", ["attack", "train", "invert x.npz --weights w"])
def test_resume_and_overwrite_exclude_each_other(command, tmp_path, capsys):
    assert cli.main([*command.split(), "--resume", "--overwrite", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--resume and --overwrite: expected one of them" in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_ctrl_c_leaves_results_and_resume_completes_them(tmp_path, monkeypatch, capsys):
    arguments = [
        "attack",
        "--num-batches",
        "2",
        "--batch-size",
        "2",
        "--steps",
        "100",
        "--defense",
        "prune:p=0.5",
    ]
    arguments += ["--defense", "laplacian:scale=1e-4", "--out", str(tmp_path / "out")]
    report = cli.terminal.progress_bar.report

    def interrupt(self, update):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.terminal.progress_bar, "report", interrupt)
    assert cli.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    partial = json.loads((tmp_path / "out" / "result.json").read_text())
    assert not partial["complete"] and partial["runs"][0]["steps"] == 50
    assert cli.main(arguments) == 2  # neither lost nor repeated by accident
    assert "--resume" in capsys.readouterr().err
    monkeypatch.setattr(cli.terminal.progress_bar, "report", report)
    assert cli.main([*arguments, "--resume"]) == 0
    whole = json.loads((tmp_path / "out" / "result.json").read_text())
    assert whole["complete"] and whole["runs"][0]["steps"] == 100
    assert [block["defense"] for block in whole["runs"]] == ["prune:p=0.5 + laplacian:scale=0.0001"]
    assert len(whole["runs"][0]["images"]) == 4


def test_a_ctrl_c_that_a_callback_swallowed_interrupts_all_the_same(tmp_path, monkeypatch):
    def swallow(self, update):  # as Python does in a callback of its garbage collector
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli.terminal.progress_bar, "report", swallow)
    before = signal.getsignal(signal.SIGINT)
    arguments = ["attack", "--image-size", "8", "--model", "mlp", "--num-batches", "1", "--steps", "1000"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 130
    assert json.loads((tmp_path / "result.json").read_text())["runs"][0]["steps"] == 50
    assert signal.getsignal(signal.SIGINT) is before


def test_only_the_command_of_the_process_ends_it_when_interrupted(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    ended = []
    monkeypatch.setattr(cli.listing, "run", interrupt)
    monkeypatch.setattr(os, "_exit", ended.append)
    assert cli.main(["list", "attacks"]) == 130 and not ended
    monkeypatch.setattr(sys, "argv", ["gi-jax", "list", "attacks"])
    assert cli.main() == 130 and ended == [130]
    assert "interrupted" in capsys.readouterr().err


def test_attack_takes_a_folder_of_pictures_and_says_that_it_has_changed(tmp_path, capsys):
    for name in ("ants", "bees"):
        (tmp_path / "in" / name).mkdir(parents=True)
        smooth = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8) * 2
        Image.fromarray(np.stack([smooth, smooth, smooth], -1)).save(tmp_path / "in" / name / "0.png")
    arguments = [
        "attack",
        "--data",
        f"folder:{tmp_path / 'in'}",
        "--model",
        "mlp",
        "--steps",
        "5",
        "--defense",
        "none",
    ]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "no BatchNorm" in capsys.readouterr().out
    bee, said = tmp_path / "in" / "bees" / "0.png", []
    for change in (lambda: None, lambda: Image.new("RGB", (40, 40)).save(bee), bee.unlink):
        change()
        assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
        said.append(capsys.readouterr().out.splitlines()[0])
    beginning = f"{tmp_path / 'out'} holds this attack already, complete"
    assert said[0].startswith(f"{beginning}: it is shown")
    assert said[1].startswith(f"{beginning}, but folder:{tmp_path / 'in'} has changed: it was of other pictures: it is")
    assert said[2].startswith(f"{beginning}, but its pictures cannot be looked at again (")


def _truncated_picture(tmp_path):
    (tmp_path / "in" / "ants").mkdir(parents=True)
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(content, "PNG")
    (tmp_path / "in" / "ants" / "0.png").write_bytes(content.getvalue()[:2000])
    return ["--data", f"folder:{tmp_path / 'in'}"]


def _one_class(tmp_path):
    (tmp_path / "in" / "ants").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in" / "ants" / "0.png")
    return ["--data", f"folder:{tmp_path / 'in'}"]


def _pictures_beside_one_class(tmp_path):
    arguments = _one_class(tmp_path)
    for number in range(4):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in" / f"{number}.png")
    return arguments


def _truncated_archive(tmp_path):
    path = tmp_path / "cifar.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        content = np.random.default_rng(0).bytes(20_000)
        member = tarfile.TarInfo("train/airplane/0000.jpg")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[:5000])
    return ["--data", "cifar10", "--data-dir", str(path)]


BAD = {
    "model": (["--model", "resnet81"], "did you mean 'resnet18'"),
    "data": (["--data", "cifar01"], "did you mean 'cifar10'"),
    "defense": (["--defense", "prun:p=0.9"], "did you mean 'prune'"),
    "defense parameter": (["--defense", "prune:q=0.9"], "unknown parameter"),
    "defense without its parameter": (["--defense", "prune"], "try prune:p="),
    "p of 1": (["--defense", "prune:p=1"], "p=1"),
    "p below 0": (["--defense", "prune:p=-0.1"], "p=-0.1"),
    "a private gradient with BatchNorm": (["--defense", "dpsgd:clip=1,sigma=1"], "take a network with GroupNorm"),
    "private gradients after pruning": (["--defense", "prune:p=0.9", "--defense", "dpsgd:clip=1,sigma=1"], "first"),
    "no whole number": (["--defense", "top_k:k=2.5"], "k=2.5: expected a whole number"),
    "no number": (["--defense", "gaussian:sigma=loud"], "name:parameter=number"),
    "defense and compare": (["--defense", "none", "--compare", "none"], "--compare"),
    "bn": (["--client-bn", "batch", "--bn", "infre"], "did you mean 'infer'"),
    "bn of a running client": (["--bn", "exact"], "leave bn out"),
    "directory": (["--data", "cifar10", "--data-dir", "nowhere"], "nowhere"),
    "folder": (["--data", "folder:nowhere"], "nowhere"),
    "split": (["--split", "trane"], "did you mean 'train'"),
    "batch larger than the data": (["--batch-size", "64"], "--first"),
    "more per class than there are": (["--first", "999"], "--first"),
    "steps": (["--steps", "0"], "steps=0"),
    "steps as text": (["--steps", "many"], "invalid int value: 'many'"),
    "option": (["--stpes", "3"], "--stpes"),
    "lanes": (["--lanes", "0"], "lanes=0"),
    "attack": (["--attack", "dlgg"], "unknown attack"),
    "attacker": (["--attacker", "plane"], "did you mean 'plain'"),
    "view": (["--view", "sun"], "did you mean 'sum'"),
    "clients that the server tells apart": (["--clients", "4"], "expected view sum or client"),
    "published scoring of tiny pictures": (
        ["--image-size", "12", "--model", "mlp", "--reference-scoring"],
        "needs 16 at least",
    ),
    "what only a later run refuses": (
        ["--compare", "none", "--compare", "dpsgd:clip=1,sigma=1", "--steps", "100000"],
        "take a network with GroupNorm",
    ),
    "sum of one client": (["--view", "sum"], "expected 2 clients or more"),
    "eavesdropper": (["--view", "eavesdropper", "--clients", "2"], "nothing is observed"),
    "truncated picture": (_truncated_picture, "0.png"),
    "truncated archive": (_truncated_archive, "cifar.tar.xz"),
    "folder of one class": (_one_class, "has one class, 'ants'"),
    "pictures beside the only class": (_pictures_beside_one_class, "add another class folder (4 pictures beside"),
    "model without BatchNorm": (["--model", "lenet", "--client-bn", "batch"], "has no BatchNorm"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_a_status(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    arguments = arguments(tmp_path) if callable(arguments) else arguments
    try:
        status = cli.main(["attack", *arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "name, message",
    [
        ("atack", "gi-jax: error: unknown command 'atack': did you mean 'attack'? choose from attack, decode"),
        ("xyz", "gi-jax: error: unknown command 'xyz': choose from attack, decode"),
    ],
)
def test_commands_suggest_the_nearest(name, message, capsys):
    assert cli.main([name, "--steps", "3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_out_of_memory_is_one_line(tmp_path, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr("gi_jax.experiments.training.run_training", fail)
    assert cli.main(["train", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("gi-jax: error: out of memory: take smaller batches")


def test_a_plain_attacker_is_shown_on_the_same_defenses(tmp_path, capsys):
    plain = ["attack", "--attacker", "plain", "--estimate"]
    assert cli.main(plain) == 0
    assert "prune:p=0.99" in capsys.readouterr().out


@pytest.mark.parametrize(
    "size, scores, why",
    [
        (
            "8",
            {"psnr", "mse"},
            "no SSIM or LPIPS: pictures of 8 x 8 are too small (smallest: SSIM 11 x 11, LPIPS 31 x 31)",
        ),
        ("12", {"psnr", "mse", "ssim"}, "no LPIPS: pictures of 12 x 12 are too small (smallest: LPIPS 31 x 31)"),
    ],
)
def test_small_pictures_lack_scores_and_it_is_said_why(size, scores, why, tmp_path, capsys):
    arguments = ["attack", "--image-size", size, "--model", "mlp", "--steps", "3", "--num-batches", "1"]
    assert cli.main([*arguments, "--defense", "none", "--out", str(tmp_path)]) == 0
    (run,) = json.loads((tmp_path / "result.json").read_text())["runs"]
    printed = capsys.readouterr().out
    assert scores == set(run["summary"]) and ("SSIM ┃" in printed) == ("ssim" in scores)
    assert why in " ".join(printed.split())


def test_out_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert cli.main(["attack", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"fingerprint": "SAME"}'])
def test_a_damaged_result_is_one_line(content, tmp_path, capsys):
    arguments = ["attack", "--model", "mlp", "--steps", "2", "--num-batches", "1", "--compare", "none"]
    arguments += ["--out", str(tmp_path), "--resume"]
    if "SAME" in content:
        spec = AttackSpec(model="mlp", steps=2, num_batches=1, defenses=("none",))
        content = content.replace("SAME", spec.fingerprint)
    (tmp_path / "result.json").write_text(content)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "is not a result of gi-jax" in error and error.count("\n") == 1


def test_brackets_in_paths_are_printed_as_they_are(tmp_path, capsys):
    out = tmp_path / "a[bold]b[/i]c"
    arguments = ["attack", "--image-size", "8", "--model", "mlp", "--steps", "2", "--num-batches", "1"]
    assert cli.main([*arguments, "--defense", "none", "--out", str(out)]) == 0
    assert "a[bold]b[/i]c" in capsys.readouterr().out.replace("\n", "")


def test_every_defense_has_its_threat_model_on_the_terminal_and_its_settings_in_the_result(tmp_path, capsys):
    arguments = ["attack", "--image-size", "8", "--model", "mlp", "--steps", "2", "--first", "1", "--num-batches", "4"]
    compared = ["--compare", "none", "--compare", "prune:p=0.5", "--compare", "mixup:k=2"]
    assert cli.main([*arguments, *compared, "--out", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    runs = json.loads((tmp_path / "result.json").read_text())["runs"]
    for run in runs:
        for sentence in run["threat_model"]:
            assert sentence in printed
        assert run["settings"] == {"tv": 1e-3, "learning_rate": 0.3, "num_steps": 2}
    assert "prune:p=0.5: The client" in printed and f"gi-jax decode {tmp_path}"[:30] in printed


def test_labels_and_restarts_are_compared_on_the_terminal(tmp_path, capsys):
    arguments = ["attack", "--model", "mlp", "--first", "2", "--batch-size", "4", "--num-batches", "1", "--steps", "5"]
    arguments += ["--restarts", "2", "--labels", "known", "--labels", "optimize", "--labels", "auto"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    runs = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert [run["labels"]["from"] for run in runs] == ["known", "optimize", "auto"]
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│ none")
    ]
    for run, row in zip(runs, rows, strict=True):
        agreement = np.mean([image["agreement"] for image in run["images"]])
        overlaps = [run["labels"].get(name) for name in ("set_overlap", "count_overlap")]
        written = "-" if None in overlaps else "{:.0f}, {:.0f} %".format(*(100 * overlap for overlap in overlaps))
        assert row[1] == run["labels"]["from"] and f"{agreement:.1f}" in row and written in row
    words = " ".join(shown.split())
    assert "rank correlation of agreement with PSNR over pictures, of spread with error over pixels: none " in words
    for run in runs:
        assert f"{run['confidence']['pictures']:.2f} and {run['confidence']['pixels']:.2f}" in words
    assert "ORACLE: the labels" in words and "labels optimize: The labels are unknown" in words
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    said, again = capsys.readouterr().out.split("\n", 1)
    assert "complete" in said and "--overwrite" in said and again == shown


@pytest.mark.parametrize("kind", ["attacks", "defenses", "views", "servers", "models", "data"])
def test_list_has_a_line_and_a_source_for_everything(kind, capsys):
    assert cli.main(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(row["name"] and row["about"] and (row.get("paper") or row.get("source")) for row in rows)
    assert cli.main(["list", kind]) == 0
    shown = capsys.readouterr().out
    assert rows[0]["name"] in shown


def test_defenses_are_listed_with_kind_parameters_and_ranges(capsys):
    cli.main(["list", "defenses", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["prune"]["kind"] == "heuristic" and rows["dpsgd"]["kind"] == "dp"
    assert rows["prune"]["parameters"] == "p: fraction set to zero in each tensor, in [0, 1)"
    assert rows["sign"]["parameters"] == "-"


def test_help_of_attack_has_every_defense(capsys):
    with pytest.raises(SystemExit):
        cli.main(["attack", "--help"])
    shown = capsys.readouterr().out
    for name, entry in DEFENSES.items():
        assert f"{name} ({entry.kind})" in shown and entry.paper in shown
        assert all(f"{key}: {parameter.about}" in shown for key, parameter in entry.parameters.items())


def test_list_models_counts_parameters(capsys):
    cli.main(["list", "models", "--json"])
    counts = {row["name"]: row["parameters"] for row in json.loads(capsys.readouterr().out)}
    assert counts["resnet18"] == 11_171_274


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("gi-jax ")


def test_a_note_of_a_report_is_printed_where_there_is_no_bar(capsys):
    with cli.terminal.progress_bar() as on_report:
        on_report(Report("going on", 0, 1, float("nan"), "a note"))
        on_report(Report("going on", 1, 1, float("nan")))
    assert capsys.readouterr().out == "a note\n"
