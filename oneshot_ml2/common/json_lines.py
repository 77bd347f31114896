"""JSON Lines that work goes on from: logs, tables of results. One writer at a time, and every whole line counts.

Such a file is a header, where it has one, and then an entry a line. Killed writers, full disks, two writers at once and
foreign hands leave lines that are cut, glued together, doubled or of something else. What is whole is read past all
of them. Nothing but a cut last line is ever taken off a file: before anything else is, the file as it was is kept
beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import locked, write_whole
from oneshot_ml2.common.reading import FIGURES_DECODER, parse_json

Entry = TypeVar("Entry")

# What reading an entry that is none may raise.
FOREIGN = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, OneShotError)
# At so many places of a damaged line an entry is looked for.
_PLACES = 256
# How the file beside a damaged one ends that keeps it as it was.
_ASIDE = ".damaged"
# So many numbers of lines are named.
_NAMED = 8


def dumped(entry: Any) -> str:
    """An entry as a line."""
    return json.dumps(entry, separators=(",", ":")) + "\n"


@dataclass(frozen=True)
class Found(Generic[Entry]):
    """What a file holds.

    Attributes:
        header: its first whole header, as it stands there; None: there is none, or none was looked for.
        entries: whole entries behind it, in the file's order; ``texts``: how they stand there.
        skipped: numbers, from 1, of the lines that hold more or other than one entry of this header.
        cut: bytes behind the last newline that are no entry.
        unended: the last line is an entry that lacks its newline alone.
        problem: why nothing can be read; empty where something can, or a file without a header is empty.
    """

    header: dict[str, Any] | None
    entries: list[Entry]
    texts: list[str]
    skipped: tuple[int, ...]
    cut: int
    unended: bool
    problem: str

    def numbers(self) -> str:
        """The skipped lines' numbers, as text."""
        shown = ", ".join(map(str, self.skipped[:_NAMED])) + (", ..." if len(self.skipped) > _NAMED else "")
        return f"line{'s' if len(self.skipped) > 1 else ''} {shown}"


def _parsed(text: str) -> Any:
    return parse_json(text, "a line", decoder=FIGURES_DECODER)


def _documents(text: str) -> tuple[list[tuple[Any, str]], bool]:
    """The JSON documents of a line with their texts, and whether it is one document and nothing else.

    Of a damaged line, those that begin with a bracket and are whole: what a line that was cut and the next one have
    become, or lines that were glued together.
    """
    with contextlib.suppress(OneShotError):
        return [(_parsed(text), text)], True
    found, at = [], 0
    for _ in range(_PLACES):
        places = [place for place in (text.find("{", at), text.find("[", at)) if place >= 0]
        if not places:
            break
        begin = min(places)
        try:
            _, end = FIGURES_DECODER.raw_decode(text, begin)
            found.append((_parsed(text[begin:end]), text[begin:end]))
            at = end
        except (ValueError, RecursionError, OneShotError):
            at = begin + 1
    return found, False


def find(content: bytes, read: Callable[[Any], Entry], headed: bool = False) -> Found[Entry]:
    """What a file's content holds.

    Args:
        read: an entry of a JSON document; raises one of `FOREIGN` for what is none.
        headed: the file has a header, an object with a ``format``. Entries before it, and behind another one, are
            foreign.
    """
    lines = content.split(b"\n")
    header: dict[str, Any] | None = None
    entries: list[Entry] = []
    texts: list[str] = []
    skipped: list[int] = []
    own, unended, why = not headed, False, ""
    for number, line in enumerate(lines, 1):
        # What is no UTF-8 shows as this character, which no entry of ours holds.
        text = line.decode("utf-8", errors="replace").strip()
        documents, clean = _documents(text) if text else ([], number < len(lines))
        before = len(texts)
        for document, written in documents:
            if headed and isinstance(document, dict) and "format" in document:
                clean = clean and header is None
                header = document if header is None else header
                own = document == header
                continue
            try:
                if not own or "\ufffd" in written:
                    raise ValueError("no UTF-8" if own else "no header before it")
                entries.append(read(document))
                texts.append(written)
            except FOREIGN as error:
                clean, why = False, why or f"line {number}: {error!r}"
        if number == len(lines):
            unended = clean
        if not clean and (number < len(lines) or len(texts) > before):
            skipped.append(number)
    problem = ""
    if headed and header is None:
        problem = "it is empty" if not content else why or "its first line is cut short or none"
    elif not headed and not entries and content.strip():
        problem = why or "its only line is cut short"
    return Found(header, entries, texts, tuple(skipped), 0 if unended else len(lines[-1]), unended, problem)


