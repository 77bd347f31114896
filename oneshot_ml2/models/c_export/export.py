"""Writes a compiled model as a C project."""

from __future__ import annotations

import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.common.files import replace_folder, temporary
from oneshot_ml2.devices.build import BACKENDS, CONFIG_HEADER, HEADERS, config_header, source_folder
from oneshot_ml2.models import hostpart
from oneshot_ml2.models.c_export import source
from oneshot_ml2.models.c_export.golden import golden
from oneshot_ml2.models.c_export.operators import check_operators
from oneshot_ml2.models.executable import Stored
from oneshot_ml2.models.folder import HOST
from oneshot_ml2.vta.program import INSN_BYTES, PAGE

DATA, MAKEFILE = "model.bin", "Makefile"
_VERSION = 1
_RUNTIME = ("om_tensor.h", "om_ops.h", "om_runtime.h")
_DRIVERS = tuple(dict.fromkeys((*HEADERS, *(name for backend in BACKENDS.values() for name in backend.sources))))
# What `make` makes.
_MADE = ("model", ".made-with")
WRITTEN = (
    MAKEFILE, "model.h", *source.MODEL_SOURCES, *_RUNTIME, *_DRIVERS, CONFIG_HEADER, DATA, source.EMBEDDED,
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What was written.

    ``arena``, ``constants``, ``dram``: bytes of the host's memory and of the VTA's; ``data``: of what model.bin holds;
    ``steps``: what the host computes.
    """

    arena: int
    constants: int
    dram: int
    data: int
    steps: int
    submissions: int


def check_folder(folder: Path) -> None:
    """Raise ModelError unless a C project may be written there: nothing is lost but an older one."""
    if folder.is_file():
        raise ModelError(f"{folder} is a file; give a folder for the C project")
    if folder.is_dir():
        strange = sorted({entry.name for entry in folder.iterdir()} - {*WRITTEN, *_MADE})
        if strange:
            raise ModelError(f"{folder} holds {strange[0]!r}, no part of an exported model; give another folder")


def export(stored: Stored, folder: str | Path, embed: bool = False) -> Exported:
    """Write a C project of a compiled model to a folder; an older one there is replaced.

    Args:
        embed: the data as C, too, instead of ``model.bin``.

    Raises:
        ModelError: its host computes what is not there in C, or its board has too little memory in one piece, both of
            which is known before anything is written; or the folder holds something else.
        OSError: it cannot be written.
    """
    folder = Path(folder).resolve()
    check_folder(folder)
    host = hostpart.from_bytes(stored.host, HOST)
    _check(stored, host)
    check_operators(host.nodes)
    _check_memory(stored)
    project = source.generate(stored, host)
    image, dram = _image(stored)
    run = golden(host, stored.inputs, stored.segments, dram)
    content = project.placed.constants + image + run.content
    checksum, size = zlib.crc32(content), -(-len(dram) // PAGE) * PAGE
    header = struct.pack("<8sIIQ8x", b"OM2MODEL", _VERSION, checksum, len(content))
    cycles = [int(entry["cycles"]) for entry in stored.report["submissions"]]
    data = source.Data(len(image), len(run.content), checksum, size, embed, run.results, run.tolerance, cycles)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary(folder, folder=True) as (work, _):
        for name in (*source.MODEL_SOURCES[1:], *_RUNTIME):
            shutil.copyfile(source_folder() / "runtime" / name, work / name)
        for name in _DRIVERS:
            shutil.copyfile(source_folder() / name, work / name)
        (work / CONFIG_HEADER).write_text(config_header(stored.accelerator))
        (work / "model.h").write_text(source.model_h(stored, project, size))
        (work / "model.c").write_text(source.model_c(stored, host, project, data))
        (work / MAKEFILE).write_text(source.makefile(stored.name, embed))
        if embed:
            (work / source.EMBEDDED).write_text(source.embedded_c(header + content))
        else:
            (work / DATA).write_bytes(header + content)
        check_folder(folder)
        replace_folder(work, folder)
    placed = project.placed
    return Exported(
        placed.arena + project.staging, len(placed.constants), size, len(header) + len(content), len(host.nodes),
        len(stored.segments),
    )  # fmt: skip


def _check(stored: Stored, host: hostpart.HostPart) -> None:
    """Raise ModelError unless the host's part belongs to the programs."""
    launches = [step for step in host.steps if isinstance(step, hostpart.Launch)]
    expected = [(len(one.inputs), len(one.outputs)) for one in stored.segments]
    if (
        [(len(one.inputs), len(one.outputs)) for one in launches] != expected
        or len(stored.report.get("submissions", ())) != len(expected)
        or [host.shape(name) for name in host.inputs] != [tensor.shape for tensor in stored.inputs]
        or [host.shape(name) for name in host.outputs] != [tensor.shape for tensor in stored.outputs]
    ):
        raise ModelError(f"{HOST} is of another model than the programs; compile the model again")


def _dram_bytes(stored: Stored) -> int:
    """Bytes of the VTA's memory, which a model in C takes in one piece."""
    return max((one.program.dram_bytes for one in stored.segments), default=0)


def _check_memory(stored: Stored) -> None:
    """Raise ModelError if the board of a model is known not to give what it takes."""
    board, size = stored.accelerator.board, _dram_bytes(stored)
    if board is not None and 0 < board.largest_allocation < size:
        raise ModelError(
            f"{stored.name} takes {size:,} bytes of the VTA's memory in one piece, and its board gives "
            f"{board.largest_allocation:,}; give the driver more, or run the model from Python, which takes pieces"
        )


def _image(stored: Stored) -> tuple[bytes, NDArray[np.uint8]]:
    """What the VTA's memory holds before any run, from address 0 to the last byte that is not 0 by then; and all."""
    dram: NDArray[Any] = np.zeros(_dram_bytes(stored), dtype=np.uint8)
    end = 0
    for one in stored.segments:
        one.place(dram)
        program = one.program
        places = [(program.buffer(name).address, content.nbytes) for name, content in one.constants.items()]
        places.append((program.uop_address, 4 * len(program.uops)))
        places.append((program.insn_address, INSN_BYTES * len(program.insns)))
        end = max(end, *(address + count for address, count in places))
    return dram[:end].tobytes(), dram
