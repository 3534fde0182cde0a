"""`module:name` and `path/file.py:name`: what is found, and what is said where nothing is."""

import sys
from pathlib import Path

import pytest

from secateur.cli.objects import call_object, find_object, nearest
from secateur.errors import DataError, JobError, ModelError


def test_a_file_is_found_relative_to_the_folder(folder: Path) -> None:
    assert find_object("net.py:build", folder, "the model").__name__ == "build"


def test_a_file_in_a_folder_below_is_found(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "deep.py").write_text("class Outer:\n    class Inner: answer = 42\n")

    assert find_object("below/deep.py:Outer.Inner", folder, "the model").answer == 42


def test_a_module_beside_the_job_is_found(folder: Path) -> None:
    (folder / "beside_the_job.py").write_text("answer = 42")

    assert find_object("beside_the_job:answer", folder, "the data") == 42


def test_an_installed_module_is_found(folder: Path) -> None:
    assert find_object("torch.nn:Linear", folder, "the model").__name__ == "Linear"


def test_a_file_can_import_its_neighbours(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "neighbour_of_it.py").write_text("answer = 42")
    (folder / "below" / "importing.py").write_text("from neighbour_of_it import answer")

    assert find_object("below/importing.py:answer", folder, "the model") == 42


def test_two_files_of_one_name_stay_apart(folder: Path) -> None:
    for place, answer in (("one", 1), ("two", 2)):
        (folder / place).mkdir()
        (folder / place / "same_name.py").write_text(f"answer = {answer}")

    assert [find_object(f"{place}/same_name.py:answer", folder, "the model") for place in ("one", "two")] == [1, 2]


def test_a_file_runs_once(folder: Path) -> None:
    (folder / "counted.py").write_text("class Once: pass")

    assert find_object("counted.py:Once", folder, "the model") is find_object("counted.py:Once", folder, "the data")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("net.py", "is not understood: write module:name, or path/file.py:name"),
        (":build", "is not understood"),
        ("net.py:", "is not understood"),
        ("nowhere.py:build", "there is no file .*nowhere.py; paths are relative to the job file"),
        ("no_such_module:build", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("net.py:biuld", "net.py has no 'biuld'; did you mean 'build'?"),
        ("net.py:xyz", "net.py has no 'xyz'; there is Net, batches, build, "),
    ],
)
def test_what_is_not_there_is_said(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        find_object(spec, folder, "the model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_there_at_all", r"ModuleNotFoundError: No module named 'not_there_at_all' \(broken.py:1\)"),
        ("x = 1\n1 / 0", r"ZeroDivisionError: division by zero \(broken.py:2\)"),
        ("def f(:", r"SyntaxError: .* \(line 1\)"),
    ],
)
def test_a_file_that_fails_names_the_line(folder: Path, text: str, message: str) -> None:
    (folder / "broken.py").write_text(text)

    with pytest.raises(JobError, match=message):
        find_object("broken.py:build", folder, "the model")
    assert "broken" not in sys.modules


def test_a_factory_that_fails_names_the_line(folder: Path) -> None:
    (folder / "failing.py").write_text("def build():\n    return [][1]")

    with pytest.raises(ModelError, match=r"the model 'failing.py:build' fails: IndexError: .* \(failing.py:2\)"):
        call_object(find_object("failing.py:build", folder, "the model"), "failing.py:build", "the model")


def test_errors_of_ours_go_through_a_factory(folder: Path) -> None:
    def build() -> None:
        raise DataError("no images")

    with pytest.raises(DataError, match=r"no images"):
        call_object(build, "x:build", "the data")


def test_what_cannot_be_called_is_no_factory() -> None:
    with pytest.raises(JobError, match=r"'x:number' is a int; name a function or class without arguments"):
        call_object(3, "x:number", "the model")


def test_the_nearest_name_is_offered_or_else_all() -> None:
    assert nearest("magnitud", ["magnitude", "fisher"]) == "; did you mean 'magnitude'?"
    assert nearest("qqq", ["magnitude", "fisher"]) == "; there is fisher, magnitude"
    assert nearest("qqq", [f"model{i}" for i in range(1000)]) == ""
