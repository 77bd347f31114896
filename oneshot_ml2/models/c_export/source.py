"""The text of an exported model: ``model.c``, its header, the Makefile, and embedded data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from oneshot_ml2.devices.build import BACKENDS, configuration
from oneshot_ml2.models.c_export.operators import EMITTERS, Call, Lines, form, real
from oneshot_ml2.models.c_export.tensors import Placed, Tensors
from oneshot_ml2.models.executable import Stored, Tensor
from oneshot_ml2.models.hostpart import HostPart, Launch
from oneshot_ml2.models.ops.registry import op_of
from oneshot_ml2.models.runtime import ACTIVATION, LayerProgram, Port

MODEL_SOURCES = (
    "model.c", "main.c", "om_runtime.c", "om_tensor.c", "om_elementwise.c", "om_moves.c", "om_reductions.c",
    "om_windows.c",
)  # fmt: skip
EMBEDDED = "model_data.c"
# Words of embedded data in a line.
_WORDS = 5


@dataclass(frozen=True)
class Project:
    """All that is written of a model but its data.

    ``calls``: the steps; ``numbers``: value or constant -> its tensor; ``staging``: bytes of the largest packed port.
    """

    calls: Lines
    tensors: Tensors
    numbers: dict[str, int]
    placed: Placed
    staging: int


def generate(stored: Stored, host: HostPart) -> Project:
    """The steps as calls, and the tensors that they are about.

    Raises:
        ModelError: a tensor is too large for C.
    """
    tensors = Tensors()
    calls: Lines = []
    numbers = {name: tensors.value(host.values[name].shape, 4) for name in host.inputs}
    for index, step in enumerate(host.steps):
        tensors.step = index
        for name in step.inputs:
            if name not in numbers:
                numbers[name] = tensors.constant(np.asarray(host.constants[name], dtype=np.float32))
            tensors.use(numbers[name])
        if isinstance(step, Launch):
            for name in step.outputs:
                numbers[name] = tensors.value(host.values[name].shape, 1)
            calls.append(f"if (om_submit({step.number}) != 0) return 1;")
            continue
        value = host.values[step.output]
        args = tuple(numbers[name] for name in step.inputs)
        if op_of(step.op).name == "reshape":
            numbers[step.output] = tensors.view(args[0], value.shape)
            continue
        item = tensors.tensors[args[0]].item if op_of(step.op).moves_data else (1 if value.dtype == "int8" else 4)
        numbers[step.output] = tensors.value(value.shape, item)
        calls += EMITTERS[form(step)](Call(step, tensors, numbers[step.output], args))
    tensors.step = len(host.steps)
    for name in host.outputs:
        if name not in numbers:
            numbers[name] = tensors.constant(np.asarray(host.constants[name], dtype=np.float32))
        tensors.use(numbers[name])
    staging = max(
        (port.packed_bytes(stored.accelerator) for one in stored.segments for port in (*one.inputs, *one.outputs)),
        default=0,
    )
    return Project(calls, tensors, numbers, tensors.placed(), max(staging, 4096))


# model.c ---------------------------------------------------------------------------------------
def text(name: str) -> str:
    """A string literal of C: printable ASCII, the rest as underscores."""
    kept = "".join(letter if letter.isascii() and letter.isprintable() else "_" for letter in name)
    return '"' + kept.replace("\\", "\\\\").replace('"', '\\"').replace("?", "\\?") + '"'


def comment(name: str) -> str:
    """A name within a comment of C."""
    return text(name)[1:-1].replace("*/", "*_/").replace("/*", "/_*")


def _table(kind: str, name: str, rows: Iterable[str]) -> list[str]:
    """A constant array; C has none without elements."""
    return [f"static const {kind} {name}[] = {{", *(f"    {row}," for row in list(rows) or ["{0}"]), "};", ""]


def _values(named: Sequence[Tensor], names: Sequence[str], project: Project) -> list[str]:
    return [
        f"{{{text(tensor.name)}, {project.numbers[name]}, {real(tensor.limit or 0)}}}"
        for tensor, name in zip(named, names, strict=True)
    ]


def _port(port: Port, number: int, segment: LayerProgram) -> str:
    chip = segment.program.accelerator
    rows = chip.batch if port.layout == ACTIVATION else chip.block
    return f"{{{number}, {segment.program.buffer(port.buffer).address}u, {rows}, {chip.block}}}"


def _submissions(
    stored: Stored, host: HostPart, project: Project, results: Sequence[int], cycles: Sequence[int]
) -> tuple[list[str], list[str]]:
    """The rows of the ports and of the submissions."""
    ports: list[str] = []
    rows: list[str] = []
    launches = [step for step in host.steps if isinstance(step, Launch)]
    for launch, segment, result, count in zip(launches, stored.segments, results, cycles, strict=True):
        first = len(ports)
        for port, name in zip((*segment.inputs, *segment.outputs), (*launch.inputs, *launch.outputs), strict=True):
            # A launch may see the same bytes in another shape than the host.
            number = project.tensors.view(project.numbers[name], port.shape)
            ports.append(_port(port, number, segment))
        milliseconds = count / (stored.accelerator.clock_mhz * 1e3)
        rows.append(
            f"{{{text(segment.name)}, {segment.program.insn_address}u, {len(segment.program.insns)}u, "
            f"{first}, {len(launch.inputs)}, {first + len(launch.inputs)}, {len(launch.outputs)}, "
            f"{milliseconds!r}, {result}u}}"
        )
    return ports, rows


@dataclass(frozen=True)
class Data:
    """What `model_c` says of the data: bytes of the image and of the golden run, their checksum with the constants."""

    image: int
    golden: int
    checksum: int
    dram: int
    embedded: bool
    results: Sequence[int]
    tolerance: float
    cycles: Sequence[int]


def model_c(stored: Stored, host: HostPart, project: Project, data: Data) -> str:
    """The tables of a model, and its steps."""
    ports, submissions = _submissions(stored, host, project, data.results, data.cycles)
    placed, tensors = project.tensors.placed(), project.tensors.tensors
    shapes = (f"{{NULL, {one.item}, {len(one.shape)}, {{{', '.join(map(str, one.shape)) or '0'}}}}}" for one in tensors)
    lines = [
        f"/* {comment(stored.name)} for {comment(stored.accelerator.name)}. Written by oneshot-ml2 export. */",
        '#include "model.h"',
        "",
        "#include <math.h>",
        "",
        '#include "om_ops.h"',
        "",
        *([f"extern const uint64_t MODEL_DATA[{embedded_words(placed, data)}];", ""] if data.embedded else []),
        "static struct om_tensor t[] = {",
        *(f"    {row}," for row in shapes),
        "};",
        "",
        *_table("uint64_t", "PLACES", (f"{place}u" for place in placed.places)),
        *_table("uint8_t", "CONSTANT", (str(int(constant)) for constant in placed.constant)),
        *_table("struct om_value", "INPUTS", _values(stored.inputs, host.inputs, project)),
        *_table("struct om_value", "OUTPUTS", _values(stored.outputs, host.outputs, project)),
        *_table("struct om_port", "PORTS", ports),
        *_table("struct om_submission", "SUBMISSIONS", submissions),
        "static int run(void) {",
        *(f"  {call}" for call in project.calls),
        "  return 0;",
        "}",
        "",
        "const struct om_model MODEL = {",
        *(f"    .{name} = {value}," for name, value in _members(stored, host, project, placed, data)),
        "};",
        "",
    ]
    return "\n".join(lines)


def _members(
    stored: Stored, host: HostPart, project: Project, placed: Placed, data: Data
) -> Iterable[tuple[str, object]]:
    """The fields of ``struct om_model``."""
    return (
        ("name", text(stored.name)),
        ("accelerator", text(stored.accelerator.name)),
        ("configuration", text(configuration(stored.accelerator))),
        ("tensors", "t"),
        ("places", "PLACES"),
        ("constant", "CONSTANT"),
        ("tensor_count", len(project.tensors.tensors)),
        ("inputs", "INPUTS"),
        ("outputs", "OUTPUTS"),
        ("input_count", len(host.inputs)),
        ("output_count", len(host.outputs)),
        ("ports", "PORTS"),
        ("submissions", "SUBMISSIONS"),
        ("submission_count", len(stored.segments)),
        ("arena", f"{placed.arena}u"),
        ("staging", f"{project.staging}u"),
        ("dram", f"{data.dram}u"),
        ("constants", f"{len(placed.constants)}u"),
        ("image", f"{data.image}u"),
        ("golden", f"{data.golden}u"),
        ("checksum", f"{data.checksum}u"),
        ("embedded", "MODEL_DATA" if data.embedded else "NULL"),
        ("tolerance", real(data.tolerance)),
        ("run", "run"),
    )


def model_h(stored: Stored, project: Project, dram: int) -> str:
    """Sizes and shapes as macros, and the model."""

    def shape(kind: str, number: int, tensor: Tensor) -> str:
        extents = ", ".join(map(str, tensor.shape)) or "1"
        return f"#define MODEL_{kind}_{number}_SHAPE {{{extents}}} /* {comment(tensor.name)} */"

    def floats(tensors: Sequence[Tensor]) -> int:
        return sum(math.prod(tensor.shape) for tensor in tensors)

    return "\n".join(
        [
            f"/* {comment(stored.name)} for {comment(stored.accelerator.name)}. Written by oneshot-ml2 export. */",
            "#ifndef MODEL_H",
            "#define MODEL_H",
            "",
            '#include "om_runtime.h"',
            "",
            "/* What the driver has to be built for. */",
            f"#define MODEL_CONFIGURATION {text(configuration(stored.accelerator))}",
            "/* Bytes: of the host's arena; of its constants; of the VTA's memory. */",
            f"#define MODEL_ARENA_BYTES {project.placed.arena}u",
            f"#define MODEL_CONSTANT_BYTES {len(project.placed.constants)}u",
            f"#define MODEL_DRAM_BYTES {dram}u",
            f"#define MODEL_INPUTS {len(stored.inputs)}",
            f"#define MODEL_OUTPUTS {len(stored.outputs)}",
            "/* Elements of all of them. */",
            f"#define MODEL_INPUT_FLOATS {floats(stored.inputs)}",
            f"#define MODEL_OUTPUT_FLOATS {floats(stored.outputs)}",
            *(shape("INPUT", number, tensor) for number, tensor in enumerate(stored.inputs)),
            *(shape("OUTPUT", number, tensor) for number, tensor in enumerate(stored.outputs)),
            "",
            "/* For om_open. */",
            "extern const struct om_model MODEL;",
            "",
            "#endif",
            "",
        ]
    )


def embedded_words(placed: Placed, data: Data) -> int:
    """Words of the embedded data: a header and the parts."""
    return -(-(32 + len(placed.constants) + data.image + data.golden) // 8)


def embedded_c(content: bytes) -> str:
    """The data as an array of words."""
    words = np.frombuffer(content + bytes(-len(content) % 8), "<u8")
    rows = (
        "  " + " ".join(f"0x{word:x}," for word in words[at : at + _WORDS].tolist())
        for at in range(0, len(words), _WORDS)
    )
    head = "/* The content of model.bin, little-endian words. Written by oneshot-ml2 export. */"
    declared = f"const uint64_t MODEL_DATA[{len(words)}]"
    return "\n".join([head, "#include <stdint.h>", "", f"extern {declared};", f"{declared} = {{", *rows, "};", ""])


# The Makefile ----------------------------------------------------------------------------------
def makefile(name: str, embedded: bool) -> str:
    """Builds ``model`` for a driver of ours, or of a library that is there."""
    sources = " ".join((*MODEL_SOURCES, *((EMBEDDED,) if embedded else ())))
    kinds: list[str] = []
    for number, (backend, kind) in enumerate(BACKENDS.items()):
        begin = "else " if number else ""
        kinds += [f"{begin}ifeq ($(DRIVER),{backend})", f"DRIVER_SOURCES := {' '.join(kind.sources)}"]
        if kind.libraries:
            kinds.append(f"DRIVER_LIBRARIES := {' '.join(kind.libraries)}")
    return _MAKEFILE.format(name=comment(name), sources=sources, kinds="\n".join(kinds))


_MAKEFILE = """\
# {name}, exported by oneshot-ml2.
#
#   make                        with the simulator behind VTA's driver interface
#   make DRIVER=udmabuf         for a board: memory from u-dma-buf; or xrt
#   make DRIVER=/path/libvta.so with a library that has VTA's driver interface
#   make COHERENT=1             without flushing caches: the VTA's port is coherent
#   make CC=aarch64-linux-gnu-gcc CFLAGS=-O2 LDFLAGS=-static
CC ?= cc
CFLAGS ?= -O2
DRIVER ?= sim
# Products and sums are rounded one by one, on every machine.
FLAGS := -std=c99 -pedantic -Wall -Wextra -ffp-contract=off

{kinds}
else
DRIVER_LIBRARIES := $(DRIVER) -Wl,-rpath,$(abspath $(dir $(DRIVER)))
# A library that oneshot-ml2 built says what it is for, and why a run failed.
ifeq ($(shell grep -c VTAConfiguration $(DRIVER) 2>/dev/null || true),0)
FLAGS += -DOM_FOREIGN_DRIVER
endif
endif
ifdef COHERENT
FLAGS += -DOM_COHERENT
endif

SOURCES := {sources} $(DRIVER_SOURCES)
COMMAND = $(CC) $(FLAGS) $(CFLAGS) -o model $(SOURCES) $(DRIVER_LIBRARIES) $(LDFLAGS) -lm

model: $(SOURCES) $(wildcard *.h) .made-with
\t$(COMMAND)

# Another compiler, option or driver makes the program anew.
.made-with: FORCE
\t@echo '$(COMMAND)' | cmp -s - $@ || echo '$(COMMAND)' > $@

size: model
\tsize model

clean:
\trm -f model .made-with

FORCE:
.PHONY: FORCE clean size
"""
