"""A process that gives damaged files to one reader: ``python fuzz_worker.py READER FIRST LAST SEEDS``.

Memory beyond what an undamaged file took is limited, as is the processor time of each file, whose end is the process's.
It prints a line of JSON before each file and one for each failure; a crash thus tells its file. Every file follows from
the reader's name and its number alone. SEEDS is a folder for undamaged files that take long to make.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import mutations as m
import numpy as np

from oneshot_ml2.common import resources
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.lists import read_layers

DATA = Path(__file__).parent / "data"
SECONDS = 5.0
BYTES = 1 << 30
SEED = 13
CONV = Conv2d(1, 16, 8, 8, 32, 3, 3, padding=1)


@dataclass(frozen=True)
class Reader:
    """``seed`` makes an undamaged file in a folder; ``damage`` writes a damaged one there; ``read`` reads it."""

    seed: Callable[[Path, Path], Any]
    damage: Callable[[Any, Path, m.Rng], None]
    read: Callable[[Path], None]


def _bytes_reader(
    name: str, content: Callable[[], bytes], damage: Callable[[bytes, m.Rng], bytes], read: Callable[[Path], Any]
) -> Reader:
    """Of one file of bytes."""

    def seed(folder: Path, _: Path) -> bytes:
        made = content()
        (folder / name).write_bytes(made)
        return made

    def spoil(made: bytes, folder: Path, rng: m.Rng) -> None:
        (folder / name).write_bytes(damage(made, rng))

    return Reader(seed, spoil, lambda folder: read(folder / name))


def _toml_reader(name: str, tree: Callable[[], dict[str, Any]], read: Callable[[Path], Any]) -> Reader:
    def seed(folder: Path, _: Path) -> dict[str, Any]:
        made = tree()
        (folder / name).write_text(m.toml_text(made), encoding="utf-8")
        return made

    return Reader(
        seed,
        lambda made, folder, rng: (folder / name).write_bytes(m.damaged_toml(made, rng)) and None,
        lambda folder: read(folder / name),
    )


def _quiet(function: Callable[[], Any]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        function()


# JSON and TOML ---------------------------------------------------------------------------------
def _read_accelerator(path: Path) -> None:
    chip = Accelerator.load(path)
    assert Accelerator.from_json(chip.to_json(), chip.name) == chip


def _list() -> dict[str, Any]:
    layers = [
        (f"layer{i}", layer.workload)
        for i, layer in enumerate(read_layers(resources.find("workloads", "operators.toml"))[::40])
    ]
    return {"workload": [{"name": name, "count": 1} | _plain(workload.to_dict()) for name, workload in layers]}


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, dict) else value for key, value in table.items() if value is not None
    }


def _plan_seed() -> dict[str, Any]:
    folder = resources.find("workloads", "resnet18.toml").parent.parent
    return {
        "workloads": str(folder / "workloads/resnet18.toml"),
        "accelerators": str(folder / "accelerators/outside"),
        "exclude_workloads": [],
        "space": "full",
        "split": "both",
        "seed": 2,
        "tasks": 16,
        "samples": 384,
        "samplers": {"random": 0.5, "explore": 0.5},
        "task_draw": {"prior": 0.5, "uniform": 0.5},
        "exploration": {"rounds": 4, "parents": 8, "seeded": 0.1},
    }


def _read_plan(path: Path) -> None:
    from oneshot_ml2.corpus.plan import read_plan

    read_plan(path)


def _settings_seed() -> dict[str, Any]:
    import dataclasses

    from oneshot_ml2.training.settings import Settings

    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(Settings()).items()
    }


def _read_settings(path: Path) -> None:
    from oneshot_ml2.training.settings import read_settings

    read_settings(path)


def _optima_seed() -> bytes:
    rows = [
        json.loads(line)
        for line in resources.find("optima", "resnet18.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    ]
    return b"".join(json.dumps(row | {"sample_cycles": row["sample_cycles"][:8]}).encode() + b"\n" for row in rows)


def _read_optima(path: Path) -> None:
    from oneshot_ml2.evaluation import optimum

    for row in optimum.read_optima(path).values():
        optimum._row(row)


def _tasks_seed(folder: Path, _: Path) -> bytes:
    base = folder / "base"
    (base / "sets").mkdir(parents=True)
    (base / "list.toml").write_text(m.toml_text(_list()), encoding="utf-8")
    (base / "pynq.json").write_text(Accelerator.load("pynq").to_json())
    tasks = [{"workload": f"layer{i}", "accelerator": "pynq.json"} for i in range(3)]
    content = json.dumps({"seed": 1, "workloads": "list.toml", "tasks": tasks}).encode()
    (base / "sets/set.json").write_bytes(content)
    return content


def _read_tasks(folder: Path) -> None:
    from oneshot_ml2.evaluation.optimum import read_tasks

    for task in read_tasks(folder / "base/sets/set.json"):
        task.id  # noqa: B018


def _best_seed() -> bytes:
    data = json.loads(resources.find("evaluation", "best_known.json").read_text(encoding="utf-8"))
    return json.dumps(data | {"tasks": data["tasks"][:5]}).encode()


def _read_best(path: Path) -> None:
    from oneshot_ml2.evaluation.baselines import read_best_known

    read_best_known.__wrapped__(path)


def _table_seed() -> bytes:
    data = json.loads((DATA / "autotvm_rtl_extract.json").read_text(encoding="utf-8"))
    layers = {name: layer | {"rows": layer["rows"][::25]} for name, layer in list(data["layers"].items())[:2]}
    return json.dumps(data | {"layers": layers}).encode()


def _records_seed() -> bytes:
    knobs = {"tile_b": 1, "tile_h": 7, "tile_w": 7, "tile_ci": 1, "tile_co": 16, "oc_nthread": 2, "h_nthread": 1}
    hardware = {"board": "pynq", "batch": 1, "block": 16, "log_uop": 15, "log_inp": 15, "log_wgt": 18, "log_acc": 17}
    layer = {"op": "conv2d", "batch": 1, "height": 14, "width": 14, "in_channels": 256, "out_channels": 512}
    layer |= {"kernel": [1, 1], "stride": [2, 2], "padding": [0, 0, 0, 0]}
    record = {"line": 1, "target": "board", "template": "conv2d_packed.vta", "config_index": 203, "knobs": knobs}
    record |= {"cost_s": [0.001], "hardware": hardware, "layer": layer, "suspect": []}
    return json.dumps({"records": [record, record | {"cost_s": [0.002]}]}).encode()


def _board_seed() -> bytes:
    knobs = {"tile_b": 1, "tile_h": 7, "tile_w": 7, "tile_ci": 1, "tile_co": 16, "oc_nthread": 2, "h_nthread": 1}
    layer = {
        "name": "x",
        "height": 14,
        "width": 14,
        "in_channels": 256,
        "out_channels": 512,
        "kernel": 1,
        "padding": 0,
        "stride": 2,
    }
    record = {"layer": layer, "knobs": knobs, "config_index": 203, "median_ms": 1.0, "dma_bytes": 1}
    return json.dumps({"records": [record, record]}).encode()


def _read_table(path: Path) -> None:
    from oneshot_ml2.evaluation.crosscheck import crosscheck

    json.dumps(crosscheck([path], picks=False))


# Logs ------------------------------------------------------------------------------------------
def _log_seed(folder: Path, seeds: Path) -> bytes:
    from oneshot_ml2.commands import main as commands_main

    kept = seeds / "log.jsonl"
    if not kept.exists():
        work = Path(tempfile.mkdtemp(dir=seeds))
        (work / "list.toml").write_text(
            m.toml_text({"workload": [{"name": "a"} | _plain(CONV.to_dict())]}), encoding="utf-8"
        )
        options = ["--trials", "24", "--batch", "8", "--tuner", "random", "--no-check", "--logs", str(work / "logs")]
        _quiet(lambda: commands_main.main(["refine", "--workload", str(work / "list.toml"), *options]))
        (made,) = (work / "logs").glob("*.jsonl")
        shutil.copy(made, kept)
    shutil.copy(kept, folder / "log.jsonl")
    return kept.read_bytes()


def _read_log(folder: Path) -> None:
    from oneshot_ml2.commands import history as history_command
    from oneshot_ml2.tuning.log import read_log

    read = history_command.summary(read_log(folder / "log.jsonl"))
    history_command.table(["log"], [read])
    json.dumps(read)


# HDF5 ------------------------------------------------------------------------------------------
def _corpus_seed(folder: Path, _: Path) -> bytes:
    from oneshot_ml2.corpus.format import TaskSamples
    from oneshot_ml2.corpus.write import write_corpus

    rng = np.random.default_rng(1)
    tasks = []
    for chip in ("pynq", "ultra96"):
        reason = (rng.random(40) < 0.2).astype(np.uint8) * 6
        tasks.append(
            TaskSamples(
                workload=CONV,
                accelerator=Accelerator.load(chip),
                kind="full",
                space_version=2,
                knobs=("a", "b"),
                values=np.stack([rng.permutation(40), np.arange(40)], axis=1).astype(np.int32),
                reason=reason,
                cycles=np.where(reason == 0, rng.integers(1, 1 << 40, 40), -1),
                busy=rng.integers(0, 100, (40, 3)),
                sampler=rng.integers(0, 2, 40).astype(np.uint8),
                split="train",
                provenance={"seed": 1, "device": "sim"},
            )
        )
    write_corpus(folder / "corpus.h5", tasks)
    return (folder / "corpus.h5").read_bytes()


def _damage_hdf5(name: str) -> Callable[[bytes, Path, m.Rng], None]:
    def damage(content: bytes, folder: Path, rng: m.Rng) -> None:
        (folder / name).write_bytes(content)
        m.damaged_hdf5(folder / name, rng)

    return damage


def _read_corpus(folder: Path) -> None:
    from oneshot_ml2.corpus import manage

    path = folder / "corpus.h5"
    failures = []
    for use in (lambda: manage.verify_corpus(path), lambda: _info(path)):
        try:
            use()
        except OneShotError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _info(path: Path) -> None:
    from oneshot_ml2.corpus.read import open_corpus

    with open_corpus(path) as opened:
        json.dumps(opened.info())


def _runs_seed(folder: Path, _: Path) -> bytes:
    from oneshot_ml2.evaluation import replay

    replay._TIMED_SECONDS = 1e-9
    path = folder / "runs.h5"
    with h5py.File(DATA / "rtl_pynq.h5") as file, h5py.File(path, "w") as short:
        for name, value in file.attrs.items():
            short.attrs[name] = value
        sums = np.flatnonzero(file["dram_sha256"][:] != b"")
        runs = [int(sums[0]), *(i for i in range(4) if i != sums[0])][:3]
        for name, dataset in file.items():
            if name in ("insns", "trace", "uops"):
                offset = file["uop_offset" if name == "uops" else "insn_offset"][:]
                short.create_dataset(
                    name,
                    data=np.concatenate([dataset[offset[run] : offset[run + 1]] for run in runs]),
                    compression="gzip",
                )
            elif name.endswith("_offset"):
                lengths = np.diff(dataset[:])[runs]
                short[name] = np.concatenate(([0], np.cumsum(lengths)))
            else:
                short[name] = dataset[:][runs]
    return path.read_bytes()


def _read_runs(folder: Path) -> None:
    from oneshot_ml2.evaluation import replay

    replay.replay(replay.read_runs(folder / "runs.h5"))


# Programs --------------------------------------------------------------------------------------
def _words_seed() -> bytes:
    with h5py.File(DATA / "rtl_pynq.h5") as file:
        offset = file["insn_offset"][:]
        return bytes(file["insns"][offset[4] : offset[5]].tobytes())


def _read_words(path: Path) -> None:
    from oneshot_ml2.commands import inspect as inspect_command

    parser = argparse.ArgumentParser()
    inspect_command.add_arguments(parser)
    args = parser.parse_args([str(path), "--accelerator", "pynq", "--timing", "--json"])
    _quiet(lambda: inspect_command.run(args))


# Tensors and weights ---------------------------------------------------------------------------
def _npy_seed() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    return buffer.getvalue()


def _npz_seed() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(24, dtype=np.float32).reshape(2, 3, 4), y=np.ones((3, 1), np.int8))
    return buffer.getvalue()


def _read_tensors(path: Path) -> None:
    from oneshot_ml2.models.samples import read_tensors

    read_tensors(path)


def _weights_seed(folder: Path, _: Path) -> tuple[bytes, bytes]:
    from oneshot_ml2.network.weights import find_pretrained

    path = find_pretrained("default@1")
    content, card = path.read_bytes(), path.with_suffix(".json").read_bytes()
    (folder / "w.safetensors").write_bytes(content)
    (folder / "w.json").write_bytes(card)
    return content, card


def _damage_weights(seed: tuple[bytes, bytes], folder: Path, rng: m.Rng) -> None:
    content, card = seed
    if rng.random() < 0.7:
        content = m.damaged_safetensors(content, rng)
    else:
        card = m.damaged_json(card, rng)
    (folder / "w.safetensors").write_bytes(content)
    (folder / "w.json").write_bytes(card)


def _read_weights(folder: Path) -> None:
    from oneshot_ml2.network.predictor import Predictor

    card = Predictor.load(folder / "w.safetensors").card
    assert card.get("samples", 0) + len(card.get("settings", {})) >= 0


def _checkpoint(folder: Path) -> tuple[Any, Any, Any, Path]:
    import torch

    torch.manual_seed(1)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return network, average, optimizer, folder / "checkpoint.safetensors"


def _checkpoint_seed(folder: Path, _: Path) -> bytes:
    from oneshot_ml2.training.checkpoint import save_checkpoint

    network, average, optimizer, path = _checkpoint(folder)
    save_checkpoint(path, network, average, optimizer, {"fingerprint": "f", "epoch": 1})
    return path.read_bytes()


def _read_checkpoint(folder: Path) -> None:
    from oneshot_ml2.training.checkpoint import load_checkpoint

    network, average, optimizer, path = _checkpoint(folder)
    load_checkpoint(path, network, average, optimizer, "f")


# Compiled models -------------------------------------------------------------------------------
def _model_seed(folder: Path, seeds: Path) -> dict[str, bytes]:
    from graph_models import example, small_net

    kept = seeds / "build"
    if not kept.exists():
        import torch

        from oneshot_ml2.models.compile import compile as compile_model

        made = compile_model(
            small_net(), example_inputs=(torch.zeros((1, 3, 12, 12)),), calibration=example((4, 3, 12, 12), 1)
        )
        made.save(seeds / "half")
        (seeds / "half").rename(kept)
    shutil.copytree(kept, folder / "build")
    return {path.name: path.read_bytes() for path in kept.iterdir()}


def _resigned(content: dict[str, bytes], manifest: Any) -> bytes:
    """The manifest with hashes that fit, as somebody who spoils a folder on purpose writes it."""
    from oneshot_ml2.models import executable

    files = {name: executable._hash(content[name]) for name in executable.FILES}
    if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
        manifest = manifest | {"files": manifest["files"] | files}
    text = m.json_text(manifest)
    try:
        tree = json.loads(text)
        tree["sha256"] = executable._manifest_hash(tree)
        return json.dumps(tree).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return text.encode("utf-8", "surrogatepass")


def _damage_model(seed: dict[str, bytes], folder: Path, rng: m.Rng) -> None:
    content = dict(seed)
    manifest = json.loads(seed["manifest.json"])
    how = int(rng.integers(8))
    if how <= 2:
        manifest = m.damaged_tree(manifest, rng)
    elif how == 3:
        # Of the parts that lead to memory.
        manifest["segments"] = m.damaged_tree(manifest["segments"], rng)
    elif how == 4:
        name = m.pick(rng, ["programs.npz", "weights.npz", "host.npz"])
        content[name] = m.damaged_npz(content[name], rng)
    elif how == 5:
        name = m.pick(rng, ["programs.npz", "weights.npz", "host.npz"])
        content[name] = m.damaged_arrays(content[name], rng)
    elif how == 6:
        name = m.pick(rng, ["schedules.json", "report.json"])
        content[name] = m.damaged_json(content[name], rng)
    content["manifest.json"] = _resigned(content, manifest)
    if how == 7:
        name = m.pick(rng, list(content))
        content[name] = m.damaged_bytes(content[name], rng)
    for name, data in content.items():
        (folder / "build" / name).write_bytes(data)


def _read_model(folder: Path) -> None:
    from oneshot_ml2.models import executable, hostpart

    model = executable.read(folder / "build")
    hostpart.from_bytes(model.host, "host.npz")
    size = max((segment.program.dram_bytes for segment in model.segments), default=0)
    dram = np.zeros(size, np.uint8)
    for segment in model.segments:
        segment.place(dram)


def _damage_schedules(seed: dict[str, bytes], folder: Path, rng: m.Rng) -> None:
    name = m.pick(rng, ["schedules.json", "schedules.json", "manifest.json"])
    tree = json.loads(seed[name])
    content = dict(seed)
    if name == "schedules.json":
        content[name] = m.damaged_json(seed[name], rng)
    else:
        tree["accelerator"] = m.damaged_tree(tree["accelerator"], rng)
        content[name] = m.json_text(tree).encode("utf-8", "surrogatepass")
    for file in ("schedules.json", "manifest.json"):
        (folder / "build" / file).write_bytes(content[file])


def _read_schedules(folder: Path) -> None:
    from oneshot_ml2.spaces.space import ScheduleSpace
    from oneshot_ml2.tuning.refine import read_compiled

    layers, chip, starts = read_compiled(folder / "build")
    for layer in layers:
        ScheduleSpace(layer.workload, chip, starts[layer.name].kind).index_of(starts[layer.name])


READERS: dict[str, Reader] = {
    "accelerator": _bytes_reader(
        "a.json", lambda: Accelerator.load("pynq").to_json().encode(), m.damaged_json, _read_accelerator
    ),
    "workloads": _toml_reader("w.toml", _list, read_layers),
    "plan": _toml_reader("plan.toml", _plan_seed, _read_plan),
    "settings": _toml_reader("settings.toml", _settings_seed, _read_settings),
    "optima": _bytes_reader("o.jsonl", _optima_seed, m.damaged_lines, _read_optima),
    "tasks": Reader(
        _tasks_seed,
        lambda seed, folder, rng: (folder / "base/sets/set.json").write_bytes(m.damaged_json(seed, rng)) and None,
        _read_tasks,
    ),
    "best": _bytes_reader("best.json", _best_seed, m.damaged_json, _read_best),
    "table": _bytes_reader("t.json", _table_seed, m.damaged_json, _read_table),
    "records": _bytes_reader("r.json", _records_seed, m.damaged_json, _read_table),
    "board": _bytes_reader("b.json", _board_seed, m.damaged_json, _read_table),
    "log": Reader(
        _log_seed,
        lambda seed, folder, rng: (folder / "log.jsonl").write_bytes(m.damaged_lines(seed, rng)) and None,
        _read_log,
    ),
    "corpus": Reader(_corpus_seed, _damage_hdf5("corpus.h5"), _read_corpus),
    "runs": Reader(_runs_seed, _damage_hdf5("runs.h5"), _read_runs),
    "words": _bytes_reader("p.bin", _words_seed, m.damaged_words, _read_words),
    "npy": _bytes_reader("x.npy", _npy_seed, m.damaged_npy, _read_tensors),
    "npz": _bytes_reader("x.npz", _npz_seed, m.damaged_npz, _read_tensors),
    "weights": Reader(_weights_seed, _damage_weights, _read_weights),
    "checkpoint": Reader(
        _checkpoint_seed,
        lambda seed, folder, rng: (
            (folder / "checkpoint.safetensors").write_bytes(m.damaged_safetensors(seed, rng)) and None
        ),
        _read_checkpoint,
    ),
    "model": Reader(_model_seed, _damage_model, _read_model),
    "schedules": Reader(_model_seed, _damage_schedules, _read_schedules),
}


def tried(reader: Reader, seed: Any, name: str, number: int, folder: Path) -> str | None:
    """What is wrong with how one damaged file is read; None if nothing is."""
    for attempt in range(20):
        try:
            reader.damage(seed, folder, np.random.default_rng([SEED, zlib.crc32(name.encode()), number, attempt]))
            break
        except Exception:
            # Libraries refuse to write some damages, or to add one to another.
            if attempt == 19:
                raise
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(folder)
    except OneShotError as error:
        return None if str(error).strip() else "an error without a word"
    except BaseException as error:
        where = error.__traceback__
        lines = []
        while where is not None:
            lines.append(f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}")
            where = where.tb_next
        return f"{type(error).__name__}: {str(error)[:120]} ({' '.join(lines[-4:])})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def main(name: str, first: int, last: int, seeds: Path) -> None:
    """Try the files ``first`` to ``last`` - 1 of a reader."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        seed = reader.seed(folder, seeds)
        reader.read(folder)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        for number in range(first, last):
            print(json.dumps({"at": number}), flush=True)
            why = tried(reader, seed, name, number, folder)
            if why is not None:
                print(json.dumps({"failed": number, "why": why}), flush=True)
    print(json.dumps({"done": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
