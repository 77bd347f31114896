"""JSON and TOML from elsewhere.

Whatever stands in such a file: reading it ends soon, takes little memory, and gives a tree of limited depth, whose
numbers are finite and have at most 64 bits, or one clear error.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import OneShotError

# The deepest nesting and the largest files that are read; nothing that the package writes comes near.
DEEPEST = 64
LARGEST_JSON = 1 << 26
LARGEST_TOML = 1 << 22
# Of a line of TOML: its parser takes a time that grows with the square of a key's parts.
_MOST_DOTS = 100
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: str | Path, error: type[OneShotError] = OneShotError, most: int = LARGEST_JSON) -> str:
    """The text of a UTF-8 file of at most ``most`` bytes.

    Raises:
        ``error``: unreadable, larger, or no UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as failure:
        raise error(f"cannot read {path}: {getattr(failure, 'strerror', None) or failure}") from failure
    if len(content) > most:
        raise error(f"{path} has more than {most >> 20} MiB, which is more than such a file can have; give another one")
    return _decoded(content, path, error)


def _decoded(content: bytes, what: object, error: type[OneShotError]) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as failure:
        raise error(f"{what}: cannot read it as UTF-8 ({failure}); save it as UTF-8 text") from failure


def parse_json(
    text: str | bytes, what: object, error: type[OneShotError] = OneShotError, decoder: json.JSONDecoder | None = None
) -> Any:
    """The value of a JSON text; ``what`` names it in errors; ``decoder``: `DECODER` (the default) or `FIGURES_DECODER`.

    Raises:
        ``error``: no UTF-8 or no JSON; nesting, a number or a text that no file of ours can have; a key twice.
    """
    text = _decoded(text, what, error) if isinstance(text, bytes) else text
    try:
        tree = (decoder or DECODER).decode(text)
        _check_depth(tree)
        if _SURROGATE.search(text):
            # Half of a pair of escapes is no character, and cannot be printed or hashed.
            json.dumps(tree, ensure_ascii=False).encode()
    except RecursionError as failure:
        raise error(f"{what}: nested deeper than {DEEPEST} levels; give a file that is not") from failure
    except ValueError as failure:
        raise error(f"{what}: not JSON ({failure})") from failure
    return tree


def read_json(
    path: str | Path, error: type[OneShotError] = OneShotError, decoder: json.JSONDecoder | None = None
) -> Any:
    """The value of a JSON file.

    Raises:
        ``error``: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, error), path, error, decoder)


def _check_depth(tree: Any) -> None:
    level = [tree]
    for _ in range(DEEPEST):
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEEPEST} levels")


def _whole(text: str) -> int:
    # Digits are counted first: Python refuses to convert thousands of them.
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError(f"a whole number of {len(text.lstrip('-'))} digits; allowed: 64 bits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]}; allowed: finite ones")
    return number


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} twice in one object")
    return table


DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_table)
# For what holds figures: one that could not be measured is NaN, as Python writes it. Who reads it checks its values.
FIGURES_DECODER = json.JSONDecoder(parse_int=_whole, object_pairs_hook=_table)


def shown(value: Any) -> str:
    """A value as errors show it: short; a number of thousands of digits, which Python does not write, by its size."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def whole_number(value: Any, what: str, low: int = -(1 << 63), high: int = (1 << 63) - 1) -> int:
    """A parsed value that must be a whole number within ``low..high``.

    Raises:
        ValueError: it is something else.
    """
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {shown(value)}; allowed: a whole number {low} to {high}")
    return value


def read_toml(path: str | Path, error: type[OneShotError] = OneShotError) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ``error``: an unreadable file, broken TOML, or nesting or numbers that no file of ours can have.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    text = read_text(path, error, LARGEST_TOML)
    try:
        if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
            raise ValueError(f"a line with more than {_MOST_DOTS} dots")
        # Universal newlines, as TOML has no single carriage returns.
        tables = tomllib.loads(text.replace("\r\n", "\n"), parse_float=_finite)
        _check_depth(tables)
        _check_whole(tables)
    except RecursionError as failure:
        raise error(f"{path}: nested deeper than {DEEPEST} levels; give a file that is not") from failure
    except ValueError as failure:
        raise error(f"{path}: not TOML ({failure})") from failure
    return tables


def _check_whole(tree: Any) -> None:
    """Raise ValueError for whole numbers beyond 64 bits, which TOML's hexadecimal ones can be."""
    if isinstance(tree, dict):
        for value in tree.values():
            _check_whole(value)
    elif isinstance(tree, list):
        for value in tree:
            _check_whole(value)
    elif isinstance(tree, int) and not -(1 << 63) <= tree < 1 << 63:
        raise ValueError(f"a whole number of {tree.bit_length()} bits; allowed: 64")
