"""HDF5 files that claim more than they hold, or point elsewhere."""

from __future__ import annotations

import json
import resource
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from oneshot_ml2.common import hdf5
from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.corpus.format import TaskSamples
from oneshot_ml2.corpus.manage import verify_corpus
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.corpus.write import write_corpus
from oneshot_ml2.evaluation import replay
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.dense import Dense

DATA = Path(__file__).parent.parent / "data"
Change = Callable[[h5py.File], None]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    n = 40
    task = TaskSamples(
        workload=Dense(1, 64, 10),
        accelerator=Accelerator.load("pynq"),
        kind="full",
        space_version=2,
        knobs=("a", "b"),
        values=np.stack([np.arange(n), np.arange(n)], axis=1).astype(np.int32),
        reason=np.zeros(n, np.uint8),
        cycles=np.arange(1, n + 1),
        busy=np.zeros((n, 3), np.int64),
        sampler=np.zeros(n, np.uint8),
        split="train",
        provenance={"seed": 1},
    )
    write_corpus(tmp_path / "a.h5", [task])
    return tmp_path / "a.h5"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs.h5"
    path.write_bytes((DATA / "rtl_pynq.h5").read_bytes())
    return path


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """What is refused too late shows as a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def replaced(name: str, **settings: object) -> Change:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, **settings)

    return change


def grown(file: h5py.File) -> None:
    """All columns of samples claim 2^27 rows, none of which is stored."""
    for name in ("values", "reason", "cycles", "busy", "sampler"):
        old = file[f"samples/{name}"]
        dtype, rest = old.dtype, old.shape[1:]
        del file[f"samples/{name}"]
        file.create_dataset(f"samples/{name}", (1 << 27, *rest), dtype, chunks=(1 << 14, *rest), compression="gzip")
    file["tasks/offsets"][...] = [0, 1 << 27]


def softlink(file: h5py.File) -> None:
    file["elsewhere"] = file["samples/cycles"][:]
    del file["samples/cycles"]
    file["samples/cycles"] = h5py.SoftLink("/elsewhere")


def group(file: h5py.File) -> None:
    del file["samples/cycles"]
    file.create_group("samples/cycles")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (grown, "not in the file|claim"),
        (replaced("samples/cycles", shape=(1 << 30,), dtype="<i8"), "not in the file"),
        (replaced("samples/values", data=np.zeros((1 << 22, 2), "<i4"), compression="gzip"), "claim"),
        (softlink, "no dataset"),
        (group, "no dataset"),
        (replaced("samples/cycles", data=h5py.Empty("<i8")), "no dataset"),
        (replaced("samples/cycles", data=np.arange(40), compression="lzf"), "unknown filter"),
        (lambda file: file.attrs.create("knobs", np.arange(9)), "another type"),
        (lambda file: file.attrs.create("schema", np.arange(9)), "another type"),
        (lambda file: file.attrs.create("knobs", "[" * 50_000), "nested|damaged"),
        (replaced("workloads", data=["[" * 50_000], dtype=h5py.string_dtype()), "nested"),
        (replaced("provenance", data=["[1]"], dtype=h5py.string_dtype()), "no object"),
        (replaced("tasks/offsets", data=np.array([(1 << 63) - 1, -(1 << 63)])), "offsets"),
    ],
)
def test_corpora_that_lie(shard: Path, change: Change, says: str) -> None:
    with h5py.File(shard, "r+") as file:
        change(file)
    with pytest.raises(CorpusError, match=says) as caught:
        verify_corpus(shard)
    assert "\n" not in str(caught.value)
    with pytest.raises(CorpusError), open_corpus(shard) as opened:
        json.dumps(opened.info())
        list(opened)


def test_a_chunk_unpacks_to_no_more_than_its_size(shard: Path) -> None:
    """HDF5 itself unpacks what it finds, 512 MiB for a column of 320 bytes here."""
    with h5py.File(shard, "r+") as file:
        del file["samples/cycles"]
        found = file.create_dataset("samples/cycles", (40,), "<i8", chunks=(40,), compression="gzip")
        found.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 29), 9))
    with pytest.raises(CorpusError, match="unpacks to more"):
        open_corpus(shard)


def test_texts_are_no_longer_than_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "t.h5", "w") as file:
        found = file.create_dataset("t", data=["x" * 1000] * 100, dtype=h5py.string_dtype())
        assert len(hdf5.read_texts(found, 100_000)) == 100
        with pytest.raises(hdf5.Unfit, match="more text than the file"):
            hdf5.read_texts(found, 50_000)


def test_a_large_column_of_equal_values_is_read(tmp_path: Path) -> None:
    """Packed to a thousandth by itself, as samplers may be; the columns together are not."""
    n = 1 << 21
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        same = file.create_dataset("same", data=np.zeros(n, np.uint8), chunks=(1 << 14,), compression="gzip")
        other = file.create_dataset("other", data=rng.integers(0, 1 << 40, n), chunks=(1 << 14,), compression="gzip")
        file.flush()
        assert same.size > 256 * same.id.get_storage_size()
        hdf5.check_sizes([same, other], tmp_path / "t.h5")


def set_all(name: str, value: int) -> Change:
    def change(file: h5py.File) -> None:
        file[name][...] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_all("dram_size", 1 << 33), "dram_size is 8589934592; allowed"),
        (set_all("dram_seed", -1), "dram_seed is -1; allowed"),
        (set_all("insn_address", -4096), "insn_address is -4096; allowed"),
        (set_all("uop_address", 1 << 40), "uop_address is"),
        (replaced("uops", shape=(1 << 30,), dtype="<u4"), "not in the file"),
        (replaced("trace", data=np.zeros((364, 2))), "trace is float64"),
        (replaced("cycles", data=["a"] * 13, dtype=h5py.string_dtype()), "cycles is object"),
        (lambda file: (file.__delitem__("hang"), file.create_group("hang")), "no dataset 'hang'"),
        (lambda file: file.attrs.__setitem__("accelerator", "[]"), "no JSON object"),
        (lambda file: file.attrs.__setitem__("accelerator", "[" * 50_000), "nested"),
    ],
)
def test_runs_that_lie(runs: Path, change: Change, says: str) -> None:
    with h5py.File(runs, "r+") as file:
        change(file)
    with pytest.raises(CorpusError, match=says) as caught:
        replay.replay(replay.read_runs(runs))
    assert "\n" not in str(caught.value)


def test_the_file_is_checked_again_when_samples_are_read(shard: Path) -> None:
    with open_corpus(shard) as opened:
        with h5py.File(shard, "r+") as file:
            grown(file)
        with pytest.raises(CorpusError, match=r"not in the file|claim"):
            opened[0]
