"""Fixtures that several test files share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import networks
import pytest

from oneshot_ml2.commands import main

RunCommand = Callable[..., tuple[int, str, str]]
Browse = Callable[..., str]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
)


def noted(events: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, each of whose calls adds ``name`` to ``events``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        events.append(name)
        return function(*args, **kwargs)

    return call


def loaded_by(code: str, packages: Iterable[str]) -> set[str]:
    """Which of some packages a new process has loaded after ``code``."""
    code += f"\nimport sys; print(*sorted({set(packages)!r} & set(sys.modules)), file=sys.stderr)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core, but for at most four, as each takes a gigabyte; none where files cannot be shared out,
    and none for slow tests, which load the machine themselves.
    """
    files = {argument.split("::")[0] for argument in config.args}
    if config.option.markexpr != "not slow" or (len(files) == 1 and files.pop().endswith(".py")):
        return 0
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)


@pytest.fixture(autouse=True)
def picks_of_its_own() -> None:
    """No test gets what another one has picked, perhaps by something else in place of what picks."""
    weights = sys.modules.get("oneshot_ml2.network.weights")
    if weights is not None and weights.load_once.cache_info().currsize:
        weights.load_pretrained("default").picks.clear()


def _draw_alike(test: Path) -> None:
    """Networks of a test of models have the same weights in every run, whichever tests came before it."""
    if test.parent.name == "models":
        import torch

        torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def weights_of_a_module(request: pytest.FixtureRequest) -> None:
    """What fixtures of a module draw."""
    _draw_alike(request.path)


@pytest.fixture(autouse=True)
def weights_of_a_test(request: pytest.FixtureRequest, weights_of_a_module: None) -> None:
    """What a test itself draws."""
    _draw_alike(request.path)


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main.main([str(arg) for arg in argv])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `networks.small_corpus`."""
    return networks.small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Load a page in headless Chromium and return its document; the browser must have no complaint."""
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH (Debian: apt-get install chromium)")

    def load(path: Path, fragment: str = "", *flags: str) -> str:
        done = subprocess.run(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, "--dump-dom",
             path.as_uri() + fragment],
            capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr, done.stderr
        document = re.search(r"<html[^>]*>", done.stdout)
        assert document is not None, done.stderr
        assert 'data-ready="1"' in document[0] and "data-error" not in document[0]
        # What a model is called never ran.
        assert "data-pwned" not in document[0]
        return done.stdout

    return load
