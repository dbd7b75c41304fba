"""Submits training, tokenization and sweeps to SLURM. Run it on a login node, in the root of the repository:

    python -m pipeline slurm tokenize --parts 16    # one job per part, then one that writes the shards
    python -m pipeline slurm train                  # dvc repro, with training on all nodes of one job
    python -m pipeline slurm sweep model.position=rope,alibi train.seed=1,2,3    # one job per experiment

Repeating a command submits only what is neither done nor queued, and shows the state of its jobs. --dry-run prints the
sbatch commands instead. Partition, account, time and other options of sbatch are in slurm.yaml: copy
recipes/slurm/slurm.yaml to the root of the repository and edit it. The job scripts are beside it.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError, field_validator

from pipeline import git
from pipeline.artifacts import SOURCE_FILE
from pipeline.cli.arguments import positive_int
from pipeline.cli.sweep import add_settings, find_entry, read_trials, summary, unused_name
from pipeline.config import ConfigError, Section, load_yaml, read_sections
from pipeline.corpus.params import TokenizerParams
from pipeline.experiment_queue import CODE, LOG_LINES, Entry, ExperimentQueue, Trial
from pipeline.files import RUNS, write_text
from pipeline.log import UserError, logger

MACHINE, SCRIPTS = Path("slurm.yaml"), Path("recipes/slurm")
LOGS, EXPERIMENTS = Path(RUNS, "slurm"), Path(RUNS, "sweep")
RAW = Path("data/raw")
OURS = ("array", "chdir", "dependency", "job-name", "open-mode", "output", "parsable", "wrap")
"""Options of sbatch that the commands set."""

Options = Annotated[dict[str, Any], Field(default_factory=dict)]


class Machine(Section):
    """slurm.yaml: options of sbatch, for each kind of job and for all."""

    section: ClassVar[str] = "slurm"

    all: Options
    train: Options
    tokenize: Options
    sweep: Options

    @field_validator("*")
    @classmethod
    def _check(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if name in OURS:
                raise ValueError(f"{name} ({value}) is set by python -m pipeline slurm")
            if not isinstance(value, str | int):
                raise ValueError(f"{name} ({value!r}) must be text, an integer, true or false")
        return options


def machine_options(job: str) -> list[str]:
    """The options of sbatch that slurm.yaml has for a job: `--nodes=2`. Raises ConfigError that lists its mistakes."""
    if not MACHINE.exists():
        raise ConfigError(f"{MACHINE} not found: copy {SCRIPTS / MACHINE} to the root of the repository and edit it")
    try:
        machine = Machine.model_validate(load_yaml(MACHINE))
    except ValidationError as error:
        mistakes = [f"  {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ConfigError("\n".join([f"{MACHINE} has {len(mistakes)} mistake(s):", *mistakes])) from None
    options = {name: value for name, value in (machine.all | getattr(machine, job)).items() if value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]


def submit(job: str, options: Sequence[str], command: Sequence[str], dry_run: bool) -> str:
    """Submits a job; returns its id. `command`: a script and its arguments, or `--wrap` and a command line."""
    log = f"--output={LOGS}/%x-{'%A_%a' if any(option.startswith('--array') for option in options) else '%j'}.out"
    common = [f"--job-name={job}", log, "--open-mode=append", "--requeue", "--ntasks-per-node=1"]
    words = ["sbatch", "--parsable", *common, *machine_options(job), *options, *command]
    if dry_run:
        logger.info("%s", shlex.join(words))
        return "JOB"
    LOGS.mkdir(parents=True, exist_ok=True)  # sbatch does not make it
    number = run(*words).strip().partition(";")[0]  # a cluster's name may follow
    logger.info("submitted %s as job %s", job, number)
    return number


def run(*words: str) -> str:
    """What a command of SLURM prints. Raises UserError with its message if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{words[0]} not found: run this where SLURM's commands are installed") from None
    if done.returncode != 0:
        raise UserError(f"{words[0]} failed: {'; '.join(done.stderr.strip().splitlines())}")
    return done.stdout


def in_queue(job: str) -> dict[str, str]:
    """This repository's jobs of a kind in SLURM's queue: id (`12`, in an array `12_3`) -> state, as squeue has it."""
    if shutil.which("squeue") is None:  # submit() reports that SLURM is missing; --dry-run works without
        return {}
    printed = run("squeue", "--me", "--noheader", "--array", f"--name={job}", "--format=%i|%T|%Z")
    jobs = [line.split("|", 2) for line in printed.splitlines()]
    return {number: state for number, state, directory in jobs if Path(directory).resolve() == Path.cwd()}


def show(job: str, jobs: dict[str, str]) -> None:
    """Prints jobs in the queue and where their logs are."""
    for number, state in jobs.items():
        logger.info("%s: job %s is %s; log: %s", job, number, state.lower(), LOGS / f"{job}-{number}.out")


def train(dry_run: bool) -> None:
    """Submits `dvc repro` on all nodes of a job, unless it is in the queue."""
    if jobs := in_queue("train"):
        show("train", jobs)
        return
    submit("train", [], [str(SCRIPTS / "train.sh")], dry_run)


