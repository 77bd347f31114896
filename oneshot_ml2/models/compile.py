"""Everything that can be compiled, through one line of stages; `compile` reads as their list.

All layers are known before the first one is picked, and all picks are made before anything is executed or timed: that
is what zero measurements mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from oneshot_ml2.common import ahead, kernels
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import first_run, host, hostcode, layout, partition, patches, samples
from oneshot_ml2.models.check import Checked, check_alone, check_executable
from oneshot_ml2.models.compiled import CompiledLayer, CompiledModel, Submission, Whole
from oneshot_ml2.models.costs import cost_of
from oneshot_ml2.models.executable import Executable, Tensor
from oneshot_ml2.models.frontend import importer
from oneshot_ml2.models.frontend.importer import LayerList
from oneshot_ml2.models.hostpart import host_part
from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.launcher import register_model
from oneshot_ml2.models.layout import Segment
from oneshot_ml2.models.quantize import quantize
from oneshot_ml2.models.runtime import LayerProgram, programs_digest
from oneshot_ml2.models.schedules import pick_layers
from oneshot_ml2.models.selecting import select_layers
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import InvalidSchedule
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload.lists import Layer

if TYPE_CHECKING:
    from tqdm import tqdm

    from oneshot_ml2.models.costs import Cost
    from oneshot_ml2.models.quantize.quantize import Quantized
    from oneshot_ml2.models.samples import Given
    from oneshot_ml2.network.picking import Pick

# Of a whole model; layers alone have "import", "pick" and "check", after a model's "quantize" and "partition".
STAGES = ("import", "quantize", "partition", "pick", "lower", "join", "build", "check")


def compile(
    model: Any,
    accelerator: Accelerator | str | Path = "pynq",
    *,
    example_inputs: Sequence[Any] | None = None,
    calibration: Given | None = None,
    size: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    layers: Sequence[str] = (),
    weights: str | Path | None = None,
    seed: int = 0,
    schedules: Sequence[Mapping[str, Any]] = (),
    rounding: str = "shift",
    check: bool = True,
    evaluate: Given | None = None,
    progress: bool = False,
) -> CompiledModel:
    """Compile a model, or layers, for an accelerator; nothing is measured for it.

    Args:
        model: a path ending in ``.onnx``, a name that `zoo.model_names` lists (random weights), a PyTorch module, what
            ``torch.export`` makes; or layers: `Layer`s, or a path ending in ``.toml``.
        accelerator: one, or what `Accelerator.load` takes.
        example_inputs: of a PyTorch module: a tuple of float32 tensors; their shapes are compiled for.
        calibration: inputs from which a float model's scales follow: an array that holds many along its first axis,
            arrays by the inputs' names, a list of such; a path of a ``.npy`` or ``.npz`` file, or of a folder of them
            or of images (`Images` says how these are scaled); none: random ones, with a warning.
        size: height and width of a named model's images, or its number of tokens; none: `zoo.native_size`.
        shapes: of an ONNX file's inputs, by name, where it leaves dimensions free; a free batch becomes 1.
        layers: names or shell patterns of layers: these are compiled one by one, and no whole model is.
        weights: shipped weights by name, or a safetensors file; none: the default ones.
        seed: of the random inputs.
        schedules: entries of a ``schedules.json``: these layers get these schedules, no pick.
        rounding: ``shift``: half up, by the VTA's shift; ``half_even``: ties to the even neighbour, as onnxruntime.
        check: run the result once, and hold it against the integer reference.
        evaluate: data to judge the compiled model by, see `CompiledModel.evaluate`.
        progress: show a bar on stderr.

    Warns:
        RuntimeWarning: a result differs from its reference (``ok`` is then False).

    Raises:
        OneShotError: a model that cannot be imported or quantized, unknown names, unusable weights.
        InvalidSchedule: none of the layers has a legal schedule; a whole model's go to the host.
        ModuleNotFoundError: torch, for a named model, is not installed.
    """
    if rounding not in quantize.ROUNDINGS:
        raise ModelError(f"rounding is {rounding!r}; allowed: {', '.join(quantize.ROUNDINGS)}")
    chip = Accelerator.of(accelerator)
    found = None if calibration is None else samples.find(calibration)
    judged = None if evaluate is None else samples.find(evaluate)
    quantized = None
    # What a first run compiles, another process begins with, while this one imports and quantizes.
    with ahead.compiled(first_run.USES), _stages(progress) as stage:
        # Import: anybody's model as a float graph at fixed shapes, or a list of layers.
        with stage("import"), _uncollected():
            source = importer.import_model(model, example_inputs, size, shapes)
        if isinstance(source, LayerList):
            name, tasks = source.name, list(source.layers)
        else:
            # Quantize: int8 tensors with powers of two as scales, and what that costs.
            with stage("quantize"):
                quantized = quantize.quantize(source, found, seed, rounding, stage.describe)
            # Partition: which operators the VTA takes, those of few channels over patches.
            with stage("partition"):
                quantized = dataclasses.replace(quantized, graph=patches.over_patches(quantized.graph, chip))
                name, tasks = quantized.graph.name, vta_layers(quantized.graph)
        tasks = select_layers(tasks, layers)
        graph = None if isinstance(source, LayerList) else source
        if judged is not None and (graph is None or layers):
            raise ModelError("layers have no task; evaluate a whole model, without choosing layers")
        # Pick and lower: a schedule and its program for every layer, by the network alone.
        with stage("pick"):
            picks = pick_layers(tasks, chip, weights, schedules, stage.describe)
        if quantized is None or layers:
            rows, whole = _alone(tasks, picks, quantized, seed if check else None, stage), None
        else:
            quantized, rows, whole = _whole(quantized, picks, chip, quantized.sample if check else None, stage)
    result = CompiledModel(name, chip, rows, stage.seconds, _peak_bytes(), quantized, whole, graph)
    if judged is not None:
        begin = time.perf_counter()
        outcome = result.evaluate(judged, progress)
        seconds = {**stage.seconds, "evaluate": time.perf_counter() - begin}
        result = dataclasses.replace(result, task=outcome, seconds=seconds, peak_bytes=_peak_bytes())
    if not result.ok:
        wrong = ", ".join(layer.name for layer in result.layers if not layer.ok) or "the model's output"
        warnings.warn(f"results differ from the reference: {wrong}", RuntimeWarning, stacklevel=2)
    return result


# The stages ------------------------------------------------------------------------------------
@dataclass
class _Stage:
    """A bar of the stages, and the wall time of each; called, it is the context of one."""

    bar: tqdm[Any]
    seconds: dict[str, float]

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.bar.set_postfix_str("")
        self.describe(name)
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin
        self.bar.update()

    def describe(self, text: str) -> None:
        self.bar.set_description(text)


@contextlib.contextmanager
def _stages(progress: bool) -> Iterator[_Stage]:
    from tqdm import tqdm

    hidden = None if progress else True
    with tqdm(total=len(STAGES), unit="stage", file=sys.stderr, leave=False, disable=hidden) as bar:
        stage = _Stage(bar, {})
        with kernels.telling(lambda: bar.set_postfix_str("compiling kernels, in the first run only")):
            yield stage


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collections: what importing torch and TVM makes stays, and they took a sixth of its time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def vta_layers(graph: Graph) -> list[Layer]:
    """The layers of an integer graph that the VTA takes, in their order."""
    found = [(node.name, node.attrs.get("workload")) for node in graph.nodes]
    return [Layer(name, workload) for name, workload in found if workload is not None]


def _alone(
    layers: Sequence[Layer],
    picks: Sequence[Pick | InvalidSchedule],
    quantized: Quantized | None,
    seed: int | None,
    stage: _Stage,
) -> tuple[CompiledLayer, ...]:
    """Layers one by one, each checked on random tensors, unless ``seed`` is None.

    Raises:
        InvalidSchedule: no layer has a schedule.
    """
    nodes = {} if quantized is None else {node.name: node for node in quantized.graph.nodes}
    errors = {} if quantized is None else {error.name: error for error in quantized.errors}
    rows = []
    for result in picks:
        if isinstance(result, InvalidSchedule) and all(isinstance(other, InvalidSchedule) for other in picks):
            raise result
    with stage("check"):
        costs = _costs(picks)
        for layer, result in zip(layers, picks, strict=True):
            stage.describe(f"check {layer.name}")
            workload, node = layer.workload, nodes.get(layer.name)
            pick = None if isinstance(result, InvalidSchedule) else result
            cost = None if pick is None else costs[id(pick)]
            wrong = None
            if seed is not None and pick is not None and cost is not None:
                wrong = math.prod(workload.output_shape) if cost.hang else check_alone(layer, pick, seed)
            rows.append(
                CompiledLayer(
                    name=layer.name,
                    operator=str(workload.to_dict()["op"]) if node is None else _operator(node),
                    shape=tuple(workload.output_shape),
                    macs=workload.real_macs,
                    count=layer.count,
                    workload=workload,
                    pick=pick,
                    cost=cost,
                    reason=None if pick is not None else str(result),
                    unscheduled=pick is None,
                    error=errors[layer.name].rms if layer.name in errors else None,
                    alone=errors[layer.name].alone if layer.name in errors else None,
                    wrong=wrong,
                )
            )
    return tuple(rows)


def _whole(
    quantized: Quantized,
    results: Sequence[Pick | InvalidSchedule],
    chip: Accelerator,
    sample: Mapping[str, NDArray[Any]] | None,
    stage: _Stage,
) -> tuple[Quantized, tuple[CompiledLayer, ...], Whole]:
    """A whole model, run once on ``sample``, unless that is None."""
    quantized, picks = _assigned(quantized, results)
    graph = quantized.graph
    # Lower: each program with its packed weights and biases.
    with stage("lower"):
        on_vta = [node for node in graph.nodes if node.output in picks]
        programs = layout.shared(
            {node.output: layout.layer_program(node, picks[node.output].program) for node in on_vta}
        )
    # Join: layers with nothing for the host between them, in one submission; one plan of the VTA's memory.
    with stage("join"):
        steps = layout.arrange(graph, programs)
        segments = [step for step in steps if isinstance(step, Segment)]
        joined, dram = layout.plan(segments, programs, chip)
    # Build: the host's operators and the launches, by TVM.
    with stage("build"):
        executable = build(graph, chip, steps, joined)
    # Check: every layer, every submission and the whole model against the integer reference; and their cycles.
    checked = None
    with stage("check"):
        costs = _costs(results)
        submissions = tuple(_submission(segment, program) for segment, program in zip(segments, joined))
        if sample is not None:
            checked = check_executable(graph, executable, segments, programs, sample)
    rows = _rows(quantized, picks, costs, checked)
    return quantized, rows, Whole(executable, host_part(graph, steps), submissions, dram, checked)


def _assigned(quantized: Quantized, results: Sequence[Pick | InvalidSchedule]) -> tuple[Quantized, dict[str, Pick]]:
    """Output of a node -> its pick; the layers that have none are the host's from here on."""
    left = iter(results)
    picks, nodes = {}, []
    for node in quantized.graph.nodes:
        if node.attrs.get("workload") is not None:
            pick = next(left)
            if isinstance(pick, InvalidSchedule):
                lost = {"workload": None, "reason": str(pick), "unscheduled": True}
                node = dataclasses.replace(node, attrs={**node.attrs, **lost})
            else:
                picks[node.output] = pick
        nodes.append(node)
    graph = dataclasses.replace(quantized.graph, nodes=tuple(nodes))
    return dataclasses.replace(quantized, graph=graph), picks


