"""Windows, and the surprisal of a text."""

import math

import pytest
import torch

from pipeline.corpus.tokenizer import encode_text, token_texts
from pipeline.evaluation.surprisal import surprisal, windows
from pipeline.model.gpt import GPT
from tests.evaluation.small import BYTES, tiny_model


@pytest.mark.parametrize("tokens", [2, 5, 8, 9, 10, 17, 100])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_score_every_token_but_the_first_once(tokens: int, stride: int) -> None:
    scored: list[int] = []
    for window in windows(tokens, block_size=8, stride=stride):
        assert 1 <= window.scored <= window.length <= 8
        end = window.start + window.length
        scored += range(end - window.scored + 1, end + 1)
    assert scored == list(range(1, tokens))


def test_the_surprisal_of_a_text_adds_up_to_its_loss() -> None:
    text = "ROMEO\nÉ bello"
    model = tiny_model()
    tokens = surprisal(model, BYTES, encode_text(BYTES, text).tolist(), torch.float32)
    assert [token for token, _ in tokens] == list(text)  # the two bytes of É are one piece
    idx = torch.tensor([[BYTES.eot_token, *text.encode()]])
    loss = model.eval()(idx[:, :-1], idx[:, 1:])
    assert sum(nats for _, nats in tokens) == pytest.approx(loss.item() * len(text.encode()), rel=1e-5)


def test_a_text_longer_than_the_context_is_scored_as_a_whole() -> None:
    tokens = surprisal(GPT(tiny_model().config), BYTES, list(b"abc" * 40), torch.float32)
    assert "".join(token for token, _ in tokens) == "abc" * 40
    assert all(nats == pytest.approx(math.log(257), rel=0.1) for _, nats in tokens)  # an untrained model is uniform


def test_an_empty_text_has_no_tokens() -> None:
    assert surprisal(tiny_model(), BYTES, [], torch.float32) == []


def test_token_texts_never_break_a_character() -> None:
    assert list(token_texts(BYTES, "aé€".encode())) == ["a", "", "é", "", "", "€", ""]
    assert list(token_texts(BYTES, b"a\xffb\xe2\x82")) == ["a", "�", "b", "", "", "�"]
