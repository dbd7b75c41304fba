"""`python -m pipeline`: every command is listed and has its help, and errors end as they should."""

import pytest

from pipeline.__main__ import COMMANDS, main
from pipeline.log import UserError, cli_errors


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([name, "--help"])
    assert exit_info.value.code == 0
    assert f"usage: python -m pipeline {name}" in capsys.readouterr().out


def test_an_unknown_command_exits_with_2() -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["plans"])
    assert exit_info.value.code == 2


def test_user_errors_are_one_line_and_bugs_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info, cli_errors("train"):
        raise UserError("train.max_lr (0) must be above 0", exit_code=3)
    assert exit_info.value.code == 3
    assert capsys.readouterr().err == "train: train.max_lr (0) must be above 0\n"
    with pytest.raises(SystemExit), cli_errors("train"):
        raise FileNotFoundError(2, "No such file or directory", "data/x")
    assert "data/x" in capsys.readouterr().err
    with pytest.raises(ValueError, match="zip"), cli_errors("train"):
        list(zip([1], [], strict=True))


def test_ctrl_c_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info, cli_errors("generate"):
        raise KeyboardInterrupt
    assert (exit_info.value.code, capsys.readouterr().err) == (130, "\n")
