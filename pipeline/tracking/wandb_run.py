"""The W&B run of a training run: identity, name and group, and a client that can neither stop nor slow the stage.

The only module that imports wandb. All calls on the run are made by a thread behind a bounded queue. Without a
network, an API key or wandb itself, or with a server that hangs, training continues: a warning names the cause, and the
curves are on disk. Used by the train stage, and by pipeline/tracking/publish.py in the report stage.
"""

import atexit
import json
import logging
import os
import queue
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import TrackedRun
from pipeline.curves import Curves, SampleLog, typed
from pipeline.dvc_lock import short_keys
from pipeline.files import main_root, set_aside
from pipeline.git import Experiment, code_revision, current_experiment, params_at
from pipeline.log import UserError, logger
from pipeline.tracking.params import TrackingParams

NAMING_SECTIONS = ("data", "tokenizer", "model", "train")
"""The sections that training depends on. Other sections may change after training and do not affect the name."""

LONGEST_NAME, LONGEST_VALUE = 100, 24  # characters; W&B takes names of 128
SHORT_REVISION = 7

QUEUE_LENGTH = 1000  # waiting calls, each normally with up to ten rows: 10,000 steps
START_TIMEOUT_S = 120.0  # of wandb's own process; after it (by default 30 s) wandb 0.31 hangs instead of failing
FINISH_TIMEOUT_S = 60.0
FAILED_TIMEOUT_S = 10.0  # after a signal or an error: schedulers may kill a process 30 s after their signal

SAMPLE_TABLE, SAMPLE_COLUMNS = "train/samples", ("step", "tokens", "text")
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # columns, rows


# Identity


def run_identity(file: Path, name: str, group: str | None, mode: str) -> TrackedRun:
    """The identity stored in `file`, so that a resumed training run stays one W&B run; else a new one, stored there.

    A resumed process logs all rows again that the server does not have, and `wandb sync` never checks for duplicates.
    So the offline files of earlier processes are removed. An offline process cannot know which rows the server has:
    if it may have some, training continues as a new W&B run.
    """
    stored, identity = _stored(file), TrackedRun(id=secrets.token_hex(4), name=name, mode=mode, group=group)
    if stored is not None:
        if mode == "disabled":
            return stored.model_copy(update={"mode": mode})
        parts = [part for part in local_files(stored.id) if part.name.startswith("offline-")]
        on_server = stored.mode == "online" or any(any(part.glob("*.sync*")) for part in parts)  # marks of wandb sync
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
        if mode == "online" or not on_server:
            identity = stored.model_copy(update={"mode": mode})
    identity.write(file)
    return identity


def local_files(run_id: str) -> list[Path]:
    """The directories in which W&B has logged a run on this machine, one for each process."""
    return sorted((main_root() / "wandb").glob(f"*run-*-{run_id}"))


def _stored(file: Path) -> TrackedRun | None:
    if not file.exists():
        return None
    try:
        return TrackedRun.read(file)
    except (OSError, UserError) as error:
        damaged = set_aside(file, "damaged_")
        logger.warning("W&B: %s; kept as %s, training continues as a new W&B run", error, damaged.name)
        return None


def run_name(params: Mapping[str, Any], committed: Mapping[str, Any], experiment: Experiment, key: str) -> str:
    """The run's name: that of the DVC experiment, so that `dvc exp show` and W&B list the same names.

    Without an experiment: what the run changes in the committed params, such as `position=rope seed=2`. If it changes
    nothing, the commit and the run's key, both shortened.
    """
    if experiment.name:
        return experiment.name
    if changed := changes(params, committed):
        return changes_text(changed)
    commit = experiment.baseline[:SHORT_REVISION] if experiment.baseline else "nogit"
    return f"{commit}-{key[:6]}"


def run_group(group: str | None, experiment: Experiment) -> str | None:
    """The name of the W&B group: `position,seed @ 80a69db`. Runs from different commits are never in one group."""
    if experiment.baseline is None:
        return group
    commit = experiment.baseline[:SHORT_REVISION]
    return f"{group} @ {commit}" if group else commit


