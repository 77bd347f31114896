"""`crosscheck` on an extract of our own table of TVM's space (tests/data/autotvm_rtl_extract.json names its origin)."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from oneshot_ml2.commands import crosscheck as crosscheck_command
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.metrics import kendall_tau
from oneshot_ml2.evaluation import crosscheck
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

EXTRACT = Path(__file__).parent.parent / "data" / "autotvm_rtl_extract.json"
NAMES = {
    "pad_innermost": Reason.PAD_INNERMOST,
    "copy_pattern": Reason.THREAD_SPLIT,
    "dma_2d_pattern": Reason.DMA_PATTERN,
    "sram_bound": Reason.SRAM_OVERFLOW,
    "acc_hazard": Reason.ACC_HAZARD,
    "uop_signature": Reason.UOP_SIGNATURE,
}


def _command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    crosscheck_command.add_arguments(parser)
    return crosscheck_command.run(parser.parse_args(words))


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(EXTRACT.read_text(encoding="utf-8"))
    return data


def test_extract_is_reproduced_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    assert _command(str(EXTRACT), "--json", "--no-pick") == 0
    result = json.loads(capsys.readouterr().out)
    assert [layer["layer"] for layer in result["layers"]] == ["C3", "C4", "C9", "C10"]
    for layer in result["layers"]:
        assert layer["configurations"] == layer["validity_equal"] == 60
        assert layer["differences"] == {}
        assert layer["instructions_differ"] == layer["bytes_differ"] == layer["operations_differ"] == 0
        assert list(layer["accelerators"]) == ["pynq", "de10", "lat64", "lat1"]
        for row in layer["accelerators"].values():
            assert row["median_error"] == row["max_error"] == 0
            assert row["cycles_equal"] == layer["valid"] == 28
            assert row["kendall_tau"] == pytest.approx(1)
            assert row["pick"] is None
    assert result["layers"][0]["accelerators"]["pynq"]["best"] == 262544


def test_reasons_are_those_of_the_table(table: dict[str, Any]) -> None:
    accelerator = Accelerator.from_json(table["accelerators"]["pynq"])
    for layer in table["layers"].values():
        w = layer["workload"]
        workload = Conv2d(
            w["n"], w["c"], w["h"], w["w"], w["k"], w["kernel"], w["kernel"], stride=w["stride"], padding=w["padding"]
        )
        rows = layer["rows"]
        reasons = ScheduleSpace(workload, accelerator, "autotvm").validity(np.array([row[0] for row in rows]))
        expected = [Reason.VALID if row[5] is None else NAMES[row[5].split(":")[0]] for row in rows]
        np.testing.assert_array_equal(reasons, expected)


def test_differences_are_counted(table: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table["layers"]["C9"]["rows"]
    valid = [row for row in rows if row[5] is None]
    invalid = [row for row in rows if row[5] is not None]
    short = [
        [*valid[0][:2], None, None, None, "copy_pattern"],
        [*invalid[0][:2], *valid[1][2:5], None],
        [*valid[1][:3], valid[1][3] + 1, *valid[1][4:]],
        [*valid[2][:3], valid[2][3], [0, *valid[2][4][1:]], None],
        [*valid[3][:2], [2 * c for c in valid[3][2]], *valid[3][3:]],
    ]
    layers = {"C9": {"workload": table["layers"]["C9"]["workload"], "rows": short}}
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(table | {"layers": layers}), encoding="utf-8")
    layer = crosscheck.crosscheck([path], picks=False)["layers"][0]
    space = ScheduleSpace(crosscheck._layer_workload(layers["C9"]["workload"]), Accelerator.load("pynq"), "autotvm")
    label = Reason(int(space.validity(np.array([invalid[0][0]]))[0])).label
    assert layer["validity_equal"] == 3
    assert layer["differences"] == {"copy_pattern": 1, label: 1}
    assert layer["instructions_differ"] == layer["bytes_differ"] == 1
    assert layer["accelerators"]["pynq"]["max_error"] == pytest.approx(0.5)
    assert _command(str(path), "--no-pick") == 0
    assert "validity differs" in capsys.readouterr().out


def test_pick_is_timed_after_it_was_made(table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def pick(workload: Conv2d, accelerator: Accelerator) -> SimpleNamespace:
        return SimpleNamespace(index=203, space=ScheduleSpace(workload, accelerator, "autotvm"))

    monkeypatch.setattr(picking, "pick", pick)
    workload, accelerator = Conv2d(1, 256, 14, 14, 512, 1, 1, stride=2), Accelerator.load("pynq")
    expected = ScheduleSpace(workload, accelerator, "autotvm").measure(np.array([203])).cycles[0]
    assert crosscheck.time_pick(workload, accelerator) == expected > 0


def _tophub_record(**changes: Any) -> dict[str, Any]:
    record = {
        "line": 1,
        "target": "board",
        "template": "conv2d_packed.vta",
        "config_index": 203,
        "knobs": dict(zip(crosscheck.KNOBS, (1, 7, 7, 1, 16, 2, 1), strict=True)),
        "cost_s": [0.001],
        "hardware": {"board": "pynq", "batch": 1, "block": 16, "log_uop": 15, "log_inp": 15, "log_wgt": 18}
        | {"log_acc": 17},
        "layer": {"op": "conv2d", "batch": 1, "height": 14, "width": 14, "in_channels": 256, "out_channels": 512}
        | {"kernel": [1, 1], "stride": [2, 2], "padding": [0, 0, 0, 0]},
        "suspect": [],
    }
    return record | changes


def test_tophub_records(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {
        "knobs": dict(zip(crosscheck.KNOBS, (1, 1, 1, 1, 1, 1, 1), strict=True)),
        "config_index": 1,
        "cost_s": [1.0],
    }
    dense = _tophub_record(layer={"op": "dense"})
    path = tmp_path / "tophub.json"
    path.write_text(json.dumps({"records": [_tophub_record(), _tophub_record(**fast), dense]}), encoding="utf-8")
    facts = {"records": 2, "valid": 2, "index_equal": 1, "differences": {}, "kendall_tau": {"board": 1.0}}
    assert crosscheck.crosscheck([path], picks=False) == facts | {"record / pick": None}
    workload = Conv2d(1, 256, 14, 14, 512, 1, 1, stride=2)
    space = ScheduleSpace(workload, Accelerator.load("pynq"), "autotvm")
    first, second = space.measure(np.array([203, 0])).cycles
    monkeypatch.setattr(crosscheck, "time_pick", lambda *_: 2 * int(first))
    gains = crosscheck.crosscheck([path])["record / pick"]
    assert (gains["picks"], gains["below_1"], gains["least"]) == (2, 1, 0.5)
    assert gains["geometric_mean"] == pytest.approx((0.5 * second / (2 * first)) ** 0.5)
    assert _command(str(path)) == 0
    assert "kendall_tau" in capsys.readouterr().out


def test_board_records(tmp_path: Path) -> None:
    knobs = dict(zip(crosscheck.KNOBS, (1, 7, 7, 1, 16, 2, 1), strict=True))
    layer = {"name": "x", "height": 14, "width": 14, "in_channels": 256, "out_channels": 512, "kernel": 1} | {
        "padding": 0,
        "stride": 2,
    }
    inputs, weights, outputs = 16 * 13 * 13 * 16 * 2, 32 * 16 * 256, 32 * 49 * 16
    right = {"layer": layer, "knobs": knobs, "config_index": 203, "median_ms": 1.0}
    records = [right | {"dma_bytes": inputs + weights + outputs}, right | {"dma_bytes": 1}]
    path = tmp_path / "board.json"
    path.write_text(json.dumps({"records": records}), encoding="utf-8")
    result = crosscheck.crosscheck([path])
    assert (result["records"], result["valid"], result["index_equal"], result["bytes_equal"]) == (2, 2, 2, 1)
    assert result["kendall_tau"] is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not JSON"),
        ("[]", "foreign"),
        ('{"records": [{"name": 1}]}', "foreign"),
        ('{"schema": "vta-autotvm-space/1"}', "damaged"),
        ('{"schema": "vta-autotvm-space/1", "accelerators": {}, "layers": {}}', "no accelerator"),
        ('{"records": [{"dma_bytes": 1}]}', "damaged"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OneShotError, match=word):
        crosscheck.crosscheck([path])


def test_bad_rows_and_missing_file(table: dict[str, Any], tmp_path: Path) -> None:
    row = table["layers"]["C10"]["rows"][0]
    for bad, word in (([480, *row[1:]], "beyond"), ([row[0] + 1, *row[1:]], "knobs"), (row[:3], "damaged")):
        layers = {"C10": {"workload": table["layers"]["C10"]["workload"], "rows": [bad]}}
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(table | {"layers": layers}), encoding="utf-8")
        with pytest.raises(OneShotError, match=word):
            crosscheck.crosscheck([path])
    with pytest.raises(OneShotError, match="cannot read"):
        crosscheck.crosscheck([tmp_path / "none.json"])


def test_kendall_tau_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    for n, values in ((2, 2), (7, 3), (50, 8), (200, 1000)):
        a, b = rng.integers(0, values, n), rng.integers(0, values, n)
        signs_a = np.sign(a[:, None] - a[None, :])
        signs_b = np.sign(b[:, None] - b[None, :])
        norm = math.sqrt(np.abs(signs_a).sum() * np.abs(signs_b).sum())
        expected = (signs_a * signs_b).sum() / norm if norm else math.nan
        assert kendall_tau(a, b) == pytest.approx(expected, nan_ok=True)
    assert kendall_tau([1, 2, 3], [30.0, 20.0, 10.0]) == -1
    same = [7, 7, 9, 12, 1, 1, 1, 30, 31]
    assert kendall_tau(same, same) == 1
    assert math.isnan(kendall_tau([], [])) and math.isnan(kendall_tau([1, 1], [1, 2]))
    with pytest.raises(ValueError, match="rankings"):
        kendall_tau([1], [1, 2])
