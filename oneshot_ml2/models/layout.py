"""Which layers run in one submission, and one DRAM plan for a whole model.

Between layers of one submission tensors stay packed in DRAM: a layer reads the buffer that another one wrote. Tensors
are packed and unpacked only where the host makes or reads them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.runtime import ACTIVATION, LAYOUTS, LayerProgram, Port
from oneshot_ml2.vta import image, link
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import ADDRESSES, element_bytes

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program

# A tensor as it lies in DRAM: the value, and its layout there.
Stored = tuple[str, str]


@dataclass(frozen=True)
class Segment:
    """Layers that run in one submission.

    ``nodes``: in the graph's order; ``reads``: of each node the tensors that its operands are, in their order;
    ``inputs``: those of them that the host makes; ``outputs``: values that are needed outside.
    """

    nodes: tuple[Node, ...]
    reads: tuple[tuple[Stored, ...], ...]
    inputs: tuple[Stored, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Dram:
    """A model's DRAM in bytes.

    ``total``: of the whole image; ``constants``: weights, biases and constant tiles; ``code``: micro-ops and
    instructions; ``activations``: the region that all submissions use in turn; ``separate``: what the activations
    would take if each layer had buffers of its own.
    """

    total: int = 0
    constants: int = 0
    code: int = 0
    activations: int = 0
    separate: int = 0


# Layers ----------------------------------------------------------------------------------------
def layer_program(node: Node, program: Program) -> LayerProgram:
    """A layer with its program and its packed constants.

    Raises:
        ModelError: its operands or its result lie in DRAM in none of the ways that a launch can pack.
    """
    workload, chip = node.attrs["workload"], program.accelerator
    specs: dict[str, Any] = workload.tensor_specs
    names = [name for name in specs if name not in node.arrays]
    if len(names) != len(node.inputs):
        raise ModelError(f"layer {node.name} reads {len(node.inputs)} tensors; its workload takes {len(names)}")
    rng = np.random.default_rng(0)
    # Contents that tell the layouts apart.
    operands = {name: rng.integers(-128, 128, specs[name][0]).astype(np.int8) for name in names}
    packed = image.packed_tensors(workload, {**operands, **node.arrays}, chip)

    def held(name: str) -> int:
        buffer = program.buffer(name)
        return buffer.elements * element_bytes(chip)[buffer.memory]

    inputs = []
    for name in names:
        ports = (Port(name, tuple(specs[name][0]), layout) for layout in LAYOUTS)
        fitting = [port for port in ports if np.array_equal(_raw(port.pack(operands[name], chip)), _raw(packed[name]))]
        if not fitting or fitting[0].packed_bytes(chip) != held(name):
            raise ModelError(f"layer {node.name}: its {name} lies in DRAM in a way that a launch cannot pack")
        inputs.append(fitting[0])
    output = Port("output", tuple(workload.output_shape))
    if output.packed_bytes(chip) != held("output"):
        raise ModelError(f"layer {node.name}: its output lies in DRAM in a way that a launch cannot unpack")
    constants = {name: content for name, content in packed.items() if name not in operands}
    return LayerProgram(node.name, program, tuple(inputs), (output,), constants)


def _raw(content: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(content).reshape(-1).view(np.uint8)


def shared(layers: Mapping[str, LayerProgram]) -> dict[str, LayerProgram]:
    """Layers whose equal constants are one array, as steps of a recurrent layer and blocks of one weight have them."""
    known: dict[tuple[int, bytes], NDArray[Any]] = {}

    def one(content: NDArray[Any]) -> NDArray[Any]:
        raw = _raw(content)
        return known.setdefault((raw.size, hashlib.sha256(raw.data).digest()), content)

    return {
        output: replace(layer, constants={name: one(content) for name, content in layer.constants.items()})
        for output, layer in layers.items()
    }


# Submissions -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Links:
    """What the layers of a graph read. ``reads``: output of a layer -> the tensors that its operands are."""

    graph: Graph
    layers: Mapping[str, LayerProgram]
    reads: Mapping[str, tuple[Stored, ...]]

    def operands(self, output: str) -> list[tuple[str, bool]]:
        """The tensors that a layer reads, and whether each is the very buffer that another layer wrote."""
        ports = self.layers[output].inputs
        return [(name, _shares(self.layers.get(name), port)) for (name, _), port in zip(self.reads[output], ports)]


def _shares(source: LayerProgram | None, port: Port) -> bool:
    """Whether an operand can be the very buffer that a layer wrote; not if no layer (None) makes it."""
    if source is None or not source.outputs[0].layout == port.layout == ACTIVATION:
        return False
    batch = source.program.accelerator.batch
    return packed_extents(source.outputs[0].shape, batch) == packed_extents(port.shape, batch)


def _links(graph: Graph, layers: Mapping[str, LayerProgram]) -> _Links:
    """Raises ModelError: a layer's workload is for operands of other shapes."""
    makers = graph.producers()
    # Reshaped value -> the layer's output that it is.
    roots: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "reshape" and node.output not in layers:
            root = roots.get(node.inputs[0], node.inputs[0])
            if root in layers:
                roots[node.output] = root

    def stored(name: str, port: Port) -> Stored:
        root = roots.get(name, name)
        return (root if _shares(layers.get(root), port) else name, port.layout)

    reads = {
        output: tuple(stored(name, port) for name, port in zip(makers[output].inputs, layer.inputs, strict=True))
        for output, layer in layers.items()
    }
    links = _Links(graph, layers, reads)
    for node in graph.nodes:
        if node.output in layers:
            for (name, shared), port in zip(links.operands(node.output), layers[node.output].inputs):
                if graph.shape(name) != port.shape and not shared:
                    raise ModelError(f"layer {node.name} reads {name} of shape {graph.shape(name)}, not {port.shape}")
    return links


