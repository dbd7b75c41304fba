"""dvc.yaml says what the code does: deps are the imports, params the sections that are read."""

import ast
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import OWNERS, load_yaml, owner
from tests.dag.imports import ROOT, STAGES, modules, needed_by

# How a run is executed and watched is no part of what it computes.
NOT_PARAMS = {"runtime", "tracking"}

# Modules that report on a stage or start it, and cannot change what it computes. Those of training are held to that by
# a test: with and without them the weights are the same bit for bit (tests/pipeline_runs/test_repro.py).
OBSERVERS = (
    Path("pipeline/log.py"),
    Path("pipeline/progress.py"),
    Path("pipeline/runtime.py"),  # how a stage is executed; no stage lists the section either
    Path("pipeline/probes.py"),
    Path("pipeline/tracking"),
    Path("pipeline/corpus/workers.py"),  # spreads tokenization over processes: the same bytes for any number
)
# Of training: they name the commit in summary.json, format log lines, and remove the state of recorded runs.
TRAIN_OBSERVERS = (Path("pipeline/git.py"), Path("pipeline/formatting.py"), Path("pipeline/dvc_lock.py"))


def stage_of(name: str) -> dict[str, Any]:
    stage: dict[str, Any] = load_yaml(ROOT / "dvc.yaml")["stages"][name]
    return stage


def test_the_stages_are_these_six_in_this_order() -> None:
    assert tuple(load_yaml(ROOT / "dvc.yaml")["stages"]) == STAGES


def deps_of(name: str) -> list[Path]:
    """The code that a stage lists: modules, and packages as directories."""
    return [Path(dep) for dep in stage_of(name)["deps"] if dep.startswith(("pipeline/", "stages/"))]


def is_observer(module: Path, stage: str) -> bool:
    observers = OBSERVERS + (TRAIN_OBSERVERS if stage == "train" else ())
    return any(module.is_relative_to(observer) for observer in observers)


@pytest.mark.parametrize("name", STAGES)
def test_each_imported_module_is_a_dep_or_an_observer(name: str) -> None:
    observers = frozenset(module for module in modules() if is_observer(module, name))
    needed = needed_by(Path("stages", f"{name}.py"), leave_out=observers)
    missing = [module for module in needed if not any(module.is_relative_to(dep) for dep in deps_of(name))]
    assert not missing, f"list them in dvc.yaml, or among the observers if they cannot change an output: {missing}"


@pytest.mark.parametrize("name", STAGES)
def test_each_dep_is_needed(name: str) -> None:
    """A dep that the stage does not import would rerun it for nothing."""
    needed = needed_by(Path("stages", f"{name}.py"))
    for dep in deps_of(name):
        assert not is_observer(dep, name), f"{dep} is an observer"
        assert any(module.is_relative_to(dep) for module in needed), f"{dep} is not imported"


@pytest.mark.parametrize(
    ("edited", "stages"),
    [
        ("pipeline/tracking/wandb_run.py", set()),
        ("pipeline/progress.py", set()),
        ("pipeline/log.py", set()),
        ("pipeline/probes.py", set()),
        ("pipeline/model/gpt.py", {"train", "evaluate", "sample"}),
        ("pipeline/training/optim.py", {"train"}),
        ("pipeline/training/data_loader.py", {"train"}),
        ("pipeline/training/trainer.py", {"train"}),
        ("pipeline/generation/sampling.py", {"evaluate", "sample"}),
        ("pipeline/evaluation/val_loss.py", {"train", "evaluate"}),
        ("pipeline/evaluation/benchmarks.py", {"evaluate"}),
        ("pipeline/corpus/sources.py", {"download"}),
        ("pipeline/reporting/report.py", {"report"}),
    ],
)
def test_an_edit_reruns_the_stages_that_it_can_change(edited: str, stages: set[str]) -> None:
    assert (ROOT / edited).is_file()
    rerun = {name for name in STAGES if any(Path(edited).is_relative_to(dep) for dep in deps_of(name))}
    assert rerun == stages


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
        data = {dep for dep in stage["deps"] if dep.startswith(("data/", "reports/"))}
        missing = {dep for dep in data if not any(Path(dep).is_relative_to(out) for out in written)}
        assert not missing, f"{name} reads {missing}, which no stage before it writes"
        for kind in ("outs", "metrics", "plots"):
            written |= {next(iter(out)) if isinstance(out, dict) else out for out in stage.get(kind, [])}


def test_reports_belong_to_git_and_data_to_dvc() -> None:
    for name in STAGES:
        for kind in ("outs", "metrics", "plots"):
            for out in stage_of(name).get(kind, []):
                path, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
                assert options.get("cache", True) == path.startswith("data/"), path
                assert options.get("persist", False) == (name in ("train", "download")), path


def test_the_commands_run_modules() -> None:
    """`python stages/tokenize.py` would put stages/ on the path, where tokenize.py hides the standard library's."""
    for name in STAGES:
        assert f"-m stages.{name}" in stage_of(name)["cmd"] or f"launch stages.{name}" in stage_of(name)["cmd"]
        assert (ROOT / Path("stages", f"{name}.py")).is_file()
