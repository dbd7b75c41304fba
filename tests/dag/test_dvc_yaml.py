"""dvc.yaml says what the code does: deps are the imports, params the sections that are read."""

import ast
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import OWNERS, load_yaml, owner
from tests.dag.imports import ROOT, STAGES, deps_of

# How a run is executed and watched is no part of what it computes.
NOT_PARAMS = {"runtime", "tracking"}


def stage_of(name: str) -> dict[str, Any]:
    stage: dict[str, Any] = load_yaml(ROOT / "dvc.yaml")["stages"][name]
    return stage


def test_the_stages_are_these_six_in_this_order() -> None:
    assert tuple(load_yaml(ROOT / "dvc.yaml")["stages"]) == STAGES


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_imports(name: str) -> None:
    listed = [dep for dep in stage_of(name)["deps"] if dep.endswith(".py")]
    assert sorted(listed) == deps_of(name), "python -m tests.dag.imports prints what dvc.yaml should list"


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_sections_read(name: str) -> None:
    """Each stage names the classes of its sections in its calls of read_sections."""
    classes = {owner(section).__name__: section for section in OWNERS}
    tree = ast.parse((ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "read_sections"
    ]
    assert len(calls) == 1
    read = {classes[argument.id] for argument in calls[0].args if isinstance(argument, ast.Name)}
    assert len(read) == len(calls[0].args)
    assert set(stage_of(name)["params"]) == read - NOT_PARAMS


def test_each_stage_reads_what_an_earlier_one_writes() -> None:
    written: set[str] = set()
    for name in STAGES:
        stage = stage_of(name)
        data = {dep for dep in stage["deps"] if not dep.endswith(".py")}
        assert data <= written, f"{name} reads {data - written}, which no stage before it writes"
        for kind in ("outs", "metrics", "plots"):
            written |= {next(iter(out)) if isinstance(out, dict) else out for out in stage.get(kind, [])}


def test_reports_belong_to_git_and_data_to_dvc() -> None:
    for name in STAGES:
        for kind in ("outs", "metrics", "plots"):
            for out in stage_of(name).get(kind, []):
                path, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
                assert options.get("cache", True) == (path.startswith("data/") or path == "reports/report.html"), path
                assert options.get("persist", False) == (name == "train"), path


def test_the_commands_run_modules() -> None:
    """`python stages/tokenize.py` would put stages/ on the path, where tokenize.py hides the standard library's."""
    for name in STAGES:
        assert f"-m stages.{name}" in stage_of(name)["cmd"] or f"launch stages.{name}" in stage_of(name)["cmd"]
        assert (ROOT / Path("stages", f"{name}.py")).is_file()
