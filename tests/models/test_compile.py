"""compile: the order of its stages, where the cycles go, and that a wrong result cannot pass for a right one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand, noted

import oneshot_ml2 as o2
from oneshot_ml2.common import kernels, tables
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import compile as compile_module
from oneshot_ml2.models import report
from oneshot_ml2.models.frontend import importer
from oneshot_ml2.models.frontend.importer import LayerList
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.full.shown import DATAFLOWS
from oneshot_ml2.spaces.space import ScheduleSpace, short_schedule
from oneshot_ml2.vta import breakdown, image
from oneshot_ml2.vta.program import Opcode
from oneshot_ml2.vta.reasons import NoSchedule, Reason
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload import base
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer

FULL = Epilogue(bias=True, residual_shift=4)
LAYERS = [
    Layer("stem", Conv2d(1, 3, 20, 20, 24, 5, 5, 2, 2, epilogue=Epilogue(bias=True))),
    Layer("block.conv", Conv2d(2, 40, 9, 7, 33, 3, 3, 1, 1, epilogue=FULL), 3),
    Layer("block.shortcut", Conv2d(1, 64, 8, 8, 48, 1, 1, 2, 0)),
    Layer("fc", Dense(3, 70, 45, Epilogue(bias=True, clip=(-128, 127)))),
]


def valid_index(space: ScheduleSpace, seed: int) -> int:
    drawn = np.random.default_rng(seed).integers(0, len(space), 4000)
    return int(drawn[space.validity(drawn) == 0][0])


def some_pick(workload: Workload, accelerator: o2.Accelerator, weights: object = None) -> picking.Pick:
    """A valid schedule at random, in the form of a pick."""
    space = ScheduleSpace(workload, accelerator)
    index = valid_index(space, 0)
    return picking.Pick(
        space=space,
        index=index,
        schedule=space.schedule(index),
        predicted_cycles=1e4,
        p_valid=0.5,
        spread=0.1,
        program=space.lower(index),
        source="network",
        lowered=1,
        scored=1,
        warnings=("channels outside 1..64",) if workload.c == 70 else (),
        seconds=0.0,
    )


@pytest.fixture
def picks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Picks that need no weights."""
    monkeypatch.setattr(picking, "pick", some_pick)


@pytest.fixture
def four_layers(monkeypatch: pytest.MonkeyPatch, picks: None) -> None:
    """``compile resnet18`` compiles the four small layers."""
    given = importer.import_model

    def import_model(model: Any, *rest: Any) -> Any:
        return LayerList("resnet18", tuple(LAYERS)) if model == "resnet18" else given(model, *rest)

    monkeypatch.setattr(importer, "import_model", import_model)


@pytest.mark.parametrize("chip", ["pynq", "b8", "b32", "b2x16", "b4x8", "bus256"])
def test_layers_are_exact(chip: str, picks: None) -> None:
    model = o2.compile(LAYERS, chip)
    assert model.ok
    assert [Layer(entry.name, entry.workload, entry.count) for entry in model.layers if entry.workload] == LAYERS
    for entry, shown in zip(model.layers, model.to_dict()["layers"], strict=True):
        assert entry.workload is not None and entry.cost is not None
        assert entry.shape == entry.workload.output_shape
        assert shown["outputs"] == math.prod(entry.workload.output_shape)
        assert 0 < entry.cost.bound <= entry.cost.cycles == sum(entry.cost.parts.values())
        assert min(entry.cost.parts.values()) >= 0
        assert entry.cost.dram_bytes > 0
        assert entry.wrong == 0
    assert model.cycles == sum(entry.cost.cycles * entry.count for entry in model.layers if entry.cost)
    assert model.milliseconds == pytest.approx(model.cycles / model.accelerator.clock_mhz / 1e3)


@pytest.mark.parametrize(("chip", "spread"), [("pynq-hls", 0.02), ("ultra96-hls", 0.1)])
def test_the_hls_design_s_report_has_rows_and_a_spread(chip: str, spread: float, picks: None) -> None:
    model = o2.compile(LAYERS, chip)
    text, layers = report.text(model), model.to_dict()["layers"]
    assert model.spread == model.to_dict()["milliseconds_spread"] == spread
    assert f"{model.milliseconds:.2f} ms ± {100 * spread:.0f} % at" in text and "rows: of LOADs and of STOREs" in text
    total = [0, 0]
    for entry, shown in zip(model.layers, layers, strict=True):
        assert entry.cost is not None and entry.pick is not None
        insns = entry.pick.program.insns
        moved = [insns[(insns["op"] == op) & (insns["x"] > 0)]["y"].sum() for op in (Opcode.LOAD, Opcode.STORE)]
        assert entry.cost.rows == shown["rows"] == tuple(moved)
        assert "{:,}+{:,}".format(*moved) in text
        total = [before + entry.count * rows for before, rows in zip(total, moved)]
    assert "{:,}+{:,}".format(*total) in text


