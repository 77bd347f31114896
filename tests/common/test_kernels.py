"""Where compiled kernels are kept, when that cannot be written, and when they are stale."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oneshot_ml2.common import kernels
from oneshot_ml2.common.errors import OneShotWarning

ROOT = Path(__file__).parent.parent.parent
# A module with one kernel, and the names of what numba wrote after a call of it.
SOURCE = (
    "from oneshot_ml2.common.kernels import njit\n@njit(cache=True, nogil=True)\ndef double(x):\n    return 2 * x\n"
)
CODE = """
import sys, warnings
sys.path.insert(0, {folder!r})
if {nowhere}:
    import tempfile
    tempfile.tempdir = {folder!r} + "/file"
warnings.simplefilter("always")
import module
print(module.double(4), module.double.stats.cache_path)
"""


def call(folder: Path, nowhere: bool = False, **environment: str) -> tuple[str, str]:
    """stdout and stderr of a process that compiles a kernel of ``folder``; nobody may write its ``__pycache__``."""
    package = folder / "package"
    package.mkdir(exist_ok=True)
    (package / "module.py").write_text(SOURCE)
    # A file where a folder should be: root may write everywhere else.
    (package / "__pycache__").write_text("")
    (package / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-B", "-c", CODE.format(folder=str(package), nowhere=nowhere)],
        capture_output=True, text=True, timeout=120, check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(package / "file"), **environment},
    )  # fmt: skip
    return done.stdout, done.stderr


def test_a_temporary_place_is_private_kept_and_told(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    for _ in range(2):
        out, err = call(tmp_path, TMPDIR=str(tmp_path / "tmp"))
        (place,) = (tmp_path / "tmp").iterdir()
        assert place.name.startswith("oneshot-ml2-kernels-")
        assert place.stat().st_mode & 0o777 == 0o700
        assert out.split()[0] == "8" and Path(out.split()[1]).parent == place
        assert err.count("OneShotWarning") == 1 and str(place) in err and "NUMBA_CACHE_DIR" in err
        assert len(list(place.rglob("*.nbc"))) == 1


def test_without_any_place_kernels_work_all_the_same(tmp_path: Path) -> None:
    out, err = call(tmp_path, nowhere=True)
    assert out.split()[0] == "8"
    assert err.count("OneShotWarning") == 1 and "compiled anew by every run" in err


def test_a_given_place_is_taken_without_a_word(tmp_path: Path) -> None:
    out, err = call(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "mine"))
    assert (out.split()[0], err) == ("8", "")
    assert Path(out.split()[1]).parent == tmp_path / "mine"


def test_a_temporary_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = kernels._private_folder()
    assert kernels._private_folder() == first
    first.chmod(0o777)
    other = kernels._private_folder()
    assert other != first and other.stat().st_mode & 0o777 == 0o700
    first.rmdir()
    first.symlink_to(other)
    assert kernels._private_folder() not in (first, other)


def test_kernels_of_other_sources_are_dropped_wherever_they_are(tmp_path: Path) -> None:
    index, data = tmp_path / "f.nbi", tmp_path / "f.nbc"
    for stamp in (None, "of older sources"):
        index.write_text("")
        data.write_text("")
        if stamp is not None:
            (tmp_path / kernels._STAMP).write_text(stamp)
        kernels._drop_stale(tmp_path)
        assert not index.exists() and data.exists()
    index.write_text("")
    kernels._drop_stale(tmp_path)
    assert index.exists()


def test_what_another_process_compiles_is_waited_for_and_told(tmp_path: Path) -> None:
    """Two at once: one compiles, the other loads what that keeps; both say that the kernel was not there."""
    (tmp_path / "module.py").write_text(SOURCE)
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(tmp_path)!r})
from oneshot_ml2.common import kernels
import module
told = []
Path(sys.argv[1]).write_text("")
while not Path({str(tmp_path / "go")!r}).exists():
    time.sleep(0.001)
with kernels.telling(lambda: told.append("missing")):
    assert module.double(4) == 8
print(sum(module.double.stats.cache_misses.values()), len(told))
"""
    both = [
        subprocess.Popen(
            [sys.executable, "-B", "-c", code, str(tmp_path / f"ready{number}")],
            stdout=subprocess.PIPE, text=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path / "kernels")},
        )
        for number in range(2)
    ]  # fmt: skip
    end = time.monotonic() + 100
    while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    (tmp_path / "go").write_text("")
    assert sorted(process.communicate(timeout=120)[0].split()[0] for process in both) == ["0", "1"]


def test_a_turn_is_one_process_at_a_time_and_patience_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = kernels._Turns(tmp_path)
    mine.take("kernel")
    code = f"""
from pathlib import Path
from oneshot_ml2.common import kernels
kernels._PATIENCE_S = 0.1
kernels._Turns(Path({str(tmp_path)!r})).take("other kernel")
kernels.time.sleep = lambda seconds: print("waits")
kernels._Turns(Path({str(tmp_path)!r})).take("kernel")
print("goes on")
"""

    def other() -> list[str]:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
        return done.stdout.splitlines()

    lines = other()
    assert "waits" in lines and lines[-1] == "goes on"
    mine.give("kernel")
    assert other() == ["goes on"]
    # Where files cannot be locked, everybody compiles.
    monkeypatch.setattr(kernels.fcntl, "lockf", lambda *args: (_ for _ in ()).throw(OSError("no locks")))
    mine.take("kernel")


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("content", ["", "no pickle"])
def test_a_kernel_that_cannot_be_read_is_compiled_anew(ending: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(SOURCE)
    code = CODE.format(folder=str(tmp_path), nowhere=False)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-B", "-c", code], capture_output=True, text=True, timeout=120, check=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path / "kernels")},
        )  # fmt: skip
        assert (done.stdout.split()[0], done.stderr) == ("8", "")
        for file in (tmp_path / "kernels").rglob(f"*.{ending}"):
            file.write_text(content)


def test_a_kernel_that_cannot_be_kept_works_all_the_same(tmp_path: Path) -> None:
    class Full:
        """numba's cache on a disk that is full."""

        class _impl:
            filename_base = "kernel"

        def load_overload(self, types: object, context: object) -> None:
            return None

        def save_overload(self, types: object, result: object) -> None:
            raise OSError(28, "No space left on device")

    shared = kernels._Shared(Full(), kernels._Turns(tmp_path))
    assert shared.load_overload("int64", None) is None
    shared.save_overload("int64", object())


def test_every_kernel_comes_from_here() -> None:
    """numba's own decorator fails where nothing can be written, and keeps what is stale."""
    for path in (ROOT / "oneshot_ml2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "numba":
                assert "njit" not in {alias.name for alias in node.names}, path


def test_the_warning_is_one_that_the_command_line_prints() -> None:
    with pytest.warns(OneShotWarning, match="set NUMBA_CACHE_DIR"):
        kernels._warn("are compiled anew by every run")
