from __future__ import annotations

import json
from pathlib import Path

import networks
import numpy as np
import pytest

from oneshot_ml2.common import resources
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.evaluation import baselines
from oneshot_ml2.evaluation.evaluate import SETS
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.full.totals import column
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

SPACE = ScheduleSpace(networks.SMALL, Accelerator.load("pynq"))


@pytest.fixture(scope="module")
def form() -> baselines.ClosedForm:
    return baselines.ClosedForm.of(SPACE)


@pytest.fixture(scope="module")
def legal(form: baselines.ClosedForm) -> np.ndarray:
    return np.flatnonzero(SPACE.validity(form.indices) == Reason.VALID)


@pytest.mark.parametrize(
    ("choose", "key"),
    [
        (baselines.fewest_bytes, lambda t: column(t, "inp_beats") + column(t, "wgt_beats")),
        (baselines.roofline, lambda t: np.maximum(column(t, "compute"), column(t, "read_beats"))),
        (baselines.closed_form, lambda t: column(t, "estimate")),
    ],
)
def test_each_takes_the_least_of_its_key_among_the_legal(form, legal, choose, key):
    index = choose(form)
    position = int(np.flatnonzero(form.indices == index)[0])
    assert position in legal
    assert key(form.given.summary)[position] == key(form.given.summary)[legal].min()


def test_the_bytes_are_those_that_the_programs_move(form, legal):
    from oneshot_ml2.vta import simulator

    few = legal[np.linspace(0, len(legal) - 1, 40).astype(int)]
    beats = sum(column(form.given.summary[few], name) for name in ("inp_beats", "wgt_beats"))
    moved = []
    for index in form.indices[few]:
        traffic = simulator.traffic(SPACE.lower(int(index)).insns, SPACE.accelerator)
        moved.append(traffic["inp_load_nbytes"] + traffic["wgt_load_nbytes"])
    assert np.array_equal(beats * SPACE.accelerator.bus_bits // 8, moved)


def test_simulation_keeps_to_its_time(form, legal):
    index, timed = baselines.simulated(SPACE, 0.0)
    assert timed == 0
    bound = column(form.given.summary, "bound")
    assert bound[form.indices == index][0] == bound[legal].min()
    baselines.simulated(SPACE, 0.5)  # compiles
    index, timed = baselines.simulated(SPACE, 2.0)
    assert index in form.indices[legal]
    assert 0 < timed <= len(form.indices)


def test_the_nearest_task_s_best_is_moved_here(tmp_path: Path):
    folder = networks.small_corpus(tmp_path / "corpus", samples=40)
    known = baselines.gather([str(folder)])
    path = tmp_path / "best.json"
    baselines.write_best_known(known, path)
    again = baselines.read_best_known(path)
    assert np.array_equal(again.values, known.values)
    assert np.allclose(again.tasks, known.tasks, atol=1e-4)
    with open_corpus(folder) as corpus:
        for task in corpus:
            if not task.valid.any():
                continue
            # Of a task of the corpus itself, its own best.
            space = task.space()
            cycles = space.measure(np.array([again.transplanted(space)])).cycles[0]
            assert cycles == task.cycles[task.valid].min()
    other = ScheduleSpace(Conv2d(1, 80, 11, 13, 96, 3, 3, padding=1), Accelerator.load("b32"))
    index = again.transplanted(other)
    assert other.validity(np.array([index]))[0] == Reason.VALID


def test_the_shipped_table_holds_no_task_of_an_evaluation_set():
    from oneshot_ml2.evaluation.optimum import read_tasks

    known = baselines.read_best_known(resources.find("evaluation", "best_known.json"))
    assert len(known.tasks) > 1000
    there = {tuple(np.round(row, 2)) for row in known.tasks}
    for name in SETS:
        for task in read_tasks(resources.find("evaluation", f"{name}.json")):
            assert tuple(np.round(full_features.task_features(task.space()), 2)) not in there


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"schema": 1, "features": [], "knobs": [], "tasks": []})])
def test_foreign_tables_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "best.json"
    path.write_text(text)
    with pytest.raises(OneShotError, match=r"not a table of best schedules .*corpus best"):
        baselines.read_best_known(path)


def test_the_command_writes_the_table(tmp_path: Path, run_command):
    folder = networks.small_corpus(tmp_path / "corpus", samples=20)
    code, out, _ = run_command("corpus", "best", folder, "--out", tmp_path / "best.json", "--json")
    assert code == 0
    assert json.loads(out)["tasks"] == len(baselines.read_best_known(tmp_path / "best.json").tasks)
