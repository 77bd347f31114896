"""Compiled models: equal to the integer reference, checked when loaded, and run by processes without PyTorch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand, loaded_by, noted
from graph_models import ZOO, example, needs, residual_qdq, small_net
from mutations import npy, zip_of

import oneshot_ml2 as o2
from oneshot_ml2.common import files
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import compiled as compiled_module
from oneshot_ml2.models import executable, execute, partition, runtime
from oneshot_ml2.models.compile import STAGES
from oneshot_ml2.models.compiled import CompiledModel
from oneshot_ml2.models.quantize import sampling
from oneshot_ml2.models.schedules import read_schedules
from oneshot_ml2.network import picking
from oneshot_ml2.vta import image, link, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import NoSchedule, Reason
from oneshot_ml2.vta.timing import designs

needs("tvm", "onnx")

SHAPE = (1, 3, 12, 12)


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    import torch

    return o2.compile(small_net(), example_inputs=(torch.zeros(SHAPE),), calibration=example((4, 3, 12, 12), 1))


@pytest.fixture(scope="module")
def saved(compiled: CompiledModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "build"
    compiled.save(folder)
    return folder


@pytest.fixture
def build(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved model to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "build"))


def reference(model: CompiledModel, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (result,) = execute.execute(model.graph, {model.graph.inputs[0]: x}).values()
    return np.asarray(result)


def test_the_whole_model_equals_its_reference(compiled: CompiledModel) -> None:
    assert compiled.ok
    assert compiled.checked is not None
    assert compiled.checked.layers.items() >= {"stem": 0, "pool": 0, "body": 0, "head": 0}.items()
    assert not any(compiled.checked.layers.values())
    assert not any(compiled.checked.submissions)
    # The host scales the input's channels in float32.
    assert (compiled.checked.outputs, compiled.checked.flips) == (0, 0) and compiled.checked.allowed > 0
    for seed in range(3):
        x = example(SHAPE, seed)
        assert np.array_equal(compiled.run(x)["output"], reference(compiled, x))


def test_the_report_says_where_and_why(compiled: CompiledModel) -> None:
    text = compiled.report()
    says = r"(\d+) of \1 VTA layers equal the integer reference bit for bit, and so do (\d+) of \2 submissions; "
    assert re.search(says, text)
    assert "the whole model's output equals it; so does what the host computes in float32" in text
    assert "float32 meets int8" in text
    assert all(f"{stage} " in text for stage in STAGES)
    assert "peak memory" in text
    data = json.loads(json.dumps(compiled.to_dict()))
    where = {layer["layer"]: layer["where"] for layer in data["layers"]}
    assert where["stem"] == where["pool"] == where["body"] == where["head"] == "vta"
    assert where["x.scaled.quantize"] == "host"
    assert data["host_shares"] == {}
    assert all(("reason" in layer) == (layer["where"] == "host") for layer in data["layers"])
    assert data["macs_host"] == 0 < data["macs_vta"]
    on_vta = [layer for layer in data["layers"] if layer["where"] == "vta"]
    assert all(0 < layer["engine_bound"] <= layer["cycles"] and layer["dram_bytes"] > 0 for layer in on_vta)
    assert sum(layer["cycles"] for layer in on_vta) == data["layer_cycles"]
    assert sum(entry["cycles"] for entry in data["submissions"]) == data["cycles"] <= 1.005 * data["layer_cycles"]
    assert [name for entry in data["submissions"] for name in entry["layers"]] == [layer["layer"] for layer in on_vta]
    assert 0 < data["dram"]["activations"] <= data["dram"]["separate"] < data["dram"]["total"]


def test_a_layer_without_a_schedule_is_named_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_command: RunCommand
) -> None:
    pick = picking.pick

    def some(workload: Any, accelerator: Accelerator, *rest: Any) -> picking.Pick:
        if workload.c == workload.k == 16:
            raise NoSchedule.counted(workload, accelerator, {Reason.ACC_HAZARD: 64, Reason.FIELD_OVERFLOW: 32})
        return pick(workload, accelerator, *rest)

    monkeypatch.setattr(picking, "pick", some)
    folder = tmp_path / "build"
    code, out, err = run_command("compile", residual_qdq(tmp_path / "m.onnx"), "-o", folder)
    assert code == 0
    data = json.loads((folder / executable.REPORT).read_text())
    # What multiplies nothing is not warned of.
    (lost,) = (entry for entry in data["layers"] if "no legal schedule" in entry.get("reason", "") and entry["macs"])
    assert lost["where"] == "host"
    assert sum("on the host" in warning for warning in data["warnings"]) == 1
    assert "of 96 schedules 64 acc_hazard, 32 field_overflow; what helps: " in lost["reason"]
    share = lost["macs"] / (data["macs_vta"] + data["macs_host"])
    warning = f"{lost['layer']}: on the host, {lost['reason']} ({share:.1%} of the model's MACs)"
    assert data["warnings"][0] == warning
    assert f"oneshot-ml2: warning: {warning}\n" in err
    assert f"\nWarning: {warning}.\n" in out
    page = (folder / executable.REPORT_PAGE).read_text()
    (content,) = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert warning in json.loads(content)["warnings"]


@pytest.mark.parametrize("chip", ["b8", "b2x16"])
def test_other_accelerators(chip: str, tmp_path: Path) -> None:
    model = o2.compile(residual_qdq(tmp_path / "m.onnx"), chip)
    assert model.ok
    assert model.accelerator == Accelerator.load(chip)
    assert model.quantized is not None and model.quantized.kind == "qdq"


def test_a_layer_adds_its_residual() -> None:
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 1)
            nn.init.uniform_(self.conv.weight, -1.9, 1.9)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x) + x)

    # Weights of which scaled channels lose less.
    torch.manual_seed(2)
    model = o2.compile(Net(), example_inputs=(torch.zeros(1, 16, 6, 6),))
    # Around it the host scales the channels, and takes that back.
    _, _, conv, _, _ = model.graph.nodes
    assert [node.op for node in model.graph.nodes] == ["multiply", "to_int8", "int_conv2d", "to_float", "multiply"]
    assert conv.attrs["workload"].epilogue.residual
    assert model.ok


def test_what_the_vta_cannot_take_stays_on_the_host() -> None:
    """Oddly padded layers and pools, float operators, several inputs and outputs, and negative numbers in pools."""
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
            self.wide = nn.Conv2d(8, 8, 1, padding=1)
            self.norm = nn.LayerNorm(8)
            self.dense = nn.Linear(8, 6)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            a = nn.functional.max_pool2d(self.grouped(x), 3, 2, 1, ceil_mode=True)
            b = nn.functional.avg_pool2d(self.wide(y), 3, 2, 1, count_include_pad=False)
            c = torch.cat([a, nn.functional.relu6(a) + a], 1).mean((2, 3))
            t = self.norm(b.flatten(2).permute(0, 2, 1))
            scores = torch.softmax(t @ t.transpose(1, 2), -1) @ t
            return self.dense(nn.functional.gelu(scores) * torch.sigmoid(t)), c

    torch.manual_seed(0)
    model = o2.compile(Net().eval(), example_inputs=(torch.zeros(2, 8, 9, 9), torch.zeros(2, 8, 7, 7)))
    assert model.ok, model.report()
    reasons = {node.name: partition.host_reason(node) for node in model.graph.nodes}
    assert reasons["grouped"] is None
    assert reasons["wide"] is None
    assert "at the border" in str(reasons["avg_pool2d_0"])
    assert reasons["dense"] is None
    assert model.checked is not None
    assert 0 < model.checked.allowed
    assert model.checked.steps <= 1
    assert model.checked.flips < 20
    assert ("int8 numbers differ, by at most 1 step." in model.report()) == (model.checked.flips > 0)
    assert ("so does what the host computes in float32" in model.report()) == (model.checked.flips == 0)
    outputs = model.run({"x": example((2, 8, 9, 9)), "y": example((2, 8, 7, 7))})
    assert [array.shape for array in outputs.values()] == [(2, 25, 6), (2, 16)]


def test_nothing_is_measured_before_the_last_pick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    events: list[str] = []
    monkeypatch.setattr(picking, "pick", noted(events, "pick", picking.pick))
    for module, name in (
        (designs, "measure"),
        (designs, "simulate"),
        (simulator, "execute_checked"),
        (image, "execute"),
    ):
        monkeypatch.setattr(module, name, noted(events, "measure", getattr(module, name)))
    assert o2.compile(residual_qdq(tmp_path / "m.onnx")).ok
    first = events.index("measure")
    assert events[:first] == ["pick"] * first
    assert first >= 3
    assert set(events[first:]) == {"measure"}


def test_layers_without_a_legal_schedule_go_to_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from oneshot_ml2.vta.reasons import InvalidSchedule, Reason

    def none(workload: Any, chip: Any, weights: Any = None) -> Any:
        raise InvalidSchedule(Reason.SRAM_OVERFLOW)

    monkeypatch.setattr(picking, "pick", none)
    model = o2.compile(residual_qdq(tmp_path / "m.onnx"))
    assert model.ok
    assert model.on_vta == ()
    assert "sram_overflow" in model.report()


def test_a_wrong_program_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_command: RunCommand) -> None:
    right = runtime.LayerProgram.run

    def wrong(self: runtime.LayerProgram, operands: Any) -> Any:
        results = right(self, operands)
        results[0].flat[0] ^= 64
        return results

    monkeypatch.setattr(runtime.LayerProgram, "run", wrong)
    path = residual_qdq(tmp_path / "m.onnx")
    code, out, err = run_command("compile", path, "-o", tmp_path / "build")
    assert code == 1
    assert "WRONG RESULT" in err
    assert re.search(r" 0 of \d+ VTA layers equal|^0 of \d+ VTA layers equal", out, re.MULTILINE)


def test_a_wrong_submission_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = link.link

    def astray(programs: Any, placements: Any, *addresses: int) -> Any:
        """A later layer does not read what the one before it wrote."""
        moved = [{**placement} for placement in placements]
        for placement in moved[1:]:
            placement["data"], placement["output"] = placement["output"], placement["data"]
        return right(programs, moved, *addresses)

    monkeypatch.setattr(link, "link", astray)
    model = o2.compile(residual_qdq(tmp_path / "m.onnx"))
    assert model.checked is not None
    assert not any(model.checked.layers.values())
    assert any(model.checked.submissions)
    assert not model.ok
    assert "2 of 2 submissions" not in model.report()


# The folder ------------------------------------------------------------------------------------
def test_a_new_process_runs_it_without_pytorch(compiled: CompiledModel, saved: Path, tmp_path: Path) -> None:
    x = example(SHAPE, 9)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from oneshot_ml2.commands.main import main\n"
        f"sys.exit(main(['run', {str(saved)!r}, '--input', 'x.npy', '--output', 'y.npy', '--accelerator', 'pynq']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**__import__("os").environ, "PYTHONPATH": str(Path(o2.__file__).parents[1])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "Net on pynq (simulated)" in done.stdout
    assert np.array_equal(np.load(tmp_path / "y.npy"), reference(compiled, x))


def test_a_loaded_model_runs_here_too(compiled: CompiledModel, saved: Path) -> None:
    x = example(SHAPE, 2)
    model = o2.load(saved, Accelerator.load("pynq"))
    assert np.array_equal(model.run(x)["output"], reference(compiled, x))
    assert sum((saved / name).stat().st_size for name in executable.FILES) < 2e6


def test_weights_that_layers_share_are_there_once(tmp_path: Path) -> None:
    import torch
    from torch import nn

    layer = nn.Linear(32, 32)
    net = nn.Sequential(layer, nn.Sigmoid(), layer, nn.Sigmoid(), layer)
    model = o2.compile(net, example_inputs=(torch.zeros(1, 32),), calibration=example((4, 32), 1))
    assert model.ok and len([row for row in model.layers if row.macs]) == 3
    model.save(tmp_path / "build")
    with np.load(tmp_path / "build" / "weights.npz") as held:
        assert sum(held[name].nbytes == 32 * 32 for name in held.files) == 1
    loaded, x = o2.load(tmp_path / "build"), example((1, 32), 2)
    assert np.array_equal(loaded.run(x)["output"], model.run(x)["output"])
    assert runtime.programs_digest(loaded.segments) == runtime.programs_digest(model._whole().executable.segments)


def test_saving_replaces_a_model_and_nothing_else(compiled: CompiledModel, build: Path) -> None:
    compiled.save(build)
    assert {entry.name for entry in build.iterdir()} == {*executable.FILES, executable.MANIFEST, executable.REPORT_PAGE}
    (build / "thesis.tex").write_text("precious")
    with pytest.raises(ModelError, match=r"'thesis\.tex'"):
        compiled.save(build)
    assert (build / "thesis.tex").read_text() == "precious"
    with pytest.raises(ModelError, match="is a file"):
        compiled.save(build / "thesis.tex")
    assert [entry.name for entry in build.parent.iterdir()] == ["build"]


def test_a_failed_save_leaves_nothing(compiled: CompiledModel, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        compiled.save(tmp_path / "build")
    assert list(tmp_path.iterdir()) == []


def gate(function: str) -> CompiledModel:
    """A small model that differs from others like it in the host's code and its weights."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = nn.Sequential(nn.Conv2d(16, 16, 1), getattr(nn, function)()).eval()
    return o2.compile(net, example_inputs=(torch.zeros(1, 16, 4, 4),), check=False)


