from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import networks
import numpy as np
import pytest

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.evaluation import optimum
from oneshot_ml2.evaluation.evaluate import SETS
from oneshot_ml2.evaluation.optimum import Optimum, Task
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.lists import Layer

PYNQ = Accelerator.load("pynq")
# Small enough that all of the space can be timed.
TINY = Conv2d(1, 32, 5, 4, 32, 3, 3, padding=1)


@pytest.fixture(scope="module")
def everything() -> tuple[ScheduleSpace, np.ndarray]:
    space = ScheduleSpace(TINY, PYNQ)
    return space, space.measure(space.table()).cycles


def test_the_search_finds_what_timing_everything_finds(everything):
    space, cycles = everything
    found = optimum.search(space, limit=1e9)
    assert found.closed
    assert found.best_timed == cycles[cycles > 0].min()
    assert cycles[space.table() == found.best_index][0] == found.best_timed
    # Not by timing everything.
    assert found.timed < len(cycles) / 2
    assert found.bound_at_stop >= found.best_timed


def test_where_it_starts_changes_its_length_and_nothing_else(everything):
    space, cycles = everything
    plain = optimum.search(space, limit=1e9)
    slow = space.table()[cycles == cycles.max()][:1]
    for first in (np.array([plain.best_index]), slow, np.empty(0, dtype=np.int64)):
        assert optimum.search(space, limit=1e9, first=first).best_timed == plain.best_timed


def test_a_search_out_of_time_gives_a_bound(everything):
    space, cycles = everything
    found = optimum.search(space, limit=0.0)
    assert not found.closed
    assert found.bound_at_stop <= cycles[cycles > 0].min()
    row = optimum.find_optimum(task(), limit=0.0)
    assert not row.closed
    assert row.best == row.bound_at_stop <= cycles[cycles > 0].min()


def task(workload: Conv2d = TINY, name: str = "tiny") -> Task:
    return Task(Layer(name, workload, 2), PYNQ, "accelerators/pynq.json")


