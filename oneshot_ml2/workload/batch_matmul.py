"""Batched matrix product of two tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.checks import LARGEST, integer
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.loops import LoopNest, matrix_loops

if TYPE_CHECKING:
    from oneshot_ml2.workload.base import ShapeKey
    from oneshot_ml2.workload.epilogue import Tensors


@dataclass(frozen=True)
class BatchMatmul(Workload):
    """int8 matrix products of pairs: data (B, N, C) times weight (B, K, C) transposed; both may be activations.

    Raises:
        WorkloadError: a value out of range, or a residual.
    """

    b: int
    n: int
    c: int
    k: int
    epilogue: Epilogue = Epilogue()

    op = "batch_matmul"

    def __post_init__(self) -> None:
        for name in ("b", "n", "c", "k"):
            object.__setattr__(self, name, integer(f"{self.op} {name}", getattr(self, name), 1, LARGEST))
        if not isinstance(self.epilogue, Epilogue) or self.epilogue.residual:
            raise WorkloadError(f"{self.op} epilogue is {self.epilogue!r}; allowed: an Epilogue without residual")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(B, N, K)."""
        return (self.b, self.n, self.k)

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (B,N,C) int8, weight (B,K,C) int8, then bias (K,) int32 if any, the same for every pair."""
        return {
            "data": ((self.b, self.n, self.c), np.int8),
            "weight": ((self.b, self.k, self.c), np.int8),
        } | self._epilogue_specs(self.k)

    @property
    def shape_key(self) -> ShapeKey:
        """(C, K, (1, 1), (B, N), (1, 1))."""
        return (self.c, self.k, (1, 1), (self.b, self.n), (1, 1))

    @property
    def macs(self) -> int:
        return self.b * self.n * self.c * self.k

    @property
    def real_macs(self) -> int:
        """As ``macs``: there is no padding."""
        return self.macs

    @property
    def compulsory_bytes(self) -> int:
        """Bytes that must cross the memory port at least once."""
        bias = 4 * self.k if self.epilogue.bias else 0
        return self.b * (self.n * self.c + self.k * self.c + self.n * self.k) + bias

    @property
    def loops(self) -> LoopNest:
        return matrix_loops(self.n, self.c, self.k, pairs=self.b)

    def loop_weight(self, tensors: Tensors) -> NDArray[np.int8]:
        return tensors["weight"]

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (B, N, K).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        sums = tensors["data"].astype(np.float64) @ tensors["weight"].astype(np.float64).transpose(0, 2, 1)
        # The epilogue's channels come second.
        result = self.epilogue.apply(sums.astype(np.int64).transpose(0, 2, 1), tensors)
        return np.ascontiguousarray(result.transpose(0, 2, 1))

    def __str__(self) -> str:
        return f"batch_matmul {self.b}x{self.n}x{self.c} -> {self.k}"
