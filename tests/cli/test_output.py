"""The output folder: taken before the work starts, and never from somebody else."""

import tomllib
from pathlib import Path

import pytest

from secateur.cli.job import JobFile, read_job
from secateur.cli.output import claim
from secateur.errors import ArtefactError, JobError


def job(folder: Path, output: str, name: str = "job.toml", extra: str = "") -> JobFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{extra}model = "net.py:build"\noutput = "{output}"\n[budget]\nmacs = 0.5\n')
    return read_job(path)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(parents=True)])
def test_a_new_or_an_empty_folder_is_taken(tmp_path: Path, make: object) -> None:
    file = job(tmp_path, "runs/mine")
    make(tmp_path / "runs/mine")  # type: ignore[operator]

    with claim(file) as folder:
        assert folder == tmp_path / "runs/mine"
    assert (tmp_path / "runs/mine/job.toml").is_file()


def test_a_folder_of_ours_is_taken_again(tmp_path: Path) -> None:
    file = job(tmp_path, "out")
    with claim(file):
        pass
    (tmp_path / "out" / "report.html").write_text("")

    with claim(file) as folder:
        assert folder == tmp_path / "out"


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    file = job(tmp_path, "out")
    (tmp_path / "out").mkdir()
    for name in ("thesis.tex", "photos", "a", "b"):
        (tmp_path / "out" / name).write_text("")

    with (
        pytest.raises(
            JobError, match=r"already holds other files \(a, b, photos and 1 more\); name a new or an empty one"
        ),
        claim(file),
    ):
        pass
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_folder_with_a_job_of_the_users_own_is_foreign(tmp_path: Path) -> None:
    file = job(tmp_path, ".")

    with pytest.raises(JobError, match=r"already holds other files \(job.toml\)"), claim(file):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")

    with pytest.raises(JobError, match=r"is a file; name a folder"), claim(job(tmp_path, "out")):
        pass


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    refused = r"cannot write into .*file/out: .*; choose another output folder"
    with pytest.raises(ArtefactError, match=refused), claim(job(tmp_path, "file/out")):
        pass


def test_a_read_only_folder_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = job(tmp_path, "out")
    monkeypatch.setattr(Path, "write_text", refused)  # the mode of a folder does not bind root

    with (
        pytest.raises(ArtefactError, match=r"cannot write into .*out: Permission denied; choose another output folder"),
        claim(file),
    ):
        pass


def test_the_copy_leads_to_where_the_job_leads(tmp_path: Path) -> None:
    file = job(tmp_path, "../runs/mine", name="jobs/job.toml")
    with claim(file):
        pass
    copy = read_job(tmp_path / "runs/mine/job.toml")

    assert copy.folder.resolve() == file.folder.resolve()
    assert copy.output.resolve() == file.output.resolve()
    assert copy.job.model_copy(update={"relative_to": "."}) == file.job


def test_a_copy_of_a_copy_is_a_job_too(tmp_path: Path) -> None:
    first = job(tmp_path, "runs/first", extra='relative_to = "."\n')
    with claim(first):
        pass
    moved = tmp_path / "moved" / "job.toml"
    moved.parent.mkdir()
    text = (tmp_path / "runs/first/job.toml").read_text().replace("runs/first", "runs/second").replace("../..", "..")
    moved.write_text(text)
    with claim(read_job(moved)):
        pass

    assert tomllib.loads((tmp_path / "runs/second/job.toml").read_text())["relative_to"] == "../.."
    assert read_job(tmp_path / "runs/second/job.toml").output.resolve() == tmp_path / "runs/second"


def test_the_copy_can_be_run_itself(tmp_path: Path) -> None:
    with claim(job(tmp_path, "out")):
        pass
    copy = read_job(tmp_path / "out/job.toml")
    before = copy.text

    with claim(copy) as folder:
        assert folder.resolve() == tmp_path / "out"
    assert (tmp_path / "out/job.toml").read_text() == before


def test_a_folder_that_a_failing_job_made_goes_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no"), claim(job(tmp_path, "new")):
        raise RuntimeError("no")
    assert not (tmp_path / "new").exists()


def test_a_failing_job_leaves_an_earlier_result_alone(tmp_path: Path) -> None:
    file = job(tmp_path, "out")
    with claim(file) as folder:
        (folder / "result").write_text("here")
    with pytest.raises(RuntimeError, match="no"), claim(file):
        raise RuntimeError("no")
    assert (tmp_path / "out" / "result").read_text() == "here"
