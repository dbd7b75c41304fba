"""How a run is executed: the `runtime` section, which no stage lists as params.

Nothing here changes what a run computes, beyond the order of floating-point additions. So moving from one GPU to eight,
or halving the micro-batch, retrains nothing.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Section


class RuntimeParams(Section):
    """Machine facts."""

    section: ClassVar[str] = "runtime"

    micro_batch_size: int = Field(ge=1)
    """Sequences per rank and forward pass, at most: the largest divisor of a rank's share of the batch is taken."""

    dtype: Literal["auto", "float32", "bfloat16"]
    """What matrix products are computed in; auto: bfloat16 where the hardware multiplies in it, else float32."""

    compile: Literal["auto", "on", "off"]
    """torch.compile; auto: where it pays, falling back to eager with one line where the compiler is missing."""

    deterministic: bool
    """Only algorithms that give the same bits each time, so that a resumed run equals one never stopped bit for bit;
    false: faster ones where there are such, whose order of additions varies from run to run."""

    sharding: Literal["ddp", "fsdp"]
    """How several ranks hold the model. ddp: each holds all of it. fsdp: each holds its share of every weight, gradient
    and moment, and gathers a block when it computes it; for models that do not fit."""

    activation_checkpointing: bool
    """Keep only the input of each block for the backward pass and compute the rest again there: the same numbers, much
    less memory, about a third more computation."""

    checkpoint_interval: int = Field(ge=1)
    """Optimizer steps between checkpoints."""

    checkpoints_kept: int = Field(ge=1)
    """Newest checkpoints to keep."""

    milestone_interval: int = Field(ge=0)
    """Optimizer steps between checkpoints that stay for good, in `.runs/milestones-<fingerprint>/`; a multiple of
    checkpoint_interval. 0: none."""

    collective_timeout: float = Field(gt=0)
    """Seconds after which a collective that some rank does not join ends the run, which names that rank."""

    workers: int = Field(ge=0)
    """Processes that tokenize; 0: one per core."""

    @model_validator(mode="after")
    def _milestones_are_checkpoints(self) -> Self:
        if self.milestone_interval % self.checkpoint_interval:
            raise ValueError(
                f"runtime.milestone_interval ({self.milestone_interval}) must be a multiple of "
                f"checkpoint_interval ({self.checkpoint_interval})"
            )
        return self
