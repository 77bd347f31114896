"""What int8 loses is warned of by name: tensors, parts of concatenations, and groups of an output's channels."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand
from graph_models import ZOO, example, needs, residual_qdq, small_net

from oneshot_ml2.models.frontend import from_torch, importer
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.quantize import losses, quantize
from oneshot_ml2.models.quantize.losses import OUTPUT, PART, TENSOR, Loss
from oneshot_ml2.models.quantize.quantize import Quantized
from oneshot_ml2.models.quantize.steps import NO_STEPS

needs("tvm", "onnx")

SHAPE = (1, 16, 8, 8)


def quantized(net: Any, shape: tuple[int, ...] = SHAPE) -> Quantized:
    import torch

    graph = from_torch.import_torch(net.eval(), (torch.zeros(shape),))
    # What a scale for a tensor loses, and nothing takes back.
    return quantize.quantize(graph, example((4, *shape[1:]), 1), steps=NO_STEPS)


def separable(ranges: Any) -> Any:
    """Depthwise, ReLU, pointwise: channel c of the one is scaled by ``ranges``, of the other by its inverse."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(), nn.Conv2d(16, 16, 1))
    scale = torch.tensor(ranges, dtype=torch.float32)
    with torch.no_grad():
        net[0].weight.mul_(scale[:, None, None, None])
        net[0].bias.mul_(scale)
        net[2].weight.div_(scale[None, :, None, None])
    return net


def heads(factor: float, layers: str = "two") -> Any:
    """Boxes and scores: two convolutions that are concatenated, or the channels of one."""
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.boxes = nn.Conv2d(16, 4, 1, bias=False)
            self.scores = nn.Conv2d(16, 16, 1, bias=False)
            self.both = nn.Conv2d(16, 20, 1, bias=False)
            with torch.no_grad():
                self.boxes.weight.mul_(factor)
                self.both.weight[:4].mul_(factor)

        def forward(self, x: Tensor) -> Tensor:
            if layers == "two":
                return torch.cat([self.boxes(x), self.scores(x)], 1)
            return self.both(x)  # type: ignore[no-any-return]

    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Net()


def told(found: Quantized) -> set[tuple[str, str]]:
    assert all(loss.error > losses.ERROR_BOUND for loss in found.losses)
    return {(loss.kind, loss.name) for loss in found.losses}


def test_channels_of_unequal_ranges() -> None:
    found = quantized(separable(np.geomspace(0.01, 10, 16)))
    assert told(found) == {(TENSOR, "2"), (OUTPUT, "output")}
    (line,) = [text for text in found.warnings if text.startswith("2: int8 is ")]
    assert "equalization" in line
    same = quantized(separable(np.ones(16)))
    assert (same.losses, same.warnings) == ((), ())


def test_parts_of_a_concatenation() -> None:
    found = quantized(heads(300))
    assert {kind for kind, _ in told(found)} == {PART, OUTPUT}
    part = next(loss for loss in found.losses if loss.kind == PART)
    assert part.what == "4 to 19 of axis 1, from scores"
    assert part.error > 0.9
    # The whole tensor hides it.
    assert max(error.rms for error in found.errors if error.name == part.name) < 0.05
    assert told(quantized(heads(1))) == set()


def test_channels_of_an_output() -> None:
    found = quantized(heads(300, "one"))
    assert told(found) == {(OUTPUT, "output")}
    assert found.losses[0].what == "16 of 20 channels of axis 1 (4, 5, 6, 7, ...)"
    assert "make outputs of their own" in found.warnings[0]
    assert told(quantized(heads(4, "one"))) == set()


