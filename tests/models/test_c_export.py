"""Models as C: every operator of the host against its numpy form, whole models, damage, and other machines."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand
from drivers import library, needs_compiler
from graph_models import SMALL_SHAPE, example, needs, save_small_net
from numpy.typing import NDArray
from op_cases import GROUPS, Case, written

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.devices.build import BACKENDS, compile_c
from oneshot_ml2.models import executable, hostpart
from oneshot_ml2.models.c_export import operators, source
from oneshot_ml2.models.c_export.export import export
from oneshot_ml2.models.c_export.golden import reference
from oneshot_ml2.models.compile import compile as compile_model
from oneshot_ml2.models.executable import Stored, Tensor
from oneshot_ml2.models.frontend.from_onnx import import_onnx
from oneshot_ml2.models.hostpart import HostPart, host_part
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.ops.registry import ops
from oneshot_ml2.models.quantize.quantize import quantize
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.board import Board
from oneshot_ml2.vta.program import PAGE

needs("tvm", "onnx")

PYNQ = Accelerator.load("pynq")
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
DRIVER = BACKENDS["sim"].sources


# The host alone --------------------------------------------------------------------------------
def of_host(graph: Graph) -> tuple[Stored, HostPart]:
    """A graph as a compiled model of which the host computes all."""
    content = hostpart.to_bytes(host_part(graph, graph.nodes))
    inputs = tuple(Tensor(name, graph.shape(name), graph.values[name].limit) for name in graph.inputs)
    outputs = tuple(Tensor(f"y{i}", graph.shape(name)) for i, name in enumerate(graph.outputs))
    stored = Stored("m", "id", PYNQ, inputs, outputs, (), {}, {"submissions": []}, b"", content)
    return stored, hostpart.from_bytes(content, "it")


@functools.cache
def runtime(cc: tuple[str, ...]) -> Path:
    """A folder with the objects that all projects share."""
    folder = Path(tempfile.mkdtemp(prefix="oneshot-ml2-runtime-"))
    empty = Graph("m", ("x",), ("x",), (), {"x": Value("x", (1,))})
    export(of_host(empty)[0], folder / "project")
    shared = [name for name in (*source.MODEL_SOURCES, *DRIVER) if name not in ("model.c", "main.c")]
    compile_c(cc, [*STRICT, "-c", *shared], folder / "project")
    return folder / "project"


def built(stored: Stored, folder: Path, cc: tuple[str, ...] = ("cc", *SANITIZED)) -> Path:
    """The program of a model."""
    needs_compiler()
    export(stored, folder)
    objects = [str(path) for path in runtime(cc).glob("*.o")]
    compile_c(cc, [*STRICT, "-o", "model", "model.c", "main.c", *objects, "-lm"], folder)
    return folder / "model"


def outputs_of(program: Sequence[str], model: Any, inputs: Sequence[NDArray[Any]], folder: Path) -> list[NDArray[Any]]:
    """What a program gives; ``model``: what has its outputs."""
    content = b"".join(np.ascontiguousarray(array, dtype="<f4").tobytes() for array in inputs)
    (folder / "in.bin").write_bytes(content)
    done = subprocess.run(
        [*program, folder / "in.bin", folder / "out.bin"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    flat = np.fromfile(folder / "out.bin", "<f4")
    ends = np.cumsum([int(np.prod(tensor.shape)) for tensor in model.outputs])
    assert flat.size == ends[-1]
    return [part.reshape(one.shape) for part, one in zip(np.split(flat, ends[:-1]), model.outputs, strict=True)]


def held(graph: Graph, x: NDArray[np.float32], folder: Path) -> None:
    """A graph in C and in numpy."""
    stored, host = of_host(graph)
    program = built(stored, folder / "c")
    (name,) = graph.inputs
    right = reference(host, {name: x}, lambda number, operands: ())
    found = outputs_of([str(program)], stored, [x], folder)
    for array, other, title in zip(found, right, graph.outputs, strict=True):
        np.testing.assert_allclose(array, other, rtol=2e-5, atol=2e-6, err_msg=title)
    subprocess.run([program, "--self-test"], check=True, capture_output=True)


def sets_of(group: str) -> dict[str, list[Case]]:
    """Cases that stand in one model: by opset and shape; those of layers and of steps in time alone."""
    found: dict[str, list[Case]] = {}
    for name, case in GROUPS[group].items():
        alone = group in ("layers", "recurrent") or not case.image
        found.setdefault(name if alone else f"{case.opset} {case.shape}", []).append(case)
    return found


SETS = {(group, name): cases for group in GROUPS for name, cases in sets_of(group).items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float", "integer"])
@pytest.mark.parametrize("key", SETS, ids=" ".join)
def test_operators_as_their_numpy_form(key: tuple[str, str], kind: str, tmp_path: Path) -> None:
    import onnx

    cases = SETS[key]
    onnx.save(written(cases), tmp_path / "m.onnx")
    shape = cases[0].shape
    x = np.random.default_rng(3).standard_normal((4 * shape[0], *shape[1:]), dtype=np.float32)
    graph = import_onnx(tmp_path / "m.onnx")
    held(graph if kind == "float" else quantize(graph, x).graph, x[: shape[0]], tmp_path)


def test_every_operator_of_the_host_is_there_in_c() -> None:
    known = {f"int_{op.name}" for op in ops().values() if op.integer_host is not None}
    known |= {op.name for op in ops().values() if op.host is not None}
    # These are refused by name.
    assert known - {"grid_sample", "scatter"} == set(operators.EMITTERS)


def node(op: str, output: str, *inputs: str, arrays: dict[str, Any] | None = None, **attrs: Any) -> Node:
    return Node(output, op, inputs, output, attrs, arrays or {})


def test_operators_that_the_cases_lack_and_special_numbers(tmp_path: Path) -> None:
    plain = ("atan", "isinf", "isnan", "rsqrt", "silu", "tan", "relu", "sign", "abs", "round", "softplus", "erf")
    window = {"size": (3, 2), "strides": (2, 1), "pads": (1, 1, 0, 1), "dilation": (1, 2)}
    shape = (2, 3, 6, 4)
    nodes = [node(op, op, "x") for op in plain]
    nodes += [node(op, op, "x", "y") for op in ("floor_divide", "floor_mod", "maximum", "minimum", "power")]
    nodes += [node(op, op, "z", axes=(1, 3), keepdims=op == "std") for op in ("std", "variance")]
    nodes += [
        node("matmul", "matmul", "z", "w"),
        node("adaptive_avg_pool2d", "pooled", "z"),
        node("take_along", "along", "z", "places", axis=2),
        node("to_int8", "small", "x.clipped", exponent=-4),
        node("clip", "x.clipped", "x", low=-1e30, high=np.inf),
        node("patches", "patches", "small", **window),
        node("to_float", "patches.float", "patches", exponent=-4),
        node("argmax", "argmax", "x", axis=3),
        node("topk_indices", "order", "x", axis=2, k=6, largest=True),
        node("topk_values", "least", "x", axis=1, k=2, largest=False),
    ]
    order = {"x.clipped": 0, "small": 1, "patches": 2, "patches.float": 3}
    nodes.sort(key=lambda one: order.get(one.output, 9))
    rng = np.random.default_rng(2)
    constants = {
        "y": rng.standard_normal((3, 1, 4), dtype=np.float32),
        "z": rng.standard_normal(shape, dtype=np.float32),
        "w": rng.standard_normal((3, 4, 5), dtype=np.float32),
        "places": rng.integers(0, 6, (2, 3, 2, 4)).astype(np.float32),
    }
    x = (rng.standard_normal(shape) * 3).astype(np.float32)
    x.reshape(-1)[:12] = [0.0, -0.0, 1e30, -1e30, 1e-30, 0.5, 1.5, 2.5, -0.5, 3e38, 1.0, 1.0]
    shapes = {
        "std": (2, 1, 6, 1), "variance": (2, 6), "matmul": (2, 3, 6, 5), "pooled": (2, 3, 4, 3),
        "along": (2, 3, 2, 4), "argmax": (2, 3, 6, 1), "order": shape, "least": (2, 2, 6, 4),
        "patches": (2, 18, 3, 3), "patches.float": (2, 18, 3, 3),
    }  # fmt: skip
    values = {
        name: Value(name, shapes.get(name, shape), -4 if name in ("small", "patches") else None)
        for name in ("x", *(one.output for one in nodes))
    }
    outputs = tuple(one.output for one in nodes if one.output not in ("small", "patches", "x.clipped"))
    with np.errstate(all="ignore"):
        held(Graph("m", ("x",), outputs, tuple(nodes), values, constants), x, tmp_path)


def test_an_operator_without_c_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = (node("exp", "a", "x"), node("erf", "b", "a"), node("erf", "c", "b"))
    graph = Graph("m", ("x",), ("c",), nodes, {name: Value(name, (2, 3)) for name in "xabc"})
    monkeypatch.delitem(operators.EMITTERS, "exp")
    monkeypatch.delitem(operators.EMITTERS, "erf")
    with pytest.raises(ModelError, match=r"not there in C: exp \(a\), erf \(b, c\); run the model with"):
        export(of_host(graph)[0], tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("shape", [(1,) * 9, (2, 0)])
def test_a_tensor_that_c_does_not_have_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    graph = Graph("m", ("x",), ("y",), (node("exp", "y", "x"),), {name: Value(name, shape) for name in "xy"})
    with pytest.raises(ModelError, match="at most 8 axes"):
        export(of_host(graph)[0], tmp_path / "c")


# A small model, whole ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_net(tmp_path_factory.mktemp("c") / "build")


@pytest.fixture(scope="module")
def project(build: Path) -> Path:
    """It in C, made with sanitizers."""
    needs_compiler()
    folder = build.parent / "project"
    export(executable.read(build), folder)
    make(folder, f"CFLAGS=-Werror {' '.join(SANITIZED)}")
    return folder


def make(folder: Path, *arguments: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make: install it, as .ci/run does")
    done = subprocess.run(["make", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def call(program: Path, *arguments: Any, **environment: str) -> tuple[int, str]:
    """The exit code of a program and all that it printed."""
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    return done.returncode, done.stdout + done.stderr


def same_as_compiled(program: Sequence[str], build: Path, folder: Path, seed: int = 0, atol: float = 0.0) -> float:
    """Hold a program against the compiled model in Python; the largest difference."""
    model = executable.load(build)
    rng = np.random.default_rng(seed)
    inputs = {
        one.name: rng.standard_normal(one.shape, dtype=np.float32)
        if one.limit is None
        else rng.integers(0, one.limit, one.shape).astype(np.float32)
        for one in model.inputs
    }
    right = model.run(inputs)
    found = outputs_of(program, model, [inputs[one.name] for one in model.inputs], folder)
    apart = [float(np.abs(array - right[one.name]).max()) for array, one in zip(found, model.outputs, strict=True)]
    assert max(apart) <= atol
    return max(apart)


def test_a_small_model_gives_what_it_gives_in_python(build: Path, project: Path, tmp_path: Path) -> None:
    for seed in range(3):
        same_as_compiled([str(project / "model")], build, tmp_path, seed)
    code, text = call(project / "model", "--self-test")
    assert code == 0, text
    assert "right            stem to head" in text
    assert text.splitlines()[-1] == "self-test passed"
    header = (project / "model.h").read_text()
    assert "#define MODEL_INPUT_0_SHAPE {1, 3, 12, 12}" in header
    assert "1x16 i8w8a32" in header


def test_a_board_that_gives_less_memory_in_one_piece(build: Path, tmp_path: Path) -> None:
    stored = executable.read(build)
    chip = dataclasses.replace(stored.accelerator, board=Board(largest_allocation=PAGE))
    with pytest.raises(ModelError, match="in one piece, and its board gives 4,096"):
        export(dataclasses.replace(stored, accelerator=chip), tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("cc", "embed"), [("gcc", True), ("clang", False)])
def test_it_builds_without_warnings_and_from_one_folder(
    run_command: RunCommand, build: Path, tmp_path: Path, cc: str, embed: bool
) -> None:
    needs_compiler(cc)
    folder = tmp_path / "project"
    code, text, err = run_command("export", build, "--to-c", folder, *(["--embed"] if embed else []))
    assert code == 0, err
    assert "1 submissions and 5 steps of the host" in text
    make(folder, f"CC={cc}", "CFLAGS=-O2 -Werror", "LDFLAGS=-Wl,-z,now")
    assert (folder / "model.bin").exists() != embed
    assert call(folder / "model", "--self-test")[0] == 0
    same_as_compiled([str(folder / "model")], build, tmp_path)
    # Again into the same folder: what was built goes; and what make made, its clean removes.
    assert run_command("export", build, "--to-c", folder)[0] == 0
    assert not (folder / "model").exists()
    make(folder, f"CC={cc}", "CFLAGS=-O0")
    make(folder, "clean")
    assert not (folder / "model").exists()


def test_another_driver_is_linked(build: Path, tmp_path: Path) -> None:
    export(executable.read(build), tmp_path / "project")
    make(tmp_path / "project", f"DRIVER={library(PYNQ)}", "CFLAGS=-O0")
    assert call(tmp_path / "project" / "model", "--self-test")[0] == 0
    # One that has nothing of ours is told by its lack of VTAConfiguration.
    make(tmp_path / "project", f"DRIVER={library(PYNQ, '-DVTAConfiguration=other_name')}", "CFLAGS=-O0")
    assert call(tmp_path / "project" / "model", "--self-test")[0] == 0
    code, text = call(tmp_path / "project" / "model", "--self-test", VTA_FAULT="token/1")
    assert code == 1
    assert "VTADeviceRun returned 1, it timed out" in text
    for backend in ("udmabuf", "xrt"):
        make(tmp_path / "project", f"DRIVER={backend}", "CFLAGS=-O0 -Werror")
        code, text = call(tmp_path / "project" / "model", "--self-test")
        assert code == 1
        assert "the driver gives no" in text
    make(tmp_path / "project", f"DRIVER={library(Accelerator.load('b8'))}", "CFLAGS=-O0")
    code, text = call(tmp_path / "project" / "model", "--self-test")
    assert code == 1
    assert "the driver is for 1x8" in text


def test_what_the_program_says_of_wrong_arguments_and_files(build: Path, project: Path, tmp_path: Path) -> None:
    program, given = project / "model", tmp_path / "in.bin"
    for arguments in ((), ("--help",), ("a",), ("a", "b", "c"), ("--self-test", "x")):
        code, text = call(program, *arguments)
        assert code == 2
        assert "usage: model --self-test | model IN.bin OUT.bin" in text
        assert "input x: 1 3 12 12" in text
    x = example(SMALL_SHAPE, 5)
    for content, expected in (
        (b"", "has less than the 1728 bytes"),
        (x.tobytes() + b"0", "has more than the 1728 bytes"),
        ((x * np.nan).tobytes(), "has infinite values or NaN"),
    ):
        given.write_bytes(content)
        code, text = call(program, given, tmp_path / "out.bin")
        assert code == 1
        assert expected in text
        assert not (tmp_path / "out.bin").exists()
    given.write_bytes(x.tobytes())
    for arguments, expected in (
        ((tmp_path / "none", tmp_path / "o"), "does not open"),
        ((given, tmp_path / "no" / "o"), "cannot be written"),
    ):
        code, text = call(program, *arguments)
        assert code == 1
        assert expected in text


def test_damaged_data_is_refused(project: Path, tmp_path: Path) -> None:
    shutil.copy(project / "model", tmp_path / "model")
    whole = (project / "model.bin").read_bytes()
    rng = np.random.default_rng(0)
    cases = [(b"", "ends too early"), (whole + b"x", "is longer"), (b"x" + whole[1:], "is no model.bin")]
    cases += [(whole[:8] + b"\x09" + whole[9:], "is of version 9"), (whole[:12] + b"abc" + whole[15:], "another model")]
    cases += [(whole[: int(size)], "ends too early") for size in rng.integers(1, len(whole), 20)]
    for place in rng.integers(32, len(whole), 20):
        cases.append(
            (whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :], "is damaged")
        )
    for content, expected in cases:
        (tmp_path / "model.bin").write_bytes(content)
        for arguments in (("--self-test",), (tmp_path / "model.bin", tmp_path / "out")):
            code, text = call(tmp_path / "model", *arguments)
            assert code == 1
            assert expected in text
    (tmp_path / "model.bin").unlink()
    assert "does not open; it belongs beside the program" in call(tmp_path / "model", "--self-test")[1]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("wrong/1", "WRONG, the first stem to head"),
        ("stale/1", "WRONG, the first stem to head"),
        ("token/1", "submission stem to head: "),
    ],
)
def test_the_self_test_finds_what_a_device_does_wrong(project: Path, fault: str, expected: str) -> None:
    code, text = call(project / "model", "--self-test", VTA_FAULT=fault)
    assert code == 1
    assert expected in text


def test_memory_that_the_vta_does_not_reach_is_refused(project: Path) -> None:
    assert call(project / "model", "--self-test", VTA_SIM_BASE="0x70000000")[0] == 0
    code, text = call(project / "model", "--self-test", VTA_SIM_LARGEST="4096")
    assert code == 1
    assert "in one piece" in text


def test_a_folder_of_something_else_is_left_alone(run_command: RunCommand, build: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = run_command("export", build, "--to-c", tmp_path)
    assert code == 2
    assert "holds 'mine.txt', no part of an exported model" in err
    code, _, err = run_command("export", tmp_path / "none", "--to-c", tmp_path / "c")
    assert code == 2
    assert "no folder" in err


# Other machines, and models of the zoo ----------------------------------------------------------
MACHINES = {
    "x86-64": ("gcc", ()),
    "armv7": ("arm-linux-gnueabihf-gcc", ("qemu-arm",)),
    "aarch64": ("aarch64-linux-gnu-gcc", ("qemu-aarch64",)),
}


def on_machine(build: Path, folder: Path, machine: str) -> list[str]:
    """The words that start a model on a machine."""
    cc, emulator = MACHINES[machine]
    for name in (cc, *emulator):
        needs_compiler(name)
    export(executable.read(build), folder)
    make(folder, f"CC={cc}", "CFLAGS=-O2 -Werror", "LDFLAGS=-static")
    return [*emulator, str(folder / "model")]


@pytest.mark.parametrize("machine", ["armv7", "aarch64"])
def test_a_small_model_on_another_machine(build: Path, tmp_path: Path, machine: str) -> None:
    program = on_machine(build, tmp_path / "project", machine)
    same_as_compiled(program, build, tmp_path)
    assert subprocess.run([*program, "--self-test"], check=False, capture_output=True).returncode == 0


def detector() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "definitions.py"
    spec = importlib.util.spec_from_file_location("definitions", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import torch

    torch.manual_seed(0)
    return module.YoloV8().eval()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name -> the folder of a compiled model, made once."""
    root = tmp_path_factory.mktemp("zoo")

    @functools.cache
    def folder(name: str) -> Path:
        if name == "yolov8n":
            import torch

            given = example((4, 3, 64, 64), 1)
            compile_model(detector(), example_inputs=(torch.zeros((1, 3, 64, 64)),), calibration=given).save(
                root / name
            )
        else:
            compile_model(name, PYNQ, size={"bert_tiny": 32}.get(name, 64)).save(root / name)
        return root / name

    return folder


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "bert_tiny", "yolov8n"])
def test_models_on_machines(compiled: Any, tmp_path: Path, name: str, machine: str) -> None:
    program = on_machine(compiled(name), tmp_path / "project", machine)
    done = subprocess.run([*program, "--self-test"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    size = subprocess.run(["size", tmp_path / "project" / "model"], check=False, capture_output=True, text=True).stdout
    print(f"{name} {machine}", done.stdout, size)
    same_as_compiled(program, compiled(name), tmp_path, atol=ALLOWED[name])


# Of the outputs, in their units (scores, pixels): what TVM's functions of floats and ours differ by.
ALLOWED = {"resnet18": 0.0, "mobilenet_v2": 0.0, "bert_tiny": 1e-4, "yolov8n": 1e-2}


@pytest.mark.slow
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "bert_tiny", "yolov8n"])
def test_models_with_sanitizers(compiled: Any, tmp_path: Path, name: str, cc: str) -> None:
    needs_compiler(cc)
    export(executable.read(compiled(name)), tmp_path / "project")
    make(tmp_path / "project", f"CC={cc}", f"CFLAGS=-Werror {' '.join(SANITIZED)}")
    code, text = call(tmp_path / "project" / "model", "--self-test")
    assert code == 0, text
    assert re.search(r"VTA [\d.]+ ms \(predicted [\d.]+\), host [\d.]+ ms", text)
