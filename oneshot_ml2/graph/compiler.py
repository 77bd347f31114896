"""A model from its graph to something that runs: import, quantize, partition, pick, lower, build.

All layers are known before the first one is picked, and all picks are made before anything is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2 import report
from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.errors import ModelError, OneShotError
from oneshot_ml2.graph import executable, importer, ir, layout, operators, partition, patches
from oneshot_ml2.graph import quantize as quantizing
from oneshot_ml2.graph.executable import Executable, Tensor
from oneshot_ml2.graph.ir import Graph, Node
from oneshot_ml2.graph.layout import Dram, Segment
from oneshot_ml2.graph.quantize import Quantized
from oneshot_ml2.reading import parse_json, read_text
from oneshot_ml2.runtime import LayerProgram, programs_digest, register_model, watched
from oneshot_ml2.schedule import backend as schedule_backend

if TYPE_CHECKING:
    from oneshot_ml2.oneshot import Pick

STAGES = ("import", "quantize", "pick", "lower", "build", "check")
# Float operators without rounding; what the others' last bits change, an int8 step that flips amplifies.
_EXACT = {*operators.SHAPING, "max_pool2d", "relu", "clip"}
_FLOAT_TOLERANCE = 0.05
# Of int8: what rounding makes of a last bit, and a sum on the host of that.
_STEPS = 2


@dataclass(frozen=True)
class Checked:
    """What a run of the compiled model was held against: the integer reference of the same graph.

    ``layers``: layer -> outputs of its program alone that differ, its operands being the reference's; ``submissions``:
    the same of each submission's joined programs; ``outputs``: elements of the whole model's outputs that differ;
    ``largest``: the largest such difference; ``allowed``: how large it may be, 0 unless the host computes real numbers
    whose last bits depend on its compiler.

    In that case a last bit can decide an int8 step, and what follows from it is no error of anyone; so every submission
    gives the reference's results to the host there. ``flips``: elements that the host hands to submissions and that
    differ all the same; ``steps``: by how many steps of int8 at most.
    """

    layers: Mapping[str, int]
    submissions: tuple[int, ...]
    outputs: int
    largest: float
    allowed: float
    flips: int = 0
    steps: int = 0

    @property
    def ok(self) -> bool:
        """All layers and submissions are exact, and so is the model, as far as it consists of integers."""
        exact = not any((*self.layers.values(), *self.submissions))
        return exact and self.largest <= self.allowed and self.steps <= _STEPS


@dataclass(frozen=True)
class Cost:
    """What a layer's program takes.

    ``cycles``: by the timing model; ``bound``: the engine bound of the layer, in cycles; ``dram_bytes``: moved by LOADs
    and STOREs.
    """

    cycles: int
    bound: int
    dram_bytes: int


@dataclass(frozen=True)
class Submission:
    """What the layers of one submission take together.

    ``layers``: their names; ``inputs``, ``outputs``: tensors that are packed and unpacked for it; ``cycles``: by the
    timing model, from launch to end.
    """

    layers: tuple[str, ...]
    inputs: int
    outputs: int
    cycles: int


@dataclass(frozen=True)
class CompiledGraph:
    """A whole model, compiled.

    Attributes:
        quantized: its integer graph, which `ir.execute` computes, and the errors of quantization.
        executable: what runs.
        picks: output of a node -> the schedule of its layer; only of those on the VTA.
        costs: output of a node -> what its program takes alone.
        submissions: what is launched, in order.
        dram: the plan of the VTA's memory.
        seconds: wall time of each of ``STAGES``.
        peak_bytes: the most memory that the process had so far; 0 where the system does not say.
        checked: None if nothing was checked.
    """

    quantized: Quantized
    executable: Executable
    picks: Mapping[str, Pick]
    costs: Mapping[str, Cost]
    submissions: tuple[Submission, ...]
    dram: Dram
    seconds: Mapping[str, float]
    peak_bytes: int
    checked: Checked | None

    @property
    def accelerator(self) -> Accelerator:
        return self.executable.accelerator

    @property
    def graph(self) -> Graph:
        return self.quantized.graph

    @property
    def ok(self) -> bool:
        """What was checked is right."""
        return self.checked is None or self.checked.ok

    def run(self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """As `Executable.run`."""
        return self.executable.run(inputs)

    def save(self, folder: str | Path) -> None:
        """Write the folder that ``oneshot-ml2 run`` and `executable.load` take, see `executable.writing`."""
        with executable.writing(folder) as place:
            self.write(place)

    def write(self, folder: Path) -> None:
        """As `save`, within `executable.writing`."""
        executable.save(self.executable, folder, self.schedules(), self.to_dict(), self.html())

    def html(self) -> str:
        """A self-contained page with the report and what each layer does over time."""
        from oneshot_ml2 import html_report

        nodes = (node for node in self.graph.nodes if node.output in self.picks)
        return html_report.page(self.to_dict(), {node.name: self.picks[node.output].program for node in nodes})

    def macs(self) -> tuple[int, int]:
        """Multiplications on the VTA, and on the host."""
        on = {True: 0, False: 0}
        for node in self.graph.nodes:
            on[node.output in self.picks] += partition.node_macs(self.graph, node)
        return on[True], on[False]

    def schedules(self) -> list[dict[str, Any]]:
        """Each layer's schedule and where it comes from, for ``schedules.json``."""
        return [
            {
                "layer": node.name,
                "workload": node.attrs["workload"].to_dict(),
                "space": pick.space.kind,
                "space_version": schedule_backend(pick.space.kind).SPACE_VERSION,
                "schedule": dict(pick.schedule.knobs),
                "source": pick.source,
                "predicted_cycles": report.finite(pick.predicted_cycles),
            }
            for node in self.graph.nodes
            for pick in [self.picks.get(node.output)]
            if pick is not None
        ]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        on_vta, on_host = self.macs()
        errors = {error.name: error for error in self.quantized.errors}
        layers = []
        for node in self.graph.nodes:
            pick = self.picks.get(node.output)
            error = errors.get(node.name)
            entry: dict[str, Any] = {
                "layer": node.name,
                "operator": node.op.removeprefix("int_"),
                "where": "host" if pick is None else "vta",
                "shape": list(self.graph.values[node.output].shape),
                "macs": partition.node_macs(self.graph, node),
                "exponent": self.graph.values[node.output].exponent,
                "error": None if error is None else error.rms,
            }
            if pick is None:
                entry["reason"] = partition.host_reason(node)
            else:
                entry |= {
                    "workload": node.attrs["workload"].to_dict(),
                    "schedule": dict(pick.schedule.knobs),
                    "source": pick.source,
                    "predicted_cycles": report.finite(pick.predicted_cycles),
                    **dataclasses.asdict(self.costs[node.output]),
                    "wrong_outputs": None if self.checked is None else self.checked.layers[node.name],
                }
            layers.append(entry)
        return {
            "model": self.executable.name,
            "accelerator": json.loads(self.accelerator.to_json()) | {"name": self.accelerator.name},
            "quantization": self.quantized.kind,
            "rounding": self.quantized.rounding,
            "changes": list(self.quantized.changes),
            "warnings": self.warnings(),
            "losses": [dataclasses.asdict(loss) for loss in self.quantized.losses],
            "ok": self.ok,
            "checked": None if self.checked is None else {
                "outputs": self.checked.outputs,
                "largest_difference": report.finite(self.checked.largest),
                "allowed_difference": self.checked.allowed,
                "operands_that_differ": self.checked.flips,
                "steps": self.checked.steps,
            },
            "cycles": self.cycles,
            "layer_cycles": sum(cost.cycles for cost in self.costs.values()),
            "engine_bound": self.bound,
            "milliseconds": self.milliseconds,
            "macs_vta": on_vta,
            "macs_host": on_host,
            "host_shares": partition.host_shares(self.graph),
            "seconds": dict(self.seconds),
            "peak_bytes": self.peak_bytes,
            "dram": dataclasses.asdict(self.dram),
            "submissions": [
                dataclasses.asdict(submission) | {"wrong_outputs": wrong}
                for submission, wrong in zip(
                    self.submissions,
                    [None] * len(self.submissions) if self.checked is None else self.checked.submissions,
                )
            ],
            "layers": layers,
        }  # fmt: skip

    @property
    def cycles(self) -> int:
        """Simulated cycles of all submissions to the VTA."""
        return sum(submission.cycles for submission in self.submissions)

    @property
    def bound(self) -> int:
        """The sum of the layers' engine bounds."""
        return sum(cost.bound for cost in self.costs.values())

    @property
    def milliseconds(self) -> float:
        """Those cycles at the VTA's clock."""
        return self.cycles / (self.accelerator.clock_mhz * 1e3)

    def _unscheduled(self) -> list[str]:
        """A line for each layer whose multiplications are the host's for want of a schedule."""
        on_vta, on_host = self.macs()
        lines = []
        for node in self.graph.nodes:
            macs = partition.node_macs(self.graph, node)
            if macs and node.attrs.get("unscheduled"):
                line = report.on_host(node.name, str(partition.host_reason(node)))
                lines.append(f"{line} ({macs / (on_vta + on_host):.1%} of the model's MACs)")
        return lines

    def warnings(self) -> list[str]:
        """What the missing schedules, the quantization and the picks warn of, one line each."""
        about: dict[str, list[str]] = {}
        for node in self.graph.nodes:
            for warning in self.picks[node.output].warnings if node.output in self.picks else ():
                about.setdefault(warning, []).append(node.name)
        return [
            *self._unscheduled(),
            *self.quantized.warnings,
            *(
                f"{'all layers' if len(names) == len(self.picks) else ', '.join(names)}: {warning}"
                for warning, names in about.items()
            ),
        ]

    def report(self) -> str:
        """The table, a row an operator, and the totals."""
        texts = ("layer", "operator", "on", "shape", "schedule or reason", "source", "result")
        header = (*texts[:-1], "predicted", "cycles", "of bound", "KiB", "error", texts[-1])
        errors = {error.name: error.rms for error in self.quantized.errors}
        rows = []
        for node in self.graph.nodes:
            pick = self.picks.get(node.output)
            error = f"{errors[node.name]:.2%}" if node.name in errors else ""
            shape = "x".join(map(str, self.graph.values[node.output].shape[1:]))
            op = node.op.removeprefix("int_")
            if pick is None:
                rows.append((node.name, op, "host", shape, partition.host_reason(node) or "", *[""] * 5, error, ""))
                continue
            wrong = None if self.checked is None else self.checked.layers[node.name]
            result = "" if wrong is None else "exact" if wrong == 0 else f"WRONG: {wrong:,}"
            cost = self.costs[node.output]
            rows.append(
                (
                    node.name, op, "vta", report.short_workload(node.attrs["workload"]),
                    report.short_schedule(pick.schedule), pick.source, f"{pick.predicted_cycles:,.0f}",
                    f"{cost.cycles:,}", report.percent(cost.bound / cost.cycles), f"{cost.dram_bytes / 1024:,.0f}",
                    error, result,
                )
            )  # fmt: skip
        on_vta, on_host = self.macs()
        chip, total = self.accelerator, max(on_vta + on_host, 1)
        sources = Counter(str(pick.source) for pick in self.picks.values())
        lines = [
            report.table(header, rows, left=texts),
            "",
            f"{self.executable.name} on {chip.name}: {self.cycles:,} cycles on the VTA, {self.milliseconds:.2f} ms at "
            f"{chip.clock_mhz} MHz, {report.percent(self.bound / max(self.cycles, 1))} of the engine bound; "
            f"{on_vta / total:.1%} of {total:,} MACs on the VTA.",
            f"{len(self.picks)} layers in {len(self.submissions)} submissions; one by one they take "
            f"{sum(cost.cycles for cost in self.costs.values()):,} cycles.",
            f"DRAM of the VTA: {self.dram.total / 2**20:,.2f} MiB, of which activations "
            f"{self.dram.activations / 2**20:,.2f} ({self.dram.separate / 2**20:,.2f} if no layers shared any).",
            "Picks: " + (", ".join(f"{count} {source}" for source, count in sources.most_common()) or "none") + ".",
            *(f"Warning: {line}." for line in self._unscheduled()),
            *(f"Changed: {change}." for change in self.quantized.changes),
            *(f"Warning: {warning}." for warning in self.warnings()),
        ]
        if self.checked is not None:
            right = sum(not wrong for wrong in self.checked.layers.values())
            end = "equals it"
            if self.checked.outputs:
                differs = "differs" if self.checked.largest <= self.checked.allowed else "DIFFERS"
                end = f"{differs} by at most {self.checked.largest:.2g} (allowed: {self.checked.allowed:.2g})"
            if self.checked.allowed:
                end += (
                    f", and {self.checked.flips} operands that the host computes do, by at most {self.checked.steps} "
                    "steps of int8, where it gets the reference's results from each submission"
                )
            lines.append(
                f"{right} of {len(self.checked.layers)} VTA layers equal the integer reference bit for bit, and so do "
                f"{self.checked.submissions.count(0)} of {len(self.checked.submissions)} submissions; the whole "
                f"model's output {end}."
            )
        times = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        lines += [
            f"Wall time: {times}; peak memory {self.peak_bytes / 2**20:,.0f} MiB.",
            "error: of the int8 tensor against the model's own, root mean square, relative, with all errors before it. "
            f"Rounding: {'half to even' if self.quantized.rounding == 'half_even' else 'half up'}.",
        ]
        return "\n".join(lines)


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

    if rounding not in quantizing.ROUNDINGS:
        raise ModelError(f"rounding is {rounding!r}; allowed: {', '.join(quantizing.ROUNDINGS)}")
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
            samples = None if calibration is None else quantizing.split_samples(source, calibration)
            quantized = quantizing.quantize(source, samples, seed, rounding)
            quantized = dataclasses.replace(quantized, graph=patches.over_patches(quantized.graph, chip))
        with stage("pick"):
            quantized, picks = _pick(quantized, chip, weights, schedules, bar.set_description)
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
                sample = samples[0] if samples else quantizing.random_samples(source, 1, seed)[0]
                checked = check_executable(graph, compiled, segments, layers, sample)
    return CompiledGraph(quantized, compiled, picks, costs, submissions, dram, seconds, _peak_bytes(), checked)


