"""Parts of kernels: kept without machine code, of the same results as kernels, and not for Python."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SOURCE = """
from numba import types
from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part

@part(types.int64(types.int64, types.int64))
def add(a, b):
    if a == 7:
        raise ValueError("seven", b)
    if a == 8:
        print("eight", b)
    return a + b

@part()
def twice(x):
    return 2 * add(x, 1)

@njit(cache=True, nogil=True)
def one(x):
    return twice(x) + add(True, 2)

@njit(cache=True, nogil=True)
def other(x):
    return twice(x) - 1
"""
CODE = """
import sys
sys.path.insert(0, {folder!r})
import module
def outcome(function, *args):
    try:
        return function(*args)
    except Exception as error:
        return repr(error)
for kernel in {kernels}:
    print(*(outcome(getattr(module, kernel), x) for x in (3, 7, 8)), sep="; ")
print(*(sum(getattr(module, name).stats.cache_hits.values()) for name in ("one", "other", "twice", "add")))
print(*(sum(getattr(module, name).stats.cache_misses.values()) for name in ("one", "other", "twice", "add")))
print(outcome(module.twice, 3))
print(outcome(module.add, 3, 4)[:9])
"""


def run(folder: Path, *kernels: str) -> list[str]:
    """What a process prints that calls ``kernels`` of a module in ``folder``: outcomes, hits, misses, refusals."""
    (folder / "module.py").write_text(SOURCE)
    done = subprocess.run(
        [sys.executable, "-B", "-c", CODE.format(folder=str(folder), kernels=kernels)],
        capture_output=True, text=True, timeout=300, check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder / "kernels")},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_parts_are_compiled_once_kept_and_refuse_python(tmp_path: Path) -> None:
    refusal = "TypeError('twice is a part of kernels, which Python cannot call; decorate it with njit')"
    of_one = ["eight 1", "11; ValueError('seven', 1); 21"]
    assert run(tmp_path, "one") == [*of_one, "0 0 0 0", "1 0 1 1", refusal, "TypeError"]
    # A kernel that is there does not look at its parts; one that is not takes in what is kept of them.
    assert run(tmp_path, "one") == [*of_one, "1 0 0 0", "0 0 0 0", refusal, "TypeError"]
    of_other = ["eight 1", "7; ValueError('seven', 1); 17"]
    assert run(tmp_path, "other") == [*of_other, "0 0 1 0", "0 1 0 0", refusal, "TypeError"]


def test_what_only_kernels_call_is_a_part() -> None:
    """A kernel of its own costs a wrapper and machine code that nobody uses."""
    kernels, named = set(), set()
    for folder in ("oneshot_ml2", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in _outside_of_compiled(ast.parse(path.read_text(encoding="utf-8")), kernels):
                if isinstance(node, ast.Name):
                    named.add(node.id)
                elif isinstance(node, ast.Attribute):
                    named.add(node.attr)
    assert len(kernels) > 30
    assert kernels <= named, kernels - named


def _outside_of_compiled(tree: ast.AST, kernels: set[str]) -> list[ast.AST]:
    """All nodes that are not in a compiled function; adds the names of kernels."""
    found, rest = [], [tree]
    while rest:
        node = rest.pop()
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            decorators = ast.unparse(node.decorator_list[0])
            if decorators.startswith("njit("):
                kernels.add(node.name)
            if decorators.startswith(("njit(", "part(")):
                continue
        found.append(node)
        rest.extend(ast.iter_child_nodes(node))
    return found