@pytest.fixture(scope="module")
def pair() -> tuple[CompiledModel, CompiledModel]:
    return gate("Sigmoid"), gate("Tanh")


def test_a_model_saved_over_another_is_the_one_that_runs(
    pair: tuple[CompiledModel, CompiledModel], tmp_path: Path
) -> None:
    """Both have the library of one path; the system knows libraries by their paths."""
    one, two = pair
    x = example((1, 16, 4, 4), 6)
    loaded = []
    for model in (one, two, one):
        model.save(tmp_path / "build")
        loaded.append(o2.load(tmp_path / "build"))
        assert np.array_equal(loaded[-1].run(x)["output"], model.run(x)["output"])
    # Those loaded before are what they were.
    assert all(np.array_equal(it.run(x)["output"], model.run(x)["output"]) for it, model in zip(loaded, (one, two)))
    assert not np.array_equal(loaded[0].run(x)["output"], loaded[1].run(x)["output"])


def test_models_load_side_by_side(
    pair: tuple[CompiledModel, CompiledModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    x = example((1, 16, 4, 4), 7)
    for number, model in enumerate(pair):
        model.save(tmp_path / str(number))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: o2.load(tmp_path / str(i % 2)).run(x)["output"], range(8)))
    for number, result in enumerate(results):
        assert np.array_equal(result, pair[number % 2].run(x)["output"])
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_library_is_the_one_that_was_checked(
    pair: tuple[CompiledModel, CompiledModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes in the folder after the check is not loaded."""
    one, two = pair
    one.save(tmp_path / "build")
    two.save(tmp_path / "other")
    check = executable._check_versions

    def then_changed(*args: Any) -> None:
        check(*args)
        shutil.copy(tmp_path / "other" / executable.LIBRARY, tmp_path / "build" / executable.LIBRARY)

    monkeypatch.setattr(executable, "_check_versions", then_changed)
    x = example((1, 16, 4, 4), 8)
    assert np.array_equal(o2.load(tmp_path / "build").run(x)["output"], one.run(x)["output"])


def test_no_room_for_the_library(build: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(build.parent / "none"))
        assert "No such file or directory; set TMPDIR" in refused(run_command, build)
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(build.parent))
        patched.setattr(Path, "write_bytes", full)
        assert "No space left on device; set TMPDIR" in refused(run_command, build)
    assert {path.name for path in build.parent.iterdir()} == {"build", "x.npy"}


def test_a_foreign_model_of_the_same_identity(build: Path, run_command: RunCommand) -> None:
    """The programs of a loaded model never stand in for those of another one."""
    o2.load(build).run(example(SHAPE))
    end = executable.read(build).segments[0].program.dram_bytes
    rewritten(build, lambda m: m["segments"][0].update(uop_address=end))
    assert "same identity but other programs" in refused(run_command, build)


def test_a_trace_loads_no_code(build: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "_load_library", None)
    assert run_command("trace", build, "-o", build.parent / "t.json")[0] == 0


# A folder is replaced --------------------------------------------------------------------------
def test_two_compile_into_one_folder(compiled: CompiledModel, build: Path, run_command: RunCommand) -> None:
    with executable.writing(build):
        with pytest.raises(ModelError, match="another process is compiling a model into it"):
            compiled.save(build)
        code, out, err = run_command("compile", residual_qdq(build.parent / "m.onnx"), "-o", build)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "another process is compiling a model into it" in err


def test_who_reads_while_a_model_is_replaced_gets_one_of_them(
    pair: tuple[CompiledModel, CompiledModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    one.save(tmp_path / "build")
    hashed, calls = executable._hash, []

    def then_replaced(content: bytes) -> str:
        calls.append(1)
        if len(calls) == 3:
            monkeypatch.setattr(executable, "_hash", hashed)
            two.save(tmp_path / "build")
        return hashed(content)

    monkeypatch.setattr(executable, "_hash", then_replaced)
    assert executable.read(tmp_path / "build").identity == two.whole.executable.identity
    assert len(calls) == 3
    x = example((1, 16, 4, 4), 8)
    assert np.array_equal(o2.load(tmp_path / "build").run(x)["output"], two.run(x)["output"])


def test_where_names_cannot_be_exchanged(compiled: CompiledModel, build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that dies between its two renames: the model is found, and put back by the next writer."""
    monkeypatch.setattr(files, "_exchange", lambda new, folder: False)
    rename, renamed = os.rename, []

    def dies(source: Path, target: Path) -> None:
        renamed.append(target)
        if len(renamed) > 1:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "rename", dies)
        compiled.save(build)
    assert [path.name for path in build.parent.iterdir()] == [".build.before.oneshot-ml2"]
    assert o2.load(build).name == "Net"
    compiled.save(build)
    assert [path.name for path in build.parent.iterdir()] == ["build"]
    assert o2.load(build).name == "Net"


_SAVES = """
import os, random, signal, sys, time
from pathlib import Path
from oneshot_ml2.common import files
from oneshot_ml2.models import executable

class Library:
    def __init__(self, content):
        self.content = content
    def export_library(self, path, workspace_dir):
        (Path(workspace_dir) / "object.o").write_bytes(self.content)
        Path(path).write_bytes(self.content)

folder, moments = Path(sys.argv[1]), int(sys.argv[3])
if sys.argv[2] == "renames":
    files._exchange = lambda new, folder: False
stored = [executable.read(path) for path in sys.argv[4:]]
executable.versions = lambda: stored[0].manifest["versions"]

def save(number):
    it = stored[number]
    model = executable.Executable(it.name, it.identity, it.accelerator, it.inputs, it.outputs, it.segments,
                                  Library(it.library))
    with executable.writing(folder) as place:
        executable.save(model, place, [], it.report, "page")

save(0)
begin = time.perf_counter()
save(1)
whole = time.perf_counter() - begin
rng, left = random.Random(3), 0
for moment in range(moments):
    child = os.fork()
    if child == 0:
        save(moment % 2)
        os._exit(0)
    time.sleep(rng.uniform(0, 1.3 * whole))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert executable.read(folder).library in {it.library for it in stored}
    left += any(".oneshot-ml2" in path.name for path in folder.parent.iterdir())
save(0)
assert executable.read(folder).library == stored[0].library
assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name], list(folder.parent.iterdir())
print(left)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_kills_while_a_folder_is_replaced(how: str, pair: tuple[CompiledModel, CompiledModel], tmp_path: Path) -> None:
    """After each the folder is one of the two models, whole; after the next save nothing else is there."""
    for number, model in enumerate(pair):
        model.save(tmp_path / str(number))
    (tmp_path / "place").mkdir()
    command = [sys.executable, "-c", _SAVES, tmp_path / "place" / "build", how, "60", tmp_path / "0", tmp_path / "1"]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(o2.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Kills that left nothing came before or after the writing; most are to be within it.
    assert int(done.stdout) >= 30


@pytest.mark.slow
def test_kills_of_the_command_itself(saved: Path, tmp_path: Path) -> None:
    """`compile -o` over a model, killed as soon as it writes, a bit later, and later still."""
    build = Path(shutil.copytree(saved, tmp_path / "place" / "build"))
    model = residual_qdq(tmp_path / "m.onnx")
    before = executable.read(build).library
    code = "import sys; from oneshot_ml2.commands.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "compile", str(model), "-o", str(build), "--no-check"]
    environment = {**os.environ, "PYTHONPATH": str(Path(o2.__file__).parents[1]), "TMPDIR": str(tmp_path)}
    for delay in (0.0, 0.1, 0.4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        while process.poll() is None and not list(build.parent.glob(".build.????????.oneshot-ml2")):
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0 if delay else -signal.SIGKILL)
        assert executable.read(build).library == before or executable.read(build).name == "m"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    assert executable.read(build).name == "m"
    assert [path.name for path in build.parent.iterdir()] == ["build"]


def test_the_arena_and_its_largest_buffer(compiled: CompiledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of the one image that boards have to allocate is accounted for, and 32 MiB of it are too many."""
    whole = compiled.whole
    assert whole is not None
    dram, programs = whole.dram, [segment.program for segment in whole.executable.segments]
    # A program's own image ends with a page.
    assert dram.total <= max(program.dram_bytes for program in programs) < dram.total + 4096
    assert dram.constants + dram.code + dram.activations <= dram.total
    sizes = [program.buffer_bytes(buffer.name) for program in programs for buffer in program.buffers]
    what, size = whole.largest
    assert size == max(*sizes, *(16 * len(program.insns) for program in programs))
    assert what == "weight of avg_pool2d_0"
    assert compiled.to_dict()["dram"]["largest"] == {"buffer": what, "bytes": size}
    assert f"Largest buffer: {what}, {size / 2**20:.2f} MiB" in compiled.report()
    assert not any("DRAM in one piece" in warning for warning in compiled.warnings())
    assert compiled_module.ONE_ALLOCATION == 32 << 20
    monkeypatch.setattr(compiled_module, "ONE_ALLOCATION", dram.total)
    assert not any("DRAM in one piece" in warning for warning in compiled.warnings())
    monkeypatch.setattr(compiled_module, "ONE_ALLOCATION", dram.total - 1)
    (told,) = (warning for warning in compiled.warnings() if "DRAM in one piece" in warning)
    assert what in told and "Pynq" in told and told in compiled.report() and told in compiled.to_dict()["warnings"]


def refused(run_command: RunCommand, build: Path, *more: str) -> str:
    np.save(build.parent / "x.npy", example(SHAPE))
    code, out, err = run_command("run", build, "--input", build.parent / "x.npy", *more)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize("name", [*executable.FILES, executable.MANIFEST])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_damage_is_refused_by_name(name: str, how: str, build: Path, run_command: RunCommand) -> None:
    path = build / name
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    assert name in refused(run_command, build)


def rewritten(build: Path, change: Any) -> None:
    """Change a manifest as another version or machine would have written it, with the right hash."""
    path = build / executable.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["sha256"] = executable._manifest_hash(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(schema=1), "from an older version (schema 1, this one reads 3)"),
        (lambda m: m.update(schema=99), "from another version (schema 99"),
        (lambda m: m.update(format="something"), "not that of a compiled model"),
        (lambda m: m.update(machine="pdp11"), "compiled for pdp11"),
        (lambda m: m["versions"].update(tvm="0.9.0"), "made with TVM 0.9.0"),
        (lambda m: m["accelerator"].update(LOG_BLOCK=77), "its accelerator is unreadable"),
        (lambda m: m.pop("segments"), "does not fit its files"),
        (lambda m: m["segments"].append(m["segments"][0]), "does not fit its files"),
        (lambda m: m["segments"][0]["inputs"][0].update(layout="odd"), "does not fit its files"),
        (lambda m: m["segments"][0]["outputs"][0].update(buffer="9.output"), "does not fit its files"),
    ],
)
def test_foreign_models_are_refused(change: Any, says: str, build: Path, run_command: RunCommand) -> None:
    rewritten(build, change)
    assert says in refused(run_command, build)


