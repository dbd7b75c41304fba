"""A sweep: its combinations, what it skips, cost and progress. DVC's queue is replaced by a list."""

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides

from pipeline import experiment_queue, progress
from pipeline.ablation import Ablation, read_ablation
from pipeline.cli import sweep as cli
from pipeline.cli.sweep import LATER_STAGES_S, Speed, enqueue, find_entry, summary, trials, unused_name
from pipeline.config import ConfigError, load_yaml
from pipeline.experiment_queue import (
    Entry,
    ExperimentQueue,
    State,
    Trial,
    train_progress,
    watch,
)
from pipeline.formatting import format_duration
from pipeline.log import UserError
from pipeline.progress import Progress
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


def trials_of(*settings: str) -> list[Trial]:
    return trials(settings, load_yaml(Path("params.yaml")))


def commit(params: dict[str, Any]) -> str:
    """A commit of other params, as an experiment is one; the params in the working tree stay."""
    fixtures.write_yaml(Path("params.yaml"), params)
    fixtures.commit(Path.cwd())
    rev = fixtures.git(Path.cwd(), "rev-parse", "HEAD").strip()
    fixtures.git(Path.cwd(), "checkout", "--quiet", "HEAD~1", "--", "params.yaml")
    return rev


def trial(name: str, gflop: int) -> Trial:
    return Trial(name, (), {}, gflop * 10**9)


class FakeQueue(ExperimentQueue):
    """A queue in which each call of entries() moves every experiment to its next state."""

    def __init__(self, states: dict[str, list[State | None]]) -> None:
        """`states` of each experiment, of which the last stays; None: not in the queue."""
        self.states = states
        self.workers, self.removed, self.logs = 0, list[str](), dict[str, str]()
        self.added: list[tuple[str, Sequence[str]]] = []

    def entries(self) -> list[Entry]:
        now = {name: states.pop(0) if len(states) > 1 else states[0] for name, states in self.states.items()}
        revs = {name: f"result-of-{name}" if state == "done" else f"rev-of-{name}" for name, state in now.items()}
        return [Entry(name, revs[name], state) for name, state in now.items() if state]

    def add(self, name: str, overrides: Sequence[str]) -> str:
        self.added.append((name, overrides))
        self.states[name] = ["queued"]
        return f"rev-of-{name}"

    def remove(self, entry: Entry) -> None:
        self.removed.append(entry.name)
        del self.states[entry.name]

    def start(self, workers: int) -> None:
        self.workers += workers

    def log(self, rev: str) -> str:
        return self.logs.get(rev, "")


def test_every_combination_is_named_by_its_settings(project: Path) -> None:
    names = ["position=rope,seed=1", "position=rope,seed=2", "position=alibi,seed=1", "position=alibi,seed=2"]
    trials = trials_of("train.max_steps=99", *POSITIONS)
    assert [trial.name for trial in trials] == names  # without the setting that all have
    assert [trial.full_name for trial in trials] == [f"{name},max_steps=99" for name in names]


def test_names_that_are_cut_are_told_apart_by_numbers(project: Path) -> None:
    names = [trial.name for trial in trials_of(f"report.title={'x' * 200}1,{'x' * 200}2")]
    assert names[1] == f"{names[0]}-2"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (["train.max_lr=1e-3"], "max_lr=0.001"),
        (["train.betas=[0.9,0.99]", "data.files=['a b.txt']"], "betas=-0.9,0.99-,files=-a-b.txt"),
        (["train.seed=2", "sample.seed=2"], "train.seed=2,sample.seed=2"),
        (["model.init_from=../models/x", "tracking.group=mine"], "init_from=-models-x"),
    ],
)
def test_a_name_is_a_valid_git_ref(project: Path, settings: list[str], name: str) -> None:
    (trial,) = trials_of(*settings)
    assert trial.name == name
    fixtures.git(project, "check-ref-format", f"refs/exps/{trial.name}")


def test_the_validated_params_are_those_that_dvc_writes(project: Path) -> None:
    for trial in trials_of(
        "train.max_lr=1e-3,2", "train.betas=[0.9,0.99]", "model.n_kv_head=null", "train.shuffle=true"
    ):
        shutil.copy("params.yaml", "by_dvc.yaml")
        apply_overrides("by_dvc.yaml", to_path_overrides(list(trial.overrides))["params.yaml"])
        assert load_yaml(Path("by_dvc.yaml")) == trial.params


