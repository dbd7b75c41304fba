"""Tokens as text: no broken characters, and a surprise for every piece."""

import math

import pytest
import torch

from pipeline.corpus.encodings import bytes_encoding
from pipeline.generation.page import fenced, hardest, heading, page
from pipeline.generation.text import pieces, surprise
from pipeline.model.gpt import GPT
from pipeline.reporting import markdown
from tests.model.configs import TINY

BYTES = bytes_encoding()


def model() -> GPT:
    torch.manual_seed(2)
    return GPT(TINY.changed(vocab_size=320, text_vocab_size=257))


def test_a_character_comes_with_its_last_byte() -> None:
    assert list(pieces(BYTES, "aé€".encode())) == ["a", "", "é", "", "", "€", ""]


def test_bytes_that_are_no_character_are_replaced() -> None:
    assert list(pieces(BYTES, b"a\xffb\xe2\x82")) == ["a", "�", "b", "", "", "�"]


def test_the_surprise_of_a_text_adds_up_to_its_loss() -> None:
    text = "ROMEO\nÉ bello"
    found = surprise(model(), BYTES, text, torch.float32)
    assert "".join(piece for piece, _ in found) == text
    idx = torch.tensor([[BYTES.eot_token, *text.encode()]])
    _, loss = model().eval()(idx[:, :-1], idx[:, 1:])
    assert loss is not None
    assert sum(nats for _, nats in found) == pytest.approx(loss.item() * len(text.encode()), rel=1e-5)


def test_the_surprise_of_a_text_beyond_the_context_has_every_token() -> None:
    found = surprise(model(), BYTES, "abc" * 40, torch.float32)
    assert "".join(piece for piece, _ in found) == "abc" * 40
    assert all(nats == pytest.approx(math.log(257), rel=0.1) for _, nats in found)


def test_no_text_has_no_surprise() -> None:
    assert surprise(model(), BYTES, "", torch.float32) == []


def test_the_page_shows_every_continuation_as_it_is() -> None:
    shown = page(
        {
            "settings": {"temperature": 0.8, "seed": 1},
            "prompts": [
                {"prompt": None, "continuations": ["one\n```\n# no title"]},
                {"prompt": "KING\n", "continuations": ["two", "three"]},
            ],
            "surprise": {"text": "ab", "tokens": [["a", 1.0], ["b", 5.0]]},
        }
    )
    assert "temperature 0.8, seed 1" in shown
    assert "````text\none\n```\n# no title\n````" in shown
    assert "## `KING`" in shown
    assert "```text\nKING\ntwo\n```" in shown
    assert "3.00 nats" in shown
    assert "`b` (5.0), `a` (1.0)" in shown


@pytest.mark.parametrize("token", ["**", "`", "<br>", "[1](x)", "|"])
def test_a_hard_token_is_no_markup(token: str) -> None:
    assert hardest([(token, 1.5)]) == f"{markdown.code(token)} (1.5)"


def test_a_prompt_of_white_space_has_a_title() -> None:
    assert heading("\n") == "(white space)"
    assert heading("```python") == "```` ```python ````"
    assert heading("a" * 70) == f"`{'a' * 60}…`"
    assert fenced("a") == "```text\na\n```"
