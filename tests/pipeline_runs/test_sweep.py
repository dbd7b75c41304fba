"""A sweep as people type it: real DVC, real stages, a tiny model; one of its two experiments fails on purpose."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline_runs.project import Project
from tests.tracking.offline import of_kind

pytestmark = pytest.mark.slow

# At the second of these rates the loss is soon no number any more.
SWEEP = ("model.n_layer=1", "train.max_lr=1e-3,100", "train.weight_decay=1000", "train.max_skipped_steps=0")
GOOD, BAD = "max_lr=0.001", "max_lr=100"


class Swept(Project):
    """A project in which the sweep has run."""

    printed: str


def sweep(project: Project, *arguments: str, ok: bool) -> str:
    return project.run("python", "-m", "pipeline", "sweep", *SWEEP, *arguments, ok=ok, timeout=280)


@pytest.fixture(scope="module")
def swept(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    project = Swept(finished.copy(tmp_path_factory.mktemp("swept") / "copy").path)
    project.printed = sweep(project, ok=False)
    return project


def metrics(project: Project, name: str) -> dict[str, Any]:
    """What an experiment left in its commit."""
    base = project.git("rev-parse", "HEAD").strip()
    found: dict[str, Any] = json.loads(
        project.git("show", f"refs/exps/{base[:2]}/{base[2:]}/{name}:reports/evaluate/metrics.json")
    )
    return found


def test_results_and_failures_are_told_as_they_come(swept: Swept) -> None:
    assert f"{GOOD}: validation loss {metrics(swept, GOOD)['val']['loss']:.4f}, " in swept.printed
    assert f"{BAD} failed; full log: dvc queue logs {BAD}\n" in swept.printed
    assert "more than train.max_skipped_steps (0)" in swept.printed
    assert swept.printed.splitlines()[-1].startswith(f"sweep: 1 of 2 failed: {BAD}")


def test_the_experiments_are_dvc_s_own(swept: Swept) -> None:
    shown = swept.dvc("exp", "show", "--csv")
    assert shown.index("val.loss") < shown.index("tokens_per_sec")  # what experiments are compared by comes first
    assert GOOD in shown
    assert BAD in shown
    assert swept.dvc("queue", "status").count("Success") == 1
    log = swept.dvc("queue", "logs", GOOD)
    assert "Stage 'tokenize' didn't change, skipping" in log
    assert "Running stage 'train'" in log


def test_the_comparison_s_numbers_are_those_of_the_metrics_files(swept: Swept) -> None:
    (command,) = re.findall(r"^compare them: (python .*\S)", swept.printed, re.MULTILINE)
    swept.run(*command.split())
    page = (swept.path / "reports/compare.md").read_text(encoding="utf-8")
    table = {
        line.split("`")[1]: [cell.strip(" *") for cell in line.split("|")]
        for line in page.partition("## Runs")[2].partition("Best in bold")[0].splitlines()
        if line.startswith("| `")
    }
    header = next(line for line in page.splitlines() if line.startswith("| Run")).split("|")
    columns = [name.strip() for name in header]
    assert set(table) == {GOOD, BAD, "main"}
    val = metrics(swept, GOOD)["val"]
    assert table[GOOD][columns.index("Loss")] == f"{val['loss']:.4f}"
    assert table[GOOD][columns.index("Bits/byte")] == f"{val['bpb']:.4f}"
    assert f"| `{BAD}` (failed)" in page


def test_the_same_command_leaves_out_what_is_done(swept: Swept) -> None:
    lines = sweep(swept, "--dry-run", ok=True).splitlines()
    states = {line.split()[0]: line.split()[1] for line in lines if line.startswith("  max_lr")}
    assert states == {GOOD: "done", BAD: "failed,"}
    assert re.fullmatch(
        r"1 to run, 1 of them with training: \S+ FLOPs, about .+ at the speed of the last run", lines[-1]
    )


def test_w_and_b_shows_one_group_of_runs_named_by_what_they_change(swept: Swept) -> None:
    base = swept.git("rev-parse", "HEAD").strip()
    runs = {}
    for part in sorted(swept.path.glob("wandb/offline-run-*")):
        (run,), (ended,) = of_kind(part, "run"), of_kind(part, "exit")
        if run.get("notes"):  # which neither the finished project's own run has, nor what is added to a run later
            runs[run["display_name"]] = run, ended
    assert set(runs) == {GOOD, BAD}
    for name, (run, ended) in runs.items():
        assert run["run_group"] == f"max_lr @ {base[:7]}"
        assert run["notes"].endswith(f"\n\ndvc exp apply {name}")
        assert run["config"]["update"]["dvc"] == {"experiment": name, "baseline": base}
        assert ended.get("exit_code", 0) == (1 if name == BAD else 0)


def test_an_applied_experiment_has_nothing_left_to_run(swept: Swept, tmp_path: Path) -> None:
    project = swept.copy(tmp_path / "copy")
    project.dvc("exp", "apply", GOOD)
    assert project.json("reports/evaluate/metrics.json") == metrics(project, GOOD)
    assert "up to date" in project.dvc("repro")
