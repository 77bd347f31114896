"""The command line: what it lists, and that whatever is wrong ends in one line and the right exit code."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import RunCommand

from oneshot_ml2 import cli
from oneshot_ml2.accelerator import Accelerator, preset_names
from oneshot_ml2.errors import OneShotError
from oneshot_ml2.models import model_names


def one_line(err: str) -> str:
    assert err.startswith("oneshot-ml2"), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_overview(run_command: RunCommand) -> None:
    for argv in ((), ("--help",), ("-h",)):
        code, out, err = run_command(*argv)
        assert (code, err) == (0, "")
        assert all(f"\n  {name} " in out for name in cli.COMMANDS)
    code, out, _ = run_command("--version")
    assert (code, out.split()[0]) == (0, "oneshot-ml2")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, run_command: RunCommand) -> None:
    code, out, err = run_command(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: oneshot-ml2 {command}")


ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(path for folder in (".", "docs", "benchmarks", "datasets") for path in (ROOT / folder).glob("*.md"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_commands_options_and_files_that_exist(path: Path, run_command: RunCommand) -> None:
    text = path.read_text(encoding="utf-8")
    # A command stands at the start of a line, in backquotes or behind another one; elsewhere it is the project's name.
    for line in re.findall(r"(?m)(?:^|`|&& )oneshot-ml2 ([a-z][^`\n|#&]*)", text):
        command, *words = line.split()
        assert command in cli.COMMANDS, line
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


@pytest.mark.parametrize("spec", ["driver:libvta.so", "rpc://tracker:9190/pynq", "fpga"])
def test_devices_of_later_versions_are_refused_by_name(spec: str, run_command: RunCommand) -> None:
    code, _, err = run_command("compile", "resnet18", "--device", spec)
    assert code == 2
    assert spec in one_line(err)
    assert "sim" in err


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
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: raising(error))
    found, out, err = run_command("accelerators")
    assert (found, out) == (code, "")
    assert says in one_line(err.lstrip("\n"))


@pytest.mark.parametrize("error", [ModuleNotFoundError("x", name="torch"), ZeroDivisionError(), AssertionError()])
def test_bugs_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: raising(error))
    with pytest.raises(type(error)):
        cli.main(["accelerators"])


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -c 'from oneshot_ml2.cli import main; exit(main())' accelerators --json | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_accelerators_do_not_load_the_heavy_packages() -> None:
    code = (
        "import sys; from oneshot_ml2.cli import main; main(['accelerators']); "
        "print(sorted({'torch', 'numba', 'h5py', 'tvm', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"
