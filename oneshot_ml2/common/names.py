"""Names that users give: what is said of one that does not exist, and how those that do are listed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


def unknown(what: str, name: str, known: Iterable[str], also: Iterable[str] = (), cutoff: float = 0.6) -> str:
    """The message for a look-up that found nothing: ``no WHAT 'NAME'; did you mean 'CLOSE'? There are: A, B``.

    Args:
        what: what is looked up, e.g. ``accelerator``.
        known: the names there are, in the order in which they are listed.
        also: other names that the look-up takes: they may be the closest one, but are not listed.
        cutoff: likeness, 0 to 1, from which a name is close.
    """
    there = list(known)
    close = difflib.get_close_matches(name, [*there, *also], n=1, cutoff=cutoff)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"no {what} {name!r}{hint} There are: {', '.join(there) or 'none'}"


def listing(entries: Mapping[str, str]) -> str:
    """Names and what each stands for, in two columns of a help text; a line an entry."""
    width = max(map(len, entries), default=0)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in entries.items())
