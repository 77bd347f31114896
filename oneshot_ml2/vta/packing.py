"""VTA's packed tensor layouts (docs/hardware.md, TVM's template): whole GEMM tiles, filled up with zeros."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.vta.accelerator import Accelerator


def blocks(size: int, block: int) -> int:
    """How many blocks hold ``size`` channels (or images)."""
    return -(-size // block)


def _tiled(name: str, tensor: NDArray[np.int8], dimensions: str, high: int, wide: int) -> NDArray[np.int8]:
    """(A,B,...) -> (AB,BB,...,high,wide): tiles of the first two dimensions, filled up with zeros; C-contiguous.

    Raises:
        WorkloadError: neither two nor four dimensions; ``name`` and ``dimensions`` are for the message.
    """
    if tensor.ndim not in (2, 4):
        raise WorkloadError(f"{name} has shape {tensor.shape}; expected {dimensions}")
    a, b = tensor.shape[:2]
    rows, columns, space = blocks(a, high), blocks(b, wide), tensor.shape[2:]
    full = np.zeros((rows * high, columns * wide, *space), dtype=tensor.dtype)
    full[:a, :b] = tensor
    split = full.reshape(rows, high, columns, wide, *space)
    return np.ascontiguousarray(split.transpose(0, 2, *range(4, split.ndim), 1, 3))


def pack_activation(tensor: NDArray[np.int8], accelerator: Accelerator) -> NDArray[np.int8]:
    """(N,C,H,W) -> (NB,CB,H,W,BATCH,BLOCK), or (N,C) -> (NB,CB,BATCH,BLOCK); C-contiguous, a new array.

    Raises:
        WorkloadError: neither two nor four dimensions.
    """
    return _tiled("an activation", tensor, "(n, c, h, w) or (n, c)", accelerator.batch, accelerator.block)


def unpack_activation(packed: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The inverse of :func:`pack_activation` for the unpadded ``shape`` (N,C,H,W) or (N,C); C-contiguous.

    Raises:
        WorkloadError: ``packed`` cannot hold a tensor of that shape.
    """
    if packed.ndim != len(shape) + 2 or len(shape) not in (2, 4):
        raise WorkloadError(f"a packed activation has shape {packed.shape}; it cannot hold {shape}")
    nb, cb, batch, block = *packed.shape[:2], *packed.shape[-2:]
    fits = (nb, cb) == (blocks(shape[0], batch), blocks(shape[1], block)) and packed.shape[2:-2] == tuple(shape[2:])
    if not fits:
        raise WorkloadError(f"a packed activation has shape {packed.shape}; it cannot hold {shape}")
    split = packed.transpose(0, packed.ndim - 2, 1, packed.ndim - 1, *range(2, packed.ndim - 2))
    full = split.reshape(nb * batch, cb * block, *shape[2:])
    return np.ascontiguousarray(full[: shape[0], : shape[1]])


def by_matrix(
    pack: Callable[[NDArray[np.int8], Accelerator], NDArray[np.int8]],
    tensor: NDArray[np.int8],
    accelerator: Accelerator,
) -> NDArray[np.int8]:
    """What ``pack`` makes of a tensor of two or four dimensions; one of three is packed matrix by matrix."""
    if tensor.ndim == 3:
        return np.stack([pack(matrix, accelerator) for matrix in tensor])
    return pack(tensor, accelerator)


def activation_of_bytes(
    content: NDArray[np.int8], shape: tuple[int, ...], accelerator: Accelerator
) -> NDArray[np.int8]:
    """The tensor of ``shape`` whose packed bytes are ``content``, int8 (bytes,); three dimensions: matrix by matrix."""
    if len(shape) == 3:
        parts = content.reshape(shape[0], -1)
        return np.stack([activation_of_bytes(part, shape[1:], accelerator) for part in parts])
    outer = (blocks(shape[0], accelerator.batch), blocks(shape[1], accelerator.block))
    return unpack_activation(content.reshape(*outer, *shape[2:], accelerator.batch, accelerator.block), shape)


def pack_weight(tensor: NDArray[np.int8], accelerator: Accelerator) -> NDArray[np.int8]:
    """(O,I,KH,KW) -> (OB,IB,KH,KW,BLOCK_out,BLOCK_in), or (O,I) -> (OB,IB,BLOCK,BLOCK); C-contiguous, a new array.

    Raises:
        WorkloadError: neither two nor four dimensions.
    """
    return _tiled("a weight", tensor, "(o, i, kh, kw) or (o, i)", accelerator.block, accelerator.block)


def pack_bias(bias: NDArray[np.int32], accelerator: Accelerator) -> NDArray[np.int32]:
    """(O,) -> (OB,BATCH,BLOCK), repeated for each row of the batch; C-contiguous, a new array.

    Raises:
        WorkloadError: not one dimension.
    """
    if bias.ndim != 1:
        raise WorkloadError(f"a bias has shape {bias.shape}; expected (o,)")
    block = accelerator.block
    full = np.zeros(blocks(len(bias), block) * block, dtype=np.int32)
    full[: len(bias)] = bias
    return np.ascontiguousarray(
        np.broadcast_to(full.reshape(-1, 1, block), (len(full) // block, accelerator.batch, block))
    )
