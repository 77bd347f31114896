"""Submissions and the DRAM plan: what is joined, what the host does between, and that no tensor overwrites another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import execute, layout, operators, runtime
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.layout import Segment
from oneshot_ml2.models.runtime import LayerProgram, Port
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.max_pool2d import MaxPool2d

CHIP = Accelerator.load("pynq")
EPILOGUE = Epilogue(True, 12, None, 5, (-128, 127))
RESIDUAL = dataclasses.replace(EPILOGUE, residual_shift=2)


class Net:
    """A graph that is written node by node; layers have programs, and weights at random."""

    def __init__(self, chip: Accelerator = CHIP, seed: int = 0) -> None:
        self.chip, self.rng = chip, np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.inputs: list[str] = []
        self.layers: dict[str, LayerProgram] = {}

    def host(self, op: str, inputs: Sequence[str], output: str, shape: tuple[int, ...], **attrs: Any) -> str:
        rounding = {"half_even": False} if op.startswith("int_") else {}
        self.nodes.append(Node(output, op, tuple(inputs), output, attrs | rounding))
        self.values[output] = Value(output, shape, 0)
        return output

    def input(self, name: str, shape: tuple[int, ...]) -> str:
        """A float input, and what int8 the host makes of it."""
        self.inputs.append(name)
        self.values[name] = Value(name, shape)
        return self.host("to_int8", [name], f"{name}.int", shape, exponent=0)

    def layer(self, workload: Workload, inputs: Sequence[str], output: str) -> str:
        tensors = workload.random_inputs(self.rng)
        constants = ("bias",) if isinstance(workload, BatchMatmul) else ("weight", "bias")
        arrays = {name: array for name, array in tensors.items() if name in constants}
        node = Node(output, f"int_{workload.op}", tuple(inputs), output, {"workload": workload}, arrays)
        space = ScheduleSpace(workload, self.chip)
        indices = self.rng.integers(0, len(space), 300)
        index = indices[space.validity(indices) == 0][0]
        self.nodes.append(node)
        self.values[output] = Value(output, workload.output_shape, 0)
        self.layers[output] = layout.layer_program(node, space.lower(int(index)))
        return output

    def conv(self, x: str, output: str, k: int = 20, r: int = 3, residual: str | None = None) -> str:
        n, c, h, w = self.values[x].shape
        epilogue = EPILOGUE if residual is None else RESIDUAL
        workload = Conv2d(n, c, h, w, k, r, r, padding=r // 2, epilogue=epilogue)
        return self.layer(workload, [x] if residual is None else [x, residual], output)

    def graph(self, *outputs: str) -> Graph:
        return Graph("net", tuple(self.inputs), outputs, tuple(self.nodes), self.values, output_names=outputs)


def names(steps: Sequence[Node | Segment]) -> list[Any]:
    """Host nodes by name, submissions as lists of names; without the border's node."""
    found = [step.name if isinstance(step, Node) else [node.name for node in step.nodes] for step in steps]
    return [name for name in found if not str(name).endswith(".int")]


def launched(net: Net, graph: Graph, steps: Sequence[Node | Segment]) -> dict[str, np.ndarray[Any, Any]]:
    """Every value that the host sees, by the joined programs in one image full of rubbish; checked on the way."""
    segments = [step for step in steps if isinstance(step, Segment)]
    programs, dram = layout.plan(segments, net.layers, net.chip)
    assert dram.total >= max(program.program.dram_bytes for program in programs) - 4096
    image = net.rng.integers(0, 256, dram.total).astype(np.uint8)
    for program in programs:
        program.place(image)
    expected: dict[str, np.ndarray[Any, Any]] = {}
    inputs = {name: net.rng.integers(-128, 128, net.values[name].shape).astype(np.float32) for name in graph.inputs}
    execute.execute(graph, inputs, expected.__setitem__)
    seen = dict(inputs)
    left = iter(programs)
    for step in steps:
        if isinstance(step, Node):
            made = operators.compute(step, [seen[name] for name in step.inputs], graph.values[step.output].shape)
            seen[step.output] = made
            continue
        results = next(left).launch(image, [seen[name] for name, _ in step.inputs])
        seen |= dict(zip(step.outputs, results, strict=True))
    for name, array in seen.items():
        assert np.array_equal(array, expected[name]), name
    assert set(graph.outputs) <= set(seen)
    return seen


