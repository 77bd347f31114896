"""Look into, check, merge and split corpora."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.common.files import check_output, check_writable
from oneshot_ml2.corpus import manage, read
from oneshot_ml2.corpus.plan import read_accelerators
from oneshot_ml2.evaluation import baselines
from oneshot_ml2.workload.lists import read_workloads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of ``oneshot-ml2 corpus``."""
    commands = parser.add_subparsers(dest="corpus_command", required=True, metavar="COMMAND")
    about = {
        "info": "what a corpus holds",
        "verify": "check every checksum, offset and enumeration",
        "merge": "make one file of several files or folders",
        "split": "divide a corpus by workloads and accelerators, never by samples",
        "best": "write the fastest schedule of each task, which `evaluate` transplants as a baseline",
    }
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in about.items()}
    for name in ("info", "verify", "split"):
        parsers[name].add_argument("corpus", metavar="CORPUS", help="corpus file or folder of shards")
    for name in ("merge", "best"):
        parsers[name].add_argument("sources", metavar="CORPUS", nargs="+", help="corpus files or folders of shards")
        parsers[name].add_argument("--out", metavar="FILE", required=True, help="the file to write")
    split = parsers["split"]
    split.add_argument("--workloads", metavar="FILE", help="workload list (TOML) to hold out, by shape")
    split.add_argument("--accelerators", metavar="FOLDER", help="folder of VTA JSON files to hold out")
    split.add_argument("--out", metavar="FOLDER", required=True, help="folder for train.h5, workloads.h5, ...")
    for command in parsers.values():
        command.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run a subcommand; raises OneShotError for what the user can mend."""
    if args.corpus_command in ("merge", "best"):
        check_output(args.out, "--out")
    elif args.corpus_command == "split":
        check_writable(Path(args.out), "--out")
    if args.corpus_command == "info":
        with read.open_corpus(args.corpus) as opened:
            result = opened.info()
    elif args.corpus_command == "verify":
        result = {"ok": True} | manage.verify_corpus(args.corpus)
    elif args.corpus_command == "merge":
        manage.merge_corpora(args.sources, args.out)
        with read.open_corpus(args.out) as opened:
            result = {"out": args.out, "tasks": len(opened), "samples": int(opened.counts.sum())}
    elif args.corpus_command == "best":
        known = baselines.gather(args.sources)
        baselines.write_best_known(known, Path(args.out))
        result = {"out": args.out, "tasks": len(known.tasks)}
    else:
        if args.workloads is None and args.accelerators is None:
            raise CorpusError("nothing to split by; give --workloads, --accelerators or both")
        workloads = read_workloads(args.workloads) if args.workloads else []
        accelerators = read_accelerators([Path(args.accelerators)]) if args.accelerators else []
        result = {"out": args.out} | manage.split_corpus(args.corpus, args.out, workloads, accelerators)
    if args.json:
        print(json.dumps(result))
        return 0
    width = max(len(key) for key in result)
    for key, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
        print(f"{key.replace('_', ' '):{width}}  {_text(value)}")
    return 0


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1%}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
