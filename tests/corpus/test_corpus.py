from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import shutil
import sys

import fake_space  # noqa: F401  (registers the space)
import h5py
import numpy as np
import pytest

from oneshot_ml2.common.errors import CorpusError, OneShotWarning
from oneshot_ml2.corpus import format
from oneshot_ml2.corpus.format import TaskSamples
from oneshot_ml2.corpus.manage import merge_corpora, split_corpus, verify_corpus
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.corpus.write import write_corpus
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense

CONV = Conv2d(1, 16, 8, 8, 32, 3, 3, padding=1)
DENSE = Dense(1, 64, 10)
PYNQ = Accelerator.load("pynq")
ULTRA96 = Accelerator.load("ultra96")


def make_task(workload=CONV, accelerator=PYNQ, n=40, seed=0, **changes) -> TaskSamples:
    rng = np.random.default_rng(seed)
    reason = (rng.random(n) < 0.2).astype(np.uint8) * 6
    task = TaskSamples(
        workload=workload,
        accelerator=accelerator,
        kind="fake",
        space_version=3,
        knobs=("a", "b"),
        values=np.stack([rng.permutation(n), np.arange(n)], axis=1).astype(np.int32),
        reason=reason,
        cycles=np.where(reason == 0, rng.integers(1, 1 << 40, n), -1),
        busy=rng.integers(0, 100, (n, 3)),
        sampler=rng.integers(0, 2, n).astype(np.uint8),
        split="train",
        provenance={"seed": seed, "device": "sim"},
    )
    return dataclasses.replace(task, **changes)


@pytest.fixture
def tasks() -> list[TaskSamples]:
    pairs = [(CONV, PYNQ), (CONV, ULTRA96), (DENSE, PYNQ), (DENSE, ULTRA96)]
    return [make_task(w, a, n=20 + 10 * i, seed=i) for i, (w, a) in enumerate(pairs)]


@pytest.fixture
def folder(tmp_path, tasks):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_corpus(folder / "shard-00000.h5", tasks[:2])
    write_corpus(folder / "shard-00001.h5", tasks[2:])
    return folder


def same(a: TaskSamples, b: TaskSamples) -> bool:
    columns = ("values", "reason", "cycles", "busy", "sampler")
    return (
        (a.workload, a.accelerator, a.accelerator.name, a.split, a.provenance, a.knobs)
        == (b.workload, b.accelerator, b.accelerator.name, b.split, b.provenance, b.knobs)
        and all(np.array_equal(getattr(a, c), getattr(b, c)) for c in columns)
        and all(getattr(a, c).dtype == getattr(b, c).dtype for c in columns)
    )


def test_round_trip(folder, tasks):
    with open_corpus(folder) as opened:
        assert len(opened) == 4
        assert opened.kind == "fake" and opened.space_version == 3 and opened.knobs == ("a", "b")
        assert opened.counts.tolist() == [20, 30, 40, 50]
        assert all(same(a, b) for a, b in zip(opened, tasks, strict=True))
        assert same(opened[3], tasks[3]) and same(opened[0], tasks[0])
        assert opened.workload(2) == DENSE and opened.accelerator(1) == ULTRA96 and opened.split(0) == "train"
        assert opened.of_today() is opened
        again = pickle.loads(pickle.dumps(opened))
    assert same(again[1], tasks[1])
    again.close()


def test_empty_task(tmp_path):
    empty = make_task(n=0)
    write_corpus(tmp_path / "a.h5", [empty])
    assert verify_corpus(tmp_path / "a.h5")["samples"] == 0
    with open_corpus(tmp_path) as opened:
        assert same(opened[0], empty)
        assert opened.info()["samples"] == 0


def test_accelerator_name_and_unknown_keys_play_no_part_in_the_id(tmp_path):
    renamed = Accelerator.from_json(json.loads(PYNQ.to_json()) | {"HW_VER": "9"}, name="mine")
    assert format.task_id(CONV, renamed, "fake") == format.task_id(CONV, PYNQ, "fake")
    assert format.task_id(CONV, ULTRA96, "fake") != format.task_id(CONV, PYNQ, "fake")
    write_corpus(tmp_path / "a.h5", [make_task(accelerator=renamed)])
    with open_corpus(tmp_path / "a.h5") as opened:
        assert sorted(opened[0].accelerator.extra) == sorted(renamed.extra)