@pytest.mark.parametrize("chip", ["pynq", "b2x16", "b8"])
def test_operators_of_all_kinds_hand_their_results_on(chip: str) -> None:
    net = Net(Accelerator.load(chip), 3)
    x = net.input("x", (2, 20, 9, 9))
    net.layer(MaxPool2d(2, 20, 9, 9, 3, 3, 2, 1), [x], "pool")
    net.layer(Conv2d(2, 20, 5, 5, 20, 3, 3, padding=1, epilogue=EPILOGUE, groups=20), ["pool"], "depthwise")
    net.layer(Conv2d(2, 20, 5, 5, 48, 1, 1, epilogue=EPILOGUE), ["depthwise"], "pointwise")
    net.layer(Conv2d(2, 48, 5, 5, 48, 3, 3, padding=1, epilogue=EPILOGUE, groups=3), ["pointwise"], "grouped")
    far = Epilogue(True, 12, 6, 3, (-128, 127), pre_shift=4)
    net.layer(Conv2d(2, 48, 5, 5, 48, 1, 1, epilogue=far, groups=48), ["grouped", "pointwise"], "sum")
    even = dataclasses.replace(EPILOGUE, half_even=True)
    net.layer(Conv2dTranspose(2, 48, 5, 5, 30, 3, 3, 2, 1, 1, even), ["sum"], "transposed")
    net.layer(Conv2d(2, 30, 10, 10, 33, 10, 10, epilogue=EPILOGUE), ["transposed"], "whole")
    net.host("reshape", ["whole"], "flat", (2, 33))
    net.layer(Dense(2, 33, 40, EPILOGUE), ["flat"], "dense")
    net.host("reshape", ["dense"], "pairs", (1, 2, 40))
    net.layer(BatchMatmul(1, 2, 40, 2, EPILOGUE), ["pairs", "pairs"], "products")
    graph = net.graph("products")
    steps = layout.arrange(graph, net.layers)
    first = ["pool", "depthwise", "pointwise", "grouped", "sum", "transposed", "whole", "dense"]
    # The second operand of a product is packed as weights are, by the host.
    assert names(steps) == [first, "pairs", ["products"]]
    launched(net, graph, steps)


def test_layers_with_nothing_between_are_one_submission() -> None:
    net = Net()
    x = net.input("x", (1, 16, 8, 8))
    a = net.conv(x, "a")
    b = net.conv(a, "b")
    net.conv(b, "c", residual=a)
    graph = net.graph("c")
    steps = layout.arrange(graph, net.layers)
    assert names(steps) == [["a", "b", "c"]]
    (segment,) = [step for step in steps if isinstance(step, Segment)]
    assert (segment.inputs, segment.outputs) == (((x, "activation"),), ("c",))
    assert set(launched(net, graph, steps)) == {"x", x, "c"}


def test_the_host_between_and_values_that_both_read() -> None:
    net = Net(seed=1)
    x = net.input("x", (2, 16, 6, 6))
    a = net.conv(x, "a", 16)
    p = net.host("int_requantize", [a], "p", (2, 16, 6, 6), left=-1, clip=(-128, 127))
    b = net.conv(p, "b", 16)
    side = net.conv(x, "side", 16)
    c = net.conv(b, "c", 16, residual=side)
    net.conv(side, "d", 16, residual=a)
    q = net.host("int_add", [c, "d"], "q", (2, 16, 6, 6), left=(0, 0), shift=1, clip=(-128, 127))
    net.conv(q, "e", 7)
    graph = net.graph("e", "a")
    steps = layout.arrange(graph, net.layers)
    assert names(steps) == [["a", "side", "d"], "p", ["b", "c"], "q", ["e"]]
    segments = [step for step in steps if isinstance(step, Segment)]
    assert [segment.outputs for segment in segments] == [("a", "side", "d"), ("c",), ("e",)]
    assert segments[1].inputs == (("p", "activation"), ("side", "activation"))
    launched(net, graph, steps)


@pytest.mark.parametrize("chip", ["pynq", "b2x16", "b8"])
def test_a_flat_view_of_a_pixel_is_free(chip: str) -> None:
    net = Net(Accelerator.load(chip), 2)
    x = net.input("x", (3, 16, 3, 3))
    a = net.layer(Conv2d(3, 16, 3, 3, 40, 3, 3, epilogue=EPILOGUE), [x], "a")
    flat = net.host("reshape", [a], "flat", (3, 40))
    b = net.layer(Dense(3, 40, 30, EPILOGUE), [flat], "b")
    cube = net.host("reshape", [b], "cube", (3, 5, 6))
    same = net.host("reshape", [cube], "same", (3, 30))
    net.layer(Dense(3, 30, 20, EPILOGUE), [same], "c")
    graph = net.graph("c")
    steps = layout.arrange(graph, net.layers)
    assert names(steps) == [["a", "b", "c"]]
    launched(net, graph, steps)

    # The host reads one of them, too, and a later submission reads the view.
    net.host("int_requantize", [flat], "r", (3, 40), left=0, clip=(-128, 127))
    net.layer(Dense(3, 40, 40, RESIDUAL), ["r", flat], "d")
    graph = net.graph("c", "d")
    steps = layout.arrange(graph, net.layers)
    assert names(steps) == [["a", "b", "c"], "flat", "r", ["d"]]
    launched(net, graph, steps)


