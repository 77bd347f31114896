"""Driver libraries that the tests build, once for a session, and what they need to be built."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from oneshot_ml2.devices import build
from oneshot_ml2.devices.build import (
    BACKENDS,
    CONFIG_HEADER,
    FLAGS,
    LIBRARY_FLAGS,
    compile_c,
    config_header,
    source_folder,
)
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.raw import Options
from oneshot_ml2.vta.accelerator import Accelerator

C_TESTS = Path(__file__).parent / "c"


def needs_compiler(name: str = "cc") -> None:
    """Skip the test without a compiler of that name."""
    if shutil.which(name) is None:
        pytest.skip(f"no {name}: install a C compiler of that name, as .ci/run does")


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="oneshot-ml2-drivers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def library(chip: Accelerator, *options: str) -> Path:
    """A simulator of an accelerator."""
    needs_compiler()
    name = f"sim{len(list(_folder().iterdir()))}.so"
    return build.build("sim", chip, _folder() / name, options=options)


def device(chip: Accelerator, **options: object) -> DriverDevice:
    """A device of such a library."""
    return DriverDevice(library(chip), Options(**{"limit": 20.0, **options}))  # type: ignore[arg-type]


def executable(cc: Sequence[str], chip: Accelerator, main: str, flags: Sequence[str] = ()) -> Path:
    """A program of tests/c with the simulator behind VTA's driver interface, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    sources = (*BACKENDS["sim"].sources, main)
    for path in (*source_folder().glob("*.[ch]"), C_TESTS / main):
        shutil.copy(path, folder / path.name)
    (folder / CONFIG_HEADER).write_text(config_header(chip))
    compile_c(cc, [*FLAGS, *flags, "-o", "program", *sources], folder)
    return folder / "program"


@functools.cache
def board_library(backend: str, chip: Accelerator, design: str = "hls") -> Path:
    """A board's driver with the model of tests/c/register_model.c in place of its registers."""
    needs_compiler()
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    for path in (*source_folder().glob("*.[ch]"), C_TESTS / "register_model.c"):
        shutil.copy(path, folder / path.name)
    (folder / CONFIG_HEADER).write_text(config_header(chip, build.Board(design, 0x43C00000)))
    kind = BACKENDS[backend]
    sources = [name for name in kind.sources if name != "vta_registers.c"]
    models = ["register_model.c", "vta_sim.c"]
    compile_c(["cc"], [*FLAGS, *LIBRARY_FLAGS, "-o", "board.so", *sources, *models, *kind.libraries], folder)
    return folder / "board.so"


@functools.cache
def fake_xrt() -> Path:
    """A stand-in for XRT's library."""
    needs_compiler()
    out = _folder() / "libfake_xrt.so"
    compile_c(["cc"], [*FLAGS, *LIBRARY_FLAGS, "-o", str(out), "fake_xrt.c"], C_TESTS)
    return out
