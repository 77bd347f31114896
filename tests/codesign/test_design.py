"""The search for an accelerator, its files, its page and its command."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Browse, RunCommand
from task_networks import drawn_network

import oneshot_ml2
from oneshot_ml2.codesign import confirm as confirming
from oneshot_ml2.codesign import design, sweep
from oneshot_ml2.codesign.design import Codesign, codesign, write_designs
from oneshot_ml2.codesign.front import share_of
from oneshot_ml2.codesign.grid import members
from oneshot_ml2.codesign.models import Model, of_images, read_model
from oneshot_ml2.codesign.page import page
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.breakdown import PARTS
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer

CONV = Conv2d(1, 32, 8, 8, 32, 3, 3, 1, 1, 1, Epilogue(bias=True, shift=6, clip=(0, 127)))
DENSE = Dense(1, 128, 100, Epilogue(shift=6))
EVIL = "</script><script>document.documentElement.dataset.pwned = 1</script>"
MODEL = Model(EVIL, (Layer("a", CONV, 2), Layer("b", DENSE)))
OTHER = Model("other", (Layer("c", CONV),), weight=2.0)
GRID = list(
    members(
        "hls", {"block": (3, 4), "batch": (0, 1), "bus": (6,), "uop": (11,), "inp": (7, 9), "wgt": (6, 8), "acc": ()}
    )
)
NETWORK = drawn_network()


@pytest.fixture(scope="module")
def found() -> Codesign:
    return codesign([MODEL, OTHER], grid=GRID, network=NETWORK, best=3, verify=True)


def test_the_result_holds_together(found: Codesign) -> None:
    assert found.grid == len(GRID) and found.legal == len(found.members)
    values = [one.value for one in found.members]
    assert values == sorted(values)
    for one in found.members:
        clock = one.accelerator.clock_mhz * 1000
        assert one.ms == pytest.approx((one.cycles[EVIL] + 2 * one.cycles["other"]) / clock)
        assert one.taken.bram36 <= found.budget.bram36
        assert ("TARGET", '"pynq"') in one.accelerator.extra
    for one in found.front:
        assert not any(
            other.ms <= one.ms and other.taken.bram36 < one.taken.bram36 and other.taken.dsp <= one.taken.dsp
            for other in found.members
        )


def test_the_best_are_confirmed_by_real_picks(found: Codesign) -> None:
    assert [one.source for one in found.best] == ["simulated"] * 3
    assert {one.accelerator for one in found.best} == {one.accelerator for one in found.members[:3]}
    assert [one.ms for one in found.best] == sorted(one.ms for one in found.best)
    first = found.best[0]
    picks = [picking.pick(workload, first.accelerator) for workload in (CONV, DENSE)]
    cycles = [int(pick.space.measure(np.array([pick.index])).cycles[0]) for pick in picks]
    assert first.cycles == {EVIL: 2 * cycles[0] + cycles[1], "other": cycles[0]}
    assert sum(first.parts[EVIL].values()) == first.cycles[EVIL]
    assert set(first.parts["other"]) == set(PARTS)


def test_without_verify_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr(ScheduleSpace, "measure", fail)
    monkeypatch.setattr(confirming, "cost_of", fail)
    result = codesign(OTHER, grid=GRID[:4], network=NETWORK, best=2)
    assert [one.source for one in result.best] == ["picked"] * 2
    for one in result.best:
        assert one.cycles["other"] == pytest.approx(picking.pick(CONV, one.accelerator).predicted_cycles, abs=1)


def test_what_each_size_buys(found: Codesign) -> None:
    chip = found.best[0].accelerator
    assert set(found.sensitivity) == {"uop", "wgt", "inp+acc", "bus"}
    wgt = dict(found.sensitivity["wgt"])
    assert wgt[1 << chip.log_wgt_buff_size] == pytest.approx(
        next(one.ms for one in found.members if one.accelerator == chip)
    )
    assert len(found.sensitivity["uop"]) > 2


def test_the_json_is_what_the_documents_say(found: Codesign) -> None:
    data = json.loads(json.dumps(found.to_dict()))
    assert set(data) == {"grid", "legal", "seconds", "front", "best"}
    for entry in (*data["front"], *data["best"]):
        assert {"accelerator", "cycles", "ms", "bram36", "dsp", "lut"} <= set(entry)
        assert set(entry["cycles"]) == {EVIL, "other"}
        assert Accelerator.from_json(entry["accelerator"]).clock_mhz == 100


def test_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = codesign(OTHER, grid=GRID, network=NETWORK, best=2, folder=tmp_path)

    def fail(*args: Any) -> Any:
        raise AssertionError("done again")

    monkeypatch.setattr(design, "confirm", fail)
    monkeypatch.setattr(type(NETWORK), "least", fail)
    monkeypatch.setattr(design._Search, "sensitivity", lambda self, chosen: {})
    again = codesign(OTHER, grid=GRID, network=NETWORK, best=2, folder=tmp_path)
    assert dataclasses.replace(again, seconds=0, sensitivity={}) == dataclasses.replace(
        first, seconds=0, sensitivity={}
    )
    with pytest.raises(OneShotError, match="another run"):
        codesign(MODEL, grid=GRID, network=NETWORK, best=2, folder=tmp_path)


def test_an_interrupt_keeps_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = NETWORK.least, []

    def least(self: Any, workload: Workload, chips: Any) -> Any:
        calls.append(workload)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(workload, chips)

    monkeypatch.setattr(type(NETWORK), "least", least)
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        codesign(MODEL, grid=GRID, network=NETWORK, best=1, folder=tmp_path)
    lines = (tmp_path / "codesign.jsonl").read_text().splitlines()
    assert len(lines) == 3, "a header and two units"
    monkeypatch.undo()
    assert codesign(MODEL, grid=GRID, network=NETWORK, best=1, folder=tmp_path).legal == len(GRID)
    whole = (tmp_path / "codesign.jsonl").read_text().splitlines()
    assert whole[:3] == lines


def test_throughput_fills_the_batch() -> None:
    result = codesign(OTHER, grid=GRID, network=NETWORK, best=len(GRID), objective="throughput")
    latency = codesign(OTHER, grid=GRID, network=NETWORK, best=len(GRID))
    by_name = {one.accelerator.name: one for one in latency.members}
    for one in result.members:
        other = by_name[one.accelerator.name]
        if one.accelerator.batch == 1:
            assert one.ms == other.ms
        else:
            assert one.ms < other.ms
    assert OTHER.workloads(GRID[0], 4) == Counter({of_images(CONV, 4): 1})


def test_images_of_workloads() -> None:
    assert of_images(CONV, 3) == dataclasses.replace(CONV, n=3)
    assert of_images(DENSE, 2) == dataclasses.replace(DENSE, n=2)
    product = BatchMatmul(2, 3, 16, 16)
    assert of_images(product, 4) == dataclasses.replace(product, b=8)
    assert of_images(product, 1) is product


def test_objectives_rank_differently() -> None:
    area = codesign(OTHER, grid=GRID, network=NETWORK, best=1, objective="edp-like")
    assert [one.value for one in area.members] == sorted(one.value for one in area.members)
    for one in area.members:
        # All DSP blocks of the FPGA are taken, or the scarcest is another.
        assert one.value == pytest.approx(one.ms**2 * share_of(one.taken, area.fpga))
    assert area.members[0].value < min(one.ms**2 for one in area.members if one.accelerator.block < 16)


def test_a_clock_of_ones_own() -> None:
    slow = codesign(OTHER, grid=GRID, network=NETWORK, best=1, clock=50)
    fast = codesign(OTHER, grid=GRID, network=NETWORK, best=1, clock=200)
    assert slow.members[0].ms == pytest.approx(4 * fast.members[0].ms)
    assert slow.best[0].clock.source == "given"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"models": []}, "no model"),
        ({"models": [OTHER, OTHER]}, "a model twice"),
        ({"objective": "speed"}, "--objective"),
        ({"best": 0}, "--best"),
        ({"design": "opencl"}, "--design"),
        ({"fpga": "xc7z"}, "xc7z020"),
        ({"max_bram": 20.0}, "within the budget"),
        ({"weights": {"resnet": 2.0}}, "a weight of resnet"),
        ({"weights": {"other": -1.0}}, "weight of other"),
        ({"grid": [Accelerator.load("pynq").with_srams(4, 5, 9, 7)]}, "no accelerator of the grid"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(OneShotError, match=told):
        codesign(**({"models": OTHER, "grid": GRID, "network": NETWORK} | arguments))


def test_files_that_compile_takes(found: Codesign, tmp_path: Path) -> None:
    written = write_designs(found, tmp_path)
    assert Accelerator.load(tmp_path / "best.json") == found.best[0].accelerator
    for one in (*found.front, *found.best):
        path = tmp_path / "accelerators" / f"{one.accelerator.name}.json"
        assert path in written and Accelerator.load(path) == one.accelerator
    assert json.loads((tmp_path / "codesign.json").read_text()) == json.loads(json.dumps(found.to_dict()))


def test_the_page_is_self_contained(found: Codesign) -> None:
    text = page(found)
    assert EVIL not in text
    assert not re.search(r"(src|href)=[\"']?http", text)
    assert "default-src 'none'" in text


def test_a_browser_draws_the_page(found: Codesign, browse: Browse, tmp_path: Path) -> None:
    path = tmp_path / "codesign.html"
    path.write_text(page(found), encoding="utf-8")
    document = browse(path)
    assert document.count('class="front"') == len(found.front)
    assert document.count('class="other"') == len(found.members) - len(found.front)
    assert found.best[0].accelerator.name in document
    assert document.count('class="bar own"') == len(found.sensitivity)
    assert "LOG_BLOCK" in document and "GEMM" in document
    plain = dataclasses.replace(found, best=(), sensitivity={})
    path.write_text(page(plain), encoding="utf-8")
    assert "Not simulated" in browse(path)


def test_the_command(tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design, "load_tasks", lambda: NETWORK)
    layers = tmp_path / "mine.toml"
    layers.write_text('[[workload]]\nop = "dense"\nn = 1\nc = 64\nk = 48\n')
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps({"LOG_WGT_BUFF_SIZE": [15, 16], "LOG_BATCH": [0, 1], "LOG_UOP_BUFF_SIZE": 13}))
    out = tmp_path / "out"
    line = ["codesign", str(layers), "--grid", str(grid), "--design", "chisel", "--best", "2", "-o", str(out)]
    code, printed, _ = run_command(*line, "--weight", "mine=2")
    assert code == 0 and "mine cycles" in printed and "best.json" in printed
    assert {path.name for path in out.iterdir()} == {
        "accelerators", "best.json", "codesign.json", "codesign.jsonl", "codesign.html"
    }  # fmt: skip
    code, printed, _ = run_command(*line, "--weight", "mine=2", "--json")
    assert code == 0 and json.loads(printed)["grid"] == 4
    for bad in (["--weight", "x"], ["--weight", "mine=0"], ["--clock", "0"], ["--best", "0"], ["--fpga", "no"]):
        code, _, told = run_command(*line[:-2], *bad)
        assert code == 2 and len(told.strip().splitlines()) == 1


def test_it_is_called_by_the_packages_name() -> None:
    assert callable(oneshot_ml2.codesign)
    result = oneshot_ml2.codesign(OTHER, grid=GRID[:2], network=NETWORK, best=1)
    assert isinstance(result, oneshot_ml2.Codesign) and "BRAM36" in str(result)


def test_a_model_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[workload]]\nop = "dense"\nn = 1\nc = 64\nk = 48\ncount = 3\n')
    model = read_model(path)
    assert model.workloads(GRID[0]).total() == 3
    assert model.digest != dataclasses.replace(model, weight=2.0).digest
    with pytest.raises(OneShotError, match="weight"):
        read_model(path, weight=0.0)
