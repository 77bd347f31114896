"""Damaged variants of the files that the package reads: each a function of a seed's content and a random generator.

They know the form of what they damage: a JSON or TOML tree, lines, the objects of an HDF5 file, the members and headers
of npz files, the header of safetensors, the words of instructions. Bytes are damaged, too, whatever they mean.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True)
class Raw:
    """A value as it stands in the text, whatever that is."""

    text: str


@dataclass(frozen=True)
class Twice:
    """An object with one of its keys once more."""

    table: dict[str, Any]
    key: str
    value: Any


def pick(rng: Rng, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


# Bytes -----------------------------------------------------------------------------------------
def damaged_bytes(content: bytes, rng: Rng) -> bytes:
    """Flips, cuts, doubled and foreign parts."""
    how = int(rng.integers(7))
    data = bytearray(content)
    at = int(rng.integers(max(len(data), 1)))
    length = int(rng.integers(1, 65))
    if how == 0:
        for place in rng.integers(max(len(data), 1), size=int(rng.integers(1, 9))).tolist():
            if data:
                data[place] ^= 1 << int(rng.integers(8))
    elif how == 1:
        data = data[:at]
    elif how == 2:
        data[at : at + length] = rng.bytes(length)
    elif how == 3:
        data[at:at] = data[at : at + length]
    elif how == 4:
        del data[at : at + length]
    elif how == 5:
        data[at : at + 8] = struct.pack("<Q", pick(rng, (0, 1, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)))
    else:
        data = bytearray(pick(rng, (b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", rng.bytes(length)))) + data[at:]
    return bytes(data)


# Trees -----------------------------------------------------------------------------------------
def _places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _places(value, (*path, key))


def _at(tree: Any, path: Sequence[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _with(tree: Any, path: Sequence[Any], value: Any) -> Any:
    """The tree with another value at a path; what is off the path is shared."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = _with(copy[path[0]], path[1:], value)
    return copy


def _without(parent: Any, key: Any) -> Any:
    if isinstance(parent, dict):
        return {name: entry for name, entry in parent.items() if name != key}
    return parent[:key] + parent[key + 1 :]


def _numbers(rng: Rng) -> list[Any]:
    return [
        0, 1, -1, 2, 3, 255, 1 << 16, 1 << 31, 1 << 33, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63) - 1, 30_000_000_000,
        0.5, 1.0, -0.0, 1e300, -1e300, Raw("1e999"), Raw("9" * 5000), Raw("-" + "9" * 5000), 10**25,
        int(rng.integers(-100, 1 << 20)),
    ]  # fmt: skip


def _strange(rng: Rng) -> Any:
    """A value of some other type, or one that is hard to take."""
    return pick(rng, [
        None, True, False, "", "7", "x" * 10_000, "\0", "é\ud800", [], {}, [[]], [0] * 1000, {"op": "conv2d"},
        [1, "a", None], {"": 0}, ["-1"], Raw("NaN"), Raw("Infinity"), Raw("-Infinity"),
        Raw("[" * 200 + "]" * 200), Raw("[" * 100_000 + "]" * 100_000), Raw('{"a":' * 60_000 + "1" + "}" * 60_000),
        *_numbers(rng),
    ])  # fmt: skip


def _other(value: Any, rng: Rng) -> Any:
    """A value near a given one: longer, shorter, or of another sign or size."""
    if isinstance(value, list):
        return (value + value)[: int(rng.integers(2 * len(value) + 1))]
    if isinstance(value, dict):
        return value | {pick(rng, ["unknown", "", "é"]): _strange(rng)}
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _strange(rng)
    return value * pick(rng, [0, -1, 2, 1 << 20, 0.5])


def damaged_tree(tree: Any, rng: Rng) -> Any:
    """One to three changes somewhere in a tree of dicts, lists and plain values."""
    for _ in range(int(rng.integers(1, 4))):
        places = [path for path in _places(tree) if not isinstance(_at(tree, path), (Raw, Twice))]
        # Some draws are from what is near the root, which long lists would hide.
        near = [path for path in places if len(path) <= 2]
        path = pick(rng, near if rng.random() < 0.3 else places)
        how = int(rng.integers(8))
        value = _at(tree, path)
        if how == 3:
            tree = _with(tree, path, pick(rng, _numbers(rng)))
        elif how == 4 and path:
            tree = _with(tree, path[:-1], _without(_at(tree, path[:-1]), path[-1]))
        elif how == 5 and isinstance(value, dict):
            key = pick(rng, [*value, "unknown", "", "op"])
            tree = _with(tree, path, Twice(value, key, value.get(key, _strange(rng))))
        elif how == 6:
            tree = _with(tree, path, _at(tree, pick(rng, places)))
        else:
            tree = _with(tree, path, _strange(rng) if how <= 2 else _other(value, rng))
        if isinstance(tree, (Raw, Twice)):
            break
    return tree


