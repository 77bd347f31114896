"""What a compiled model needs to run: its programs, their tensors and their DRAM."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.vta import isa, packing, simulator, tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oneshot_ml2.devices.base import Session
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.vta.program import Program

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
        for address, raw in self._writes(operands):
            dram[address : address + raw.size] = raw
        program = self.program
        simulator.execute_checked(np.ascontiguousarray(program.insns), program.accelerator, dram)
        return self._results([dram[address : address + size] for address, size in self._reads()])

    def launch_on(self, session: Session, number: int, operands: Sequence[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
        """The results, by a device: this program is number ``number`` of the session.

        Raises:
            ModelError: operands of other shapes.
            DeviceError: the device fails.
        """
        return self._results(session.run(number, self._writes(operands), self._reads()))

    def _writes(self, operands: Sequence[NDArray[np.int8]]) -> list[tuple[int, NDArray[np.uint8]]]:
        """Where in the image each operand goes, packed."""
        shapes = tuple(operand.shape for operand in operands)
        takes = tuple(port.shape for port in self.inputs)
        if shapes != takes or any(operand.dtype != np.int8 for operand in operands):
            raise ModelError(f"layer {self.name} got operands of shapes {shapes}; it takes int8 {takes}")
        program, chip = self.program, self.program.accelerator
        return [
            (program.buffer(port.buffer).address, port.pack(operand, chip).reshape(-1).view(np.uint8))
            for port, operand in zip(self.inputs, operands)
        ]

    def _reads(self) -> list[tuple[int, int]]:
        """Where in the image each result is, and how many bytes."""
        program, chip = self.program, self.program.accelerator
        return [(program.buffer(port.buffer).address, port.packed_bytes(chip)) for port in self.outputs]

    def _results(self, contents: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.int8]]:
        chip = self.program.accelerator
        return [port.unpack(content, chip) for port, content in zip(self.outputs, contents, strict=True)]

    def run(self, operands: Sequence[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
        """The results, in a DRAM image of their own, full of what another launch might leave; as `launch`."""
        dram = np.full(self.program.dram_bytes, _RUBBISH, dtype=np.uint8)
        self.place(dram)
        return self.launch(dram, operands)


def programs_digest(segments: Sequence[LayerProgram]) -> str:
    """A hash of all that the launcher runs, 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for segment in segments:
        program = segment.program
        # What else its JSON holds, nothing runs by.
        digest.update(replace(program.accelerator, extra=()).to_json().encode())
        places = (program.uop_address, program.insn_address, program.buffers)
        digest.update(repr((segment.inputs, segment.outputs, places)).encode())
        digest.update(program.insns.tobytes())
        digest.update(program.uops.tobytes())
        for name, content in sorted(segment.constants.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(content).data)
    return digest.hexdigest()[:32]
