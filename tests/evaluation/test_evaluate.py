from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import networks
import numpy as np
import pytest

from oneshot_ml2.commands import evaluate as evaluate_command
from oneshot_ml2.common import metrics, resources
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.evaluation import baselines, evaluate, optimum
from oneshot_ml2.evaluation.optimum import Optimum, Task
from oneshot_ml2.network import picking
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.lists import Layer

TASK = Task(Layer("small", networks.SMALL, 3), Accelerator.load("pynq"), "accelerators/pynq.json")


@pytest.fixture(scope="module")
def known() -> Optimum:
    return optimum.find_optimum(TASK, limit=1e9)


@pytest.fixture(scope="module")
def transplants() -> baselines.BestKnown:
    return baselines.read_best_known(resources.find("evaluation", "best_known.json"))


def test_a_task_s_figures_are_those_of_its_pick(known, transplants):
    network = picking.predictor_of(None)
    row, truth, p_valid = evaluate.evaluate_task(TASK, known, network, transplants)
    picked = picking.pick(TASK.workload, TASK.accelerator)
    cycles = int(picked.space.measure(np.array([picked.index])).cycles[0])
    assert row.cycles == cycles
    assert row.quality == known.best / cycles
    assert row.quality <= row.top5 <= row.top10 <= 1
    assert set(row.baselines) == set(evaluate.BASELINES)
    assert all(0 <= quality <= 1 for quality in row.baselines.values())
    assert row.baselines["random"] < row.quality
    assert np.array_equal(truth, np.array(known.sample_cycles) > 0)
    assert p_valid.shape == truth.shape
    assert row.first_legal_lowers
    valid = np.array(known.sample_cycles)[truth]
    assert (row.order.candidates, row.order.best) == (len(valid), valid.min())
    assert row.order.best <= row.order.top5 <= row.order.top1
    assert row.peers == {}
    assert json.loads(json.dumps(dataclasses.asdict(row))) == dataclasses.asdict(row)


def test_a_poor_network_shows(known, transplants):
    good, _, _ = evaluate.evaluate_task(TASK, known, picking.predictor_of(None), transplants)
    poor, _, _ = evaluate.evaluate_task(TASK, known, networks.random_network(trusting=30.0), transplants)
    assert poor.quality < good.quality
    assert poor.order.tau < good.order.tau
    none, _, _ = evaluate.evaluate_task(TASK, known, networks.random_network(trusting=-1e3), transplants)
    assert none.source == "fallback" and not none.first_lowers


def test_a_table_that_is_beaten_is_refused(known, transplants):
    wrong = dataclasses.replace(known, best=known.best * 2)
    with pytest.raises(OneShotError, match="beats T"):
        evaluate.evaluate_task(TASK, wrong, picking.predictor_of(None), transplants)


def test_sums_over_tasks(known, transplants):
    row, truth, p_valid = evaluate.evaluate_task(TASK, known, picking.predictor_of(None), transplants)
    slow = dataclasses.replace(row, quality=row.quality / 2, cycles=row.cycles * 2, count=1)
    total = evaluate.summarise([row, slow], [truth, truth], [p_valid, p_valid])
    assert total["pick"]["geomean"] == pytest.approx(row.quality / 2**0.5)
    assert total["pick"]["worst"] == slow.quality
    assert total["network_quality"] == pytest.approx(4 * row.best / (3 * row.cycles + slow.cycles))
    assert total["network_top5"] == pytest.approx(row.top5)
    assert total["kendall_tau"] == row.order.tau
    assert total["order"]["top1"] == row.order.best / row.order.top1
    assert total["order"]["peak1"] == row.order.peak1
    assert total["validity"] == metrics.validity_scores(truth, p_valid)
    text = evaluate_command.describe([{"set": "x", "what": "of one task"} | total])
    assert "of one task; 2 tasks" in text and "simulation for our wall time" in text


