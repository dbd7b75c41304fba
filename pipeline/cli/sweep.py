"""Runs every combination of settings as DVC experiments: python -m pipeline sweep KEY=VALUE,VALUE ...

    python -m pipeline sweep model.position=learned,rope,alibi train.seed=1,2,3 --dry-run   # the list and its cost
    python -m pipeline sweep model.position=learned,rope,alibi train.seed=1,2,3
    python -m pipeline sweep --recipe modern-small train.seed=1,2,3         # over recipes/modern-small.yaml
    python -m pipeline sweep --cumulative steps.yaml train.seed=1,2,3       # the steps in a file, one after another
    python -m pipeline sweep --leave-one-out steps.yaml train.seed=1,2,3    # all of them, and all but one

All values are validated before anything is queued. Experiments are named by the settings that vary and run in the
background by DVC's queue, so Ctrl-C ends only the progress display. The same command continues a sweep: it skips what
was done from this commit with the same settings and code, and reruns what failed.

pipeline/ablation.py describes the file of steps. Its experiments are named by step (`rope,seed=2`), and the settings on
the command line are crossed with its configurations.

Reads params.yaml, Git and DVC's queue; data/shards and reports/train/summary.json for the cost. Exits with 1 if an
experiment failed. Needs no torch.
"""

import argparse
import copy
import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from pipeline import git
from pipeline.ablation import Ablation, read_ablation
from pipeline.cli.arguments import positive_int
from pipeline.cli.plan import SHARDS, SUMMARY, flops_per_sec, last_run, make_plan, read_params, text_vocabulary
from pipeline.config import PARAMS_FILE, ConfigError, load_yaml
from pipeline.dvc_lock import flat, short_keys
from pipeline.experiment_queue import Entry, ExperimentQueue, Trial, combinations, same_code, watch
from pipeline.formatting import format_duration, hydra_value
from pipeline.git import params_at
from pipeline.log import UserError, logger
from pipeline.recipes import NO_RESULT_SECTIONS, apply_recipe, plain
from pipeline.tracking.wandb_run import LONGEST_NAME, NAMING_SECTIONS

GROUP = "tracking.group"
LATER_STAGES_S = 20.0  # evaluate, sample and report, of the default run on two CPU cores


@dataclass(frozen=True)
class Speed:
    """How fast experiments run, measured by a training run on this machine."""

    flops_per_sec: float
    overhead: float
    """Seconds of compiling, validation and samples in a training run."""

    def training(self, flops: int) -> float:
        """Seconds of a training run."""
        return self.overhead + flops / self.flops_per_sec


def trials(
    settings: Sequence[str],
    params: Mapping[str, Any],
    ablation: Ablation | None = None,
    leave_one_out: bool = False,
    recipe: str = "",
) -> list[Trial]:
    """Every combination of `settings` over `params`, a recipe or each configuration of an ablation, in the order given.

    Raises UserError that lists each mistake with the number of combinations that have it.
    """
    combined = combinations(settings)
    keys = [key for key in combined[0] if key != GROUP]
    varied = [key for key in keys if len({combination[key][1] for combination in combined}) > 1]
    keys.sort(key=lambda key: key not in varied)  # a long name is cut at its end
    if ablation is None:
        varied = keys if recipe else varied or keys
        group = recipe or ",".join(short_keys(varied).values())
        steps = {recipe: plain(apply_recipe(recipe).changes) if recipe else {}}
    else:
        group, steps = ablation.path.stem, _steps(ablation, leave_one_out, params)
        if repeated := sorted(ablation.keys & combined[0].keys()):
            raise UserError(f"{repeated[0]} is set by a step of {ablation.path}: it cannot be set here too")
    valid, mistakes = list[Trial](), Counter[str]()
    for step, of_step in steps.items():
        for combination in combined:
            chosen = {key: (value, f"{key}={hydra_value(value)}") for key, value in of_step.items()} | combination
            chosen.setdefault(GROUP, (group, f"{GROUP}={hydra_value(group)}"))
            values = copy.deepcopy(dict(params))
            for dotted, (value, _) in chosen.items():
                section, _, key = dotted.partition(".")
                values.setdefault(section, {})[key] = value
            try:
                flops = _training_flops(values)
            except ConfigError as error:
                mistakes.update(str(error).splitlines()[1:])
                continue
            overrides = tuple(override for _, override in chosen.values())
            name = unused_name(_name(step, combination, varied), {trial.name for trial in valid})
            valid.append(Trial(name, overrides, values, flops, _name(step, combination, keys)))
    if mistakes:
        total = len(steps) * len(combined)
        lines = [f"{line} (in {number} of {total} combinations)" for line, number in mistakes.items()]
        raise UserError("nothing was queued:\n" + "\n".join(lines))
    return valid


