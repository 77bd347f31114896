"""The DRAM image of a layer: packed tensors where a program expects them, and its output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.vta import nest, packing, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Program, element_bytes
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.epilogue import Tensors

_BIAS_SCALE = 127


def bias_tiles(bias: NDArray[np.int32], accelerator: Accelerator) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """A bias as int8 weight tiles (OB,BLOCK,BLOCK) times one constant input tile (BATCH,BLOCK).

    The input holds 127 in every lane but the last, which holds 1: bias = 127 * quotient + rest, and the
    quotient is spread over the lanes.

    Raises:
        WorkloadError: a bias larger than the tile can represent.
    """
    block = accelerator.block
    packed = packing.pack_bias(bias, accelerator)[:, 0, :].astype(np.int64)
    quotient = np.rint(packed / _BIAS_SCALE).astype(np.int64)
    rest = packed - quotient * _BIAS_SCALE
    lanes = block - 1
    if (np.abs(quotient) > _BIAS_SCALE * lanes).any():
        raise WorkloadError("a bias is too large for its declared bias_bits; declare more bits")
    weights = np.zeros((*packed.shape, block), dtype=np.int8)
    steps = np.arange(lanes) * _BIAS_SCALE
    weights[..., :lanes] = np.sign(quotient)[..., None] * np.clip(np.abs(quotient)[..., None] - steps, 0, _BIAS_SCALE)
    weights[..., lanes] = rest
    constant = np.full((accelerator.batch, block), _BIAS_SCALE, dtype=np.int8)
    constant[:, lanes] = 1
    return weights, constant


def packed_weight(workload: Workload, tensors: Tensors, accelerator: Accelerator) -> NDArray[np.int8]:
    """The weight tiles of a nest, int8 (groups * OB, IB, KH, KW, BLOCK, BLOCK) or without KH, KW.

    Groups that share blocks are block-diagonal; pooling has one identity tile.
    """
    weight = workload.loop_weight(tensors)
    if weight is None:
        return np.eye(accelerator.block, dtype=np.int8)[None, None, None, None]
    block, channels = accelerator.block, nest.channel_blocks(workload.loops, accelerator.block)
    # Nests side by side, each with the groups that its blocks hold.
    nests = channels.outputs if channels.depthwise else channels.groups
    groups, k, c, *window = weight.shape
    if nests < groups:
        merged = groups if nests == 1 else channels.inputs * block // c
        full = np.zeros((nests, merged * k, merged * c, *window), dtype=np.int8)
        for group in range(groups):
            nest_index, place = divmod(group, merged)
            rows, columns = slice(place * k, (place + 1) * k), slice(place * c, (place + 1) * c)
            full[nest_index, rows, columns] = weight[group]
        weight = full
    return np.concatenate([packing.pack_weight(part, accelerator) for part in weight])


def packed_tensors(workload: Workload, tensors: Tensors, accelerator: Accelerator) -> dict[str, NDArray[np.generic]]:
    """Every DRAM buffer's content by name, packed for the accelerator."""
    epilogue = workload.epilogue
    packed: dict[str, NDArray[np.generic]] = {
        "data": packing.by_matrix(packing.pack_activation, tensors["data"], accelerator),
        "weight": packed_weight(workload, tensors, accelerator),
    }
    if epilogue.bias:
        if (np.abs(tensors["bias"].astype(np.int64)) > 1 << epilogue.bias_bits).any():
            raise WorkloadError(f"a bias exceeds 2**{epilogue.bias_bits}; declare more bias_bits")
        # The pairs of a batched product share one bias.
        repeats = workload.loops.groups if workload.loops.paired else 1
        packed["bias"] = np.concatenate([packing.pack_bias(tensors["bias"], accelerator)] * repeats)
        if nest.bias_gemm_fits(epilogue.bias_bits, accelerator.block):
            tiles, packed["constant"] = bias_tiles(tensors["bias"], accelerator)
            packed["bias_weight"] = np.concatenate([tiles] * repeats)
    if epilogue.residual_shift is not None:
        packed["residual"] = packing.pack_activation(tensors["residual"], accelerator)
        packed["identity"] = np.eye(accelerator.block, dtype=np.int8) * np.int8(1 << epilogue.residual_shift)
    return packed


def dram_image(program: Program, workload: Workload, tensors: Tensors) -> NDArray[np.uint8]:
    """A DRAM image, uint8 (bytes,), with the packed tensors in place; the simulator adds the program.

    Raises:
        WorkloadError: tensors that do not fit the workload.
    """
    workload.check_inputs(tensors)
    dram = np.zeros(program.dram_bytes, dtype=np.uint8)
    for name, content in packed_tensors(workload, tensors, program.accelerator).items():
        raw = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
        address = program.buffer(name).address
        dram[address : address + raw.size] = raw
    return dram


def execute(program: Program, workload: Workload, tensors: Tensors) -> NDArray[np.int8]:
    """Run a layer's program on the functional simulator and return its unpacked output."""
    dram = dram_image(program, workload, tensors)
    simulator.run(program, dram)
    buffer = program.buffer("output")
    size = element_bytes(program.accelerator)[buffer.memory] * buffer.elements
    content = dram[buffer.address : buffer.address + size].view(np.int8)
    return packing.activation_of_bytes(content, workload.output_shape, program.accelerator)
