"""The model directory, and what `model.init_from` accepts, changes and refuses."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import model_directory
from pipeline.corpus.tokenizer import bytes_tokenizer, fingerprint, save_tokenizer
from pipeline.huggingface import convert
from pipeline.huggingface.export import export_model
from pipeline.log import UserError
from pipeline.model.config import GPT2_SIZES, Architecture, GPTConfig, ModelParams, gpt2_architecture
from pipeline.model.gpt import GPT
from pipeline.model_directory import ModelFile, initial_weights_hash, load_model, save_model
from tests.model.configs import TINY, option

ROOT = Path(__file__).parents[2]


def params(config: GPTConfig, init_from: str, **changes: Any) -> ModelParams:
    fields = {key: getattr(config, key) for key in Architecture.model_fields}
    return ModelParams.model_validate({**fields, "init_from": init_from, "vocab_multiple": 1, **changes})


def initial_model(params: ModelParams, ids: int, tokenizer_sha256: str = "") -> GPT:
    """As in training; most models here have no tokenizer that could differ."""
    return model_directory.initial_model(params, ids, tokenizer_sha256)


def same_weights(a: GPT, b: GPT) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory models/ of a repository, with random weights in models/mine."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(7)
    save_model(tmp_path / "models/mine", GPT(TINY.changed(vocab_size=61, init="normal")), None)
    return tmp_path / "models"


def test_a_saved_model_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    model = GPT(option("llama")).eval()
    save_model(tmp_path / "a", model, None)
    loaded = load_model(tmp_path / "a")
    assert loaded.config == model.config
    assert same_weights(loaded, model)
    save_model(tmp_path / "b", loaded, None)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ("truncated", "model.safetensors"),
        ("no weights", "model.safetensors"),
        ("no config", "config.json"),
        ("version 1", r"config.json: format_version \(1\)"),
        ("no object", "config.json"),
        ("other shape", r"transformer.wpe.weight \(16, 32\) must be \(8, 32\)"),
        ("many blocks", r"n_layer \(1000\)"),
        ("deep nesting", "config.json"),
    ],
)
def test_errors_name_the_damaged_file(models: Path, damage: str, error: str) -> None:
    weights, config = models / "mine/model.safetensors", models / "mine/config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        config.unlink()
    elif damage == "version 1":
        config.write_text(config.read_text().replace('"format_version": 2', '"format_version": 1'))
    elif damage == "no object":
        config.write_text("[]")
    elif damage == "deep nesting":
        config.write_text("[" * 100_000)
    else:
        change = {"block_size": 8} if damage == "other shape" else {"n_layer": 1000}
        ModelFile(format_version=2, config=TINY.changed(vocab_size=61, **change)).write(config)
    with pytest.raises((UserError, FileNotFoundError), match=error):
        load_model(models / "mine")


@pytest.mark.parametrize("hugging_face", [False, True])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda weight: weight.long(), r"c_attn.weight \(torch.int64\)"),
        (lambda weight: weight > 0, r"c_attn.weight \(torch.bool\)"),
        (lambda weight: weight.index_fill(0, torch.tensor(3), torch.nan), "c_attn.weight contains NaN"),
        (lambda weight: weight.double().index_fill(1, torch.tensor(3), 1e300), "c_attn.weight contains .*infinity"),
        (lambda weight: weight[None], r"c_attn.weight \(1, "),
        (lambda weight: weight[0], r"c_attn.weight \("),
        (lambda _: None, "c_attn.weight missing"),
    ],
)
def test_weights_that_cannot_be_computed_with_are_named(
    models: Path, hugging_face: bool, change: Callable[[torch.Tensor], torch.Tensor | None], error: str
) -> None:
    directory = models / "mine"
    if hugging_face:
        export_model(load_model(directory), None, directory := models / "hf")
    weights = load_file(directory / "model.safetensors")
    weight = change(weights.pop("transformer.h.1.attn.c_attn.weight"))
    if weight is not None:
        weights["transformer.h.1.attn.c_attn.weight"] = weight
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(UserError, match=f"{directory.name}/model.safetensors.*{error}"):
        load_model(directory)


def test_a_bit_flipped_in_the_header_of_the_weights_is_refused_or_changes_nothing(models: Path) -> None:
    path, model = models / "mine/model.safetensors", load_model(models / "mine")
    content = path.read_bytes()
    for position in range(0, 8 + int.from_bytes(content[:8], "little"), 19):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :])
        try:
            loaded = load_model(models / "mine")
        except UserError:
            continue
        assert same_weights(loaded, model)


def test_from_scratch_depends_only_on_the_seed() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(initial_model(params(TINY, "scratch"), 61))
    assert same_weights(*models)
    assert models[0].training


def test_the_weights_of_a_model_directory(models: Path) -> None:
    random_state = torch.get_rng_state()
    model = initial_model(params(TINY, "mine", dropout=0.2, init="zero"), 61)
    assert torch.equal(random_state, torch.get_rng_state())
    assert same_weights(model, load_model(models / "mine"))
    assert model.config.dropout == 0.2
    assert model.training
    assert same_weights(model, initial_model(params(TINY, "../models/mine"), 61))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "alibi"])
def test_a_shorter_context_keeps_the_logits(position: str, models: Path) -> None:
    config = TINY.changed(position=position)
    save_model(models / "long", GPT(config), None)
    long = load_model(models / "long")
    short = initial_model(params(config, "long", block_size=8), 61).eval()
    assert short.config.block_size == 8
    idx = torch.randint(0, 61, (2, 8))
    torch.testing.assert_close(short.logits(short.hidden(idx))[..., :61], long.logits(long.hidden(idx))[..., :61])


@pytest.mark.usefixtures("models")
def test_padding_the_vocabulary_keeps_the_probabilities() -> None:
    plain = initial_model(params(TINY, "mine"), 61).eval()
    padded = initial_model(params(TINY, "mine", vocab_multiple=64), 61).eval()
    assert padded.config.vocab_size == 64
    idx = torch.randint(0, 61, (2, 8))
    torch.testing.assert_close(plain(idx, idx), padded(idx, idx))
    assert plain(idx)[0].log_softmax(-1).allclose(padded(idx)[0].log_softmax(-1)[..., :61])


@pytest.mark.usefixtures("models")
def test_all_params_that_do_not_fit_are_named_at_once() -> None:
    with pytest.raises(UserError, match=r"model.init_from \(mine\)") as error:
        initial_model(params(TINY, "mine", n_layer=3, bias=False, block_size=32, mlp="relu"), 60)
    for part in (
        "model.n_layer (3) must be 2",
        "model.bias (False) must be True",
        "model.block_size (32) must be 16",
        "model.mlp (relu) must be gelu_tanh",
        "vocabulary (60) must be 61",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("tied", [True, False])
def test_special_tokens_of_a_chat_template_get_the_mean_of_all_rows(models: Path, tied: bool) -> None:
    """Only where they were added to the very tokenizer of the weights. The logits of the other ids stay."""
    tokenizer = bytes_tokenizer()
    save_tokenizer(tokenizer, models / "tokenizer")
    config = TINY.changed(vocab_size=320, text_vocab_size=257, tie_embeddings=tied)
    base = GPT(config).eval()
    save_model(models / "base", base, models / "tokenizer")
    fields = params(config, "base", vocab_multiple=64)
    model = model_directory.initial_model(fields, 261, "0" * 64, fingerprint(tokenizer)).eval()
    assert (model.config.text_vocab_size, model.config.vocab_size) == (261, 320)
    for matrix, old in ((model.transformer.wte, base.transformer.wte), (model.lm_head, base.lm_head)):
        assert torch.equal(matrix.weight[:257], old.weight[:257])
        torch.testing.assert_close(matrix.weight[257:261], old.weight[:257].mean(dim=0).expand(4, -1))
        assert not matrix.weight[261:].any()
    idx = torch.randint(0, 257, (2, 8))
    assert torch.equal(model(idx)[..., :257], base(idx)[..., :257])
    with pytest.raises(UserError, match=r"\(261\) must be 257 \(tokenizer.chat_template .* import models/base"):
        model_directory.initial_model(fields, 261, "0" * 64, "1" * 64)


def test_weights_of_another_tokenizer_are_refused(models: Path) -> None:
    tokenizer = bytes_tokenizer()
    save_tokenizer(tokenizer, models / "tokenizer")
    config = TINY.changed(vocab_size=257, text_vocab_size=257)
    save_model(models / "bytes", GPT(config), models / "tokenizer")
    initial_model(params(config, "bytes"), 257, fingerprint(tokenizer))
    with pytest.raises(UserError, match=r"model.init_from \(bytes\).*000000000000"):
        initial_model(params(config, "bytes"), 257, "0" * 64)


def test_a_hugging_face_directory(models: Path) -> None:
    model = GPT(TINY.changed(vocab_size=61)).eval()
    export_model(model, None, models / "hf")
    assert same_weights(model, initial_model(params(model.config, "hf"), 61))


def test_a_padded_hugging_face_directory_must_be_imported_first(models: Path) -> None:
    config = TINY.changed(vocab_size=320, text_vocab_size=320)
    export_model(GPT(config), None, models / "hf")
    with pytest.raises(UserError, match=r"vocabulary \(257\) must be 320.*python -m pipeline import models/hf"):
        initial_model(params(config, "hf"), 257)
    export_model(GPT(TINY.changed(vocab_size=258, text_vocab_size=258)), None, models / "not-padded")
    with pytest.raises(UserError, match=r"vocabulary \(257\) must be 258$"):
        initial_model(params(TINY, "not-padded"), 257)


def test_a_hub_id_is_downloaded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(TINY.changed(vocab_size=61)).eval()
    export_model(model, None, models.parent / "downloaded")
    hub_ids: list[str] = []
    monkeypatch.setattr(
        "pipeline.model_directory.download", lambda i: hub_ids.append(i) or models.parent / "downloaded"
    )
    (models / "small").write_text(f"owner/small@{'0' * 40}\n")
    assert same_weights(model, initial_model(params(model.config, "small"), 61))
    assert hub_ids == [f"owner/small@{'0' * 40}"]


def test_a_failed_download_is_one_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(repository: str, **options: object) -> str:
        raise OSError(f"no route to {repository} at {options['revision']}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"owner/name@main.*no route to owner/name at main"):
        convert.download("owner/name@main")


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(("init_from", "text"), [("gpt3", None), ("notes", "a text"), ("unpinned", "owner/name@main")])
def test_names_that_are_not_weights_are_refused(init_from: str, text: str | None) -> None:
    if text is not None:
        Path("models", init_from).write_text(text)
    with pytest.raises(UserError, match=f"models/{init_from}"):
        initial_model(params(TINY, init_from), 61)


def test_absolute_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="models/"):
        params(TINY, str(tmp_path))


def test_params_of_a_released_gpt2_are_checked_before_any_download() -> None:
    class Tokenizer:
        encoding = "bpe"

    fields = gpt2_architecture("gpt2").model_dump()
    section = ModelParams(**{**fields, "n_layer": 13, "block_size": 256}, init_from="gpt2", vocab_multiple=64)
    mistakes = list(section.cross_validate({"tokenizer": Tokenizer()}))  # type: ignore[dict-item]
    assert [mistake.partition(":")[0] for mistake in mistakes] == ["model.init_from (gpt2)", "model.n_layer (13)"]


def test_the_repository_has_every_released_name_at_a_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in GPT2_SIZES:
        assert convert.HUB_ID.fullmatch((ROOT / "models" / name).read_text().strip())
    assert len(initial_weights_hash("scratch")) == 64


def test_the_hash_is_that_of_the_content(models: Path) -> None:
    before = initial_weights_hash("mine")
    weights = models / "mine/model.safetensors"
    os.utime(weights, (0, 0))
    assert initial_weights_hash("../models/mine") == before
    (models / "mine").rename(models / "renamed")
    (models / "mine").symlink_to("renamed")
    assert initial_weights_hash("mine") == before
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert initial_weights_hash("mine") != before
    (models / "gpt2").write_text("owner/gpt2@1")
    old = initial_weights_hash("gpt2")
    (models / "gpt2").write_text("owner/gpt2@2")
    assert initial_weights_hash("gpt2") != old
    with pytest.raises(UserError, match="nothing"):
        initial_weights_hash("nothing")
