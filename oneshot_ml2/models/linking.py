"""The host's code as a shared library: TVM writes objects, and a C++ compiler of the system links them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.host import quiet_stderr

# TVM takes CXX, else CC, else the first of these; on Windows clang, or TVM_WIN_CC.
_COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
_FULL = re.compile(r"no space left on device|disk quota exceeded|file too large", re.IGNORECASE)
# What the linker adds to its inputs.
_SPARE = 1 << 20


def check_compiler() -> None:
    """Raise ModelError, whose message says what to install, unless there is what TVM will link with."""
    names = ("CXX", "CC") if os.name != "nt" else ("TVM_WIN_CC",)
    for name in names:
        given = os.environ.get(name)
        if given:
            if shutil.which(given) is None:
                raise ModelError(
                    f"{name} is {given!r}, which is no program here; set it to a C++ compiler (one word), or unset it"
                )
            return
    if not any(shutil.which(name) for name in (_COMPILERS if os.name != "nt" else ("clang",))):
        raise ModelError(
            "a compiled model needs a C++ compiler for the host's part, and none is on the PATH: install g++ or clang "
            "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install)"
        )


def link(library: Any, path: Path) -> None:
    """Write what TVM compiled (a ``tvm.runtime.Executable``) as a shared library.

    Raises:
        ModelError: there is no compiler, or it fails; in one line.
        OSError: the disk is full, or not writable.
    """
    check_compiler()
    with tempfile.TemporaryDirectory(prefix=".objects.", dir=path.parent) as objects:
        _check_room(library, Path(objects))
        try:
            with quiet_stderr():
                library.export_library(str(path), workspace_dir=objects)
        except (RuntimeError, OSError) as error:
            text = str(error)
            if _FULL.search(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent.parent)) from error
            raise ModelError(f"the host's code cannot be linked: {_telling(text)}") from error


def _check_room(library: Any, folder: Path) -> None:
    """Raise OSError unless the objects and the library have room: LLVM ends the whole process where they have not."""
    import tvm

    with quiet_stderr():
        packed = tvm.get_global_func("runtime.ModulePackImportsToTensor")(library.mod)
    # The text of the intermediate code is longer than the machine code.
    code = sum(len(module.inspect_source()) for module in library.mod._collect_dso_modules())
    with (folder / "room").open("wb") as file:
        size = 2 * (int(packed.shape[0]) + code) + _SPARE
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    (folder / "room").unlink()


def _telling(text: str) -> str:
    """The line of a compiler's output that says most."""
    lines = [line.strip() for line in text.split("\nCommand line:")[0].splitlines() if line.strip()]
    lines = [line for line in lines if line != "Compilation error:"] or ["the compiler says nothing"]
    errors = [line for line in lines if re.search(r"\b(error|cannot|undefined|fatal)\b", line, re.IGNORECASE)]
    return (errors or lines)[0][:300]