def test_runs_of_a_sweep_are_one_group(project: Path) -> None:
    assert {trial.params["tracking"]["group"] for trial in trials_of(*POSITIONS, "train.max_steps=99")} == {
        "position,seed"
    }
    assert {trial.params["tracking"]["group"] for trial in trials_of(*POSITIONS, "tracking.group=mine")} == {"mine"}


def test_all_mistakes_are_listed_before_anything_is_queued(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "ExperimentQueue", None)
    with pytest.raises(UserError) as error:
        cli.main(["model.position=rope,rpoe", "model.n_head=4,3", "train.sed=1"])
    lines = str(error.value).splitlines()[1:]
    assert {(line.split()[0].rstrip(":"), line.rpartition("(in ")[2]) for line in lines} == {
        ("model.position", "2 of 4 combinations)"),
        ("train.sed", "4 of 4 combinations)"),
        ("model.n_embd", "1 of 4 combinations)"),
    }


@pytest.mark.parametrize("setting", ["model.position", "+model.new=1", "~model.position", "model.position='rope"])
def test_an_invalid_setting_is_refused(project: Path, setting: str) -> None:
    with pytest.raises(UserError, match=r"position|new"):
        trials_of(setting)


STEPS = """
adamw: {train.optimizer: adamw, train.max_lr: 2.0e-3}
muon: {train.optimizer: muon, train.max_lr: 6.0e-3}
rope: {model: {position: rope}}
faster: {train.max_lr: 8.0e-3}
"""


def steps(text: str = STEPS) -> Ablation:
    Path("steps.yaml").write_text(text)
    return read_ablation(Path("steps.yaml"))


def ablation_trials(
    ablation: Ablation, *settings: str, leave_one_out: bool = False
) -> dict[str, tuple[str, float, str]]:
    """Name to (optimizer, max_lr, position)."""
    found = trials(settings, load_yaml(Path("params.yaml")), ablation, leave_one_out)
    return {
        trial.name: (
            trial.params["train"]["optimizer"],
            trial.params["train"]["max_lr"],
            trial.params["model"]["position"],
        )
        for trial in found
    }


def test_each_step_of_an_ablation_includes_those_before_it(project: Path) -> None:
    assert ablation_trials(steps()) == {
        "adamw": ("adamw", 2e-3, "learned"),
        "muon": ("muon", 6e-3, "learned"),
        "rope": ("muon", 6e-3, "rope"),
        "faster": ("muon", 8e-3, "rope"),
    }


def test_leaving_out_one_step_keeps_the_others(project: Path) -> None:
    assert ablation_trials(steps(), leave_one_out=True) == {
        "full": ("muon", 8e-3, "rope"),
        "without-muon": ("adamw", 8e-3, "rope"),
        "without-rope": ("muon", 8e-3, "learned"),
        "without-faster": ("muon", 6e-3, "rope"),
    }
    replaced = steps(STEPS.replace("rope: {model", "tuned: {train.max_lr: 7.0e-3}\nrope: {model"))
    assert "without-tuned" not in ablation_trials(replaced, leave_one_out=True), "a later step sets its only key"


def test_an_uncommitted_edit_of_a_key_that_a_later_step_sets_is_refused(project: Path) -> None:
    """The comparison could not tell which step an experiment is."""
    params = load_yaml(Path("params.yaml"))
    params["model"]["position"] = "alibi"
    fixtures.write_yaml(Path("params.yaml"), params)
    with pytest.raises(UserError, match=r"model\.position"):
        ablation_trials(steps())
    fixtures.commit(project)
    assert ablation_trials(steps())["adamw"] == ("adamw", 2e-3, "alibi")


def test_settings_are_crossed_with_the_steps_and_name_what_varies(project: Path) -> None:
    found = trials(("train.seed=1,2", "train.max_steps=99"), load_yaml(Path("params.yaml")), steps())
    assert [trial.name for trial in found][:3] == ["adamw,seed=1", "adamw,seed=2", "muon,seed=1"]
    assert found[0].full_name == "adamw,seed=1,max_steps=99"
    assert {trial.params["train"]["max_steps"] for trial in found} == {99}
    assert {trial.params["tracking"]["group"] for trial in found} == {"steps"}
    for trial in found:
        shutil.copy("params.yaml", "by_dvc.yaml")
        apply_overrides("by_dvc.yaml", to_path_overrides(list(trial.overrides))["params.yaml"])
        assert load_yaml(Path("by_dvc.yaml")) == trial.params


