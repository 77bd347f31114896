"""`crosscheck` on measurements of boards: small files of the three forms, whose times a known machine made."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneshot_ml2.commands import crosscheck as crosscheck_command
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.devices import board_files
from oneshot_ml2.evaluation import board_check, board_fit, board_plot, crosscheck
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import HlsTiming
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

# The machine that the files are made with, unlike the presets.
TRUE = HlsTiming(
    read_row=6100, store_row=3900, wgt_beat=190, alu_op=230, load_start=300, compute_start=1900, store_start=200,
    pad=300, submission=9000, poll=7000, call=30_000, host_instruction=900,
)  # fmt: skip
AXU = dataclasses.replace(Accelerator.load("axu5evb-hls"), hls=TRUE)
PYNQ = dataclasses.replace(Accelerator.load("pynq-hls"), hls=TRUE)
CONFIG = dict(board_files.chip_keys(AXU)) | {"note": "a board"}
LAYERS = {
    "A": {"name": "first", "n": 1, "ci": 64, "h": 14, "w": 14, "co": 64, "kernel": 3, "stride": 1, "pad": 1},
    "B": {"name": "second", "n": 1, "ci": 128, "h": 14, "w": 14, "co": 32, "kernel": 1, "stride": 1, "pad": 0},
}
KNOBS = crosscheck.KNOBS


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    crosscheck_command.add_arguments(parser)
    return crosscheck_command.run(parser.parse_args(words))


def conv(layer: dict[str, Any]) -> Conv2d:
    return Conv2d(
        1, layer["ci"], layer["h"], layer["w"], layer["co"], layer["kernel"], layer["kernel"], stride=layer["stride"],
        padding=layer["pad"],
    )  # fmt: skip


def measured(space: ScheduleSpace, count: int) -> list[tuple[int, list[int], float, float]]:
    """(index, knobs, device ms, wall ms) of some valid schedules of a space, by the true machine."""
    rng = np.random.default_rng(5)
    drawn = rng.permutation(len(space))
    drawn = drawn[space.validity(drawn) == Reason.VALID][:count]
    found = []
    cycles = space.measure(drawn).cycles
    for index, values, time, insns in zip(drawn.tolist(), space.values(drawn).tolist(), cycles, space.programs(drawn)):
        device = time / 1e5 + (TRUE.submission + TRUE.poll) * 1e-6
        found.append((index, values, device, device + (TRUE.call + TRUE.host_instruction * len(insns)) * 1e-6))
    return found


def campaign(count: int = 12) -> dict[str, Any]:
    """A campaign: of each schedule a record with its device time and one without."""
    records = []
    for name, layer in LAYERS.items():
        found = measured(ScheduleSpace(conv(layer), AXU, "autotvm"), count)
        for number, (index, values, device, wall) in enumerate(found):
            record = {
                "run": "R", "workload": name, "config_index": index, "knobs": dict(zip(KNOBS, values)),
                "lowering": "ok", "mode": "original", "fsim": "pass_3_seeds", "board": "pass_3_seeds",
                "ms_median": wall, "ms": None,
                "device_run_ms": device if number % 2 else None, "submissions": 1, "autotvm_error": None,
                "dma": {"inp": index, "wgt": 0, "out": 0, "calls": 1, "padded_calls": 0},
            }  # fmt: skip
            records += [record, record | {"device_run_ms": None, "ms_median": wall * 1.000001}]
    return {
        "accelerator": CONFIG, "workloads": LAYERS, "records": records,
        "residency_records": [records[0] | {"ms_median": 1e-9, "mode": "other"}],
    }  # fmt: skip


def trials(count: int = 12) -> dict[str, Any]:
    """Trials of a Pynq, and one winner of a workload among them."""
    chip = dict(board_files.chip_keys(PYNQ)) | {"target": "pynq_1x16"}
    layer = LAYERS["A"] | {"kernel": [3, 3], "stride": [1, 1], "pad": [1, 1, 1, 1]}
    found = measured(ScheduleSpace(conv(LAYERS["A"]), PYNQ, "autotvm"), count)
    rows = [[index, values, 0, [wall]] for index, values, _, wall in found]
    return {
        "accelerator": chip, "knob_order": list(KNOBS), "tuning": {"net": [{"workload": layer, "rows": rows[:-1]}]},
        "winners": {"tuned.log": [{"workload": layer, "rows": rows[-1:]}]},
    }  # fmt: skip


def benchmark() -> dict[str, Any]:
    """Micro-benchmarks; what each has to take on the true machine is written out."""
    contiguous = {
        "case_id": "a", "access_kind": "contiguous", "alu_repeats": 1, "load_x": 16, "load_y": 8, "load_bytes": 8192,
        "load_calls": 1, "padded": 0, "store_bytes": 2048, "store_calls": 1, "x": 16, "y": 8, "pad": 0,
    }  # fmt: skip
    strided = contiguous | {"case_id": "b", "access_kind": "strided", "load_x": 20, "x": 20}
    padded = contiguous | {"case_id": "c", "access_kind": "padded", "x": 18, "y": 10, "pad": 1, "store_bytes": 2880}
    twice = contiguous | {"case_id": "d", "alu_repeats": 2, "load_calls": 2, "load_bytes": 16384}
    repeat = contiguous | {"case_id": "e", "alu_repeats": 4}
    uops, end = 19 + 61 + 1, 19 + 19
    store = 2 + 39
    expected = {
        "a": uops + (19 + 61 + 128 * 4) + (19 + 2.3 * 128) + store + 128 + end,
        "b": uops + (19 + 8 * (61 + 16 * 4)) + (19 + 2.3 * 128) + store + 128 + end,
        "c": uops + (19 + 8 * (61 + 16 * 4) + 3 * 52) + (19 + 2.3 * 180) + store + 180 + end,
        "d": uops + 2 * (19 + 61 + 128 * 4) + (19 + 2.3 * 128) + store + 128 + end,
        "e": uops + (19 + 61 + 128 * 4) + 4 * (19 + 2.3 * 128) + store + 128 + end,
    }
    records = [
        case | {"device_run_wait_us": expected[str(case["case_id"])] / 100 + TRUE.submission / 1000}
        for case in (contiguous, strided, padded, twice, repeat)
    ]
    return {"accelerator": CONFIG, "records": records}


def written(folder: Path, **files: dict[str, Any]) -> dict[str, str]:
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return {name: str(folder / f"{name}.json") for name in files}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("boards")
    return written(folder, campaign=campaign(), trials=trials(), benchmark=benchmark())


@pytest.fixture(scope="module")
def chip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("chips") / "true.json"
    path.write_text(AXU.to_json(), encoding="utf-8")
    return str(path)


def test_the_true_machine_has_no_error(files: dict[str, str], chip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(files["campaign"], files["benchmark"], "--accelerator", chip, "--json", "--no-pick") == 0
    result = json.loads(capsys.readouterr().out)
    first, second, cases = result["layers"]
    assert [row["layer"] for row in result["layers"]] == ["first", "second", "micro-benchmarks"]
    for row in result["layers"]:
        assert set(row) == {"layer", "board", "timed", "median_error", "kendall_tau", "regret", "validity"}
        assert row["board"] == "axu5evb"
        # Cycles are rounded down, and the shortest run has some thousand.
        assert row["median_error"] < 5e-4
        assert row["kendall_tau"] == pytest.approx(1)
        assert set(row["regret"]) == {"network", "hls", "chisel", "dma_bytes"}
        assert row["regret"]["hls"] == pytest.approx(0, abs=1e-5)
        assert row["regret"]["network"] is None
    # Each schedule was measured twice; what other templates made is left out.
    assert first["timed"] == second["timed"] == 12
    assert cases["timed"] == 5
    assert first["validity"] == {"correct": {"agree": 24, "disagree": 0}}
    assert first["regret"]["dma_bytes"] >= 0
    assert result["unexplained"] == [] and result["fits"] == {}


def test_the_plot_has_a_panel_a_layer_and_one_for_the_small_ones(files: dict[str, str], tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    paths = [files["campaign"], files["trials"], files["benchmark"]]
    with_plot = crosscheck.crosscheck(paths, False, plot=picture)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert with_plot == crosscheck.crosscheck(paths, False)
    six, many, few = (np.arange(1.0, n + 1) for n in (6, 9, 2))
    sizes = {("b", "few"): few, ("a", "many"): many, ("a", "none"): few[:0], ("b", "six"): six}
    panels = board_plot.panels_of([(*names, times, times) for names, times in sizes.items()])
    assert [(panel.title, len(panel.measured)) for panel in panels] == [
        ("b, 2 layers of a few", 8), ("a, many", 9),
    ]  # fmt: skip
    assert board_plot.draw([]) and board_plot.panels_of([]) == []


def test_one_row_a_workload_and_times_of_calls(files: dict[str, str]) -> None:
    path = Path(files["trials"])
    data = board_files.board_file(path, json.loads(path.read_text(encoding="utf-8")))
    assert (data.board, len(data.layers)) == ("pynq", 1)
    assert len(data.layers[0].timed) == 12
    result = board_check.check([data], PYNQ, network=False)
    assert result["layers"][0]["median_error"] < 5e-4
    assert result["layers"][0]["layer"] == "net:0"


def test_parameters_are_found_again(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        command(files["campaign"], files["benchmark"], "--fit", files["campaign"], files["benchmark"], "--no-pick") == 0
    )
    out = capsys.readouterr().out
    assert "HLS_READ_ROW" in out and "fitted to 41 measurements" in out
    result = crosscheck.crosscheck(
        [files["campaign"]], False, None, [files["campaign"], files["benchmark"], files["trials"]]
    )
    assert list(result["fits"]) == ["axu5evb"]
    found = result["fits"]["axu5evb"]["parameters"]
    for key, true, within in (
        ("HLS_READ_ROW", 6100, 0.02),
        ("HLS_WGT_BEAT", 190, 0.02),
        ("HLS_ALU_OP", 230, 0.02),
        ("HLS_STORE_ROW", 3900, 0.1),
        ("HLS_HOST_INSTRUCTION", 900, 0.05),
    ):
        assert found[key]["value"] == pytest.approx(true, rel=within), key
        assert abs(found[key]["value"] - true) < 4 * found[key]["error"], key
    for row in result["layers"]:
        assert row["median_error"] < 0.01


def test_a_layer_is_held_against_a_fit_to_the_others(files: dict[str, str]) -> None:
    path = Path(files["campaign"])
    tree = json.loads(path.read_text(encoding="utf-8"))
    for record in tree["records"]:
        if record["workload"] == "A":
            record["ms_median"] *= 1.5
            if record["device_run_ms"] is not None:
                record["device_run_ms"] *= 1.5
    data = board_files.board_file(path, tree)
    fits = board_check.Fits(data.layers, "axu5evb", AXU)
    first, second = (fits.without(layer) for layer in data.layers)
    # Without the slow layer what is left is the true machine; without the other one it is slower than that.
    assert board_check.check_layer(data.layers[1], first, False).row["median_error"] < 0.01
    assert board_check.check_layer(data.layers[1], second, False).row["median_error"] > 0.2
    only = board_check.Fits(data.layers[:1], "axu5evb", AXU)
    with pytest.raises(OneShotError, match="first is all there is to fit to"):
        only.without(data.layers[0])


def test_outcomes_that_we_do_not_explain_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = campaign(4)
    space = ScheduleSpace(conv(LAYERS["A"]), AXU, "autotvm")
    invalid = int(np.flatnonzero(space.validity(np.arange(len(space))) != Reason.VALID)[0])
    failed = {"lowering": "failed", "board": None, "ms_median": None, "device_run_ms": None, "submissions": None}
    first = tree["records"][0]
    theirs = first | failed
    ours = first | {"config_index": invalid, "knobs": dict(zip(KNOBS, space.values(np.array([invalid]))[0].tolist()))}
    wrong = first | {"board": "wrong_answer_seed_0", "ms_median": None, "device_run_ms": None}
    late = ours | failed | {"lowering": "ok", "board": "runtime_error"}
    odd = first | {"knobs": first["knobs"] | {"tile_h": 11}}
    untried = first | failed | {"lowering": "ok"}
    tree["records"] += [theirs, ours, wrong, late, odd, untried]
    path = written(tmp_path, odd=tree)["odd"]
    assert command(path, "--no-pick") == 0
    assert f"not explained: first (axu5evb) index {invalid}: measured correct, ours" in capsys.readouterr().out
    result = crosscheck.crosscheck([path], False)
    assert result["layers"][0]["validity"] == {
        "correct": {"agree": 8, "disagree": 2},
        "lowering": {"agree": 0, "disagree": 1},
        "run_time": {"agree": 1, "disagree": 0},
        "wrong_result": {"agree": 0, "disagree": 1},
    }
    assert [(r["measured"], r["ours"]) for r in result["unexplained"]][2:] == [
        ("wrong_result", "valid"),
        ("correct", "unknown knobs"),
    ]
    # The one whose validity is not ours has no time of ours, but is a configuration that was timed.
    assert result["layers"][0]["timed"] == 5


def test_a_call_that_outlasts_the_session_is_explained(files: dict[str, str]) -> None:
    path = Path(files["trials"])
    layer = board_files.board_file(path, json.loads(path.read_text(encoding="utf-8"))).layers[0]
    assert layer.limit is not None
    longest = max(layer.timed, key=lambda index: layer.timed[index]["wall"])
    seconds = layer.timed[longest]["wall"]
    kept = tuple(
        dataclasses.replace(record, outcome=board_files.RUN_TIME, seconds={}) if record.index == longest else record
        for record in layer.records
    )
    for limit, explained in ((0.99 * seconds, True), (1.01 * seconds, False), (None, False)):
        held = board_check.check_layer(dataclasses.replace(layer, records=kept, limit=limit), PYNQ, False)
        row, left = held.row, held.unexplained
        assert (not left) == explained
        assert row["validity"]["run_time"]["disagree" if explained else "agree"] == 0


def test_regret_is_of_times_of_one_kind(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the configurations have no device time, so all are compared by whole calls."""
    path = Path(files["campaign"])
    data = board_files.board_file(path, json.loads(path.read_text(encoding="utf-8")))
    layer = data.layers[0]
    walls = {index: times["wall"] for index, times in layer.timed.items()}
    monkeypatch.setattr(board_check, "_network_choice", lambda *_: 3)
    row = board_check.check_layer(layer, AXU, True).row
    ordered = [walls[index] for index in sorted(walls)]
    assert row["regret"]["network"] == pytest.approx(ordered[3] / min(ordered) - 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accelerator": CONFIG | {"LOG_BLOCK": 5}}, "measured with LOG_BLOCK 5, but axu5evb-hls has 4"),
        ({"workloads": {}}, "damaged, KeyError"),
        ({"records": [{"workload": "A"}]}, "damaged, KeyError"),
    ],
)
def test_damaged_files(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = written(tmp_path, bad=campaign(1) | change)["bad"]
    with pytest.raises(OneShotError, match=says):
        crosscheck.crosscheck([path], False)


def test_files_that_do_not_go_together(files: dict[str, str], tmp_path: Path) -> None:
    other = written(tmp_path, other={"schema": crosscheck.SCHEMA})["other"]
    with pytest.raises(OneShotError, match=r"other\.json: no measurements of a board"):
        crosscheck.crosscheck([files["campaign"], other], False)
    with pytest.raises(OneShotError, match=r"other\.json: no measurements of a board"):
        crosscheck.crosscheck([other], False, fitted=[files["campaign"]])
    with pytest.raises(OneShotError, match=r"--fit .*other\.json: no measurements"):
        crosscheck.crosscheck([files["campaign"]], False, fitted=[other])
    with pytest.raises(OneShotError, match="no measurement of axu5evb in these files"):
        crosscheck.crosscheck([files["campaign"]], False, fitted=[files["trials"]])
    with pytest.raises(OneShotError, match="pynq: the boards are of the HLS design"):
        crosscheck.crosscheck([files["trials"]], False, Accelerator.load("pynq"))
    tree = campaign(2)
    for record in tree["records"]:
        record["knobs"] = dict.fromkeys(KNOBS, 3)
    with pytest.raises(OneShotError, match="another template's space"):
        crosscheck.crosscheck([written(tmp_path, foreign=tree)["foreign"]], False)
    with pytest.raises(OneShotError, match="a time is -1"):
        tree["records"][0]["ms_median"] = -1
        crosscheck.crosscheck([written(tmp_path, foreign=tree)["foreign"]], False)


def test_what_no_measurement_tells_stays_at_its_default() -> None:
    layer = board_files.board_file("x", benchmark()).layers
    found, _ = board_fit.fit(layer, AXU)
    assert (found.timing.wgt_beat, found.timing.poll, found.timing.call) == (200, 0, 0)
    assert found.errors["wgt_beat"] == pytest.approx(50)
