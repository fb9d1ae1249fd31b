"""The store: rows are whole or absent, never lost, never twice, whatever happens to the process that writes them."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gi_jax.checks import InputError
from gi_jax.experiments.store import NAME, Store


def row(number, **fields):
    return {"cell": f"{number:016x}", "kind": "attack", "number": number, **fields}


def test_rows_come_back_in_the_order_in_which_they_were_added(tmp_path):
    store = Store(tmp_path)
    assert all(store.append(row(number)) for number in (3, 1, 2))
    for one in (store, Store(tmp_path)):
        assert [found["number"] for found in one] == [3, 1, 2]
        assert len(one) == 3 and f"{1:016x}" in one and f"{9:016x}" not in one
        assert one.get(f"{1:016x}") == row(1) and one.get(f"{9:016x}") is None


def test_rows_of_a_kind_are_found_without_parsing_the_others(tmp_path):
    store = Store(tmp_path)
    for number, kind in enumerate(("attack", "training", 'new "kind"', "attack")):
        store.append({"cell": f"{number:016x}", "kind": kind, "inner": {"kind": "training"}})
    with store.path.open("a") as file:
        file.write('{"cell": "00000000000000ff", "kind": "attack", "damaged}\n')
    store.refresh()
    for kind, numbers in (("training", [1]), ('new "kind"', [2]), ("none", [])):
        assert [found["cell"] for found in store.of_kind(kind)] == [f"{number:016x}" for number in numbers]
    with pytest.raises(InputError, match="00000000000000ff is damaged"):
        list(store.of_kind("attack"))


def test_the_first_row_of_a_cell_stays(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    assert first.append(row(1, by="first")) and not second.append(row(1, by="second"))
    assert [found["by"] for found in Store(tmp_path)] == ["first"]


def test_a_torn_line_is_skipped_and_then_removed(tmp_path):
    Store(tmp_path).append(row(1))
    whole = (tmp_path / NAME).read_bytes()
    for cut in (1, 9, len(whole) - 1):
        (tmp_path / NAME).write_bytes(whole + whole[:cut])
        store = Store(tmp_path)
        assert [found["number"] for found in store] == [1]
        assert store.append(row(2))
        assert [json.loads(line)["number"] for line in (tmp_path / NAME).read_text().splitlines()] == [1, 2]


def test_a_row_whose_line_an_editor_left_open_stays(tmp_path):
    for number in (1, 2):
        Store(tmp_path).append(row(number))
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-1])
    assert Store(tmp_path).append(row(3))
    assert [found["number"] for found in Store(tmp_path)] == [1, 2, 3]
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-1])
    assert not Store(tmp_path).append(row(3))


def test_a_store_that_is_edited_while_a_run_has_it_open_stays_whole(tmp_path):
    store = Store(tmp_path)
    assert store.append(row(1)) and store.append(row(2))
    (tmp_path / NAME).write_text("".join((tmp_path / NAME).read_text().splitlines(keepends=True)[1:]))
    assert store.append(row(3)) and store.append(row(1))
    edited = tmp_path / "edited"  # as editors do
    edited.write_text("".join((tmp_path / NAME).read_text().splitlines(keepends=True)[1:]))
    edited.replace(tmp_path / NAME)
    assert store.append(row(4))
    for one in (store, Store(tmp_path)):
        assert [found["number"] for found in one] == [3, 1, 4]


def test_foreign_lines_are_named(tmp_path):
    Store(tmp_path).append(row(1))
    with (tmp_path / NAME).open("a") as file:
        file.write('{"other": 1}\n')
    with pytest.raises(InputError, match="line 2 is no row"):
        Store(tmp_path)
    with pytest.raises(ValueError, match="cell"):
        Store(tmp_path / "new").append({"number": 1})


def _write(folder, numbers):
    store = Store(folder)
    for number in numbers:
        store.append(row(number, by=os.getpid(), filling="x" * 2000))


def test_several_writers_lose_and_double_nothing(tmp_path):
    numbers = list(range(60))
    context = multiprocessing.get_context("spawn")
    writers = []
    for seed in range(3):
        shuffled = numbers.copy()
        random.Random(seed).shuffle(shuffled)
        writers.append(context.Process(target=_write, args=(tmp_path, shuffled)))
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sorted(found["number"] for found in Store(tmp_path)) == numbers


WRITER = """
import sys
from gi_jax.experiments.store import Store
store = Store(sys.argv[1])
for number in range(10_000):
    store.append({"cell": f"{number:016x}", "number": number, "filling": "x" * 5000})
"""


def test_killed_writers_leave_whole_rows(tmp_path):
    before = 0
    for pause in (0.1, 0.3, 0.2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        while not (tmp_path / NAME).exists() or len(Store(tmp_path)) == before:
            time.sleep(0.05)
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        found = [one["number"] for one in Store(tmp_path)]
        assert found == list(range(len(found))) and len(found) > before
        before = len(found)


def test_a_claim_is_held_once_and_ends_with_its_holder(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    with first.claim("work", wait=False) as mine:
        assert mine
        with second.claim("work", wait=False) as theirs, second.claim("other", wait=False) as other:
            assert not theirs and other
        asked = iter((False, True))
        with pytest.raises(KeyboardInterrupt):  # Ctrl-C is heard while it waits
            with second.claim("work", wait=True, should_stop=lambda: next(asked)):
                raise AssertionError
    with second.claim("work", wait=True) as theirs:
        assert theirs


def test_pictures_come_back_as_they_are(tmp_path):
    store = Store(tmp_path)
    for channels in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, channels), dtype=np.uint8)
        path = store.save_pictures(f"of{channels}", images / 255)
        np.testing.assert_array_equal(store.pictures(path, 3), images)
    assert store.pictures(None, 3) is None and store.pictures("pictures/none.png", 3) is None


def test_a_large_store_is_opened_without_reading_its_rows(tmp_path):
    lines = (json.dumps(row(number, filling="x" * 500)) for number in range(20_000))
    (tmp_path / NAME).write_text("\n".join(lines) + "\n")
    store = Store(tmp_path)
    assert len(store) == 20_000 and store.get(f"{19_999:016x}")["number"] == 19_999
