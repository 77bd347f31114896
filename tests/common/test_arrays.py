"""npy and npz files whose headers lie."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import npy, zip_of

from oneshot_ml2.common import arrays
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.samples import read_tensors

HEAD = {"descr": "<f4", "fortran_order": False, "shape": (2,)}


def test_what_numpy_writes_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "a": rng.standard_normal((2, 3, 4), dtype=np.float32),
        "fortran": np.asfortranarray(rng.standard_normal((3, 5))),
        "scalar": np.array(3.0),
        "empty": np.zeros((0, 4), np.int8),
        "flags": np.array([True, False]),
        "big": np.arange(5, dtype=">i8"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **made)
        read = arrays.read(tmp_path / "a.npz")
        assert isinstance(read, dict) and list(read) == list(made)
        for name, array in made.items():
            assert np.array_equal(read[name], array) and read[name].dtype == array.dtype
    for array in made.values():
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(arrays.read(tmp_path / "a.npy"), array)
        assert np.array_equal(arrays.read((tmp_path / "a.npy").read_bytes()), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no numpy",
        npy(repr(HEAD | {"shape": (1 << 40,)}), bytes(8)),
        npy(repr(HEAD | {"shape": (1 << 61, 8)}), bytes(8)),
        npy(repr(HEAD | {"shape": (-1,)}), bytes(8)),
        npy(repr(HEAD | {"shape": (True,)}), bytes(8)),
        npy(repr(HEAD | {"shape": (2.0,)}), bytes(8)),
        npy(repr(HEAD | {"shape": 2}), bytes(8)),
        npy(repr(HEAD | {"shape": (1,) * 40}), bytes(8)),
        npy(repr(HEAD | {"descr": "|O"}), bytes(16)),
        npy(repr(HEAD | {"descr": [("a", "<f4")]}), bytes(8)),
        npy(repr(HEAD | {"descr": "<f4,<f4"}), bytes(16)),
        npy(repr(HEAD | {"descr": "<U1000000"}), bytes(8)),
        npy(repr(HEAD | {"descr": "nonsense"}), bytes(8)),
        npy(repr(HEAD | {"descr": None}), bytes(8)),
        npy(repr(HEAD | {"more": 1}), bytes(8)),
        npy(repr(HEAD | {"fortran_order": "no"}), bytes(8)),
        npy(repr(HEAD)[:-1], bytes(8)),
        npy("(" * 5000, bytes(8)),
        npy("9" * 5000, bytes(8)),
        npy(repr(HEAD) + " " * 20_000, bytes(8)),
        npy(repr(HEAD), bytes(8), (4, 0)),
        npy(repr(HEAD), bytes(7)),
        zip_of([("a.npy", npy(repr(HEAD | {"shape": (1 << 33,)}), bytes(8)))]),
        zip_of([("a.npy", npy(repr(HEAD), bytes(8)))] * 2),
        zip_of([("a.npy", b"text")]),
        zip_of([("a.npy", npy(repr(HEAD), bytes(8)))], zipfile.ZIP_LZMA),
        zip_of([("a.npy", npy(repr(HEAD), bytes(8)))])[:-30],
    ],
)
def test_headers_that_lie(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    for source in (tmp_path / "x", content):
        with pytest.raises(ValueError):
            arrays.read(source)
    with pytest.raises(ModelError, match=r"is no \.npy or \.npz file of numbers") as caught:
        read_tensors(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros pack to a thousandth: what they claim is held against the file before any is unpacked."""
    monkeypatch.setattr(arrays, "_UNPACKED", 1 << 20)
    bomb = zip_of([("a.npy", npy(repr(HEAD | {"shape": (1 << 22,)}), bytes(1 << 24)))], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 16
    with pytest.raises(ValueError, match="far more than"):
        arrays.read(bomb)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.random.default_rng(0).standard_normal(1 << 18))
    assert isinstance(arrays.read(buffer.getvalue()), dict)
