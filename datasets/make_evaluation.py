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
        "operators": ("workloads/operators_heldout.toml", _pairs(rng, operators, seen)),
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
