"""The training loop.

A step depends only on the params, the data, its number and the checkpointed state (weights, optimizer, random state).
So a run that is killed and resumed ends with the weights of a run that never was. Probes and loggers only observe: they
cannot change the weights.
"""

import gc
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.artifacts import Resume, TrainMetrics
from pipeline.corpus.shards import TokenStream
from pipeline.distributed import Group, autocast, autocast_dtype, device_name
from pipeline.log import logger
from pipeline.model.accounting import flops_per_token
from pipeline.model.gpt import ATTENTION, GPT
from pipeline.progress import Progress
from pipeline.runtime import RuntimeParams
from pipeline.training.checkpoint import CheckpointStore, collect, restore
from pipeline.training.data_loader import Loader
from pipeline.training.metrics import Logger, Row, StepMetrics, peak_flops
from pipeline.training.optim import Optimizer, learning_rate
from pipeline.training.parallel import (
    data_parallel,
    full_tensor,
    gather,
    parallelize,
    reset_grads,
    set_gradient_sync,
    whole_model,
)
from pipeline.training.params import TrainParams
from pipeline.training.signals import Interrupted, SignalHandler

CHECKPOINT_SECONDS = 600.0  # between checkpoints where runtime.checkpoint_interval is null
STRICT_DEVICES = ("cuda",)  # on a CPU the lenient mode gives the same bits, and compiled code is a tenth faster in it
LOG_INTERVAL = 10  # steps between readings of the metrics, each of which waits for the device
# FLOPs of a run per process from which compiling saves more time than it takes: about a minute of eager training on two
# CPU cores; the value for CUDA is an estimate.
COMPILE_MIN_FLOPS = {"cpu": 2e13, "cuda": 1e15}
NON_COMPILER_ERRORS = (torch.OutOfMemoryError, dist.DistError)  # errors that eager training would meet too


@dataclass(frozen=True)
class Probe:
    """Something measured in the loop, on every rank. It must not change weights, modes or random state."""

    interval: int
    """In steps; 0: never."""
    measure: Callable[[GPT, int], Row]
    """(model, step) -> the columns that it adds to the row of that step."""


