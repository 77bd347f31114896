"""Hold the zero-measurement picks and other ways to pick against the optimum."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import check_output, locked, write_whole
from oneshot_ml2.common.tables import finite, table
from oneshot_ml2.evaluation.evaluate import BASELINES, PICK, SETS, evaluate_set, networks_of
from oneshot_ml2.evaluation.optimum import version
from oneshot_ml2.evaluation.tasks import Given, evenly, judge, read_given, summarise
from oneshot_ml2.training.peers.registry import load_peers, peer_kinds

if TYPE_CHECKING:
    from oneshot_ml2.training.peers.base import Peer

# Seconds that a search for T* may take.
SEARCH = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 evaluate``."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET",
                      help=f"of {', '.join(SETS)}; default: all")  # fmt: skip
    what.add_argument("--tasks", metavar="FILE.json", help="tasks of your own in place of the sets")
    parser.add_argument("--weights", metavar="NAME|FILE", help="shipped weights or a file (*.safetensors)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only N tasks of each, evenly spread")
    parser.add_argument("--search", type=float, default=SEARCH, metavar="SECONDS",
                        help=f"for T* of each of --tasks whose file does not say it; default {SEARCH:.0f}")  # fmt: skip
    parser.add_argument("--peers", metavar="FOLDER", help="compare with the predictors that train/peers.py left there")
    parser.add_argument("--out", default="evaluation.json", metavar="FILE", help="default evaluation.json")
    parser.add_argument("--json", action="store_true", help="print the JSON that is saved")


def run(args: argparse.Namespace) -> int:
    """Evaluate; raises OneShotError for what the user can mend."""
    if args.limit < 0:
        raise OneShotError(f"--limit {args.limit}: allowed: 0 (all) and more")
    if not args.search >= 0:
        raise OneShotError(f"--search {args.search}: allowed: seconds, 0 and more")
    check_output(args.out, "--out")
    given = _given(args)
    networks = networks_of(args.weights)
    others: dict[str, Peer] = {}
    if args.peers:
        others = load_peers(args.peers)
    if not Path(args.out).resolve().parent.is_dir():
        raise OneShotError(f"no folder {Path(args.out).parent}; make it, or choose another place for --out")
    # Beside the result until it is complete: the same command goes on there.
    log = Path(f"{args.out}.part")
    with locked(args.out, f"{args.out}: another evaluation is at work on it; wait for it, or give another --out"):
        cards = {
            design: {key: network.card.get(key) for key in ("commit", "date", "corpus")}
            for design, network in networks.items()
        }
        card = {"version": version(), "weights": cards}
        if given:
            rows = judge(given, networks, args.weights or "", Path(f"{args.out}.optima.jsonl"), log, args.search)
            result = summarise(rows) | card
            told = describe_tasks(result)
        else:
            sets = [evaluate_set(name, networks, args.limit, others, log) for name in args.sets]
            result = card | {"sets": sets}
            told = describe(sets)
        text = json.dumps(_jsonable(result), indent=1)
        write_whole(args.out, text + "\n")
        log.unlink()
    print(text if args.json else f"{told}\nSaved with each task's row: {args.out}")
    return 0


def _given(args: argparse.Namespace) -> list[Given]:
    """The tasks of --tasks; none without it."""
    if args.tasks is None:
        return []
    if not Path(args.tasks).exists() and args.tasks.lstrip("-").isdigit():
        number = f"--tasks {args.tasks}: a file of tasks (JSON) is wanted there"
        raise OneShotError(f"{number}; for a number of tasks of each set: --limit {args.tasks}")
    if args.peers:
        raise OneShotError("--peers are compared on the frozen sets; leave out --tasks, or --peers")
    return evenly(read_given(args.tasks), args.limit)


def _jsonable(value: Any) -> Any:
    """The same with None for what is not finite."""
    if isinstance(value, dict):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_jsonable(entry) for entry in value]
    return finite(value) if isinstance(value, float) else value


def describe_tasks(result: dict[str, Any]) -> str:
    """A table of the groups' figures for people, and what failed or has no schedule."""
    rows = []
    for name, one in [*result["groups"].items(), ("all", result["all"])]:
        shares = [f"{one[key]:.2%}" for key in ("geomean", "worst")] + [f"{one['share_95']:.1%}", str(one["failures"])]
        rows.append(
            [name, str(one["tasks"]), *shares, *(f"{one[key]:.1%}" for key in ("mape", "within_1", "within_2"))]
        )
    head = ["T* / T(pick)", "tasks", "geomean", "worst", ">= 95 %", "failures", "error", "in 1 spread", "in 2"]
    found = result["tasks"]
    lines = [table(head, rows, left={"T* / T(pick)"}), ""]
    lines += [f"{row['id']}: {row['problem']}" for row in found if row["problem"]]
    counted = [row for row in found if row["quality"] is not None]
    bounded = sum(not row["proven"] for row in counted)
    if bounded:
        lines.append(f"T* is not proven for {bounded} of {len(counted)} tasks; --search SECONDS searches longer")
    if len(counted) < len(found):
        lines.append(f"{len(found) - len(counted)} of {len(found)} tasks have no legal schedule and do not count")
    return "\n".join(lines)


