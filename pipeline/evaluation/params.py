"""The `evaluate` section of params.yaml."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.config import Section


class EvaluateParams(Section):
    """What the evaluate stage measures, and in which precision."""

    section: ClassVar[str] = "evaluate"

    dtype: Literal["auto", "float32", "bfloat16"]
    """Data type of matrix products. float32 gives the numbers of the reference tools. bfloat16, and auto (bfloat16
    where the hardware supports it), are faster and change the loss in its fourth digit; uncertain benchmark answers are
    scored again in float32."""

    stride: int | None = Field(ge=1)
    """Tokens from one validation window to the next, at most `model.block_size`. null: block_size, so windows do not
    overlap. With a smaller stride only the last `stride` tokens of each window are scored, with at least
    block_size - stride tokens before them: a lower loss, at block_size / stride times the work."""

    checker: Literal["text", "last_number"] | None
    """Of conversations: measures exact match. The model generates the last turn of held-out conversations by greedy
    decoding; the turn is correct if its text (text) or its last number (last_number) matches the data. null: off."""

    checker_items: int | None = Field(ge=1)
    """At most this many held-out conversations, from the start of the validation split; null: all."""

    def cross_validate(self, sections: Mapping[str, Section]) -> Iterator[str]:
        """The stride must fit the model's context."""
        block_size = getattr(sections["model"], "block_size", None)
        if self.stride is not None and block_size is not None and self.stride > block_size:
            yield f"evaluate.stride ({self.stride}) must be at most model.block_size ({block_size})"