def test_the_rtl_s_report_has_neither(picks: None) -> None:
    model = o2.compile(LAYERS[:1], "pynq")
    assert model.spread is None and "±" not in report.text(model) and "rows" not in report.text(model)


def test_parts_are_what_the_engines_did(picks: None) -> None:
    chip = o2.Accelerator.load("pynq")
    for seed in range(25):
        space = ScheduleSpace(LAYERS[seed % 4].workload, chip)
        program = space.lower(valid_index(space, seed))
        timed = designs.measure(program, trace=True)
        assert timed.trace is not None
        parts = breakdown.split_cycles(program.insns, timed.trace, timed.cycles)
        assert sum(parts.values()) == timed.cycles
        assert parts["gemm"] + parts["alu"] == timed.gemm + timed.alu
        assert parts["load"] > chip.memory_latency


def test_nothing_is_measured_before_the_last_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(picking, "pick", noted(events, "pick", some_pick))
    monkeypatch.setattr(ScheduleSpace, "lower", noted(events, "lower", ScheduleSpace.lower))
    monkeypatch.setattr(designs, "measure", noted(events, "measure", designs.measure))
    monkeypatch.setattr(designs, "simulate", noted(events, "measure", designs.simulate))
    monkeypatch.setattr(image, "execute", noted(events, "measure", image.execute))
    assert o2.compile(LAYERS).ok
    first = events.index("measure")
    assert events[:first].count("pick") == 4
    assert set(events[first:]) == {"measure"}


def test_same_seed_same_result(picks: None) -> None:
    first, second = (o2.compile(LAYERS).to_dict() | {"seconds": None, "peak_bytes": None} for _ in range(2))
    assert first == second


def flip_one(program: Any, workload: Workload, tensors: Any) -> Any:
    result = workload.reference(tensors)
    result.flat[-1] ^= 1
    return result


def truncate(program: Any, workload: Workload, tensors: Any) -> Any:
    return workload.reference(tensors)[:, :-1]


def widen(program: Any, workload: Workload, tensors: Any) -> Any:
    return workload.reference(tensors).astype(np.int32)


@pytest.mark.parametrize("broken", [flip_one, truncate, widen])
def test_a_wrong_result_shows_everywhere(
    broken: Any, monkeypatch: pytest.MonkeyPatch, four_layers: None, tmp_path: Path, run_command: RunCommand
) -> None:
    monkeypatch.setattr(image, "execute", broken)
    with pytest.warns(RuntimeWarning, match="differ from the reference: fc"):
        model = o2.compile(LAYERS[-1:])
    assert not model.ok
    assert not model.layers[0].ok
    assert "WRONG" in model.report()
    assert "0 of 1 results" in model.report()

    code, out, err = run_command("compile", "resnet18", "--layers", "fc", "-o", tmp_path / "out.json")
    assert code == 1
    assert "WRONG RESULT in fc" in err
    assert "WRONG" in out
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["ok"] is False
    assert saved["layers"][0]["wrong_outputs"] > 0

    code, out, _ = run_command("compile", "resnet18", "--layers", "fc", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)


def test_a_hang_is_a_wrong_result(monkeypatch: pytest.MonkeyPatch, four_layers: None, run_command: RunCommand) -> None:
    def hangs(program: Any, trace: bool = False) -> designs.Timing:
        return dataclasses.replace(measure(program, trace), hang=True)

    measure = designs.measure
    monkeypatch.setattr(designs, "measure", hangs)
    code, out, _ = run_command("compile", "resnet18")
    assert code == 1
    assert out.count("HANGS") == 4


