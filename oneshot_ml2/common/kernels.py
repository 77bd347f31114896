"""Compiled functions (numba), and where they are kept between runs.

That is where ``NUMBA_CACHE_DIR`` says, or beside the package, or in the user's own cache. Where none of these can be
written, a private folder among the temporary files takes their place; where that cannot be either, nothing is kept.

What only other kernels call is a part of them (`parts`).

Of several processes that need a kernel at the same time one compiles it, and the others wait for what it keeps.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import multiprocessing
import os
import platform
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import OneShotWarning

_PACKAGE = Path(__file__).parent.parent
_STAMP = "oneshot-ml2.sources"
# Folder of sources -> where what is compiled of them is kept; None: nowhere.
_places: dict[Path, Path | None] = {}
# What is told of every kernel that this process has to wait for.
_told: list[Callable[[], None]] = []
# How long one process waits for another's kernel before it compiles its own: that one may have been suspended.
_PATIENCE_S = 300.0
_POLL_S = 0.02


def njit(*signature: Any, cache: bool = True, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator as ``numba.njit`` with these arguments; it keeps what it compiles only where there is a place for it.

    Warns:
        OneShotWarning: the place is a temporary one, or there is none.
    """
    import numba

    compiler: Any = numba.njit

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = compiler(**options)(function)
        dispatcher.add_overload = functools.partial(_add, dispatcher)
        if cache:
            keep(dispatcher)
        for types in signature:
            dispatcher.compile(types)
        if signature:
            dispatcher.disable_compile()
        return dispatcher

    return compiled


def _add(dispatcher: Any, result: Any) -> None:
    """What numba does with a result, and for its parts: what they print or raise with values are objects of theirs."""
    type(dispatcher).add_overload(dispatcher, result)
    for environment in result._find_referenced_environments():
        result.library.codegen.set_env(environment.env_name, environment)


def keep(dispatcher: Any, cache: Callable[[Callable[..., Any]], Any] | None = None) -> None:
    """Have a compiled function kept where there is a place for it; by a ``cache`` of numba's, or its usual one.

    Warns:
        OneShotWarning: as `njit`.
    """
    place = place_of(dispatcher.py_func)
    if place is not None:
        dispatcher.enable_caching()
        kept = dispatcher._cache if cache is None else cache(dispatcher.py_func)
        dispatcher._cache = _Shared(kept, _turns(place))


@contextlib.contextmanager
def telling(tell: Callable[[], None]) -> Iterator[None]:
    """While in here, ``tell`` is called for every kernel that is not there yet, before it is compiled or waited for."""
    _told.append(tell)
    try:
        yield
    finally:
        _told.remove(tell)


def place_of(function: Callable[..., Any]) -> Path | None:
    """The folder in which what is compiled of a function is kept, without what is stale; None: there is none.

    Warns:
        OneShotWarning: as `njit`.
    """
    folder = Path(function.__code__.co_filename).parent
    if folder not in _places:
        place = _find_place(function) or _temporary_place(function)
        _places[folder] = place
        if place is not None:
            _drop_stale(place)
    return _places[folder]


def identity() -> str:
    """What kernels depend on: the sources, the versions of what compiles them, the processor."""
    import llvmlite.binding
    import numba

    processor: Any = llvmlite.binding
    return " ".join([_sources(), numba.__version__, platform.python_version(), processor.get_host_cpu_name()])


class _Turns:
    """Locks of a folder of kernels, each a byte of one file; the system takes them back from a process that ends."""

    def __init__(self, place: Path) -> None:
        self._path = place / "oneshot-ml2.turns"
        self._file: int | None = None

    def _lock(self, name: str, how: int) -> None:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        fcntl.lockf(self._file, how, 1, place)

    def take(self, name: str) -> None:
        """Wait until no other process has this name; give up where files cannot be locked, or after `_PATIENCE_S`."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            try:
                return self._lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                time.sleep(_POLL_S)
            except OSError:
                return

    def give(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._lock(name, fcntl.LOCK_UN)


@functools.cache
def _turns(place: Path) -> _Turns:
    return _Turns(place)


class _Shared:
    """numba's cache of one function, for processes that share it: see the head of this module.

    numba asks `load_overload` before it compiles, and calls `save_overload` afterwards, both under its own lock of all
    threads. What cannot be read is compiled anew, and what cannot be written is not kept.
    """

    def __init__(self, cache: Any, turns: _Turns) -> None:
        self._cache, self._turns = cache, turns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, types: Any, context: Any) -> Any:
        found = self._loaded(types, context)
        if found is None:
            for tell in _told:
                tell()
            self._turns.take(self._name(types))
            found = self._loaded(types, context)
            if found is not None:
                self._turns.give(self._name(types))
        return found

    def save_overload(self, types: Any, result: Any) -> None:
        # A compilation that fails never comes here: its turn ends with the process, or with others' patience.
        with contextlib.suppress(OSError):
            self._cache.save_overload(types, result)
        self._turns.give(self._name(types))

    def _loaded(self, types: Any, context: Any) -> Any:
        try:
            return self._cache.load_overload(types, context)
        except Exception:
            # A file that is cut short, or of something else: unpickling raises what it likes.
            with contextlib.suppress(OSError):
                self._cache.flush()
            return None

    def _name(self, types: Any) -> str:
        return f"{self._cache._impl.filename_base} {types}"


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
        if b"njit" in content or b"@part(" in content:
            digest.update(source.relative_to(_PACKAGE).as_posix().encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


def _drop_stale(place: Path) -> None:
    """Remove what was compiled from other sources than today's."""
    stamp, today = place / _STAMP, _sources()
    # Another process may be faster, or the folder be full: what stays then is only not known to be fresh.
    with contextlib.suppress(OSError):
        if not stamp.exists() or stamp.read_text() != today:
            for index in place.glob("*.nbi"):
                index.unlink(missing_ok=True)
            stamp.write_text(today)
