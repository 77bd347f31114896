from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest

from oneshot_ml2.common import resources
from oneshot_ml2.common.errors import OneShotError, OneShotWarning
from oneshot_ml2.evaluation import optimum, tasks
from oneshot_ml2.evaluation.tasks import FAILURE, NONE
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.registry import backend
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.nest import make_nest
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.lists import read_workloads
from oneshot_ml2.workload.max_pool2d import MaxPool2d

PYNQ, HLS = Accelerator.load("pynq"), Accelerator.load("pynq-hls")
# Small enough for a search of a second.
TINY = Conv2d(1, 16, 4, 4, 16, 1, 1)
OTHER = Conv2d(1, 16, 5, 4, 32, 1, 1)
# Its kernel fits into no SRAM.
ILLEGAL = Conv2d(1, 16, 33, 33, 16, 33, 33)
VERSION = backend("full").SPACE_VERSION


def entry(workload: Workload, chip: Accelerator = PYNQ, **more: Any) -> dict[str, Any]:
    described = {"workload": workload.to_dict(), "accelerator": json.loads(chip.to_json())}
    return described | {"accelerator_name": chip.name, "t_star": None, "best_found": None} | more


def written(folder: Path, *entries: dict[str, Any], **head: Any) -> Path:
    path = folder / "tasks.json"
    path.write_text(json.dumps({"space_version": VERSION} | head | {"tasks": list(entries)}))
    return path


@pytest.fixture(scope="module")
def t_star() -> int:
    return optimum.find_optimum(tasks.Task(networks.Layer("tiny", TINY), PYNQ, "pynq"), 1e9).best


def test_tasks_are_read_as_they_were_ever_written(tmp_path):
    # Without groups, and an accelerator with its required keys alone.
    old = {"op": "conv2d", "n": 1, "c": 16, "h": 4, "w": 4, "k": 16, "r": 1, "s": 1, "stride": [1, 1]}
    sizes = ("LOG_BATCH", "LOG_BLOCK", *(f"LOG_{memory}_BUFF_SIZE" for memory in ("UOP", "INP", "WGT", "ACC")))
    few = {key: value for key, value in json.loads(PYNQ.to_json()).items() if key in sizes}
    named = {"name": "shard", "config": json.loads(HLS.to_json())}
    path = written(
        tmp_path,
        entry(TINY, id="a", group="g", t_star=7, best_found=8.0, notes={"x": [math.nan]}),
        {"workload": old | {"epilogue": TINY.epilogue.to_dict(), "name": "l", "count": 2}, "accelerator": few},
        {"id": 9, "workload": TINY.to_dict(), "accelerator": named, "t_star": -1, "status": "who knows"},
        who="knows",
    )
    first, second, third = tasks.read_given(path)
    assert (first.id, first.group, first.t_star, first.best_found) == ("a", "g", 7, 8.0)
    assert (first.task.workload, first.task.accelerator, first.task.accelerator.name) == (TINY, PYNQ, "pynq")
    assert (second.id, second.task.workload, second.t_star) == (2, TINY, None)
    assert second.task.accelerator == Accelerator.from_json(few) and second.group == third.group
    assert (third.id, third.task.accelerator, third.task.accelerator.name, third.t_star) == (9, HLS, "shard", None)


def test_figures_of_another_space_are_not_believed(tmp_path):
    pool = MaxPool2d(1, 16, 4, 4, 2, 2)
    for version in (1, VERSION + 1, None, str(VERSION), True):
        path = written(tmp_path, *(entry(one, t_star=7, best_found=8) for one in (TINY, pool)), space_version=version)
        assert {(one.t_star, one.best_found) for one in tasks.read_given(path)} == {(None, None)}
    # Version 3 changed max pooling alone.
    given = {}
    for version in (2, 3):
        path = written(tmp_path, *(entry(one, t_star=7, best_found=8) for one in (TINY, pool)), space_version=version)
        given[version] = [(one.t_star, one.best_found) for one in tasks.read_given(path)]
    assert given == {2: [(7, 8), (None, None)], 3: [(7, 8), (7, 8)]}


def test_tables_are_of_the_version_that_last_changed_a_workload():
    row = optimum.Task(networks.Layer("tiny", TINY), PYNQ, "pynq")
    pool = dataclasses.replace(row, layer=networks.Layer("pool", MaxPool2d(1, 16, 4, 4, 2, 2)))
    assert row.version.startswith("full-2-") and pool.version.startswith("full-3-")
    assert row.version.split("-")[2] == pool.version.split("-")[2]


def test_a_frozen_set_is_a_file_of_tasks():
    path = resources.find("evaluation", "outside.json")
    given = tasks.read_given(path)
    assert [one.task for one in given] == optimum.read_tasks(path)
    assert {one.group for one in given} == {"outside"} and len({one.id for one in given}) == len(given)


