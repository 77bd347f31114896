"""Files that are written whole or not at all, JSON Lines that interrupted work goes on from, and TOML."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from oneshot_ml2.errors import OneShotError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8): a temporary file beside it takes its name when it is complete.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's files are private; this one is as readable as any other new file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    # The new name is on the disk only once its folder is.
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_output(path: str | Path, option: str) -> Path:
    """The path that ``option`` names, if `write_whole` can write there: to know before the work whose result it takes.

    Raises:
        OneShotError: it cannot; says why.
    """
    target = Path(path)
    another = f"choose another place for {option}"
    if not target.absolute().parent.is_dir():
        raise OneShotError(f"no folder {target.parent}; make it, or {another}")
    if target.exists() and not target.is_file():
        raise OneShotError(f"{path} is {'a folder' if target.is_dir() else 'no regular file'}; {another}")
    check_writable(target.absolute().parent, option)
    return target


def check_writable(folder: Path, option: str) -> None:
    """Raise OneShotError unless files can be made in a folder, or, where it is missing, in what would hold it."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written" if there.is_dir() else "is no folder"
        raise OneShotError(f"{there} {why}; choose another place for {option}")


def resume_lines(path: str | Path, header: dict[str, Any], error: type[OneShotError] = OneShotError) -> list[Any]:
    """What follows the ``header`` in JSON Lines; a file that is not there is begun, a cut line taken off.

    Raises:
        ``error``: no JSON Lines, or another header.
    """
    path = Path(path)
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError as failure:
        raise error(f"{path} is no log that can be gone on with ({failure}); remove it") from failure
    if lines and lines[0] != header:
        raise error(f"{path} is the log of another run; give another file, or remove it to begin anew")
    if not lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(json.dumps(header).encode() + b"\n")
    elif len(whole) < len(content):
        os.truncate(path, len(whole))
    return lines[1:]


def append_lines(path: str | Path, entries: Iterable[Any]) -> None:
    """Add entries to JSON Lines; they are on the disk when this returns."""
    with Path(path).open("ab") as file:
        file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
        file.flush()
        os.fsync(file.fileno())


def read_toml(path: str | Path, error: type[OneShotError] = OneShotError) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ``error``: an unreadable file, or broken TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as failure:
        raise error(f"cannot read {path}: {failure}") from failure
    except tomllib.TOMLDecodeError as failure:
        raise error(f"{path}: not TOML ({failure})") from failure
