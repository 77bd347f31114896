"""Driver libraries that the tests build, once for a session, and what they need to be built."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from oneshot_ml2.devices import build
from oneshot_ml2.devices.build import BACKENDS, CONFIG_HEADER, FLAGS, compile_c, config_header, source_folder
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.driver_library import Options
from oneshot_ml2.vta.accelerator import Accelerator

C_TESTS = Path(__file__).parent / "c"


def needs_compiler(name: str = "cc") -> None:
    """Skip the test without a compiler of that name."""
    if shutil.which(name) is None:
        pytest.skip(f"no {name}: install a C compiler of that name, as .ci/run does")


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="oneshot-ml2-drivers-"))


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
    for path in (*source_folder().iterdir(), C_TESTS / main):
        shutil.copy(path, folder / path.name)
    (folder / CONFIG_HEADER).write_text(config_header(chip))
    compile_c(cc, [*FLAGS, *flags, "-o", "program", *sources], folder)
    return folder / "program"
