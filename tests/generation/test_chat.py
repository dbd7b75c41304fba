"""Conversations with a model: the cache that is kept over turns changes no answer, and an answer ends its turn."""

import io
from pathlib import Path

import pytest
import torch

from pipeline.artifacts import SampleSettings
from pipeline.cli import generate as command
from pipeline.corpus.chat import Chat, with_special_tokens
from pipeline.corpus.conversations import Message
from pipeline.corpus.tokenizer import bytes_tokenizer, fingerprint, save_tokenizer
from pipeline.generation.chat_session import ChatSession
from pipeline.generation.params import SampleParams
from pipeline.generation.sampling import generate
from pipeline.inference import for_inference
from pipeline.log import UserError
from pipeline.model.gpt import GPT
from pipeline.model_directory import save_model
from stages import sample
from tests.evaluation.small import tiny_model

TEMPLATE = "<|{role}|>{content}<|end|>"
MESSAGES = ["Who?", "", "Where to, and why?", "So?", "Farewell."]
GREEDY = SampleSettings(temperature=0, top_k=0, top_p=1, max_new_tokens=7, seed=0)


def chat_model(**changes: object) -> tuple[GPT, Chat]:
    tokenizer = with_special_tokens(bytes_tokenizer(), TEMPLATE)
    return tiny_model(text_vocab_size=tokenizer.n_vocab, **changes).eval(), Chat(tokenizer, TEMPLATE)


@pytest.mark.parametrize(("position", "block_size"), [("learned", 128), ("rope", 32), ("alibi", 16)])
def test_answers_are_those_of_a_model_that_reads_the_whole_conversation(position: str, block_size: int) -> None:
    """Also past the context, and where a turn ends at its end-of-turn token."""
    model, chat = chat_model(position=position, block_size=block_size)
    chat.end_id = list(ChatSession(for_inference(model, torch.float32), chat, GREEDY).reply("Who?"))[3]
    session = ChatSession(for_inference(model, torch.float32), chat, GREEDY)
    turns: list[list[int]] = []
    caches = set()
    for message in MESSAGES:
        answer = list(session.reply(message))
        assert session.decoder is not None
        (row,) = session.decoder.rows
        assert row[-1] == chat.end_id
        context = row[: -len(answer) - 1]
        settings = {"eot_id": chat.end_id, "dtype": torch.float32, "samples_per_prompt": 1}
        (expected,) = generate(model, [context], GREEDY, **settings)[0]  # type: ignore[arg-type]
        assert answer == expected
        prompt = chat.prompt([Message("user", message)])
        kept = [id for turn in turns[len(turns) + 1 - len(session._turns) :] for id in turn]
        assert context == prompt[:1] + kept + prompt[1:]
        assert position == "alibi" or not kept or len(context) <= block_size * 3 // 4
        turns.append([*prompt[1:], *answer, chat.end_id])
        caches.add(id(session.decoder.cache))
    if block_size == 128:  # nothing was forgotten, or read twice
        assert len(caches) == 1
    assert (len(session._turns) < len(turns)) == (position == "rope")


def test_the_command_answers_each_line_until_the_end_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, chat = chat_model(block_size=128)
    save_tokenizer(chat.tokenizer, tmp_path / "tokenizer", TEMPLATE, fingerprint(bytes_tokenizer()))
    save_model(tmp_path / "model", model, tmp_path / "tokenizer")
    save_tokenizer(bytes_tokenizer(), tmp_path / "plain")
    save_model(tmp_path / "base", tiny_model(), tmp_path / "plain")
    options = ["--chat", "--temperature", "0", "--max-new-tokens", "7", "--dtype", "float32"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Where?\n\n"))
    command.main(["Who?", "--model", str(tmp_path / "model"), *options])
    session = ChatSession(for_inference(model, torch.float32), chat, GREEDY)
    answers = [chat.tokenizer.decode(list(session.reply(message)), errors="replace") for message in ("Who?", "Where?")]
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)
    with pytest.raises(UserError, match=r"--chat: .*base was not trained on conversations"):
        command.main(["--model", str(tmp_path / "base"), *options])


def test_samples_of_such_a_model_are_answers_to_messages() -> None:
    model, chat = chat_model(block_size=128)
    fields = GREEDY.model_dump() | {"prompts": ["Who?", None], "samples_per_prompt": 1, "surprisal_text": None}
    samples = sample.sample(model, chat.tokenizer, SampleParams.model_validate(fields), torch.float32, chat)
    answer = list(ChatSession(for_inference(model, torch.float32), chat, GREEDY).reply("Who?"))
    assert [prompt.prompt for prompt in samples.prompts] == ["user: Who?\nassistant: ", None]
    assert samples.prompts[0].continuations == [chat.tokenizer.decode(answer, errors="replace")]
    scored = chat.prompt([Message("user", "Who?")])[1:] + answer
    assert samples.surprisal.text == chat.tokenizer.decode(scored, errors="replace")