def test_a_sweep_over_a_recipe(project: Path) -> None:
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text("model: {position: rope}\ntrain: {max_lr: 5.0e-4, betas: [0.8, 0.95]}\n")
    params = load_yaml(Path("params.yaml"))
    found = trials(["train.max_lr=1e-3,2e-3", "train.max_steps=99"], params, recipe="mine")
    assert [trial.name for trial in found] == ["mine,max_lr=0.001,max_steps=99", "mine,max_lr=0.002,max_steps=99"]
    assert [trial.params["train"]["max_lr"] for trial in found] == [1e-3, 2e-3], "settings override the recipe"
    assert {trial.params["model"]["position"] for trial in found} == {"rope"}
    assert found[0].params["train"]["betas"] == [0.8, 0.95]
    assert found[0].params["tracking"]["group"] == "mine"
    assert [trial.name for trial in trials([], params, recipe="mine")] == ["mine"]
    shutil.copy("params.yaml", "by_dvc.yaml")
    apply_overrides("by_dvc.yaml", to_path_overrides(list(found[0].overrides))["params.yaml"])
    assert load_yaml(Path("by_dvc.yaml")) == found[0].params
    with pytest.raises(ConfigError, match="mine"):
        trials([], params, recipe="other")


def test_a_configuration_of_both_modes_is_one_experiment(project: Path) -> None:
    params, ablation = load_yaml(Path("params.yaml")), steps()
    cumulative, left_out = trials([], params, ablation), trials([], params, ablation, leave_one_out=True)
    entry = Entry("faster", commit(cumulative[-1].params), "done")
    assert [trial.name for trial in left_out if find_entry(trial, [entry])] == ["full"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("- model.position", "mapping"),
        ("only: {model.position: rope}", "1 step"),
        ("a: {}\nb: model.position=rope", "b .*model.position=rope"),
        ("a: {}\n'b/c': {model.position: rope}", "b/c"),
        ("a: {}\nb: {model.position: learned}", "b .* a"),  # as in params.yaml
        ("a: {}\nb: {model.position: rpoe}", "model.position .*rpoe.*1 of 2"),
        ("a: {}\nb: {train.seed: 2}", "train.seed .*steps.yaml"),
    ],
)
def test_a_mistake_in_an_ablation_is_named_before_anything_is_queued(
    project: Path, monkeypatch: pytest.MonkeyPatch, text: str, names: str
) -> None:
    monkeypatch.setattr(cli, "ExperimentQueue", None)
    Path("steps.yaml").write_text(text)
    with pytest.raises(UserError, match=names):
        cli.main(["--cumulative", "steps.yaml", *(["train.seed=1,2"] if "seed" in text else [])])


def test_an_experiment_is_found_by_settings_and_code(project: Path) -> None:
    (trial,) = trials_of("model.position=rope")
    other = copy.deepcopy(trial.params)
    other["runtime"]["workers"], other["tracking"]["group"] = 7, "another"  # which decide nothing
    same = Entry("mine", commit(other), "done")
    different = Entry("position=rope", commit({**trial.params, "train": {**trial.params["train"], "seed": 9}}), "done")
    assert find_entry(trial, [different]) is None
    assert find_entry(trial, [different, same]) is same
    failed = Entry("failed", same.rev, "failed")
    assert find_entry(trial, [failed]) is failed
    assert find_entry(trial, [failed, same]) is same
    (project / "stages/train.py").write_text("steps = 2\n")
    assert find_entry(trial, [same]) is None


def test_only_new_and_failed_trials_are_queued(project: Path) -> None:
    done, running, failed, new = trials_of(*POSITIONS)
    queue = FakeQueue(
        {done.name: ["done"], "hand-typed": ["running"], failed.name: ["failed"], new.name: ["done"]}  # by other code
    )
    entries = {entry.name: entry for entry in queue.entries()}
    jobs = enqueue(
        queue,
        [(done, entries[done.name]), (running, entries["hand-typed"]), (failed, entries[failed.name]), (new, None)],
    )
    assert queue.removed == [failed.name]
    assert [name for name, _ in queue.added] == [failed.name, f"{new.name}-2"]  # both settings vary: no longer name
    assert queue.added[0][1] == ("model.position=alibi", "train.seed=1", "tracking.group='position,seed'")
    assert [job.name for job in jobs.values()] == ["hand-typed", failed.name, f"{new.name}-2"]


