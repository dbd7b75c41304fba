"""Import from and export to Hugging Face: the same logits, the same token ids, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import torch
from safetensors.torch import load_file, save_file

from pipeline.charts.pages import write_svgs
from pipeline.cli import convert
from pipeline.corpus.chat import Chat, with_special_tokens
from pipeline.corpus.conversations import Message
from pipeline.corpus.tokenizer import END_OF_TEXT, bytes_tokenizer, fingerprint, load_tokenizer, save_tokenizer
from pipeline.corpus.tokenizer_json import merges, tokenizer_config, tokenizer_json
from pipeline.corpus.vocabularies import gpt2_tokenizer, huggingface_tokenizer
from pipeline.huggingface.export import export_model
from pipeline.log import UserError
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.model_directory import load_model, save_model
from tests.model.configs import OPTIONS, TINY, option

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

TOLERANCE = 1e-4
SIZES = {
    "tiny": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16},
    "wide": {"n_layer": 1, "n_head": 12, "n_embd": 384, "block_size": 64},
    "deep": {"n_layer": 12, "n_head": 4, "n_embd": 64, "block_size": 32},
}


def randomize(model: torch.nn.Module) -> None:
    """Weights, biases and gains far from zero and one, so that every mistake changes the logits."""
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
    logits = ours.logits(ours.hidden(idx))[..., : ours.config.text_vocab_size]
    assert expected.abs().max() > 0.5
    assert (logits - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_imported_logits_are_those_of_transformers(size: str, tmp_path: Path) -> None:
    values = dict(SIZES[size])
    values["n_positions"] = values.pop("block_size")
    theirs = hf_model(**values)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_model(tmp_path), theirs)


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    theirs = hf_model()
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(load_model(tmp_path), theirs)
    theirs.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole/model.safetensors").rename(tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda path, index, _: path.write_text("{}"), "weight_map"),
        (lambda path, index, _: path.write_text('{"weight_map": []}'), "weight_map"),
        (lambda path, index, shard: shard.unlink(), "model-00001.*must be a .safetensors file in the same directory"),
        (lambda path, index, shard: shard.write_bytes(b"damaged"), "model-00001.*damaged"),
        (lambda path, index, _: path.write_text(index.replace("model-00001", "../model-00001")), r"'\.\./model-00001"),
        (lambda path, index, _: path.write_text(f'{{"weight_map": {{"a": "{path.name}"}}}}'), "index.json' must be a"),
        (lambda path, index, _: path.write_text(index.replace("wte", "xyz")), "model-00001.*no tensor transformer.xyz"),
        (lambda path, index, _: path.write_text('{"weight_map": {}}'), "index.json does not match its config"),
    ],
)
def test_a_damaged_index_of_weights_is_one_error(damage: Callable[..., Any], error: str, tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path / "hf", max_shard_size="10KB")
    path = tmp_path / "hf/model.safetensors.index.json"
    damage(path, path.read_text(), min((tmp_path / "hf").glob("model-*.safetensors")))
    with pytest.raises(UserError, match=error) as raised:
        load_model(tmp_path / "hf")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu", "gelu_pytorch_tanh", "relu2"])
def test_imported_activations(activation: str, tmp_path: Path) -> None:
    theirs = hf_model(activation_function=activation, n_inner=40)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_model(tmp_path), theirs)


@pytest.mark.parametrize("size", SIZES)
def test_exported_logits_are_the_same_in_transformers(size: str, tmp_path: Path) -> None:
    ours = GPT(TINY.changed(**SIZES[size])).eval()
    randomize(ours)
    export_model(ours, None, tmp_path / "out")
    assert_same_logits(ours, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval())


EXPRESSIBLE = ["gpt2", "gelu", "relu", "relu_squared", "no bias", "untied", "no padding"]


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_expressible_options_round_trip(name: str, tmp_path: Path) -> None:
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
def test_inexpressible_options_are_refused_by_key(name: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        export_model(GPT(option(name)), None, tmp_path / "out")
    assert key in str(error.value)
    assert not (tmp_path / "out").exists()


def test_every_option_is_either_exported_or_refused(tmp_path: Path) -> None:
    exported = []
    for name in OPTIONS:
        try:
            export_model(GPT(option(name)), None, tmp_path / name)
        except UserError:
            continue
        exported.append(name)
    assert sorted(exported) == sorted([*EXPRESSIBLE, "normal init", "zero init", "dropout"])


def test_old_files_with_masks_and_without_prefix(tmp_path: Path) -> None:
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
        ("model_type", ["gpt2"]),
        ("activation_function", ["gelu_new"]),
        ("n_embd", 0),
        ("n_embd", None),
        ("n_embd", 16.0),
        ("n_layer", "2"),
        ("n_layer", 10**9),
        ("n_head", [2]),
        ("n_head", 3),
        ("n_positions", {}),
        ("n_inner", "64"),
        ("n_inner", -64),
        ("resid_pdrop", "0.1"),
        ("tie_word_embeddings", 1),
        ("vocab_size", True),
    ],
)
def test_configs_that_compute_something_else_are_refused(key: str, value: object, tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=key) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["n_embd", "n_positions", "n_inner", "vocab_size"])
@pytest.mark.parametrize("size", [2**40, 2**62, 10**400])
def test_a_model_larger_than_its_weights_is_refused_before_it_is_allocated(key: str, size: int, tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: size}))
    with pytest.raises(UserError, match=str(tmp_path)):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": ["vocab"]}'),
        ("tokenizer.json", "["),
        ("vocab.json", '{"a": [0], "b": 1}'),
        ("vocab.json", "[1, 2]"),
        ("vocab.json", "[" * 100_000),
        ("added_tokens.json", "[]"),
    ],
)
def test_a_tokenizer_file_of_another_shape_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({END_OF_TEXT: 0}))
    (tmp_path / "merges.txt").touch()
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        huggingface_tokenizer(tmp_path)


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
    """A byte-pair encoding with GPT-4's split pattern and overlapping merges."""
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
    special = {END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


@pytest.mark.parametrize("make", [small_bpe, bytes_tokenizer])
def test_the_exported_tokenizer_gives_the_same_ids(make: Any, tmp_path: Path) -> None:
    ours = make()
    save_tokenizer(ours, tmp_path / "tokenizer")
    model = GPT(TINY.changed(vocab_size=ours.n_vocab, text_vocab_size=ours.n_vocab))
    export_model(model, tmp_path / "tokenizer", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS + random_texts(300):
        ids = ours.encode_ordinary(text)
        assert theirs(text)["input_ids"] == ids, repr(text)
        assert theirs.decode(ids) == text
    assert theirs(END_OF_TEXT)["input_ids"] == [ours.eot_token]
    assert theirs.eos_token_id == ours.eot_token
    assert len(theirs) == ours.n_vocab
    assert load_tokenizer(tmp_path / "out/tokenizer")._mergeable_ranks == ours._mergeable_ranks


def test_transformers_generates_from_an_exported_directory(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    ours = GPT(TINY.changed(vocab_size=320, text_vocab_size=257)).eval()
    export_model(ours, tmp_path / "tokenizer", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = tokenizer("Hi", return_tensors="pt")
    out = theirs.generate(**prompt, max_new_tokens=8, do_sample=False)
    idx = prompt["input_ids"]
    for _ in range(out.size(1) - idx.size(1)):
        idx = torch.cat((idx, ours(idx)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert idx.tolist() == out.tolist()


@pytest.mark.parametrize("template", ["<|{role}|>{content}<|end|>", "<|{role}|>'é🙂\n\"<|is|>{content}<|endoftext|>"])
def test_transformers_applies_the_exported_chat_template(template: str, tmp_path: Path) -> None:
    base = small_bpe()
    chat = Chat(with_special_tokens(base, template), template)
    save_tokenizer(chat.tokenizer, tmp_path / "tokenizer", template, fingerprint(base))
    ids = chat.tokenizer.n_vocab
    export_model(GPT(TINY.changed(vocab_size=ids, text_vocab_size=ids)), tmp_path / "tokenizer", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [Message("system", " the {content}"), Message("user", "it's 12\n\n"), Message("assistant", "the thing ")]
    theirs = [message._asdict() for message in messages]
    assert tokenizer.apply_chat_template(theirs, return_dict=False) == chat.encode(messages)[0]
    prompt = tokenizer.apply_chat_template(theirs[:2], add_generation_prompt=True, return_dict=False)
    assert prompt == chat.prompt(messages[:2])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [chat.tokenizer.eot_token, chat.end_id]


@pytest.mark.index
def test_gpt2_merges_are_recovered(tmp_path: Path) -> None:
    tokenizer = gpt2_tokenizer()
    pairs = merges(tokenizer._mergeable_ranks)
    assert len(pairs) == 50_000
    assert pairs[:4] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e"), (b"i", b"n")]  # as GPT-2's merges.txt begins
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(1024)))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == 50256
    for text in TEXTS + random_texts(300):
        assert theirs(text)["input_ids"] == tokenizer.encode_ordinary(text), repr(text)


@pytest.fixture
def gpt2_is_bytes(monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """Replaces GPT-2's tokenizer, which would need its vocabulary file and large models, by the bytes tokenizer."""
    tokenizer = bytes_tokenizer()

    monkeypatch.setattr(convert, "gpt2_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(convert, "GPT2_VOCAB_SIZE", tokenizer.n_vocab)
    return tokenizer


def imported(ids: int, directory: Path, own_tokenizer: bool = False) -> GPT:
    """A model of `ids` ids, exported to `directory`/theirs and imported to `directory`/ours."""
    export_model(GPT(TINY.changed(vocab_size=ids, text_vocab_size=ids)), None, directory / "theirs")
    if own_tokenizer:
        (directory / "theirs/vocab.json").write_text(json.dumps({"a": 0}))
    convert.import_main([str(directory / "theirs"), str(directory / "ours")])
    return load_model(directory / "ours")


@pytest.mark.parametrize("ids", [257, 320, 384])
def test_a_vocabulary_of_gpt2_size_padded_or_not_gets_gpt2_tokenizer(
    ids: int, gpt2_is_bytes: tiktoken.Encoding, tmp_path: Path
) -> None:
    model = imported(ids, tmp_path)
    assert (model.config.vocab_size, model.config.text_vocab_size) == (ids, 257)
    assert fingerprint(load_tokenizer(tmp_path / "ours/tokenizer")) == fingerprint(gpt2_is_bytes)
    logits = model(torch.tensor([[1, 2]]))
    assert bool(logits[..., :257].isfinite().all())
    assert bool((logits[..., 257:] == -torch.inf).all())


@pytest.mark.usefixtures("gpt2_is_bytes")
@pytest.mark.parametrize(("ids", "own_tokenizer"), [(256, False), (258, False), (385, False), (320, True)])
def test_other_vocabularies_are_imported_without_a_tokenizer(ids: int, own_tokenizer: bool, tmp_path: Path) -> None:
    model = imported(ids, tmp_path, own_tokenizer)
    assert model.config.text_vocab_size == ids
    assert not (tmp_path / "ours/tokenizer").exists()


@pytest.mark.parametrize("name", ["spiece.model", "vocab.txt"])
def test_a_tokenizer_of_another_kind_is_unknown(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    assert convert.find_tokenizer(tmp_path, 50_304) is None


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a user's files, and a model and its export to convert."""
    model = GPT(TINY.changed(vocab_size=257, text_vocab_size=257))
    save_model(tmp_path / "model", model, None)
    export_model(model, None, tmp_path / "theirs")
    (tmp_path / "work/mine").mkdir(parents=True)
    (tmp_path / "work/mine/thesis.tex").write_text("years of work")
    (tmp_path / "work/link").symlink_to("mine")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("command", ["import", "export", "figures of compare"])
@pytest.mark.parametrize(
    "target", ["mine", ".", "", "..", "/", "mine/..", "link", "mine/thesis.tex", "mine/thesis.tex/out", "/dev/null"]
)
def test_a_command_that_writes_a_directory_never_replaces_what_it_did_not_write(
    command: str, target: str, work: Path
) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.lstat().st_ino, path.lstat().st_mode) for path in [*work.rglob("*"), Path("/dev/null")]}

    run: dict[str, Callable[[], None]] = {
        "import": lambda: convert.import_main([str(work / "theirs"), target]),
        "export": lambda: convert.export_main([str(work / "model"), target]),
        "figures of compare": lambda: write_svgs(Path(target), []),
    }
    before = state()
    with pytest.raises(OSError, match=r"cannot be written|exists|contains|Not a directory"):
        run[command]()
    assert state() == before


@pytest.mark.parametrize("main", [convert.import_main, convert.export_main])
def test_an_option_that_does_not_exist_is_not_a_target(main: Callable[[list[str]], None], work: Path) -> None:
    with pytest.raises(SystemExit):
        main([str(work / "theirs"), "--out"])
    assert sorted(path.name for path in Path().iterdir()) == ["link", "mine"]


def test_the_export_and_converts_round_trip(tmp_path: Path) -> None:
    save_tokenizer(bytes_tokenizer(), tmp_path / "tokenizer")
    model = GPT(TINY.changed(vocab_size=257, text_vocab_size=257))
    save_model(tmp_path / "model", model, tmp_path / "tokenizer")
    convert.export_main([str(tmp_path / "model"), str(tmp_path / "hf")])
    convert.import_main([str(tmp_path / "hf"), str(tmp_path / "back")])
    back = load_model(tmp_path / "back")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    assert fingerprint(load_tokenizer(tmp_path / "back/tokenizer")) == fingerprint(bytes_tokenizer())
    shutil.rmtree(tmp_path / "hf/tokenizer")  # only tokenizer.json is left, as transformers writes it
    convert.import_main([str(tmp_path / "hf"), str(tmp_path / "again")])
    assert fingerprint(load_tokenizer(tmp_path / "again/tokenizer")) == fingerprint(bytes_tokenizer())


def test_a_hub_entry_of_models_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_model(GPT(TINY), None, tmp_path / "download")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/gpt2").write_text(f"owner/gpt2@{'0' * 40}\n")
    monkeypatch.setattr("pipeline.model_directory.download", lambda hub_id: tmp_path / "download")
    monkeypatch.chdir(tmp_path)
    convert.import_main(["gpt2", "models/mine"])
    assert load_model(tmp_path / "models/mine").config.n_layer == TINY.n_layer
