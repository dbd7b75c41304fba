"""The house: imports go down only, and each outside library has one door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dag.imports import ROOT, STAGES, imported_by, modules, needed_by, third_party_of

# From the ground up. A module may import from its own floor and from those below.
FLOORS = {
    "ground": 0,
    "corpus": 1,
    "model": 2,
    "training": 3,
    "tracking": 4,
    "evaluation": 4,
    "reporting": 4,
    "generation": 5,  # colours a text by evaluation's loss of each token
    "model_picture": 5,
    "sweep": 7,
    "top": 6,
    "stages": 7,
}
GROUND = {"config", "files", "log", "machine", "progress", "runs", "runtime", "distributed"}


def floor(module: Path) -> str:
    if module.parts[0] == "stages":
        return "stages"
    if len(module.parts) > 2:
        return module.parts[1]
    return "ground" if module.stem in GROUND | {"__init__"} else "top"


def test_every_module_has_a_floor() -> None:
    assert {floor(module) for module in modules()} <= FLOORS.keys()


@pytest.mark.parametrize("module", modules(), ids=str)
def test_imports_go_down_only(module: Path) -> None:
    above = [other for other in imported_by(module) if FLOORS[floor(other)] > FLOORS[floor(module)]]
    assert not above, f"{module} ({floor(module)}) imports {above}"


def test_floors_of_one_height_do_not_know_each_other() -> None:
    for module in modules():
        for other in imported_by(module):
            if FLOORS[floor(module)] == FLOORS[floor(other)]:
                assert floor(module) == floor(other), f"{module} imports {other}"


def test_no_stage_imports_a_stage() -> None:
    for stage in STAGES:
        assert not [other for other in imported_by(Path("stages", f"{stage}.py")) if other.parts[0] == "stages"]


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("wandb", 1),
        ("matplotlib", 1),
        ("transformers", 0),
        ("datasets", 1),
        ("dvc", 1),
    ],
)
def test_each_outside_library_has_one_door(library: str, doors: int) -> None:
    found = [module for module in modules() if library in third_party_of(module)]
    assert len(found) <= doors, found


@pytest.mark.parametrize("library", ["wandb", "matplotlib", "datasets", "huggingface_hub", "rustbpe", "pandas"])
def test_heavy_libraries_are_imported_where_they_are_used(library: str) -> None:
    """Inside functions: training runs on a machine that has torch, numpy and the small core alone."""
    for module in modules():
        if floor(module) == "reporting" and library == "pandas":
            continue
        tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert library not in {name.partition(".")[0] for name in names}, module


@pytest.mark.parametrize("stage", ["download", "tokenize", "report"])
def test_stages_without_a_model_start_without_torch(stage: str) -> None:
    assert "torch" not in set().union(*(third_party_of(m) for m in needed_by(Path("stages", f"{stage}.py"))))
    program = (
        f"import sys, stages.{stage}; from pipeline import config; "
        "config.validate(config.load_yaml(config.PARAMS_FILE)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_package_files_hold_a_docstring_alone() -> None:
    """They are imported with every module of theirs, and so are nobody's dependency by name."""
    for module in modules():
        if module.name == "__init__.py":
            tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
            assert len(tree.body) == 1, module
            assert ast.get_docstring(tree), module
