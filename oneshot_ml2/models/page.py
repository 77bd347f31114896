"""One self-contained HTML page about a compiled model: figures, table, timeline, and what each layer does over time.

The figures are those of ``report.json``; what a layer does over time is drawn from its program's `trace.Timeline`. The
page fetches nothing, and says so to the browser. All that a model can name reaches the page as JSON, and from there
the document as text, never as markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.common.html_page import BEGIN, rendered
from oneshot_ml2.common.reading import parse_json
from oneshot_ml2.common.version import __version__
from oneshot_ml2.models import task
from oneshot_ml2.models.quantize import losses
from oneshot_ml2.spaces import space
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.registry import DEFAULT_KIND
from oneshot_ml2.vta.spread import spread_words
from oneshot_ml2.vta.timeline import ROWS, WORK, Row, Slice, Timeline, timeline
from oneshot_ml2.workload import base
from oneshot_ml2.workload.registry import workload_from_dict

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program

_TEMPLATE = "page.html"
# Steps of a layer's utilisation over time, and slices of its windows in full.
_STEPS = 240
_WINDOW = 110
# A share of 0..1 as one character, 64 levels.
_CODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# What cycles are, of the RTL and of the HLS design.
_CYCLES = (
    "Simulated cycles, cycle-exact for the VTA",
    "Cycles by the model of VTA's HLS design; milliseconds with what two of three measured times lie within",
)
_COLOURS: dict[int, str] = {
    Row.FETCH: "host", Row.LOAD: "load", Row.STORE: "store",
    Row.READ: "port", Row.WRITE: "write",
}  # fmt: skip


def page(content: Mapping[str, Any], programs: Mapping[str, Program]) -> str:
    """The page of a model: ``content`` is what ``report.json`` holds, ``programs`` the VTA programs by layer.

    Layers without a program have no utilisation over time.
    """
    return _rendered(_data(content, programs))


def with_measured(text: str, measured: Mapping[str, Any]) -> str:
    """A page that `page` made, with what the submissions took on a device: `measured.Measured` as a dictionary.

    Raises:
        ModelError: it is no such page, or that of another model.
    """
    _, _, rest = text.partition(BEGIN)
    found, end, _ = rest.partition("</script>")
    again = "compile the model again"
    if not end:
        raise ModelError(f"the model's report page is damaged: it has no data; {again}")
    data = parse_json(found, "the model's report page", ModelError)
    if not isinstance(data, dict) or not isinstance(data.get("submissions"), list):
        raise ModelError(f"the model's report page is damaged: it has no submissions; {again}")
    if len(data["submissions"]) != len(measured["submissions"]):
        raise ModelError(f"the report page is of a model of other submissions; {again}")
    return _rendered(data | {"measured": measured})


def _rendered(content: Mapping[str, Any]) -> str:
    template = (resources.files("oneshot_ml2.models") / _TEMPLATE).read_text(encoding="utf-8")
    return rendered(template, f"{content['model']} on {content['accelerator']}: compiled", content)


def _data(content: Mapping[str, Any], programs: Mapping[str, Program]) -> dict[str, Any]:
    chip = content["accelerator"]
    details: list[dict[str, Any]] = []
    known: dict[bytes, int] = {}

    def detail_of(name: str) -> int | None:
        program = programs.get(name)
        if program is None:
            return None
        # Layers of the same program share what is drawn.
        key = program.insns.tobytes() + program.insn_address.to_bytes(8, "little")
        if key not in known:
            known[key] = len(details)
            details.append(_detail(timeline(program)))
        return known[key]

    layers = [_layer(entry, detail_of(str(entry["layer"]))) for entry in content["layers"]]
    sources = Counter(layer["source"] for layer in layers if layer["source"])
    seconds = content["seconds"]
    return {
        "model": content["model"],
        "accelerator": chip["name"],
        "chip": f"batch {1 << chip['LOG_BATCH']}, block {1 << chip['LOG_BLOCK']}, "
        f"{chip['BUS_BITS']} bit bus, {chip['CLOCK_MHZ']} MHz",
        "clock_mhz": chip["CLOCK_MHZ"],
        "warnings": [*content["warnings"], *content["changes"]],
        "hurt": [
            hurt | {"advice": advice}
            for hurt, advice in zip(content["hurt"], losses.said_once([hurt["advice"] for hurt in content["hurt"]]))
        ],
        "task": [] if content["task"] is None else task.lines(task.from_dict(content["task"])),
        "ok": content["ok"],
        "check": _check(content),
        "cycles": content["cycles"],
        "engine_bound": content["engine_bound"],
        "milliseconds": content["milliseconds"],
        "spread": spread_words(content["milliseconds_spread"]),
        "macs_vta": content["macs_vta"],
        "macs_host": content["macs_host"],
        "dram": content["dram"],
        "submissions": [entry["layers"] for entry in content["submissions"]],
        "sources": ", ".join(f"{count} {source}" for source, count in sources.most_common()) or "none",
        "stages": [[{"build": "TVM build"}.get(name, name), value] for name, value in seconds.items()],
        "total_seconds": sum(seconds.values()),
        "peak_mib": content["peak_bytes"] / 2**20,
        "about": _about(content),
        "command": "oneshot-ml2 trace FOLDER -o trace.json",
        "footer": f"Written by oneshot-ml2 {__version__}. {_CYCLES[chip.get('DESIGN') == 'hls']}; "
        "the same figures are in report.json.",
        "layers": layers,
        "details": details,
    }


def _about(content: Mapping[str, Any]) -> str:
    kind = content["quantization"]
    if kind is None:
        return "Layers that were given, one by one."
    about = {"float": "Float model, quantized to int8", "qdq": "Quantized model (QDQ)"}.get(kind, str(kind))
    calibration = content["calibration"]
    on = f"calibrated on {calibration['samples']} sample{'' if calibration['samples'] == 1 else 's'} "
    return f"{about}, {on}({calibration['source']}); rounding: {content['rounding']}."


def _check(content: Mapping[str, Any]) -> tuple[str, str]:
    checked = content["checked"]
    if checked is None and any(entry.get("wrong_outputs") is not None for entry in content["layers"]):
        if content["ok"]:
            return "exact", "all layers equal the integer reference bit for bit"
        return "WRONG", "layers differ from the integer reference; this is a bug"
    if checked is None:
        return "not checked", "against the integer reference (--no-check)"
    layers, submissions = (
        sum(bool(entry.get("wrong_outputs")) for entry in content[kind]) for kind in ("layers", "submissions")
    )
    if layers or submissions or not content["ok"]:
        return "WRONG", f"{layers} layers, {submissions} submissions differ from the integer reference; this is a bug"
    if checked["outputs"]:
        return "exact layers", f"outputs differ by at most {checked['largest_difference']:.2g}, the host's float math"
    return "exact", "all layers, submissions and outputs equal the integer reference bit for bit"


def _layer(entry: Mapping[str, Any], detail: int | None) -> dict[str, Any]:
    """A row of the table; ``cycles`` is None on the host."""
    row: dict[str, Any] = {
        "name": entry["layer"],
        "operator": entry["operator"],
        "shape": "x".join(map(str, entry["shape"][1:])),
        "alone": entry["error_alone"],
        "error": entry["error"],
        "count": entry.get("count", 1),
        "reason": entry.get("reason") or "",
        "source": "",
        "cycles": None,
        "result": "",
        "wrong": False,
        "detail": detail,
    }
    if "cycles" not in entry:
        return row
    schedule = Schedule(str(entry.get("space", DEFAULT_KIND)), tuple(entry["schedule"].items()))
    wrong = entry["wrong_outputs"]
    return row | {
        "shape": base.short_workload(workload_from_dict(entry["workload"])).removesuffix(f" {entry['operator']}"),
        "schedule": space.short_schedule(schedule),
        "knobs": str(schedule),
        "source": str(entry["source"]),
        "predicted": entry["predicted_cycles"],
        "cycles": entry["cycles"],
        "bound": entry["engine_bound"],
        "bytes": entry["dram_bytes"],
        "rows": entry["rows"],
        "wrong": bool(wrong),
        "result": "" if wrong is None else f"WRONG: {wrong}" if wrong else "exact",
    }


def utilisation(slices: Sequence[Slice], cycles: int, steps: int) -> NDArray[np.float64]:
    """How much of each of ``steps`` equal parts of [0, cycles) the slices cover, float64 (steps,), 0..1.

    The slices are in order, and do not overlap.
    """
    if not slices or cycles == 0:
        return np.zeros(steps)
    bounds = np.array([(piece.start, piece.end) for piece in slices], np.float64)
    covered = np.concatenate(([0.0], np.cumsum(bounds[:, 1] - bounds[:, 0])))
    # Covered cycles before any cycle: flat between slices, rising within them.
    before = np.stack([covered[:-1], covered[1:]], axis=1).reshape(-1)
    edges = np.linspace(0, cycles, steps + 1)
    return np.clip(np.diff(np.interp(edges, bounds.reshape(-1), before)) * steps / cycles, 0, 1)


def _encode(shares: NDArray[np.float64]) -> str:
    return "".join(_CODES[level] for level in np.rint(shares * 63).astype(int).tolist())


def _colour(piece: Slice) -> str:
    if piece.kind != WORK:
        return "wait"
    if piece.row == Row.COMPUTE:
        return "gemm" if piece.name == "GEMM" else "load" if piece.name.startswith("LOAD") else "alu"
    return _COLOURS[piece.row]


def _detail(line: Timeline) -> dict[str, Any]:
    """What a layer does over time, coarse; three windows of it in full; and where its cycles go."""
    cycles = line.cycles
    outer = [piece for piece in line.slices if not piece.inner]
    work: dict[str, list[Slice]] = {name: [] for name in ("load", "gemm", "alu", "move", "store", "read", "write")}
    rows: dict[int, str] = {Row.LOAD: "load", Row.STORE: "store", Row.READ: "read", Row.WRITE: "write"}
    parts = {"gemm": "gemm", "alu": "alu", "load": "move"}
    busy = dict.fromkeys(ROWS, 0)
    for piece in outer:
        if piece.kind == WORK:
            busy[ROWS[piece.row]] += piece.end - piece.start
            if piece.row != Row.FETCH:
                work[rows.get(piece.row) or parts[_colour(piece)]].append(piece)
    looks = {(piece.row, piece.name): (piece.kind, _colour(piece)) for piece in outer}
    names = {key: number for number, key in enumerate(looks)}
    steps = max(1, min(_STEPS, cycles))
    return {
        "cycles": cycles,
        "bins": {name: _encode(utilisation(slices, cycles, steps)) for name, slices in work.items()},
        "busy": busy,
        "rows": ROWS,
        "names": [(name, *look) for (_, name), look in looks.items()],
        "windows": [_window(outer, share, names) for share in (0.0, 0.5, 1.0)],
        "totals": {
            row: [
                (name, count, *looks[number, name]) for name, count in sorted(found.items(), key=lambda item: -item[1])
            ]
            for number, (row, found) in enumerate(line.totals().items())
            if found
        },
        "port_waits": {row: waits for row, waits in line.port_waits().items() if waits},
    }


def _window(slices: Sequence[Slice], share: float, names: Mapping[tuple[int, str], int]) -> dict[str, Any]:
    """About ``_WINDOW`` slices around a point of the program (0: from its start on, 1: up to its end)."""
    ordered = sorted(slices, key=lambda piece: piece.start)
    first = round(share * max(len(ordered) - _WINDOW, 0))
    chosen = ordered[first : first + _WINDOW]
    begin = chosen[0].start
    end = max(piece.end for piece in ordered) if first + _WINDOW >= len(ordered) else chosen[-1].start
    end = max(end, begin + 1)
    return {
        "cycles": (begin, end),
        "slices": [
            (p.row, names[p.row, p.name], p.start, p.end, p.args.get("instruction", p.args.get("for", -1)))
            for p in ordered
            if p.start < end and p.end > begin
        ],
    }
