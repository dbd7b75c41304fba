"""The `sample` section of params.yaml."""

from typing import Annotated, ClassVar

from pydantic import Field, Strict

from pipeline.config import Section


class SampleParams(Section):
    """What the sample stage generates. The training run's samples on the way use the same section."""

    section: ClassVar[str] = "sample"

    prompts: Annotated[tuple[str | None, ...], Strict(False), Field(min_length=1)]
    """The texts to continue. null: no prompt, the model starts a document of its own."""

    samples_per_prompt: int = Field(ge=1)
    """Continuations of each prompt."""

    max_new_tokens: int = Field(ge=1)
    """Tokens of a continuation, at most: it ends sooner where the model ends its document. It may be longer than the
    model's context."""

    temperature: float = Field(ge=0)
    """Divides the logits: below 1 bolder, above 1 wilder. 0: greedy, always the likeliest token."""

    top_k: int = Field(ge=0)
    """Sample from the so many likeliest tokens only. 0: off."""

    top_p: float = Field(gt=0, le=1)
    """Sample from the smallest set of likeliest tokens whose probabilities reach `top_p` together (nucleus sampling),
    counted after temperature and top_k. 1: off."""

    seed: int = Field(ge=0)
    """Seed of the random choices. The same seed gives the same texts on the same machine; each sample has a stream of
    its own, so that asking for more samples does not change the first ones."""

    surprise_text: str | None = Field(min_length=1)
    """A text that the report colours by how hard the model found each token. null: the first sample is taken."""
