"""The training loop: the one place that knows loader, optimizer, schedule and checkpoints together.

Everything that a step computes is a function of the params and the step number, so a run that is killed and resumed
from a checkpoint ends with the weights of a run that never was. What is measured on the way (`Probe`) and where it is
written (`Recorder`) come from outside and cannot touch the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.corpus.shards import TokenStream
from pipeline.distributed import Group, autocast_dtype
from pipeline.log import logger
from pipeline.model.accounting import flops_per_token
from pipeline.model.gpt import GPT
from pipeline.progress import Progress
from pipeline.runtime import RuntimeParams
from pipeline.training import resume
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.compiling import compiled
from pipeline.training.energy import EnergyMeter
from pipeline.training.hardware import choose_algorithms, peak_flops
from pipeline.training.interruption import Interrupted, Interruption
from pipeline.training.journal import Counters, Journal
from pipeline.training.loader import Loader
from pipeline.training.metrics import Row, StepClock
from pipeline.training.optim import Optimizer
from pipeline.training.parallel import place, whole_model
from pipeline.training.params import TrainParams
from pipeline.training.schedule import lr_ratio
from pipeline.training.step import TrainStep

READ_EVERY = 10  # steps between readings of the device's metrics


class Recorder(Protocol):
    """Where the rows of the curves go."""

    def rewind(self, step: int) -> None:
        """Forgets the rows after `step`, if any: the run goes on from there."""

    def record(self, rows: list[Row]) -> None:
        """Takes rows, in the order of their steps."""

    def flush(self) -> None:
        """Makes what was recorded last."""


class Probe(Protocol):
    """Something measured in the loop. Called on every rank; must leave weights, modes and random numbers alone."""

    @property
    def interval(self) -> int:
        """In steps; 0: never."""

    def measure(self, model: GPT, step: int) -> Row:
        """The cells that it adds to the row of `step`."""


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    steps: int
    tokens: int
    flops: int
    final_train_loss: float
    tokens_per_sec: float
    """Over the time in steps alone."""
    mfu: float | None
    micro_batch_size: int
    dtype: torch.dtype
    compiled: bool
    counters: Counters


class Trainer:
    """Trains one model to the end, from its beginning or from the newest checkpoint."""

    def __init__(
        self,
        model: GPT,
        stream: TokenStream,
        train: TrainParams,
        runtime: RuntimeParams,
        group: Group,
        store: CheckpointStore,
        recorders: Sequence[Recorder],
        probes: Sequence[Probe],
    ) -> None:
        """`model`: initialised the same on every rank. `recorders`: none but on rank 0.

        Raises ValueError where the batch and the world size, or the corpus and the context, do not fit.
        """
        choose_algorithms(runtime.deterministic)
        self.train, self.runtime, self.group, self.store = train, runtime, group, store
        self.recorders, self.probes = recorders, probes
        self.loader = Loader(
            stream,
            model.config.block_size,
            train.total_batch_size,
            runtime.micro_batch_size,
            train.order,
            train.seed,
            group.rank,
            group.world_size,
            group.device,
        )
        place(model, runtime.sharding, group)
        self.model = model
        for block in model.transformer.h:
            block.activation_checkpointing = runtime.activation_checkpointing  # type: ignore[assignment]
        self.dtype = autocast_dtype(runtime.dtype, group.device)
        self.optimizer = Optimizer(model, train.optimizer, train.weight_decay, train.betas, train.eps, group.device)
        peak = peak_flops(group.device, self.dtype)
        self.journal = Journal(
            StepClock(group.device),
            EnergyMeter(group.device, group.local_rank),
            train.total_batch_size,
            flops_per_token(model.config),
            peak and peak * group.world_size,
            train.max_skipped_steps,
        )

    def run(self) -> Outcome:
        """Trains to train.max_steps, and leaves the whole model in `model` on every rank.

        Raises Interrupted on a signal, Stop when the numbers have gone bad for good.
        """
        torch.manual_seed(self.train.seed + self.group.rank)  # each rank drops out on its own
        self._doing = "the start"
        with Interruption(self.group) as self.interruption, self.group.naming_absent(lambda: self._doing):
            start = self._resume()
            self.step, is_compiled = self._compiled()
            try:
                self._loop(start)
                self.store.wait()
            finally:
                self.loader.close()
                self.step.averaged.close()
        self.model = whole_model(self.model)
        return self._outcome(is_compiled)

    def _resume(self) -> int:
        """Takes up the newest checkpoint, if any; returns the optimizer steps done."""
        found = resume.restore(self.store, self.model, self.optimizer, self.group)
        step = 0
        if found is not None:
            step, state = found
            self.journal.take_up(state, step)
            resume.tell_changes(state.get("bits", {}), self._bits())
            self.journal.counters.resumed_at.append(step)
            logger.info("resuming after step %d of %d", step, self.train.max_steps)
        for recorder in self.recorders:
            recorder.rewind(step)
        return step

    def _compiled(self) -> tuple[TrainStep, bool]:
        inputs, targets = next(iter(self.loader.micro_batches_of(0)))
        train, dtype, group = self.train, self.dtype, self.group
        flops = self.journal.flops_per_token * train.total_batch_size * train.max_steps
        return compiled(
            self.model,
            self.runtime.compile,
            flops / group.world_size,
            group,
            step_of=lambda module: TrainStep(module, self.optimizer, train.grad_clip, dtype, group),
            rehearse=lambda step: step.rehearse(inputs, targets),
        )

    def _loop(self, start: int) -> None:
        batch, total = self.train.total_batch_size, self.train.max_steps
        if start == 0 and (probes := self._probes_due(0)):
            self._record([{"step": 0, "tokens": 0}], probes)
        with Progress("train", total * batch, "tok", start=start * batch) as progress:
            for step in range(start + 1, total + 1):
                self._doing = f"step {step}"
                self.interruption.exchange()
                self._step(step)
                interrupted_by = self.interruption.agreed()
                ending = step == total or interrupted_by is not None
                saving = ending or step % self.runtime.checkpoint_interval == 0
                probes = self._probes_due(step)
                if saving or probes or step % READ_EVERY == 0:
                    self.group.barrier()
                    self._record(self.journal.read(), probes)
                    self.journal.stop_if_too_many_skipped()
                    self.store.check()
                if saving:
                    self._save(step)
                progress.advance(batch, **self._shown())
                if interrupted_by is not None and step < total:
                    self.store.wait()
                    self.group.barrier()  # torchrun ends all ranks 30 s after the first has gone
                    raise Interrupted(
                        f"{interrupted_by.name}: stopped after step {step} of {total} and saved; "
                        "the same command goes on from here",
                        exit_code=128 + interrupted_by,
                        agreed=True,
                    )

    def _step(self, step: int) -> None:
        train = self.train
        ratio = lr_ratio(
            step - 1, train.schedule, train.max_steps, train.warmup_steps, train.min_lr_ratio, train.decay_fraction
        )
        lr = train.max_lr * ratio
        self.journal.clock.start()
        batches = self.loader.micro_batches_of(step - 1)
        self.journal.add(step, lr, *self.step(batches, self.loader.micro_batches, lr))

    def _probes_due(self, step: int) -> list[Probe]:
        """At multiples of each probe's interval, and at the end."""
        ending = step == self.train.max_steps
        return [probe for probe in self.probes if probe.interval and (ending or step % probe.interval == 0)]

    def _record(self, rows: list[Row], probes: Sequence[Probe]) -> None:
        """Writes the rows down, with what the probes measure in the last of them."""
        if probes:
            model = whole_model(self.model)
            for probe in probes:
                rows[-1].update(probe.measure(model, rows[-1]["step"]))
        for recorder in self.recorders:
            recorder.record(rows)
            if probes:
                recorder.flush()

    def _save(self, step: int) -> None:
        self.journal.count_energy(self.group)
        parts = resume.collect(self.model, self.optimizer, self.group)
        for recorder in self.recorders:
            recorder.flush()  # the curves are never behind the weights
        if self.group.is_main:
            self.store.save(step, parts, {**self.journal.state(), "bits": self._bits()})

    def _bits(self) -> dict[str, Any]:
        return resume.bits_depend_on(self.runtime, self.dtype, self.loader.micro_batch_size, self.group)

    def _shown(self) -> dict[str, str]:
        last = self.journal.last
        if last is None:
            return {}
        return {"step": f"{last.step}/{self.train.max_steps}", "loss": f"{last.loss:.4f}", "lr": f"{last.lr:.2e}"}

    def _outcome(self, is_compiled: bool) -> Outcome:
        tokens = self.train.max_steps * self.train.total_batch_size
        self.journal.state()
        counters = self.journal.counters
        rate = tokens / max(counters.train_time_s, 1e-9)
        return Outcome(
            steps=self.train.max_steps,
            tokens=tokens,
            flops=tokens * self.journal.flops_per_token,
            final_train_loss=self.journal.final_loss,
            tokens_per_sec=rate,
            mfu=self.journal.mfu(rate),
            micro_batch_size=self.loader.micro_batch_size,
            dtype=self.dtype,
            compiled=is_compiled,
            counters=counters,
        )