def test_other_views_are_the_hosts_work() -> None:
    """Channels that become pixels, or pixels that become channels, lie elsewhere in packed tensors."""
    net = Net(seed=3)
    x = net.input("x", (1, 16, 2, 2))
    a = net.conv(x, "a", 16)
    flat = net.host("reshape", [a], "flat", (1, 64))
    net.layer(Dense(1, 64, 20, EPILOGUE), [flat], "b")
    graph = net.graph("b")
    steps = layout.arrange(graph, net.layers)
    assert names(steps) == [["a"], "flat", ["b"]]
    launched(net, graph, steps)


def test_a_tensor_in_another_layout_is_packed_again() -> None:
    """An operand that is packed like weights: its maker belongs to an earlier submission."""
    net = Net(seed=4)
    x = net.input("x", (4, 16))
    a = net.layer(Dense(4, 16, 16, EPILOGUE), [x], "a")
    net.layer(Dense(4, 16, 4, EPILOGUE), [a], "b")
    # Its weight becomes an operand of the launch.
    (last,) = [node for node in net.nodes if node.output == "b"]
    arrays = {name: array for name, array in last.arrays.items() if name != "weight"}
    node = dataclasses.replace(last, inputs=(a, a), arrays=arrays)
    net.nodes[-1] = node
    program = net.layers["b"].program
    wide = Dense(4, 16, 4, EPILOGUE)
    assert node.attrs["workload"] == wide
    net.layers["b"] = layout.layer_program(node, program)
    assert [port.layout for port in net.layers["b"].inputs] == ["activation", "weight"]
    graph = net.graph("b")
    steps = layout.arrange(graph, net.layers)
    assert names(steps) == [["a"], ["b"]]
    segment = steps[-1]
    assert isinstance(segment, Segment)
    assert segment.inputs == ((a, "activation"), (a, "weight"))
    (first, second), _ = layout.plan([step for step in steps if isinstance(step, Segment)], net.layers, CHIP)
    data = net.rng.integers(-128, 128, (4, 16)).astype(np.int8)
    (made,) = first.run([data])
    (result,) = second.run([made, made])
    tensors: Mapping[str, Any] = {"data": made, "weight": made, "bias": node.arrays["bias"]}
    # The four rows of the operand are its four outputs' weights.
    assert np.array_equal(result, wide.reference(tensors))


def test_layers_that_a_launch_cannot_pack_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshot_ml2.vta import image

    net = Net()
    x = net.input("x", (2, 16))
    net.layer(Dense(2, 16, 16, EPILOGUE), [x], "a")
    (node,), program = net.nodes[1:], net.layers["a"].program
    with pytest.raises(ModelError, match="reads 2 tensors; its workload takes 1"):
        layout.layer_program(dataclasses.replace(node, inputs=(x, x)), program)
    right = image.packed_tensors
    monkeypatch.setattr(image, "packed_tensors", lambda *args: {**right(*args), "data": right(*args)["data"][::-1]})
    with pytest.raises(ModelError, match="its data lies in DRAM in a way that a launch cannot pack"):
        layout.layer_program(node, program)
    net.values[x] = Value(x, (16, 2), 0)
    with pytest.raises(ModelError, match="layer a reads"):
        layout.arrange(net.graph("a"), net.layers)


def test_a_model_larger_than_the_address_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    net.conv(net.input("x", (1, 16, 4, 4)), "a")
    segments = [step for step in layout.arrange(net.graph("a"), net.layers) if isinstance(step, Segment)]
    (program,), dram = layout.plan(segments, net.layers, CHIP)
    assert program.name == "a" and dram.separate >= dram.activations > 0
    monkeypatch.setattr("oneshot_ml2.models.layout.ADDRESSES", dram.total - 1)
    with pytest.raises(ModelError, match="bytes of DRAM"):
        layout.plan(segments, net.layers, CHIP)