def test_the_command_evaluates_the_shipped_tables(tmp_path: Path, run_command):
    out = tmp_path / "e.json"
    code, text, err = run_command("evaluate", "--sets", "resnet18", "--limit", 2, "--out", out, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out.read_text())
    assert json.loads(text) == result
    (only,) = result["sets"]
    assert only["tasks"] == len(only["rows"]) == 2
    assert 0.5 < only["pick"]["geomean"] <= 1
    code, text, _ = run_command("evaluate", "--sets", "resnet18", "--limit", 1, "--out", out)
    assert code == 0 and "network (ours)" in text


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, run_command, monkeypatch):
    out, part = tmp_path / "e.json", tmp_path / "e.json.part"
    real, seen = evaluate.evaluate_task, []

    def stop_at_third(task, *rest):
        seen.append(task.id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(task, *rest)

    monkeypatch.setattr(evaluate, "evaluate_task", stop_at_third)
    arguments = ("evaluate", "--sets", "resnet18", "--limit", 3, "--out", out)
    assert run_command(*arguments)[0] != 0
    assert not out.exists() and len(part.read_bytes().splitlines()) == 3
    # As a killed process leaves it.
    part.write_bytes(part.read_bytes() + b'{"task": "cut sho')
    networks.random_network().save(tmp_path / "other.safetensors")
    code, _, err = run_command(*arguments, "--weights", tmp_path / "other.safetensors")
    assert code == 2 and "another run" in err and not out.exists()
    assert run_command(*arguments)[0] == 0
    assert seen == [*seen[:2], seen[2], seen[2]] and not part.exists()
    whole = tmp_path / "whole.json"
    assert run_command(*arguments[:-1], whole)[0] == 0
    one, other = (json.loads(path.read_text())["sets"][0] for path in (out, whole))
    for key in ("validity", "order", "network_quality", "pick"):
        assert one[key] == other[key]


def test_legal_choices_are_found_behind_many_illegal_ones(known, transplants, monkeypatch):
    def illegal_first(space, network, closed_form=True, listed=None):
        indices = np.unique(optimum.sample_of(space))
        ranking = picking.Ranking(indices, network.score(space, indices), len(indices), np.zeros(len(indices)))
        legal = space.validity(indices) == Reason.VALID
        assert np.count_nonzero(~legal) > 50
        ranking.__dict__["order"] = np.argsort(legal, kind="stable")
        return ranking

    monkeypatch.setattr(picking, "rank", illegal_first)
    row, _, _ = evaluate.evaluate_task(TASK, known, picking.predictor_of(None), transplants)
    assert row.source == "network" and row.first_legal_lowers and row.invalid_of_50 == 1
    assert 0 < row.quality <= row.top5 <= row.top10 <= 1


def test_bad_input_says_why(tmp_path: Path, run_command, monkeypatch):
    assert run_command("evaluate", "--limit", -1)[0] == 2
    assert "absent" in run_command("evaluate", "--weights", tmp_path / "absent.safetensors")[2]
    code, _, err = run_command("evaluate", "--sets", "nonsense")
    assert code == 2 and "workloads" in err
    monkeypatch.setattr(optimum, "version", lambda *_: "full-next")
    code, _, err = run_command("evaluate", "--sets", "unseen", "--out", tmp_path / "e.json")
    assert code == 2 and "oneshot-ml2 optimum --tasks" in err
    assert not (tmp_path / "e.json").exists()


def test_shipped_tables_cover_their_sets():
    for name in evaluate.SETS:
        rows = optimum.read_optima(resources.find("optima", f"{name}.jsonl"))
        tasks = optimum.read_tasks(resources.find("evaluation", f"{name}.json"))
        assert set(rows) >= {task.id for task in tasks}
        assert all(rows[task.id].version == task.version for task in tasks)
        designs = {task.accelerator.design for task in tasks}
        assert designs == ({"hls"} if name.endswith("_hls") else {"chisel"})
    assert optimum.version("hls") != optimum.version("chisel") == optimum.version()
