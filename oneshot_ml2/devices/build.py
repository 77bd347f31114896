"""Builds driver libraries from the C sources that the package ships: the simulator, and code for boards.

A library is for one accelerator. What it has to know of it stands in ``vta_config.h``, which is written here.
"""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.common.files import check_output, write_whole
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.reading import parse_json
from oneshot_ml2.vta import isa
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Opcode

CONFIG_HEADER = "vta_config.h"
HEADERS = ("vta_blocks.h", "vta_driver.h", "vta_registers.h", "vta_sim.h")
# What all are compiled with: C99, and no warning.
FLAGS = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2")
LIBRARY_FLAGS = ("-fPIC", "-shared")
# Of a server: it needs nothing of the machine that it runs on.
STATIC_FLAGS = ("-static", "-s")
_SERVER = ("main", "server", "connection", "requests", "worker", "tracker", "pool", "frame", "sha256")
# A simulator that runs where it is built.
NATIVE_FLAGS = ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ()
DESIGNS = ("hls", "chisel")


@dataclass(frozen=True)
class Backend:
    """A driver library: ``help``, for listings; its ``sources``, in the folder ``c``; ``libraries`` that it links; and
    more ``options`` of the compiler."""

    help: str
    sources: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


_BOARD = ("board_driver.c", "vta_registers.c", "vta_blocks.c")
BACKENDS = {
    "sim": Backend(
        "a functional simulator of the accelerator",
        ("sim_driver.c", "vta_sim.c", "vta_blocks.c"),
        options=("-DVTA_BREAKABLE",),
    ),
    "udmabuf": Backend("a board, memory from the kernel module u-dma-buf", (*_BOARD, "memory_udmabuf.c")),
    "xrt": Backend("a board, memory from XRT (PYNQ 2.7 and later)", (*_BOARD, "memory_xrt.c"), ("-ldl",)),
}


@dataclass(frozen=True)
class Board:
    """A board: ``design``, one of `DESIGNS`; ``base``: physical address of its registers; ``offset``: what is added to
    physical addresses of memory for VTA."""

    design: str
    base: int
    offset: int = 0


# By VTA's TARGET; another board has the registers where its designer put them.
_ZYNQ = Board("hls", 0x43C00000)
_BOARDS = {
    "pynq": _ZYNQ,
    "ultra96": Board("hls", 0xA0000000),
    "zcu104": Board("hls", 0xA0000000),
    "axu5evb": Board("hls", 0xA0000000),
    "de10nano": Board("chisel", 0xFF220000, 0x80000000),
}


def source_folder() -> Path:
    """The folder of the C sources."""
    return Path(str(resources.files("oneshot_ml2").joinpath("c")))


def board_of(accelerator: Accelerator) -> Board:
    """Where the registers are on the board that the accelerator's TARGET names, or on a Zynq-7000."""
    target = parse_json(dict(accelerator.extra).get("TARGET", '""'), "TARGET")
    return _BOARDS.get(str(target), _ZYNQ)


def configuration(accelerator: Accelerator) -> str:
    """What results depend on, in a line; libraries that are built here tell it. Of a board what its own one tells."""
    a = accelerator
    if a.board is not None and a.board.configuration:
        return a.board.configuration
    return (
        f"{a.batch}x{a.block} i8w8a32, SRAMs of {a.uop_depth} micro-ops, {a.inp_depth} inputs, {a.wgt_depth} weights, "
        f"{a.acc_depth} accumulators, index bits {a.isa_uop_bits} {a.isa_inp_bits} {a.isa_wgt_bits} {a.isa_acc_bits}"
    )


def config_header(accelerator: Accelerator, board: Board | None = None) -> str:
    """The text of ``vta_config.h``: sizes, where the fields of instructions and micro-ops lie, and the board."""
    a = accelerator
    board = board or board_of(a)
    lines = [
        "/* An accelerator, for the sources beside it. Written by oneshot-ml2. */",
        "#ifndef VTA_CONFIG_H",
        "#define VTA_CONFIG_H",
        f'#define VTA_CONFIGURATION "{configuration(a)}"',
        f"#define VTA_LOG_BATCH {a.log_batch}",
        f"#define VTA_LOG_BLOCK {a.log_block}",
        f"#define VTA_UOP_DEPTH {a.uop_depth}u",
        f"#define VTA_LOG_INP_DEPTH {a.log_inp_depth}",
        f"#define VTA_LOG_WGT_DEPTH {a.log_wgt_depth}",
        f"#define VTA_LOG_ACC_DEPTH {a.log_acc_depth}",
        f"#define VTA_ISA_UOP_BITS {a.isa_uop_bits}",
        f"#define VTA_QUEUE {a.instruction_queue}u",
        f"#define VTA_DESIGN_{board.design.upper()} 1",
        f"#define VTA_REGISTERS UINT64_C({board.base:#x})",
        f"#define VTA_ADDRESS_OFFSET UINT64_C({board.offset:#x})",
    ]
    index_bits = (a.isa_uop_bits, a.isa_inp_bits, a.isa_wgt_bits, a.isa_acc_bits)
    for name, opcode in (("MEM", Opcode.LOAD), ("GEMM", Opcode.GEMM), ("ALU", Opcode.ALU)):
        for field, _, low, bits in isa.layout(opcode, index_bits):
            lines += _field(f"{name}_{field}", low, bits)
    for field, low, bits in isa.uop_layout(a):
        lines += _field(f"UOP_{field}", low, bits)
    return "\n".join([*lines, "#endif", ""])


