"""The `sample` section of params.yaml."""

from typing import Annotated, ClassVar

from pydantic import Field, Strict

from pipeline.config import Section


class SampleParams(Section):
    """What the sample stage generates. Samples during training use the same section."""

    section: ClassVar[str] = "sample"

    prompts: Annotated[tuple[str | None, ...], Strict(False), Field(min_length=1)]
    """Texts to continue. null: no prompt, the model starts a document. Of a model trained on conversations: messages
    that it answers."""

    samples_per_prompt: int = Field(ge=1, le=10_000)
    """Continuations of each prompt."""

    max_new_tokens: int = Field(ge=1, le=10**6)
    """Maximum tokens per continuation; it ends sooner at an end-of-text token. May exceed the model's context."""

    temperature: float = Field(ge=0, le=100)
    """Divides the logits: below 1 more predictable, above 1 more random. 0: greedy, always the most likely token."""

    top_k: int = Field(ge=0)
    """Sample from the k most likely tokens. 0: off."""

    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling: sample from the smallest set of most likely tokens whose probabilities, after temperature and
    top_k, add up to `top_p`. 1: off."""

    seed: int = Field(ge=0, lt=2**32)
    """Random seed. The same seed gives the same texts on the same machine. Each sample has its own random numbers, so
    asking for more samples does not change the first ones."""

    surprisal_text: str | None = Field(min_length=1)
    """Text whose tokens the report colours by surprisal. null: the first sample."""
