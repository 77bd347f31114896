"""Models as C: every operator of the host against its numpy form, whole models, damage, and other machines."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drivers import needs_compiler
from graph_models import needs
from numpy.typing import NDArray
from op_cases import GROUPS, Case, written

from oneshot_ml2.devices.build import BACKENDS, compile_c
from oneshot_ml2.models import hostpart
from oneshot_ml2.models.c_export import operators, source
from oneshot_ml2.models.c_export.export import export
from oneshot_ml2.models.c_export.golden import reference
from oneshot_ml2.models.executable import Stored, Tensor
from oneshot_ml2.models.frontend.from_onnx import import_onnx
from oneshot_ml2.models.hostpart import HostPart, host_part
from oneshot_ml2.models.ir import Graph, Value
from oneshot_ml2.models.ops.registry import ops
from oneshot_ml2.models.quantize.quantize import quantize
from oneshot_ml2.vta.accelerator import Accelerator

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
SOME = {key: cases for key, cases in SETS.items() if key[0] not in ("layers", "recurrent", "resizes")}


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
    assert known == set(operators.EMITTERS)
