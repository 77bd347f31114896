"""What each step of quantization brings: errors of the integer graphs in numpy, nothing is compiled for the VTA.

Run: ``pip install -e '.[models]'``, then ``python benchmarks/quantization.py [--only NAME ...] [--steps NAME ...]``.
The models are those of `architectures.py`, exported as `models.py` does. Each is quantized on its calibration inputs
and held against the float model on others. ``--static`` adds onnxruntime's own static int8 (`quantize_static`: QDQ,
a scale for each channel of a weight, otherwise default options) on the same inputs. A row is printed as soon as it is
there; ``--table FILE`` also puts it into a table in Markdown. Models that have a row there are left out unless
``--only`` names them, so the command goes on where it ended. Small files come first.

``--cycles`` gives simulated cycles instead, of picked schedules for ``pynq``, of the layers that VTA computes with each
of the ``--steps``, and how many more the last takes than the first. What operators take that some of the steps leave to
the host stands apart, for the first and for the last.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from architectures import ARCHITECTURES, Architecture
from exporting import draw
from models import ACCELERATOR, CACHE, exported
from numpy.typing import NDArray

from oneshot_ml2.common import arrays
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.models import execute, partition, patches
from oneshot_ml2.models.compile import compile as compile_model
from oneshot_ml2.models.compile import vta_layers
from oneshot_ml2.models.frontend.importer import import_model
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.quantize.quantize import quantize
from oneshot_ml2.models.quantize.steps import NO_STEPS, Steps
from oneshot_ml2.vta.accelerator import Accelerator

# Inputs, and what they are for the outputs of the float model.
Held: TypeAlias = list[tuple[dict[str, NDArray[Any]], list[NDArray[Any]]]]
# Multiplications that the inputs of a model make together, about; inputs at least and at most. By eight inputs, errors
# of small models differ by a third for no reason.
_WORK, _LEAST, _MOST = 2e9, 2, 64
# The first opset whose operators have scales by channel.
_PER_CHANNEL = 13
# Every column takes a step more.
COLUMNS = {
    "none": NO_STEPS,
    "floats": replace(NO_STEPS, floats=True),
    "equalize": replace(NO_STEPS, floats=True, equalize=True),
    "bias": replace(NO_STEPS, floats=True, equalize=True, bias=True),
    "offsets": replace(Steps(), rows=False, fine=False),
    "all": Steps(),
}


def relative(found: list[list[NDArray[Any]]], held: Held) -> float:
    """The relative error, root of squares over all inputs, of the worst output."""
    errors = []
    for number in range(len(found[0])):
        pairs = [(outputs[number], expected[number]) for outputs, (_, expected) in zip(found, held, strict=True)]
        apart = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
        size = sum(float(np.square(b.astype(np.float64)).sum()) for _, b in pairs)
        errors.append((apart / max(size, 1e-24)) ** 0.5)
    return max(errors)


def inputs_of(model: Architecture, graph: Graph) -> list[dict[str, NDArray[Any]]]:
    """Inputs that nothing was calibrated on: 64, fewer of large models, two at least."""
    macs = sum(partition.node_macs(graph, node) for node in graph.nodes)
    count = int(np.clip(_WORK // max(macs, 1), _LEAST, _MOST))
    drawn = {of.name: draw(of, count, 2) for of in model.inputs}
    return [{of.name: np.split(drawn[of.name], count)[index] for of in model.inputs} for index in range(count)]


def ours(graph: Graph, folder: Path, steps: Steps, held: Held) -> tuple[float, float]:
    """The error of the integer graph, and the CPU seconds that quantization takes."""
    begin = time.process_time()
    result = quantize(graph, folder / "calibration.npz", steps=steps)
    taken = time.process_time() - begin
    return relative([list(execute.execute(result.graph, given).values()) for given, _ in held], held), taken


def cycles(graph: Graph, folder: Path, steps: Steps) -> tuple[dict[str, int], set[str]]:
    """What the layers of the integer graph take by their names; the names of all its operators."""
    integer = quantize(graph, folder / "calibration.npz", steps=steps).graph
    chip = Accelerator.load(ACCELERATOR)
    integer = patches.over_patches(integer, chip)
    compiled = compile_model(vta_layers(integer), chip, check=False)
    found = {layer.name: layer.count * layer.cost.cycles for layer in compiled.layers if layer.cost is not None}
    return found, {node.name for node in integer.nodes}


def onnxruntimes(model: Architecture, folder: Path, held: Held) -> float:
    """The error of onnxruntime's static int8, a scale for each channel of a weight."""
    import onnx.version_converter
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    samples = arrays.read(folder / "calibration.npz")
    count = len(next(iter(samples.values()))) // model.inputs[0].shape[0]
    feeds = [
        {of.name: samples[of.name][index * of.shape[0] : (index + 1) * of.shape[0]] for of in model.inputs}
        for index in range(count)
    ]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as work:
        prepared, made = Path(work) / "prepared.onnx", Path(work) / "int8.onnx"
        source: Any = str(folder / "model.onnx")
        graph = onnx.load(source)
        if any(of.domain == "" and of.version < _PER_CHANNEL for of in graph.opset_import):
            source = onnx.version_converter.convert_version(graph, _PER_CHANNEL)
        quant_pre_process(source, str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), str(made), Reader(), per_channel=True)
        session = onnxruntime.InferenceSession(str(made), providers=["CPUExecutionProvider"])
        return relative([session.run(None, given) for given, _ in held], held)


