"""Training on from weights that exist: what `model.init_from` accepts, changes and refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import import_model
from pipeline.corpus import encodings
from pipeline.model import huggingface
from pipeline.model.config import Architecture, GPTConfig, ModelParams, gpt2_architecture
from pipeline.model.export import export_model
from pipeline.model.files import load_model, save_model
from pipeline.model.gpt import GPT
from pipeline.model.initial import initial_model
from tests.model.configs import TINY, option


def params(config: GPTConfig, init_from: object, **changes: Any) -> ModelParams:
    fields = {key: getattr(config, key) for key in Architecture.model_fields}
    return ModelParams.model_validate({**fields, "init_from": str(init_from), "vocab_multiple": 1, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with random weights that are not those of a new model."""
    torch.manual_seed(7)
    save_model(tmp_path / "saved", GPT(TINY.changed(vocab_size=61, init="flat")), None)
    return tmp_path / "saved"


def test_from_scratch_depends_on_the_seed_alone() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(initial_model(params(TINY, "scratch"), 61))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert models[0].training


def test_loading_weights_leaves_the_random_state_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    initial_model(params(TINY, saved), 61)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "alibi"])
def test_a_shorter_context_computes_the_same_on_short_sequences(position: str, tmp_path: Path) -> None:
    config = TINY.changed(position=position)
    save_model(tmp_path / "long", GPT(config), None)
    long = load_model(tmp_path / "long")
    short = initial_model(params(config, tmp_path / "long", block_size=8), 61).eval()
    assert short.config.block_size == 8
    idx = torch.randint(0, 61, (2, 8))
    torch.testing.assert_close(short.logits(short.hidden(idx))[..., :61], long.logits(long.hidden(idx))[..., :61])


def test_padding_the_vocabulary_changes_no_probability(saved: Path) -> None:
    plain = initial_model(params(TINY, saved), 61).eval()
    padded = initial_model(params(TINY, saved, vocab_multiple=64), 61).eval()
    assert padded.config.vocab_size == 64
    idx = torch.randint(0, 61, (2, 8))
    torch.testing.assert_close(plain(idx, idx)[1], padded(idx, idx)[1])
    assert plain(idx)[0].log_softmax(-1).allclose(padded(idx)[0].log_softmax(-1)[..., :61])


def test_only_dropout_and_the_way_attention_is_computed_are_free(saved: Path) -> None:
    model = initial_model(params(TINY, saved, dropout=0.2, attention="manual"), 61)
    assert model.config.dropout == 0.2
    assert model.training


def test_params_that_do_not_fit_are_refused_all_at_once_by_key(saved: Path) -> None:
    with pytest.raises(ValueError, match="need") as error:
        initial_model(params(TINY, saved, n_layer=3, bias=False, block_size=32, mlp="relu"), 60)
    for part in (
        "model.n_layer (3) must be 2",
        "model.bias (False) must be True",
        "model.block_size (32) must be 16 or less",
        "model.mlp (relu) must be gelu_tanh",
        "vocabulary (60) must be 61",
    ):
        assert part in str(error.value)


def test_weights_of_another_encoding_are_refused(tmp_path: Path) -> None:
    encoding = encodings.bytes_encoding()
    encodings.save(encoding, tmp_path / "encoding")
    config = TINY.changed(vocab_size=257, text_vocab_size=257)
    save_model(tmp_path / "saved", GPT(config), tmp_path / "encoding")
    initial_model(params(config, tmp_path / "saved"), 257, encodings.identity(encoding))
    with pytest.raises(ValueError, match="is not that of the shards"):
        initial_model(params(config, tmp_path / "saved"), 257, "0" * 64)