def describe(sets: list[dict[str, Any]]) -> str:
    """Tables of the sets' figures for people: one row a set, then each set in detail."""
    rows = []
    for result in sets:
        pick, order, validity = result["pick"], result["order"], result["validity"]
        shares = [f"{pick[key]:.2%}" for key in ("geomean", "worst")] + [f"{pick['share_95']:.1%}"]
        ranks = [f"{order['kendall_tau']:.4f}", f"{validity['auroc']:.4f}", f"{result['invalid_of_50']:.2%}"]
        rows.append([result["set"], str(result["tasks"]), *shares, *ranks, f"{result['pick_seconds']['mean']:.2f} s"])
    head = ["set", "tasks", "geomean", "worst", ">= 95 %", "tau", "AUROC", "invalid of 50", "a pick"]
    return "\n".join([table(head, rows, left={"set"}), "", *map(_describe_set, sets)])


def _describe_set(result: dict[str, Any]) -> str:
    """A set's tables."""
    peers = {peer_kinds()[name].label: figures for name, figures in result["peers"].items()}
    qualities = {PICK: result["pick"], "  best of its first 5": result["top5"]}
    qualities |= {label: figures["pick"] for label, figures in peers.items()}
    qualities |= {BASELINES[name]: figures for name, figures in result["baselines"].items()}
    rows = [[name, f"{q['geomean']:.2%}", f"{q['worst']:.2%}", f"{q['share_95']:.1%}"] for name, q in qualities.items()]
    orders = {PICK: result["order"]} | {label: figures["order"] for label, figures in peers.items()}
    columns = {
        "top-1": "top1",
        "top-5": "top5",
        "peak@1": "peak1",
        "peak@5": "peak5",
        "pairwise": "pairwise_accuracy",
        "tau": "kendall_tau",
    }
    ranks = [[name, *(f"{order[key]:.4f}" for key in columns.values())] for name, order in orders.items()]
    validity, seconds = result["validity"], result["pick_seconds"]
    return (
        f"{result['set']}: {result['what']}; {result['tasks']} tasks, T* exact for {result['exact']}\n"
        + table(["T* / T(pick)", "geomean", "worst", ">= 95 %"], rows, left={"T* / T(pick)"})
        + "\nof 2,000 random schedules, the valid ones, by the definitions of TenSet and TLP:\n"
        + table(["order", *columns], ranks, left={"order"})
        + f"\nvalidity: F1 {validity['f1']:.4f}, AUROC {validity['auroc']:.4f}\n"
        f"first try lowers: {result['first_try_lowers']:.1%} by p_valid alone, "
        f"{result['first_try_lowers_with_closed_form']:.1%} with the closed form; "
        f"invalid of the first 50 by p_valid alone: {result['invalid_of_50']:.2%}; "
        f"fallbacks: {result['fallbacks']}\n"
        f"weighted by how often a layer occurs: {result['network_quality']:.2%}, "
        f"best of the first 5: {result['network_top5']:.2%}\n"
        f"the space: {result['near_share']:.2%} of the valid schedules within 5 % of T*, "
        f"the median one at {result['median_ratio']:.1%} of T*'s speed\n"
        f"a pick: {seconds['mean']:.2f} s on average, {seconds['max']:.2f} s at most\n"
    )