def _rows(
    quantized: Quantized, picks: Mapping[str, Pick], costs: Mapping[int, Cost], checked: Checked | None
) -> tuple[CompiledLayer, ...]:
    """What there is to say of each operator."""
    graph = quantized.graph
    errors = {error.name: error for error in quantized.errors}
    rows = []
    for node in graph.nodes:
        pick = picks.get(node.output)
        rows.append(
            CompiledLayer(
                name=node.name,
                operator=_operator(node),
                shape=tuple(graph.values[node.output].shape),
                macs=partition.node_macs(graph, node),
                workload=node.attrs.get("workload"),
                pick=pick,
                cost=None if pick is None else costs[id(pick)],
                reason=partition.host_reason(node),
                unscheduled=bool(node.attrs.get("unscheduled")),
                exponent=graph.values[node.output].exponent,
                error=errors[node.name].rms if node.name in errors else None,
                alone=errors[node.name].alone if node.name in errors else None,
                wrong=None if pick is None or checked is None else checked.layers[node.name],
            )
        )
    return tuple(rows)


def _operator(node: Node) -> str:
    return node.op.removeprefix("int_")


def _costs(picks: Sequence[Pick | InvalidSchedule]) -> dict[int, Cost]:
    """The identity of each pick -> what its program takes; equal layers share a pick, and are timed once."""
    different = {id(pick): pick for pick in picks if not isinstance(pick, InvalidSchedule)}
    return {key: cost_of(pick) for key, pick in different.items()}


def _submission(segment: Segment, layer: LayerProgram) -> Submission:
    """Time a submission's program."""
    cycles = int(designs.measure(layer.program).cycles)
    return Submission(tuple(node.name for node in segment.nodes), len(layer.inputs), len(layer.outputs), cycles)


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
    register_model(identity, segments, identity)
    inputs = tuple(Tensor(name, graph.values[name].shape, graph.values[name].limit) for name in graph.inputs)
    results = tuple(
        Tensor(title, graph.values[name].shape) for title, name in zip(graph.output_names, graph.outputs, strict=True)
    )
    return Executable(graph.name, identity, chip, inputs, results, tuple(segments), library)