def test_table_and_json(four_layers: None, tmp_path: Path, run_command: RunCommand) -> None:
    path = tmp_path / "out.json"
    code, out, _ = run_command("compile", "resnet18", "--layers", "block.*", "fc", "-o", path)
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["layer", "block.conv", "block.shortcut", "fc", "total"]
    assert all(line.endswith("exact") for line in lines[1:5])
    assert "3 of 3 results equal the reference bit for bit" in out
    assert all(f"{stage} " in out.split("Wall time: ")[1] for stage in ("import", "pick", "check"))
    assert "\nPicks: 3 network.\n" in out

    saved = json.loads(path.read_text())
    code, out, _ = run_command("compile", "resnet18", "--layers", "block.*", "fc", "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["layers"] == saved["layers"]
    assert [entry["count"] for entry in saved["layers"]] == [3, 1, 1]
    assert o2.Accelerator.from_json(saved["accelerator"]) == o2.Accelerator.load("pynq")


def test_warnings_of_picks_go_to_stderr(four_layers: None, run_command: RunCommand) -> None:
    code, out, err = run_command("compile", "resnet18", "--json")
    assert code == 0
    assert err == "oneshot-ml2: warning: fc: channels outside 1..64\n"
    assert json.loads(out)["layers"][3]["warnings"] == ["channels outside 1..64"]
    assert "warning: all layers: channels" in run_command("compile", "resnet18", "--layers", "fc")[2]


def test_layers_without_a_schedule_are_named_everywhere(
    four_layers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_command: RunCommand
) -> None:
    def pick(workload: Workload, accelerator: o2.Accelerator, weights: object = None) -> picking.Pick:
        if workload.n == 2:
            raise NoSchedule.counted(workload, accelerator, {Reason.ACC_HAZARD: 64, Reason.FIELD_OVERFLOW: 32})
        return some_pick(workload, accelerator)

    monkeypatch.setattr(picking, "pick", pick)
    path = tmp_path / "out.json"
    code, out, err = run_command("compile", "resnet18", "-o", path)
    warning = (
        f"block.conv: on the host, no legal schedule for {LAYERS[1].workload} on pynq: of 96 schedules 64 acc_hazard, "
        "32 field_overflow; what helps: more output channels or pixels, or fewer pixels or smaller strides"
    )
    assert code == 0
    assert f"oneshot-ml2: warning: {warning}\n" in err
    assert f"\nWarning: {warning}.\n" in out
    (row,) = (line for line in out.splitlines() if line.startswith("block.conv "))
    assert row.split()[1] == "3" and row.split()[-2:] == ["none", "host"]
    assert "3 of 3 results equal" in out
    saved = json.loads(path.read_text())
    assert saved["warnings"][0] == warning
    on_vta = [entry["layer"] for entry in saved["layers"] if entry["where"] == "vta"]
    assert on_vta == ["stem", "block.shortcut", "fc"]
    (host,) = (entry for entry in saved["layers"] if entry["where"] == "host")
    assert (host["layer"], host["count"]) == ("block.conv", 3)
    assert host["reason"] in warning
    # Nothing is left to compile.
    code, out, err = run_command("compile", "resnet18", "--layers", "block.conv")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no legal schedule for" in err


def test_real_layers_without_a_schedule_stay_on_the_host() -> None:
    kernel = Layer("kernel", Conv2d(1, 16, 33, 33, 16, 33, 33))
    image = Layer("image", Conv2d(1, 16, 4096, 4096, 256, 3, 3, padding=1))
    model = o2.compile([kernel, *LAYERS[3:], image])
    assert model.ok and [entry.name for entry in model.on_vta] == ["fc"]
    host = [entry for entry in model.layers if entry.pick is None]
    assert [entry.name for entry in host] == ["kernel", "image"]
    assert "sram_overflow" in str(host[0].reason) and "32-bit addresses" in str(host[1].reason)
    assert [line.split(":")[0] for line in model.warnings()[:2]] == ["kernel", "image"]


def test_fallbacks_are_counted(picks: None) -> None:
    model = o2.compile(LAYERS)
    last = model.layers[-1]
    assert last.pick is not None
    fallen = dataclasses.replace(last, pick=dataclasses.replace(last.pick, source="fallback"))
    text = dataclasses.replace(model, layers=(*model.layers[:-1], fallen)).report()
    assert "\nPicks: 3 network, 1 fallback.\n" in text


def test_unknown_layer(four_layers: None, run_command: RunCommand) -> None:
    code, out, err = run_command("compile", "resnet18", "--layers", "block.conf")
    assert (code, out) == (2, "")
    assert "did you mean 'block.conv'?" in err
    assert "stem" in err


@pytest.mark.parametrize("options", [("-o", "nowhere/out.json"), ("--seed", "-1")])
def test_bad_options_end_before_the_work(
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: RunCommand,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importer, "import_model", None)
    code, out, err = run_command("compile", "resnet18", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_tables() -> None:
    text = tables.table(("name", "n"), [("a", "1"), ("long", "1,000")], left=("name",))
    assert text.splitlines() == ["name      n", "a         1", "long  1,000"]
    with pytest.raises(ValueError, match="cells"):
        tables.table(("name", "n"), [("a",)])
    assert base.short_workload(LAYERS[1].workload) == "2 x 40x9x7 > 33x9x7 3x3"
    assert base.short_workload(LAYERS[2].workload) == "64x8x8 > 48x4x4 1x1/2"
    assert base.short_workload(Dense(1, 512, 1000)) == "512 > 1000 dense"
    assert tables.finite(float("nan")) is None


def test_short_schedules_name_every_dataflow() -> None:
    space = ScheduleSpace(LAYERS[0].workload, o2.Accelerator.load("pynq"))
    (flows,) = (knob.values for knob in space.knobs if knob.name == "dataflow")
    assert flows == tuple(range(len(DATAFLOWS)))
    assert short_schedule(space.schedule(0)).count("/") >= 2


def test_real_picks_of_small_layers() -> None:
    """The shipped weights, from the workload to the checked program."""
    model = o2.compile(LAYERS)
    assert model.ok
    assert all(entry.pick is not None and entry.pick.predicted_cycles > 0 for entry in model.layers)


LIST = """
[[workload]]
name = "first"
count = 2
op = "dense"
n = 3
c = 70
k = 45

[[workload]]
op = "dense"
n = 1
c = 16
k = 16
"""


def test_a_list_of_layers(picks: None, tmp_path: Path, run_command: RunCommand) -> None:
    (tmp_path / "mine.TOML").write_text(LIST)
    code, out, _ = run_command("compile", tmp_path / "mine.TOML", "--html", tmp_path / "page.html", "--json")
    assert code == 0
    data = json.loads(out)
    assert (data["model"], data["quantization"], data["checked"], data["submissions"]) == ("mine", None, None, [])
    assert [(entry["layer"], entry["operator"], entry["count"]) for entry in data["layers"]] == [
        ("first", "dense", 2),
        ("1", "dense", 1),
    ]
    assert data["cycles"] == data["layer_cycles"] == sum(e["count"] * e["cycles"] for e in data["layers"])
    assert "all layers equal the integer reference bit for bit" in (tmp_path / "page.html").read_text()
    assert list(data["seconds"]) == ["import", "pick", "check"]


def test_layers_are_no_model_that_runs(picks: None, tmp_path: Path, run_command: RunCommand) -> None:
    model = o2.compile(LAYERS[-1:])
    for refused in (lambda: model.run({}), lambda: model.save(tmp_path / "build"), lambda: model.graph):
        with pytest.raises(ModelError, match="layers"):
            refused()
    (tmp_path / "mine.toml").write_text(LIST)
    code, out, err = run_command("compile", tmp_path / "mine.toml", "-o", tmp_path / "build")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "a list of layers is no model that runs" in err
    assert not (tmp_path / "build").exists()


def test_layers_that_are_not_checked(
    monkeypatch: pytest.MonkeyPatch, picks: None, four_layers: None, run_command: RunCommand
) -> None:
    monkeypatch.setattr(image, "execute", None)
    code, out, _ = run_command("compile", "resnet18", "--no-check")
    assert code == 0
    assert "not checked" in out and "exact" not in out


def test_equal_layers_are_picked_and_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(picking, "pick", noted(events, "pick", some_pick))
    monkeypatch.setattr(designs, "measure", noted(events, "measure", designs.measure))
    twin = dataclasses.replace(LAYERS[-1], name="twin")
    model = o2.compile([LAYERS[-1], twin])
    assert [entry.name for entry in model.layers] == ["fc", "twin"]
    assert events == ["pick", "measure"]


def test_the_bar_says_that_kernels_are_compiled_until_the_next_stage() -> None:
    with compile_module._stages(True) as stage:
        with stage("pick"):
            for tell in kernels._told:
                tell()
            assert "compiling kernels" in str(stage.bar.postfix)
        with stage("check"):
            assert "compiling kernels" not in str(stage.bar.postfix)
    assert not kernels._told