def test_bad_requests(build: Path, run_command: RunCommand, tmp_path: Path) -> None:
    assert "for the accelerator 'pynq', not for 'b8'" in refused(run_command, build, "--accelerator", "b8")
    assert "did you mean 'pynq'" in refused(run_command, build, "--accelerator", "pinq")
    assert "ending in .npy" in refused(run_command, build, "--output", "y.txt")
    assert "no folder" in refused(run_command, build, "--output", str(tmp_path / "none" / "y.npy"))
    assert "no folder" in refused(run_command, tmp_path / "none")
    for content, says in (
        (example((1, 3, 9, 9)), "has shape (1, 3, 9, 9); the model was compiled for (1, 3, 12, 12)"),
        (np.full(SHAPE, np.inf), "infinite"),
        (np.array(["a"]), "float32"),
    ):
        np.save(tmp_path / "bad.npy", content)
        code, _, err = run_command("run", build, "--input", tmp_path / "bad.npy")
        assert (code, says in err) == (2, True), err
    (tmp_path / "bad.npy").write_bytes(b"no numpy")
    for argv in (("--input", tmp_path / "bad.npy"), ("--input", tmp_path / "none.npy"), ()):
        code, _, err = run_command("run", build, *argv)
        assert (code, err.count("\n")) == (2, 1)


