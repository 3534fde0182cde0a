"""How many models of other libraries prune right, untouched, with each tool: pruned, proved, and ours reloaded and exported.

    python benchmarks/reach.py                                  # the smallest model of each family, all tools; days
    python benchmarks/reach.py --models torchvision/resnet18 timm/vit_tiny_patch16_224
    python benchmarks/reach.py --libraries torchvision          # all models of a library, with secateur alone
    python benchmarks/reach.py --report --records A.jsonl B.jsonl

Each model and tool has a process of its own, with limits. Records are kept as they come: a run that was ended goes on from there.
"""

import argparse
import ctypes
import importlib
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

GIBIBYTE = 1 << 30
LARGEST = 120_000_000
FORK = multiprocessing.get_context("fork")
TOOLS = ("secateur", "torch-pruning", "torch-kirigami")
PATIENCE = 4
"""So many times the limit may pass in all, for a process that waits, or shares its processor."""
END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def main() -> None:
    """Measure what is missing, then write all that is known."""
    from reaching.counted import known, report, write

    options = parse()
    records = known(options.records)
    if options.report:
        write(report(list(records.values())), options.output)
        return
    wanted = [(model, tool) for model in models(options) for tool in tools(options)]
    missing = [key for key in wanted if key not in records or (options.again and not records[key]["ok"])]
    preload({tool for _, tool in missing})
    for number, (model, tool) in enumerate(missing, start=1):
        records[model, tool] = one(model, tool, options)
        keep(records[model, tool], options.records[0])
        print(f"{number}/{len(missing)} {describe(records[model, tool])}", flush=True)
    write(report([records[key] for key in wanted]), options.output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).parent
    parser.add_argument("--models", nargs="+", metavar="LIBRARY/MODEL")
    parser.add_argument(
        "--libraries", nargs="+", metavar="LIBRARY", help="all of their models, or with --families some"
    )
    parser.add_argument("--families", action="store_true", help="the smallest model of each family of the libraries")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, help="all; for all models of a library, secateur alone")
    parser.add_argument("--again", action="store_true", help="once more, what failed")
    parser.add_argument("--report", action="store_true", help="run nothing; write the result from all records")
    parser.add_argument("--limit", type=float, default=300, help="CPU seconds for one model with one tool")
    parser.add_argument(
        "--largest",
        type=int,
        default=LARGEST,
        help="parameters; larger models are proved by shapes and operators alone",
    )
    parser.add_argument("--memory", type=float, default=12, help="GiB of data for one model with one tool")
    parser.add_argument(
        "--records",
        type=Path,
        nargs="+",
        default=[folder.parent / "build" / "reach.jsonl"],
        help="to go on from; the first grows, and what a later one says of the same model and tool holds",
    )
    parser.add_argument("--output", type=Path, default=folder / "results" / "reach.json")
    return parser.parse_args()


def models(options: argparse.Namespace) -> list[str]:
    """The names that were asked for."""
    if options.models:
        return list(options.models)
    from models.catalogue import families, names

    if options.libraries and not options.families:
        return [name for library in options.libraries for name in names(library)]
    return [name for name in families() if not options.libraries or name.partition("/")[0] in options.libraries]


def tools(options: argparse.Namespace) -> Sequence[str]:
    """The tools that were asked for."""
    every = bool(options.libraries) and not options.families and not options.models
    return options.tools or (TOOLS[:1] if every else TOOLS)


def one(model: str, tool: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model with one tool in a process of its own; the last that it sends is its record."""
    reading, writing = FORK.Pipe(duplex=False)
    sys.stdout.flush()
    worker = FORK.Process(target=work, args=(model, tool, options, writing))
    record: dict[str, Any] = {
        "library": model.partition("/")[0],
        "model": model,
        "tool": tool,
        "ok": False,
        "stage": "build",
    }
    started = time.perf_counter()
    worker.start()
    writing.close()
    try:
        for said in messages(reading, started + PATIENCE * options.limit):
            record = said
        if not record["ok"] and "reason" not in record:
            if not worker_ended(worker, reading):
                record["reason"] = f"did not finish in {PATIENCE * options.limit:.0f} s"
            elif worker.exitcode == -signal.SIGXCPU:
                record["reason"] = f"did not finish in {options.limit:.0f} CPU s"
            else:
                record["reason"] = f"the process ended with {ending(worker.exitcode)}"
    finally:
        end(worker)
        reading.close()
    return record | {"wall": round(time.perf_counter() - started, 1)}


def messages(reading: Connection, until: float) -> Iterator[dict[str, Any]]:
    """What a worker says, up to its end or its time."""
    try:
        while reading.poll(max(0.0, until - time.perf_counter())):
            yield reading.recv()
    except EOFError:
        return


def worker_ended(worker: Any, reading: Connection) -> bool:
    """Whether a worker is gone, and not just late."""
    if not reading.poll(0):
        return False
    worker.join(5)
    return worker.exitcode is not None


def ending(code: int) -> str:
    """How a process ended, in words."""
    return signal.Signals(-code).name if code < 0 else f"status {code}"


def end(worker: Any) -> None:
    """End a worker and all that it started."""
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        worker.kill()
    worker.join()


def work(model: str, tool: str, options: argparse.Namespace, writing: Connection) -> None:
    """What a worker process does."""
    os.setsid()
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    allowed = int(options.memory * GIBIBYTE)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_processor(options.limit)
    from reaching.reached import reach

    writing.send(reach(model, tool, writing.send, options.largest))


def limit_processor(seconds: float) -> None:
    """End this process when it has used a processor for so long from now on."""
    used = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (used, used + 5))


def preload(wanted: set[str]) -> None:
    """Import what every worker needs, once: workers are forks."""
    from models.large import allow_torchvision

    allow_torchvision()
    peers = sorted(tool.replace("-", "_") for tool in wanted - {"secateur"})
    for module in ("reaching.reached", "torch.export", "torch._dynamo", "torchvision", "timm", "transformers", *peers):
        importlib.import_module(module)
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    importlib.import_module("transformers").AutoModel  # noqa: B018 - it is imported when it is asked for


def keep(record: dict[str, Any], path: Path) -> None:
    """Add a record to a file; what a kill has cut short gets a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        cut = file.tell() > 0 and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b"\n"
        file.write(b"\n" * cut + json.dumps(record).encode() + b"\n")


def describe(record: dict[str, Any]) -> str:
    state = f"{record['stage']}: {record.get('reason', '')[:150]}"
    if record["ok"]:
        free = record.get("free_share")
        state = f"ok, {record.get('removed', 0):.0%} gone" + (f", {free:.0%} free" if free is not None else "")
        state += f", not checked: {record['unchecked']}" if record.get("unchecked") else ""
    return f"{record['model']} {record['tool']}: {state} ({record['wall']} s)"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
