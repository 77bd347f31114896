"""The command line: what it lists, and that whatever is wrong ends in one line and the right exit code."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import RunCommand, loaded_by

from oneshot_ml2.commands import main
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.models.zoo import model_names
from oneshot_ml2.vta.accelerator import Accelerator, preset_names


def one_line(err: str) -> str:
    assert err.startswith("oneshot-ml2"), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_overview(run_command: RunCommand) -> None:
    for argv in ((), ("--help",), ("-h",)):
        code, out, err = run_command(*argv)
        assert (code, err) == (0, "")
        assert all(f"\n  {name} " in out for name in main.COMMANDS)
    code, out, _ = run_command("--version")
    assert (code, out.split()[0]) == (0, "oneshot-ml2")


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_has_help(command: str, run_command: RunCommand) -> None:
    code, out, err = run_command(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: oneshot-ml2 {command}")


def test_a_command_is_a_file_that_says_in_its_first_line_what_it_does() -> None:
    assert tuple(main.COMMANDS)[:2] == ("compile", "run")
    for name, text in main.COMMANDS.items():
        module = importlib.import_module(f"oneshot_ml2.commands.{name}")
        assert str(module.__doc__).splitlines()[0] == text
        assert re.fullmatch(r"[A-Z][a-z].*\.", text), f"{name}: {text}"
        assert callable(module.add_arguments) and callable(module.run)


def test_the_overview_imports_no_command_and_no_heavy_package() -> None:
    code = (
        "import sys; from oneshot_ml2.commands.main import main; main(['--help']); "
        "print(sorted(name for name in sys.modules if name in ('numpy', 'numba', 'torch', 'tqdm') "
        "or name.startswith('oneshot_ml2.commands.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "['oneshot_ml2.commands.main']"


ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted(path for folder in (".", "docs", "benchmarks", "datasets") for path in (ROOT / folder).glob("*.md"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_commands_options_and_files_that_exist(path: Path, run_command: RunCommand) -> None:
    text = path.read_text(encoding="utf-8")
    # A command stands at the start of a line, in backquotes or behind another one; elsewhere it is the project's name.
    for line in re.findall(r"(?m)(?:^|`|&& )oneshot-ml2 ([a-z][^`\n|#&]*)", text):
        command, *words = line.split()
        assert command in main.COMMANDS, line
        nested = words[:1] if command == "corpus" and words else []
        code, out, _ = run_command(command, *nested, "--help")
        assert code == 0, line
        assert all(re.search(rf"{word}\b", out) for word in words if word.startswith("-")), line
    for script in re.findall(r"python ([\w./]+\.py)", text):
        assert (ROOT / script).is_file(), script
    for link in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", text):
        assert (path.parent / link).exists(), link


def test_unknown_command_names_the_closest(run_command: RunCommand) -> None:
    code, out, err = run_command("complie", "resnet18")
    assert (code, out) == (2, "")
    assert "did you mean 'compile'?" in one_line(err)
    assert "optimum" in err


@pytest.mark.parametrize("argv", [("--frobnicate",), ("accelerators", "--jsn"), ("compile",), ("inspect", "a", "b")])
def test_bad_usage_is_one_line(argv: tuple[str, ...], run_command: RunCommand) -> None:
    code, out, err = run_command(*argv)
    assert (code, out) == (2, "")
    assert "--help" in one_line(err)


def test_options_are_never_abbreviated(run_command: RunCommand) -> None:
    assert run_command("accelerators", "--js")[0] == 2


def test_unknown_accelerator(run_command: RunCommand) -> None:
    code, _, err = run_command("compile", "resnet18", "--accelerator", "pinq")
    assert code == 2
    assert "did you mean 'pynq'?" in one_line(err)
    assert all(name in err for name in preset_names())


def test_unknown_model(run_command: RunCommand) -> None:
    code, _, err = run_command("compile", "resnet-18")
    assert code == 2
    assert "did you mean 'resnet18'?" in one_line(err)
    assert all(name in err for name in model_names())


@pytest.mark.parametrize("spec", ["driver:no_such_libvta.so", "rpc://tracker:9190/pynq", "fpga"])
def test_devices_that_are_not_there_are_refused_by_name(spec: str, run_command: RunCommand) -> None:
    code, _, err = run_command("compile", "resnet18", "--device", spec)
    assert code == 2
    assert spec.removeprefix("driver:") in one_line(err)
    assert "sim" in err or "driver build" in err or "give it as rpc:HOST:PORT/KEY" in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ("{}", "missing LOG_BATCH"),
        (b"\xff\xfe\x00", "cannot read"),
        ({"LOG_BLOCK": "4"}, "LOG_BLOCK is '4'"),
        ({"LOG_INP_BUFF_SIZE": 3}, "LOG_INP_BUFF_SIZE is 3; allowed"),
        ({"BUS_BITS": 96}, "BUS_BITS is 96; allowed"),
    ],
)
def test_broken_accelerator_json(
    content: str | bytes | dict[str, object], says: str, tmp_path: Path, run_command: RunCommand
) -> None:
    path = tmp_path / "mine.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(Accelerator.load("pynq").to_json()) | content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = run_command("compile", "resnet18", "--accelerator", path)
    assert code == 2
    assert says in one_line(err)
    assert "mine" in err


def test_missing_files(tmp_path: Path, run_command: RunCommand) -> None:
    for argv in (
        ("compile", "resnet18", "--accelerator", tmp_path / "none.json"),
        ("inspect", tmp_path / "none.h5"),
        ("corpus", "info", tmp_path / "none.h5"),
    ):
        code, _, err = run_command(*argv)
        assert code == 2
        assert "none" in one_line(err)


def test_foreign_and_truncated_corpora(tmp_path: Path, run_command: RunCommand) -> None:
    path = tmp_path / "corpus.h5"
    for content in (b"", b"no HDF5 at all", b"\x89HDF\r\n\x1a\n" + b"\0" * 40):
        path.write_bytes(content)
        code, _, err = run_command("corpus", "info", path)
        assert code == 2
        assert "corpus.h5" in one_line(err)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_foreign_and_missing_weights(content: bytes, tmp_path: Path, run_command: RunCommand) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(content)
    for weights in (path, tmp_path / "none.safetensors", "defautl"):
        code, out, err = run_command("compile", "resnet18", "--size", "32", "--layers", "fc", "--weights", weights)
        assert (code, out) == (2, "")
        assert Path(weights).name in one_line(err)


def raising(error: BaseException) -> SimpleNamespace:
    def run(args: object) -> int:
        raise error

    return SimpleNamespace(add_arguments=lambda parser: None, run=run)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OneShotError("two\nlines"), 2, "error: two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "shard.h5"), 2, "disk is full while writing shard.h5"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "Permission denied: /x"),
        (ModuleNotFoundError("No module named 'ray'", name="ray"), 2, "pip install 'oneshot-ml2[cluster]'"),
        (ModuleNotFoundError("No module named 'tqdm'", name="tqdm"), 2, "pip install tqdm"),
        (SystemExit(1), 2, ""),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    monkeypatch.setattr(main.importlib, "import_module", lambda name: raising(error))
    found, out, err = run_command("accelerators")
    assert (found, out) == (code, "")
    assert says in (one_line(err) if says else err)


FAULTS = (
    ZeroDivisionError("by\nnought"),
    AssertionError(),
    RecursionError("too deep"),
    OverflowError("too large"),
    RuntimeError("of a library"),
    KeyError("x"),
    ModuleNotFoundError("x", name="oneshot_ml2.nothing"),
)


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_what_escapes_is_one_line_with_its_traceback_in_a_file(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_command: RunCommand
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scope: dict[str, Any] = {"__name__": "oneshot_ml2.fake", "error": error}
    exec("def run(args):\n    raise error", scope)
    module = SimpleNamespace(add_arguments=lambda parser: None, run=scope["run"])
    monkeypatch.setattr(main.importlib, "import_module", lambda name: module)
    code, out, err = run_command("accelerators")
    assert (code, out) == (2, "")
    assert f"this is a fault of ours: {type(error).__name__}" in one_line(err)
    (file,) = tmp_path.iterdir()
    assert str(file) in err
    text = file.read_text()
    assert "\noneshot-ml2 accelerators\n" in text
    assert "Traceback (most recent call last)" in text and "in run" in text


def test_a_fault_names_the_library_in_which_it_was_raised(
    monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    def run(args: object) -> int:
        import h5py

        h5py.File({}, "r")
        return 0

    module = SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(main.importlib, "import_module", lambda name: module)
    code, _, err = run_command("accelerators", "--debug")
    assert code == 2
    assert "a fault of ours or of the library h5py: TypeError" in err.splitlines()[-1]


@pytest.mark.parametrize("argv", [("--debug", "accelerators"), ("accelerators", "--debug")])
def test_debug_prints_the_traceback(
    argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_command: RunCommand
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for error in (ZeroDivisionError("x"), OneShotError("x")):
        monkeypatch.setattr(main.importlib, "import_module", lambda name, error=error: raising(error))
        code, _, err = run_command(*argv)
        assert code == 2
        assert err.startswith("Traceback (most recent call last)")
        assert err.splitlines()[-1].startswith("oneshot-ml2: error: ")
    assert not list(tmp_path.iterdir())


def test_a_fault_on_a_machine_without_a_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_command: RunCommand
) -> None:
    monkeypatch.setattr(main.importlib, "import_module", lambda name: raising(ZeroDivisionError()))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    code, _, err = run_command("accelerators")
    assert code == 2
    assert "--debug" in one_line(err)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=str,
)
def test_lack_of_memory_is_told_as_that(
    error: Exception, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    def run(args: object) -> int:
        try:
            raise error
        except Exception as cause:
            raise OneShotError("cannot be traced") from cause

    for module in (raising(error), SimpleNamespace(add_arguments=lambda parser: None, run=run)):
        monkeypatch.setattr(main.importlib, "import_module", lambda name, module=module: module)
        code, _, err = run_command("accelerators")
        assert code == 2
        assert "out of memory; close other programs" in one_line(err)
    assert "cannot be traced: out of memory" in err


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the limit is a POSIX system's")
def test_a_limited_address_space_is_one_line() -> None:
    command = f"ulimit -v 400000; {sys.executable} -m oneshot_ml2 compile resnet18 --size 32 --layers fc"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "memory" in one_line(done.stderr)


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m oneshot_ml2 accelerators --json | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_accelerators_do_not_load_the_heavy_packages() -> None:
    code = "from oneshot_ml2.commands.main import main; main(['accelerators'])"
    assert loaded_by(code, ("torch", "numba", "h5py", "tvm", "numpy")) == set()


# Paths -----------------------------------------------------------------------------------------
def test_outputs_are_looked_at_before_the_work(tmp_path: Path, run_command: RunCommand) -> None:
    """None of these gets as far as its inputs, which are not there."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    none = tmp_path / "none"
    for bad, says in (
        (none / "x.json", "no folder"),
        (tmp_path / "file" / "x.json", "no folder"),
        (tmp_path / "folder.json", "is a folder"),
        (tmp_path / "pipe.json", "is no regular file"),
    ):
        for argv in (
            ("compile", "none", "--output", bad),
            ("compile", "none", "--build", tmp_path / "b", "--output", bad),
            ("compile", "none", "-o", tmp_path / "b", "--html", bad),
            ("trace", "none", "-o", bad),
            ("refine", "none", "-o", bad),
            ("history", none, "--plot", bad),
            ("evaluate", "--weights", "none", "--out", bad),
            ("corpus", "merge", none, "--out", bad),
            ("corpus", "best", none, "--out", bad),
        ):
            code, _, err = run_command(*argv)
            assert code == 2, argv
            assert says in one_line(err), argv
    for argv in (
        ("compile", "none", "-o", tmp_path / "file" / "build"),
        ("optimum", "--tasks", none, "--out", tmp_path / "file" / "x"),
        ("train", "--corpus", none, "--out", tmp_path / "file" / "x"),
        ("corpus", "split", none, "--accelerators", none, "--out", tmp_path / "file" / "x"),
    ):
        code, _, err = run_command(*argv)
        assert code == 2
        assert "is no folder" in one_line(err), argv