def _steps(ablation: Ablation, leave_one_out: bool, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each configuration.

    Raises UserError if two are the same configuration over `params`, or a key that a later step sets was edited:
    `compare` recognizes the steps before that one by the committed value.
    """
    current, committed = flat(params), flat(params_at("HEAD"))
    later = ablation.keys - next(iter(ablation.steps.values())).keys()
    if edited := sorted(key for key in later if current.get(key) != committed.get(key)):
        raise UserError(f"{edited[0]}: commit its new value, or set it in the first step of {ablation.path}")
    steps = ablation.leave_one_out() if leave_one_out else ablation.cumulative()
    before: dict[str, dict[str, Any]] = {}
    for step, settings in steps.items():
        after = current | settings
        if same := next((other for other, values in before.items() if values == after), None):
            raise UserError(f"{ablation.path}: {step} has the same settings as {same}")
        before[step] = after
    return steps


def _training_flops(values: Mapping[str, Any]) -> int:
    """FLOPs of training with these params. Raises ConfigError for invalid params."""
    model, train, runtime, tokenizer, _ = read_params(values)
    return make_plan(model, train, runtime, *text_vocabulary(tokenizer, SHARDS), ranks=1).flops


def _name(step: str, combination: Mapping[str, tuple[Any, str]], keys: Sequence[str]) -> str:
    """A step and the settings of these keys as a valid Git ref name: `position=rope,seed=2`, `muon,seed=1`."""
    words = [f"{short}={combination[key][1].partition('=')[2]}" for key, short in short_keys(keys).items()]
    return re.sub(r"(?:[^\w.=,+-]|\.{2,})+", "-", ",".join(filter(None, [step, *words])))[:LONGEST_NAME].strip("-.,")


def find_entry(trial: Trial, entries: Sequence[Entry]) -> Entry | None:
    """The experiment with the trial's settings and the working tree's code; a failed one only if there is no other."""
    wanted = _result_params(trial.params)
    same = [entry for entry in entries if _result_params_at(entry.rev) == wanted and same_code(entry.rev)]
    return min(same, key=lambda entry: entry.state == "failed", default=None)


def _result_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params that results depend on."""
    return {name: section for name, section in params.items() if name not in NO_RESULT_SECTIONS}


@cache  # parsing takes longer than Git, and every trial is compared with every experiment
def _result_params_at(rev: str) -> dict[str, Any]:
    return _result_params(params_at(rev))


def enqueue(queue: ExperimentQueue, plan: Sequence[tuple[Trial, Entry | None]]) -> dict[str, Trial]:
    """Queues the trials that are not done, queued or running. Returns those to watch, by entry revision."""
    trials = {}
    for trial, entry in plan:
        if entry is not None and entry.state == "failed":
            queue.remove(entry)
        if _must_run(entry):
            used = {other.name for other in queue.entries()}
            name = trial.name if trial.name not in used else unused_name(trial.full_name, used)
            trials[queue.add(name, trial.overrides)] = replace(trial, name=name)
        elif entry is not None and entry.state != "done":
            trials[entry.rev] = replace(trial, name=entry.name)
    return trials


def _must_run(entry: Entry | None) -> bool:
    return entry is None or entry.state == "failed"


def unused_name(name: str, used: Collection[str]) -> str:
    """The name, with a number appended if an experiment with other settings or code has it."""
    names = (f"{name}-{number}" if number > 1 else name for number in count(1))
    return next(name for name in names if name not in used)


def summary(
    plan: Sequence[tuple[Trial, Entry | None]],
    commit: str,
    committed: Mapping[str, Any],
    speed: Speed | None,
) -> str:
    """The state of every trial, and the cost of what must run. `committed`: params that `commit` has results of."""
    width = max(len(trial.name) for trial, _ in plan)
    lines = [f"{len(plan)} experiment{'s' * (len(plan) != 1)} from {commit[:7]}:"]
    for trial, entry in plan:
        state = "to run" if entry is None else "failed, to rerun" if entry.state == "failed" else entry.state
        lines.append(f"  {trial.name:<{width}}  {state}")
    to_run = [trial for trial, entry in plan if _must_run(entry)]
    trainings = {_train_key(trial.params): trial.flops for trial in to_run}
    trainings.pop(_train_key(committed), None)  # DVC has its result in the run cache, as of a training run twice
    flops = sum(trainings.values())
    cost = f"{len(to_run)} to run, {len(trainings)} of them with training: {flops:.3g} FLOPs"
    if speed is not None:
        seconds = sum(map(speed.training, trainings.values())) + len(to_run) * LATER_STAGES_S
        cost += (
            f", about {format_duration(seconds)} with compiling, evaluation and report, at the speed of the last run"
        )
    lines.append(cost)
    return "\n".join(lines)


def _train_key(params: Mapping[str, Any]) -> str:
    """The params that training depends on."""
    return json.dumps([params.get(section) for section in NAMING_SECTIONS])


def last_speed(summary: Path) -> Speed | None:
    """The speed of the last training run; None if there was none."""
    run = last_run(summary)
    speed = flops_per_sec(run) if run else None
    return Speed(speed, max(run.wall_time_s - run.train_time_s, 0.0)) if run and speed else None


def sweep(wanted: Sequence[Trial], workers: int, dry_run: bool, ablation: Ablation | None = None) -> None:
    """Runs what is neither done nor queued. Raises UserError at the end if an experiment has failed."""
    queue = ExperimentQueue()
    entries = queue.entries()
    plan = [(trial, find_entry(trial, entries)) for trial in wanted]
    has_results = same_code(queue.baseline) and git.show(Path.cwd(), queue.baseline, "./dvc.lock")
    committed = params_at(queue.baseline) if has_results else {}
    speed = last_speed(SUMMARY)
    logger.info("%s", summary(plan, queue.baseline, committed, speed))
    if dry_run:
        return
    running = enqueue(queue, plan)
    try:
        failed = watch(queue, running, min(workers, len(running)))
    except KeyboardInterrupt:
        logger.info(
            "experiments continue in the background: this command shows them, `dvc queue stop --kill` ends them"
        )
        raise
    names = [entry.name for _, entry in plan if entry is not None and entry.state == "done"]
    names += [trial.name for trial in running.values()]
    others = {entry.name for entry in queue.entries()} - set(names)  # if there are none, compare's default is enough
    selection = ["--ablation", str(ablation.path)] if ablation else names if others else []
    logger.info("compare them: %s", shlex.join(["python", "-m", "pipeline", "compare", *selection]))
    if failed:
        raise UserError(f"{len(failed)} of {len(plan)} failed: {' '.join(failed)}; the same command reruns them")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say what to run."""
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE,VALUE", help="as for dvc exp run -S")
    configurations = parser.add_mutually_exclusive_group()
    configurations.add_argument("--recipe", metavar="NAME", help="settings over recipes/NAME.yaml")
    configurations.add_argument(
        "--cumulative", type=Path, metavar="FILE", help="cumulative ablation: each step in FILE with those before it"
    )
    configurations.add_argument(
        "--leave-one-out",
        type=Path,
        metavar="FILE",
        help="leave-one-out ablation: all steps in FILE, then without each",
    )


def read_trials(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[list[Trial], Ablation | None]:
    """What the arguments say to run, and of which ablation. Raises UserError that lists all mistakes."""
    path = options.cumulative or options.leave_one_out
    if not (options.settings or options.recipe or path):
        parser.error("give KEY=VALUE,VALUE, --recipe NAME, --cumulative FILE or --leave-one-out FILE")
    ablation, left_out = read_ablation(path) if path else None, options.leave_one_out is not None
    return trials(options.settings, load_yaml(PARAMS_FILE), ablation, left_out, options.recipe or ""), ablation


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline sweep", description="Runs combinations of settings.")
    add_settings(parser)
    parser.add_argument("--jobs", type=positive_int, default=1, help="experiments at a time (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="only print what would run and its cost")
    options = parser.parse_args(arguments)
    # DVC's workers start `dvc`, and the stages `python`, by name.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    wanted, ablation = read_trials(parser, options)
    sweep(wanted, options.jobs, options.dry_run, ablation)
