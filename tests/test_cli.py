"""`python -m pipeline` and `python -m stages.<name>`: help, arguments, environment, and how errors end."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import distributed
from pipeline.__main__ import COMMANDS, main
from pipeline.log import UserError, cli_errors, logger
from tests.dag.imports import ROOT, STAGES


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


def test_what_a_value_brings_into_an_error_cannot_break_its_line() -> None:
    message = "a.json: name ('x\ny\x1b[2J\u202e\ud800') has 2 mistakes:\n  é\n  ok"
    assert str(UserError(message)) == r"a.json: name ('x\ny\x1b[2J\u202e\ud800') has 2 mistakes:" + "\n  é\n  ok"


def test_ctrl_c_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info, cli_errors("generate"):
        raise KeyboardInterrupt
    assert (exit_info.value.code, capsys.readouterr().err) == (130, "\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["pipeline", "generate"], 130), (["stages.train"], -signal.SIGINT)],
    ids=["pipeline", "stages"],
)
def test_ctrl_c_during_imports_ends_quietly(arguments: list[str], code: int, tmp_path: Path) -> None:
    """A module in place of torch is interrupted while it is imported. A shell reports 130 for SIGINT too."""
    interrupt = "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
    (tmp_path / "torch.py").write_text(f"import os, signal\n{interrupt}os.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "\n")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_explains_itself_and_refuses_arguments(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code in ((["--help"], 0), (["--yes"], 2)):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_module(f"stages.{name}", run_name="__main__")
        assert exit_info.value.code == code
    assert f"stages.{name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--ranks", "0"],
        ["plan", "--ranks", "1.5"],
        ["plan", "--tokens-per-sec", "0"],
        ["plan", "--tokens-per-sec", "nan"],
        ["plan", "--tokens-per-sec", "inf"],
        ["plan", "--tokens-per-sec", "-1"],
        ["sweep", "train.seed=1,2", "--jobs", "0"],
        ["sweep"],
        ["compare", "--into", ""],
        ["import"],
        ["export"],
        ["launch"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert f"python -m pipeline {arguments[0]}: error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "--samples", "0"], "samples_per_prompt (0)"),
        (["generate", "--temperature", "1e300"], "temperature (1e+300)"),
        (["generate", "\udcff"], r"'\udcff'"),
        (["verify", "params.yaml"], "params.yaml"),
        (["export", "params.yaml", "x"], "params.yaml"),
        (["import", "", "x"], "config.json"),
        (["recipe", ""], "''"),
        (["plan", "--recipe", "params.yaml"], "'params.yaml'"),
    ],
)
def test_wrong_values_are_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 1
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "values"), [("NPROC_PER_NODE", "x 0 -1 1.5"), ("NNODES", "x 0"), ("MAX_RESTARTS", "x -1")]
)
def test_a_wrong_environment_variable_is_named(
    name: str, values: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values.split():
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as exit_info:
            main(["launch", "stages.train"])
        assert exit_info.value.code == 1
        assert f"{name} ({value})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "x"), ("RANK", "-1"), ("RANK", "1"), ("WORLD_SIZE", "0"), ("LOCAL_RANK", "x")]
)
def test_a_wrong_rank_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit), cli_errors("train"), distributed.start(timeout_s=60):
        logger.info("started")
    assert f"{name} ({value})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "policy"),
    [({}, "10000 None"), ({"GOMP_SPINCOUNT": "7"}, "7 None"), ({"OMP_WAIT_POLICY": "active"}, "None active")],
)
def test_threads_spin_less_unless_the_user_says_otherwise(own: dict[str, str], policy: str) -> None:
    """Before torch, which reads the variables, is imported."""
    program = (
        "import os, sys, stages, pipeline.__main__; assert 'torch' not in sys.modules; "
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | own
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == policy