def _submission(segment: Segment, layer: LayerProgram) -> Submission:
    """Time a submission's program."""
    from oneshot_ml2.vta import timing

    cycles = int(timing.measure(layer.program).cycles)
    return Submission(tuple(node.name for node in segment.nodes), len(layer.inputs), len(layer.outputs), cycles)


def _cost(pick: Pick) -> Cost:
    """Time a layer's program, and count what it moves."""
    from oneshot_ml2.vta import simulator, timing
    from oneshot_ml2.vta.bound import engine_bound

    chip = pick.program.accelerator
    moved = simulator.traffic(pick.program.insns, chip)
    return Cost(
        cycles=int(timing.measure(pick.program).cycles),
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


def read_schedules(path: str | Path) -> list[dict[str, Any]]:
    """The entries of a ``schedules.json`` of a compiled model.

    Raises:
        ModelError: unreadable, or none.
    """
    text = read_text(path, ModelError)
    try:
        data = parse_json(text, "its text")
        entries = data["layers"]
        known = data["schema"] == executable.SCHEDULES_SCHEMA
        if not known or not all({"layer", "workload", "schedule"} <= set(entry) for entry in entries):
            raise ValueError(f"schema {data['schema']}")
    except (OneShotError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"{path} is no schedules.json of a compiled model ({error})") from error
    return list(entries)


def _pinned(entry: Mapping[str, Any], node: Node, chip: Accelerator, weights: str | Path | None) -> Pick:
    """The schedule of an entry of ``schedules.json`` as a pick.

    Raises:
        ModelError: it is for another workload, or not legal on this accelerator.
    """
    from oneshot_ml2 import oneshot
    from oneshot_ml2.schedule import Schedule, ScheduleSpace
    from oneshot_ml2.workload import workload_from_dict

    begin = time.perf_counter()
    kind = str(entry.get("space", "full"))
    try:
        version = schedule_backend(kind).SPACE_VERSION
        if entry.get("space_version") != version:
            raise ModelError(f"it is of version {entry.get('space_version')} of its space, this is {version}")
        if workload_from_dict(entry["workload"]) != node.attrs["workload"]:
            raise ModelError("it is for another workload")
        space = ScheduleSpace(node.attrs["workload"], chip, kind)
        schedule = Schedule(kind, tuple(entry["schedule"].items()))
        index = space.index_of(schedule)
        program = space.lower(index)
        scores = oneshot.predictor_of(weights).score(space, np.array([index]))
        return oneshot.as_pick(space, index, program, scores, "pinned", begin)
    except (OneShotError, AttributeError) as error:
        raise ModelError(f"the schedule given for layer {node.name} does not fit: {error}") from error


def _pick(
    quantized: Quantized,
    chip: Accelerator,
    weights: str | Path | None,
    schedules: Sequence[Mapping[str, Any]],
    describe: Callable[[str], None],
) -> tuple[Quantized, dict[str, Pick]]:
    """A pick for every layer that the VTA can take; equal workloads share one. Layers without any go to the host.

    Raises:
        ModelError: a given schedule does not fit its layer, or there is no such layer.
    """
    from oneshot_ml2 import oneshot
    from oneshot_ml2.schedule import InvalidSchedule

    picks: dict[str, Pick] = {}
    pinned = {str(entry["layer"]): entry for entry in schedules}
    there = [node.name for node in quantized.graph.nodes if node.attrs.get("workload") is not None]
    unknown = sorted(set(pinned) - set(there))
    if unknown:
        raise ModelError(f"there is a schedule for {unknown[0]!r}, but no such layer; there are: {', '.join(there)}")
    layers = [node for node in quantized.graph.nodes if node.attrs.get("workload") is not None]
    free = [node.attrs["workload"] for node in layers if node.name not in pinned]
    names = {node.attrs["workload"]: node.name for node in reversed(layers)}
    found = oneshot.pick_all(free, chip, weights, lambda workload: describe(f"pick {names[workload]}"))
    nodes = []
    for node in quantized.graph.nodes:
        workload = node.attrs.get("workload")
        if workload is not None and node.name in pinned:
            picks[node.output] = _pinned(pinned[node.name], node, chip, weights)
        elif workload is not None:
            result = found[workload]
            if isinstance(result, InvalidSchedule):
                lost = {"workload": None, "reason": str(result), "unscheduled": True}
                node = dataclasses.replace(node, attrs={**node.attrs, **lost})
            else:
                picks[node.output] = result
        nodes.append(node)
    graph = dataclasses.replace(quantized.graph, nodes=tuple(nodes))
    return dataclasses.replace(quantized, graph=graph), picks


def build(
    graph: Graph, chip: Accelerator, steps: Sequence[Node | Segment], segments: Sequence[LayerProgram]
) -> Executable:
    """Compile the host's part with TVM; ``segments``: the programs of the submissions among ``steps``."""
    from oneshot_ml2.graph import hostcode

    tvm = executable.import_tvm()
    identity = programs_digest(segments)
    module = hostcode.relax_module(graph, steps, identity)
    with executable.quiet_stderr():
        library = tvm.compile(tvm.relax.get_pipeline("zero")(module), "llvm")
    register_model(identity, segments)
    inputs = tuple(Tensor(name, graph.values[name].shape, graph.values[name].limit) for name in graph.inputs)
    results = tuple(
        Tensor(title, graph.values[name].shape) for title, name in zip(graph.output_names, graph.outputs, strict=True)
    )
    return Executable(graph.name, identity, chip, inputs, results, tuple(segments), library)


def check_executable(
    graph: Graph,
    compiled: Executable,
    segments: Sequence[Segment],
    programs: Mapping[str, LayerProgram],
    sample: Mapping[str, NDArray[Any]],
) -> Checked:
    """Hold each layer alone, each submission, and the whole model against the integer reference; see `Checked`.

    ``segments``: what the submissions of ``compiled`` consist of; ``programs``: output of a node -> its layer.
    """
    layers: dict[str, int] = {}
    makers = graph.producers()
    seen: dict[str, NDArray[Any]] = {}
    # What goes between host and VTA stays until the submissions are looked at.
    border = {name for segment in segments for name in (*segment.outputs, *(item[0] for item in segment.inputs))}
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    order = {node.output: index for index, node in enumerate(graph.nodes)}

    def observe(name: str, array: NDArray[Any]) -> None:
        seen[name] = array
        if name in programs:
            node = makers[name]
            (result,) = programs[name].run([seen[operand] for operand in node.inputs])
            layers[node.name] = int(np.count_nonzero(result != array))
        for done in [kept for kept in seen if kept not in border and last.get(kept, -1) <= order.get(name, -1)]:
            del seen[done]

    expected = ir.execute(graph, sample, observe)
    submissions = []
    for segment, program in zip(segments, compiled.segments, strict=True):
        results = program.run([seen[name] for name, _ in segment.inputs])
        wrong = (np.count_nonzero(result != seen[name]) for result, name in zip(results, segment.outputs))
        submissions.append(int(sum(wrong)))
    inexact = any(node.op in operators.FLOAT and node.op not in _EXACT for node in graph.nodes)
    flips = steps = 0

    def force(number: int, operands: Sequence[NDArray[Any]], results: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        nonlocal flips, steps
        for (name, _), operand in zip(segments[number].inputs, operands, strict=True):
            apart = np.abs(operand.astype(np.int16) - seen[name])
            flips += int(np.count_nonzero(apart))
            steps = max(steps, int(apart.max(initial=0)))
        return [seen[name] for name in segments[number].outputs]

    with watched(compiled.identity, force) if inexact else contextlib.nullcontext():
        result = compiled.run(sample)
    difference = [
        np.abs(result[title].astype(np.float64) - expected[name])
        for title, name in zip(graph.output_names, graph.outputs)
    ]
    scale = max(float(np.abs(array).max()) for array in expected.values())
    return Checked(
        layers=layers,
        submissions=tuple(submissions),
        outputs=sum(int(np.count_nonzero(part)) for part in difference),
        largest=max(float(part.max()) for part in difference),
        allowed=_FLOAT_TOLERANCE * scale if inexact else 0.0,
        flips=flips,
        steps=steps,
    )
