"""A compiled model as a folder, and running it: TVM's library for the host, programs and packed weights for the VTA.

Loading needs neither PyTorch nor the network. ``manifest.json`` holds every file's hash, and its own; that guards
against damage, not against malice: ``lib.so`` is native code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import platform
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import arrays
from oneshot_ml2.common.errors import ModelError, OneShotError
from oneshot_ml2.common.files import locked, present_folder, recover_folder, replace_folder, temporary
from oneshot_ml2.common.reading import parse_json, read_json, whole_number
from oneshot_ml2.common.version import __version__
from oneshot_ml2.models import hostpart, linking
from oneshot_ml2.models.folder import (
    FILES,
    HOST,
    LIBRARY,
    MANIFEST,
    PROGRAMS,
    REPORT,
    REPORT_PAGE,
    SCHEDULES,
    WEIGHTS,
    check_target,
)
from oneshot_ml2.models.host import import_tvm, quiet_stderr
from oneshot_ml2.models.hostpart import HostPart
from oneshot_ml2.models.ir import check_tensors
from oneshot_ml2.models.launcher import own_errors, register_model, run_on
from oneshot_ml2.models.runtime import LAYOUTS, LayerProgram, Port, programs_digest
from oneshot_ml2.vta import isa
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import PAGE, Buffer, Program, element_bytes
from oneshot_ml2.vta.work import reach

if TYPE_CHECKING:
    from oneshot_ml2.devices.base import Device

FORMAT = "oneshot-ml2 compiled model"
SCHEMA = 3
SCHEDULES_SCHEMA = 1
_LARGEST_ADDRESS = (1 << 32) - 1
# How many runs' times are kept.
_MOST_WALLS = 1000
# Of a buffer, bytes at its end that its program may leave alone.
_UNTOUCHED = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """A float32 input or output of a model; ``limit``: of an input of whole numbers from 0 on, what they are below."""

    name: str
    shape: tuple[int, ...]
    limit: int | None = None


@dataclass
class _Model:
    """What is known of a compiled model, running or stored.

    ``identity``: what the launcher knows its programs by; ``segments``: those, each of the layers of one submission, in
    one DRAM image.
    """

    name: str
    identity: str
    accelerator: Accelerator
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    segments: tuple[LayerProgram, ...]


@dataclass
class Executable(_Model):
    """A model that can run: TVM's virtual machine with the launcher's programs behind it.

    ``library``: the compiled host code; ``device``: what runs the programs, None: the functional simulator; ``walls``:
    seconds of wall time of the last runs.
    """

    library: Any = field(repr=False)
    device: Device | None = field(default=None, repr=False)
    walls: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_WALLS), repr=False)
    _machine: Any = field(default=None, repr=False)

    def run(self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """The outputs by name, float32; a single input needs no name.

        Raises:
            ModelError: inputs of other names, shapes or types, or not finite.
            DeviceError: the device fails.
        """
        if not isinstance(inputs, Mapping):
            if len(self.inputs) != 1:
                raise ModelError(f"the model takes {len(self.inputs)} inputs; give them by name")
            inputs = {self.inputs[0].name: inputs}
        arrays = check_tensors({tensor.name: (tensor.shape, tensor.limit) for tensor in self.inputs}, inputs)
        tvm = import_tvm()
        if self._machine is None:
            register_model(self.identity, self.segments, programs_digest(self.segments))
            run_on(self.identity, self.device)
            with quiet_stderr():
                self._machine = tvm.relax.VirtualMachine(self.library, tvm.cpu())
        begin = time.perf_counter()
        with own_errors(self.identity):
            result = self._machine["main"](*(tvm.runtime.tensor(arrays[tensor.name]) for tensor in self.inputs))
        self.walls.append(time.perf_counter() - begin)
        results = [result] if len(self.outputs) == 1 else list(result)
        return {tensor.name: array.numpy() for tensor, array in zip(self.outputs, results)}


# Saving ----------------------------------------------------------------------------------------
@contextlib.contextmanager
def writing(folder: str | Path) -> Iterator[Path]:
    """Keep others from writing a model to a folder, and make sure that one may be written there: its full path.

    Raises:
        ModelError: the path is a file, or a folder that holds something else, or another process is compiling to it.
        OSError: no place for it can be made.
    """
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another process is compiling a model into it; wait for it, or give another folder"
    with locked(folder, busy, ModelError):
        recover_folder(folder)
        check_target(folder)
        yield folder


def save(
    executable: Executable,
    host: HostPart,
    folder: Path,
    schedules: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    page: str,
) -> None:
    """Write a compiled model to a folder, within `writing`; an older one there is replaced in one step.

    Whoever reads the folder finds one of the two, complete, also after the writer was killed or the power went.

    Raises:
        ModelError: the folder holds something else by now; the host's code cannot be linked.
        OSError: the disk is full, or not writable.
    """
    with temporary(folder, folder=True) as (work, _):
        linking.link(executable.library, work / LIBRARY)
        _write_parts(executable.segments, work)
        (work / HOST).write_bytes(hostpart.to_bytes(host))
        content = {"schema": SCHEDULES_SCHEMA, "layers": list(schedules)}
        (work / SCHEDULES).write_text(json.dumps(content, indent=2) + "\n")
        (work / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        (work / REPORT_PAGE).write_text(page, encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "schema": SCHEMA,
            "model": executable.name,
            "identity": executable.identity,
            "accelerator": json.loads(executable.accelerator.to_json()) | {"name": executable.accelerator.name},
            "rounding": report.get("rounding", "shift"),
            "inputs": [dataclasses.asdict(tensor) for tensor in executable.inputs],
            "outputs": [dataclasses.asdict(tensor) for tensor in executable.outputs],
            "segments": [_segment_entry(segment) for segment in executable.segments],
            "machine": platform.machine(),
            "versions": versions(),
            "files": {name: _hash((work / name).read_bytes()) for name in FILES},
        }
        manifest["sha256"] = _manifest_hash(manifest)
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        check_target(folder)
        replace_folder(work, folder)


def _write_parts(segments: Sequence[LayerProgram], work: Path) -> None:
    """The programs, and the constants of their DRAM, each place's once."""
    arrays: dict[str, NDArray[Any]] = {}
    weights: dict[str, NDArray[Any]] = {}
    written: set[int] = set()
    for number, segment in enumerate(segments):
        arrays |= _program_arrays(number, segment.program)
        for name, content in segment.constants.items():
            address = segment.program.buffer(name).address
            if address not in written:
                weights[f"{number}.{name}"] = content
            written.add(address)
    _write_arrays(work / PROGRAMS, arrays, compress=True)
    _write_arrays(work / WEIGHTS, weights, compress=False)


