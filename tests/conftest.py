"""Fixtures that several test files share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oneshot_ml2.commands import main

RunCommand = Callable[..., tuple[int, str, str]]


def noted(events: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, each of whose calls adds ``name`` to ``events``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        events.append(name)
        return function(*args, **kwargs)

    return call


@pytest.fixture(autouse=True)
def picks_of_its_own() -> None:
    """No test gets what another one has picked, perhaps by something else in place of what picks."""
    weights = sys.modules.get("oneshot_ml2.network.weights")
    if weights is not None and weights.load_pretrained.cache_info().currsize:
        weights.load_pretrained().picks.clear()


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
