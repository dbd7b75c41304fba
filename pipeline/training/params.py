"""The `train` section of params.yaml: what training computes. The `runtime` section says how it is executed."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Strict, model_validator

from pipeline.config import Section
from pipeline.model.config import ModelParams


class TrainParams(Section):
    """Data order, batch, optimizer, schedule and probes."""

    section: ClassVar[str] = "train"

    seed: int = Field(ge=0, lt=2**32)
    """Seed of the initial weights, the data order and dropout."""

    shuffle: bool
    """true: each epoch sees all blocks in a new random order. false: each epoch reads them in the stream's order."""

    document_mask: bool
    """Tokens attend only to their own document, in which positions count from 0: packed documents are trained on as if
    each were alone. false: a block is one text (GPT-2). The validation loss of texts is still read in windows across
    documents."""

    total_batch_size: int = Field(ge=1, le=2**30)
    """Tokens per optimizer step, over all ranks and micro-batches; a multiple of model.block_size."""

    max_steps: int = Field(ge=1, le=10**9)
    """Number of optimizer steps."""

    optimizer: Literal["adamw", "muon", "normuon"]
    """adamw; or, for the matrices inside the blocks, muon or normuon (arXiv 2510.05491: Muon with an adaptive rate for
    each row), and adamw for embeddings, head and vectors."""

    max_lr: float = Field(gt=0, le=100)
    """Learning rate after warmup. Muon's updates are scaled to the RMS of AdamW's, so that both use the same rate."""

    embedding_lr: float | None = Field(gt=0, le=100)
    """max_lr of token and position embeddings, and so of a tied head; null: max_lr. The schedule is the same."""

    head_lr: float | None = Field(gt=0, le=100)
    """max_lr of an untied head; null: max_lr."""

    vector_lr: float | None = Field(gt=0, le=100)
    """max_lr of biases, gains of norms and other vectors; null: max_lr."""

    momentum_warmup_steps: int = Field(ge=0)
    """Steps over which Muon's momentum rises from 0.85 to 0.95; 0: 0.95 from the start."""

    betas: Annotated[tuple[float, float], Strict(False)]
    """AdamW's decay rates of the first and second moment, each in [0, 1)."""

    eps: float = Field(gt=0, le=1)
    """AdamW's epsilon."""

    weight_decay: float = Field(ge=0, le=1000)
    """Decoupled weight decay, applied to matrices only: not to biases, norms and other vectors."""

    cautious_decay: bool
    """Muon decays a weight only where its update shrinks it too (arXiv 2510.12402)."""

    grad_clip: float = Field(ge=0, le=10**6)
    """Gradients with a larger global norm are scaled down to it. 0: off."""

    schedule: Literal["cosine", "wsd", "linear", "constant"]
    """Learning rate after warmup: cosine or linear decay to the end, warmup-stable-decay (wsd), or constant."""

    warmup_steps: int = Field(ge=0)
    """Steps of linear warmup: the learning rate of step s, counted from 1, is max_lr * s / warmup_steps. A run of fewer
    steps ends during warmup, as in nanoGPT."""

    min_lr_ratio: float = Field(ge=0, le=1)
    """Final learning rate / max_lr."""

    decay_fraction: float = Field(ge=0, le=1)
    """Fraction of max_steps, at the end, over which wsd decays the learning rate."""

    max_skipped_steps: int = Field(ge=0)
    """Steps with a non-finite loss or gradient are skipped; the run stops after more than this many."""

    eval_interval: int = Field(ge=0)
    """Steps between validation losses. 0: off."""

    eval_tokens: int = Field(ge=1)
    """Tokens, from the start of the validation split, on which training measures the validation loss."""

    benchmark_interval: int = Field(ge=0)
    """Steps between evaluations on the first task of benchmarks.tasks. 0: off."""

    benchmark_items: int = Field(ge=1)
    """Number of its items that training evaluates, a fixed subset."""

    sample_interval: int = Field(ge=0)
    """Steps between text samples. 0: off."""

    keep: Literal["last", "best"]
    """The weights that become data/model. last: those after the last step. best: those with the lowest validation loss
    on train.eval_tokens, measured every train.eval_interval steps."""

    patience: int | None = Field(ge=1)
    """Early stopping: training stops after this many validation losses in a row without a new lowest. null: never."""

    @property
    def loss_decides(self) -> bool:
        """Whether the weights of data/model depend on the validation losses during training."""
        return self.keep == "best" or self.patience is not None

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.eval_interval == 0 and self.loss_decides:
            raise ValueError("train.eval_interval (0) must be at least 1 with train.keep: best or train.patience")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas ({list(self.betas)}) must each be at least 0 and below 1")
        return self

    def cross_validate(self, sections: Mapping[str, Section]) -> Iterator[str]:
        """The batch must consist of whole sequences; a tied head has no rate of its own."""
        model = sections["model"]
        assert isinstance(model, ModelParams)
        if self.total_batch_size % model.block_size:
            yield (
                f"train.total_batch_size ({self.total_batch_size}) must be a multiple of "
                f"model.block_size ({model.block_size})"
            )
        if model.tie_embeddings and self.head_lr is not None:
            yield (
                f"train.head_lr ({self.head_lr}): must be null with model.tie_embeddings: a tied head is trained at "
                "embedding_lr"
            )
