"""Our `autotvm` space held against files of what TVM and boards measured.

The kinds of files are told apart by their content: exhaustive tables of TVM's space on the RTL
(schema ``vta-autotvm-space/1``), TopHub's records of VTA convolutions, board campaigns with DMA byte counters, and
measurements of boards of the HLS design (`board_files`), of which several may be given.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.metrics import geometric_mean, kendall_tau
from oneshot_ml2.common.reading import read_json, whole_number
from oneshot_ml2.devices.board_files import BoardFile, board_file, is_board_file
from oneshot_ml2.evaluation.board_check import check
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.registry import TVM_KIND, backend
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

SCHEMA = "vta-autotvm-space/1"
KNOBS = backend(TVM_KIND).KNOBS


# --- tables of TVM's whole space -------------------------------------------------------------------------------------
def _layer_workload(data: Mapping[str, Any]) -> Conv2d:
    """A layer of the file: its convolution with the template's epilogue (shift 8, clip to 0..127)."""
    return Conv2d(
        data["n"], data["c"], data["h"], data["w"], data["k"], data["kernel"], data["kernel"],
        stride=data["stride"], padding=data["padding"],
    )  # fmt: skip


def _traffic(space: ScheduleSpace, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Instructions (n,) and counters (n, 6) [inp, wgt, uop, out bytes, gemm, alu operations] of valid schedules."""
    counts = np.zeros(len(indices), dtype=np.int64)
    counters = np.zeros((len(indices), 6), dtype=np.int64)
    for i, insns in enumerate(space.programs(indices)):
        traffic = simulator.traffic(insns, space.accelerator)
        counts[i] = len(insns)
        counters[i] = [
            traffic[name]
            for name in (
                "inp_load_nbytes",
                "wgt_load_nbytes",
                "uop_load_nbytes",
                "out_store_nbytes",
                "gemm_counter",
                "alu_counter",
            )
        ]
    return counts, counters


def time_pick(workload: Conv2d, accelerator: Accelerator) -> int:
    """Cycles of our zero-measurement pick, timed after it was made; -1 if it is invalid."""
    pick = picking.pick(workload, accelerator)
    return int(pick.space.measure(np.array([pick.index], dtype=np.int64)).cycles[0])


def check_layer(
    name: str, layer: Mapping[str, Any], accelerators: Mapping[str, Accelerator], picks: bool = True
) -> dict[str, Any]:
    """One layer of a table: validity, traffic, instruction counts and cycles of every configuration, ours against its.

    ``differences`` counts configurations of unequal validity by the reason of the side that calls them invalid.
    """
    workload, rows = _layer_workload(layer["workload"]), layer["rows"]
    indices = np.array([row[0] for row in rows], dtype=np.int64)
    knobs = np.array([row[1] for row in rows], dtype=np.int64).reshape(len(rows), len(KNOBS))
    space = ScheduleSpace(workload, next(iter(accelerators.values())), TVM_KIND)
    if indices.size and (indices.min() < 0 or indices.max() >= len(space)):
        raise OneShotError(f"layer {name}: an index beyond our space of {len(space)} configurations")
    if not np.array_equal(space.values(indices), knobs):
        raise OneShotError(f"layer {name}: knobs that are not those of its indices; is it another template's space?")

    theirs = [row[5] for row in rows]
    reasons = space.validity(indices)
    ours_valid, valid = reasons == Reason.VALID, np.array([reason is None for reason in theirs], dtype=bool)
    differences = Counter(
        str(theirs[i]) if ours_valid[i] else Reason(int(reasons[i])).label for i in np.flatnonzero(ours_valid != valid)
    )
    both = np.flatnonzero(ours_valid & valid)
    counts, counters = _traffic(space, indices[both])
    file_counts = np.array([rows[i][3] for i in both], dtype=np.int64)
    file_counters = np.array([rows[i][4] for i in both], dtype=np.int64).reshape(len(both), 6)

    results: dict[str, Any] = {}
    for column, (label, accelerator) in enumerate(accelerators.items()):
        measured = np.array([rows[i][2][column] for i in both], dtype=np.int64)
        cycles = ScheduleSpace(workload, accelerator, TVM_KIND).measure(indices[both]).cycles
        error = np.abs(cycles - measured) / measured
        best = [row[2][column] for row in rows if row[5] is None]
        results[label] = {
            "median_error": float(np.median(error)) if both.size else None,
            "max_error": float(error.max()) if both.size else None,
            "cycles_equal": int((cycles == measured).sum()),
            "kendall_tau": _finite(kendall_tau(cycles, measured)),
            "best": min(best) if best else None,
            "pick": time_pick(workload, accelerator) if picks else None,
        }
    return {
        "layer": name,
        "configurations": len(rows),
        "valid": int(valid.sum()),
        "validity_equal": int((ours_valid == valid).sum()),
        "differences": dict(differences),
        "instructions_differ": int((counts != file_counts).sum()),
        "bytes_differ": int((counters[:, :4] != file_counters[:, :4]).any(axis=1).sum()),
        "operations_differ": int((counters[:, 4:] != file_counters[:, 4:]).any(axis=1).sum()),
        "accelerators": results,
    }


def check_table(data: Mapping[str, Any], picks: bool = True) -> dict[str, Any]:
    """A whole table: ``{"layers": [...]}``, see :func:`check_layer`."""
    accelerators = {name: Accelerator.from_json(spec, name) for name, spec in data["accelerators"].items()}
    if not accelerators:
        raise OneShotError("the table names no accelerator")
    return {"layers": [check_layer(name, layer, accelerators, picks) for name, layer in data["layers"].items()]}


# --- records of boards -----------------------------------------------------------------------------------------------
def _knob_values(record: Mapping[str, Any]) -> NDArray[np.int64]:
    """A record's knobs as a row (1, 7); `ScheduleSpace.index` refuses values that are no candidates."""
    return np.array([[whole_number(record["knobs"][name], name) for name in KNOBS]], dtype=np.int64)


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else value


def _tau(records: Sequence[Mapping[str, Any]], seconds: str) -> float | None:
    """Kendall tau of our cycles against the records' times; None below two valid records."""
    timed = [record for record in records if record["cycles"] > 0]
    return _finite(kendall_tau([r["cycles"] for r in timed], [r[seconds] for r in timed]))


def _measure_record(space: ScheduleSpace, record: Mapping[str, Any]) -> dict[str, Any]:
    index = space.index(_knob_values(record))
    outcome = space.measure(index)
    return {
        "index_equal": int(index[0]) == record["config_index"],
        "reason": Reason(int(outcome.reason[0])).label,
        "cycles": int(outcome.cycles[0]),
    }


def check_tophub(data: Mapping[str, Any], picks: bool = True) -> dict[str, Any]:
    """TopHub's convolution records: each must be valid in our space; our cycles are ranked against its seconds.

    The rank correlation is taken over each accelerator's genuine records (those that are not marked ``suspect``),
    which are of different layers. ``record / pick`` holds the cycles of the valid records' schedules against those of
    our zero-measurement picks, both on the simulator: the geometric mean, the least, and how many are below 1.
    """
    records = []
    for record in data["records"]:
        layer, hardware = record["layer"], record["hardware"]
        if layer["op"] != "conv2d":
            continue
        kernel = layer["kernel"]
        accelerator = Accelerator.from_json(
            {
                "TARGET": hardware["board"],
                "LOG_BATCH": whole_number(hardware["batch"], "batch", 1).bit_length() - 1,
                "LOG_BLOCK": whole_number(hardware["block"], "block", 1).bit_length() - 1,
                "LOG_UOP_BUFF_SIZE": hardware["log_uop"],
                "LOG_INP_BUFF_SIZE": hardware["log_inp"],
                "LOG_WGT_BUFF_SIZE": hardware["log_wgt"],
                "LOG_ACC_BUFF_SIZE": hardware["log_acc"],
            },
            record["target"],
        )
        top, left, bottom, right = layer["padding"]
        workload = Conv2d(
            layer["batch"], layer["in_channels"], layer["height"], layer["width"], layer["out_channels"],
            kernel[0], kernel[1], stride=layer["stride"], padding=(top, bottom, left, right),
        )  # fmt: skip
        result = {"line": record["line"], "target": record["target"], "genuine": not record["suspect"]}
        result |= _measure_record(ScheduleSpace(workload, accelerator, TVM_KIND), record)
        if picks and result["cycles"] > 0:
            result["gain"] = result["cycles"] / time_pick(workload, accelerator)
        records.append(result | {"seconds": float(np.mean(record["cost_s"]))})
    genuine = [record for record in records if record["genuine"]]
    return {
        "records": len(records),
        "valid": sum(record["reason"] == Reason.VALID.label for record in records),
        "index_equal": sum(record["index_equal"] for record in records),
        "differences": dict(Counter(r["reason"] for r in records if r["reason"] != Reason.VALID.label)),
        "kendall_tau": {
            target: _tau([record for record in genuine if record["target"] == target], "seconds")
            for target in sorted({record["target"] for record in genuine})
        },
        "record / pick": _gains([record["gain"] for record in records if "gain" in record]),
    }


def _gains(gains: Sequence[float]) -> dict[str, float] | None:
    """How much slower others' schedules are than our picks; None without any."""
    if not gains:
        return None
    return {
        "picks": len(gains),
        "geometric_mean": geometric_mean(gains),
        "least": min(gains),
        "below_1": sum(gain < 1 for gain in gains),
    }


def check_board(data: Mapping[str, Any]) -> dict[str, Any]:
    """A board campaign: LOAD and STORE bytes must be equal; our cycles are ranked against its milliseconds.

    The rank correlation is given over all records and as the mean over layers with two or more.
    """
    accelerator = dataclasses.replace(Accelerator.load("pynq"), bus_bits=128, name="axu5evb", extra=())
    records = []
    for record in data["records"]:
        layer = record["layer"]
        workload = Conv2d(
            1, layer["in_channels"], layer["height"], layer["width"], layer["out_channels"],
            layer["kernel"], layer["kernel"], stride=layer["stride"], padding=layer["padding"],
        )  # fmt: skip
        space = ScheduleSpace(workload, accelerator, TVM_KIND)
        result = {"layer": layer["name"], "ms": record["median_ms"]} | _measure_record(space, record)
        equal = False
        if result["cycles"] > 0:
            _, counters = _traffic(space, space.index(_knob_values(record)))
            equal = int(counters[0, [0, 1, 3]].sum()) == record["dma_bytes"]
        records.append(result | {"bytes_equal": equal})
    layers = [[r for r in records if r["layer"] == name] for name in dict.fromkeys(r["layer"] for r in records)]
    taus = [tau for tau in (_tau(group, "ms") for group in layers) if tau is not None]
    return {
        "records": len(records),
        "valid": sum(record["reason"] == Reason.VALID.label for record in records),
        "index_equal": sum(record["index_equal"] for record in records),
        "bytes_equal": sum(record["bytes_equal"] for record in records),
        "kendall_tau": _tau(records, "ms"),
        "kendall_tau_within_layers": float(np.mean(taus)) if taus else None,
        "layers_ranked": len(taus),
    }


# --- files and the command -------------------------------------------------------------------------------------------
def crosscheck(
    paths: str | Path | Sequence[str | Path],
    picks: bool = True,
    accelerator: Accelerator | None = None,
    fitted: Sequence[str | Path] = (),
    plot: Path | None = None,
) -> dict[str, Any]:
    """Hold us against a file of one of the kinds, or against measurements of boards in one or more files.

    Args:
        paths: one, or several of boards.
        picks: also make our own picks (of TopHub's records and of tables they are timed).
        accelerator: in place of that of each board.
        fitted: files of boards that the parameters of the HLS design are fitted to first.
        plot: of boards, a picture of predicted over measured times to write.

    Raises:
        OneShotError: an unreadable, damaged or foreign file, or several of which one is not of a board.
    """
    trees = [(path, read_json(path)) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if all(is_board_file(tree) for _, tree in trees):
        boards = [board_file(path, tree) for path, tree in trees]
        return check(boards, accelerator, [_board_file(path) for path in fitted], picks, plot)
    if len(trees) > 1 or accelerator is not None or fitted or plot is not None:
        foreign = next(path for path, tree in trees if not is_board_file(tree))
        raise OneShotError(f"{foreign}: no measurements of a board of the HLS design; give it alone, without options")
    return _crosscheck_one(*trees[0], picks)


def _board_file(path: str | Path) -> BoardFile:
    tree = read_json(path)
    if not is_board_file(tree):
        raise OneShotError(f"--fit {path}: no measurements of a board of the HLS design; give files of those")
    return board_file(path, tree)


def _crosscheck_one(path: str | Path, data: Any, picks: bool) -> dict[str, Any]:
    records = data.get("records") if isinstance(data, dict) else None
    first = records[0] if isinstance(records, list) and records else None
    try:
        if isinstance(data, dict) and data.get("schema") == SCHEMA:
            return check_table(data, picks)
        if isinstance(first, dict) and "template" in first and "hardware" in first:
            return check_tophub(data, picks)
        if isinstance(first, dict) and "dma_bytes" in first:
            return check_board(data)
    except OneShotError as error:
        raise OneShotError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise OneShotError(f"{path}: damaged, {type(error).__name__}: {error}") from error
    raise OneShotError(f"{path}: foreign; expected schema {SCHEMA!r}, TopHub records or a board's measurements")
