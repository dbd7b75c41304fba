"""Published results of GPT-2, and the protocols that they were measured with.

They are shown only where the comparison is fair: same items, same text, same tokenizer.
"""

from dataclasses import dataclass
from typing import Literal

CHANCE = 0.25
"""Accuracy of guessing one of four endings."""

FINEWEB_EDU_LOSS = ("GPT-2 124M", 3.2924)
"""OpenAI's weights on FineWeb-Edu's validation shard, nats per GPT-2 token.
https://github.com/karpathy/build-nanogpt/blob/master/play.ipynb"""


@dataclass(frozen=True)
class Protocol:
    """A way of choosing an ending, and GPT-2's accuracy with it on HellaSwag's 10,042 validation items."""

    name: Literal["acc", "acc_norm", "acc_norm_token"]
    rule: str
    references: tuple[tuple[str, float], ...]


# All three from the head of https://github.com/karpathy/build-nanogpt/blob/master/hellaswag.py, which cites the first
# two from lm-evaluation-harness.
PROTOCOLS = (
    Protocol(
        "acc",
        "highest log-probability, prompt as in lm-evaluation-harness",
        (("GPT-2 124M", 0.2892), ("GPT-2 1558M", 0.4004)),
    ),
    Protocol(
        "acc_norm",
        "highest log-probability per character, prompt as in lm-evaluation-harness",
        (("GPT-2 124M", 0.3114), ("GPT-2 1558M", 0.5089)),
    ),
    Protocol(
        "acc_norm_token",
        "lowest mean loss per token after the raw context, as in build-nanogpt",
        (("GPT-2 124M", 0.2955), ("GPT-2 1558M", 0.4893)),
    ),
)