def changes(params: Mapping[str, Any], committed: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key to value, for every param of NAMING_SECTIONS whose value differs from that in `committed`."""
    return {
        f"{section}.{key}": value
        for section in NAMING_SECTIONS
        for key, old in (committed.get(section) or {}).items()
        if key in params[section] and (value := params[section][key]) != old
    }


def changes_text(changed: Mapping[str, Any]) -> str:
    """`position=rope seed=2 +3`: short keys, at most LONGEST_NAME characters and the number of changes left out."""
    short = short_keys(changed)
    text = ""
    for position, (key, value) in enumerate(changed.items()):
        value_text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(value_text) > LONGEST_VALUE:
            value_text = value_text[: LONGEST_VALUE - 1] + "…"
        longer = f"{text} {short[key]}={value_text}".strip()
        if len(longer) > LONGEST_NAME:
            return f"{text} +{len(changed) - position}"
        text = longer
    return text


def notes(changed: Mapping[str, Any], experiment: Experiment) -> str | None:
    """What an experiment changes, and the command that brings its files into the workspace."""
    if not experiment.name:
        return None
    return f"{changes_text(changed)}\n\ndvc exp apply {experiment.name}".strip()


def resolved_mode(params: TrackingParams) -> str:
    """ "online", "offline" or "disabled": from params or WANDB_MODE, else online if there is an API key.

    wandb itself would ask at the terminal, or raise an error without one.
    """
    choice = os.environ.get("WANDB_MODE", "auto") if params.mode == "auto" else params.mode
    if choice != "auto":
        return {"dryrun": "offline", "run": "online"}.get(choice, choice)  # wandb's older names
    if os.environ.get("WANDB_API_KEY") or _key_in_netrc():
        return "online"
    logger.info("W&B: no API key, so this run is logged offline; `wandb sync` uploads it later")
    return "offline"


def _key_in_netrc() -> bool:
    """Whether `wandb login` has stored a key. wandb.login itself prints, and may contact the server."""
    try:
        import wandb
        from wandb.sdk.lib import wbauth

        return bool(wbauth.read_netrc_auth(host=wandb.Settings().base_url))
    except Exception:  # not installed, an unreadable key, another version
        return False


# The run


def training_run(
    state: Path, tracking: TrackingParams, params: Mapping[str, Any], key: str, curves: Curves, samples: SampleLog
) -> "WandbRun":
    """The W&B run of a training run, new or resumed.

    `state`: the run's directory, which stores the identity. `params`: all of params.yaml. `key`: the run's key.
    `curves`, `samples`: what earlier processes logged.
    """
    experiment = current_experiment()
    committed = params_at(experiment.baseline)
    name = run_name(params, committed, experiment, key)
    mode = resolved_mode(tracking)
    identity = run_identity(state / "wandb.json", name, run_group(tracking.group, experiment), mode)
    dvc = {"experiment": experiment.name, "baseline": experiment.baseline}
    init = {
        "config": {**params, "git": code_revision().model_dump(), "dvc": dvc},
        "tags": [*tracking.tags, params["data"]["source"], params["tokenizer"]["encoding"]],
        "notes": notes(changes(params, committed), experiment),
    }
    return WandbRun(identity, tracking, init, curves, samples)


class _LogHandler(logging.Handler):
    """Copies what training logs to the Logs tab of its W&B run."""

    def __init__(self, run: "WandbRun") -> None:
        super().__init__()
        self._wandb_run = run

    def emit(self, record: logging.LogRecord) -> None:
        self._wandb_run.write_log(self.format(record))


class WandbRun:
    """One W&B run. Its methods never raise, and all but `finish` return at once."""

    def __init__(
        self,
        identity: TrackedRun,
        params: TrackingParams,
        init: Mapping[str, Any] | None = None,
        curves: Curves | None = None,
        samples: SampleLog | None = None,
    ) -> None:
        """`init`: config, tags and notes for wandb.init. `curves`, `samples`: of the training run; None to only add."""
        self.identity, self.curves, self.samples = identity, curves, samples
        self._run: Any = None
        self._given_up = False
        self._warnings: set[str] = set()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """Not a Queue, whose put holds a lock: a signal that logs during a put would wait for that lock for ever."""
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._log_handler = _LogHandler(self)
        if identity.mode != "disabled":
            self._thread.start()
            self._submit(lambda: self._init(params, init or {}))
            if curves is not None:
                logger.addHandler(self._log_handler)

    def rewind(self, step: int) -> None:
        """Logs the rows of the curves up to `step`, the step of the checkpoint, that the server does not have."""
        if self.curves is not None:
            rows = [typed(row) for row in self.curves.rows()]
            texts = {sample.step: sample.text for sample in self.samples.samples} if self.samples else {}
            self.record([row | {"sample": texts.get(row["step"])} for row in rows if row["step"] <= step])

    def record(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs rows of the curves without their empty cells, and their samples."""
        self._submit(lambda: self._log(rows))

    def flush(self) -> None:
        """Does nothing: wandb sends in the background."""

    def write_log(self, text: str) -> None:
        """Adds lines to the Logs tab."""
        self._submit(lambda: self._run.write_logs(text))

    def update_config(self, values: Mapping[str, Any]) -> None:
        """Adds to the run's config."""
        self._submit(lambda: self._run.config.update(dict(values), allow_val_change=True))

    def update_summary(self, values: Mapping[str, Any]) -> None:
        """Sets values of the run's summary."""
        self._submit(lambda: self._run.summary.update(dict(values)))

    def log_tables(self, tables: Mapping[str, Table], after_step: int, tokens: int) -> None:
        """Logs tables under their names, in a row after that of `after_step`.

        `run.step` is the server's next step if online; it starts at 0 in each offline folder of the run.
        """

        def log() -> None:
            import wandb

            content = {
                name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])
                for name, (columns, rows) in tables.items()
            }
            self._run.log({"tokens": tokens, **content}, step=max(self._run.step, after_step + 1))

        self._submit(log)

    def save_files(self, base: Path, files: Sequence[Path]) -> None:
        """Uploads files under their paths relative to `base`."""
        for file in files:
            self._submit(lambda file=file: self._run.save(file, base_path=base, policy="now", glob=False))  # type: ignore[misc]

    def log_reference(self, name: str, kind: str, uri: str, metadata: Mapping[str, Any]) -> None:
        """Logs an artifact that refers to a URI, without a copy of the data. The same URI is the same version."""

        def log() -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
            artifact.add_reference(uri, name=kind)
            self._run.log_artifact(artifact)

        self._submit(log)

    def finish(self, exit_code: int = 0) -> TrackedRun:
        """Ends the run and waits, for about a minute at most, until everything is sent.

        `exit_code`: the code that the process will exit with. If it is not 0, the wait is ten seconds at most.
        Returns the identity, with the run's URL if it is online.
        """
        if self.identity.mode == "disabled":
            return self.identity
        logger.removeHandler(self._log_handler)
        url: list[str | None] = []
        if self.identity.mode == "online":
            self._submit(lambda: url.append(self._run.url))
        self._submit(lambda: self._run.finish(exit_code=exit_code))
        self._put(None)
        self._thread.join(FAILED_TIMEOUT_S if exit_code else 1.1 * FINISH_TIMEOUT_S)  # wandb's own limit is the latter
        if self._thread.is_alive():
            self._warn("the run does not finish in time")
            if exit_code:
                atexit.register(os._exit, exit_code)  # runs before wandb's own handler, which would wait on
        return self.identity.model_copy(update={"url": url[0] or None}) if url else self.identity

    def _init(self, params: TrackingParams, init: Mapping[str, Any]) -> None:
        import wandb

        # Beside the runs, for `wandb sync` to find: the home directory may be small or read-only.
        os.environ.setdefault("WANDB_DATA_DIR", str(main_root() / "wandb"))
        wandb.setup(settings=wandb.Settings(silent=True, x_service_wait=START_TIMEOUT_S))
        self._run = wandb.init(
            project=params.project,
            entity=params.entity,
            id=self.identity.id,
            name=self.identity.name,
            group=self.identity.group,
            job_type="train",
            mode=self.identity.mode,  # type: ignore[arg-type]
            dir=main_root(),
            resume="allow",
            settings=wandb.Settings(
                console="off",  # the log goes through the queue (write_log): capturing the output could block it
                init_timeout=FINISH_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                # wandb/latest-run for training; no links to saved files, since DVC deletes the copies that it runs in.
                symlink=self.curves is not None,
            ),
            **init,
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")
        # Only new rows are sent, and a resumed run adds to those on the server.
        self._sample_table = wandb.Table(columns=list(SAMPLE_COLUMNS), log_mode="INCREMENTAL")

    def _log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            if row["step"] >= self._run.step:  # online, a resumed run begins at the server's next step
                cells = {key: value for key, value in row.items() if value not in (None, "") and key != "step"}
                if sample := cells.pop("sample", None):
                    self._sample_table.add_data(row["step"], row["tokens"], sample)
                    cells[SAMPLE_TABLE] = self._sample_table
                self._run.log(cells, step=row["step"])

    def _submit(self, call: Callable[[], None]) -> None:
        if self.identity.mode != "disabled" and not self._given_up:
            self._put(call)

    def _put(self, call: Callable[[], None] | None) -> None:
        if self._queue.qsize() >= QUEUE_LENGTH:
            self._given_up = True
            self._warn(f"the queue is full ({QUEUE_LENGTH} calls)")
        else:
            self._queue.put(call)

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if self._given_up:
                continue
            try:
                call()
            except BaseException as error:  # wandb raises its own types, and SystemExit too
                self._given_up |= self._run is None  # if the run exists, other calls may still succeed
                self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, cause: str) -> None:
        if cause not in self._warnings:
            self._warnings.add(cause)
            logger.warning(
                "W&B: %s; the stage continues, its numbers are in reports/, and `wandb sync` may upload the rest", cause
            )
