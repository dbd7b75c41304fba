"""Numbers of other people's models, to hold a run against, each with the protocol that it was measured by.

They are drawn and named only where the comparison is fair: the same items, the same text, the same tokens.
"""

from dataclasses import dataclass

CHANCE = 0.25
"""Four endings, one of them true."""


@dataclass(frozen=True)
class Protocol:
    """One way of choosing an ending, and what known models reach with it on HellaSwag's 10,042 validation items."""

    metric: str  # the key in metrics.json
    title: str
    rule: str
    references: tuple[tuple[str, float], ...]


PROTOCOLS = (
    Protocol(
        "acc",
        "acc",
        "the ending with the highest log-probability, prompt as in lm-evaluation-harness",
        (("GPT-2 124M", 0.2892), ("GPT-2 1558M", 0.4004)),
    ),
    Protocol(
        "acc_norm",
        "acc_norm",
        "the highest log-probability per character, prompt as in lm-evaluation-harness",
        (("GPT-2 124M", 0.3114), ("GPT-2 1558M", 0.5089)),
    ),
    Protocol(
        "acc_norm_token",
        "acc_norm_token",
        "the lowest mean loss per token after the raw context, as in build-nanogpt",
        (("GPT-2 124M", 0.2955), ("GPT-2 1558M", 0.4893)),
    ),
)

FINEWEB_EDU_LOSS = ("GPT-2 124M", 3.2924)
"""OpenAI's weights on the validation shard of FineWeb-Edu, nats per GPT-2 token (build-nanogpt)."""