def test_a_pickle_is_never_loaded(build: Path, run_command: RunCommand, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    code, _, err = run_command("run", build, "--input", tmp_path / "x.npy")
    assert (code, "x.npy" in err) == (2, True)


# The command line ------------------------------------------------------------------------------
def test_the_trace_of_a_folder(compiled: CompiledModel, saved: Path, run_command: RunCommand, tmp_path: Path) -> None:
    code, out, err = run_command("trace", saved, "-o", tmp_path / "t.json", "--json")
    assert (code, err) == (0, "")
    assert sum(layer["cycles"] for layer in json.loads(out)["layers"]) == compiled.cycles
    assert json.loads((tmp_path / "t.json").read_text())["otherData"]["cycles"] == compiled.cycles
    code, out, _ = run_command("trace", saved, "--layer", "body", "-o", tmp_path / "t.json")
    assert (code, "body" in out, "stem" in out) == (0, True, False)
    for argv in (("--accelerator", "ultra96"), ("--schedule", "tile_co=1"), ("--layer", "nothing")):
        code, _, err = run_command("trace", saved, *argv, "-o", tmp_path / "x.json")
        assert (code, err.count("\n")) == (2, 1), err


def test_the_trace_of_a_folder_runs_none_of_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    """Its library is native code; and TVM is not needed."""

    def refuse() -> None:
        raise AssertionError("TVM is imported")

    monkeypatch.setattr(executable, "import_tvm", refuse)
    assert run_command("trace", saved, "-o", tmp_path / "t.json")[0] == 0
    # What is damaged is refused all the same.
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (copy / executable.LIBRARY).write_bytes(b"another")
    code, _, err = run_command("trace", copy, "-o", tmp_path / "t.json")
    assert code == 2 and "does not match its hash" in err


def test_onnx_from_the_command_line(tmp_path: Path, run_command: RunCommand) -> None:
    path = residual_qdq(tmp_path / "m.onnx")
    build = tmp_path / "build"
    page = tmp_path / "page.html"
    code, out, err = run_command("compile", path, "--accelerator", "pynq", "-o", build, "--html", page)
    assert (code, err) == (0, "")
    assert page.read_bytes() == (build / executable.REPORT_PAGE).read_bytes()
    assert re.search(r"(\d+) of \1 VTA layers equal the integer reference bit for bit", out)
    np.save(tmp_path / "x.npy", example((1, 3, 8, 8)))
    code, out, _ = run_command("run", build, "--input", f"x={tmp_path / 'x.npy'}", "--json")
    assert code == 0
    assert np.array(json.loads(out)["outputs"]["y"]).shape == (1, 10)
    code, out, _ = run_command("run", build, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz")
    assert (code, "row 0, largest" in out) == (0, True)
    assert list(np.load(tmp_path / "y.npz")) == ["y"]

    schedules = json.loads((build / executable.SCHEDULES).read_text())
    assert {entry["source"] for entry in schedules["layers"]} <= {"network", "fallback"}
    manifest = json.loads((build / executable.MANIFEST).read_text())
    content = (build / executable.WEIGHTS).read_bytes()
    assert manifest["files"][executable.WEIGHTS] == hashlib.sha256(content).hexdigest()


def test_chosen_layers_are_the_rows_of_the_whole_model(tmp_path: Path, run_command: RunCommand) -> None:
    path = residual_qdq(tmp_path / "m.onnx")
    rows = {entry["layer"]: entry for entry in o2.compile(path).to_dict()["layers"]}
    name = next(name for name, entry in rows.items() if entry["operator"] == "conv2d")
    code, out, err = run_command("compile", path, "--layers", name, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    (row,) = data["layers"]
    same = ("workload", "schedule", "source", "cycles", "parts", "engine_bound", "dram_bytes", "error", "wrong_outputs")
    assert {key: row[key] for key in same} == {key: rows[name][key] for key in same}
    assert list(data["seconds"]) == ["import", "quantize", "partition", "pick", "check"]
    assert data["quantization"] == "qdq" and data["submissions"] == []


def test_schedules_are_taken_again(
    compiled: CompiledModel, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def again(entries: Any, **more: Any) -> CompiledModel:
        example_inputs = (torch.zeros(SHAPE),)
        data = example((4, 3, 12, 12), 1)
        return o2.compile(small_net(), example_inputs=example_inputs, calibration=data, schedules=entries, **more)

    entries = read_schedules(saved / executable.SCHEDULES)
    body = next(entry for entry in entries if entry["layer"] == "body")
    other = again([body])
    assert [layer.pick.source for layer in other.on_vta if layer.pick].count("pinned") == 1
    from oneshot_ml2.vta.reasons import InvalidSchedule, Reason

    def none(workload: Any, chip: Any, weights: Any = None) -> Any:
        raise InvalidSchedule(Reason.SRAM_OVERFLOW)

    with monkeypatch.context() as patched:
        patched.setattr(picking, "pick", none)
        other = again(entries)
    assert other.ok
    assert {layer.pick.source for layer in other.on_vta if layer.pick} == {"pinned"}
    assert [entry["schedule"] for entry in other.schedules()] == [entry["schedule"] for entry in entries]
    assert other.cycles == compiled.cycles

    for broken, says in (
        (body | {"layer": "boby"}, "no such layer"),
        (body | {"workload": entries[0]["workload"]}, "body does not fit: it is for another workload"),
        (body | {"schedule": body["schedule"] | {"tile_co": 12345}}, "body does not fit: knob tile_co"),
        (body | {"schedule": 7}, "body does not fit"),
        (body | {"space_version": 0}, "of version 0 of its space"),
    ):
        with pytest.raises(ModelError, match=says):
            again([broken])
    for content in ("", "[]", '{"schema": 9, "layers": []}'):
        (tmp_path / "s.json").write_text(content)
        with pytest.raises(ModelError, match=r"s\.json is no schedules\.json"):
            read_schedules(tmp_path / "s.json")


def test_the_launcher_is_light() -> None:
    packages = ("torch", "numba", "h5py", "tvm", "tvm_ffi", "numpy")
    assert loaded_by("import oneshot_ml2.models.launcher", packages) == set()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("m.onnx", "--layers", "fcc"), "no layer 'fcc'"),
        (("m.onnx", "-o", "b", "--schedules", "none.json"), "cannot read none.json"),
        (("resnet18", "--schedules", "x.json"), "cannot read x.json"),
        (("none.onnx", "-o", "b"), "cannot read none.onnx"),
        (("m.onnx", "-o", "b", "--layers", "fc"), "--layers"),
        (("m.onnx", "-o", "m.onnx"), "is a file"),
        (("m.onnx", "-o", "b", "--calibration", "none.npy"), "cannot read none.npy"),
        (("m.onnx", "-o", "b", "--rounding", "nearest"), "nearest"),
        (("resnet18", "--calibration", "x.npy"), "cannot read x.npy"),
        (("resnet-18", "-o", "b"), "did you mean 'resnet18'"),
        (("m.onnx", "-o", "b", "--accelerator", "pinq"), "did you mean 'pynq'"),
    ],
)
def test_bad_compilations(
    argv: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    monkeypatch.chdir(tmp_path)
    residual_qdq(tmp_path / "m.onnx")
    code, out, err = run_command("compile", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert not (tmp_path / "b").exists()


def random_net(seed: int) -> tuple[Any, tuple[int, ...]]:
    """Convolutions of all kinds of shapes, some with a residual, then what often follows them; and an input's shape."""
    import torch
    from torch import Tensor, nn

    rng = np.random.default_rng(seed)
    channels, size = int(rng.integers(1, 40)), int(rng.integers(5, 16))
    shape = (int(rng.integers(1, 4)), channels, size, size)
    layers, kinds = nn.ModuleList(), []
    for _ in range(int(rng.integers(1, 5))):
        kernel, stride, dilation = int(rng.choice([1, 2, 3, 5])), int(rng.integers(1, 3)), int(rng.integers(1, 3))
        pad, width, residual = int(rng.integers(0, kernel)), int(rng.integers(1, 50)), bool(rng.random() < 0.5)
        if residual:
            kernel, stride, dilation, width = int(rng.choice([1, 3])), 1, 1, channels
            pad = kernel // 2
        out = (size + 2 * pad - (kernel - 1) * dilation - 1) // stride + 1
        if out < 2:
            continue
        layers.append(nn.Conv2d(channels, width, kernel, stride, pad, dilation, bias=bool(rng.random() < 0.7)))
        kinds.append((residual, str(rng.choice(["relu", "relu6", "none", "max", "average", "norm"]))))
        channels, size = width, (out - 1) // 2 + 1 if kinds[-1][1] in ("max", "average") else out

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers
            self.norms = nn.ModuleList(nn.BatchNorm2d(layer.out_channels) for layer in layers)  # type: ignore[arg-type]
            self.head = nn.Linear(channels, int(rng.integers(1, 60)))

        def forward(self, x: Tensor) -> Tensor:
            for layer, norm, (residual, kind) in zip(self.layers, self.norms, kinds):
                y = norm(layer(x)) if kind == "norm" else layer(x)
                y = y + x if residual else y
                if kind in ("relu", "norm"):
                    y = torch.relu(y)
                elif kind == "relu6":
                    y = nn.functional.relu6(y)
                elif kind == "max":
                    y = nn.functional.max_pool2d(y, 3, 2, 1)
                elif kind == "average":
                    y = nn.functional.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
                x = y
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().eval(), shape


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_random_networks_are_exact(seed: int) -> None:
    import torch

    net, shape = random_net(seed)
    chip = ["pynq", "b8", "b32", "b2x16", "b4x8", "bus256"][seed % 6]
    model = o2.compile(net, chip, example_inputs=(torch.zeros(shape),), seed=seed)
    assert model.ok
    assert model.checked is not None
    assert (model.checked.outputs, model.macs()[1]) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), ZOO)
@pytest.mark.parametrize("rounding", ["shift", "half_even"])
def test_the_zoo_compiles_and_runs(name: str, size: int, rounding: str, tmp_path: Path) -> None:
    model = o2.compile(name, size=size, rounding=rounding)
    assert model.ok
    assert model.macs()[1] == 0
    assert model.quantized is not None and model.quantized.losses == ()
    model.save(tmp_path / "build")
    if name == "resnet18":
        weights = sum(node.arrays["weight"].nbytes for node in model.graph.nodes if "weight" in node.arrays)
        assert sum(path.stat().st_size for path in (tmp_path / "build").iterdir()) < 1.3 * weights
    (x,) = sampling.random_samples(model.graph, 1, 3)[0].values()
    result = o2.load(tmp_path / "build").run(x)["output"]
    assert np.array_equal(result, model.run(x)["output"])
    assert model.checked is not None
    if model.checked.allowed == 0:
        assert np.array_equal(result, reference(model, x))


def test_token_ids_are_checked(tmp_path: Path) -> None:
    import torch
    from torch import nn

    net = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 16), nn.ReLU()).eval()
    ids = torch.randint(0, 50, (1, 4))
    model = o2.compile(net, example_inputs=(ids,))
    assert model.ok
    model.save(tmp_path / "build")
    loaded = o2.load(tmp_path / "build")
    assert np.array_equal(loaded.run(ids.numpy())["output"], reference(model, ids.numpy()))
    for wrong in (ids.numpy() - 50, ids.numpy() + 50, ids.numpy() + 0.5):
        with pytest.raises(ModelError, match="whole numbers 0 to 49"):
            loaded.run(wrong)


