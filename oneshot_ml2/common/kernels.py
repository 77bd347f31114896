"""Compiled functions (numba), and where they are kept between runs.

That is where ``NUMBA_CACHE_DIR`` says, or beside the package, or in the user's own cache. Where none of these can be
written, a private folder among the temporary files takes their place; where that cannot be either, nothing is kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import multiprocessing
import os
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import OneShotWarning

_PACKAGE = Path(__file__).parent.parent
_STAMP = "oneshot-ml2.sources"
# Folder of sources -> whether what is compiled of them is kept.
_kept: dict[Path, bool] = {}


def njit(*signature: Any, cache: bool = True, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator as ``numba.njit`` with these arguments; it keeps what it compiles only where there is a place for it.

    Warns:
        OneShotWarning: the place is a temporary one, or there is none.
    """
    import numba

    compiler: Any = numba.njit

    def compiled(function: Callable[..., Any]) -> Any:
        return compiler(*signature, cache=cache and _is_kept(function), **options)(function)

    return compiled


def _is_kept(function: Callable[..., Any]) -> bool:
    folder = Path(function.__code__.co_filename).parent
    if folder not in _kept:
        place = _find_place(function) or _temporary_place(function)
        _kept[folder] = place is not None
        if place is not None:
            _drop_stale(place)
    return _kept[folder]


def _find_place(function: Callable[..., Any]) -> Path | None:
    """Where numba would keep a function of this folder; None: it finds no folder that it can write to."""
    from numba.core import caching

    find: Any = caching.FunctionCache
    try:
        return Path(find(function).cache_path)
    except RuntimeError:
        return None


def _temporary_place(function: Callable[..., Any]) -> Path | None:
    """As `_find_place`, in a folder among the temporary files, which worker processes inherit."""
    from numba.core import config

    settings: Any = config
    before = settings.CACHE_DIR
    try:
        root = _private_folder()
        settings.CACHE_DIR = str(root)
        place = _find_place(function)
    except OSError:
        place = None
    if place is None:
        settings.CACHE_DIR = before
        _warn("are compiled anew by every run")
        return None
    os.environ["NUMBA_CACHE_DIR"] = str(root)
    _warn(f"are kept in {root} for now")
    return place


def _private_folder() -> Path:
    """A user's own folder among the temporary files: numba unpickles what it finds there, so nobody else may write."""
    user = os.getuid() if hasattr(os, "getuid") else None
    root = Path(tempfile.gettempdir()) / f"oneshot-ml2-kernels-{'' if user is None else user}"
    with contextlib.suppress(FileExistsError):
        root.mkdir(mode=0o700)
    found = root.lstat()
    private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    if user is not None and not (private and found.st_uid == user):
        return Path(tempfile.mkdtemp(prefix="oneshot-ml2-kernels-"))
    return root


def _warn(what: str) -> None:
    # Once: the workers of a process that said it are silent.
    if multiprocessing.parent_process() is None:
        warnings.warn(
            f"neither the package's folder nor the home folder can be written: compiled kernels {what}; "
            "set NUMBA_CACHE_DIR to a folder that stays",
            OneShotWarning,
            stacklevel=2,
        )


@functools.cache
def _sources() -> str:
    """A digest of all sources with compiled functions: one inlines others, and numba looks at its own file only."""
    digest = hashlib.sha256()
    for source in sorted(_PACKAGE.rglob("*.py")):
        content = source.read_bytes()
        if b"njit" in content:
            digest.update(source.relative_to(_PACKAGE).as_posix().encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


def _drop_stale(place: Path) -> None:
    """Remove what was compiled from other sources than today's."""
    stamp = place / _STAMP
    # Another process may be faster, or the folder be full: what stays then is only not known to be fresh.
    with contextlib.suppress(OSError):
        if not stamp.exists() or stamp.read_text() != _sources():
            for index in place.glob("*.nbi"):
                index.unlink(missing_ok=True)
            stamp.write_text(_sources())