def test_a_row_tells_of_the_space(everything):
    space, cycles = everything
    row = optimum.find_optimum(task(), limit=1e9)
    valid = cycles[cycles > 0]
    assert (row.closed, row.best, row.size, row.count) == (True, valid.min(), len(cycles), 2)
    sampled = cycles[np.isin(space.table(), optimum.sample_of(space))]
    assert np.array_equal(np.sort(sampled), np.sort(row.sample_cycles))
    assert row.median_ratio == row.best / np.median(row.valid_cycles)
    near = dataclasses.replace(row, sample_cycles=[row.best, -1, row.best * 104 // 100, 3 * row.best, 4 * row.best])
    assert near.near_share == 0.5
    none = dataclasses.replace(row, sample_cycles=[-1, -1])
    assert np.isnan(none.median_ratio) and np.isnan(none.near_share)


def test_tables_resume_and_replace_rows_of_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tasks = [task(), task(networks.SMALL, "small")]
    out = tmp_path / "optima" / "t.jsonl"
    assert len(list(optimum.search_all(tasks[:1], out, 60, 1))) == 1
    (second,) = optimum.search_all(tasks, out, 60, 1)
    assert second.workload == "small"
    assert list(optimum.search_all(tasks, out, 60, 1)) == []
    rows = optimum.read_optima(out)
    assert set(rows) == {t.id for t in tasks}
    monkeypatch.setattr(optimum, "version", lambda *_: "full-next")
    assert len(list(optimum.search_all(tasks, out, 60, 1))) == 2
    again = optimum.read_optima(out)
    assert {row.version for row in again.values()} == {"full-next"}
    assert [again[t.id].best for t in tasks] == [rows[t.id].best for t in tasks]


def test_the_shipped_sets_are_large_and_held_out():
    root = Path(__file__).parent.parent.parent / "datasets"
    from oneshot_ml2.workload.lists import read_workloads

    def keys(*lists: str) -> set[object]:
        return {(w.op, w.shape_key) for name in lists for w in read_workloads(root / f"workloads/{name}.toml")}

    trained, excluded = keys("train", "operators"), keys("excluded", "operators_excluded")
    folders = ("train", "hls")
    chips = {Accelerator.load(path) for name in folders for path in (root / "accelerators" / name).glob("*.json")}
    unseen = {}
    for name in SETS:
        tasks = optimum.read_tasks(root / f"evaluation/{name}.json")
        assert len({t.id for t in tasks}) == len(tasks) >= (48 if name == "resnet18_hls" else 60)
        assert not (trained - excluded) & {(t.workload.op, t.workload.shape_key) for t in tasks}
        seen = [t.accelerator in chips for t in tasks]
        assert not any(seen) if name in ("unseen", "outside") or name.endswith("_hls") else all(seen)
        if not any(seen):
            unseen[name] = {t.accelerator for t in tasks}
    boards = unseen.pop("resnet18_hls")
    assert boards == {Accelerator.load(f"{name}-hls") for name in ("pynq", "ultra96", "zcu104", "axu5evb")}
    assert all(len(accelerators) >= 8 for accelerators in unseen.values()) and len(unseen) == 3
    trained = {chip for chip in chips if chip.design == "chisel"}
    most = [max(getattr(chip, name) for chip in trained) for name in ("block", "bus_bits", "memory_latency")]
    for chip in unseen["outside"]:
        assert chip.block > most[0] or chip.bus_bits > most[1] or chip.memory_latency > most[2]


def test_the_networks_set_holds_their_own_layers():
    root = Path(__file__).parent.parent.parent / "datasets"
    tasks = optimum.read_tasks(root / "evaluation/networks.json")
    networks_of = [t.layer.name.partition(":")[2].partition(".")[0] for t in tasks]
    for name in ("resnet50", "mobilenet_v1", "mobilenet_v2", "vgg16", "bert_base"):
        assert networks_of.count(name) == 11
    chips = {Accelerator.load("pynq"), Accelerator.load("zcu104")}
    assert {t.accelerator for t in tasks} == chips
    mobile = [t.workload for t, name in zip(tasks, networks_of) if name.startswith("mobilenet")]
    windows = [work for work in mobile if isinstance(work, Conv2d) and work.r == 3]
    # Their 3x3 layers are depthwise but for the first, which reads three channels.
    assert all(work.groups == work.c or work.c == 3 for work in windows)
    assert sum(work.groups == work.c for work in windows) >= 6


@pytest.mark.parametrize("text", ["", "[]", '{"tasks": [{"workload": "x"}]}', '{"tasks": 3, "workloads": "w.toml"}'])
def test_foreign_files_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(OneShotError, match=r"set\.json|w\.toml"):
        optimum.read_tasks(path)


@pytest.mark.parametrize("line", ["{", "[]", '{"schema": 1}', '{"schema": 2}', '{"schema": 1, "task": "x", "more": 1}'])
def test_foreign_tables_are_refused(tmp_path: Path, line: str):
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(OneShotError, match=r"not a table of optima .*oneshot-ml2 optimum"):
        optimum.read_optima(path)
    with pytest.raises(OneShotError, match="not a table of optima"):
        optimum.read_optima(tmp_path / "absent.jsonl")


def test_rows_are_whole_json_lines(tmp_path: Path):
    out = tmp_path / "t.jsonl"
    list(optimum.search_all([task()], out, 60, 1))
    (line,) = out.read_text().splitlines()
    assert set(json.loads(line)) == {"schema", *(field.name for field in dataclasses.fields(Optimum))}


def test_a_damaged_table_keeps_its_whole_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "t.jsonl"
    tasks = [task(), task(networks.SMALL, "small")]
    list(optimum.search_all(tasks, out, 60, 1))
    first, second = out.read_text().splitlines(keepends=True)
    # A cut last line, as a killed search leaves it, is no row and no error.
    out.write_text(first + second[:90])
    assert set(optimum.read_optima(out)) == {tasks[0].id}
    (again,) = optimum.search_all(tasks, out, 60, 1)
    assert again.task == tasks[1].id
    assert len(optimum.read_optima(out)) == len(out.read_text().splitlines()) == 2
    assert capsys.readouterr().err == ""
    # Damage within loses its line alone, and the table as it was is kept.
    out.write_text(first[:90] + second + "what is this?\n")
    assert set(optimum.read_optima(out)) == {tasks[1].id}
    assert "lines 1, 2 skipped" in capsys.readouterr().err
    (again,) = optimum.search_all(tasks, out, 60, 1)
    assert again.task == tasks[0].id
    assert (tmp_path / "t.jsonl.damaged").read_text() == first[:90] + second + "what is this?\n"
    assert set(optimum.read_optima(out)) == {t.id for t in tasks}


@pytest.mark.parametrize(
    ("name", "value"),
    [("best", 10**30), ("best", 1.5), ("timed", True), ("closed", 1), ("seconds", float("inf")), ("seconds", -7.0),
     ("sample_cycles", 5), ("sample_cycles", [1e9]), ("sample_cycles", [-2]), ("task", 7), ("best_index", None)],
)  # fmt: skip
def test_impossible_figures_are_no_rows(tmp_path: Path, name: str, value: object):
    row = optimum._row(optimum.find_optimum(task(), 0.0))
    (tmp_path / "t.jsonl").write_text(json.dumps(row | {name: value}) + "\n")
    with pytest.raises(OneShotError, match="not a table of optima"):
        optimum.read_optima(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    assert len(optimum.read_optima(tmp_path / "t.jsonl")) == 1


def test_one_search_of_a_table_at_a_time(tmp_path: Path):
    out = tmp_path / "t.jsonl"
    search = optimum.search_all([task(), task(networks.SMALL, "small")], out, 60, 1)
    next(search)
    with pytest.raises(OneShotError, match="another process is at work"):
        list(optimum.search_all([task()], out, 60, 1))
    assert len(list(search)) == 1
    assert len(optimum.read_optima(out)) == 2