def test_unknown_keys_of_workloads_are_ignored_and_told(tmp_path):
    odd = TINY.to_dict() | {"strides": 2}
    odd["epilogue"] = odd["epilogue"] | {"gain": 1}
    with pytest.warns(OneShotWarning, match=r"ignored: epilogue\.gain, strides"):
        (one,) = tasks.read_given(written(tmp_path, entry(TINY) | {"workload": odd}))
    assert one.task.workload == TINY


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"workload": TINY.to_dict() | {"op": "conv9d"}}, "conv9d"),
        ({"workload": TINY.to_dict() | {"k": 0}}, "k is 0"),
        ({"workload": "resnet18.0"}, "workload is 'resnet18.0'"),
        ({"accelerator": {"LOG_BLOCK": 4}}, "missing LOG_BATCH"),
        ({"accelerator": json.loads(PYNQ.to_json()) | {"BUS_BITS": 96}}, "BUS_BITS is 96"),
        ({"accelerator": None}, "accelerator is None"),
        ({"t_star": "12"}, "t_star is '12'"),
        ({"best_found": True}, "best_found is True"),
        ({"group": 3}, "group is 3"),
    ],
)
def test_bad_tasks_are_named(tmp_path, change, why):
    path = written(tmp_path, entry(TINY, id="good"), entry(TINY, id="bad") | change)
    with pytest.raises(OneShotError) as caught:
        tasks.read_given(path)
    text = str(caught.value)
    assert "task 'bad'" in text and why in text and "\n" not in text


@pytest.mark.parametrize("content", ["[]", "{}", '{"tasks": {}}', '{"tasks": [1]}', '{"tasks": []}'])
def test_files_without_tasks_are_refused(tmp_path, content):
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(OneShotError, match=r"f\.json: .*tasks"):
        tasks.read_given(tmp_path / "f.json")


def evaluated(run_command: Any, path: Path, *more: Any) -> dict[str, Any]:
    code, text, err = run_command("evaluate", "--tasks", path, "--out", path.parent / "e.json", "--json", *more)
    assert (code, err) == (0, "")
    return json.loads(text)


def test_the_command_judges_tasks(tmp_path, run_command, monkeypatch, t_star):
    def pick(workload, accelerator, weights):
        if workload == OTHER:
            raise ZeroDivisionError("of the pick")
        return real(workload, accelerator, weights)

    real = picking.pick
    monkeypatch.setattr(picking, "pick", pick)
    path = written(
        tmp_path,
        entry(TINY, id="known", group="one", t_star=t_star),
        entry(TINY, id="slow", group="one", t_star=t_star - 1),
        entry(OTHER, id="fails", group="two", t_star=100),
        entry(ILLEGAL, id="illegal", group="two", status="no legal schedule"),
        entry(TINY, HLS, id="hls", group="three"),
    )
    found = evaluated(run_command, path)
    rows = {row["id"]: row for row in found["tasks"]}
    assert list(rows) == ["known", "slow", "fails", "illegal", "hls"] and list(found["groups"]) == [
        "one",
        "two",
        "three",
    ]
    picked = real(TINY, PYNQ)
    cycles = int(picked.space.measure(np.array([picked.index])).cycles[0])
    known = rows["known"]
    assert (known["quality"], known["t_star"], known["cycles"]) == (t_star / cycles, t_star, cycles)
    assert (known["proven"], known["source"], known["predicted"]) == (True, "network", picked.predicted_cycles)
    assert rows["slow"]["quality"] == (t_star - 1) / cycles
    assert (rows["fails"]["quality"], rows["fails"]["source"]) == (0.0, FAILURE) and "pick" in rows["fails"]["problem"]
    assert (rows["illegal"]["quality"], rows["illegal"]["source"]) == (None, NONE)
    assert rows["hls"]["proven"] and rows["hls"]["quality"] > 0.3
    one, two, every = found["groups"]["one"], found["groups"]["two"], found["all"]
    assert (
        set(one) == {"tasks", "geomean", "worst", "share_95", "failures", "mape", "within_1", "within_2"} == set(every)
    )
    assert one["tasks"] == 2 and one["geomean"] == pytest.approx((t_star * (t_star - 1)) ** 0.5 / cycles)
    assert one["mape"] == pytest.approx(abs(picked.predicted_cycles - cycles) / cycles)
    assert (two["tasks"], two["failures"], two["geomean"], two["worst"]) == (1, 1, pytest.approx(0.01), 0.0)
    assert two["mape"] is None
    assert (every["tasks"], every["failures"]) == (4, 1)
    assert json.loads((tmp_path / "e.json").read_text()) == found and not (tmp_path / "e.json.part").exists()
    code, text, _ = run_command("evaluate", "--tasks", path, "--out", tmp_path / "e.json")
    assert code == 0 and "1 of 5 tasks have no legal schedule" in text and "ZeroDivisionError: of the pick" in text