def json_text(tree: Any) -> str:
    """JSON, with `Raw` and `Twice` among its values."""
    if isinstance(tree, Raw):
        return tree.text
    if isinstance(tree, Twice):
        pairs = [*tree.table.items(), (tree.key, tree.value)]
        return "{" + ", ".join(f"{json.dumps(key)}: {json_text(value)}" for key, value in pairs) + "}"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {json_text(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(json_text, tree)) + "]"
    return json.dumps(tree)


def damaged_json(content: bytes, rng: Rng) -> bytes:
    """A JSON file: mostly its tree, sometimes its bytes."""
    if rng.random() < 0.2:
        return damaged_bytes(content, rng)
    return json_text(damaged_tree(json.loads(content), rng)).encode("utf-8", "surrogatepass")


def damaged_lines(content: bytes, rng: Rng) -> bytes:
    """JSON Lines: a line's tree, the order of lines, or bytes."""
    if rng.random() < 0.15:
        return damaged_bytes(content, rng)
    lines = content.splitlines()
    at, other = (int(rng.integers(len(lines))) for _ in range(2))
    how = int(rng.integers(7))
    if how <= 3:
        lines[at] = json_text(damaged_tree(json.loads(lines[at]), rng)).encode("utf-8", "surrogatepass")
    elif how == 4:
        lines[at], lines[other] = lines[other], lines[at]
    elif how == 5:
        del lines[at]
    else:
        lines.insert(at, pick(rng, [b"", b"null", b"[]", b"{}", b"1", lines[other], b"[" * 100_000]))
    return b"\n".join(lines) + pick(rng, [b"\n", b"\n", b"", b"\n\n", b"\r\n"])


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, Raw):
        return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(value.text, value.text)
    if isinstance(value, Twice):
        value = value.table
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value) if value is not None else "1979-05-27T07:32:00Z"


def toml_text(tree: Any) -> str:
    """TOML of a dict; tables one level deep and lists of tables as such, what lies deeper inline."""
    if not isinstance(tree, dict):
        return _toml_value(tree)
    plain, rest = [], []
    for key, value in tree.items():
        tables = value if isinstance(value, list) else [value]
        if tables and all(isinstance(table, dict) for table in tables):
            form = "[[{}]]" if isinstance(value, list) else "[{}]"
            for table in tables:
                rest.append(form.format(_toml_key(key)))
                rest += [f"{_toml_key(name)} = {_toml_value(entry)}" for name, entry in table.items()]
        else:
            plain.append(f"{_toml_key(key)} = {_toml_value(value)}")
    return "\n".join([*plain, *rest]) + "\n"


def damaged_toml(tree: dict[str, Any], rng: Rng) -> bytes:
    """A TOML file of a tree: mostly the tree, sometimes its bytes, or text that only TOML has."""
    text = toml_text(tree)
    draw = rng.random()
    if draw < 0.15:
        return damaged_bytes(text.encode(), rng)
    if draw < 0.25:
        extra = pick(rng, [
            "a." * 30_000 + "a = 1", "[" + "a." * 30_000 + "a]", "x = 0x" + "f" * 50_000,
            "x = 1e99999", "x = " + "[" * 50_000,
            "x = " + "{a=" * 5_000 + "1" + "}" * 5_000,
            'x = """' + "y" * 100_000, "x = 1\nx = 2", "[t]\n[t]", "x = 9" + "0" * 6000,
        ])  # fmt: skip
        return (extra + "\n" + text if rng.random() < 0.5 else text + "\n" + extra + "\n").encode()
    return toml_text(damaged_tree(tree, rng)).encode("utf-8", "surrogatepass")


