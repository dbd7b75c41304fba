"""The `evaluate` section of params.yaml."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.config import Section


class EvaluateParams(Section):
    """What the evaluate stage measures, and in which precision."""

    section: ClassVar[str] = "evaluate"

    dtype: Literal["auto", "float32", "bfloat16"]
    """What matrix products are computed in. float32 gives the numbers that reference tools give; auto (bfloat16 where
    the hardware multiplies in it) and bfloat16 are faster and move the loss in its fourth digit; HellaSwag's close
    calls are asked again in float32."""

    stride: int | None = Field(ge=1)
    """Tokens that the validation window moves, at most `model.block_size`. null: a whole window, so that windows do not
    overlap. A smaller stride scores only the last `stride` tokens of each window, which then have at least
    block_size - stride tokens before them: a lower loss, at block_size / stride times the work."""

    hellaswag_items: int | None = Field(ge=1)
    """Items scored, at most: a fixed, seeded subset, the same for every model. null: all of them."""

    def rules_across(self, sections: Mapping[str, Section]) -> Iterator[str]:
        """The stride must fit the model's window."""
        block_size = getattr(sections["model"], "block_size", None)
        if self.stride is not None and block_size is not None and self.stride > block_size:
            yield f"evaluate.stride ({self.stride}) must be at most model.block_size ({block_size})"
