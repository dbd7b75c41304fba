"""Tokens as text: bytes that are no whole character yet, and how hard the model found each piece of a text."""

import codecs
from collections.abc import Iterable, Iterator

import tiktoken
import torch

from pipeline.evaluation.windows import token_nats, windows
from pipeline.model.gpt import GPT
from pipeline.model.inference import for_inference


def pieces(encoding: tiktoken.Encoding, tokens: Iterable[int]) -> Iterator[str]:
    """The text that each token adds, and last what is left over (or "").

    A character may take several tokens: those before the last add "", and the last adds the character. Bytes that are
    no UTF-8 become U+FFFD, so joining the pieces never fails.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(encoding.decode_single_token_bytes(token))
    yield decoder.decode(b"", final=True)


@torch.no_grad()
def surprise(model: GPT, encoding: tiktoken.Encoding, text: str, dtype: torch.dtype) -> list[tuple[str, float]]:
    """How hard the model found each token of a text, in nats: (the token's text, its cross entropy).

    The text is read as a document's beginning. Where it is longer than the context, each token is scored with at least
    half a context before it. Tokens that share a character are one piece, with the sum of their nats.
    """
    tokens = encoding.encode_ordinary(text)
    fast = for_inference(model, dtype)
    device = model.transformer.wte.weight.device
    ids = torch.tensor([encoding.eot_token, *tokens], device=device)
    block_size = model.config.block_size
    nats: list[float] = []
    for window in windows(len(ids), block_size, stride=max(1, block_size // 2)):
        inputs = ids[window.start : window.start + window.length]
        targets = ids[window.start + 1 : window.start + window.length + 1]
        hidden = fast.hidden(inputs[None])[0]  # (T, C)
        nats += token_nats(fast, hidden[-window.scored :], targets[-window.scored :]).tolist()
    found: list[tuple[str, float]] = []
    held = 0.0
    for piece, value in zip(pieces(encoding, tokens), [*nats, 0.0], strict=True):
        held += value
        if piece:
            found.append((piece, held))
            held = 0.0
    return found