def test_a_hugging_face_directory_does_as_well(tmp_path: Path) -> None:
    config = TINY.changed(vocab_size=61)
    model = GPT(config).eval()
    export_model(model, None, tmp_path / "hf")
    loaded = initial_model(params(config, tmp_path / "hf"), 61)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_padded_hugging_face_directory_is_to_be_imported_first_and_then_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = encodings.bytes_encoding()  # in the place of GPT-2's
    monkeypatch.setattr(import_model, "gpt2_encoding", lambda _: encoding)
    monkeypatch.setattr(import_model, "GPT2_VOCAB_SIZE", encoding.n_vocab)
    config = TINY.changed(vocab_size=320, text_vocab_size=320)
    export_model(GPT(config), None, tmp_path / "hf")
    command = f"python -m pipeline.import_model {tmp_path / 'hf'} models/imported"
    with pytest.raises(ValueError, match=rf"vocabulary \(257\) must be 320 \(if ids from 257 on .*: {command}\)"):
        initial_model(params(config, tmp_path / "hf"), 257, encodings.identity(encoding))
    import_model.import_model(str(tmp_path / "hf"), tmp_path / "imported")
    loaded = initial_model(params(config, tmp_path / "imported"), 257, encodings.identity(encoding))
    assert torch.equal(loaded.transformer.wte.weight, load_model(tmp_path / "hf").transformer.wte.weight[:257])


def test_a_vocabulary_of_a_size_that_no_padding_gives_is_not_said_to_be_padded(tmp_path: Path) -> None:
    export_model(GPT(TINY.changed(vocab_size=258, text_vocab_size=258)), None, tmp_path / "hf")
    with pytest.raises(ValueError, match=r"vocabulary \(257\) must be 258$"):
        initial_model(params(TINY, tmp_path / "hf"), 257)


def test_a_released_name_is_fetched_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = TINY.changed(vocab_size=61)
    export_model(GPT(config), None, tmp_path / "hub")
    asked: list[str] = []

    def fetch(name: str) -> Path:
        asked.append(name)
        return tmp_path / "hub"

    monkeypatch.setattr("pipeline.model.initial.fetch", fetch)
    initial_model(params(config, "gpt2-medium"), 61)
    assert asked == ["gpt2-medium"]
    assert huggingface.REVISIONS.keys() >= set(asked)


def test_without_a_network_a_released_name_ends_in_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(*args: object, **kwargs: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"gpt2 could not be downloaded .* no route to host"):
        huggingface.fetch("gpt2")


def test_a_name_that_is_no_directory_is_refused_with_the_choices() -> None:
    with pytest.raises(FileNotFoundError, match=r"model.init_from \(gpt3\): neither one of scratch, gpt2, .* nor a"):
        initial_model(params(TINY, "gpt3"), 61)


def test_params_of_a_released_gpt2_are_checked_before_any_download() -> None:
    class Tokenizer:
        encoding = "bpe"

    fields = gpt2_architecture("gpt2").model_dump()
    section = ModelParams(**{**fields, "n_layer": 13, "block_size": 256}, init_from="gpt2", vocab_multiple=64)
    wrong = list(section.rules_across({"tokenizer": Tokenizer()}))  # type: ignore[dict-item]
    assert wrong == [
        "model.init_from (gpt2): needs tokenizer.encoding gpt2, not bpe",
        "model.n_layer (13): init_from gpt2 has 12",
    ]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", "model.safetensors is not a whole safetensors file"),
        ("no weights", "model.safetensors not found"),
        ("no config", "config.json not found"),
        ("other version", r"format_version \(9\) must be 1"),
        ("other shape", r"transformer.wpe.weight \(16, 32\) must be \(8, 32\)"),
    ],
)
def test_a_damaged_model_directory_ends_in_an_error_that_names_the_file(saved: Path, damage: str, said: str) -> None:
    weights, config = saved / "model.safetensors", saved / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        config.unlink()
    elif damage == "other version":
        config.write_text(config.read_text().replace('"format_version": 1', '"format_version": 9'))
    else:
        config.write_text(config.read_text().replace('"block_size": 16', '"block_size": 8'))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_model(saved)


def test_every_config_survives_its_json() -> None:
    config = option("llama")
    assert GPTConfig.model_validate_json(config.model_dump_json()) == config