def _levels(links: _Links) -> dict[str, int]:
    """How many submissions must come before a value of the host, or before the submission that makes one of the VTA."""
    graph, layers = links.graph, links.layers
    level: dict[str, int] = dict.fromkeys([*graph.inputs, *graph.constants], 0)
    for node in graph.nodes:
        if node.output in layers:
            operands = links.operands(node.output)
            before = [level[name] + (name in layers and not shared) for name, shared in operands]
        else:
            before = [level[name] + (name in layers) for name in node.inputs]
        level[node.output] = max(before, default=0)
    return level


def _needed(links: _Links) -> set[str]:
    """The values that someone reads."""
    needed = set(links.graph.outputs)
    for node in reversed(links.graph.nodes):
        if node.output in links.layers:
            needed.update(name for name, _ in links.reads[node.output])
        elif node.output in needed:
            needed.update(node.inputs)
    return needed


def arrange(graph: Graph, layers: Mapping[str, LayerProgram]) -> list[Node | Segment]:
    """The graph as nodes for the host and submissions, in an order in which they can be executed.

    A submission takes all layers that need the same number of changes between VTA and host before them. A reshape of
    a layer's result that leaves its packed bytes as they are costs nothing for the layers that read it; it is a node
    for the host only where the host reads it.

    Args:
        layers: output of a node -> its layer, of those on the VTA.

    Raises:
        ModelError: a layer's workload is for operands of other shapes.
    """
    links = _links(graph, layers)
    level, needed = _levels(links), _needed(links)
    outside = set(graph.outputs)
    for node in graph.nodes:
        if node.output in layers:
            operands, here = links.operands(node.output), level[node.output]
            outside.update(name for name, shared in operands if not shared or level[name] != here)
        elif node.output in needed:
            outside.update(node.inputs)

    steps: list[Node | Segment] = []
    for number in range(max(level.values(), default=0) + 1):
        nodes = [node for node in graph.nodes if level[node.output] == number]
        steps += [node for node in nodes if node.output not in layers and node.output in needed]
        ours = tuple(node for node in nodes if node.output in layers)
        if ours:
            made = {node.output for node in ours}
            taken = tuple(links.reads[node.output] for node in ours)
            inputs = dict.fromkeys(item for items in taken for item in items if item[0] not in made)
            outputs = tuple(node.output for node in ours if node.output in outside)
            steps.append(Segment(ours, taken, tuple(inputs), outputs))
    return steps