def _segment_entry(segment: LayerProgram) -> dict[str, Any]:
    program = segment.program
    return {
        "name": segment.name,
        "inputs": [dataclasses.asdict(port) for port in segment.inputs],
        "outputs": [dataclasses.asdict(port) for port in segment.outputs],
        "insn_address": program.insn_address,
        "uop_address": program.uop_address,
        "buffers": [dataclasses.astuple(buffer) for buffer in program.buffers],
    }


def versions() -> dict[str, str]:
    """Of what made a compiled model."""
    tvm = import_tvm()
    import tvm_ffi

    return {
        "oneshot_ml2": __version__,
        "tvm": str(tvm.__version__),
        "tvm_ffi": str(tvm_ffi.__version__),
        "numpy": np.__version__,
    }


def _program_arrays(number: int, program: Program) -> dict[str, NDArray[Any]]:
    chip = program.accelerator
    return {f"{number}.insns": isa.encode(program.insns, chip), f"{number}.uops": isa.encode_uops(program.uops, chip)}


def _write_arrays(path: Path, named: Mapping[str, NDArray[Any]], compress: bool) -> None:
    with path.open("wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **named)  # type: ignore[arg-type]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return _hash(json.dumps(content, sort_keys=True).encode())


# Loading ---------------------------------------------------------------------------------------
@dataclass
class Stored(_Model):
    """A compiled model as its folder holds it, checked; nothing of it is native code yet.

    ``manifest``: the folder's; ``report``: what ``report.json`` holds; ``library``: the bytes of the host's code;
    ``host``: those of its steps, see `hostpart.from_bytes`.
    """

    manifest: Mapping[str, Any] = field(repr=False)
    report: Mapping[str, Any] = field(repr=False)
    library: bytes = field(repr=False)
    host: bytes = field(repr=False)


def load(folder: str | Path, accelerator: Accelerator | None = None) -> Executable:
    """A compiled model from its folder, after checking every file.

    Args:
        accelerator: refuse a model that is compiled for another one.

    Raises:
        ModelError: no compiled model, damaged, of another version, machine or accelerator; says which. Or its code
            cannot be loaded.
        ModuleNotFoundError: tvm is not installed.
    """
    folder = Path(folder)
    stored = read(folder, accelerator)
    import_tvm()
    _check_versions(folder, stored.manifest)
    library = _load_library(stored.library, folder / LIBRARY)
    return Executable(
        stored.name, stored.identity, stored.accelerator, stored.inputs, stored.outputs, stored.segments, library
    )


def _load_library(content: bytes, origin: Path) -> Any:
    """The host's code, of just these bytes: from a file of its own that only this user can change.

    Under the name that it has in its folder the system would give what is already loaded by that name, and what the
    file holds may have changed since it was checked.

    Raises:
        ModelError: it cannot be written or loaded.
    """
    tvm = import_tvm()
    place = Path("TMPDIR")
    advice = "set TMPDIR to a folder that has room, and from which code may be loaded"
    try:
        place = Path(tempfile.gettempdir())
        with temporary(place / "oneshot-ml2", folder=True) as (own, _):
            path = own / LIBRARY
            path.write_bytes(content)
            with quiet_stderr():
                return tvm.runtime.load_module(str(path))
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(f"the code of {origin} cannot be written to {place}: {reason}; {advice}") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(f"{origin} cannot be loaded, through {place}: {reason}; {advice}, or compile again") from error


def read(folder: str | Path, accelerator: Accelerator | None = None) -> Stored:
    """A compiled model from its folder, every file checked; nothing of it is run, and TVM is not needed.

    Args:
        accelerator: refuse a model that is compiled for another one.

    Raises:
        ModelError: no compiled model, damaged, of another version or accelerator; says which.
    """
    folder = Path(folder)
    manifest, raw = _read(folder)
    try:
        described = dict(manifest["accelerator"])
        chip = dataclasses.replace(Accelerator.from_json(described), name=str(described["name"]))
    except (KeyError, TypeError, ValueError, OneShotError) as error:
        raise ModelError(f"{folder}: its accelerator is unreadable ({error}); compile the model again") from error
    if accelerator is not None and accelerator != chip:
        raise ModelError(
            f"{folder} is compiled for the accelerator {chip.name!r}, not for {accelerator.name!r}; compile it again "
            f"with --accelerator {accelerator.name}"
        )
    try:
        segments = _segments(manifest, raw, chip)
        check_image(segments)
        inputs, outputs = (tuple(map(_tensor, manifest[key])) for key in ("inputs", "outputs"))
        name, identity = str(manifest["model"]), str(manifest["identity"])
        report = dict(parse_json(raw[REPORT], REPORT))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OneShotError) as error:
        raise ModelError(f"{folder}: {MANIFEST} does not fit its files ({error}); compile the model again") from error
    return Stored(name, identity, chip, inputs, outputs, segments, manifest, report, raw[LIBRARY], raw[HOST])


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest, and the checked contents of all files: those of one model, also while another replaces it."""
    while True:
        place = present_folder(folder)
        before = _inode(place)
        try:
            return _read_once(place, folder)
        except ModelError:
            if _inode(present_folder(folder)) == before:
                raise


def _inode(folder: Path) -> int:
    try:
        return folder.stat().st_ino
    except OSError:
        return -1


def _read_once(place: Path, folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """As `_read`; ``place``: where the folder is, ``folder``: what it is called."""
    if not place.is_dir():
        raise ModelError(f"no folder {folder}; make one with oneshot-ml2 compile MODEL -o {folder}")
    again = "compile the model again"
    if not (place / MANIFEST).exists():
        raise ModelError(f"{folder} is no compiled model: it has no {MANIFEST}")
    try:
        manifest = read_json(place / MANIFEST)
    except OneShotError as error:
        raise ModelError(f"{folder / MANIFEST} is damaged ({error}); {again}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{folder / MANIFEST} is not that of a compiled model")
    schema = manifest.get("schema")
    if schema != SCHEMA:
        age = "an older" if isinstance(schema, int) and schema < SCHEMA else "another"
        raise ModelError(f"{folder} is from {age} version (schema {schema}, this one reads {SCHEMA}); {again}")
    if manifest.get("sha256") != _manifest_hash(manifest):
        raise ModelError(f"{folder / MANIFEST} is damaged: its content does not match its hash; {again}")
    if not all(isinstance(manifest.get(key), dict) for key in ("files", "versions")):
        raise ModelError(f"{folder / MANIFEST} is damaged: it names no files or versions; {again}")
    raw = {}
    for name in FILES:
        try:
            content = (place / name).read_bytes()
        except OSError as error:
            raise ModelError(f"{folder / name} cannot be read ({error.strerror}); {again}") from error
        if _hash(content) != manifest["files"].get(name):
            raise ModelError(f"{folder / name} is damaged: it does not match its hash in {MANIFEST}; {again}")
        raw[name] = content
    return manifest, raw


def _check_versions(folder: Path, manifest: Mapping[str, Any]) -> None:
    machine = manifest.get("machine")
    if machine != platform.machine():
        raise ModelError(f"{folder} is compiled for {machine}; this machine is {platform.machine()}")
    made, here = str(manifest["versions"].get("tvm")), versions()["tvm"]
    if made.split(".")[:2] != here.split(".")[:2]:
        raise ModelError(f"{folder} is made with TVM {made}; this is {here}: compile the model again")


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    limit = entry["limit"]
    shape = tuple(whole_number(extent, "an extent", 1, 1 << 32) for extent in entry["shape"])
    return Tensor(str(entry["name"]), shape, None if limit is None else whole_number(limit, "a limit", 1))


def _segments(manifest: Mapping[str, Any], raw: Mapping[str, bytes], chip: Accelerator) -> tuple[LayerProgram, ...]:
    programs, weights = arrays.read(raw[PROGRAMS]), arrays.read(raw[WEIGHTS])
    entries = manifest["segments"]
    if not isinstance(programs, dict) or not isinstance(weights, dict) or not isinstance(entries, list):
        raise ValueError(f"{PROGRAMS} or {WEIGHTS} is no .npz file")
    constants: dict[str, dict[str, NDArray[Any]]] = {str(place): {} for place in range(len(entries))}
    for key, content in weights.items():
        number, _, name = key.partition(".")
        constants[number][name] = content
    if len(programs) != 2 * len(entries):
        raise ValueError(f"{len(programs)} arrays in {PROGRAMS} for {len(entries)} programs")
    segments = []
    for place, entry in enumerate(entries):
        program = _program(entry, programs[f"{place}.insns"], programs[f"{place}.uops"], chip)
        inputs, outputs = (tuple(_port(port, program) for port in entry[key]) for key in ("inputs", "outputs"))
        segments.append(LayerProgram(str(entry["name"]), program, inputs, outputs, constants[str(place)]))
    # What several layers read is there once, by the name that it has in the first of them.
    known = {
        (segment.program.buffer(name).address, segment.program.buffer_bytes(name)): content
        for segment in segments
        for name, content in segment.constants.items()
    }
    return tuple(_with_shared(segment, known) for segment in segments)


def _with_shared(segment: LayerProgram, known: Mapping[tuple[int, int], NDArray[Any]]) -> LayerProgram:
    """A submission with those constants, too, that are there by another name; ``known``: address and bytes -> one."""
    program = segment.program
    places = {buffer.name: (buffer.address, program.buffer_bytes(buffer.name)) for buffer in program.buffers}
    found = {name: known[place] for name, place in places.items() if place in known}
    return dataclasses.replace(segment, constants={**found, **segment.constants})


def _program(entry: Mapping[str, Any], words: NDArray[Any], uop_words: NDArray[Any], chip: Accelerator) -> Program:
    """A program of the manifest: words that are what they decode to, and addresses that instructions can have."""
    if words.dtype != np.uint64 or uop_words.dtype != np.uint32 or uop_words.ndim != 1:
        raise ValueError(f"instructions of {words.dtype}, micro-ops of {uop_words.dtype}")
    insns, uops = isa.decode(words, chip), isa.decode_uops(uop_words, chip)
    if not np.array_equal(isa.encode(insns, chip), words) or not np.array_equal(isa.encode_uops(uops, chip), uop_words):
        raise ValueError("instructions or micro-ops that do not decode")
    sizes = element_bytes(chip)
    buffers = []
    for name, memory, address, elements in entry["buffers"]:
        whole_number(memory, "a memory", 0, len(sizes) - 1)
        whole_number(address, "an address", 0, _LARGEST_ADDRESS)
        whole_number(elements, "a size", 0, (_LARGEST_ADDRESS - address) // sizes[memory])
        buffers.append(Buffer(str(name), memory, address, elements))
    if len({buffer.name for buffer in buffers}) < len(buffers):
        raise ValueError("two buffers of one name")
    insn_address, uop_address = (
        whole_number(entry[key], key, 0, _LARGEST_ADDRESS) for key in ("insn_address", "uop_address")
    )
    return Program(chip, insns, uops, insn_address, uop_address, tuple(buffers))


def _port(entry: Mapping[str, Any], program: Program) -> Port:
    shape = tuple(whole_number(extent, "an extent", 1, 1 << 32) for extent in entry["shape"])
    port = Port(str(entry["buffer"]), shape, str(entry["layout"]))
    if port.layout not in LAYOUTS or not 2 <= len(shape) <= 4:
        raise ValueError(f"layout {port.layout!r} of {len(shape)} dimensions")
    if port.packed_bytes(program.accelerator) > program.buffer_bytes(port.buffer):
        raise ValueError(f"buffer {port.buffer!r} is smaller than what it is for")
    return port


def check_image(segments: Sequence[LayerProgram]) -> None:
    """Hold the programs' places in their common DRAM image against what there is to place.

    Raises:
        ValueError: constants, micro-ops or instructions that lie on one another or do not fit their buffers; an image
            with more room than all buffers need; or an instruction that reaches beyond it.
    """
    kept, room = [], 0
    # What several layers read has one place.
    shared: dict[tuple[int, int], NDArray[Any]] = {}
    for segment in segments:
        program = segment.program
        parts = [(program.insn_address, 16 * len(program.insns)), (program.uop_address, 4 * len(program.uops))]
        for name, content in segment.constants.items():
            if content.nbytes > program.buffer_bytes(name):
                raise ValueError(f"constant {name!r} is larger than its buffer")
            place = (program.buffer(name).address, content.nbytes)
            if place not in shared or not np.array_equal(shared[place], content):
                parts.append(place)
            shared.setdefault(place, content)
        touched = reach(program.insns, program.accelerator)
        if touched > program.dram_bytes:
            raise ValueError("an instruction reaches beyond the buffers")
        sizes = [program.buffer_bytes(buffer.name) for buffer in program.buffers]
        ends = [buffer.address + size for buffer, size in zip(program.buffers, sizes)]
        if max(ends, default=0) > touched + _UNTOUCHED:
            raise ValueError("a buffer that no instruction reaches")
        room += sum(-(-size // PAGE) * PAGE for size in (*sizes, *(size for _, size in parts[:2])))
        kept += [part for part in parts if part[1]]
    kept.sort()
    if any(address + size > following for (address, size), (following, _) in itertools.pairwise(kept)):
        raise ValueError("constants, micro-ops or instructions that lie on one another")
    if max((segment.program.dram_bytes for segment in segments), default=0) > room + PAGE:
        raise ValueError("addresses far from one another")
