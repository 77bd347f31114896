"""What is compiled ahead of a compilation is what that needs: no kernel more, and none less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from oneshot_ml2.models import first_run

ROOT = Path(__file__).parent.parent.parent
AHEAD = """
import importlib
from oneshot_ml2.models import first_run
for use in first_run.USES:
    module, _, function = use.partition(":")
    getattr(importlib.import_module(module), function)()
"""
COMPILED = """
import warnings
warnings.simplefilter("ignore")
import oneshot_ml2
assert oneshot_ml2.compile("resnet18", size=32).ok
"""
# Kernels by name and types that were asked for since the start, from wherever they came.
ASKED = """
from oneshot_ml2.common import kernels
asked = set()
load = kernels._Shared.load_overload
def noted(self, types, context):
    asked.add(self._name(types))
    return load(self, types, context)
kernels._Shared.load_overload = noted
"""


def asked(code: str) -> set[str]:
    """The kernels that a program asks for, each compiled or loaded."""
    done = subprocess.run(
        [sys.executable, "-c", f"{ASKED}\n{code}\nprint(*sorted(asked), sep='\\n')"],
        capture_output=True, text=True, timeout=1200, check=True, cwd=ROOT,
    )  # fmt: skip
    return set(done.stdout.splitlines())


@pytest.mark.slow
def test_what_is_compiled_ahead_is_what_a_compilation_asks_for() -> None:
    # Once before, as a kernel that is compiled asks for those that it calls, and one that is loaded does not.
    asked(AHEAD)
    assert asked(AHEAD) == asked(COMPILED) != set()


def test_every_use_is_there() -> None:
    assert [use.partition(":")[0] for use in first_run.USES] == ["oneshot_ml2.models.first_run"] * len(first_run.USES)
    for use in first_run.USES:
        assert callable(getattr(first_run, use.partition(":")[2]))