def test_info(folder, tasks):
    with open_corpus(folder) as opened:
        info = opened.info()
    invalid = sum(int((t.reason > 0).sum()) for t in tasks)
    assert info["samples"] == 140 and info["tasks"] == 4 and info["workloads"] == 2 and info["accelerators"] == 2
    assert info["reasons"] == {"valid": 140 - invalid, "sram_overflow": invalid}
    assert info["invalid_share"] == pytest.approx(invalid / 140)
    assert info["splits"] == {"train": 4}
    assert info["provenance"]["seed"] == ["0", "1", "2", "3"]
    json.dumps(info)


def test_merge_keeps_everything_and_the_digest(folder, tasks, tmp_path):
    merge_corpora([folder / "shard-00001.h5", folder / "shard-00000.h5"], tmp_path / "all.h5")
    merge_corpora([folder], tmp_path / "again.h5")
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    assert verify_corpus(tmp_path / "all.h5")["digest"] == verify_corpus(folder)["digest"]
    with open_corpus(tmp_path / "all.h5") as opened:
        found = {task.id: task for task in opened}
    assert all(same(found[task.id], task) for task in tasks)
    assert list(found) == sorted(found)


def test_merge_refuses_duplicates_and_other_spaces(folder, tmp_path):
    with pytest.raises(CorpusError, match="twice"):
        merge_corpora([folder, folder / "shard-00000.h5"], tmp_path / "all.h5")
    write_corpus(tmp_path / "new.h5", [make_task(Dense(1, 8, 8), space_version=4)])
    with pytest.raises(CorpusError, match="different schedule spaces"):
        merge_corpora([folder, tmp_path / "new.h5"], tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()
    with open_corpus(tmp_path / "new.h5") as opened, pytest.raises(CorpusError, match="installed is 3"):
        opened.of_today()


def test_tasks_whose_schedules_changed_are_left_out_and_told(folder, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["fake_space"], "SPACE_VERSION", 4)
    monkeypatch.setattr(sys.modules["fake_space"], "version_of", lambda workload: 4 if workload == DENSE else 2)
    with open_corpus(folder) as opened:
        with pytest.warns(OneShotWarning, match="2 of 4 tasks are samples of space 'fake' version 3, installed is 4"):
            kept = opened.of_today()
        assert all(same(a, b) for a, b in zip(kept, tasks[:2], strict=True))
        assert kept.ids == opened.ids[:2] and kept.counts.tolist() == [20, 30]
    write_corpus(tmp_path / "kept.h5", tasks[:2])
    with open_corpus(tmp_path / "kept.h5") as alone:
        assert kept.digest == alone.digest != opened.digest
        assert alone.of_today() is alone
    write_corpus(tmp_path / "old.h5", tasks[2:])
    with open_corpus(tmp_path / "old.h5") as old, pytest.raises(CorpusError, match="collect the corpus anew"):
        old.of_today()


def test_folder_refuses_duplicates_and_other_spaces(folder):
    shutil.copy(folder / "shard-00000.h5", folder / "shard-00002.h5")
    with pytest.raises(CorpusError, match="remove one"):
        open_corpus(folder)
    write_corpus(folder / "shard-00002.h5", [make_task(Dense(1, 8, 8), knobs=("a", "c"))])
    with pytest.raises(CorpusError, match="one folder for each"):
        open_corpus(folder)


def test_split_by_shape_and_accelerator(folder, tmp_path):
    # Another batch and epilogue, but the same shape in the sense of the splits.
    listed = Dense(4, 64, 10)
    counts = split_corpus(folder, tmp_path / "parts", [listed], [ULTRA96])
    assert counts == {"train": 1, "workloads": 1, "accelerators": 1, "both": 1}
    with open_corpus(tmp_path / "parts" / "both.h5") as opened:
        assert (opened[0].workload, opened[0].accelerator, opened[0].split) == (DENSE, ULTRA96, "both")
    verify_corpus(tmp_path / "parts")
    with pytest.raises(CorpusError, match="already"):
        split_corpus(folder, tmp_path / "parts", [listed])
    assert split_corpus(folder, tmp_path / "one", [listed]) == {
        "train": 2,
        "workloads": 2,
        "accelerators": 0,
        "both": 0,
    }
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["train.h5", "workloads.h5"]


def test_write_refuses_what_does_not_fit(tmp_path):
    path = tmp_path / "a.h5"
    task = make_task()
    for bad, message in (
        ([], "no tasks"),
        ([task, task], "twice"),
        ([dataclasses.replace(task, busy=task.busy[:, :2])], "busy"),
        ([dataclasses.replace(task, cycles=np.abs(task.cycles))], "validity"),
        ([dataclasses.replace(task, reason=task.reason + np.uint8(200))], "unknown reason"),
        ([dataclasses.replace(task, values=task.values.astype(np.int64) << 32)], "32 bits"),
        ([dataclasses.replace(task, split="a name that is too long")], "split"),
    ):
        with pytest.raises(CorpusError, match=message):
            write_corpus(path, bad)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CorpusError, match="No space left on device; free some space"):
        write_corpus(tmp_path / "a.h5", [make_task()])
    assert list(tmp_path.iterdir()) == []


