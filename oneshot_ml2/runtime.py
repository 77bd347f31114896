"""What a compiled model needs to run: its layers' programs, and the launcher that TVM's virtual machine calls.

TVM loads `_autoload` by its entry point at every ``import tvm``, so this module imports nothing heavy at its top.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oneshot_ml2.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from oneshot_ml2.vta.program import Program

LAUNCHER = "oneshot_ml2.launch"


@dataclass(frozen=True)
class LayerProgram:
    """A layer ready to run: ``constants`` are the packed contents of its DRAM buffers that no launch changes.

    ``inputs``: shapes of its int8 operands, data first, then the residual if it has one; ``output``: of its result.
    """

    name: str
    program: Program
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    constants: Mapping[str, NDArray[Any]] = field(repr=False)

    def run(self, operands: Sequence[NDArray[np.int8]]) -> NDArray[np.int8]:
        """The layer's result on the functional simulator.

        Raises:
            ModelError: operands of other shapes.
        """
        import numpy as np

        from oneshot_ml2.vta import packing, simulator
        from oneshot_ml2.vta.program import element_bytes

        program, chip = self.program, self.program.accelerator
        shapes = tuple(operand.shape for operand in operands)
        if shapes != self.inputs or any(operand.dtype != np.int8 for operand in operands):
            raise ModelError(f"layer {self.name} got operands of shapes {shapes}; it takes int8 {self.inputs}")
        dram = np.zeros(program.dram_bytes, dtype=np.uint8)
        packed = {name: packing.pack_activation(operand, chip) for name, operand in zip(("data", "residual"), operands)}
        for name, content in {**self.constants, **packed}.items():
            raw = content.reshape(-1).view(np.uint8)
            address = program.buffer(name).address
            dram[address : address + raw.size] = raw
        simulator.run(program, dram)
        buffer = program.buffer("output")
        size = element_bytes(chip)[buffer.memory] * buffer.elements
        blocks = (packing.blocks(self.output[0], chip.batch), packing.blocks(self.output[1], chip.block))
        result = dram[buffer.address : buffer.address + size].view(np.int8)
        result = result.reshape(*blocks, *self.output[2:], chip.batch, chip.block)
        return packing.unpack_activation(result, self.output)


# Identity of a loaded model -> its layers, in the order of the launches' numbers.
_models: dict[str, tuple[LayerProgram, ...]] = {}


def register_model(identity: str, layers: Sequence[LayerProgram]) -> None:
    """Make a model's layers known to the launcher, and the launcher to TVM."""
    _models[identity] = tuple(layers)
    _autoload()


def as_numpy(tensor: Any) -> NDArray[Any]:
    """A contiguous CPU tensor of TVM as an array that shares its memory; also of borrowed ones."""
    import numpy as np

    dtype = np.dtype(str(tensor.dtype))
    shape = tuple(int(size) for size in tensor.shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = memoryview((ctypes.c_uint8 * size).from_address(tensor.data_ptr()))
    return np.frombuffer(memory, dtype).reshape(shape)


def _launch(identity: str, number: int, *tensors: Any) -> None:
    """Run layer ``number`` of a model: its operands, then the tensor that takes the result."""
    layers = _models.get(str(identity))
    if layers is None:
        raise ModelError("this model's programs are not loaded; load its folder with oneshot_ml2.graph.load")
    *operands, output = (as_numpy(tensor) for tensor in tensors)
    output[...] = layers[int(number)].run(operands)


def _autoload() -> None:
    """Register the launcher with TVM."""
    import tvm_ffi

    tvm_ffi.register_global_func(LAUNCHER, _launch, override=True)