def test_the_document_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand) -> None:
    """Its Python blocks in their order, in one namespace, then its commands on the files that they leave."""
    needs("onnxruntime")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "models.md", "exec"), names)
    assert names["y"].shape == (1, 10)
    for argv in (
        ("compile", "float.onnx", "--calibration", "images.npy", "-o", "build"),
        ("compile", "model.onnx", "--accelerator", "pynq", "-o", "build"),
        ("run", "build", "--input", "x.npy", "--output", "y.npy"),
    ):
        code, _, err = run_command(*argv)
        assert code == 0, err
    expected = names["net"](names["torch"].from_numpy(names["images"][:1])).detach().numpy()
    assert np.linalg.norm(np.load("y.npy") - expected) < 0.15 * np.linalg.norm(expected)


def resigned(build: Path, change: Any) -> None:
    """Change the arrays of programs.npz, and the manifest, as somebody does who then makes all hashes fit."""
    path = build / executable.PROGRAMS
    with np.load(path) as file:
        arrays = dict(file)
    manifest = json.loads((build / executable.MANIFEST).read_text())
    change(arrays, manifest)
    np.savez(path, **arrays)
    manifest["files"][executable.PROGRAMS] = executable._hash(path.read_bytes())
    manifest["sha256"] = executable._manifest_hash(manifest)
    (build / executable.MANIFEST).write_text(json.dumps(manifest))