def test_what_a_file_claims_and_a_pick_beats_is_searched_once(tmp_path, run_command, monkeypatch, t_star):
    searched = []
    real = optimum.find_optimum
    monkeypatch.setattr(optimum, "find_optimum", lambda task, *rest: searched.append(task.id) or real(task, *rest))
    path = written(tmp_path, entry(TINY, id=1, t_star=10 * t_star), entry(TINY, id=2))
    for _ in range(2):
        rows = evaluated(run_command, path)["tasks"]
        assert [(row["t_star"], row["proven"]) for row in rows] == [(t_star, True)] * 2
    assert len(searched) == 1
    assert len(optimum.read_optima(tmp_path / "e.json.optima.jsonl")) == 1
    # One that did not close counts for searches that are as short, and no longer ones.
    (row,) = optimum.read_optima(tmp_path / "e.json.optima.jsonl").values()
    cut = dataclasses.replace(row, closed=False, seconds=5.0, best=1, bound_at_stop=1, best_timed=row.best_timed + 9)
    (tmp_path / "e.json.optima.jsonl").write_text(json.dumps({"schema": 1} | dataclasses.asdict(cut)) + "\n")
    path = written(tmp_path, entry(TINY, best_found=t_star - 2), entry(TINY))
    rows = evaluated(run_command, path, "--search", 5)["tasks"]
    assert [row["proven"] for row in rows] == [False, False] and len(searched) == 1
    assert rows[0]["t_star"] == t_star - 2 and rows[1]["t_star"] == min(rows[1]["cycles"], row.best_timed + 9)
    rows = evaluated(run_command, path, "--search", 6)["tasks"]
    assert rows[1]["t_star"] == t_star and rows[1]["proven"] and len(searched) == 2


def test_a_schedule_that_a_file_has_makes_a_pick_without_one_a_failure():
    (given,) = [tasks.Given(1, "g", tasks.Task(networks.Layer("x", ILLEGAL), PYNQ, "pynq"), best_found=5)]
    row = tasks._row(given, tasks.picked(given.task, picking.predictor_of(None)), None)
    assert (row.outcome.source, row.t_star, row.proven, row.quality) == (FAILURE, 5, False, 0.0)


def test_interrupted_picks_go_on(tmp_path, run_command, monkeypatch, t_star):
    real, seen = tasks.picked, []

    def stop_at_second(task, network):
        seen.append(task.id)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(task, network)

    monkeypatch.setattr(tasks, "picked", stop_at_second)
    path = written(tmp_path, entry(TINY, id="a", t_star=t_star), entry(OTHER, id="b", t_star=1))
    assert run_command("evaluate", "--tasks", path, "--out", tmp_path / "e.json")[0] != 0
    assert not (tmp_path / "e.json").exists()
    found = evaluated(run_command, path)
    assert [row["id"] for row in found["tasks"]] == ["a", "b"] and len(seen) == 3


def test_a_number_of_tasks_is_no_file(tmp_path, run_command):
    code, _, err = run_command("evaluate", "--tasks", 5)
    assert code == 2 and "--limit 5" in err and err.count("\n") == 1
    assert "absent.json" in run_command("evaluate", "--tasks", tmp_path / "absent.json")[2]
    assert "not allowed with" in run_command("evaluate", "--tasks", "f.json", "--sets", "unseen")[2]
    assert "--search" in run_command("evaluate", "--search", "nan")[2]
    path = written(tmp_path, entry(TINY))
    assert "--peers" in run_command("evaluate", "--tasks", path, "--peers", tmp_path)[2]


@pytest.mark.slow
def test_fresh_tasks_are_new_legal_and_the_same_for_a_seed(tmp_path, monkeypatch):
    datasets = Path(__file__).parent.parent.parent / "datasets"
    monkeypatch.syspath_prepend(str(datasets))
    fresh = importlib.import_module("make_fresh")
    entries = fresh.fresh(5, {"within": 3, "beyond": 3, "hls": 1})
    given = tasks.read_given(written(tmp_path, *entries))
    assert [one.group for one in given] == ["within"] * 3 + ["beyond"] * 3 + ["hls"]
    assert entries[:2] == fresh.fresh(5, {"within": 2}) and entries[0] != fresh.fresh(6, {"within": 1})[0]
    network = picking.predictor_of(None)
    lists = [read_workloads(datasets / f"workloads/{name}.toml") for name in (*fresh.TRAINED_LISTS, "autotvm")]
    trained = [workload for workloads in lists for workload in workloads]
    for one in given:
        workload, chip = one.task.workload, one.task.accelerator
        assert not any(other.op == workload.op and other.shape_key == workload.shape_key for other in trained)
        own = make_nest(workload, chip)
        assert not any(own == make_nest(other, chip) for other in trained[::7])
        assert len(picking.legal_by_estimate(one.task.space(), 1)) == 1
        assert bool(network.outside(one.task.space())) == (one.group != "within")
        assert (chip.design == "hls") == (one.group == "hls")
