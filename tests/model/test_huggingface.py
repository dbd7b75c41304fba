"""GPT-2 as Hugging Face keeps it: in and out, with the same logits and the same ids."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import torch
from safetensors.torch import load_file, save_file

from pipeline.corpus import encodings
from pipeline.corpus.vocabularies import gpt2_encoding
from pipeline.log import Stop
from pipeline.model.config import GPTConfig, gpt2_config
from pipeline.model.export import export_model
from pipeline.model.files import load_model, save_model
from pipeline.model.gpt import GPT
from pipeline.model.tokenizer_json import merges, tokenizer_config, tokenizer_json
from tests.model.configs import OPTIONS, TINY, option

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

TOLERANCE = 1e-4
SIZES = {
    "tiny": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16},
    "wide": {"n_layer": 1, "n_head": 12, "n_embd": 384, "block_size": 64},
    "deep": {"n_layer": 12, "n_head": 4, "n_embd": 64, "block_size": 32},
}


def randomize(model: torch.nn.Module) -> None:
    """Weights far from their initial values, biases and gains included, so that no mistake hides behind a zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(float(parameter.dim() == 1), 0.2)


def hf_model(**changes: Any) -> Any:
    values = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 61, **changes}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values, **special)).eval()
    randomize(model)
    return model


def tokens(config: GPTConfig) -> torch.Tensor:
    return torch.randint(0, config.text_vocab_size, (2, config.block_size))


@torch.no_grad()
def assert_same_logits(ours: GPT, theirs: Any) -> None:
    idx = tokens(ours.config)
    expected = theirs(idx).logits
    found = ours.logits(ours.hidden(idx))[..., : ours.config.text_vocab_size]
    assert expected.abs().max() > 0.5, "logits too small to compare"
    assert (found - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_a_random_gpt2_of_transformers_gives_the_same_logits_here(size: str, tmp_path: Path) -> None:
    values = dict(SIZES[size])
    values["n_positions"] = values.pop("block_size")
    theirs = hf_model(**values)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_model(tmp_path), theirs)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu", "gelu_pytorch_tanh", "relu2"])
def test_each_activation_of_transformers_means_the_same_here(activation: str, tmp_path: Path) -> None:
    theirs = hf_model(activation_function=activation, n_inner=40)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_model(tmp_path), theirs)


@pytest.mark.parametrize("size", SIZES)
def test_a_random_model_of_ours_gives_the_same_logits_in_transformers(size: str, tmp_path: Path) -> None:
    ours = GPT(TINY.changed(**SIZES[size])).eval()
    randomize(ours)
    export_model(ours, None, tmp_path / "out")
    assert_same_logits(ours, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval())


EXPRESSIBLE = ["gpt2", "gelu", "relu", "relu_squared", "no bias", "untied", "no padding", "manual"]


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_what_gpt2_can_express_is_exported_and_comes_back_the_same(name: str, tmp_path: Path) -> None:
    ours = GPT(option(name)).eval()
    randomize(ours)
    export_model(ours, None, tmp_path / "out")
    assert_same_logits(ours, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval())
    back = load_model(tmp_path / "out")
    idx = tokens(ours.config)
    torch.testing.assert_close(back(idx)[0], ours(idx)[0][..., : ours.config.text_vocab_size])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("rope", "model.position (rope)"),
        ("rmsnorm", "model.norm (rmsnorm)"),
        ("post-norm", "model.norm_placement (post)"),
        ("swiglu", "model.mlp (swiglu)"),
        ("gqa", "model.n_kv_head (2)"),
        ("qk_norm", "model.qk_norm (True)"),
    ],
)
def test_what_gpt2_cannot_express_is_refused_by_name(name: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot express") as error:
        export_model(GPT(option(name)), None, tmp_path / "out")
    assert key in str(error.value)
    assert not (tmp_path / "out").exists()


def test_every_option_is_either_exported_or_refused(tmp_path: Path) -> None:
    exported = []
    for name in OPTIONS:
        try:
            export_model(GPT(option(name)), None, tmp_path / "out")
        except ValueError:
            continue
        exported.append(name)
    assert sorted(exported) == sorted([*EXPRESSIBLE, "flat init", "zero init", "dropout"])


def test_masks_of_old_files_are_ignored_and_the_prefix_may_be_missing(tmp_path: Path) -> None:
    theirs = hf_model()
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    old["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, tmp_path / "model.safetensors")
    assert_same_logits(load_model(tmp_path), theirs)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "mish"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_by_inverse_layer_idx", True),
    ],
)
def test_a_config_that_is_computed_otherwise_is_refused(key: str, value: object, tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=key) as error:
        load_model(tmp_path)
    assert str(path) in str(error.value)


