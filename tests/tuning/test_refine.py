"""`oneshot-ml2 refine`: layers that share a budget, never get worse, and land in a schedules file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCommand
from networks import random_network

from oneshot_ml2.common.errors import DeviceError, ModelError, OneShotError
from oneshot_ml2.devices.board_files import LOWERING, TIMED, WALL, BoardFile, BoardLayer, Record
from oneshot_ml2.devices.log import LogDevice
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.devices.simulated import SimulatorDevice
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning import refine
from oneshot_ml2.tuning.log import LogError, read_log
from oneshot_ml2.tuning.measure import Limits
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload import lists
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.lists import Layer

CHIP = Accelerator.load("pynq")
LAYERS = [
    Layer("a", Conv2d(1, 16, 6, 6, 32, 3, 3, padding=1), 2),
    Layer("b", Dense(1, 64, 48), 1),
    Layer("a again", Conv2d(1, 16, 6, 6, 32, 3, 3, padding=1), 1),
]
NETWORK = random_network(trusting=2.0)


def go(trials: int = 60, **options: object) -> list[refine.Refined]:
    return refine.refine(LAYERS, CHIP, SimulatorDevice(), trials, network=NETWORK, **options)  # type: ignore[arg-type]


def test_layers_share_the_budget_and_never_get_worse() -> None:
    results = go(80)
    assert [result.names for result in results] == [("a", "a again"), ("b",)]
    assert [result.count for result in results] == [3, 1]
    assert sum(len(result.history) for result in results) == 80
    # The first trial is the schedule that the layer has; the larger one can gain more.
    assert len(results[0].history) > len(results[1].history) >= 1
    for result in results:
        assert result.start is not None
        assert result.history.outcomes.indices[0] == result.space.index_of(result.start)
        assert result.bound <= result.best_cycles <= result.start_cycles
        assert result.history.invalid_rate == 0.0
    assert results[0].improved
    text = refine.table(results)
    assert "a +1" in text
    assert "gained" in text


def test_schedules_that_layers_have_come_first() -> None:
    space = ScheduleSpace(LAYERS[0].workload, CHIP)
    given = space.schedule(int(next(i for i in space.table() if space.validity(np.array([i]))[0] == 0)))
    results = go(20, starts={"a": given})
    assert results[0].start == given
    assert results[0].start_cycles == space.measure(np.array([space.index_of(given)])).cycles[0]


def test_a_log_for_each_layer_from_which_a_run_goes_on(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    results = go(60, logs=whole)
    assert sorted(path.name for path in whole.iterdir()) == ["a.jsonl", "b.jsonl"]
    go(23, logs=part)
    go(60, logs=part)
    for name in ("a.jsonl", "b.jsonl"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()
    assert len(read_log(whole / "a.jsonl")) == len(results[0].history)
    with pytest.raises(LogError, match="another run"):
        go(60, logs=whole, seed=1)


def test_too_few_trials_are_refused() -> None:
    with pytest.raises(OneShotError, match="at least one for each"):
        go(1)


def test_another_space_starts_from_nothing() -> None:
    layers = [Layer("c", Conv2d(1, 32, 14, 14, 32, 1, 1), 1)]
    (result,) = refine.refine(layers, CHIP, SimulatorDevice(), 30, tuner="ml2-scratch", kind="autotvm")
    assert result.start is None
    assert result.start_cycles == -1
    assert result.improved


@pytest.mark.parametrize("tuner", ["random", "validity+random", "autotvm", "ml2-scratch", "ml2-warm", "ml2-frozen"])
def test_of_a_table_of_measurements_only_those_are_proposed(tuner: str) -> None:
    board = Accelerator.load("pynq-hls")
    layer = Layer("c", Conv2d(1, 64, 14, 14, 64, 3, 3, padding=1))
    space = ScheduleSpace(layer.workload, board, "autotvm")
    tried = np.sort(np.random.default_rng(3).permutation(space.table())[:70])
    truth = space.measure(tried)
    records = [
        Record(i, tuple(space.values(np.array([i]))[0].tolist()), TIMED, {WALL: cycles * 1e-8})
        if cycles > 0
        else Record(i, (), LOWERING, {})
        for i, cycles in zip(tried.tolist(), truth.cycles.tolist())
    ]
    device = LogDevice(BoardFile("b", "pynq", {}, (BoardLayer("c", "pynq", space.workload, tuple(records)),)))
    limits = Limits(checked=False)
    (result,) = refine.refine([layer], board, device, 100, tuner=tuner, kind="autotvm", limits=limits)
    # All of the table, once each, then it ends; what does not lower is a trial, too, unless it was lowered before.
    expected = tried[truth.cycles > 0] if tuner.startswith("validity+") else tried
    assert np.array_equal(np.sort(result.history.outcomes.indices), expected)
    assert result.best_cycles == truth.cycles[truth.cycles > 0].min()
    with pytest.raises(DeviceError, match="refine --space autotvm"):
        refine.refine([layer], board, device, 10, tuner="random", network=NETWORK)


def test_a_device_on_which_nothing_runs_keeps_the_schedules() -> None:
    device = open_device("perturbed:small-uop:1")
    device.differences = device.differences.__class__(uop_share=0.0)  # type: ignore[attr-defined]
    results = refine.refine(LAYERS[:1], CHIP, device, 20, network=NETWORK, limits=Limits(checked=True))
    assert results[0].best is None
    assert results[0].entry("a")["source"] == "kept"
    assert results[0].entry("a")["schedule"] == dict(results[0].start.knobs)  # type: ignore[union-attr]
    assert "none valid" in refine.table(results)


# The command ---------------------------------------------------------------------------------
@pytest.fixture
def weights(tmp_path: Path) -> Path:
    NETWORK.save(tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.fixture
def workloads(tmp_path: Path) -> Path:
    path = tmp_path / "layers.toml"
    path.write_text(
        '[[workload]]\nname = "mine"\nop = "conv2d"\nn = 1\nc = 16\nh = 6\nw = 6\nk = 32\nr = 3\ns = 3\n'
        "stride = [1, 1]\npadding = [1, 1, 1, 1]\n[[workload]]\n"
        'name = "other"\nop = "dense"\nn = 1\nc = 64\nk = 48\n'
    )
    return path


def test_command(weights: Path, workloads: Path, tmp_path: Path, run_command: RunCommand) -> None:
    out_file = tmp_path / "better.json"
    argv = ("refine", "--workload", workloads, "--weights", weights, "--trials", 30, "-o", out_file)
    code, out, err = run_command(*map(str, argv), "--logs", tmp_path / "logs")
    assert (code, err) == (0, "")
    assert "gained" in out
    written = json.loads(out_file.read_text())
    assert [entry["layer"] for entry in written["layers"]] == ["mine", "other"]
    for entry in written["layers"]:
        space = ScheduleSpace(lists.Layer(entry["layer"], LAYERS[0].workload).workload, CHIP)
        if entry["layer"] == "mine":
            schedule = Schedule("full", tuple(entry["schedule"].items()))
            assert space.measure(np.array([space.index_of(schedule)])).cycles[0] == entry["measured_cycles"]
    code, out, _ = run_command(*map(str, argv), "--json", "--layers", "mine")
    assert code == 0
    assert [row["layers"] for row in json.loads(out)] == [["mine"]]


def test_bad_arguments(weights: Path, workloads: Path, tmp_path: Path, run_command: RunCommand) -> None:
    base = ["refine", "--workload", str(workloads), "--weights", str(weights)]
    for argv, says in (
        (["refine"], "--workload FILE"),
        ([*base, "--trials", "0"], "--trials is 0"),
        ([*base, "--batch", "0"], "--batch is 0"),
        ([*base, "--failures", "-1"], "--failures is -1"),
        ([*base, "--timeout", "0"], "--timeout is 0"),
        ([*base, "--tuner", "magic"], "ml2-warm"),
        ([*base, "--device", "perturbed:magic"], "slow-memory"),
        ([*base, "--layers", "nobody"], "mine"),
        ([*base, "-o", str(tmp_path / "none" / "x.json")], "no folder"),
        ([*base, "--space", "autotvm"], "know the schedule space 'full', not 'autotvm'"),
    ):
        code, _, err = run_command(*argv)
        assert code == 2, argv
        assert says in err, err
        assert err.count("\n") == 1


def test_a_compiled_models_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"schedules\.json"):
        refine.read_compiled(tmp_path)
    space = ScheduleSpace(LAYERS[0].workload, CHIP)
    entry = {
        "layer": "a",
        "workload": LAYERS[0].workload.to_dict(),
        "space": "full",
        "space_version": 2,
        "schedule": dict(space.schedule(int(space.table()[0])).knobs),
        "source": "network",
    }
    (tmp_path / "schedules.json").write_text(json.dumps({"schema": 1, "layers": [entry]}))
    with pytest.raises(ModelError, match="no compiled model"):
        refine.read_compiled(tmp_path)
    chip = json.loads(CHIP.to_json()) | {"name": "pynq"}
    (tmp_path / "manifest.json").write_text(json.dumps({"accelerator": chip}))
    layers, found, starts = refine.read_compiled(tmp_path)
    assert (layers[0].workload, found, found.name) == (LAYERS[0].workload, CHIP, "pynq")
    assert starts["a"] == space.schedule(int(space.table()[0]))
