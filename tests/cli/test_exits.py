"""Exit codes, and the one paragraph that a person reads."""

import json

import pytest
import typer

from secateur import errors
from secateur.cli.exits import exit_code, reported, table_of_codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.JobError, 2),
        (errors.MissingExtraError, 2),
        (errors.PlanError, 2),
        (errors.CaptureError, 3),
        (errors.ModelError, 3),
        (errors.AttributeFollowError, 3),
        (errors.BudgetError, 4),
        (errors.VerificationError, 5),
        (errors.DataError, 6),
        (errors.ArtefactError, 7),
        (errors.RecoveryError, 8),
        (KeyError, 1),
    ],
)
def test_every_error_has_its_exit_code(error: type[Exception], code: int) -> None:
    assert exit_code(error("x")) == code


def test_no_error_of_ours_is_unexpected() -> None:
    def below(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    assert {kind for kind in below(errors.SecateurError) if exit_code(kind("x")) == 1} == {errors.SecateurError}


def test_the_table_has_every_code_once() -> None:
    assert [line[0] for line in table_of_codes().splitlines()] == list("012345678")


def end(error: BaseException, *, as_json: bool = False, debug: bool = False) -> int:
    with pytest.raises(typer.Exit) as ended, reported(as_json=as_json, debug=debug):
        raise error
    return int(ended.value.exit_code)


def test_an_error_is_one_line_on_stderr_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(errors.BudgetError("the budget [macs] cannot be met " + 30 * "because " + "so")) == 4

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("BudgetError: the budget [macs] cannot be met because")
    assert err.count("\n") == 1


def test_an_unexpected_error_names_its_line_and_the_way_to_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(KeyError("lost")) == 1

    err = capsys.readouterr().err
    assert "unexpected KeyError: 'lost' (" in err
    assert "test_exits.py:" in err
    assert "--debug" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    end(KeyError("lost"), debug=True)

    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_json_errors_can_be_read_by_machines(capsys: pytest.CaptureFixture[str]) -> None:
    end(errors.DataError("no batches"), as_json=True)

    assert json.loads(capsys.readouterr().err) == {"error": "DataError", "message": "no batches", "exit_code": 6}


def test_an_interrupt_is_no_error_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(KeyboardInterrupt()) == 130
    assert "stopped before it was done" in capsys.readouterr().err


def test_an_exit_goes_through() -> None:
    assert end(typer.Exit(3)) == 3
