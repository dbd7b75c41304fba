"""Additions with worked steps: an embedded example of conversations, whose answers can be checked exactly.

    user        347+285
    assistant   7+5=12
                4+8+1=13
                3+2+1=6
                632

The steps add the digits from the right, each with the carry of the step before. A conversation has one to three
additions.
"""

import random
from collections.abc import Iterator

from pipeline.corpus.conversations import Conversation, Message

ARITHMETIC_VERSION = 1  # raise it if the conversations change
CONVERSATIONS = 20_000
LARGEST = 999  # of the two numbers


def additions() -> Iterator[Conversation]:
    """CONVERSATIONS with different pairs of numbers: none occurs again, not with its numbers swapped."""
    rng = random.Random(1)
    seen: set[tuple[int, int]] = set()
    for number in range(CONVERSATIONS):
        messages: list[Message] = []
        while len(messages) < 2 * (1 + number % 3):
            a, b = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
            if (pair := (min(a, b), max(a, b))) not in seen:
                seen.add(pair)
                messages += [Message("user", f"{a}+{b}"), Message("assistant", worked_sum(a, b))]
        yield tuple(messages)


def worked_sum(a: int, b: int) -> str:
    """The steps of an addition, one a line, and the sum.

    >>> print(worked_sum(47, 5))
    7+5=12
    4+0+1=5
    52
    """
    lines, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        digits = [a // 10**place % 10, b // 10**place % 10] + [carry] * bool(carry)
        lines.append(f"{'+'.join(map(str, digits))}={sum(digits)}")
        carry = sum(digits) // 10
    return "\n".join([*lines, str(a + b)])