def test_ports_pack_and_unpack() -> None:
    rng = np.random.default_rng(0)
    for chip in map(Accelerator.load, ("pynq", "b2x16", "b8")):
        for shape in ((3, 20), (1, 33, 4, 5), (2, 3, 20)):
            tensor = rng.integers(-128, 128, shape).astype(np.int8)
            for kind in runtime.LAYOUTS:
                port = Port("data", shape, kind)
                packed = port.pack(tensor, chip)
                assert packed.nbytes == port.packed_bytes(chip)
                if kind == runtime.ACTIVATION:
                    raw = packed.reshape(-1).view(np.uint8)
                    assert np.array_equal(port.unpack(raw, chip), tensor)


def test_packed_extents_tell_what_is_the_same_bytes() -> None:
    rng = np.random.default_rng(1)
    shapes = [(4, 20), (4, 20, 1, 1), (2, 2, 20), (1, 4, 20), (4, 1, 20), (4, 5, 2, 2), (4, 5, 4, 1), (2, 40)]
    for chip in map(Accelerator.load, ("pynq", "b2x16", "b4x8")):
        for first in shapes:
            tensor = rng.integers(-128, 128, first).astype(np.int8)
            for second in shapes:
                if layout.packed_extents(first, chip.batch) == layout.packed_extents(second, chip.batch):
                    one, two = (Port("data", shape).pack(tensor.reshape(shape), chip) for shape in (first, second))
                    assert np.array_equal(one.reshape(-1), two.reshape(-1)), (chip, first, second)


def test_places_never_overlap_and_are_reused() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 20))
        sizes = [int(size) for size in rng.integers(1, 50, count)]
        begins = rng.integers(0, 12, count)
        lives = [(int(begin), int(begin + more)) for begin, more in zip(begins, rng.integers(0, 6, count))]
        offsets, end = layout.place(sizes, lives)
        assert end == max(offset + size for offset, size in zip(offsets, sizes)) <= sum(sizes)
        for i in range(count):
            for j in range(i):
                if lives[i][0] <= lives[j][1] and lives[j][0] <= lives[i][1]:
                    assert offsets[i] >= offsets[j] + sizes[j] or offsets[j] >= offsets[i] + sizes[i]
    # A chain needs room for two.
    assert layout.place([8] * 10, [(i, i + 1) for i in range(10)])[1] == 16
    assert layout.place([], []) == ([], 0)


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs_are_exact(seed: int) -> None:
    """Branches, residuals and host nodes anywhere; rubbish in the image shows what reads too much."""
    rng = np.random.default_rng(seed)
    net = Net(Accelerator.load(["pynq", "b2x16", "b8"][seed % 3]), seed)
    shape = (int(rng.integers(1, 3)), 20, 5, 5)
    values = [net.input("x", shape)]
    for number in range(12):
        data, other = (values[int(rng.integers(max(0, len(values) - 4), len(values)))] for _ in range(2))
        if rng.random() < 0.25:
            attrs: dict[str, Any] = {"left": -1, "clip": (-128, 127)}
            values.append(net.host("int_requantize", [data], f"h{number}", shape, **attrs))
        else:
            residual = other if rng.random() < 0.5 else None
            values.append(net.conv(data, f"v{number}", 20, int(rng.choice([1, 3])), residual))
    read = {name for node in net.nodes for name in node.inputs}
    graph = net.graph(*(name for name in values[1:] if name not in read))
    steps = layout.arrange(graph, net.layers)
    ran = [node.output for step in steps for node in (step.nodes if isinstance(step, Segment) else (step,))]
    assert sorted(ran) == sorted(node.output for node in net.nodes)
    launched(net, graph, steps)


def test_layers_of_equal_weights_share_their_place() -> None:
    net = Net()
    x = net.input("x", (1, 16, 4, 4))
    for name in "abc":
        net.rng = np.random.default_rng(0 if name != "c" else 1)
        x = net.conv(x, name, k=16)
    net.layers = layout.shared(net.layers)
    first, again, other = (net.layers[name].constants for name in "abc")
    assert first["weight"] is again["weight"] and first["weight"] is not other["weight"]
    graph = net.graph("c")
    steps = layout.arrange(graph, net.layers)
    (program,), dram = layout.plan([step for step in steps if isinstance(step, Segment)], net.layers, CHIP)
    place = {buffer.name: buffer.address for buffer in program.program.buffers}
    assert place["0.weight"] == place["1.weight"] != place["2.weight"]
    different = {id(content): content.nbytes for part in (first, other) for content in part.values()}
    assert dram.constants == sum(different.values())
    launched(net, graph, steps)
