"""What a compiled model needs to run: its programs, its DRAM, and the launcher that TVM's virtual machine calls.

TVM loads `_autoload` by its entry point at every ``import tvm``, so this module imports nothing heavy at its top.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from oneshot_ml2.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from oneshot_ml2.accelerator import Accelerator
    from oneshot_ml2.vta.program import Program

LAUNCHER = "oneshot_ml2.launch"
# (number of a launch, its operands, its results) -> what the host gets as its results.
Watch: TypeAlias = "Callable[[int, Sequence[NDArray[Any]], Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]"
# How tensors can lie in DRAM: as `packing.pack_activation` or `packing.pack_weight` packs them, matrix by matrix where
# they have three dimensions.
ACTIVATION, WEIGHT = "activation", "weight"
LAYOUTS = (ACTIVATION, WEIGHT)
_RUBBISH = 0xA5


@dataclass(frozen=True)
class Port:
    """An int8 tensor of the host that a program reads or writes: the buffer, the shape, one of ``LAYOUTS``."""

    buffer: str
    shape: tuple[int, ...]
    layout: str = ACTIVATION

    def pack(self, tensor: NDArray[np.int8], chip: Accelerator) -> NDArray[np.int8]:
        """The buffer's content, contiguous, of a tensor of this shape."""
        from oneshot_ml2.vta import packing

        function = {ACTIVATION: packing.pack_activation, WEIGHT: packing.pack_weight}[self.layout]
        return packing.by_matrix(function, tensor, chip)

    def packed_bytes(self, chip: Accelerator) -> int:
        """How large that content is."""
        # Of the matrices, if there are several, or of the channels and pixels: both are factors.
        *outer, rows, columns = self.shape[:2] if len(self.shape) != 3 else self.shape
        size = chip.batch if self.layout == ACTIVATION else chip.block
        spatial = self.shape[2:] if len(self.shape) == 4 else ()
        return math.prod((*outer, *spatial, -(-rows // size) * size, -(-columns // chip.block) * chip.block))

    def unpack(self, content: NDArray[np.uint8], chip: Accelerator) -> NDArray[np.int8]:
        """The tensor, from `packed_bytes` bytes of an activation."""
        import numpy as np

        from oneshot_ml2.vta import packing

        return packing.activation_of_bytes(content.view(np.int8), self.shape, chip)


@dataclass(frozen=True)
class LayerProgram:
    """A layer, or several joined ones, ready to run.

    ``inputs``, ``outputs``: the host's tensors, in the order of a launch; ``constants``: the packed contents of those
    DRAM buffers that no launch changes.
    """

    name: str
    program: Program
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: Mapping[str, NDArray[Any]] = field(repr=False)

    def place(self, dram: NDArray[np.uint8]) -> None:
        """Put the constants, the micro-ops and the instructions into a DRAM image, uint8 (bytes,).

        Raises:
            OneShotError: a program that would leave tokens for the next one.
        """
        import numpy as np

        from oneshot_ml2.vta import isa, tokens

        program, chip = self.program, self.program.accelerator
        tokens.check_submission(program.insns)
        contents = [(program.buffer(name).address, content) for name, content in self.constants.items()]
        contents.append((program.uop_address, isa.encode_uops(program.uops, chip).astype("<u4")))
        contents.append((program.insn_address, np.frombuffer(isa.to_bytes(isa.encode(program.insns, chip)), np.uint8)))
        for address, content in contents:
            raw = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
            dram[address : address + raw.size] = raw

    def launch(self, dram: NDArray[np.uint8], operands: Sequence[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
        """The results, by the functional simulator, in an image that `place` has filled.

        Raises:
            ModelError: operands of other shapes.
        """
        import numpy as np

        from oneshot_ml2.vta import simulator

        program, chip = self.program, self.program.accelerator
        shapes = tuple(operand.shape for operand in operands)
        takes = tuple(port.shape for port in self.inputs)
        if shapes != takes or any(operand.dtype != np.int8 for operand in operands):
            raise ModelError(f"layer {self.name} got operands of shapes {shapes}; it takes int8 {takes}")
        for port, operand in zip(self.inputs, operands):
            raw = port.pack(operand, chip).reshape(-1).view(np.uint8)
            address = program.buffer(port.buffer).address
            dram[address : address + raw.size] = raw
        simulator.execute_checked(np.ascontiguousarray(program.insns, np.int64), chip, dram)
        results = []
        for port in self.outputs:
            address = program.buffer(port.buffer).address
            results.append(port.unpack(dram[address : address + port.packed_bytes(chip)], chip))
        return results

    def run(self, operands: Sequence[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
        """The results, in a DRAM image of their own, full of what another launch might leave; as `launch`."""
        import numpy as np

        dram = np.full(self.program.dram_bytes, _RUBBISH, dtype=np.uint8)
        self.place(dram)
        return self.launch(dram, operands)


@dataclass
class _Model:
    """The programs of a model by number, and the DRAM that they share, which no launch reads before it wrote it."""

    segments: tuple[LayerProgram, ...]
    digest: str
    dram: NDArray[np.uint8] = field(repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    watch: Watch | None = None


# Identity of a loaded model -> what its launches need.
_models: dict[str, _Model] = {}


def programs_digest(segments: Sequence[LayerProgram]) -> str:
    """A hash of all that the launcher runs, 32 hexadecimal digits."""
    import numpy as np

    digest = hashlib.sha256()
    for segment in segments:
        program = segment.program
        # What else its JSON holds, nothing runs by.
        digest.update(replace(program.accelerator, extra=()).to_json().encode())
        places = (program.uop_address, program.insn_address, program.buffers)
        digest.update(repr((segment.inputs, segment.outputs, places)).encode())
        digest.update(np.ascontiguousarray(program.insns).data)
        digest.update(np.ascontiguousarray(program.uops).data)
        for name, content in sorted(segment.constants.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(content).data)
    return digest.hexdigest()[:32]


def register_model(identity: str, segments: Sequence[LayerProgram]) -> None:
    """Make a model's programs known to the launcher, and the launcher to TVM.

    Raises:
        ModelError: another model has this identity, one of other programs.
    """
    import numpy as np

    digest = programs_digest(segments)
    if identity not in _models:
        size = max((segment.program.dram_bytes for segment in segments), default=0)
        dram = np.zeros(size, dtype=np.uint8)
        for segment in segments:
            segment.place(dram)
        _models[identity] = _Model(tuple(segments), digest, dram)
    elif _models[identity].digest != digest:
        raise ModelError("a model of the same identity but other programs is loaded already; compile this one again")
    _autoload()


@contextlib.contextmanager
def watched(identity: str, watch: Watch) -> Iterator[None]:
    """Call ``watch`` at every launch of a registered model: what it returns stands for the program's results."""
    model = _models[identity]
    model.watch = watch
    try:
        yield
    finally:
        model.watch = None


def as_numpy(tensor: Any) -> NDArray[Any]:
    """A contiguous CPU tensor of TVM as an array that shares its memory; also of borrowed ones."""
    import numpy as np

    dtype = np.dtype(str(tensor.dtype))
    shape = tuple(int(size) for size in tensor.shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = memoryview((ctypes.c_uint8 * size).from_address(tensor.data_ptr()))
    return np.frombuffer(memory, dtype).reshape(shape)


def _launch(identity: str, number: int, *tensors: Any) -> None:
    """Run program ``number`` of a model: its operands, then the tensors that take the results."""
    model = _models.get(str(identity))
    if model is None:
        raise ModelError("this model's programs are not loaded; load its folder with oneshot_ml2.graph.load")
    segment = model.segments[int(number)]
    arrays = [as_numpy(tensor) for tensor in tensors]
    count = len(segment.inputs)
    with model.lock:
        results = segment.launch(model.dram, arrays[:count])
        if model.watch is not None:
            results = list(model.watch(int(number), arrays[:count], results))
    for target, result in zip(arrays[count:], results, strict=True):
        target[...] = result


def _autoload() -> None:
    """Register the launcher with TVM."""
    import tvm_ffi

    tvm_ffi.register_global_func(LAUNCHER, _launch, override=True)
