"""Files and folders that are written whole or not at all, and locks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oneshot_ml2.common.errors import OneShotError

# How the names of files and folders end that are to be renamed when they are complete.
_TEMPORARY = ".oneshot-ml2"
# Of Linux's renameat2: paths are relative to the working directory; the two names change places.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def locked(path: str | Path, busy: str, error: type[OneShotError] = OneShotError) -> Iterator[None]:
    """Keep other processes from writing ``path`` (a file or a folder, there or not) until the block ends.

    The lock is on a file beside it, ``.NAME.lock``, which is removed at the end. The system takes the lock back when
    the process dies, whatever kills it; the next one to lock then takes the file over, and removes it.

    Raises:
        ``error``: with the text ``busy``, if another process (or another block of this one) holds the lock; or the
            file cannot be made.
    """
    target = Path(path)
    beside = target.parent / f".{target.name}.lock"
    handle = -1
    try:
        while handle < 0:
            handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(handle, beside):
                # Whoever held it has removed the file since it was opened: what counts is the file that is there.
                os.close(handle)
                handle = -1
    except OSError as failure:
        if handle >= 0:
            os.close(handle)
        if isinstance(failure, BlockingIOError):
            raise error(busy) from failure
        reason = failure.strerror or failure
        raise error(f"cannot lock {beside}: {reason}; give another place, or make this one writable") from failure
    try:
        yield
    finally:
        # Removed while it is still locked, so that nobody's lock is removed.
        with contextlib.suppress(OSError):
            beside.unlink()
        os.close(handle)


@contextlib.contextmanager
def temporary(target: str | Path, folder: bool = False) -> Iterator[tuple[Path, int]]:
    """A new file (or folder) beside ``target``, to be renamed to it: (its path, a descriptor); removed at the end.

    It is named ``.NAME.XXXXXXXX.oneshot-ml2`` and locked as long as its writer lives. Those that dead writers of the
    same target left are removed first; those of live ones are not.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    target = Path(target)
    clear_leftovers(target)
    while True:
        path, handle = _made(target, folder)
        # A file system without locks has none to look at either, so nobody takes this one for a leftover.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.lexists(path):
            break
        # Cleared by another writer before it was locked.
        os.close(handle)
    try:
        yield path, handle
    finally:
        # What has been renamed has the target's name now.
        _remove(path)
        os.close(handle)


def _made(target: Path, folder: bool) -> tuple[Path, int]:
    prefix = f".{target.name}."
    if not folder:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=_TEMPORARY, dir=target.parent)
        return Path(name), handle
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, suffix=_TEMPORARY, dir=target.parent))
        with contextlib.suppress(FileNotFoundError):
            return path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def clear_leftovers(target: str | Path) -> None:
    """Remove the temporary files and folders that dead writers of ``target`` left; those of live ones are locked."""
    target = Path(target)
    name = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}{re.escape(_TEMPORARY)}")
    try:
        found = [entry for entry in os.listdir(target.parent) if name.fullmatch(entry)]
    except OSError:
        # Nothing can be seen here; whether it can be written is for the writer to find out.
        return
    for entry in found:
        with contextlib.suppress(OSError):
            handle = os.open(target.parent / entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(handle, target.parent / entry):
                    _remove(target.parent / entry)
            finally:
                os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """An open file or folder is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8): a temporary file beside it takes its name when it is complete.

    What a writer of the same file left that was killed is removed.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    with temporary(target) as (beside, handle):
        with open(handle, "wb", closefd=False) as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(handle)
        # mkstemp's files are private; this one is as readable as any other new file.
        os.fchmod(handle, 0o666 & ~_umask())
        os.replace(beside, target)
    # The new name is on the disk only once its folder is.
    sync(target.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def replace_folder(new: Path, folder: Path) -> None:
    """Give a complete folder the name of another one, or one that is free; ``new`` then names the old one, if any.

    The files of ``new`` are put on the disk first. Where the system can exchange names, that is one step. Elsewhere
    the old folder is ``.NAME.before.oneshot-ml2`` in between, where `present_folder` finds it, and `recover_folder`
    puts it back.

    Raises:
        OSError: not writable, or the disk is full; ``folder`` is as it was.
    """
    for path in (*new.iterdir(), new):
        sync(path)
    os.chmod(new, stat.S_IMODE(folder.stat().st_mode) if folder.exists() else 0o777 & ~_umask())
    if not folder.exists():
        os.rename(new, folder)
    elif not _exchange(new, folder):
        aside = _aside(folder)
        os.rename(folder, aside)
        try:
            os.rename(new, folder)
        except OSError:
            os.rename(aside, folder)
            raise
        os.rename(aside, new)
    sync(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the C library or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.before{_TEMPORARY}"


def present_folder(folder: Path) -> Path:
    """Where the folder is: at its name, or where a writer that died while it replaced it has left it."""
    return folder if folder.exists() or not _aside(folder).is_dir() else _aside(folder)


def recover_folder(folder: Path) -> None:
    """Put a folder back that `present_folder` finds elsewhere; for its next writer, which has the lock."""
    aside = _aside(folder)
    if aside.is_dir():
        if folder.exists():
            _remove(aside)
        else:
            os.rename(aside, folder)


def sync(path: str | Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
