"""How the work of making a language model sparse grows: CPU seconds and memory against width and depth, solver by solver.

    python benchmarks/scaling.py                     # some twenty minutes
    python benchmarks/scaling.py --widths 256 512 --depths 2

Models are decoders with random weights, in 16 bits, mapped from a file. Each has a process of its own. What is kept in memory is
counted without pages that are mapped from files, which the system drops when memory is short.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import load, machine, memory, versions
from reaching.counted import write
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import secateur as sc
from secateur.sparse.problem import Problem, Solved

SPAWN = multiprocessing.get_context("spawn")
MEBIBYTE = 1 << 20
VOCABULARY, HEAD, INNER = 2048, 64, 3
SOLVERS: Mapping[str, Any] = {"keep": sc.solvers.keep, "refit": sc.solvers.Refit(), "sparsegpt": sc.solvers.SparseGPT()}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "cholesky", "inverse", "triangular", "tril", "triu")
"""Parts of the names of operators that are products or factorisations of matrices; the last two are steps of these."""
LLAMAS = {"Llama 8B": (4096, 14336, 1024, 32), "Llama 70B": (8192, 28672, 1024, 80)}
"""Width, inner width, width of keys, blocks."""


class Block(nn.Module):
    """Attention and a gated MLP, around a residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, INNER * width, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        q, k, v = (part(y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Blocks behind an embedding."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, ids: Tensor) -> Tensor:
        return self.blocks(self.embed(ids))


def main() -> None:
    """Measure every width and depth with every solver, and write the result."""
    options = parse()
    sizes = [(width, options.depths[0]) for width in options.widths] + [
        (options.widths[0], depth) for depth in options.depths[1:]
    ]
    records = []
    for width, depth in sizes:
        for solver in options.solvers:
            records.append(apart(measured, width, depth, solver, options.tokens))
            print(json.dumps(records[-1]), flush=True)
    shares = {width: apart(share_of_products, width) for width in options.layers}
    print(f"shares of products, by width: {shares}", flush=True)
    write(report(records, shares, options), options.output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[256, 512, 1024], help=f"multiples of {HEAD}")
    parser.add_argument(
        "--depths", nargs="+", type=int, default=[2, 4, 8], help="blocks; widths are measured with the first"
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        type=int,
        default=[1024, 2048, 4096],
        help="widths of single layers that SparseGPT is profiled on",
    )
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--tokens", type=int, default=4096, help="to calibrate on, in sequences of 256")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    return parser.parse_args()


@dataclass
class Timed:
    """A solver, and the CPU seconds that it took."""

    solver: str
    seconds: float = field(default=0.0, repr=False)

    def __call__(self, problem: Problem) -> Solved:
        started = time.process_time()
        found: Solved = SOLVERS[self.solver](problem)
        self.seconds += time.process_time() - started
        return found


def measured(width: int, depth: int, solver: str, tokens: int) -> dict[str, Any]:
    """One model with one solver, with its weights on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = mapped(width, depth, Path(folder) / "dense.safetensors")
        ids = torch.randint(VOCABULARY, (tokens // 256, 256))
        timed = Timed(solver)
        before, peak = memory("RssAnon"), Peak()
        started = time.process_time()
        with peak:
            result = sc.sparsify(
                model,
                [ids],
                sparsity=0.5,
                solver=sc.solvers.keep if solver == "keep" else timed,
                journal=Path(folder) / "journal",
                memory=256 * MEBIBYTE,
            )
        seconds = time.process_time() - started
        used = ids[: result.samples]
        started = time.process_time()
        with torch.no_grad():
            for piece in used.split(4):
                model(piece)
        return {
            "width": width,
            "depth": depth,
            "solver": solver,
            "weights_mb": round(sum(p.nbytes for p in model.parameters()) / MEBIBYTE),
            "samples": result.samples,
            "forward": time.process_time() - started,
            "seconds": seconds,
            "solving": timed.seconds,
            "peak_mb": round(peak.most - before),
            "load": load(),
        }


def mapped(width: int, depth: int, path: Path) -> nn.Module:
    """A model whose weights are mapped from a file, as `from_pretrained` does it."""
    save_file({name: tensor.bfloat16() for name, tensor in Decoder(width, depth).state_dict().items()}, path)
    with torch.device("meta"):
        model = Decoder(width, depth)
    with safe_open(path, framework="pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, assign=True)  # noqa: SIM118
    return model.eval()


class Peak:
    """The most memory of this process that is its own, in MiB, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.most, self._ends = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(0.005):
            self.most = max(self.most, memory("RssAnon"))


def share_of_products(width: int) -> float:
    """Which share of the time of SparseGPT is spent in products and factorisations of matrices."""
    torch.manual_seed(0)
    x = torch.randn(2 * width, width) @ torch.randn(width, width)
    weight = torch.randn(width, width)
    pattern = sc.patterns.Unstructured()
    count = weight.numel() // 2
    problem = Problem(weight, x.T @ x / len(x), pattern, count, pattern.choose(weight.abs(), count))
    solver = sc.solvers.SparseGPT()
    solver(problem)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        solver(problem)
    events = seen.key_averages()
    inside = sum(e.self_cpu_time_total for e in events if any(name in e.key for name in PRODUCTS))
    return inside / sum(event.self_cpu_time_total for event in events)


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a new process."""
    with SPAWN.Pool(1) as pool:
        return pool.apply(work, arguments)


def report(
    records: Sequence[Mapping[str, Any]], shares: Mapping[int, float], options: argparse.Namespace
) -> dict[str, Any]:
    """The result as docs/hooks/benchmarks.py wants it."""
    names = ("width", "depth", "solver", "weights_mb", "samples", "forward", "seconds", "solving", "peak_mb")
    return {
        "title": "What it takes to make a language model sparse",
        "command": "python benchmarks/scaling.py",
        "machine": machine(),
        "columns": [
            "width",
            "blocks",
            "solver",
            "weights, MiB",
            "sequences",
            "one run, s",
            "all, s",
            "solver, s",
            "peak, MiB",
        ],
        "rows": [[record[name] for name in names] for record in records],
        "notes": [
            f"Decoders with random weights of 16 bits, which are mapped from a file, on {options.tokens} tokens in sequences of "
            "256; activations that do not fit into 256 MiB wait on the disk. CPU seconds, one thread, one run each; load of the "
            f"machine {min(r['load'] for r in records)} to {max(r['load'] for r in records)}.",
            "One run: the dense model on the same sequences. All: everything, that run included.",
            "Peak: memory of the process beyond what it had before, without pages that are mapped from files.",
            "SparseGPT spends "
            + ", ".join(f"{share:.0%} of its time at a width of {width}" for width, share in shares.items())
            + " in products and factorisations of matrices.",
            *projected(records),
        ],
        "versions": versions(("torch", "safetensors")),
        "values": list(records),
    }


def projected(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What SparseGPT would take for large models, from its operations and the speed that was measured at the largest width."""
    found = [record for record in records if record["solver"] == "sparsegpt"]
    if not found:
        return []
    largest = max(found, key=lambda record: (record["width"], record["depth"]))
    speed = (
        largest["depth"] * operations(largest["width"], INNER * largest["width"], largest["width"]) / largest["solving"]
    )
    hours = {
        name: depth * operations(width, inner, keys) / speed / 3600
        for name, (width, inner, keys, depth) in LLAMAS.items()
    }
    return [
        f"SparseGPT works at {speed / 1e9:.0f} GFLOP/s at a width of {largest['width']}. On paper, with its cubes of the width, "
        "that is "
        + ", ".join(f"{n:.1f} CPU hours for {name}" for name, n in hours.items())
        + ", without the run of the model."
    ]


def operations(width: int, inner: int, keys: int) -> float:
    """Operations of SparseGPT for one block: for a layer, three factorisations of its inputs and a sweep over its columns."""
    layers = [(width, width)] * 2 + [(keys, width)] * 2 + [(inner, width)] * 2 + [(width, inner)]
    return float(sum(2 * columns**3 + 2 * out * columns**2 for out, columns in layers))


if __name__ == "__main__":
    main()
