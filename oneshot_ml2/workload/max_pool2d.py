"""Two-dimensional max pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.base import Windowed, four_pads
from oneshot_ml2.workload.checks import LARGEST, integers
from oneshot_ml2.workload.epilogue import Epilogue

if TYPE_CHECKING:
    from oneshot_ml2.workload.epilogue import Tensors


@dataclass(frozen=True)
class MaxPool2d(Windowed):
    """int8 maximum over windows (r, s) of each channel, data NCHW; padding never wins.

    ``stride`` (default: the window) and ``padding`` as of `Conv2d`; ``ceil_mode``: a last window may begin that reaches
    past the padding.

    Raises:
        WorkloadError: a value out of range, an epilogue with bias or residual, or an output without elements.
    """

    n: int
    c: int
    h: int
    w: int
    r: int
    s: int
    stride: int | Sequence[int] | None = None
    padding: int | Sequence[int] = 0
    ceil_mode: bool = False
    epilogue: Epilogue = Epilogue(shift=0, clip=None)

    op = "max_pool2d"
    pool = True

    def __post_init__(self) -> None:
        self._normalised(("n", "c", "h", "w", "r", "s"))
        stride = (self.r, self.s) if self.stride is None else self.stride
        object.__setattr__(self, "stride", integers(f"{self.op} stride", stride, (2,), 1, LARGEST))
        object.__setattr__(self, "padding", four_pads(f"{self.op} padding", self.padding))
        if self.epilogue != Epilogue(shift=0, clip=self.epilogue.clip):
            raise WorkloadError(f"{self.op} epilogue is {self.epilogue}; allowed: a clip only")
        if not isinstance(self.ceil_mode, (bool, np.bool_)):
            raise WorkloadError(f"{self.op} ceil_mode is {self.ceil_mode!r}; allowed: true or false")
        object.__setattr__(self, "ceil_mode", bool(self.ceil_mode))
        self._check_pads((self.r - 1, self.s - 1), self.pads)

    @property
    def k(self) -> int:  # type: ignore[override]
        """As many channels as the input has."""
        return self.c

    @property
    def groups(self) -> int:
        return self.c

    @property
    def in_steps(self) -> tuple[int, int]:
        return cast("tuple[int, int]", self.stride)

    def _windows(self, size: int, kernel: int, step: int, before: int, after: int) -> int:
        room = size + before + after - kernel
        if not self.ceil_mode:
            return room // step + 1
        count = -(-room // step) + 1
        # A window must begin inside the image or its leading padding.
        return count - ((count - 1) * step >= size + before)

    @property
    def out_h(self) -> int:
        return self._windows(self.h, self.r, self.in_steps[0], *self.pads[:2])

    @property
    def out_w(self) -> int:
        return self._windows(self.w, self.s, self.in_steps[1], *self.pads[2:])

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (N,C,H,W) int8."""
        return {"data": ((self.n, self.c, self.h, self.w), np.int8)}

    @property
    def macs(self) -> int:
        """None: comparisons only."""
        return 0

    @property
    def real_macs(self) -> int:
        return 0

    def loop_weight(self, tensors: Tensors) -> None:
        return None

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (N, C, OH, OW).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        (sh, sw), (top, _, left, _) = self.in_steps, self.pads
        height, width = (self.out_h - 1) * sh + self.r, (self.out_w - 1) * sw + self.s
        shape = (self.n, self.c, max(height, top + self.h), max(width, left + self.w))
        padded = np.full(shape, -128, dtype=np.int64)
        padded[:, :, top : top + self.h, left : left + self.w] = tensors["data"]
        taps = [
            padded[:, :, r : r + (self.out_h - 1) * sh + 1 : sh, s : s + (self.out_w - 1) * sw + 1 : sw]
            for r in range(self.r)
            for s in range(self.s)
        ]
        return self.epilogue.apply(np.maximum.reduce(taps), tensors)