def _head(header: list[str]) -> list[str]:
    return ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]


def tabulated(path: Path | None, header: list[str]) -> dict[str, str]:
    """The rows of a table of that header by their models; those of another header do not count."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    head = _head(header)
    known = lines[len(head) :] if lines[: len(head)] == head else []
    return {line.split("|")[1].strip(): line for line in known}


def tabulate(path: Path, header: list[str], row: str) -> None:
    """Put a row into a table of that header; rows of other models stay."""
    rows = tabulated(path, header) | {row.split("|")[1].strip(): row}
    text = [*_head(header), *(rows[model.name] for model in ARCHITECTURES if model.name in rows)]
    write_whole(path, "\n".join(text) + "\n")


def chosen(only: Collection[str] | None, done: Collection[str], cache: Path) -> list[Architecture]:
    """The models of a run: those that are named, or that are not done yet; those of small files first."""

    def size(model: Architecture) -> float:
        file = cache / model.name / "model.onnx"
        return file.stat().st_size if file.exists() else np.inf

    wanted = [model for model in ARCHITECTURES if (model.name in only if only else model.name not in done)]
    return sorted(wanted, key=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models")
    parser.add_argument("--steps", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="these columns")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--static", action="store_true", help="also onnxruntime's static int8")
    kind.add_argument("--cycles", action="store_true", help="simulated cycles, no errors")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of exported models")
    parser.add_argument("--table", type=Path, metavar="FILE", help="the rows go there, too")
    args = parser.parse_args()
    last = ["CPU s", *(["onnxruntime by channel"] if args.static else [])]
    if args.cycles:
        last = ["more", f"apart, {args.steps[0]}", f"apart, {args.steps[-1]}"]
    header = ["model", *args.steps, *last]
    print("\n".join(_head(header)), flush=True)
    for model in chosen(args.only, tabulated(args.table, header), args.cache):
        why = exported(model, args.cache, 1800, 16)
        if why:
            print(f"{model.name}: {why}", file=sys.stderr)
            continue
        folder = args.cache / model.name
        graph = import_model(folder / "model.onnx")
        assert isinstance(graph, Graph)
        if args.cycles:
            cells = cycle_cells(graph, folder, args.steps)
        else:
            cells = error_cells(model, graph, folder, args.steps, args.static)
        row = "| " + " | ".join([model.name, *cells]) + " |"
        print(row, flush=True)
        if args.table is not None:
            tabulate(args.table, header, row)


def error_cells(model: Architecture, graph: Graph, folder: Path, steps: Collection[str], static: bool) -> list[str]:
    """The errors of a model with some steps, the time of the last, and onnxruntime's error."""
    held = [(given, list(execute.execute(graph, given).values())) for given in inputs_of(model, graph)]
    cells, taken = [], 0.0
    for name in steps:
        error, taken = ours(graph, folder, COLUMNS[name], held)
        cells.append(f"{error:.2%}")
    cells.append(f"{taken:.1f}")
    if static:
        try:
            cells.append(f"{onnxruntimes(model, folder, held):.2%}")
        except Exception as error:
            cells.append(type(error).__name__)
    return cells


def cycle_cells(graph: Graph, folder: Path, steps: Collection[str]) -> list[str]:
    """The cycles of a model with some steps, how many more the last takes than the first, and what these two take that
    is not in the columns: operators that the host computes with other steps (an average pool, which is exact there).
    """
    found = [cycles(graph, folder, COLUMNS[name]) for name in steps]
    on_vta = {name for layers, _ in found for name in layers}
    elsewhere = {name for layers, names in found for name in on_vta & (names - set(layers))}
    counts = [sum(count for name, count in layers.items() if name not in elsewhere) for layers, _ in found]
    apart = [sum(layers.get(name, 0) for name in elsewhere) for layers in (found[0][0], found[-1][0])]
    more = f"{counts[-1] / max(counts[0], 1) - 1:+.2%}"
    return [*(f"{count:,}" for count in counts), more, *(f"{count:,}" for count in apart)]


if __name__ == "__main__":
    main()