def test_duplicate_schedules_fail_verification(tmp_path):
    task = make_task()
    values = task.values.copy()
    values[1] = values[0]
    write_corpus(tmp_path / "a.h5", [dataclasses.replace(task, values=values)])
    with pytest.raises(CorpusError, match="a schedule twice"):
        verify_corpus(tmp_path / "a.h5")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated(folder, keep):
    path = folder / "shard-00001.h5"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CorpusError):
        verify_corpus(folder)


def test_any_flipped_byte_is_found_or_harmless(folder, tasks):
    path = folder / "shard-00000.h5"
    data = path.read_bytes()
    found = 0
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 150):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            verify_corpus(path)
        except CorpusError:
            found += 1
        else:
            with open_corpus(path) as opened:
                assert all(same(a, b) for a, b in zip(opened, tasks[:2], strict=True))
    assert found > 10


def edit(path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replace(name, **settings):
    def change(file) -> None:
        del file[name]
        file.create_dataset(name, **settings)

    return change


def attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def link(file) -> None:
    del file["samples/cycles"]
    file["samples/cycles"] = h5py.ExternalLink("elsewhere.h5", "/cycles")


def external(file) -> None:
    del file["samples/cycles"]
    file.create_dataset("samples/cycles", (50,), "<i8", external=[("elsewhere.bin", 0, 400)])


def bump(name, row=0):
    def change(file) -> None:
        file[name][row] = file[name][row] + 7

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute("format", "other"), "not a corpus"),
        (attribute("schema", 2), "upgrade"),
        (attribute("schema", 0), "collect it anew"),
        (attribute("schema", "one"), "schema"),
        (attribute("reasons_version", 99), "upgrade"),
        (attribute("knobs", "[1]"), "knob names"),
        (attribute("knobs", "not json"), "damaged"),
        (attribute("knobs", '["x", "y"]'), "checksum"),
        (attribute("sha256", "0" * 64), "checksum"),
        (lambda file: file.__delitem__("tasks/id"), "tasks/id"),
        (replace("samples/cycles", data=np.zeros(50, np.float64)), "foreign"),
        (replace("samples/cycles", data=np.zeros(49, np.int64)), "length"),
        (replace("tasks/offsets", data=np.array([0, 60, 50])), "offsets"),
        (replace("tasks/workload", data=np.array([0, 5], np.int32)), "outside its table"),
        (replace("workloads", data=["{"], dtype=h5py.string_dtype()), "broken"),
        (replace("accelerators", data=["{}", "[]"], dtype=h5py.string_dtype()), "broken"),
        (bump("samples/cycles", 3), "checksum|validity"),
        (bump("samples/values", 3), "checksum"),
        (bump("samples/sampler", 3), "unknown"),
        (link, "no dataset"),
        (external, "outside the file"),
    ],
)
def test_broken_and_foreign_files(folder, change, message):
    path = folder / "shard-00000.h5"
    edit(path, change)
    with pytest.raises(CorpusError, match=message):
        verify_corpus(path)


def test_not_a_corpus(tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(CorpusError, match="not an HDF5 file"):
        open_corpus(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CorpusError, match="not a corpus"):
        open_corpus(tmp_path / "other.h5")
    with pytest.raises(CorpusError, match="No such file"):
        open_corpus(tmp_path / "none.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no corpus files"):
        open_corpus(tmp_path / "empty")
