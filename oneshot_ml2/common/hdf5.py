"""HDF5 files from elsewhere: nothing outside the file is read, and nothing larger than the file can hold.

A dataset's shape is a claim. It is held against what is stored before anything is allocated, and so are chunks, which a
few bytes may unpack to gigabytes.
"""

from __future__ import annotations

import contextlib
import errno
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py

from oneshot_ml2.common.errors import OneShotError

MAGIC = b"\x89HDF\r\n\x1a\n"
# HDF5 filters that a dataset may use; others could load code from a plugin folder.
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
# All columns together may be so much larger than what is stored of them; one of equal values reaches 1,000 by itself.
_RATIO, _SLACK = 256, 1 << 20
_LARGEST_CHUNK = 1 << 26
# Stored chunks of this size and more are unpacked once under a limit, as HDF5 itself has none.
_SUSPICIOUS = 1 << 18
_LARGEST_TEXT = 1 << 20
_TEXTS_AT_ONCE = 16
# What h5py raises about damaged files.
_FAILURES = (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, OverflowError, AttributeError)


class Unfit(ValueError):
    """Why a part of a file is not read."""


@contextlib.contextmanager
def checked(path: Path, error: type[OneShotError], advice: str) -> Iterator[None]:
    """Whatever h5py or this module says about a file is an ``error`` that names it."""
    try:
        yield
    except OneShotError:
        raise
    except Unfit as failure:
        raise error(f"{path}: {failure}") from failure
    except _FAILURES as failure:
        raise error(f"{path}: damaged or truncated ({failure}); {advice}") from failure


def open_file(path: Path, error: type[OneShotError], advice: str) -> h5py.File:
    """The file, to be read only.

    Raises:
        ``error``: unreadable, or no HDF5.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise error(f"{path}: not an HDF5 file; {advice}")
    except OSError as failure:
        raise error(f"cannot read {path}: {failure.strerror or failure}") from failure
    with checked(path, error, advice):
        try:
            return h5py.File(path, "r")
        except OSError as failure:
            if failure.errno == errno.EACCES:
                raise error(f"cannot read {path}: {failure.strerror}") from failure
            raise


def attribute(file: h5py.File, name: str, kind: type, form: str) -> Any:
    """A single text (``str``) or whole number (``int``) among the attributes of a file that should be of a ``form``.

    Raises:
        Unfit: missing, or something else.
    """
    foreign = Unfit(f"not {form} (attribute {name!r} is missing or of another type)")
    if name not in file.attrs:
        raise foreign
    stored = file.attrs.get_id(name)
    text = h5py.check_string_dtype(stored.dtype) is not None
    if stored.shape != () or (not text if kind is str else stored.dtype.kind not in "iu"):
        raise foreign
    if stored.dtype.itemsize > _LARGEST_TEXT:
        raise foreign
    value = file.attrs[name]
    if kind is int:
        return int(value)
    return value.decode() if isinstance(value, bytes) else str(value)


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset that lies in the file itself, with a shape, behind no filter but those that HDF5 brings.

    Raises:
        Unfit: there is none.
    """
    parts = name.split("/")
    holder: Any = file
    for part in parts[:-1]:
        holder = holder.get(part) if isinstance(holder.get(part, getlink=True), h5py.HardLink) else None
        if not isinstance(holder, h5py.Group):
            raise Unfit(f"no dataset {name!r}; the file is foreign")
    hard = isinstance(holder.get(parts[-1], getlink=True), h5py.HardLink)
    found = holder.get(parts[-1]) if hard else None
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise Unfit(f"no dataset {name!r}; the file is foreign")
    properties = found.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if found.is_virtual or found.external or filters - _FILTERS:
        raise Unfit(f"{name} is stored outside the file or with an unknown filter; not read")
    return found


def is_text(found: h5py.Dataset) -> bool:
    """Whether a column holds texts, of one length or each of its own."""
    return h5py.check_string_dtype(found.dtype) is not None


def check_sizes(datasets: Sequence[h5py.Dataset], path: Path) -> None:
    """Raise Unfit unless the file holds what the datasets' shapes claim, all together."""
    room = path.stat().st_size
    declared = stored = 0
    for found in datasets:
        item = int(found.id.get_type().get_size())
        size, held = math.prod(found.shape) * item, int(found.id.get_storage_size())
        if size and found.chunks is not None:
            _check_chunks(found, item)
        elif size and (held < size or (found.id.get_offset() or 0) + size > room):
            raise Unfit(f"{found.name} claims {size:,} bytes that are not in the file; the file is damaged")
        declared, stored = declared + size, stored + held
    if stored > room or declared > _SLACK + _RATIO * stored:
        raise Unfit(f"its columns claim {declared:,} bytes, of which {min(stored, room):,} are stored; not read")


def _check_chunks(found: h5py.Dataset, item: int) -> None:
    """Raise Unfit unless every chunk is stored, and none unpacks to more than its size."""
    size = math.prod(found.chunks) * item
    count = math.prod(-(-rows // part) for rows, part in zip(found.shape, found.chunks, strict=True))
    if size > _LARGEST_CHUNK or found.id.get_num_chunks() != count:
        raise Unfit(f"{found.name} claims rows that are not in the file; the file is damaged")
    large: list[tuple[int, ...]] = []
    found.id.chunk_iter(lambda chunk: large.append(chunk.chunk_offset) if chunk.size >= _SUSPICIOUS else None)
    if found.compression != "gzip":
        return
    for offset in large:
        _, packed = found.id.read_direct_chunk(offset)
        # A checksum may be among what was packed.
        if len(zlib.decompressobj().decompress(packed, size + 5)) > size + 4:
            raise Unfit(f"{found.name} unpacks to more than its size; not read")


def read_texts(found: h5py.Dataset, most: int) -> list[str]:
    """The texts of a column that `check_sizes` has passed, ``most`` bytes of them.

    Raises:
        Unfit: more, which texts that share their bytes can be.
    """
    texts: list[str] = []
    total = 0
    for begin in range(0, len(found), _TEXTS_AT_ONCE):
        part = [str(text) for text in found.asstr()[begin : begin + _TEXTS_AT_ONCE]]
        total += sum(map(len, part))
        if total > most:
            raise Unfit(f"{found.name} holds more text than the file; not read")
        texts += part
    return texts
