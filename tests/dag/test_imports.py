"""The layers of the code: stages -> packages -> base modules; one module per outside library, heavy ones lazily."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dag.imports import ROOT, STAGES, imported_by, modules, needed_by, third_party_of

# Layer -> height. A module may import modules of its own package and of lower layers, never beside or above itself.
# What is not named here must be one of these modules: a new one is a decision.
BASE = {
    "config", "artifacts", "curves", "files", "log", "progress", "formatting", "markdown", "charts", "git", "dvc_lock",
    "runtime", "distributed", "recipes", "ablation", "run_state",
}  # fmt: skip
LAYERS = {
    "base": 0,
    "corpus": 1,
    "model": 2,
    "huggingface": 3,
    "model_directory": 4,
    "inference": 4,
    "tracking": 5,
    "training": 5,
    "reporting": 5,
    "generation": 5,
    "evaluation": 6,
    "comparison": 6,
    "probes": 7,
    "experiment_queue": 7,
    "cli": 8,
    "stages": 8,
    "__main__": 9,
}


def layer(module: Path) -> str:
    name = module.parts[1] if module.parts[0] == "pipeline" else "stages"
    name = name.removesuffix(".py")
    return "base" if name in BASE | {"__init__"} else name


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(module) for module in modules()} <= LAYERS.keys()


def test_imports_go_down_only() -> None:
    wrong = []
    for module in modules():
        for other in imported_by(module):
            ours, theirs = layer(module), layer(other)
            if LAYERS[theirs] > LAYERS[ours] or (LAYERS[theirs] == LAYERS[ours] and theirs != ours):
                wrong.append(f"{module} ({ours}) imports {other} ({theirs})")
    assert not wrong, "\n".join(wrong)


def test_no_stage_imports_a_stage() -> None:
    for stage in STAGES:
        assert not [other for other in imported_by(Path("stages", f"{stage}.py")) if other.parts[0] == "stages"]


@pytest.mark.parametrize(
    ("library", "modules_at_most"), [("wandb", 1), ("altair", 1), ("transformers", 0), ("datasets", 1), ("dvc", 1)]
)
def test_each_outside_library_is_imported_in_one_module(library: str, modules_at_most: int) -> None:
    importing = [module for module in modules() if library in third_party_of(module)]
    assert len(importing) <= modules_at_most, importing


@pytest.mark.parametrize("library", ["wandb", "altair", "datasets", "huggingface_hub", "rustbpe", "pandas", "scipy"])
def test_heavy_libraries_are_imported_inside_functions(library: str) -> None:
    """Training starts fast, and runs on a machine that has torch, numpy and the small core only."""
    for module in modules():
        if layer(module) in ("reporting", "comparison"):
            continue
        for node in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
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


def test_params_are_validated_without_the_libraries_of_the_corpus() -> None:
    program = (
        "import sys; from pipeline import config; config.validate(config.load_yaml(config.PARAMS_FILE)); "
        "sys.exit(bool({'pyarrow', 'tiktoken'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_package_files_hold_a_docstring_alone() -> None:
    """They are imported with every module of theirs, and so are nobody's dep by name. One imports an observer."""
    for module in modules():
        if module.name == "__init__.py":
            tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
            code = [ast.unparse(node) for node in tree.body[1:]]
            assert code == (["import pipeline.log"] if module.parts[0] == "stages" else []), module
            assert ast.get_docstring(tree), module