def told(path: Path, found: Found[Any], more: str = "") -> None:
    """Say once which lines were skipped, if any were; ``more``: what became of them."""
    if found.skipped:
        text = f"{found.numbers()} skipped in part or whole (damaged, doubled or foreign); all others count"
        print(f"warning: {path}: {text}{more}", file=sys.stderr)


# Going on --------------------------------------------------------------------------------------


@dataclass
class Opened(Generic[Entry]):
    """A file that only this process writes, see `open_lines`.

    Attributes:
        entries: those that it holds, in order.
        known: those that are known besides, from a file that was damaged: see ``ordered`` of `open_lines`.
    """

    path: Path
    entries: list[Entry]
    known: list[Entry]

    def append(self, entries: Iterable[Any]) -> None:
        """Add entries; they are on the disk when this returns.

        Raises:
            OSError: the disk is full, say; no part of them is left in the file.
        """
        content = "".join(map(dumped, entries)).encode()
        if not content:
            return
        with self.path.open("ab") as file:
            size = file.tell()
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), size)
                raise


@contextlib.contextmanager
def open_lines(
    path: str | Path,
    read: Callable[[Any], Entry],
    header: dict[str, Any] | None = None,
    error: type[OneShotError] = OneShotError,
    ordered: Callable[[Sequence[Entry]], bool] | None = None,
) -> Iterator[Opened[Entry]]:
    """Go on with a file, or begin it, while no other process does.

    A cut last line is taken off. Of a file that is damaged otherwise, a copy is kept beside it (``NAME.damaged``), and
    the file then holds what was whole.

    Args:
        read: see `find`.
        header: the file's; None: it has none.
        ordered: whether entries are those of one run, none missing: for work that is done over in the same order.
            Where they are not, or lines are damaged, the file begins anew, and what was whole is ``known``, also to
            later processes.

    Raises:
        ``error``: another process writes the file; it has another header, or is no such file; it cannot be read or
            written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise error(f"cannot write to {path.parent}: {failure.strerror or failure}") from failure
    busy = f"{path}: another process is at work with it; wait for it, or give another file"
    with locked(path, busy, error):
        try:
            opened = _opened(path, read, header, error, ordered)
        except OSError as failure:
            raise error(f"cannot go on with {path}: {failure.strerror or failure}") from failure
        yield opened


def _opened(
    path: Path,
    read: Callable[[Any], Entry],
    header: dict[str, Any] | None,
    error: type[OneShotError],
    ordered: Callable[[Sequence[Entry]], bool] | None,
) -> Opened[Entry]:
    head = "" if header is None else dumped(header)
    content = path.read_bytes() if path.exists() else b""
    found = find(content, read, header is not None)
    known: list[Entry] = []
    if ordered is not None:
        copies = [find(copy.read_bytes(), read, header is not None) for copy in _copies(path)]
        known = [entry for copy in copies if copy.header == header for entry in copy.entries]
    if head.encode().startswith(content) or not content:
        # Nothing yet, or a header that was cut short.
        write_whole(path, head)
        return Opened(path, [], known)
    if found.header is not None and found.header != header:
        raise error(f"{path} is the log of another run; give another file, or remove it to begin anew")
    # A table's first row may have been cut; what has a header has it whole by now.
    if found.problem and (header is not None or content.count(b"\n")):
        raise error(f"{path} is no file of this kind ({found.problem}); give another one, or remove it to begin anew")
    mixed = ordered is not None and not ordered(found.entries)
    if found.problem or found.skipped or mixed:
        copy = _put_aside(path, content)
        told(path, found, f"; as it was, it is kept as {copy.name}")
        if mixed and not found.skipped:
            print(f"warning: {path}: lines of several runs; each counts, and {copy.name} keeps them", file=sys.stderr)
        again = [] if ordered is not None else found.texts
        write_whole(path, head + "".join(f"{text}\n" for text in again))
        return Opened(path, [], found.entries + known) if ordered is not None else Opened(path, found.entries, [])
    if found.unended:
        with path.open("ab") as file:
            file.write(b"\n")
    elif found.cut:
        os.truncate(path, len(content) - found.cut)
    return Opened(path, found.entries, known)


def _copies(path: Path) -> list[Path]:
    """Damaged files that were kept beside one, in order."""
    found = [Path(f"{path}{_ASIDE}")]
    while found[-1].exists():
        found.append(Path(f"{path}{_ASIDE}-{len(found) + 1}"))
    return found[:-1]


def _put_aside(path: Path, content: bytes) -> Path:
    """Keep a file's content under a name that nothing has."""
    copy = Path(f"{path}{_ASIDE}-{len(_copies(path)) + 1}" if _copies(path) else f"{path}{_ASIDE}")
    write_whole(copy, content)
    return copy
