"""Runs every combination of some settings as DVC experiments: python -m pipeline.sweep KEY=VALUE,VALUE ...

    python -m pipeline.sweep model.position=learned,rope,alibi train.seed=1,2,3 --dry-run   # what would run, its cost
    python -m pipeline.sweep model.position=learned,rope,alibi train.seed=1,2,3             # runs it, and watches

All values are checked before anything is queued. What is done already from this commit, with the same settings and
code, is left out, and what failed is run again: the same command goes on where it was left. The experiments are DVC's
own, each named by its settings, and its queue runs them in the background: Ctrl-C ends the watching alone.

Reads params.yaml, Git and DVC's queue; data/shards and reports/train/summary.json for the cost. Exits with 1 where an
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
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.config import PARAMS_FILE, ConfigError, load_yaml, validate
from pipeline.corpus.encodings import TokenizerParams
from pipeline.log import Stop, clear_errors, logger
from pipeline.model.config import ModelParams
from pipeline.plan import SHARDS, SUMMARY, last_rate, make_plan, text_vocabulary
from pipeline.progress import format_duration
from pipeline.recipe import DECIDE_NOTHING, hydra_value
from pipeline.reporting import git
from pipeline.runtime import RuntimeParams
from pipeline.sweep.queue import Entry, ExperimentQueue, combinations, same_code
from pipeline.sweep.watch import Job, watch
from pipeline.tracking.identity import LONGEST_NAME, NAMING_SECTIONS, short_keys
from pipeline.tracking.provenance import params_at
from pipeline.training.params import TrainParams

GROUP = "tracking.group"


@dataclass(frozen=True)
class Trial:
    """One combination of settings."""

    name: str
    overrides: tuple[str, ...]
    """As `dvc exp run -S` takes them."""
    params: dict[str, Any]
    """All of params.yaml."""
    flops: int
    """Of training."""


def trials(settings: Sequence[str], params: Mapping[str, Any]) -> list[Trial]:
    """Every combination of `settings` over `params`, in the order in which they are typed.

    Raises Stop with each mistake and how many combinations make it.
    """
    found = combinations(settings)
    made, mistakes = [], Counter[str]()
    for combination in found:
        if GROUP not in combination:
            group = _group(found)
            combination = {**combination, GROUP: (group, f"{GROUP}={hydra_value(group)}")}
        values = copy.deepcopy(dict(params))
        for dotted, (value, _) in combination.items():
            section, _, key = dotted.partition(".")
            values.setdefault(section, {})[key] = value
        try:
            flops = _flops(values)
        except ConfigError as error:
            mistakes.update(str(error).splitlines()[1:])
            continue
        made.append(Trial(_name(combination), tuple(text for _, text in combination.values()), values, flops))
    if mistakes:
        lines = [f"{line} (in {often} of {len(found)} combinations)" for line, often in mistakes.items()]
        raise Stop("nothing is queued:\n" + "\n".join(lines))
    return made


def matching(trial: Trial, entries: Sequence[Entry]) -> Entry | None:
    """The experiment that is this trial, by settings and code; one that has not failed, where there is one."""
    alike = [entry for entry in entries if _decisive(params_at(entry.rev)) == _decisive(trial.params)]
    return min((entry for entry in alike if same_code(entry.rev)), key=lambda one: one.state == "failed", default=None)


def queued(queue: ExperimentQueue, wanted: Sequence[tuple[Trial, Entry | None]]) -> dict[str, Job]:
    """Queues what is neither done nor on its way; returns all that is on its way, by the revision of its entry."""
    jobs = {}
    for trial, entry in wanted:
        if entry is not None and entry.state == "failed":
            queue.forget(entry)
        if _to_run(entry):
            name = free_name(trial.name, {known.name for known in queue.entries()})
            jobs[queue.add(name, trial.overrides)] = Job(name, trial.flops // 10**9)
        elif entry is not None and entry.state != "done":
            jobs[entry.rev] = Job(entry.name, trial.flops // 10**9)
    return jobs


def free_name(name: str, taken: Collection[str]) -> str:
    """The name; with a number behind it where an experiment of other settings or code has it."""
    names = (f"{name}-{number}" if number > 1 else name for number in count(1))
    return next(name for name in names if name not in taken)


def table(
    wanted: Sequence[tuple[Trial, Entry | None]], commit: str, committed: Mapping[str, Any], rate: float | None
) -> str:
    """What there is to do and what it costs. `committed`: the params that `commit` has a run of. `rate`: FLOP/s."""
    width = max(len(trial.name) for trial, _ in wanted)
    lines = [f"{len(wanted)} experiment{'s' * (len(wanted) != 1)} from {commit[:7]}:"]
    for trial, entry in wanted:
        state = "to run" if entry is None else "failed, to run again" if entry.state == "failed" else entry.state
        lines.append(f"  {trial.name:<{width}}  {state}")
    to_run = [trial for trial, entry in wanted if _to_run(entry)]
    trainings = {_training(trial.params): trial.flops for trial in to_run}
    trainings.pop(_training(committed), None)  # DVC has its result, as of one that is asked for twice
    flops = sum(trainings.values())
    duration = f", {format_duration(flops / rate)} at the rate of the last run" if rate and flops else ""
    lines.append(f"{len(to_run)} to run, {len(trainings)} of them trained: {flops:.3g} FLOPs{duration}")
    return "\n".join(lines)


def sweep(settings: Sequence[str], workers: int, dry_run: bool) -> None:
    """All of it. Raises Stop where the settings have mistakes, and at the end where an experiment has failed."""
    if workers < 1:
        raise Stop(f"--jobs ({workers}) must be at least 1")
    found = trials(settings, load_yaml(PARAMS_FILE))
    queue = ExperimentQueue()
    entries = queue.entries()
    wanted = [(trial, matching(trial, entries)) for trial in found]
    has_run = same_code(queue.baseline) and git.show(Path.cwd(), queue.baseline, "./dvc.lock")
    committed = params_at(queue.baseline) if has_run else {}
    logger.info("%s", table(wanted, queue.baseline, committed, last_rate(SUMMARY)))
    if dry_run:
        return
    jobs = queued(queue, wanted)
    try:
        failed = watch(queue, jobs, workers)
    except KeyboardInterrupt:
        logger.info("the experiments go on: the same command watches them again, `dvc queue stop --kill` ends them")
        raise
    names = [entry.name for _, entry in wanted if entry is not None and entry.state == "done"]
    names += [job.name for job in jobs.values()]
    others = {entry.name for entry in queue.entries()} - set(names)  # without them, compare's default is the sweep
    logger.info("compare them: %s", " ".join(["python -m pipeline.reporting.compare", *(names if others else [])]))
    if failed:
        raise Stop(f"{len(failed)} of {len(wanted)} failed: {' '.join(failed)}; the same command runs them again")


def _to_run(entry: Entry | None) -> bool:
    return entry is None or entry.state == "failed"


def _flops(values: Mapping[str, Any]) -> int:
    """FLOPs of training with these params. Raises ConfigError where they break a rule."""
    validate(values)
    vocabulary, train_tokens = text_vocabulary(TokenizerParams(**values["tokenizer"]), SHARDS)
    model, train = ModelParams(**values["model"]), TrainParams(**values["train"])
    return make_plan(model, train, RuntimeParams(**values["runtime"]), vocabulary, train_tokens, ranks=1).flops


def _group(found: Sequence[Mapping[str, tuple[Any, str]]]) -> str:
    """The keys that take several values: `position,seed`."""
    short = short_keys(found[0])
    several = [name for key, name in short.items() if len({one[key][1] for one in found}) > 1]
    return ",".join(several or short.values())


def _name(combination: Mapping[str, tuple[Any, str]]) -> str:
    """The settings as Git takes a name: `position=rope,seed=2`."""
    keys = short_keys(key for key in combination if key != GROUP)
    words = [f"{short}={combination[key][1].partition('=')[2]}" for key, short in keys.items()]
    return re.sub(r"(?:[^\w.=,+-]|\.{2,})+", "-", ",".join(words))[:LONGEST_NAME].strip("-.,")


def _decisive(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params that a result depends on."""
    return {name: section for name, section in params.items() if name not in DECIDE_NOTHING}


def _training(params: Mapping[str, Any]) -> str:
    """What tells trainings apart."""
    return json.dumps([params.get(section) for section in NAMING_SECTIONS])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.sweep", description="Runs combinations of settings.")
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE,VALUE", help="as dvc exp run -S takes them")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and what it costs, and end")
    arguments = parser.parse_args()
    # DVC's workers start `dvc`, and the stages `python`, by name.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with clear_errors("sweep"):
        sweep(arguments.settings, arguments.jobs, arguments.dry_run)


if __name__ == "__main__":
    main()
