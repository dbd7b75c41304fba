"""Conversations: validation loss over the positions that count, and exact match of greedy answers."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipeline.artifacts import COUNTS, SampleSettings, SplitName
from pipeline.corpus.chat import Chat, load_chat
from pipeline.corpus.conversations import Conversation, Message
from pipeline.corpus.shards import TokenStream, open_split
from pipeline.corpus.tokenization import tokenize
from pipeline.corpus.tokenizer import load_tokenizer, token_byte_lengths
from pipeline.distributed import Group
from pipeline.evaluation import exact_match as module
from pipeline.evaluation.exact_match import CHECKERS, Request, build_requests, exact_match
from pipeline.evaluation.val_loss import ValLoss, validation_loss
from pipeline.generation.sampling import NewToken, generate
from pipeline.log import UserError
from pipeline.model.gpt import GPT
from tests.corpus.conftest import tokenizer_params, write_corpus
from tests.evaluation.small import ALONE, tiny_model
from tests.ranks import on_ranks

SHORT: list[Conversation] = [
    (
        Message("user", f"{n} + 1?"),
        Message("assistant", "Let me see."),
        Message("user", "Well?"),
        Message("assistant", f"{n + 1}."),
    )
    for n in range(9)
]
LONG: Conversation = (Message("user", "Tell a tale " * 3), Message("assistant", "Once upon a time " * 9))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("conversations")
    raw = write_corpus(
        directory / "raw", [c for pair in zip([*SHORT, LONG], SHORT, strict=False) for c in pair], 2, 300
    )
    tokenize(tokenizer_params(shard_tokens=90), raw, directory / "shards", directory / "runs", 1)
    return directory / "shards"


def opened(shards: Path, split: SplitName = "val") -> tuple[TokenStream, Chat, GPT]:
    tokenizer = load_tokenizer(shards / "tokenizer")
    chat = load_chat(shards / "tokenizer", tokenizer)
    assert chat is not None
    return open_split(shards, split), chat, tiny_model(text_vocab_size=tokenizer.n_vocab)


def loss_of(shards: Path, group: Group = ALONE, batch_size: int = 4, tokens: int | None = None) -> ValLoss:
    stream, chat, model = opened(shards)
    return validation_loss(
        model,
        stream,
        chat.tokenizer,
        tokens=tokens,
        stride=None,
        batch_size=batch_size,
        dtype=torch.float32,
        group=group,
    )


def test_the_loss_is_over_the_counted_tokens_of_each_conversation_alone(shards: Path) -> None:
    stream, chat, model = opened(shards)
    lengths, limit = token_byte_lengths(chat.tokenizer), model.config.block_size
    nats, tokens, utf8_bytes = 0.0, 0, 0
    starts = stream.document_starts.tolist()
    for begin, end in zip(starts, [*starts[1:], len(stream)], strict=True):
        ids, mask = torch.from_numpy(stream.read(begin, end - begin).astype("int64")), stream.mask(begin, end - begin)
        for index in range(1, len(ids)):
            if mask[index] & COUNTS:
                context = ids[(index - 1) // limit * limit : index]  # windows without overlap
                with torch.no_grad():
                    nats -= F.log_softmax(model(context[None])[0, 0], dim=-1)[ids[index]].item()
                tokens, utf8_bytes = tokens + 1, utf8_bytes + int(lengths[ids[index]])
    loss = loss_of(shards)
    assert (loss.tokens, loss.utf8_bytes) == (tokens, utf8_bytes)
    assert tokens == stream.manifest.splits["val"].counted
    assert loss.nats == pytest.approx(nats, rel=1e-5)
    assert loss.bits_per_byte == pytest.approx(nats / math.log(2) / utf8_bytes, rel=1e-5)
    first = loss_of(shards, tokens=5)  # the first conversation, which begins there
    assert first.tokens == sum(len(chat.content(m.content)) for m in SHORT[0] if m.role == "assistant")


def same_on_each_rank(group: Group, shards: Path, expected: ValLoss) -> None:
    assert loss_of(shards, group) == expected


def test_the_loss_is_the_same_on_two_ranks(shards: Path) -> None:
    on_ranks(2, same_on_each_rank, shards, loss_of(shards))


def test_a_request_is_for_the_last_turn_of_a_held_out_conversation(shards: Path) -> None:
    stream, chat, _ = opened(shards)
    requests = build_requests(stream, chat, None)
    held_out = [*SHORT, LONG][: len(requests)]
    assert len(requests) == len(stream.document_starts) == 9
    for request, conversation in zip(requests, held_out, strict=True):
        assert request.expected == conversation[-1].content
        assert request.prompt == chat.prompt(conversation[:-1])
    assert build_requests(stream, chat, 2) == requests[:2]


def test_a_conversation_that_the_split_cuts_is_not_graded(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, chat, _ = opened(shards)
    whole = build_requests(stream, chat, None)
    length = len(stream)
    monkeypatch.setattr(TokenStream, "__len__", lambda _: length - 1)
    assert build_requests(stream, chat, None) == whole[:-1]
    monkeypatch.setattr(TokenStream, "__len__", lambda _: 5)
    stream.__dict__["document_starts"] = stream.document_starts[:1]
    with pytest.raises(UserError, match="no whole conversation"):
        build_requests(stream, chat, None)


@pytest.mark.parametrize(
    ("checker", "answer", "expected", "correct"),
    [
        ("text", " 12\n", "12", True),
        ("text", "12.", "12", False),
        ("last_number", "9+4=13\n1,013.", "6+7=13\n1013", True),
        ("last_number", "-3", "3", False),
        ("last_number", "none", "none", False),
    ],
)
def test_checkers(checker: str, answer: str, expected: str, correct: bool) -> None:
    assert CHECKERS[checker](answer, expected) == correct


def count_correct(group: Group, shards: Path) -> None:
    """The accuracy over all ranks, of answers that are right in every other conversation."""
    stream, chat, _ = opened(shards)
    model = tiny_model(text_vocab_size=chat.tokenizer.n_vocab, block_size=128)  # room for all answers
    requests = build_requests(stream, chat, None)

    def answers(_: GPT, prompts: list[list[int]], *__: object, eot_id: int) -> Iterator[NewToken]:
        assert eot_id == chat.end_id
        right = {tuple(request.prompt): request.expected for request in requests[::2]}
        for number, prompt in enumerate(prompts):
            for token in chat.content(right.get(tuple(prompt), "no")):
                yield NewToken(number, 0, token, 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "stream_tokens", answers)
        result = exact_match(model, requests, chat, "text", batch_size=2, dtype=torch.float32, group=group)
    assert (result.items, result.acc) == (9, 5 / 9)
    assert result.acc_stderr == pytest.approx(math.sqrt(5 / 9 * 4 / 9 / 8))


@pytest.mark.parametrize("world", [1, 2])
def test_exact_match_counts_the_answers_of_all_ranks(shards: Path, world: int) -> None:
    on_ranks(world, count_correct, shards)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_answer_ends_where_its_conversation_fills_the_context(shards: Path, batch_size: int) -> None:
    """Whatever the lengths of the prompts beside it; of one without room, after a token."""
    _, chat, model = opened(shards)
    requests = []
    for length in (5, 12, 20):
        prompt, limit = [chat.tokenizer.eot_token, *range(1, length)], max(1, model.config.block_size - length)
        settings = SampleSettings(temperature=0, top_k=0, top_p=1, max_new_tokens=limit, seed=0)
        (answer,) = generate(model, [prompt], settings, eot_id=chat.end_id, dtype=torch.float32, samples_per_prompt=1)[
            0
        ]
        assert len(answer) == limit
        requests.append(Request(prompt, chat.tokenizer.decode(answer)))
    result = exact_match(model, requests, chat, "text", batch_size=batch_size, dtype=torch.float32, group=ALONE)
    assert (result.items, result.acc, result.truncated) == (3, 1.0, 1)