def test_an_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    # Root may write everywhere.
    monkeypatch.setattr("oneshot_ml2.common.files.os.access", lambda path, mode: False)
    for argv in (("trace", "none", "-o", tmp_path / "x.json"), ("compile", "none", "-o", tmp_path / "new" / "build")):
        code, _, err = run_command(*argv)
        assert code == 2
        assert f"{tmp_path} cannot be written" in one_line(err)


def test_onnx_files_are_looked_at_before_tvm_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from oneshot_ml2.commands.main import main
for path in sys.argv[2:]:
    assert main(["compile", path, "-o", sys.argv[1]]) == 2
    # What is in the file is looked at by the compiler, which has compiled functions.
    heavy = {"torch", "tvm"} | ({"numba"} if "text" not in path else set())
    assert not heavy & set(sys.modules)
"""
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "folder.ONNX").mkdir()
    (tmp_path / "text.Onnx").write_text("no model at all")
    names = ("missing.ONNX", "empty.onnx", "folder.ONNX", "text.Onnx")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "build", *(tmp_path / name for name in names)],
        capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [name in line for name, line in zip(names, lines, strict=True)] == [True] * 4
    for line, says in zip(lines, ("No such file", "is empty", "directory", "no valid ONNX model")):
        assert says in line
    assert not (tmp_path / "build").exists()


def test_inputs_of_a_wrong_kind(tmp_path: Path, run_command: RunCommand) -> None:
    (tmp_path / "text").write_text("no numbers")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "empty", ".", "missing"):
        path = tmp_path / name
        for argv in (
            ("compile", "resnet18", "-o", tmp_path / "build", "--calibration", path),
            ("compile", "resnet18", "-o", tmp_path / "build", "--schedules", path),
            ("compile", "resnet18", "-o", tmp_path / "build", "--weights", f"{path}.safetensors"),
            ("run", path),
        ):
            code, _, err = run_command(*argv)
            assert code == 2, argv
            assert str(tmp_path) in one_line(err), argv