def tokenize(parts: int, dry_run: bool) -> None:
    """Submits the parts that are not encoded, and a job that writes the shards after them."""
    from pipeline.corpus.tokenization import Job

    if jobs := in_queue("tokenize"):
        show("tokenize", jobs)
        return
    if not (RAW / SOURCE_FILE).exists():
        raise UserError(f"{RAW} not found: run `dvc repro download` first, where the source can be reached")
    if subprocess.run(["dvc", "status", "--quiet", "tokenize"], check=False).returncode == 0:
        logger.info("tokenize: nothing to do, data/shards is up to date")
        return
    (params,) = read_sections(TokenizerParams)
    job = Job.open(params, RAW, Path(RUNS))
    row_groups = [*job.row_groups("train"), *job.row_groups("val")]
    missing = [
        part for part in range(1, parts + 1) if not all(task.target.exists() for task in row_groups[part - 1 :: parts])
    ]
    after = []
    if missing:
        encode = f"python -m stages.tokenize --part $SLURM_ARRAY_TASK_ID/{parts}"
        array = submit("tokenize", [f"--array={','.join(map(str, missing))}"], ["--wrap", encode], dry_run)
        after = [f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes"]
    submit("tokenize", after, ["--wrap", "dvc repro tokenize"], dry_run)


def sweep(wanted: Sequence[Trial], jobs: int | None, dry_run: bool) -> None:
    """Submits the experiments that are neither done nor in the queue, as an array of at most `jobs` jobs at a time."""
    states = in_queue("sweep")
    submitted = {path.name: entry for path in EXPERIMENTS.glob("*/") if (entry := submitted_entry(path, states))}
    queue = ExperimentQueue()
    entries = queue.entries()  # last: an experiment that ends meanwhile is done, not missing
    workspace = git.commit_workspace(Path.cwd())
    if workspace is None:
        raise UserError("Git cannot make a commit: set user.name and user.email")
    plan: list[tuple[Trial, Entry | None]] = []
    to_run: list[tuple[Trial, Path]] = []
    for trial in wanted:
        directory = EXPERIMENTS / experiment_key(trial, workspace)
        entry = find_entry(trial, entries)
        if entry is None or entry.state == "failed":
            entry = submitted.get(directory.name, entry)
        if entry is None or entry.state == "failed":
            to_run.append((trial, directory))
        if entry is not None and entry.state == "failed" and directory.name in submitted:
            log = LOGS / f"sweep-{entry.rev}.out"
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
            tail = textwrap.indent("\n".join(lines[-LOG_LINES:]), "  | ")
            logger.info("%s failed; full log: %s\n%s", entry.name, log, tail)
        plan.append((trial, entry))
    logger.info("%s", summary(plan, queue.baseline, {}, None))
    if not to_run:
        return
    if not dry_run:
        used = {entry.name for entry in (*entries, *submitted.values())}
        for trial, directory in to_run:
            if not (directory / "name").exists():
                write_text(directory / "name", name := unused_name(trial.name, used))
                used.add(name)
            write_text(directory / "settings", "".join(f"{override}\n" for override in trial.overrides))
            git.set_ref(Path.cwd(), f"refs/sweep/{directory.name}", workspace)
    array = f"--array=0-{len(to_run) - 1}" + (f"%{jobs}" if jobs else "")
    keys = [directory.name for _, directory in to_run]
    number = submit("sweep", [array, "--nodes=1"], [str(SCRIPTS / "sweep.sh"), *keys], dry_run)
    if not dry_run:
        for index, (_, directory) in enumerate(to_run):
            write_text(directory / "job", f"{number}_{index}")


def experiment_key(trial: Trial, workspace: str) -> str:
    """12 hexadecimal digits of a hash of the params and the code of an experiment."""
    code = git.object_ids(Path.cwd(), workspace, CODE)
    return hashlib.sha256(json.dumps([trial.params, code], sort_keys=True).encode()).hexdigest()[:12]


def submitted_entry(directory: Path, states: dict[str, str]) -> Entry | None:
    """An experiment that was submitted: its name, job and state. None if it has ended well and is being removed."""
    try:
        name, number = (directory / "name").read_text(), (directory / "job").read_text()
    except FileNotFoundError:
        return None
    state = states.get(number)
    return Entry(name, number, "failed" if state is None else "queued" if state == "PENDING" else "running")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline slurm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dry-run", action="store_true", help="only print what would be submitted")
    commands.add_parser("train", parents=[common], help="dvc repro, with training on all nodes of one job")
    tokenizing = commands.add_parser("tokenize", parents=[common], help="tokenization, one job per part")
    tokenizing.add_argument("--parts", type=positive_int, required=True, help="number of parts")
    sweeping = commands.add_parser("sweep", parents=[common], help="combinations of settings, one job per experiment")
    add_settings(sweeping)
    sweeping.add_argument("--jobs", type=positive_int, help="experiments at a time (default: as many as SLURM starts)")
    options = parser.parse_args(arguments)
    # sbatch hands the environment on, and the scripts start `dvc` and `python` by name.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if options.command == "train":
        train(options.dry_run)
    elif options.command == "tokenize":
        tokenize(options.parts, options.dry_run)
    else:
        sweep(read_trials(sweeping, options)[0], options.jobs, options.dry_run)
