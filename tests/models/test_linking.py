"""The C++ compiler that links the host's code: missing, failing, and without room on the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import linking


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of the PATH, without CXX and CC."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    return folder


def program(path: Path, script: str = "exit 0") -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["g++", "gcc", "clang++", "clang", "c++", "cc"])
def test_any_compiler_will_do(name: str, path: Path) -> None:
    with pytest.raises(ModelError, match=r"install g\+\+ or clang"):
        linking.check_compiler()
    program(path / name)
    linking.check_compiler()


@pytest.mark.parametrize("name", ["CXX", "CC"])
@pytest.mark.parametrize("given", ["none", "ccache g++"])
def test_a_compiler_that_is_named_must_be_there(
    name: str, given: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(path / "g++")
    program(path / "ccache")
    monkeypatch.setenv(name, given)
    with pytest.raises(ModelError, match=rf"^{name} is '{given.replace('+', '[+]')}', which is no program here"):
        linking.check_compiler()


def test_a_missing_compiler_is_told_before_the_work(path: Path, tmp_path: Path, run_command: RunCommand) -> None:
    """Before the model, which is not there, is looked at."""
    code, out, err = run_command("compile", tmp_path / "none.onnx", "-o", tmp_path / "build")
    assert (code, out) == (2, "")
    assert "install g++ or clang" in err and err.count("\n") == 1


class Library:
    """What of `tvm.runtime.Executable` linking looks at; its compiler is one of the PATH."""

    mod = SimpleNamespace(_collect_dso_modules=lambda: [SimpleNamespace(inspect_source=lambda: "code")])

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure

    def export_library(self, path: str, workspace_dir: str) -> None:
        assert Path(workspace_dir).is_dir()
        if self.failure is not None:
            raise self.failure
        Path(path).write_bytes(b"library")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    import tvm

    monkeypatch.setattr(tvm, "get_global_func", lambda name: lambda module: np.zeros(1000, np.uint8))


OUTPUT = "\n".join(
    ["Compilation error:", *(f"/usr/bin/ld: note {n} on nothing" for n in range(31)), "ld: error: no such thing",
     "collect2: error: ld returned 1 exit status", "", "Command line: /usr/bin/g++ -shared"]
)  # fmt: skip


def test_the_linkers_output_becomes_one_line(packed: None, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        linking.link(Library(RuntimeError(OUTPUT)), tmp_path / "lib.so")
    assert str(caught.value) == "the host's code cannot be linked: ld: error: no such thing"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["final link failed: No space left on device", "Disk quota exceeded"])
def test_a_disk_that_is_full_while_linking(text: str, packed: None, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        linking.link(Library(RuntimeError(f"Compilation error:\n/usr/bin/ld: {text}\n")), tmp_path / "lib.so")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_room_for_the_objects_is_looked_for_first(
    packed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLVM ends the whole process, without a word, when it cannot write an object."""

    def full(number: int, offset: int, size: int) -> None:
        assert size > 2000
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    library: Any = Library(AssertionError("TVM was asked to write"))
    with pytest.raises(OSError, match="No space"):
        linking.link(library, tmp_path / "lib.so")
    assert not list(tmp_path.iterdir())


def test_notes_of_native_code_stay_off_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TVM writes a line for each constant as often as it packs a module, also when only its size is asked for."""
    import tvm

    def noted(module: Any) -> Any:
        os.write(2, b"executable.cc:276: Warning: Scope Saving:\n")
        return np.zeros(1000, np.uint8)

    monkeypatch.setattr(tvm, "get_global_func", lambda name: noted)
    linking.link(Library(), tmp_path / "lib.so")
    assert capfd.readouterr().err == ""


def test_temporary_files_are_beside_the_target(packed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that TMPDIR may be full."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    linking.link(Library(), tmp_path / "lib.so")
    assert [file.name for file in tmp_path.iterdir()] == ["lib.so"]
