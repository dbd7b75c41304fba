"""The `train` section of params.yaml: what training computes. How it is executed stands in `runtime`."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Strict, model_validator

from pipeline.config import Section
from pipeline.model.config import ModelParams


class TrainParams(Section):
    """Data order, batch, optimizer, schedule and the probes that are taken on the way."""

    section: ClassVar[str] = "train"

    seed: int = Field(ge=0, lt=2**32)
    """Of the initial weights, the order of the data and dropout."""

    order: Literal["shuffled", "sequential"]
    """shuffled: each epoch a new permutation of all blocks; sequential: the token stream as it stands."""

    total_batch_size: int = Field(ge=1)
    """Tokens per optimizer step, over all ranks and micro-batches; a multiple of model.block_size."""

    max_steps: int = Field(ge=1)
    """Optimizer steps."""

    optimizer: Literal["adamw", "muon"]
    """adamw; or muon for the matrices inside the blocks, with adamw for embeddings, head, norms and biases."""

    max_lr: float = Field(gt=0)
    """Learning rate after the warmup. Muon's updates are scaled to AdamW's size, so that both share it."""

    betas: Annotated[tuple[float, float], Strict(False)]
    """AdamW's decay rates of the first and second moment, each in [0, 1)."""

    eps: float = Field(gt=0)
    """AdamW's epsilon."""

    weight_decay: float = Field(ge=0)
    """Decoupled, on matrices only: not on biases, norms and other vectors."""

    grad_clip: float = Field(ge=0)
    """Largest global gradient norm; larger gradients are scaled down to it. 0: off."""

    schedule: Literal["cosine", "wsd", "linear", "constant"]
    """After the warmup: cosine or linear decay to the end; warmup-stable-decay (wsd); or constant."""

    warmup_steps: int = Field(ge=0)
    """Steps of linear warmup: the learning rate of step s is max_lr (s + 1) / warmup_steps."""

    min_lr_ratio: float = Field(ge=0, le=1)
    """The last learning rate as a share of max_lr."""

    decay_fraction: float = Field(ge=0, le=1)
    """Share of max_steps over which wsd decays at the end."""

    max_skipped_steps: int = Field(ge=0)
    """Steps with a loss or gradient that is not finite are skipped; after more than so many the run stops."""

    eval_interval: int = Field(ge=0)
    """Steps between validation losses. 0: off."""

    eval_tokens: int = Field(ge=1)
    """Tokens of the validation split, from its start, that the loss in the loop is taken over."""

    hellaswag_interval: int = Field(ge=0)
    """Steps between multiple-choice evaluations. 0: off."""

    hellaswag_items: int = Field(ge=1)
    """Items of the fixed, seeded subset that the loop evaluates."""

    sample_interval: int = Field(ge=0)
    """Steps between text samples. 0: off."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"train.warmup_steps ({self.warmup_steps}) must be below max_steps ({self.max_steps})")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas ({list(self.betas)}) must each be at least 0 and below 1")
        return self

    def rules_across(self, sections: Mapping[str, Section]) -> Iterator[str]:
        """The batch is made of whole sequences."""
        model = sections["model"]
        assert isinstance(model, ModelParams)
        if self.total_batch_size % model.block_size:
            yield (
                f"train.total_batch_size ({self.total_batch_size}) must be a multiple of "
                f"model.block_size ({model.block_size})"
            )
