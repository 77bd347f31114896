"""Dense: a matrix product with constant weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.checks import LARGEST, integer
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.loops import LoopNest, matrix_loops

if TYPE_CHECKING:
    from oneshot_ml2.workload.base import ShapeKey
    from oneshot_ml2.workload.epilogue import Tensors

# Elements of a weight that the reference has in float64 at once.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Dense(Workload):
    """int8 matrix product: data (N, C) times weight (K, C) transposed.

    Raises:
        WorkloadError: a value out of range.
    """

    n: int
    c: int
    k: int
    epilogue: Epilogue = Epilogue()

    op = "dense"

    def __post_init__(self) -> None:
        for name in ("n", "c", "k"):
            object.__setattr__(self, name, integer(f"dense {name}", getattr(self, name), 1, LARGEST))
        if not isinstance(self.epilogue, Epilogue):
            raise WorkloadError(f"dense epilogue is {self.epilogue!r}; allowed: an Epilogue")

    @property
    def out_h(self) -> int:
        return 1

    @property
    def out_w(self) -> int:
        return 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, K)."""
        return (self.n, self.k)

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (N,C) int8, weight (K,C) int8, then bias (K,) int32 and residual (N,K) int8 if any."""
        return {"data": ((self.n, self.c), np.int8), "weight": ((self.k, self.c), np.int8)} | self._epilogue_specs(
            self.k
        )

    @property
    def shape_key(self) -> ShapeKey:
        """That of the 1x1 convolution that it is: (C, K, (1, 1), (1, 1), (1, 1)), whatever N."""
        return self.as_conv2d().shape_key

    @property
    def macs(self) -> int:
        return self.n * self.c * self.k

    @property
    def real_macs(self) -> int:
        """As ``macs``: there is no padding."""
        return self.macs

    @property
    def compulsory_bytes(self) -> int:
        """Bytes that must cross the memory port at least once."""
        return self.as_conv2d().compulsory_bytes

    def as_conv2d(self) -> Conv2d:
        """The same product as a 1x1 convolution of 1x1 images (docs/hardware.md, TVM's template)."""
        return Conv2d(self.n, self.c, 1, 1, self.k, 1, 1, epilogue=self.epilogue)

    @property
    def loops(self) -> LoopNest:
        return matrix_loops(self.n, self.c, self.k)

    def loop_weight(self, tensors: Tensors) -> NDArray[np.int8]:
        return tensors["weight"][None]

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (N, K).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        data, weight = tensors["data"].astype(np.float64), tensors["weight"]
        # Some rows at a time: the whole of a large weight would take eight times its memory in float64.
        rows = max(_AT_ONCE // self.c, 1)
        parts = [data @ weight[first : first + rows].astype(np.float64).T for first in range(0, self.k, rows)]
        return self.epilogue.apply(np.concatenate(parts, axis=1).astype(np.int64), tensors)

    def __str__(self) -> str:
        return f"dense {self.n}x{self.c} -> {self.k}"
