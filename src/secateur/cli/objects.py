"""Finds what a job or a command line names in the user's own code: `module:name` or `path/file.py:name`."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from secateur.errors import JobError, ModelError, SecateurError
from secateur.torch.places import line_of


def find_object(spec: str, folder: Path, what: str) -> Any:
    """Import what a specification names.

    Args:
        spec: `module:name` or `path/file.py:name`; the name may have dots.
        folder: What the path is relative to. Modules are also looked for here.
        what: What it is for, in words, for error messages.

    Raises:
        JobError: There is no such file, module or name, or importing it fails.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise JobError(f"{what} {spec!r} is not understood: write module:name, or path/file.py:name")
    _look_for_modules_in(folder)
    module = _file(folder / place, what) if place.endswith(".py") else _module(place, what)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [known for known in vars(module) if not known.startswith("_")]
            raise JobError(f"{what} {spec!r}: {place} has no {part!r}{nearest(part, names)}")
        found = getattr(found, part)
    return found


def call_object(function: Any, spec: str, what: str) -> Any:
    """Call what `find_object` found, without arguments.

    Raises:
        JobError: It cannot be called.
        ModelError: It fails; what it raises of Secateur's own errors goes through as it is.
    """
    if not callable(function):
        raise JobError(f"{what} {spec!r} is a {type(function).__name__}; name a function or class without arguments")
    return guarded(function, f"{what} {spec!r}")


def guarded(function: Callable[[], Any], what: str) -> Any:
    """Run the user's code, so that its failure says which line."""
    try:
        return function()
    except SecateurError:
        raise
    except Exception as error:
        raise ModelError(
            f"{what} fails: {type(error).__name__}: {error} ({line_of(error)}); run it by itself to mend it"
        ) from error


def nearest(name: str, names: list[str]) -> str:
    """The end of a complaint about an unknown name: the one that was meant, or all there are."""
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there is {', '.join(sorted(names))}" if 0 < len(names) <= 20 else ""


def _look_for_modules_in(folder: Path) -> None:
    """As Python does for the folder of a script; a console script's own folder is of no use."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.insert(0, path)


def _file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise JobError(
            f"{what}: there is no file {path}; paths are relative to the job file, or where the command is run"
        )
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and known.__file__ is not None and Path(known.__file__).samefile(path):
        return known
    if known is not None:  # another module of this name is already there: keep both
        name = f"{path.stem} of {path.parent.resolve()}"
        if name in sys.modules:
            return sys.modules[name]
    _look_for_modules_in(path.parent)
    return _executed(path, name, what)


def _executed(path: Path, name: str, what: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # before it runs: dataclasses look themselves up
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _unimportable(what, str(path), error) from error
    return module


def _module(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _unimportable(what, name, error) from error


def _unimportable(what: str, place: str, error: Exception) -> JobError:
    line = f"line {error.lineno}" if isinstance(error, SyntaxError) else line_of(error)
    return JobError(f"{what}: {place} cannot be imported: {type(error).__name__}: {error} ({line})")