TEXTS = [
    "Hello world! It's 12345 o'clock, isn't it?",
    "  leading, trailing  \n\n\nand\ttabs \r\n ",
    "ROMEO\nBut soft, what light through yonder window breaks?\n\n",
    "naïve café — “quotes” … 東京タワー 🙂👩‍👩‍👧 ﷽",
    "a\n \n  b\n   c    d",
    "",
    " ",
    "\n",
    "x" * 300,
]


def random_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    alphabet = list("aebT'sdmltre0123 \n\t\r.,;!?-éß東🙂\u00a0\u2003")
    return ["".join(rng.choice(alphabet, size=rng.integers(1, 60))) for _ in range(count)]


def small_bpe() -> tiktoken.Encoding:
    """A byte-pair encoding with GPT-4's split pattern and merges that overlap."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in (
        b"th",
        b"he",
        b"the",
        b" t",
        b" the",
        b"in",
        b"ing",
        b"  ",
        b"    ",
        b"\n\n",
        b"it",
        b"'s",
        b"12",
        b"123",
    ):
        ranks[token] = len(ranks)
    pattern = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    special = {encodings.END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


@pytest.mark.parametrize("make", [small_bpe, encodings.bytes_encoding])
def test_the_exported_tokenizer_gives_the_same_ids(make: Any, tmp_path: Path) -> None:
    encoding = make()
    encodings.save(encoding, tmp_path / "encoding")
    model = GPT(TINY.changed(vocab_size=encoding.n_vocab, text_vocab_size=encoding.n_vocab))
    export_model(model, tmp_path / "encoding", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS + random_texts(300):
        ids = encoding.encode_ordinary(text)
        assert tokenizer(text)["input_ids"] == ids, repr(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer(encodings.END_OF_TEXT)["input_ids"] == [encoding.eot_token]
    assert tokenizer.eos_token_id == encoding.eot_token
    assert len(tokenizer) == encoding.n_vocab
    assert encodings.load(tmp_path / "out" / "encoding")._mergeable_ranks == encoding._mergeable_ranks


def test_transformers_generates_from_an_exported_directory_as_its_files_say(tmp_path: Path) -> None:
    encoding = encodings.bytes_encoding()
    encodings.save(encoding, tmp_path / "encoding")
    ours = GPT(TINY.changed(vocab_size=320, text_vocab_size=257)).eval()
    export_model(ours, tmp_path / "encoding", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = tokenizer("Hi", return_tensors="pt")
    out = theirs.generate(**prompt, max_new_tokens=8, do_sample=False)
    idx = prompt["input_ids"]
    for _ in range(out.size(1) - idx.size(1)):
        idx = torch.cat((idx, ours(idx)[0][:, -1].argmax(-1, keepdim=True)), dim=1)
    assert idx.tolist() == out.tolist()


def test_the_released_sizes_have_their_known_configs() -> None:
    config = gpt2_config("gpt2-xl")
    assert (config.n_layer, config.n_head, config.n_embd) == (48, 25, 1600)
    assert (config.block_size, config.vocab_size, config.bias, config.mlp) == (1024, 50257, True, "gelu_tanh")


def test_our_directory_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = GPT(option("llama")).eval()
    save_model(tmp_path / "a", model, None)
    back = load_model(tmp_path / "a")
    assert back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    save_model(tmp_path / "b", back, None)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_gpt2s_own_encoding_is_exported_with_its_own_merges(tmp_path: Path) -> None:
    try:
        encoding = gpt2_encoding()
    except (OSError, ValueError, Stop) as error:
        pytest.skip(f"GPT-2's encoding cannot be had here: {error}")
    found = merges(encoding._mergeable_ranks)
    assert len(found) == 50_000
    assert found[:4] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e"), (b"i", b"n")]  # as GPT-2's merges.txt begins
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(encoding)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(1024)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == 50256
    for text in TEXTS + random_texts(300):
        assert tokenizer(text)["input_ids"] == encoding.encode_ordinary(text), repr(text)
