"""What can be said of a documented command without running it: is it one that its program would take?"""

import argparse
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest
from dvc.cli import parse_args
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

from pipeline.config import load_yaml, validate
from pipeline.recipe import flags, laid_over
from pipeline.sweep.__main__ import trials
from tests.docs.commands import ROOT

# What a command may set in front of itself: pipeline/launch.py's variables, and those of the libraries.
VARIABLES = {"NPROC_PER_NODE", "NNODES", "NODE_RANK", "RDZV_ENDPOINT", "MAX_RESTARTS", "OMP_WAIT_POLICY"}
KNOWN = {"git", "pip", "rsync", "cd", "."}


class _Parsed(BaseException):
    """Arguments were accepted."""


def check(command: str, scratch: Path) -> None:
    """Raises where a command could not work as it stands. `scratch` is an empty folder; the current one the root.

    Flags and names are held to each program's own parser, params to DVC's grammar and to every rule of params.yaml.
    """
    recipe = re.search(r"\$\(python -m pipeline\.recipe ([\w-]+)\)", command)
    if recipe:
        printed = " ".join(f"-S {flag}" for flag in flags(laid_over(recipe[1]).changes))
        command = command.replace(recipe[0], printed)
    for simple in command.split(" && "):
        words = shlex.split(simple, comments=True)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            assert words.pop(0).partition("=")[0] in VARIABLES
        _check_program(words, scratch)


def _check_program(words: list[str], scratch: Path) -> None:
    match words:
        case ["dvc", *arguments]:
            _check_dvc(arguments, scratch)
        case ["python", "-m", "pipeline.launch", stage]:
            assert importlib.util.find_spec(stage)
        case ["python", "-m", module, *arguments]:
            _check_module(module, arguments)
        case ["make", *targets]:
            subprocess.run(["make", "--dry-run", "--quiet", *targets], cwd=ROOT, check=True, capture_output=True)
        case [program, *_]:
            assert program in KNOWN, f"{program}: nothing here knows how to check it"


def _check_dvc(arguments: list[str], scratch: Path) -> None:
    parsed = parse_args(arguments)
    if arguments[:2] == ["exp", "run"]:
        settings = sweep(parsed.set_param or [])
        assert parsed.queue or len(settings) == 1, "DVC takes a sweep with --queue alone"
        for one in settings:
            shutil.copy(ROOT / "params.yaml", scratch)
            apply_overrides(scratch / "params.yaml", one)
            validate(load_yaml(scratch / "params.yaml"))


def sweep(params: list[str]) -> list[list[str]]:
    """The settings of each experiment that `-S` flags make."""
    return [one["params.yaml"] for one in get_hydra_sweeps(to_path_overrides(params))] if params else [[]]


def _check_module(module: str, arguments: list[str]) -> None:
    """Runs a module's command line as far as its parser."""
    real = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser) -> None:
        real(parser)
        raise _Parsed

    with (
        patch.object(argparse.ArgumentParser, "parse_args", stop),
        patch.object(sys, "argv", [module, *arguments]),
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # runpy's, of a module imported already
        pytest.raises(_Parsed),
    ):
        runpy.run_module(module, run_name="__main__")
    if module == "pipeline.sweep":
        trials([word for word in arguments if "=" in word], load_yaml(ROOT / "params.yaml"))
    if "--recipe" in arguments:
        laid_over(arguments[arguments.index("--recipe") + 1])
