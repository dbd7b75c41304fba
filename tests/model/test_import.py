"""What import_model writes for Hugging Face directories: which encoding, and what is padding."""

import json
from pathlib import Path

import pytest
import torch

from pipeline import import_model as command
from pipeline.corpus import encodings
from pipeline.model.config import GPTConfig
from pipeline.model.export import export_model
from pipeline.model.files import load_model
from pipeline.model.gpt import GPT
from tests.model.configs import TINY

BYTES = encodings.bytes_encoding()


@pytest.fixture
def gpt2_is_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes encoding stands for GPT-2's, which would need its file and large models."""

    def gpt2_encoding(directory: Path) -> object:
        if (directory / "vocab.json").exists():
            raise ValueError("not GPT-2's encoding")
        return BYTES

    monkeypatch.setattr(command, "gpt2_encoding", gpt2_encoding)
    monkeypatch.setattr(command, "GPT2_VOCAB_SIZE", BYTES.n_vocab)


def imported(config: GPTConfig, directory: Path, own_tokenizer: bool = False) -> GPT:
    """The model that comes of a Hugging Face directory, in `directory`/ours."""
    torch.manual_seed(1)
    export_model(GPT(config), None, directory / "theirs")
    if own_tokenizer:
        (directory / "theirs/vocab.json").write_text(json.dumps({"a": 0}))
    command.import_model(str(directory / "theirs"), directory / "ours")
    return load_model(directory / "ours")


@pytest.mark.usefixtures("gpt2_is_bytes")
@pytest.mark.parametrize("ids", [257, 320, 384])
def test_a_vocabulary_of_gpt2_s_size_gets_its_encoding_padded_or_not(ids: int, tmp_path: Path) -> None:
    model = imported(TINY.changed(vocab_size=ids, text_vocab_size=ids), tmp_path)
    assert (model.config.vocab_size, model.config.text_vocab_size) == (ids, 257)
    assert encodings.identity(encodings.load(tmp_path / "ours/encoding")) == encodings.identity(BYTES)
    logits, _ = model(torch.tensor([[1, 2]]))
    assert bool(logits[..., :257].isfinite().all())
    assert bool((logits[..., 257:] == -torch.inf).all())


@pytest.mark.usefixtures("gpt2_is_bytes")
@pytest.mark.parametrize(("ids", "own_tokenizer"), [(256, False), (258, False), (385, False), (320, True)])
def test_other_vocabularies_come_without_an_encoding(ids: int, own_tokenizer: bool, tmp_path: Path) -> None:
    model = imported(TINY.changed(vocab_size=ids, text_vocab_size=ids), tmp_path, own_tokenizer)
    assert model.config.text_vocab_size == ids
    assert not (tmp_path / "ours/encoding").exists()


@pytest.mark.parametrize("name", ["spiece.model", "vocab.txt"])
def test_a_tokenizer_of_another_kind_is_not_taken_for_gpt2_s(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    assert command.encoding_of(tmp_path, 50_304) is None


@pytest.mark.parametrize("ids", [4_096, 50_256, 50_258, 50_305, 64_000])
def test_a_vocabulary_that_is_not_gpt2_s_or_its_padding_has_no_encoding_that_can_be_told(
    ids: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "gpt2_encoding", lambda _: BYTES)
    assert command.encoding_of(tmp_path, ids) is None
    assert command.encoding_of(tmp_path, 50_257) is command.encoding_of(tmp_path, 50_304) is BYTES


@pytest.mark.usefixtures("gpt2_is_bytes")
def test_what_is_taken_for_padding_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported(TINY.changed(vocab_size=320, text_vocab_size=320), tmp_path)
    assert f"{tmp_path / 'theirs'}: ids 257 to 319 are padding\n" in capsys.readouterr().out


@pytest.mark.usefixtures("gpt2_is_bytes")
@pytest.mark.parametrize("target", ["..", "ours"])
def test_import_and_export_keep_a_directory_that_is_there(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY.changed(vocab_size=257, text_vocab_size=257)
    export_model(GPT(config), None, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    monkeypatch.chdir(tmp_path / "ours")
    thesis = tmp_path / "ours/thesis.tex"
    thesis.write_text("years of work")
    path = Path("..") if target == ".." else tmp_path / target
    with pytest.raises(FileExistsError):
        command.import_model(str(tmp_path / "theirs"), path)
    with pytest.raises(FileExistsError):
        export_model(GPT(config), None, path)
    assert thesis.read_text() == "years of work"
    assert (tmp_path / "theirs/config.json").exists()
