"""Runs every combination of settings as DVC experiments: python -m pipeline sweep KEY=VALUE,VALUE ...

    python -m pipeline sweep model.position=learned,rope,alibi train.seed=1,2,3 --dry-run   # the list and its cost
    python -m pipeline sweep model.position=learned,rope,alibi train.seed=1,2,3

All values are validated before anything is queued. Experiments are named by the settings that vary and run in the
background by DVC's queue, so Ctrl-C ends only the progress display. The same command continues a sweep: it skips what
was done from this commit with the same settings and code, and reruns what failed.

Reads params.yaml, Git and DVC's queue; data/shards and reports/train/summary.json for the cost. Exits with 1 if an
experiment failed. Needs no torch.
"""

import argparse
import copy
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from pipeline import git
from pipeline.cli.arguments import positive_int
from pipeline.cli.plan import SHARDS, SUMMARY, flops_per_sec, last_run, make_plan, text_vocabulary
from pipeline.config import PARAMS_FILE, ConfigError, load_yaml, validate
from pipeline.corpus.params import TokenizerParams
from pipeline.dvc_lock import short_keys
from pipeline.formatting import format_duration, hydra_value
from pipeline.git import params_at
from pipeline.log import UserError, logger
from pipeline.model.config import ModelParams
from pipeline.recipes import NO_RESULT_SECTIONS
from pipeline.runtime import RuntimeParams
from pipeline.sweep import LATER_STAGES_S, Entry, ExperimentQueue, Speed, Trial, combinations, same_code, watch
from pipeline.tracking.wandb_run import LONGEST_NAME, NAMING_SECTIONS
from pipeline.training.params import TrainParams

GROUP = "tracking.group"


def trials(settings: Sequence[str], params: Mapping[str, Any]) -> list[Trial]:
    """Every combination of `settings` over `params`, in the order given.

    Raises UserError that lists each mistake with the number of combinations that have it.
    """
    combined = combinations(settings)
    varied = _varied(combined)
    valid, mistakes = list[Trial](), Counter[str]()
    for combination in combined:
        if GROUP not in combination:
            group = ",".join(short_keys(varied).values())
            combination = {**combination, GROUP: (group, f"{GROUP}={hydra_value(group)}")}
        values = copy.deepcopy(dict(params))
        for dotted, (value, _) in combination.items():
            section, _, key = dotted.partition(".")
            values.setdefault(section, {})[key] = value
        try:
            flops = _training_flops(values)
        except ConfigError as error:
            mistakes.update(str(error).splitlines()[1:])
            continue
        overrides = tuple(override for _, override in combination.values())
        name = unused_name(_name(combination, varied), {trial.name for trial in valid})
        valid.append(
            Trial(name, overrides, values, flops, _name(combination, [key for key in combination if key != GROUP]))
        )
    if mistakes:
        lines = [f"{line} (in {number} of {len(combined)} combinations)" for line, number in mistakes.items()]
        raise UserError("nothing was queued:\n" + "\n".join(lines))
    return valid


def _training_flops(values: Mapping[str, Any]) -> int:
    """FLOPs of training with these params. Raises ConfigError for invalid params."""
    validate(values)
    vocabulary, train_tokens = text_vocabulary(TokenizerParams(**values["tokenizer"]), SHARDS)
    model, train = ModelParams(**values["model"]), TrainParams(**values["train"])
    return make_plan(model, train, RuntimeParams(**values["runtime"]), vocabulary, train_tokens, ranks=1).flops


def _varied(combined: Sequence[Mapping[str, tuple[Any, str]]]) -> list[str]:
    """The keys that have several values; all keys if there is only one combination."""
    keys = [key for key in combined[0] if key != GROUP]
    return [key for key in keys if len({combination[key][1] for combination in combined}) > 1] or keys


def _name(combination: Mapping[str, tuple[Any, str]], keys: Sequence[str]) -> str:
    """The settings of these keys as a valid Git ref name: `position=rope,seed=2`."""
    words = [f"{short}={combination[key][1].partition('=')[2]}" for key, short in short_keys(keys).items()]
    return re.sub(r"(?:[^\w.=,+-]|\.{2,})+", "-", ",".join(words))[:LONGEST_NAME].strip("-.,")


def find_entry(trial: Trial, entries: Sequence[Entry]) -> Entry | None:
    """The experiment with the trial's settings and the working tree's code; a failed one only if there is no other."""
    wanted = _result_params(trial.params)
    same = [entry for entry in entries if _result_params(params_at(entry.rev)) == wanted and same_code(entry.rev)]
    return min(same, key=lambda entry: entry.state == "failed", default=None)


def _result_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params that results depend on."""
    return {name: section for name, section in params.items() if name not in NO_RESULT_SECTIONS}


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


def sweep(settings: Sequence[str], workers: int, dry_run: bool) -> None:
    """Raises UserError for invalid settings, and at the end if an experiment has failed."""
    wanted = trials(settings, load_yaml(PARAMS_FILE))
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
        failed = watch(queue, running, min(workers, len(running)), speed)
    except KeyboardInterrupt:
        logger.info(
            "experiments continue in the background: this command shows them, `dvc queue stop --kill` ends them"
        )
        raise
    names = [entry.name for _, entry in plan if entry is not None and entry.state == "done"]
    names += [trial.name for trial in running.values()]
    others = {entry.name for entry in queue.entries()} - set(names)  # if there are none, compare's default is enough
    logger.info("compare them: %s", " ".join(["python -m pipeline compare", *(names if others else [])]))
    if failed:
        raise UserError(f"{len(failed)} of {len(plan)} failed: {' '.join(failed)}; the same command reruns them")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline sweep", description="Runs combinations of settings.")
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE,VALUE", help="as for dvc exp run -S")
    parser.add_argument("--jobs", type=positive_int, default=1, help="experiments at a time (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="only print what would run and its cost")
    options = parser.parse_args(arguments)
    # DVC's workers start `dvc`, and the stages `python`, by name.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sweep(options.settings, options.jobs, options.dry_run)