# npy and npz -----------------------------------------------------------------------------------
def npy(header: str, body: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file with a header by hand."""
    raw = header.encode("latin1") + b"\n"
    size = struct.pack("<H", len(raw)) if version == (1, 0) else struct.pack("<I", len(raw))
    return b"\x93NUMPY" + bytes(version) + size + raw + body


def _header(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}


def damaged_npy(content: bytes, rng: Rng) -> bytes:
    """Another header over the same data, or other bytes."""
    if rng.random() < 0.25:
        return damaged_bytes(content, rng)
    array = np.load(io.BytesIO(content))
    head = _header(array)
    body = array.tobytes()
    how = int(rng.integers(6))
    if how == 0:
        head["shape"] = pick(rng, [
            (), (0,), (-1,), (1 << 40,), (1 << 62, 4), (1 << 31, 1 << 31), (1 << 64,), (1 << 28,),
            "x", None, [3], (1.5,),
            (True,), array.shape[::-1], (*array.shape, 1), (1,) * 65, (1,) * 30 + array.shape, (1 << 33, 0), ("1",),
        ])  # fmt: skip
    elif how == 1:
        head["descr"] = pick(rng, [
            "|O", "<f8", "<i8", "|V16", "<U1000000", "|S0", "<M8[s]", "<c16", ">i4", "|b1", [("a", "<i4")],
            [("a", "|O"), ("b", "<i4", (1 << 20,))], "<f2", 7, None, "nonsense", "|V1073741824", ["<i4"], "<i8,<O",
        ])  # fmt: skip
    elif how == 2:
        head["fortran_order"] = pick(rng, [True, 1, None, "yes"])
    elif how == 3:
        text = pick(rng, [
            "", "{}", "[]", "(" * 5000, "{'descr': '<i4'}", "__import__('os')", "{" * 100,
            "9" * 5000, "-" * 60_000 + "1",
            repr(head) + " " * 60_000, repr(head)[:-1], repr(head | {"more": 1}), "\xff" * 100,
            "{'descr': '<i4', 'fortran_order': False, 'shape': (" + "1," * 20_000 + ")}",
        ])  # fmt: skip
        return npy(text, body, pick(rng, [(1, 0), (2, 0), (3, 0)]) if len(text) < 65_000 else (2, 0))
    elif how == 4:
        body = pick(rng, [b"", body[:-1], body[: len(body) // 2], body + body])
    else:
        return npy(repr(head), body, pick(rng, [(0, 0), (4, 0), (9, 9), (2, 0), (3, 0)]))
    return npy(repr(head), body)


def zip_of(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def _bomb(rng: Rng) -> bytes:
    """A .npy of zeros, which a zip file packs to a thousandth."""
    size = int(pick(rng, [1 << 20, 1 << 24]))
    return npy(repr({"descr": "|i1", "fortran_order": False, "shape": (size,)}), bytes(size))


def damaged_npz(content: bytes, rng: Rng) -> bytes:
    """Members with other headers, left out, doubled, renamed, packed otherwise; or the directory's bytes."""
    if rng.random() < 0.25:
        return damaged_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [(name, file.read(name)) for name in file.namelist()]
    at = int(rng.integers(len(members)))
    name, body = members[at]
    method = pick(
        rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    )
    how = int(rng.integers(9))
    if how <= 3:
        members[at] = (name, damaged_npy(body, rng))
    elif how == 4:
        del members[at]
    elif how == 5:
        names = ["", "x.npy", "x", "9.insns.npy", "-1.uops.npy", "a.b.c.npy", "../x.npy", "1e3.x.npy", "٣.x.npy"]
        members[at] = (pick(rng, names), body)
    elif how == 6:
        members.append((pick(rng, [name, "more.npy"]), pick(rng, [body, b"", b"text", _bomb(rng)])))
    elif how == 7:
        other = pick(rng, members)[1]
        members[at] = (name, other)
    else:
        # Sizes in the directory that lie.
        packed = bytearray(zip_of(members, method))
        place = packed.rfind(b"PK\x01\x02")
        offset = pick(rng, [16, 20, 24, 28, 30, 42])
        packed[place + offset : place + offset + 4] = struct.pack(
            "<I", pick(rng, [0, 1, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF])
        )
        return bytes(packed)
    return zip_of(members, method)


def damaged_arrays(content: bytes, rng: Rng) -> bytes:
    """An npz whose members keep their form and hold other values."""
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    name = pick(rng, list(arrays))
    array = arrays[name].copy()
    how = int(rng.integers(5))
    if how == 0 and array.size:
        raw = array.reshape(-1).view(np.uint8)
        raw[rng.integers(raw.size, size=min(8, raw.size))] = rng.integers(0, 256, min(8, raw.size), np.uint8)
    elif how == 1:
        array = array[: int(rng.integers(len(array) + 1))]
    elif how == 2:
        array = array.astype(pick(rng, [np.float64, np.int8, np.bool_, np.complex64, np.int64, np.uint8]))
    elif how == 3:
        array = pick(rng, [array.ravel(), array[None], array.reshape(-1, 1), np.zeros((), array.dtype)])
    else:
        array = np.concatenate([array, array])
    buffer = io.BytesIO()
    np.savez(buffer, **(arrays | {name: array}))
    return buffer.getvalue()


# safetensors -----------------------------------------------------------------------------------
def damaged_safetensors(content: bytes, rng: Rng) -> bytes:
    """Another header, another length of it, or bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(content, rng)
    (size,) = struct.unpack("<Q", content[:8])
    head, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    how = int(rng.integers(5))
    if how == 0:
        lie = pick(rng, [0, 1, size - 1, size + 8, 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
        return struct.pack("<Q", lie) + content[8:]
    if how == 1:
        body = body[: int(rng.integers(len(body) + 1))] if rng.random() < 0.5 else body + bytes(8)
    elif how == 2:
        entry = head[pick(rng, [name for name in head if name != "__metadata__"])]
        entry["data_offsets"] = pick(rng, [[0, 0], [0, 1 << 40], [8, 4], [-4, 4], [0, len(body)], "x", [0.5, 4]])
    elif how == 3:
        entry = head[pick(rng, [name for name in head if name != "__metadata__"])]
        entry["dtype"] = pick(rng, ["F64", "I8", "BF16", "F8_E4M3", "X", 3, None, "F16", "BOOL"])
        entry["shape"] = pick(rng, [entry["shape"], [1 << 40], [1 << 62, 4], [], [-1], [entry["shape"][0], 0], "x"])
    else:
        head = damaged_tree(head, rng)
    raw = json_text(head).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + body


# Instructions ----------------------------------------------------------------------------------
def damaged_words(content: bytes, rng: Rng) -> bytes:
    """A stream of 16-byte instructions: random ones, swapped, doubled, or with other bits."""
    words = [content[i : i + 16] for i in range(0, len(content) - 15, 16)]
    how = int(rng.integers(6))
    at = int(rng.integers(len(words)))
    if how == 0:
        return rng.bytes(16 * int(rng.integers(1, 33)))
    if how == 1:
        # Garbage whose opcodes are memory accesses without dependencies: nothing stops it early.
        raw = bytearray(rng.bytes(16 * int(rng.integers(1, 17))))
        for i in range(0, len(raw), 16):
            raw[i] = (raw[i] & 0x80) | int(rng.integers(2))
        return bytes(raw) + content[-16:]
    if how == 2:
        words[at] = rng.bytes(16)
    elif how == 3:
        flipped = bytearray(words[at])
        flipped[int(rng.integers(16))] ^= 1 << int(rng.integers(8))
        words[at] = bytes(flipped)
    elif how == 4:
        words[at : at + 1] = words[at : at + 8] * int(rng.integers(1, 20))
    else:
        return damaged_bytes(content, rng)
    return b"".join(words)


# HDF5 ------------------------------------------------------------------------------------------
def _dataset_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def _other_dtype(rng: Rng) -> Any:
    return pick(rng, [
        np.float64, np.int8, np.uint64, np.bool_, "S4", "V8", h5py.string_dtype(), h5py.vlen_dtype(np.int32),
        np.dtype([("a", "<i4"), ("b", "<f8")]), h5py.enum_dtype({"a": 1}), np.dtype("(3,)i4"),
        h5py.ref_dtype, ">i8", "S4096",
    ])  # fmt: skip


def _replaced(file: h5py.File, name: str, rng: Rng) -> None:
    """Another dataset, group or link in the place of a dataset."""
    old = file[name]
    shape, dtype, data = old.shape, old.dtype, old[()]
    del file[name]
    how = int(rng.integers(13))
    if how == 0:
        file[name] = h5py.SoftLink(pick(rng, ["/nowhere", "/tasks", f"/{name}", "/"]))
    elif how == 1:
        file[name] = h5py.ExternalLink(pick(rng, ["other.h5", "/dev/zero", "/etc/passwd", ""]), "/x")
    elif how == 2:
        file.create_group(name)
    elif how == 3:
        size = (1 << int(rng.integers(20, 45)), *shape[1:])
        file.create_dataset(name, size, dtype=dtype, chunks=(1 << 14, *shape[1:]), fillvalue=None)
    elif how == 4:
        size = (1 << int(rng.integers(20, 40)), *shape[1:])
        file.create_dataset(name, size, dtype=dtype)
    elif how == 5:
        file.create_dataset(
            name, shape or (1,), dtype=dtype, external=[("/dev/zero", 0, 1 << 30)]
        ) if dtype.kind != "O" else None
    elif how == 6:
        try:
            file.create_dataset(name, data=np.asarray(data).astype(_other_dtype(rng)))
        except (TypeError, ValueError):
            file.create_dataset(name, shape, dtype=_other_dtype(rng))
    elif how == 7:
        file.create_dataset(name, data=pick(rng, [data[None], np.asarray(data[:1]), data[:0]]), dtype=dtype)
    elif how == 8:
        file.create_dataset(name, data=h5py.Empty(dtype)) if dtype.kind != "O" else file.create_dataset(name, data="x")
    elif how == 9 and dtype.kind in "iu":
        rows = (1 << 24) // max(dtype.itemsize * int(np.prod(shape[1:])), 1)
        packed = np.zeros((rows, *shape[1:]), dtype)
        file.create_dataset(name, data=packed, chunks=packed.shape, compression="gzip", compression_opts=1)
    elif how == 10 and dtype.kind in "iu":
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource("/nowhere.h5", "x", shape=shape)
        file.create_virtual_dataset(name, layout)
    elif how == 11:
        file.create_dataset(name, shape, dtype=dtype, data=data, chunks=True, compression="lzf") if shape and shape[
            0
        ] else None
    # Otherwise it is missing.


def _other_values(file: h5py.File, name: str, rng: Rng) -> None:
    dataset = file[name]
    if not dataset.size:
        return
    if dataset.dtype.kind in "iu":
        values = dataset[()]
        limits = np.iinfo(values.dtype)
        flat = values.reshape(-1)
        new = pick(
            rng, [0, -1, 1, limits.max, limits.min, limits.max // 2, 1 << 33, 1 << 40, int(rng.integers(1 << 20))]
        )
        flat[int(rng.integers(flat.size)) if rng.random() < 0.7 else slice(None)] = np.clip(new, limits.min, limits.max)
        dataset[...] = values
    elif dataset.dtype.kind == "S":
        dataset[0] = pick(rng, [b"", b"\xff\xfe", b"x" * dataset.dtype.itemsize])
    else:
        text = dataset.asstr()[0]
        try:
            changed = json_text(damaged_tree(json.loads(text), rng))
        except ValueError:
            changed = pick(rng, ["", "[" * 100_000, "\udcff"])
        dataset[0] = changed.encode("utf-8", "surrogatepass").replace(b"\0", b"")


def _other_attribute(file: h5py.File, rng: Rng) -> None:
    name = pick(rng, [*file.attrs, "more"])
    old = file.attrs.get(name, "")
    how = int(rng.integers(8))
    if name in file.attrs:
        del file.attrs[name]
    if how == 0:
        return
    if how == 1:
        file.attrs.create(name, np.arange(1000))
    elif how == 2:
        file.attrs[name] = h5py.Empty("f8")
    elif how == 3:
        file.attrs.create(name, pick(rng, ["", "[" * 50_000, "\ud7ff", "1" * 5000, "{}", "null", "x" * 10_000]))
    elif how == 4:
        file.attrs.create(name, np.zeros(2, [("a", "<i4"), ("b", "S4")]))
    elif how == 5:
        file.attrs.create(name, ["a", "b"], dtype=h5py.string_dtype())
    elif how == 6:
        file.attrs[name] = pick(
            rng, [1.5, True, np.int8(3), 1 << 40, -1, np.uint64((1 << 64) - 1), b"\xff\xfe", float("nan")]
        )
    elif isinstance(old, str):
        try:
            file.attrs[name] = (
                json_text(damaged_tree(json.loads(old), rng)).encode("utf-8", "surrogatepass").replace(b"\0", b"")
            )
        except ValueError:
            file.attrs[name] = old + "x"


def damaged_hdf5(path: Path, rng: Rng) -> None:
    """Change an HDF5 file in its place: objects, links, values, attributes, bytes."""
    if rng.random() < 0.25:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
        return
    with h5py.File(path, "r+") as file:
        for _ in range(int(rng.integers(1, 4))):
            names = _dataset_names(file)
            how = int(rng.integers(8))
            if how <= 2 and names:
                _replaced(file, pick(rng, names), rng)
            elif how <= 5 and names:
                _other_values(file, pick(rng, names), rng)
            elif how == 6:
                _other_attribute(file, rng)
            elif names:
                # All columns shorter or longer at once.
                length = int(rng.integers(100))
                for name in names:
                    old = file[name]
                    if old.ndim and old.dtype.kind in "iu" and old.is_virtual is False and old.size < 1 << 20:
                        values = np.resize(old[()], (length, *old.shape[1:])).astype(old.dtype)
                        del file[name]
                        file[name] = values