class Trainer:
    """Trains a model to the end, from the start or from the newest checkpoint."""

    def __init__(
        self,
        model: GPT,
        stream: TokenStream,
        train: TrainParams,
        runtime: RuntimeParams,
        group: Group,
        store: CheckpointStore,
        loggers: Sequence[Logger],
        probes: Sequence[Probe],
    ) -> None:
        """`model` must have the same weights on every rank. `loggers`: only on rank 0.

        Raises UserError if the batch does not fit the number of ranks, or the corpus is shorter than the context.
        """
        self._warn_only = group.device.type not in STRICT_DEVICES
        use_deterministic_algorithms(runtime.deterministic, self._warn_only)
        self.train, self.runtime, self.group, self.store = train, runtime, group, store
        self.loggers, self.probes = loggers, probes
        self.loader = Loader(stream, model.config.block_size, train, runtime, group)
        for block in model.transformer.h:
            block.attn.attend = ATTENTION[runtime.attention]  # type: ignore[union-attr]
            block.activation_checkpointing = runtime.activation_checkpointing  # type: ignore[assignment]
        with group.name_absent_ranks(lambda: "the start"):  # rank 0 may have failed to read model.init_from
            parallelize(model, runtime.sharding, group)
        self.model = model
        self.dtype = autocast_dtype(runtime.dtype, group.device)
        self.optimizer = Optimizer(model, train, group)
        self._save_intervals = (runtime.checkpoint_interval, runtime.milestone_interval)
        self._saved_at = time.monotonic()
        flops, peak = flops_per_token(model.config), peak_flops(group.device)
        self.metrics = StepMetrics(train, group.device, flops, peak and peak * group.world_size)
        self.steps = 0  # optimizer steps done
        self.best_weights: dict[str, Tensor] = {}  # with train.keep: best, of the lowest validation loss; on rank 0

    def run(self) -> TrainMetrics:
        """Trains to the end. Leaves the whole model in `model`: on rank 0 with the weights that train.keep asks for.

        Raises Interrupted on a signal, UserError if too many steps were skipped or a rank does not respond.
        """
        torch.manual_seed(dropout_seed(self.train.seed, self.group.rank))
        self.compiled = False
        self._activity = "the start"  # in the error if a rank does not join it
        with SignalHandler(self.group) as signals, self.group.name_absent_ranks(lambda: self._activity):
            try:
                self.steps = self._resume()
                if self.steps < self.train.max_steps and not self.metrics.out_of_patience:
                    self._wrap()
                    self._loop(self.steps, signals)
                if self.metrics.out_of_patience:
                    logger.info("stopping: no lower validation loss since step %d", self.metrics.best.step)
                self.store.wait()
            finally:
                self.loader.close()
                self._unwrap()
        self.model = whole_model(self.model)
        if self.best_weights:
            self.model.load_state_dict(self.best_weights)

        tokens = self.steps * self.train.total_batch_size
        train_time_s = self.metrics.state_dict().stats.train_time_s
        rate = tokens / max(train_time_s, 1e-9)
        mfu = self.metrics.mfu(rate)
        return TrainMetrics(
            tokens=tokens,
            flops=tokens * self.metrics.flops_per_token,
            train_time_s=round(train_time_s, 2),
            tokens_per_sec=round(rate, 1),
            mfu=None if mfu is None else round(mfu, 4),
        )

    def _loop(self, start: int, signals: SignalHandler) -> None:
        train, group, optimizer, metrics = self.train, self.group, self.optimizer, self.metrics
        total_tokens, tokens_done = train.max_steps * train.total_batch_size, start * train.total_batch_size
        if start == 0 and (probes := self._due_probes(0)):
            self._log([{"step": 0, "tokens": 0}], probes)
        with Progress("train", total_tokens, "tok", start=tokens_done) as progress:
            for step in range(start + 1, train.max_steps + 1):
                self._activity = f"step {step}"
                by_time = self.runtime.checkpoint_interval is None
                signals.exchange(group.is_main and by_time and time.monotonic() - self._saved_at > CHECKPOINT_SECONDS)
                lr = learning_rate(step, train)
                metrics.clock.start()

                # Forward and backward. The last backward pass also averages the gradients over the ranks.
                losses = torch.zeros(group.world_size, device=group.device)  # each rank's own, nats per token
                for index, batch in enumerate(self.loader.micro_batches(step - 1), start=1):
                    set_gradient_sync(self.module, index == self.loader.accumulation_steps)
                    with autocast(group.device, self.dtype):
                        loss = self.module(batch.inputs, batch.targets, batch.documents)
                    loss = loss / batch.divisor
                    loss.backward()
                    losses[group.rank] += loss.detach()
                group.sum_(losses)

                # Clip and update. All ranks now have the same losses and norm, so they make the same decision.
                grad_norm = nn.utils.clip_grad_norm_(optimizer.parameters, train.grad_clip or float("inf"))
                grad_norm = full_tensor(grad_norm)
                optimizer.step(step, skip=~(losses.isfinite().all() & grad_norm.isfinite()))
                optimizer.zero_grad()
                metrics.add(step, lr, losses, grad_norm)

                # Log, evaluate, save: rarely, since each of them waits for the device.
                self.steps = step
                interrupted_by, checkpoint_due = signals.agreed()
                stopping = step == train.max_steps or interrupted_by is not None
                saving = stopping or checkpoint_due or step == self.store.pinned
                saving = saving or any(n and step % n == 0 for n in self._save_intervals)
                probes = self._due_probes(step)
                if saving or probes or step % LOG_INTERVAL == 0:
                    group.barrier()
                    self._log(metrics.read(), probes)
                    metrics.check_skipped_steps()
                    self.store.check()
                finished = step == train.max_steps or metrics.out_of_patience
                if saving or finished:
                    self._save(step)
                note = {}
                if last := metrics.last:
                    loss_text, lr_text = f"{last.loss:.4f}", f"{last.lr:.2e}"
                    note = {"step": f"{last.step}/{train.max_steps}", "loss": loss_text, "lr": lr_text}
                progress.advance(train.total_batch_size, **note)
                if finished:
                    break
                if interrupted_by is not None:
                    self.store.wait()
                    group.barrier()  # torchrun ends all ranks 30 s after the first has exited
                    # `dvc repro` would resume too, but without the name of the experiment.
                    experiment = os.environ.get("DVC_EXP_NAME")
                    command = f"dvc exp run --name {experiment} with the same -S" if experiment else "the same command"
                    raise Interrupted(
                        f"{interrupted_by.name}: stopped and saved after step {step} of {train.max_steps}; "
                        f"run {command} again to resume",
                        exit_code=128 + interrupted_by,
                        all_ranks=True,
                    )

    def _resume(self) -> int:
        """Loads the newest checkpoint, if any; returns the optimizer steps done."""
        checkpoint = restore(self.store, self.model, self.optimizer, self.group)
        step = 0
        if checkpoint is not None:
            step = checkpoint.step
            manifest, changed_files = checkpoint.manifest, checkpoint.changed_files
            run = manifest.run if manifest.run != self.store.run else None
            self.metrics.load_state_dict(manifest.metrics, Resume(step=step, changed_files=changed_files, run=run))
            if self.group.is_main and "best.pt" in manifest.files:
                self.best_weights = checkpoint.load("best")
            logger.info("resuming after step %d of %d", step, self.train.max_steps)
            before, now = manifest.execution, self._execution()
            different = [
                f"{key} {now[key]} (checkpoint: {was})" for key, was in before.items() if now.get(key, was) != was
            ]
            if different:
                logger.info(
                    "resuming with %s: same batches, but results will not be bit-identical", ", ".join(different)
                )
        for log in self.loggers:
            log.rewind(step)
        return step

    def _wrap(self) -> None:
        """Sets `module`: `model`, compiled if that pays and works, in DDP if needed. The same on every rank."""
        if (choice := self._compile_choice()) != "off":
            logger.info("compiling the model (about a minute on two CPU cores, less on a GPU machine)")
            logging.getLogger("torch._inductor").setLevel(logging.ERROR)
            mode = "max-autotune-no-cudagraphs" if choice == "max-autotune" else None
            self.module = data_parallel(cast(nn.Module, torch.compile(self.model, mode=mode)), self.group)
            failure = self._warm_up()
            failures = self.group.sum_(torch.tensor([failure is not None], dtype=torch.int32))
            if not failures.item():
                self.compiled = True
                return
            if self.runtime.compile != "auto" and failure:
                logger.warning("runtime.compile is %s, but compiling failed (%s)", choice, failure)
            logger.warning("training without torch.compile: %s", failure or "it failed on another rank")
            self._unwrap()
        self.module = data_parallel(self.model, self.group)

    def _compile_choice(self) -> str:
        """runtime.compile, with auto decided by params, world size and device: alike on resume on the same hardware."""
        tokens_per_rank = self.train.total_batch_size * self.train.max_steps / self.group.world_size
        flops = self.metrics.flops_per_token * tokens_per_rank
        pays = flops >= COMPILE_MIN_FLOPS.get(self.group.device.type, float("inf"))
        return ("on" if pays else "off") if self.runtime.compile == "auto" else self.runtime.compile

    def _warm_up(self) -> str | None:
        """A forward and backward pass that compiles the model outside the measured time. Returns the error, or None."""
        batch = next(iter(self.loader.micro_batches(0)))
        cuda = [self.group.device] if self.group.device.type == "cuda" else []
        # Without DDP's synchronisation: a rank that fails to compile must not leave the others waiting.
        sync = self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else nullcontext()
        try:
            with torch.random.fork_rng(cuda), sync:  # dropout here must not change the run's random state
                with autocast(self.group.device, self.dtype):
                    loss = self.module(batch.inputs, batch.targets, batch.documents)
                loss.backward()
        except NON_COMPILER_ERRORS:
            raise
        except Exception as error:  # whatever the compiler raises: train without it
            return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        finally:
            reset_grads(self.model)
        return None

    def _unwrap(self) -> None:
        """Frees DDP while the process group exists.

        As the interpreter exits, freeing it would wait, holding the GIL, for a gloo thread that needs the GIL.
        """
        self.module = cast(nn.Module, None)
        gc.collect()

    def _due_probes(self, step: int) -> list[Probe]:
        """The probes to run after `step`: at multiples of their intervals, and at the end."""
        end = step == self.train.max_steps
        return [probe for probe in self.probes if probe.interval and (end or step % probe.interval == 0)]

    def _log(self, rows: list[Row], probes: Sequence[Probe]) -> None:
        """Logs rows, with what the probes measure in the last of them. Keeps the weights if they are the best."""
        if probes:
            model = whole_model(self.model, self.dtype)
            # Sampling sums probabilities, for which CUDA has no deterministic algorithm; weights do not depend on it.
            use_deterministic_algorithms(self.runtime.deterministic, warn_only=True)
            for probe in probes:
                rows[-1].update(probe.measure(model, rows[-1]["step"]))
            use_deterministic_algorithms(self.runtime.deterministic, self._warn_only)
            val_loss = rows[-1].get("val/loss")
            if val_loss is not None and self.metrics.is_best(rows[-1]["step"], val_loss) and self.train.keep == "best":
                rows[-1]["event"] = f"{rows[-1].get('event', '')} best".strip()
                weights = gather(self.model.state_dict(), self.group)
                if self.group.is_main:
                    self.best_weights = {name: weight.to("cpu", copy=True) for name, weight in weights.items()}
        for log in self.loggers:
            log.record(rows)
            if probes:
                log.flush()

    def _save(self, step: int) -> None:
        self._saved_at = time.monotonic()
        best = {"best": self.best_weights} if self.best_weights else {}
        parts = collect(self.model, self.optimizer, self.group) | best
        for log in self.loggers:
            log.flush()  # first: the curves are never behind the checkpoint
        if self.group.is_main:
            self.store.save(step, parts, self.metrics.state_dict(), self._execution())

    def _execution(self) -> dict[str, Any]:
        """Settings that may change on resume and then make results no longer bit-identical."""
        return {
            "micro_batch_size": self.loader.micro_batch_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": self.runtime.attention,
            "compile": self._compile_choice(),
            "sharding": self.runtime.sharding,
            "deterministic": self.runtime.deterministic,
            "threads": torch.get_num_threads(),
            "device": device_name(self.group.device),
            "torch": torch.__version__,
        }


def dropout_seed(seed: int, rank: int) -> int:
    """The seed of a rank's dropout masks; no two pairs of (seed, rank) share a stream, as seed + rank would."""
    return int(np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(1, np.uint64)[0])


def use_deterministic_algorithms(enabled: bool, warn_only: bool) -> None:
    """Restricts this process to algorithms with a fixed order of additions, or lifts that.

    Without it, threads add up the gradient of an embedding in the order in which they finish, also in compiled code on
    a CPU. Operations without such an algorithm raise RuntimeError: https://pytorch.org/docs/stable/notes/randomness.html
    With `warn_only` they warn, and so do some that have one: the backward passes of fused attention on CUDA are
    deterministic only without it.
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    # Filling uninitialised memory costs time and only hides reads of memory that was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