def _field(name: str, low: int, bits: int) -> list[str]:
    macro = "VTA_" + re.sub(r"\W", "_", name).upper()
    return [f"#define {macro}_LOW {low}", f"#define {macro}_BITS {bits}"]


def find_compiler(cc: str | None) -> list[str]:
    """A C compiler and its options, e.g. of ``aarch64-linux-gnu-gcc -static``; without one named, this machine's.

    Raises:
        DeviceError: there is none of that name, or none at all.
    """
    for name in [cc] if cc else ["cc", "gcc", "clang"]:
        words = shlex.split(name)
        if shutil.which(words[0]):
            return words
    if cc:
        raise DeviceError(f"no C compiler {cc!r}; install it, or name another with --cc")
    raise DeviceError("no C compiler (cc, gcc, clang): install one, e.g. apt install gcc, or name one with --cc")


def compile_c(cc: Sequence[str], arguments: Sequence[str], folder: Path) -> None:
    """Run a C compiler in a folder.

    Raises:
        DeviceError: it fails; says the first thing that it finds.
    """
    done = subprocess.run([*cc, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        found = [line for line in lines if "error" in line] or lines or ["no word of why"]
        raise DeviceError(f"{shlex.join(cc)} cannot build it: {found[0]}")


def build(
    backend: str,
    accelerator: Accelerator,
    out: str | Path,
    cc: str | None = None,
    board: Board | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Build a driver library and return its path; an older file there is replaced in one step.

    Args:
        backend: one of `BACKENDS`.
        cc: the compiler, and options for it; another machine's makes a library for that machine. Without one, a
            simulator is built for this very machine.
        board: where the registers are, if not where the accelerator's TARGET has them.
        options: more for the compiler.

    Raises:
        DeviceError: no such backend, no compiler, or it fails.
        OSError: the file cannot be written.
    """
    kind = find_backend(backend)
    native = NATIVE_FLAGS if cc is None and backend == "sim" else ()
    arguments = [*LIBRARY_FLAGS, *native, *kind.options, *options]
    return _made(accelerator, board, Path(out), find_compiler(cc), arguments, kind.sources, kind.libraries)


def build_server(
    driver: str | None,
    accelerator: Accelerator,
    out: str | Path,
    cc: str | None = None,
    board: Board | None = None,
    options: Sequence[str] = (),
    static: bool = True,
) -> Path:
    """Build a board server and return its path; see `build`.

    ``driver``: the backend that is linked in; None: a server that loads a library. ``static``: it needs no libraries
    where it runs, if it loads none itself, as `xrt` does.
    """
    kind = Backend("", (), ("-ldl",)) if driver is None else find_backend(driver)
    native = NATIVE_FLAGS if cc is None and driver == "sim" else ()
    linking = STATIC_FLAGS if static and not kind.libraries else ()
    sources = [f"server/{name}.c" for name in (*_SERVER, "driver_loaded" if driver is None else "driver_linked")]
    arguments = [*linking, *native, *kind.options, *options, "-I."]
    return _made(
        accelerator, board, Path(out), find_compiler(cc), arguments, [*sources, *kind.sources], kind.libraries, 0o755
    )


def find_backend(name: str) -> Backend:
    """One of `BACKENDS`.

    Raises:
        DeviceError: there is none of that name.
    """
    if name not in BACKENDS:
        raise DeviceError(unknown("backend", name, BACKENDS))
    return BACKENDS[name]


def _made(
    accelerator: Accelerator,
    board: Board | None,
    out: Path,
    compiler: Sequence[str],
    arguments: Sequence[str],
    sources: Sequence[str],
    libraries: Sequence[str],
    mode: int | None = None,
) -> Path:
    """Compile sources for an accelerator, and put what comes out at ``out``; ``mode``: its permissions."""
    target = check_output(out, "-o")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "server").mkdir()
        headers = [str(path.relative_to(source_folder())) for path in source_folder().glob("server/*.h")]
        for name in (*HEADERS, *headers, *sources):
            shutil.copy(source_folder() / name, folder / name)
        (folder / CONFIG_HEADER).write_text(config_header(accelerator, board))
        made = folder / "made"
        compile_c(compiler, [*FLAGS, *arguments, "-o", made.name, *sources, *libraries], folder)
        write_whole(target, made.read_bytes())
        if mode is not None:
            target.chmod(mode)
    return target
