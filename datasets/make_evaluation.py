"""Draw the evaluation sets: pairs of a workload and an accelerator, seeded, written to datasets/evaluation/*.json.

    python datasets/make_evaluation.py

``workloads``: unseen workloads on seen accelerators; ``resnet18``: its layers on seen accelerators; ``unseen``:
unseen workloads on unseen accelerators; ``operators``: unseen operators of other kinds on seen accelerators;
``networks``: layers of networks that are never trained on, on pynq and ultra96 (the same VTA as zcu104); ``outside``:
unseen workloads and operators on accelerators outside of the trained ranges; ``resnet18_hls``: ResNet-18's layers on
the boards of the HLS design, presets (zcu104-hls is the machine that ultra96-hls is); ``unseen_hls``: unseen workloads
and operators on unseen accelerators of that design. Drawn without looking at spaces or results.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.nest import make_nest
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.lists import Layer, read_layers, read_workloads

HERE = Path(__file__).parent
SEED = 7
TASKS = 64
RESNET_ACCELERATORS = 4
HLS_BOARDS = ("pynq-hls", "ultra96-hls", "axu5evb-hls")
# Networks that are never trained on, and layers drawn of each.
NETWORKS = ("resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2", "vgg16", "bert_base")
LAYERS_EACH = 11
NETWORK_LISTS = ["workloads/resnet18.toml", "workloads/excluded.toml", "workloads/operators_excluded.toml"]
HELD_OUT_LISTS = ["workloads/heldout.toml", "workloads/operators_heldout.toml"]


def _names(folder: str) -> list[str]:
    return sorted(f"accelerators/{folder}/{path.name}" for path in (HERE / "accelerators" / folder).glob("*.json"))


def _pairs(rng: np.random.Generator, layers: list[str], chips: list[str]) -> list[tuple[str, str]]:
    """`TASKS` pairs: different layers, accelerators used equally often but for one."""
    chosen = [layers[i] for i in rng.permutation(len(layers))[:TASKS]]
    order = np.concatenate([rng.permutation(len(chips)) for _ in range(-(-TASKS // len(chips)))])
    return [(layer, chips[i]) for layer, i in zip(chosen, order, strict=False)]


def is_new(workload: Workload, chip: Accelerator, lists: Sequence[str] = ("train", "operators")) -> bool:
    """Whether a workload's nest on an accelerator is that of no training workload of some lists.

    Channels count in blocks, so that layers of 240 and of 256 channels are one nest where a block has 32.
    """
    own = make_nest(workload, chip)
    trained = (work for name in lists for work in _list(f"workloads/{name}.toml"))
    return not any(own == make_nest(work, chip) for work in trained)


@functools.cache
def _list(path: str) -> tuple[Workload, ...]:
    return tuple(read_workloads(HERE / path))


def _unlike_training(pairs: list[tuple[str, str]], chips: list[str]) -> list[tuple[str, str]]:
    """The pairs, each with the next accelerator on which its nest is not that of a training workload."""
    layers = {layer.name: layer.workload for layer in read_layers(HERE / "workloads/operators_heldout.toml")}
    loaded = {path: Accelerator.load(HERE / path) for path in chips}
    found = []
    for layer, path in pairs:
        start = chips.index(path)
        new = (chip for chip in chips[start:] + chips[:start] if is_new(layers[layer], loaded[chip]))
        found.append((layer, next(new)))
    return found


def _full(layer: Layer) -> bool:
    """Whether a layer of excluded.toml is a depthwise one, which stands there as a full convolution."""
    work = layer.workload
    depthwise = layer.name.startswith("mobilenet") and isinstance(work, Conv2d)
    return depthwise and work.r > 1 and work.c > 3


def _networks(rng: np.random.Generator) -> list[tuple[str, str]]:
    """`LAYERS_EACH` layers of each of `NETWORKS`, no workload twice, every second on the other accelerator."""
    lists = {path: read_layers(HERE / path) for path in NETWORK_LISTS}
    chips = ("accelerators/train/pynq.json", "accelerators/train/ultra96.json")
    loaded = [Accelerator.load(HERE / path) for path in chips]
    taken: set[Workload] = set()
    pairs: list[tuple[str, str]] = []
    for network in NETWORKS:
        pool = []
        for path, layers in lists.items():
            # ResNet-18's own list has how often each layer occurs.
            own = path.endswith("resnet18.toml")
            for layer in layers:
                prefix = "resnet18" if own else layer.name.partition(".")[0]
                again = path.endswith("/excluded.toml") and (network == "resnet18" or _full(layer))
                if prefix == network and not again:
                    pool.append((f"{Path(path).stem}:{layer.name}", layer.workload))
        drawn = 0
        for i in rng.permutation(len(pool)):
            name, workload = pool[i]
            turn = len(pairs) % 2
            if drawn < LAYERS_EACH and workload not in taken and is_new(workload, loaded[turn]):
                taken.add(workload)
                pairs.append((name, chips[turn]))
                drawn += 1
    return pairs


def main() -> None:
    rng = np.random.default_rng(SEED)
    heldout = [layer.name for layer in read_layers(HERE / "workloads/heldout.toml")]
    operators = [layer.name for layer in read_layers(HERE / "workloads/operators_heldout.toml")]
    resnet = [layer.name for layer in read_layers(HERE / "workloads/resnet18.toml")]
    seen, unseen = _names("train"), _names("heldout")
    chips = ["accelerators/train/pynq.json"]
    others = [chip for chip in seen if chip not in chips]
    chips += [others[i] for i in rng.permutation(len(others))[: RESNET_ACCELERATORS - 1]]
    sets: dict[str, tuple[str | list[str], list[tuple[str, str]]]] = {
        "workloads": ("workloads/heldout.toml", _pairs(rng, heldout, seen)),
        "resnet18": ("workloads/resnet18.toml", [(layer, chip) for chip in chips for layer in resnet]),
        "unseen": ("workloads/heldout.toml", _pairs(rng, heldout, unseen)),
        "operators": ("workloads/operators_heldout.toml", _unlike_training(_pairs(rng, operators, seen), seen)),
        "networks": (NETWORK_LISTS, _networks(rng)),
    }
    both = [f"heldout:{name}" for name in heldout] + [f"operators_heldout:{name}" for name in operators]
    sets["outside"] = (HELD_OUT_LISTS, _pairs(rng, both, _names("outside")))
    sets["unseen_hls"] = (HELD_OUT_LISTS, _pairs(rng, both, _names("heldout-hls")))
    sets["resnet18_hls"] = ("workloads/resnet18.toml", [(layer, chip) for chip in HLS_BOARDS for layer in resnet])
    folder = HERE / "evaluation"
    folder.mkdir(exist_ok=True)
    for name, (workloads, pairs) in sets.items():
        assert len(pairs) >= (48 if name == "resnet18_hls" else 60) and len(set(pairs)) == len(pairs)
        tasks = [{"workload": layer, "accelerator": chip} for layer, chip in pairs]
        lines = ",\n".join("  " + json.dumps(task) for task in tasks)
        head = f'{{"seed": {SEED}, "workloads": {json.dumps(workloads)}, "tasks": [\n'
        (folder / f"{name}.json").write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
