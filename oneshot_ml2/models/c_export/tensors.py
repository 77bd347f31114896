"""Tensors of an exported model: which there are, and where each lies in the host's arena or among the constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.layout import place

# As OM_RANK in om_tensor.h, and what its int32 can count.
MOST_AXES = 8
_MOST_ELEMENTS = (1 << 31) - 1
ALIGNMENT = 64


@dataclass(frozen=True)
class Tensor:
    """A tensor of C: ``item``: bytes of an element; ``store``: number of the memory that it lies in."""

    shape: tuple[int, ...]
    item: int
    store: int


@dataclass
class _Store:
    """Bytes that one or more tensors lie in: constant, or in the arena from a first to a last step on."""

    size: int
    constant: NDArray[Any] | None = None
    first: int = -1
    last: int = -1


@dataclass
class Tensors:
    """Collects tensors, in the order of their numbers, while steps are generated; ``step``: the one at hand."""

    tensors: list[Tensor] = field(default_factory=list)
    stores: list[_Store] = field(default_factory=list)
    step: int = -1
    _known: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def _add(self, shape: Sequence[int], item: int, store: int) -> int:
        """Raises ModelError: more axes or elements than the runtime has, or none."""
        if len(shape) > MOST_AXES or not 0 < math.prod(shape) <= _MOST_ELEMENTS:
            raise ModelError(
                f"a tensor has the shape {tuple(shape)}; in C it has at most {MOST_AXES} axes, and "
                f"1 to {_MOST_ELEMENTS} elements"
            )
        self.tensors.append(Tensor(tuple(shape), item, store))
        return len(self.tensors) - 1

    def value(self, shape: Sequence[int], item: int) -> int:
        """A tensor in the arena that this step makes."""
        self.stores.append(_Store(math.prod(shape) * item, None, self.step, self.step))
        return self._add(shape, item, len(self.stores) - 1)

    def constant(self, array: NDArray[Any]) -> int:
        """A constant: float32, int32 or int8; equal ones are one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self.stores.append(_Store(array.nbytes, np.ascontiguousarray(array)))
            self._known[key] = self._add(array.shape, array.itemsize, len(self.stores) - 1)
        return self._known[key]

    def view(self, number: int, shape: Sequence[int]) -> int:
        """The same elements in another shape."""
        tensor = self.tensors[number]
        return number if tensor.shape == tuple(shape) else self._add(shape, tensor.item, tensor.store)

    def use(self, number: int) -> None:
        """This step reads a tensor."""
        store = self.stores[self.tensors[number].store]
        store.last = max(store.last, self.step)

    def placed(self) -> Placed:
        """Where all of them lie."""
        arena = [store for store in self.stores if store.constant is None]
        sizes = [-(-max(store.size, 1) // ALIGNMENT) * ALIGNMENT for store in arena]
        offsets, end = place(sizes, [(store.first, store.last) for store in arena])
        of_arena = iter(offsets)
        places, blob = [], bytearray()
        for store in self.stores:
            if store.constant is None:
                places.append(next(of_arena))
                continue
            places.append(len(blob))
            blob += store.constant.tobytes()
            blob += bytes(-len(blob) % ALIGNMENT)
        return Placed(
            tuple(places[tensor.store] for tensor in self.tensors),
            tuple(self.stores[tensor.store].constant is not None for tensor in self.tensors),
            end,
            bytes(blob),
        )


@dataclass(frozen=True)
class Placed:
    """Of each tensor its offset in bytes, in the constants or the arena; bytes of the arena; the constants."""

    places: tuple[int, ...]
    constant: tuple[bool, ...]
    arena: int
    constants: bytes = field(repr=False)
