"""How many models of other libraries prune right, untouched: each is traced, pruned, proved, reloaded and exported.

    python benchmarks/reach.py                                  # the smallest model of each family; hours
    python benchmarks/reach.py --models torchvision/resnet18 timm/vit_tiny_patch16_224
    python benchmarks/reach.py --libraries torchvision          # all models of a library

Each model has a process of its own, with limits. Records are kept as they come: a run that was ended goes on from there.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

GIBIBYTE = 1 << 30
FORK = multiprocessing.get_context("fork")


def main() -> None:
    """Measure what is missing, then write all that is known."""
    options = parse()
    from reached import results

    wanted = models(options)
    known = {record["model"]: record for record in results(options.records)}
    preload()
    options.records.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(wanted, start=1):
        if name not in known:
            known[name] = one(name, options)
            with options.records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[name]) + "\n")
            print(f"{number}/{len(wanted)} {describe(known[name])}", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report([known[name] for name in wanted]), indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).parent
    parser.add_argument("--models", nargs="+", metavar="LIBRARY/MODEL")
    parser.add_argument("--libraries", nargs="+", metavar="LIBRARY", choices=("torchvision", "timm", "transformers"))
    parser.add_argument("--limit", type=float, default=300, help="seconds for one model")
    parser.add_argument("--memory", type=float, default=12, help="GiB of data for one model")
    parser.add_argument("--records", type=Path, default=folder.parent / "build" / "reach.jsonl", help="to go on from")
    parser.add_argument("--output", type=Path, default=folder / "results" / "reach.json")
    return parser.parse_args()


def models(options: argparse.Namespace) -> list[str]:
    """The names that were asked for."""
    if options.models:
        return list(options.models)
    from catalogue import families, names

    if options.libraries:
        return [name for library in options.libraries for name in names(library)]
    return list(families())


def one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model in a process of its own; what it sends is its record."""
    reading, writing = FORK.Pipe(duplex=False)
    worker = FORK.Process(target=work, args=(name, options.memory, writing))
    record: dict[str, Any] = {"model": name, "tool": "secateur", "ok": False}
    started = time.perf_counter()
    worker.start()
    writing.close()
    try:
        if reading.poll(options.limit):
            record = reading.recv()
        else:
            record |= {"stage": "time", "reason": f"did not finish in {options.limit:.0f} s"}
    except EOFError:
        worker.join()
        record |= {"stage": "crash", "reason": f"the process ended with {worker.exitcode}"}
    worker.kill()
    worker.join()
    return record | {"wall": round(time.perf_counter() - started, 1)}


def work(name: str, gibibytes: float, writing: Connection) -> None:
    """What a worker process does."""
    warnings.simplefilter("ignore")
    allowed = int(gibibytes * GIBIBYTE)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from reached import StageError, reach

    try:
        writing.send(reach(name))
    except StageError as error:
        writing.send(error.record)


def preload() -> None:
    """Import what every worker needs, once: workers are forks."""
    from analysed import allow_torchvision

    allow_torchvision()
    for module in ("reached", "torch.export", "torch._dynamo", "torchvision", "timm", "transformers"):
        importlib.import_module(module)
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    importlib.import_module("transformers").AutoModel  # noqa: B018 - it is imported when it is asked for


def describe(record: dict[str, Any]) -> str:
    state = f"ok, {record['free_share']:.0%} free" if record["ok"] else f"{record['stage']}: {record['reason'][:150]}"
    return f"{record['model']}: {state} ({record['wall']} s)"


def report(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result as docs/hooks/benchmarks.py wants it: counts by library, and every failure by name."""
    from machine import machine, versions

    libraries = dict.fromkeys(record["model"].partition("/")[0] for record in records)
    rows: list[list[Any]] = []
    for library in libraries:
        mine = [record for record in records if record["model"].startswith(f"{library}/")]
        built = [record for record in mine if record["stage"] != "build"]
        right = [record for record in built if record["ok"]]
        free = sum(record["free_share"] >= 0.8 for record in right)
        exported = sum(record["exports"] for record in right)
        rows.append([library, len(mine), len(built), len(right), free, exported])
    failed = [record for record in records if not record["ok"] and record["stage"] != "build"]
    causes = Counter(record["stage"] for record in failed)
    return {
        "title": "Models that prune, untouched",
        "command": "python benchmarks/reach.py",
        "machine": machine(),
        "columns": ["library", "models", "can be built", "right", "80 % of parameters free", "export"],
        "rows": rows,
        "notes": [
            "Right: 30 % of every axis goes, the compact model runs, all proofs hold, and a fresh instance of the original class "
            "loads it and gives the same bits.",
            "Models have random weights; those of transformers are made small by one rule for all configurations.",
            f"Failures by stage: {', '.join(f'{stage} {count}' for stage, count in causes.items()) or 'none'}.",
            *(f"{record['model']}: {record['stage']}: {record['reason']}" for record in failed),
        ],
        "versions": versions(("torch", "torchvision", "timm", "transformers")),
        "values": list(records),
    }


if __name__ == "__main__":
    main()
