"""The arrows of the house: a lower layer never imports a higher one, and no file has a name that says nothing."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "secateur"

# From the ground up. A module may import what stands in its own part and in the rows above it here, and nothing else;
# "secateur" is the package's own __init__.py. A new part of the library gets its place here first.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"axes"}),
    frozenset({"allocate"}),
    frozenset({"torch"}),
    frozenset({"sparse"}),
    frozenset({"train", "targets"}),
    frozenset({"low_rank"}),
    frozenset({"language"}),
    frozenset({"report"}),
    frozenset({"artefact"}),
    frozenset({"account"}),
    frozenset({"prune"}),
    frozenset({"secateur"}),
    frozenset({"testing"}),
    frozenset({"demo"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

# What the parts that know no framework may import from outside, besides the standard library.
FRAMEWORK_FREE = {"errors": set[str](), "axes": {"numpy", "scipy"}, "allocate": {"numpy", "scipy"}}

VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}


def test_every_module_stands_in_a_layer() -> None:
    homeless = {part_of(module) for module, _ in modules(SOURCE)} - RANK.keys()

    assert not homeless, f"give {sorted(homeless)} a place in LAYERS, in {__file__}"


def test_a_lower_layer_never_imports_a_higher_one() -> None:
    assert upward_imports(SOURCE) == []


def test_the_algebra_imports_no_framework() -> None:
    assert framework_imports(SOURCE) == []


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert vague_files(SOURCE) == []


@pytest.mark.parametrize(
    ("place", "statement", "arrow"),
    [
        ("axes/network.py", "from secateur.torch.capture import trace", "secateur.axes.network -> torch"),
        ("axes/network.py", "from secateur import allocate", "secateur.axes.network -> allocate"),
        ("torch/mask.py", "def mask():\n    from secateur.prune import prune", "secateur.torch.mask -> prune"),
        ("train/recover.py", "import secateur.targets.latency", "secateur.train.recover -> targets"),
        ("torch/mask.py", "from ..prune import prune", "secateur.torch.mask -> prune"),
        ("torch/__init__.py", "from ..report import html", "secateur.torch -> report"),
        ("prune.py", "import secateur as sc", "secateur.prune -> secateur"),
        ("prune.py", "from secateur import trace", "secateur.prune -> secateur"),
        ("__init__.py", "from secateur.cli import main", "secateur -> cli"),
    ],
)
def test_an_upward_import_is_seen_however_it_is_written(tmp_path: Path, place: str, statement: str, arrow: str) -> None:
    write_package(tmp_path / "secateur", {"axes/labels.py": "import numpy as np", place: statement})

    assert upward_imports(tmp_path / "secateur") == [arrow]


def test_a_downward_import_is_allowed(tmp_path: Path) -> None:
    write_package(
        tmp_path / "secateur",
        {
            "__init__.py": "from secateur.prune import prune",
            "prune.py": "from secateur.axes.network import Network\nfrom secateur import errors",
            "axes/network.py": "from secateur.axes.labels import Labels\nfrom secateur.errors import PlanError",
            "__main__.py": "from secateur.cli import main",
        },
    )

    assert upward_imports(tmp_path / "secateur") == []


def test_a_framework_in_the_algebra_is_seen(tmp_path: Path) -> None:
    write_package(
        tmp_path / "secateur",
        {
            "axes/labels.py": "import json\nimport numpy as np\nimport torch",
            "allocate/budget.py": "def solve():\n    from pydantic import BaseModel",
            "torch/mask.py": "import torch",
        },
    )

    assert framework_imports(tmp_path / "secateur") == [
        "secateur.allocate.budget -> pydantic",
        "secateur.axes.labels -> torch",
    ]


def test_a_name_that_says_nothing_is_seen(tmp_path: Path) -> None:
    write_package(tmp_path / "secateur", {"axes/labels.py": "", "axes/utils.py": "", "misc/masks.py": ""})

    assert vague_files(tmp_path / "secateur") == ["axes/utils.py", "misc/masks.py"]


def upward_imports(source: Path) -> list[str]:
    """Every import that points from a part to another which does not stand below it."""
    return [
        f"{module} -> {part}"
        for module, imported in sorted(modules(source))
        for part in sorted({imported_part(name) for name in imported if name.split(".")[0] == "secateur"})
        if not allowed(part_of(module), part)
    ]


def allowed(importer: str, imported: str) -> bool:
    """Whether the arrow points down; a part without a layer is the business of another test."""
    return importer == imported or importer not in RANK or RANK[imported] < RANK[importer]


def framework_imports(source: Path) -> list[str]:
    """Every import of a third-party package where only the named ones may be."""
    return [
        f"{module} -> {target}"
        for module, imported in sorted(modules(source))
        if part_of(module) in FRAMEWORK_FREE
        for target in sorted({name.split(".")[0] for name in imported})
        if target not in FRAMEWORK_FREE[part_of(module)] | {"secateur"} | sys.stdlib_module_names
    ]


def vague_files(source: Path) -> list[str]:
    """Every file with a name, or in a folder with a name, that does not tell what it holds."""
    files = (path.relative_to(source) for path in source.rglob("*.py"))
    return sorted(str(file) for file in files if VAGUE_NAMES & {part.removesuffix(".py") for part in file.parts})


def modules(source: Path) -> Iterator[tuple[str, set[str]]]:
    """Every module below `source`, the folder of the package, with the modules and names that it imports."""
    for path in source.rglob("*.py"):
        parts = ("secateur", *path.relative_to(source).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        package = parts[:-1]
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported |= names_imported(node, package)
        yield module, imported


def names_imported(node: ast.AST, package: tuple[str, ...]) -> set[str]:
    """What one statement imports, in full: `from secateur import prune` gives `secateur.prune`."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else ()
        origin = ".".join((*base, *((node.module,) if node.module else ())))
        return {f"{origin}.{alias.name}" for alias in node.names}
    return set()


def part_of(module: str) -> str:
    """The part of the library that a module belongs to: `secateur.torch.mask` is in `torch`."""
    return module.split(".")[1] if "." in module else "secateur"


def imported_part(name: str) -> str:
    """The part that an import leads to; `secateur.trace`, a name but not a part, comes from the package itself."""
    return part_of(name) if part_of(name) in RANK else "secateur"


def write_package(folder: Path, files: dict[str, str]) -> None:
    for place, text in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