def packed_extents(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Images (or rows), channels, pixels of a packed activation: those of equal ones are the same bytes.

    Blocks of images hold blocks of channels, and these all pixels. Matrices that whole blocks of rows fill follow one
    another like the rows of a single one; others are told apart by a fourth number.
    """
    if len(shape) != 3:
        return (*shape[:2], math.prod(shape[2:]))
    count, rows, columns = shape
    return (count * rows, columns, 1) if count == 1 or rows % batch == 0 else (rows, columns, 1, count)


# The plan --------------------------------------------------------------------------------------
def place(sizes: Sequence[int], lives: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Addresses from 0 on for buffers that live from a first to a last step, and the end of the last one.

    Greedy: the largest first, each into the smallest gap between those that live with it (best fit).
    """
    offsets = [0] * len(sizes)
    done: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], lives[i])):
        begin, end = lives[index]
        others = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in done
            if lives[other][0] <= end and begin <= lives[other][1]
        )
        best, room, free = -1, 0, 0
        for first, last in others:
            gap = first - free
            if gap >= sizes[index] and (best < 0 or gap < room):
                best, room = free, gap
            free = max(free, last)
        offsets[index] = best if best >= 0 else free
        done.append(index)
    return offsets, max((offset + size for offset, size in zip(offsets, sizes)), default=0)


@dataclass(frozen=True)
class _Fixed:
    """What has a place of its own in DRAM, in bytes.

    ``places``: of each submission's layers the addresses of their constants, by buffer; ``code``: of each submission
    the addresses of its micro-ops and of its instructions; ``end``: the first address behind them; the others: see
    `Dram`.
    """

    places: list[list[dict[str, int]]]
    code: list[tuple[int, int]]
    end: int
    constants: int
    instructions: int
    separate: int


def _fix(segments: Sequence[Segment], layers: Mapping[str, LayerProgram], chip: Accelerator) -> _Fixed:
    """Constants and code, one submission after another; what is the same array has one place."""
    align, sizes = link.alignment(chip), element_bytes(chip)
    # No program begins at address 0.
    address = align
    fixed: list[list[dict[str, int]]] = []
    code: list[tuple[int, int]] = []
    constants = instructions = separate = 0
    known: dict[int, int] = {}
    for segment in segments:
        places: list[dict[str, int]] = []
        parts = [layers[node.output] for node in segment.nodes]
        for part in parts:
            ports = {port.buffer for port in (*part.inputs, *part.outputs)}
            place_of: dict[str, int] = {}
            for buffer in part.program.buffers:
                size = buffer.elements * sizes[buffer.memory]
                if buffer.name in ports:
                    separate += link.aligned(size, align)
                elif buffer.name != link.UOPS:
                    content = part.constants.get(buffer.name)
                    at = address if content is None else known.setdefault(id(content), address)
                    place_of[buffer.name] = at
                    if at == address:
                        address = link.aligned(address + size, align)
                        constants += size
            places.append(place_of)
        fixed.append(places)
        uop_bytes, insn_bytes = link.code_bytes([part.program for part in parts])
        code.append((address, address + uop_bytes))
        address = link.aligned(address + uop_bytes + insn_bytes, align)
        instructions += uop_bytes + insn_bytes
    return _Fixed(fixed, code, address, constants, instructions, separate)


