"""The commands in the documentation (the lines of its ```sh blocks), and a check that each could work as it stands."""

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
from dvc.cli import parse_args
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

from pipeline.__main__ import load_command
from pipeline.config import load_yaml, validate
from pipeline.recipes import apply_recipe, flags

ROOT = Path(__file__).parents[2]
# Set in front of a command: the variables of `python -m pipeline launch`, and those of the libraries.
VARIABLES = {
    "NPROC_PER_NODE",
    "NNODES",
    "NODE_RANK",
    "RDZV_ENDPOINT",
    "MAX_RESTARTS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
}
OTHER_PROGRAMS = {"git", "pip", "rsync", "cd", "ln", "cp", "tail", "ssh", ".", "wandb", "squeue", "scancel"}


class Command(NamedTuple):
    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def all_commands() -> list[Command]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [command for page in pages for command in commands_in(page.name, page.read_text(encoding="utf-8"))]


def commands_in(page: str, text: str) -> Iterator[Command]:
    """The commands in a page's text, without comments; continued lines are joined."""
    in_block, begun = False, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            in_block = line == "```sh"
        elif in_block:
            line = begun + re.sub(r"(^|\s+)# .*", "", line).strip()
            begun = line.removesuffix("\\") if line.endswith("\\") else ""
            if line and not begun:
                yield Command(page, number, line)


class Parsed(BaseException):
    """Arguments were accepted."""


def check(command: str, scratch: Path) -> None:
    """Raises where a command could not work: an unknown program, command, flag or parameter, or a value against a rule.

    `scratch` is an empty folder; the current directory must be ROOT.
    """
    if recipe := re.search(r"\$\(python -m pipeline recipe ([\w-]+)\)", command):
        command = command.replace(recipe[0], " ".join(f"-S {flag}" for flag in flags(apply_recipe(recipe[1]).changes)))
    for simple in command.split(" && "):
        words = shlex.split(simple, comments=True)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            assert words.pop(0).partition("=")[0] in VARIABLES
        match words:
            case ["dvc", *arguments]:
                check_dvc(arguments, scratch)
            case ["python", "-m", "pipeline", name, *arguments]:
                check_pipeline(name, arguments)
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module), module
            case ["python", script, *_]:
                assert Path(script).is_file(), script
            case ["make", *targets]:
                subprocess.run(["make", "--dry-run", "--quiet", *targets], cwd=ROOT, check=True, capture_output=True)
            case [program, *_]:
                assert program in OTHER_PROGRAMS, program


def check_dvc(arguments: list[str], scratch: Path) -> None:
    parsed = parse_args(arguments)
    if arguments[:2] == ["exp", "run"] and parsed.set_param:
        combinations = [sweep["params.yaml"] for sweep in get_hydra_sweeps(to_path_overrides(parsed.set_param))]
        assert parsed.queue or len(combinations) == 1, "several values need --queue"
        for overrides in combinations:
            check_params(overrides, scratch)


def check_params(overrides: list[str], scratch: Path) -> None:
    shutil.copy(ROOT / "params.yaml", scratch)
    apply_overrides(scratch / "params.yaml", overrides)
    validate(load_yaml(scratch / "params.yaml"))


def check_pipeline(name: str, arguments: list[str]) -> None:
    """Runs a command as far as its argument parser."""
    real = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, args: list[str]) -> None:
        real(parser, args)
        raise Parsed

    with patch.object(argparse.ArgumentParser, "parse_args", stop), pytest.raises(Parsed):
        load_command(name)(arguments)
    if name == "sweep":
        from pipeline.cli.sweep import trials

        trials([word for word in arguments if "=" in word], load_yaml(ROOT / "params.yaml"))
    if "--recipe" in arguments:
        apply_recipe(arguments[arguments.index("--recipe") + 1])
