"""A sweep: what it makes of its settings, what it leaves out, what it shows. DVC's queue is played by a list."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides

from pipeline import progress
from pipeline.config import load_yaml
from pipeline.log import Stop
from pipeline.progress import Progress
from pipeline.sweep import __main__ as sweeping
from pipeline.sweep import watch as watching
from pipeline.sweep.__main__ import Trial, free_name, matching, queued, table, trials
from pipeline.sweep.queue import Entry, ExperimentQueue, State
from pipeline.sweep.watch import Job, share_trained, watch
from tests.dag.imports import ROOT
from tests.reporting import fixtures

POSITIONS = ["model.position=rope,alibi", "train.seed=1,2"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of params and code; the current directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/train.py").write_text("steps = 1\n")
    fixtures.git(tmp_path, "init", "--quiet", "--initial-branch=main")
    fixtures.commit(tmp_path)
    return tmp_path


def made(*settings: str) -> list[Trial]:
    return trials(settings, load_yaml(Path("params.yaml")))


def commit(params: dict[str, Any]) -> str:
    """A commit of other params, as an experiment is one; the params in the working tree stay."""
    fixtures.write_yaml(Path("params.yaml"), params)
    fixtures.commit(Path.cwd())
    rev = fixtures.git(Path.cwd(), "rev-parse", "HEAD").strip()
    fixtures.git(Path.cwd(), "checkout", "--quiet", "HEAD~1", "--", "params.yaml")
    return rev


class FakeQueue(ExperimentQueue):
    """A queue that only knows what happens to each experiment from one look to the next."""

    def __init__(self, happens: dict[str, list[State | None]]) -> None:
        """`happens`: the states of an experiment, one at each look, the last for good; None: it is not there."""
        self.happens = happens
        self.started, self.forgotten, self.logs = 0, list[str](), dict[str, str]()
        self.added: list[tuple[str, Sequence[str]]] = []

    def entries(self) -> list[Entry]:
        now = {name: states.pop(0) if len(states) > 1 else states[0] for name, states in self.happens.items()}
        revs = {name: f"result-of-{name}" if state == "done" else f"rev-of-{name}" for name, state in now.items()}
        return [Entry(name, revs[name], state) for name, state in now.items() if state]

    def add(self, name: str, overrides: Sequence[str]) -> str:
        self.added.append((name, overrides))
        self.happens[name] = ["queued"]
        return f"rev-of-{name}"

    def forget(self, entry: Entry) -> None:
        self.forgotten.append(entry.name)
        del self.happens[entry.name]

    def start(self, jobs: int) -> None:
        self.started += jobs

    def log(self, rev: str) -> str:
        return self.logs.get(rev, "")


def test_every_combination_is_named_by_its_settings(project: Path) -> None:
    names = ["position=rope,seed=1", "position=rope,seed=2", "position=alibi,seed=1", "position=alibi,seed=2"]
    assert [trial.name for trial in made(*POSITIONS)] == names


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (["train.max_lr=1e-3"], "max_lr=0.001"),
        (["train.betas=[0.9,0.99]", "data.files=['a b.txt']"], "betas=-0.9,0.99-,files=-a-b.txt"),
        (["train.seed=2", "sample.seed=2"], "train.seed=2,sample.seed=2"),
        (["model.init_from=../models/x", "tracking.group=mine"], "init_from=-models-x"),
    ],
)
def test_a_name_is_one_that_git_takes(project: Path, settings: list[str], name: str) -> None:
    (trial,) = made(*settings)
    assert trial.name == name
    fixtures.git(project, "check-ref-format", f"refs/exps/{trial.name}")


def test_what_is_checked_is_what_dvc_would_write(project: Path) -> None:
    for trial in made("train.max_lr=1e-3,2", "train.betas=[0.9,0.99]", "model.n_kv_head=null", "train.order=shuffled"):
        shutil.copy("params.yaml", "by_dvc.yaml")
        apply_overrides("by_dvc.yaml", to_path_overrides(list(trial.overrides))["params.yaml"])
        assert load_yaml(Path("by_dvc.yaml")) == trial.params


def test_runs_of_a_sweep_are_one_group_unless_told_otherwise(project: Path) -> None:
    assert {trial.params["tracking"]["group"] for trial in made(*POSITIONS, "train.max_steps=99")} == {"position,seed"}
    assert {trial.params["tracking"]["group"] for trial in made(*POSITIONS, "tracking.group=mine")} == {"mine"}


def test_all_mistakes_are_told_before_anything_is_queued(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "ExperimentQueue", None)
    with pytest.raises(Stop, match="nothing is queued") as stop:
        sweeping.sweep(["model.position=rope,rpoe", "model.n_head=4,3", "train.sed=1"], 1, dry_run=False)
    assert "model.position ('rpoe'): input should be 'learned'" in str(stop.value)
    assert "train.sed: unknown key (in 4 of 4 combinations)" in str(stop.value)
    with pytest.raises(Stop, match=r"n_embd \(256\) must be a multiple of n_head \(3\) \(in 1 of 2 combinations\)"):
        made("model.n_head=4,3")


@pytest.mark.parametrize("setting", ["model.position", "+model.new=1", "~model.position", "model.position='rope"])
def test_a_setting_that_is_none_is_refused(project: Path, setting: str) -> None:
    with pytest.raises(Stop, match=r"position|new"):
        made(setting)


def test_an_experiment_is_the_trial_where_settings_and_code_are_its(project: Path) -> None:
    (trial,) = made("model.position=rope")
    other = copy.deepcopy(trial.params)
    other["runtime"]["workers"], other["tracking"]["group"] = 7, "another"  # which decide nothing
    same = Entry("mine", commit(other), "done")
    different = Entry("position=rope", commit({**trial.params, "train": {**trial.params["train"], "seed": 9}}), "done")
    assert matching(trial, [different]) is None
    assert matching(trial, [different, same]) is same
    failed = Entry("failed", same.rev, "failed")
    assert matching(trial, [failed]) is failed
    assert matching(trial, [failed, same]) is same
    (project / "stages/train.py").write_text("steps = 2\n")
    assert matching(trial, [same]) is None


def test_only_what_is_not_done_nor_on_its_way_is_queued(project: Path) -> None:
    done, running, failed, new = made(*POSITIONS)
    queue = FakeQueue(
        {done.name: ["done"], "hand-typed": ["running"], failed.name: ["failed"], new.name: ["done"]}  # by other code
    )
    entries = {entry.name: entry for entry in queue.entries()}
    jobs = queued(
        queue,
        [(done, entries[done.name]), (running, entries["hand-typed"]), (failed, entries[failed.name]), (new, None)],
    )
    assert queue.forgotten == [failed.name]
    assert [name for name, _ in queue.added] == [failed.name, f"{new.name}-2"]
    assert queue.added[0][1] == ("model.position=alibi", "train.seed=1", "tracking.group='position,seed'")
    assert [job.name for job in jobs.values()] == ["hand-typed", failed.name, f"{new.name}-2"]


def test_a_free_name_is_kept_and_a_taken_one_numbered() -> None:
    assert free_name("a", {"b"}) == "a"
    assert free_name("a", {"a", "a-2"}) == "a-3"


def test_the_table_tells_what_there_is_to_do_and_what_it_costs(project: Path) -> None:
    first, second, third, fourth = made(*POSITIONS)
    entries = [Entry("x", "rev", state) for state in ("done", "running", "failed")]
    wanted = [(first, entries[0]), (second, entries[1]), (third, entries[2]), (fourth, None)]
    text = table(wanted, "0123456789", committed={}, rate=first.flops / 30)
    assert [line.split()[1:] for line in text.splitlines()[1:-1]] == [
        ["done"],
        ["running"],
        ["failed,", "to", "run", "again"],
        ["to", "run"],
    ]
    cost = f"{2 * first.flops:.3g} FLOPs, 1m00s at the rate of the last run"
    assert text.splitlines()[-1] == f"2 to run, 2 of them trained: {cost}"


def test_what_is_trained_already_or_twice_costs_nothing(project: Path) -> None:
    committed = load_yaml(Path("params.yaml"))
    wanted = [(trial, None) for trial in made("train.seed=1,2", "sample.temperature=0.2,0.4")]
    last = table(wanted, "0123456789", committed, rate=None).splitlines()[-1]
    assert last == f"4 to run, 1 of them trained: {wanted[0][0].flops:.3g} FLOPs"


def test_watching_shows_results_and_why_one_failed_and_ends_with_the_last(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0)
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0)
    queue = FakeQueue(
        {
            "a": ["queued", "running", "running", "done"],
            "b": ["queued", "queued", "queued", "running", "failed"],
            "c": ["running", "running", "running", "running", "running", None],
        }
    )
    queue.logs = {"rev-of-a": "train 30/100 tok (30%) | ...", "rev-of-b": "\n".join(f"line {n}" for n in range(40))}
    monkeypatch.setattr(watching, "result", {"result-of-a": "loss 2.5"}.__getitem__)
    jobs = {f"rev-of-{name}": Job(name, 100) for name in "abc"}
    assert watch(queue, jobs, workers=2) == ["b", "c"]
    said = capsys.readouterr().out
    assert "a: loss 2.5\n" in said
    assert "b failed; all that it printed: dvc queue logs b\n  | line 28\n" in said
    assert "sweep 30/300 GFLOP (10%)" in said
    assert "ended 0/3, running a c" in said
    assert "sweep 300/300 GFLOP (100%)" in said


def test_workers_are_started_whenever_nothing_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0)
    queue = FakeQueue({"a": ["queued", "running", "queued", "failed"]})
    watch(queue, {"rev-of-a": Job("a", 1)}, workers=2)
    assert queue.started == 2 + 2  # at the beginning, and when the worker was gone


def test_the_command_imports_no_torch() -> None:
    program = (
        "import sys; from pipeline.sweep.__main__ import combinations; "
        "combinations(['a.b=1,2']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_how_far_training_is_is_read_from_its_own_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0)
    assert share_trained("model: GPT of 2 layers") == 0
    with Progress("train", 400, "tok") as bar:
        bar.advance(100)
        bar.advance(200)
    assert share_trained(capsys.readouterr().out) == 0.75
