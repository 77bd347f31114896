"""Draw the evaluation sets: pairs of a workload and an accelerator, seeded, written to datasets/evaluation/*.json.

    python datasets/make_evaluation.py

``workloads``: unseen workloads on seen accelerators; ``resnet18``: its layers on seen accelerators; ``unseen``:
unseen workloads on unseen accelerators; ``operators``: unseen operators of other kinds on seen accelerators. Drawn
without looking at spaces or results.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SEED = 7
TASKS = 64
RESNET_ACCELERATORS = 4


def _names(folder: str) -> list[str]:
    return sorted(f"accelerators/{folder}/{path.name}" for path in (HERE / "accelerators" / folder).glob("*.json"))


def _pairs(rng: np.random.Generator, layers: list[str], chips: list[str]) -> list[tuple[str, str]]:
    """`TASKS` pairs: different layers, accelerators used equally often but for one."""
    chosen = [layers[i] for i in rng.permutation(len(layers))[:TASKS]]
    order = np.concatenate([rng.permutation(len(chips)) for _ in range(-(-TASKS // len(chips)))])
    return [(layer, chips[i]) for layer, i in zip(chosen, order, strict=False)]


def _unlike_training(pairs: list[tuple[str, str]], chips: list[str]) -> list[tuple[str, str]]:
    """The pairs, each with the next accelerator on which its nest is not that of a training workload.

    Channels count in blocks, so that layers of 240 and of 256 channels are one nest where a block has 32.
    """
    from oneshot_ml2.accelerator import Accelerator
    from oneshot_ml2.vta.nest import nest
    from oneshot_ml2.workload import read_layers, read_workloads

    trained = [work for name in ("train", "operators") for work in read_workloads(HERE / f"workloads/{name}.toml")]
    layers = {layer.name: layer.workload for layer in read_layers(HERE / "workloads/operators_heldout.toml")}
    loaded = {path: Accelerator.load(HERE / path) for path in chips}

    def is_new(layer: str, path: str) -> bool:
        own = nest(layers[layer], loaded[path])
        return not any(np.array_equal(own, nest(work, loaded[path])) for work in trained)

    found = []
    for layer, path in pairs:
        start = chips.index(path)
        found.append((layer, next(chip for chip in chips[start:] + chips[:start] if is_new(layer, chip))))
    return found


def main() -> None:
    from oneshot_ml2.workload import read_layers

    rng = np.random.default_rng(SEED)
    heldout = [layer.name for layer in read_layers(HERE / "workloads/heldout.toml")]
    operators = [layer.name for layer in read_layers(HERE / "workloads/operators_heldout.toml")]
    resnet = [layer.name for layer in read_layers(HERE / "workloads/resnet18.toml")]
    seen, unseen = _names("train"), _names("heldout")
    chips = ["accelerators/train/pynq.json"]
    others = [chip for chip in seen if chip not in chips]
    chips += [others[i] for i in rng.permutation(len(others))[: RESNET_ACCELERATORS - 1]]
    sets = {
        "workloads": ("workloads/heldout.toml", _pairs(rng, heldout, seen)),
        "resnet18": ("workloads/resnet18.toml", [(layer, chip) for chip in chips for layer in resnet]),
        "unseen": ("workloads/heldout.toml", _pairs(rng, heldout, unseen)),
        "operators": ("workloads/operators_heldout.toml", _unlike_training(_pairs(rng, operators, seen), seen)),
    }
    folder = HERE / "evaluation"
    folder.mkdir(exist_ok=True)
    for name, (workloads, pairs) in sets.items():
        assert len(pairs) >= 60 and len(set(pairs)) == len(pairs)
        tasks = [{"workload": layer, "accelerator": chip} for layer, chip in pairs]
        lines = ",\n".join("  " + json.dumps(task) for task in tasks)
        head = f'{{"seed": {SEED}, "workloads": "{workloads}", "tasks": [\n'
        (folder / f"{name}.json").write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
