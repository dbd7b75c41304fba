"""Exact match: the share of held-out conversations whose last turn the model generates correctly by greedy decoding.

A checker compares the model's answer with the one in the data:

    text          the same text, without white space around it
    last_number   the last number in both is the same, whatever the steps that lead to it
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import torch

from pipeline.artifacts import COUNTS, BenchmarkMetrics, SampleSettings
from pipeline.corpus.chat import Chat
from pipeline.corpus.shards import TokenStream
from pipeline.distributed import Group
from pipeline.generation.sampling import stream as stream_tokens
from pipeline.inference import for_inference
from pipeline.log import UserError
from pipeline.model.gpt import GPT
from pipeline.progress import Progress


def last_number(text: str) -> str | None:
    """The last number in a text, without commas between its digits; None if there is none.

    >>> last_number("12+5=17, so: 1,017.50.")
    '1017.50'
    """
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else None


CHECKERS: dict[str, Callable[[str, str], bool]] = {
    "text": lambda answer, expected: answer.strip() == expected.strip(),
    "last_number": lambda answer, expected: last_number(answer) == last_number(expected) is not None,
}


@dataclass(frozen=True)
class Request:
    """The last turn of a conversation, to be generated."""

    prompt: list[int]
    """All before the answer."""
    expected: str
    """The answer."""


def build_requests(stream: TokenStream, chat: Chat, limit: int | None) -> list[Request]:
    """The requests of the first `limit` conversations in a split, or of all. Raises UserError if there are none."""
    requests = []
    for begin, end in islice(pairwise([*stream.document_starts.tolist(), len(stream)]), limit):
        tokens = stream.read(begin, end - begin).tolist()
        counted = np.flatnonzero(stream.mask(begin, end - begin) & COUNTS)
        # A whole conversation ends with a turn that counts; where data.val_every is null, the last one may be cut.
        if len(counted) and counted[-1] == len(tokens) - 1 and tokens[-1] == chat.end_id:
            last_turn = int(counted[np.flatnonzero(np.diff(counted, prepend=-1) > 1)[-1]])
            requests.append(Request(tokens[:last_turn], chat.tokenizer.decode(tokens[last_turn:-1])))
    if not requests:
        raise UserError(f"{stream.directory}: {stream.split} split: no whole conversation for evaluate.checker")
    return requests


def exact_match(
    model: GPT,
    requests: list[Request],
    chat: Chat,
    checker: str,
    *,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None = None,
) -> BenchmarkMetrics:
    """The accuracy and its standard error. Called by every rank; all return the same result.

    An answer ends with its turn, or when the conversation fills the model's context. `batch_size`: conversations per
    rank at a time. `progress` is advanced by the conversations.
    """
    fast, block_size = for_inference(model, dtype), model.config.block_size
    correct = torch.zeros(1, dtype=torch.int64)
    at_once = batch_size * group.world_size
    for start in range(0, len(requests), at_once):
        mine = requests[start + group.rank * batch_size : start + (group.rank + 1) * batch_size]
        if mine:
            prompts = [request.prompt for request in mine]
            limits = [max(1, block_size - len(prompt)) for prompt in prompts]
            settings = SampleSettings(temperature=0, top_k=0, top_p=1, max_new_tokens=max(limits), seed=0)
            answers: list[list[int]] = [[] for _ in mine]
            for new in stream_tokens(fast, prompts, settings, eot_id=chat.end_id):
                if new.token != chat.end_id:
                    answers[new.prompt].append(new.token)
            for request, limit, tokens in zip(mine, limits, answers, strict=True):
                correct += CHECKERS[checker](chat.tokenizer.decode(tokens[:limit]), request.expected)
        if progress is not None:
            progress.advance(min(at_once, len(requests) - start))
    group.sum_(correct)
    accuracy = int(correct) / len(requests)
    return BenchmarkMetrics(
        name="Exact match",
        items=len(requests),
        truncated=sum(len(request.prompt) >= block_size for request in requests),
        chance=0.0,
        acc=accuracy,
        acc_stderr=math.sqrt(accuracy * (1 - accuracy) / max(len(requests) - 1, 1)),
    )