def test_a_second_sweep_over_the_same_key_is_named_by_its_other_settings_too(project: Path) -> None:
    queue = FakeQueue({"seed=1": ["done"]})  # of the committed model
    enqueue(queue, [(trial, None) for trial in trials_of("model.mlp=swiglu", "train.seed=1,2")])
    assert [name for name, _ in queue.added] == ["seed=1,mlp=swiglu", "seed=2"]


def test_a_used_name_gets_a_number() -> None:
    assert unused_name("a", {"b"}) == "a"
    assert unused_name("a", {"a", "a-2"}) == "a-3"


def test_the_summary_has_states_and_cost(project: Path) -> None:
    first, second, third, fourth = trials_of(*POSITIONS)
    entries = [Entry("x", "rev", state) for state in ("done", "running", "failed")]
    plan = [(first, entries[0]), (second, entries[1]), (third, entries[2]), (fourth, None)]
    lines = summary(plan, "0123456789", committed={}, speed=Speed(first.flops / 30, overhead=5)).splitlines()
    assert [tuple(line.split(maxsplit=1)) for line in lines[1:-1]] == [
        (first.name, "done"),
        (second.name, "running"),
        (third.name, "failed, to rerun"),
        (fourth.name, "to run"),
    ]
    assert lines[-1].startswith("2 to run, 2 of them")
    seconds = 2 * (30 + 5 + LATER_STAGES_S)
    assert f"{2 * first.flops:.3g} FLOPs, about {format_duration(seconds)} with compiling" in lines[-1]


def test_a_training_that_dvc_has_or_runs_twice_is_counted_once(project: Path) -> None:
    plan = [(trial, None) for trial in trials_of("train.seed=1,2", "sample.temperature=0.2,0.4")]
    last = summary(plan, "0123456789", load_yaml(Path("params.yaml")), speed=None).splitlines()[-1]
    assert last.startswith("4 to run, 1 of them")
    assert last.endswith(f"{plan[0][0].flops:.3g} FLOPs")


def test_watching_shows_progress_results_and_logs_of_failures(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment_queue, "POLL_S", 0)
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0)
    queue = FakeQueue(
        {
            "a": ["queued", "running", "running", "done"],
            "b": ["queued", "queued", "queued", "running", "failed"],
            "c": ["running", "running", "running", "running", "running", None],
        }
    )
    queue.logs = {"rev-of-a": "train 30/100 tok (30%) | ...", "rev-of-b": "\n".join(f"line {n}" for n in range(40))}
    monkeypatch.setattr(experiment_queue, "result", {"result-of-a": "loss 2.5"}.__getitem__)
    trials = {f"rev-of-{name}": trial(name, 100) for name in "abc"}
    assert watch(queue, trials, workers=2) == ["b", "c"]
    printed = capsys.readouterr().out
    assert "a: loss 2.5\n" in printed
    assert re.search(r"^b .*dvc queue logs b\n  \| line 28\n", printed, re.MULTILINE)
    assert "sweep 10% | ended 0 of 3, running a c, left unknown" in printed  # a has trained 30 %
    assert "sweep 33% | ended 1 of 3, running b c, left about " in printed
    assert "sweep 100% | ended 3 of 3" in printed


def test_the_result_of_an_experiment_is_read_from_its_commit(project: Path) -> None:
    fixtures.evaluation_metrics().write(project / "reports/evaluate/metrics.json")
    fixtures.commit(project)
    assert "3.5870" in experiment_queue.result("HEAD")
    assert experiment_queue.result("HEAD~1") == "done"


def test_workers_are_started_when_nothing_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_queue, "POLL_S", 0)
    queue = FakeQueue({"a": ["queued", "running", "queued", "failed"]})
    watch(queue, {"rev-of-a": trial("a", 1)}, workers=2)
    assert queue.workers == 2 + 2  # at the beginning, and when the worker was gone


def test_the_command_imports_no_torch() -> None:
    program = "import sys, pipeline.cli.sweep; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_training_progress_is_read_from_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0)
    assert train_progress("model: GPT of 2 layers") == 0
    with Progress("train", 400, "tok") as bar:
        bar.advance(100)
        bar.advance(200)
    assert train_progress(capsys.readouterr().out) == 0.75


def test_a_repository_without_commits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    fixtures.git(tmp_path, "init", "--quiet")
    with pytest.raises(UserError, match="Empty"):
        ExperimentQueue()