def _put(*path: Any, value: Any) -> Any:
    def change(_: Any, manifest: Any) -> None:
        *most, last = path
        for key in most:
            manifest = manifest[key]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, _: arrays.pop("0.uops"),
        lambda arrays, _: arrays.update({"7.uops": arrays["0.uops"]}),
        lambda arrays, _: arrays.update({"0.insns": arrays["0.insns"].astype(np.float64)}),
        lambda arrays, _: arrays.update({"0.insns": arrays["0.insns"].ravel()}),
        lambda arrays, _: arrays.update({"0.uops": arrays["0.uops"][None]}),
        lambda arrays, _: arrays["0.insns"].__setitem__((0, 0), 7),
        lambda arrays, _: arrays["0.insns"].__setitem__((-1, 1), 1 << 63),
        lambda arrays, _: arrays["0.insns"].__setitem__((0, 0), arrays["0.insns"][0, 0] | np.uint64(0xFFFFFFFF << 26)),
        _put("segments", 0, "insn_address", value=1.5),
        _put("segments", 0, "insn_address", value=True),
        _put("segments", 0, "insn_address", value=-16),
        _put("segments", 0, "uop_address", value=1 << 33),
        _put("segments", 0, "uop_address", value=1 << 31),
        lambda _, manifest: manifest["segments"][0].update(uop_address=manifest["segments"][0]["insn_address"]),
        _put("segments", 0, "buffers", 0, 1, value=9),
        _put("segments", 0, "buffers", 0, 2, value=1 << 40),
        _put("segments", 0, "buffers", 0, 3, value=1 << 28),
        _put("segments", 0, "buffers", 0, 3, value=1),
        lambda _, manifest: manifest["segments"][0]["buffers"].append(manifest["segments"][0]["buffers"][0]),
        _put("segments", 0, "inputs", 0, "shape", value=[1 << 20, 1 << 20]),
        _put("segments", 0, "inputs", 0, "shape", value=[3]),
        _put("segments", 0, "inputs", 0, "shape", value=["1", 2]),
        _put("segments", value={}),
        _put("inputs", 0, "shape", value=[-1]),
        _put("inputs", 0, "limit", value="x"),
        _put("files", value={}),
        _put("versions", value={}),
    ],
)
def test_resigned_folders_are_refused(change: Any, build: Path, run_command: RunCommand) -> None:
    resigned(build, change)
    assert "compile the model again" in refused(run_command, build)


@pytest.mark.parametrize("name", [executable.PROGRAMS, executable.WEIGHTS])
@pytest.mark.parametrize("content", [b"", b"PK", zip_of([("0.insns.npy", npy("(" * 5000, b""))])])
def test_resigned_archives_are_refused(name: str, content: bytes, build: Path, run_command: RunCommand) -> None:
    (build / name).write_bytes(content)
    rewritten(build, lambda manifest: manifest["files"].update({name: executable._hash((build / name).read_bytes())}))
    assert "does not fit its files" in refused(run_command, build)