def plan(
    segments: Sequence[Segment], layers: Mapping[str, LayerProgram], chip: Accelerator
) -> tuple[list[LayerProgram], Dram]:
    """Each submission as one program, all of them in one DRAM image.

    Constants and code of all submissions have places of their own there. Activations share one region, each only from
    when it is written until it is last read: between submissions all that is still needed is with the host.

    Raises:
        ModelError: it does not fit VTA's 32-bit addresses.
    """
    shapes = {(output, ACTIVATION): layer.outputs[0].shape for output, layer in layers.items()}
    for segment in segments:
        for node, reads in zip(segment.nodes, segment.reads):
            for port, item in zip(layers[node.output].inputs, reads):
                shapes.setdefault(item, port.shape)
    fixed = _fix(segments, layers, chip)
    linked, activations = [], 0
    for segment, places, code in zip(segments, fixed.places, fixed.code):
        offsets, end = _activations(segment, layers, chip, link.alignment(chip))
        activations = max(activations, end)
        addresses = {item: fixed.end + offset for item, offset in offsets.items()}
        linked.append(_linked(segment, layers, places, addresses, code, shapes))
    total = fixed.end + activations if segments else 0
    if total > ADDRESSES:
        raise ModelError(f"the model takes {total:,} bytes of DRAM; a VTA program can address {ADDRESSES:,}")
    return linked, Dram(total, fixed.constants, fixed.instructions, activations, fixed.separate)


def _linked(
    segment: Segment,
    layers: Mapping[str, LayerProgram],
    places: Sequence[Mapping[str, int]],
    addresses: Mapping[Stored, int],
    code: tuple[int, int],
    shapes: Mapping[Stored, tuple[int, ...]],
) -> LayerProgram:
    """A submission as one program; ``addresses`` and ``shapes``: of its activations."""
    parts = [layers[node.output] for node in segment.nodes]
    buffers: dict[Stored, str] = {}
    placements = []
    for index, (node, part, reads) in enumerate(zip(segment.nodes, parts, segment.reads)):
        moved = dict(places[index])
        for port, item in zip(part.inputs, reads):
            moved[port.buffer] = addresses[item]
            buffers.setdefault(item, f"{index}.{port.buffer}")
        made = (node.output, ACTIVATION)
        moved["output"] = addresses[made]
        buffers[made] = f"{index}.output"
        placements.append(moved)
    return LayerProgram(
        name=f"{parts[0].name} to {parts[-1].name}" if len(parts) > 1 else parts[0].name,
        program=link.link([part.program for part in parts], placements, *code),
        inputs=tuple(Port(buffers[item], shapes[item], item[1]) for item in segment.inputs),
        outputs=tuple(Port(buffers[name, ACTIVATION], shapes[name, ACTIVATION]) for name in segment.outputs),
        constants={
            f"{index}.{name}": content for index, part in enumerate(parts) for name, content in part.constants.items()
        },
    )


def _activations(
    segment: Segment, layers: Mapping[str, LayerProgram], chip: Accelerator, align: int
) -> tuple[dict[Stored, int], int]:
    """Offset of every tensor of a submission in the region of activations, and how much of it is used."""
    lives: dict[Stored, tuple[int, int]] = dict.fromkeys(segment.inputs, (-1, -1))
    sizes: dict[Stored, int] = {}
    for index, (node, reads) in enumerate(zip(segment.nodes, segment.reads)):
        layer = layers[node.output]
        for item, port in zip(reads, layer.inputs):
            lives[item] = (lives[item][0], index)
            sizes[item] = link.aligned(port.packed_bytes(chip), align)
        made = (node.output, ACTIVATION)
        lives[made] = (index, len(segment.nodes) if node.output in segment.outputs else index)
        sizes[made] = link.aligned(layer.outputs[0].packed_bytes(chip), align)
    for name in segment.outputs:
        # Until the host has read them.
        lives[(name, ACTIVATION)] = (lives[(name, ACTIVATION)][0], len(segment.nodes))
    items = list(lives)
    offsets, end = place([sizes[item] for item in items], [lives[item] for item in items])
    return dict(zip(items, offsets)), end