def test_few_values_of_a_channel_say_nothing_of_its_size() -> None:
    """Of a thousand scores some are small by chance; that is no fault of their scale."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Linear(64, 1000)
    assert told(quantized(net, (1, 64))) == set()


@pytest.mark.parametrize("shape", [(1, 1, 24, 40), (1, 3, 32, 32)])
def test_columns_of_a_map_are_no_channels(shape: tuple[int, ...]) -> None:
    """A column that is almost nothing of a map with large ones is dark, not lost by its scale."""
    ranges = np.r_[np.full(4, 1e-4), np.ones(shape[3] - 4)]
    graph = Graph(
        "maps", ("x",), ("y",), (Node("r", "relu", ("x",), "r"), Node("y", "multiply", ("r", "ranges"), "y")),
        {name: Value(name, shape) for name in ("x", "r", "y")}, {"ranges": ranges.astype(np.float32)},
        output_names=("y",),
    )  # fmt: skip
    x = np.abs(example(shape, 3)) + 1
    off = ranges[None] * x + 0.01 * np.sign(example(shape, 4))
    reference = losses.Reference({}, [off.astype(np.float32)], lambda name, array: array)
    assert losses.measure(graph, [{"x": x}], [reference]).losses() == ()


def test_only_where_it_arises() -> None:
    """Layers behind a lost one are off, too; they are not the reason."""
    from torch import nn

    found = quantized(nn.Sequential(separable(np.geomspace(0.01, 10, 16)), nn.ReLU(), nn.Conv2d(16, 8, 3)))
    assert [loss.name for loss in found.losses if loss.kind == TENSOR] == ["0.2"]
    assert len([error for error in found.errors if error.rms > losses.ERROR_BOUND]) > 1


def test_the_lines_are_few() -> None:
    many = [Loss(TENSOR, f"layer{i}", "", 0.3 + i / 100) for i in range(40)]
    lines = losses.warnings([*many, Loss(OUTPUT, "y", "", 0.5)])
    assert [line.split(":")[0] for line in lines[:3]] == ["layer39", "layer38", "layer37"]
    assert lines[3].startswith("37 more tensors pass that bound")
    assert lines[4].startswith("output y: int8 is 50% off") and len(lines) == 5


def test_what_would_help_is_said_once() -> None:
    lines = ["a is rounded; train", "b is cut: clip", "c is rounded; train", "d is uneven; divide"]
    assert losses.said_once(lines) == ["a is rounded; train", "b is cut: clip", "c is rounded", "d is uneven; divide"]
    warned = losses.warnings([Loss(TENSOR, f"layer{i}", "", 0.3) for i in range(3)])
    assert "equalization" in warned[0] and not any("equalization" in line for line in warned[1:])


def test_sound_models_bring_no_warning(tmp_path: Path) -> None:
    assert quantized(small_net(), (1, 3, 12, 12)).warnings == ()
    for model in (residual_qdq(tmp_path / "m.onnx"), "mobilenet_v1", "squeezenet"):
        found = quantize.quantize(importer.import_model(model, None, 32))
        assert found.losses == (), model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), ZOO)
def test_the_bound_is_far_from_what_the_zoo_loses(name: str, size: int) -> None:
    found = quantize.quantize(importer.import_model(name, None, size))
    assert found.losses == ()
    assert 2 * max(error.rms for error in found.errors) < losses.ERROR_BOUND


def test_what_was_lost_is_kept_today() -> None:
    """The models above, with all that quantization does for them."""
    import torch

    for net in (separable(np.geomspace(0.01, 10, 16)), heads(300), heads(300, "one")):
        graph = from_torch.import_torch(net.eval(), (torch.zeros(SHAPE),))
        found = quantize.quantize(graph, example((4, *SHAPE[1:]), 1))
        assert (found.losses, found.warnings) == ((), ())
        assert max(error.rms for error in found.errors) < 0.04


def test_every_report_has_it(tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the terminal, in the printed report, as JSON, and on the page."""
    import torch

    monkeypatch.setattr(quantize, "quantize", functools.partial(quantize.quantize, steps=NO_STEPS))
    torch.onnx.export(
        heads(300).eval(), (torch.zeros(SHAPE),), str(tmp_path / "m.onnx"), input_names=["x"], output_names=["y"],
        dynamo=False,
    )  # fmt: skip
    np.save(tmp_path / "x.npy", example((4, *SHAPE[1:]), 1))
    build = tmp_path / "build"
    code, out, err = run_command("compile", tmp_path / "m.onnx", "--calibration", tmp_path / "x.npy", "-o", build)
    assert code == 0
    says = "channels of axis 1 (4, 5, 6, 7, ...): int8 is 100% off the model's own values"
    data = json.loads((build / "report.json").read_text())
    page = (build / "report.html").read_text()
    assert f"warning: output y, 16 of 20 {says}" in err
    assert f"Warning: output y, 16 of 20 {says}" in out
    assert any(says in warning for warning in data["warnings"])
    assert {loss["kind"] for loss in data["losses"]} == {PART, OUTPUT}
    assert says in page
