"""Where compiled kernels are kept, when that cannot be written, and when they are stale."""

from __future__ import annotations

import ast
import subprocess
import sys
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


def test_every_kernel_comes_from_here() -> None:
    """numba's own decorator fails where nothing can be written, and keeps what is stale."""
    for path in (ROOT / "oneshot_ml2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "numba":
                assert "njit" not in {alias.name for alias in node.names}, path


def test_the_warning_is_one_that_the_command_line_prints() -> None:
    with pytest.warns(OneShotWarning, match="set NUMBA_CACHE_DIR"):
        kernels._warn("are compiled anew by every run")
