"""A model from its graph to something that runs: import, quantize, partition, pick, lower, build.

All layers are known before the first one is picked, and all picks are made before anything is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import host, hostcode, layout, patches
from oneshot_ml2.models.check import check_executable
from oneshot_ml2.models.compiled import CompiledGraph, Cost, Submission
from oneshot_ml2.models.executable import Executable, Tensor
from oneshot_ml2.models.frontend import importer
from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.launcher import register_model
from oneshot_ml2.models.layout import Segment
from oneshot_ml2.models.quantize import quantize, sampling
from oneshot_ml2.models.runtime import LayerProgram, programs_digest
from oneshot_ml2.models.schedules import pick_layers
from oneshot_ml2.vta import simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.timing import chisel

if TYPE_CHECKING:
    from oneshot_ml2.network.picking import Pick

STAGES = ("import", "quantize", "pick", "lower", "build", "check")


def compile_model(
    model: Any,
    accelerator: Accelerator | str | Path = "pynq",
    *,
    example_inputs: Sequence[Any] | None = None,
    calibration: NDArray[Any] | Mapping[str, NDArray[Any]] | Sequence[Mapping[str, NDArray[Any]]] | None = None,
    size: int = 224,
    weights: str | Path | None = None,
    seed: int = 0,
    schedules: Sequence[Mapping[str, Any]] = (),
    rounding: str = "shift",
    check: bool = True,
    progress: bool = False,
) -> CompiledGraph:
    """Compile a whole model for an accelerator; nothing is measured for it.

    Args:
        model: a path ending in ``.onnx``, a name that `models.model_names` lists (random weights), or a PyTorch module.
        accelerator: one, or what `Accelerator.load` takes.
        example_inputs: of a PyTorch module: a tuple of float32 tensors; their shapes are compiled for.
        calibration: inputs from which a float model's scales follow (see `quantize.split_samples`); none: random
            ones, with a warning.
        size: height and width of a named model's images, or its number of tokens.
        weights: shipped weights by name, or a safetensors file; none: the default ones.
        seed: of the random inputs.
        schedules: entries of a ``schedules.json``: these layers get these schedules, no pick.
        rounding: ``shift``: half up, by the VTA's shift; ``half_even``: ties to the even neighbour, as onnxruntime.
        check: run the result once, and hold it against the integer reference.
        progress: show a bar on stderr.

    Raises:
        OneShotError: a model that cannot be imported or quantized, unknown names, unusable weights.
        ModuleNotFoundError: tvm or onnx is not installed.
    """
    from tqdm import tqdm

    if rounding not in quantize.ROUNDINGS:
        raise ModelError(f"rounding is {rounding!r}; allowed: {', '.join(quantize.ROUNDINGS)}")
    chip = accelerator if isinstance(accelerator, Accelerator) else Accelerator.load(accelerator)
    seconds: dict[str, float] = {}
    with tqdm(total=len(STAGES), unit="stage", file=sys.stderr, leave=False, disable=None if progress else True) as bar:

        @contextlib.contextmanager
        def stage(name: str) -> Iterator[None]:
            bar.set_description(name)
            begin = time.perf_counter()
            yield
            seconds[name] = time.perf_counter() - begin
            bar.update()

        with stage("import"):
            source = importer.import_model(model, example_inputs, size)
        with stage("quantize"):
            samples = None if calibration is None else sampling.split_samples(source, calibration)
            quantized = quantize.quantize(source, samples, seed, rounding)
            quantized = dataclasses.replace(quantized, graph=patches.over_patches(quantized.graph, chip))
        with stage("pick"):
            quantized, picks = pick_layers(quantized, chip, weights, schedules, bar.set_description)
        with stage("lower"):
            graph = quantized.graph
            layers = {
                node.output: layout.layer_program(node, picks[node.output].program)
                for node in graph.nodes
                if node.output in picks
            }
            steps = layout.arrange(graph, layers)
            segments = [step for step in steps if isinstance(step, Segment)]
            joined, dram = layout.plan(segments, layers, chip)
        with stage("build"):
            compiled = build(graph, chip, steps, joined)
        checked = None
        with stage("check"):
            costs = {output: _cost(pick) for output, pick in picks.items()}
            submissions = tuple(_submission(segment, program) for segment, program in zip(segments, joined))
            if check:
                sample = samples[0] if samples else sampling.random_samples(source, 1, seed)[0]
                checked = check_executable(graph, compiled, segments, layers, sample)
    return CompiledGraph(quantized, compiled, picks, costs, submissions, dram, seconds, _peak_bytes(), checked)


def _submission(segment: Segment, layer: LayerProgram) -> Submission:
    """Time a submission's program."""
    cycles = int(chisel.measure(layer.program).cycles)
    return Submission(tuple(node.name for node in segment.nodes), len(layer.inputs), len(layer.outputs), cycles)


def _cost(pick: Pick) -> Cost:
    """Time a layer's program, and count what it moves."""
    chip = pick.program.accelerator
    moved = simulator.traffic(pick.program.insns, chip)
    return Cost(
        cycles=int(chisel.measure(pick.program).cycles),
        bound=engine_bound(pick.space.workload, chip).bound,
        dram_bytes=sum(value for name, value in moved.items() if name.endswith("_nbytes")),
    )


def _peak_bytes() -> int:
    """The most memory that this process had; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def build(
    graph: Graph, chip: Accelerator, steps: Sequence[Node | Segment], segments: Sequence[LayerProgram]
) -> Executable:
    """Compile the host's part with TVM; ``segments``: the programs of the submissions among ``steps``."""
    tvm = host.import_tvm()
    identity = programs_digest(segments)
    module = hostcode.relax_module(graph, steps, identity)
    with host.quiet_stderr():
        library = tvm.compile(tvm.relax.get_pipeline("zero")(module), "llvm")
    register_model(identity, segments)
    inputs = tuple(Tensor(name, graph.values[name].shape, graph.values[name].limit) for name in graph.inputs)
    results = tuple(
        Tensor(title, graph.values[name].shape) for title, name in zip(graph.output_names, graph.outputs, strict=True)
    )
    return Executable(graph.name, identity, chip, inputs, results, tuple(segments), library)
