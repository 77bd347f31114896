"""Convolutions of few channels over patches."""

from __future__ import annotations

import numpy as np
import pytest

from oneshot_ml2.models import operators
from oneshot_ml2.models.ir import Node
from oneshot_ml2.models.unfold import unfolded
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue

PYNQ = Accelerator.load("pynq")
FIRST = Conv2d(1, 3, 224, 224, 64, 7, 7, 2, 3, epilogue=Epilogue(bias=True))


@pytest.mark.parametrize(
    "conv",
    [
        Conv2d(2, 3, 17, 15, 8, 7, 5, (2, 3), (3, 2), epilogue=Epilogue(bias=True)),
        Conv2d(1, 2, 9, 9, 4, 3, 3, 1, (0, 1, 2, 1), 2),
        Conv2d(1, 5, 6, 6, 3, 2, 2, 2),
    ],
)
def test_patches_give_the_same_result(conv: Conv2d) -> None:
    other = unfolded(conv, PYNQ)
    assert other is not None
    tensors = conv.random_inputs(np.random.default_rng(1))
    window = {"strides": conv.strides, "pads": conv.pads, "dilation": conv.dilations, "size": (conv.r, conv.s)}
    shape = (conv.n, other.c, conv.out_h, conv.out_w)
    moved = {
        **tensors,
        "data": operators.compute(Node("p", "int_patches", ("x",), "p", window), [tensors["data"]], shape),
        "weight": tensors["weight"].reshape(conv.k, -1, 1, 1),
    }
    assert np.array_equal(other.reference(moved), conv.reference(tensors))


def test_it_pays_where_blocks_are_mostly_empty() -> None:
    other = unfolded(FIRST, PYNQ)
    assert other is not None and other.c == 147
    assert engine_bound(other, PYNQ).bound <= 900_000 < 2_000_000 < engine_bound(FIRST, PYNQ).bound
    assert unfolded(Conv2d(1, 64, 56, 56, 64, 3, 3, 1, 1), PYNQ) is None
    assert unfolded(Conv2d(1, 3, 8, 8, 8, 1, 1), PYNQ) is None
    assert unfolded(Dense(1, 3, 8), PYNQ) is None


def test_graphs_compute_the_same_over_patches() -> None:
    from graph_models import example, needs, small_net

    needs("tvm")
    import torch

    from oneshot_ml2.models import execute
    from oneshot_ml2.models.frontend import from_torch
    from oneshot_ml2.models.patches import over_patches
    from oneshot_ml2.models.quantize import quantize

    source = from_torch.import_torch(small_net(), (torch.zeros(1, 3, 12, 12),))
    plain = quantize.quantize(source, example((4, 3, 12, 12), 1)).graph
    moved = over_patches(plain, PYNQ)
    (first,) = [node for node in moved.nodes if node.op == "int_patches"]
    (reader,) = moved.users()[first.output]
    assert reader.attrs["workload"].r == 1 and reader.arrays["weight"].shape[1] == reader.attrs["workload"].c
    sample = {moved.inputs[0]: example((1, 3, 12, 12), 2)}
    for name, want in execute.execute(plain, sample).items():
        assert np.array_equal(execute.execute(moved, sample)[name], want)
    # Layers of whole blocks, and those that read what the VTA makes, stay as they are.
    assert len(moved.nodes) == len(plain.nodes) + 1
