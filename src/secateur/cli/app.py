"""The commands of `secateur`, and what they print: results on stdout, progress and errors on stderr."""

import json
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console, RenderableType
from rich.markup import escape

from secateur.cli.bench import compare, find_target, load_subject
from secateur.cli.demonstration import run_demo
from secateur.cli.exits import exit_code, reported, say, table_of_codes
from secateur.cli.inspection import Inspection
from secateur.cli.job import read_job, read_sparse_job
from secateur.cli.models import load_model
from secateur.cli.page import Page
from secateur.cli.progress import Stages
from secateur.cli.run import run_job
from secateur.cli.sparse_run import run_sparse_job
from secateur.errors import JobError
from secateur.report import RECORD, RunRecord, write
from secateur.torch import trace
from secateur.torch.graph import in_form

MODEL = "module:factory, path/file.py:factory, timm/NAME, torchvision/NAME or hf/FOLDER"
UsageError: type[Any] = typer.BadParameter.__bases__[0]
"""What a command line that cannot be understood raises; typer has no name for it, and a copy of click of its own."""
PIPED_WIDTH = 120
"""Columns of the output where no terminal says how many there are."""

EXAMPLE, SPARSE_EXAMPLE = (
    files("secateur.cli").joinpath(name).read_text(encoding="utf-8") for name in ("example.toml", "sparse.toml")
)

HELP = f"""Prune trained PyTorch models: smaller, faster, and proved right.

Exit codes:
{table_of_codes()}"""

HELP_INSPECT = f"""Show what can be pruned of a model, what cannot and why, and what each axis costs.

MODEL is {MODEL}.
A factory is a function or class without arguments that gives a module, or (module, example_inputs)."""

HELP_PRUNE = f"""Prune a model as a job file says.

Only model, output and one share of the budget are required. A complete job file:

{EXAMPLE}"""

HELP_SPARSIFY = f"""Set weights of a language model to zero as a job file says, layer by layer.

Needs the library transformers. Weights stay on the disk, but for those of one layer. A job that was killed goes on where it
stopped. Only model, calibrate and output are required, and a sparsity where the pattern has none. A complete job file:

{SPARSE_EXAMPLE}"""

HELP_BENCH = f"""Measure two models in turns, on the inputs of the first.

A and B are folders that secateur prune wrote, or MODELs: {MODEL}."""

Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        help="Shape of an argument of the model, such as 1x3x224x224, or 1x128:int64 with its dtype; once for each.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write the result as JSON to stdout, and errors as JSON to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

app = typer.Typer(
    name="secateur",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=escape(HELP),
)


class Result(Protocol):
    """What a command comes to: a rich renderable that machines can read, too."""

    def to_json(self) -> dict[str, Any]:
        """The result for machines."""
        ...

    def __rich__(self) -> RenderableType:
        """The result for people."""
        ...


def main() -> None:
    """Run the command line. What cannot be understood is told to machines as all other errors are."""
    if "--json" not in sys.argv[1:]:
        app()
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        code = exit_code(JobError())
        say("JobError", f"{error.format_message()} See secateur --help", code, as_json=True)
    sys.exit(code)


@app.command(help="Train a small network on real images, prune it, prove it, measure it, and write a report.")
def demo(
    output: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """`secateur demo`."""
    _run(lambda stages: run_demo(output, stages), as_json, debug)


@app.command(help=escape(HELP_INSPECT))
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model.")],
    inputs: Input = None,
    form: Annotated[str, typer.Option(help="module, or graph: what can be pruned of its graph form.")] = "module",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """`secateur inspect`."""

    def work(stages: Stages) -> Result:
        with stages.stage("load"):
            subject = load_model(model, inputs=tuple(inputs or ()), drawn=form != "module")
        with stages.stage("trace"):
            network = trace(in_form(subject.model, form, subject.inputs), subject.inputs)
        return Inspection.of(subject.name, network)

    _run(work, as_json, debug, lasting=False)


@app.command(help=escape(HELP_PRUNE))
def prune(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """`secateur prune`."""
    _run(lambda stages: run_job(read_job(job), stages), as_json, debug)


@app.command(help=escape(HELP_SPARSIFY))
def sparsify(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """`secateur sparsify`."""
    _run(lambda stages: run_sparse_job(read_sparse_job(job), stages), as_json, debug)


@app.command(help=escape(HELP_BENCH))
def bench(
    first: Annotated[str, typer.Argument(metavar="A", help="What is compared with.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What is of interest.")],
    inputs: Input = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="How the dense model of a folder without a job.toml is built.")
    ] = None,
    runs: Annotated[int, typer.Option(help="At least so many timed runs of each.", min=2)] = 30,
    seconds: Annotated[float, typer.Option(help="At least so long.", min=0)] = 10.0,
    target: Annotated[str, typer.Option(help="Where: eager, compile, onnxruntime or openvino.")] = "eager",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; by default as many as PyTorch takes.", min=1)
    ] = None,
    precision: Annotated[str | None, typer.Option(help="What openvino computes in: fp32 or bf16.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """`secateur bench`."""

    def work(stages: Stages) -> Result:
        where = find_target(target, threads=threads, precision=precision)
        with stages.stage("load"):
            one, other = (load_subject(spec, inputs=tuple(inputs or ()), model=model) for spec in (first, second))
        with stages.stage("measure"):
            return compare(one, other, target=where, runs=runs, seconds=seconds)

    _run(work, as_json, debug, lasting=False)


@app.command(help="Draw report.html again, from the report.json beside it.")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a run.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """`secateur report`."""
    _run(lambda _: Page(write(RunRecord.read(run / RECORD), run)), as_json, debug)


def _run(work: Callable[[Stages], Result], as_json: bool, debug: bool, *, lasting: bool = True) -> None:
    """Do the work with its progress shown, then print what it came to; or say what went wrong."""
    with reported(as_json=as_json, debug=debug):
        with Stages("none" if as_json else None, lasting=lasting) as stages:
            result = work(stages)
        if as_json:
            sys.stdout.write(json.dumps(result.to_json(), indent=2) + "\n")
        else:
            Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False).print(result)
