"""Weights & Biases, kept where it can neither kill nor slow a run: the one module that imports wandb.

Every call to wandb runs in a thread of its own behind a bounded queue. Without a network, a key or wandb itself, or
with a server that hangs, training goes on and the curves are on the disk; what could not be sent is said in one line.
"""

import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.files import read_json, write_json
from pipeline.log import logger
from pipeline.runs import main_root
from pipeline.tracking.params import TrackingParams

QUEUE_LENGTH = 10_000  # rows that wait at most: hours of training
FINISH_TIMEOUT_S = 60.0
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # columns, rows


@dataclass(frozen=True)
class RunIdentity:
    """What ties the parts of a run together over resumptions and stages."""

    id: str
    name: str
    mode: str
    url: str | None = None


def resolved_mode(params: TrackingParams) -> str:
    """ "online", "offline" or "disabled": as params or WANDB_MODE say, else online where a key is configured.

    wandb itself would ask at the terminal, or raise where there is none.
    """
    choice = os.environ.get("WANDB_MODE", "auto") if params.mode == "auto" else params.mode
    if choice != "auto":
        return "disabled" if choice == "dryrun" else choice
    has_key = bool(os.environ.get("WANDB_API_KEY")) or _key_in_netrc()
    if not has_key:
        logger.info("W&B: no API key, so this run is logged offline; `wandb sync` sends it later")
    return "online" if has_key else "offline"


def _key_in_netrc() -> bool:
    """Whether `wandb login` has left a key. wandb.login itself would print, and may ask the server."""
    try:
        import wandb
        from wandb.sdk.lib import wbauth

        return bool(wbauth.read_netrc_auth(host=wandb.Settings().base_url))
    except Exception:  # not installed, a key that it cannot read, another version
        return False


def run_identity(file: Path, name: str, mode: str) -> RunIdentity:
    """The identity kept in `file`, so that a resumed run goes on as the same W&B run; a new one is written there."""
    if file.exists():
        known = read_json(file)
        return RunIdentity(id=known["id"], name=known["name"], mode=mode)
    identity = RunIdentity(id=secrets.token_hex(4), name=name, mode=mode)
    write_json(file, asdict(identity))
    return identity


class WandbRun:
    """One W&B run. Its methods return at once and never raise."""

    def __init__(
        self,
        identity: RunIdentity,
        params: TrackingParams,
        config: Mapping[str, Any],
        job_type: str,
        after_step: int = -1,
    ) -> None:
        """`config`: all of params.yaml. Rows up to `after_step` are left out: an earlier process has logged them."""
        self.identity, self.after_step = identity, after_step
        self._run: Any = None
        self._failed: str | None = None
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if identity.mode == "disabled":
            return
        self._thread.start()
        self._submit(lambda: self._start(params, dict(config), job_type))

    def rewind(self, step: int) -> None:
        """Nothing: what was logged before an interruption stays, and is not logged again."""

    def record(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs rows of the curves; empty cells are left out."""
        for row in rows:
            if row["step"] > self.after_step:
                cells = {key: value for key, value in row.items() if value not in (None, "") and key != "step"}
                self._submit(lambda cells=cells, step=row["step"]: self._run.log(cells, step=step))  # type: ignore[misc]

    def flush(self) -> None:
        """Nothing: wandb sends in the background."""

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Sets values of the run's summary."""
        self._submit(lambda: self._run.summary.update(dict(values)))

    def log_table(self, name: str, table: Table, step: int | None = None) -> None:
        """Logs a table under `name`."""

        def log() -> None:
            import wandb

            self._run.log({name: wandb.Table(columns=list(table[0]), data=[list(row) for row in table[1]])}, step=step)

        self._submit(log)

    def finish(self, exit_code: int = 0) -> RunIdentity:
        """Ends the run and waits for what is left to be sent, a minute at most. Returns its identity with the URL."""
        if self.identity.mode != "disabled":
            url = []
            if self.identity.mode == "online":
                self._submit(lambda: url.append(self._run.url))
            self._submit(lambda: self._run.finish(exit_code=exit_code))
            self._put(None)
            self._thread.join(FINISH_TIMEOUT_S)
            if self._thread.is_alive():
                logger.warning("W&B: not done after %.0f s; leaving the rest to `wandb sync`", FINISH_TIMEOUT_S)
            if url:
                return RunIdentity(self.identity.id, self.identity.name, self.identity.mode, url[0] or None)
        return self.identity

    def _start(self, params: TrackingParams, config: dict[str, Any], job_type: str) -> None:
        import wandb

        self._run = wandb.init(
            project=params.project,
            entity=params.entity,
            tags=params.tags,
            id=self.identity.id,
            name=self.identity.name,
            mode=self.identity.mode,  # type: ignore[arg-type]
            config=config,
            job_type=job_type,
            dir=main_root(),
            resume="allow",
            settings=wandb.Settings(silent=True, init_timeout=60, console="off"),
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def _submit(self, call: Callable[[], None]) -> None:
        if self.identity.mode != "disabled" and self._failed is None:
            self._put(call)

    def _put(self, call: Callable[[], None] | None) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._fail(f"{QUEUE_LENGTH} rows wait to be sent")

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if self._failed is not None:
                continue
            try:
                call()
            except BaseException as error:  # wandb raises its own kinds, and SystemExit too
                self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, why: str) -> None:
        if self._failed is None:
            self._failed = why
            logger.warning("W&B: %s; training goes on, the curves are in reports/train/curves.csv", why)


def log_to_training_run(
    params: TrackingParams,
    training_summary: Path,
    summary: Mapping[str, float],
    tables: Mapping[str, Table] | None = None,
) -> None:
    """Adds values and tables of a later stage to the W&B run that `training_summary` (summary.json) names.

    Goes online or offline as training did, unless it is told otherwise. Does nothing where training was not tracked.
    """
    if not training_summary.exists():
        return
    known = read_json(training_summary)["wandb"]
    chosen = params.mode != "auto" or "WANDB_MODE" in os.environ
    mode = resolved_mode(params) if chosen else known["mode"]  # as training was
    run = WandbRun(RunIdentity(known["id"], known["name"], mode), params, {}, job_type="train")
    run.summarise(summary)
    for name, table in (tables or {}).items():
        run.log_table(name, table)
    run.finish()
