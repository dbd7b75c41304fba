"""Conversations as tokens and masks: exactly the assistant's turns count, whatever the texts are and however they are
tokenized."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import COUNTS, MANIFEST_FILE, STARTS
from pipeline.corpus.chat import Chat, load_chat, with_special_tokens
from pipeline.corpus.conversations import Conversation, Message
from pipeline.corpus.shards import open_split, verify
from pipeline.corpus.tokenization import tokenize
from pipeline.corpus.tokenizer import TokenizerConfig, bytes_tokenizer, fingerprint, load_tokenizer, save_tokenizer
from pipeline.log import UserError

from .conftest import WriteRaw, tokenizer_params

TEMPLATE, PLAIN = "<|{role}|>{content}<|end|>", "{role}: {content}<|endoftext|>"
TALK: Conversation = (
    Message("system", "s"),
    Message("user", "<|end|><|assistant|>"),  # ordinary text
    Message("assistant", "ab"),
    Message("user", "u"),
    Message("assistant", "<|end|>é"),
)
CORPUS: list[Conversation] = [
    (Message("user", f"What is {number}?"), Message("assistant", f"It is {'very ' * (number % 7)}{number}."))
    for number in range(60)
]


@pytest.mark.parametrize("template", [TEMPLATE, PLAIN])
def test_the_assistant_s_turns_count_and_no_text_spells_a_special_token(template: str) -> None:
    tokenizer = with_special_tokens(bytes_tokenizer(), template)
    chat = Chat(tokenizer, template)
    ids, mask = chat.encode(TALK)
    filled = [template.replace("{role}", m.role).replace("{content}", m.content) for m in TALK]
    assert tokenizer.decode(ids) == "<|endoftext|>" + "".join(filled)
    assert ids.count(chat.end_id) == len(TALK) + (template == PLAIN)
    counted = [id for id, bits in zip(ids, mask, strict=True) if bits & COUNTS]
    assert counted == [*b"ab", chat.end_id, *"<|end|>é".encode(), chat.end_id]
    assert np.flatnonzero(mask & STARTS).tolist() == [0]
    assert ids[: -len(chat.content("<|end|>é"))] == chat.prompt(TALK[:-1])


def test_special_tokens_are_added_after_all_ids_and_stored_with_the_template(tmp_path: Path) -> None:
    base = bytes_tokenizer()
    tokenizer = with_special_tokens(base, TEMPLATE)
    added = {"<|system|>": 257, "<|end|>": 258, "<|user|>": 259, "<|assistant|>": 260}
    assert tokenizer._special_tokens == {"<|endoftext|>": 256} | added
    assert with_special_tokens(tokenizer, TEMPLATE) is tokenizer
    assert with_special_tokens(base, PLAIN) is base
    save_tokenizer(tokenizer, tmp_path, TEMPLATE, fingerprint(base))
    loaded = load_tokenizer(tmp_path)
    chat = load_chat(tmp_path, loaded)
    assert fingerprint(loaded) == fingerprint(tokenizer) != fingerprint(base)
    assert chat is not None
    assert chat.encode(TALK)[0] == Chat(tokenizer, TEMPLATE).encode(TALK)[0]
    config = TokenizerConfig.read(tmp_path / "config.json")
    config.model_copy(update={"special_tokens": {"<|endoftext|>": 256, "<|end|>": 300}}).write(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"with 256 ranks, special_tokens must be"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "template", ["{content}<|end|>", "<|{role}|>{content}", "{role}{content}<|a|><|b|>", "{role}{x}{content}<|end|>"]
)
def test_a_template_without_its_parts_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="chat_template"):
        tokenizer_params(chat_template=template)


@pytest.mark.parametrize(("encoding", "template"), [("bytes", TEMPLATE), ("bytes", PLAIN), ("bpe", TEMPLATE)])
def test_shards_of_conversations_are_the_same_for_any_number_of_workers(
    write_raw: WriteRaw, tmp_path: Path, encoding: str, template: str
) -> None:
    raw = write_raw(CORPUS, val_every=5)
    params = tokenizer_params(encoding=encoding, chat_template=template, shard_tokens=301)
    for workers in (1, 2):
        tokenize(params, raw, tmp_path / str(workers), tmp_path / "runs", workers)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in "12")
    assert one == two
    manifest = verify(tmp_path / "1")
    tokenizer = load_tokenizer(tmp_path / "1/tokenizer")
    chat = load_chat(tmp_path / "1/tokenizer", tokenizer)
    assert chat is not None
    for split, conversations in (("train", [c for n, c in enumerate(CORPUS) if n % 5]), ("val", CORPUS[::5])):
        ids, masks = zip(*map(chat.encode, conversations), strict=True)
        stream = open_split(tmp_path / "1", split)  # type: ignore[arg-type]
        assert stream.read(0, len(stream)).tolist() == [id for part in ids for id in part]
        assert np.array_equal(stream.mask(0, len(stream)), np.concatenate(masks))
        assert np.array_equal(stream.document_starts, np.cumsum([0, *map(len, ids)])[:-1])
        size = manifest.splits[split].size  # type: ignore[index]
        assert (size.documents, size.counted) == (len(conversations), sum(int((m & COUNTS).sum()) for m in masks))


def test_a_damaged_mask_is_named(write_raw: WriteRaw, tmp_path: Path) -> None:
    tokenize(tokenizer_params(), write_raw(CORPUS, val_every=5), tmp_path / "s", tmp_path / "runs", 1)
    mask = tmp_path / "s/train_000000.mask.npy"
    mask.write_bytes(mask.read_bytes()[:-1] + b"\x04")
    with pytest.raises(UserError, match=r"train_000000\.mask\.npy: sha256 differs"):
        verify(tmp_path / "s")
    mask.write_bytes(mask.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train_000000\.mask\.npy: ends at offset"):
        open_split(tmp_path / "s", "train")


def test_a_text_has_no_mask(write_raw: WriteRaw, tmp_path: Path) -> None:
    """Manifest, shards and tokenizer are those of before there were conversations."""
    tokenize(tokenizer_params(), write_raw(["ab", "c"] * 9, val_every=9), tmp_path / "s", tmp_path / "runs", 1)
    names = {path.name for path in (tmp_path / "s").rglob("*.*")}
    assert names == {"train_000000.npy", "val_000000.npy", MANIFEST_FILE, "config.json", "ranks.tiktoken"}
    for file in (MANIFEST_FILE, "tokenizer/config.json"):
        text = (tmp_path / "s" / file).read_text()
        assert not [word for word in ("null", "mask", "counted", "chat", "extends") if word in text]
    assert not open_split(tmp_path / "s", "train").has_mask
