"""The sample stage and the command that writes to the terminal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import torch

from pipeline.corpus import encodings
from pipeline.generation import __main__ as terminal
from pipeline.generation import sampler
from pipeline.model.export import export_model
from pipeline.model.files import load_model, save_model
from pipeline.model.gpt import GPT
from pipeline.model.inference import for_inference
from stages import sample
from tests.model.configs import TINY

ROOT = Path(__file__).parents[2]
BYTES = encodings.bytes_encoding()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a model and the default params, which ask for few tokens; the current one."""
    params = (ROOT / "params.yaml").read_text()
    assert "max_new_tokens: 200" in params
    (tmp_path / "params.yaml").write_text(params.replace("max_new_tokens: 200", "max_new_tokens: 20"))
    encodings.save(BYTES, tmp_path / "encoding")
    torch.manual_seed(1)
    model = GPT(TINY.changed(vocab_size=320, text_vocab_size=257))
    save_model(tmp_path / "data/model", model, tmp_path / "encoding")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_samples_have_every_prompt_and_the_same_texts_again(workplace: Path) -> None:
    sample.main()
    data, page = workplace / "reports/sample/samples.json", workplace / "reports/sample/samples.md"
    found = json.loads(data.read_text())
    assert [prompt["prompt"] for prompt in found["prompts"]] == [None, "ROMEO\n", "To be, or not to be"]
    assert all(len(prompt["continuations"]) == 2 for prompt in found["prompts"])
    assert found["settings"]["seed"] == 1
    assert "".join(piece for piece, _ in found["surprise"]["tokens"]) == found["surprise"]["text"]
    assert "## `To be, or not to be`" in page.read_text()
    first = data.read_bytes(), page.read_bytes()
    sample.main()
    assert (data.read_bytes(), page.read_bytes()) == first


def test_samples_of_a_padded_model_have_a_text(workplace: Path) -> None:
    model = GPT(TINY.changed(vocab_size=384, text_vocab_size=384))  # random: a third of the ids would have none
    save_model(workplace / "data/model", model, workplace / "encoding")
    sample.main()
    found = json.loads((workplace / "reports/sample/samples.json").read_text())
    assert all(text for prompt in found["prompts"] for text in prompt["continuations"])


def write(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["generation", *arguments])
    terminal.main()
    return capsys.readouterr().out


@pytest.mark.usefixtures("workplace")
def test_the_terminal_shows_prompt_and_continuation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("Once upon", "--max-new-tokens", "12", "--seed", "3", "--samples", "2")
    text = write(monkeypatch, capsys, *arguments)
    assert text.startswith("Once upon")
    assert text.count("Once upon") == 2
    assert write(monkeypatch, capsys, *arguments) == text


@pytest.mark.usefixtures("workplace")
def test_the_terminal_prepares_the_model_once_for_all_samples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared: list[torch.dtype] = []

    def spy(model: GPT, dtype: torch.dtype) -> GPT:
        prepared.append(dtype)
        return for_inference(model, dtype)

    monkeypatch.setattr(terminal, "for_inference", spy)
    monkeypatch.setattr(sampler, "for_inference", spy)
    write(monkeypatch, capsys, "--max-new-tokens", "2", "--samples", "3", "--dtype", "float32")
    assert prepared == [torch.float32]


@pytest.mark.usefixtures("workplace")
def test_the_terminal_shows_log_probabilities(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write(monkeypatch, capsys, "--max-new-tokens", "5", "--seed", "3", "--logprobs").splitlines()
    assert len(lines) == 5
    assert all(float(line.split()[0]) < 0 for line in lines)


def test_a_padded_hugging_face_directory_is_read_with_gpt2_s_encoding(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = load_model(workplace / "data/model")
    ours.config = ours.config.changed(text_vocab_size=320)  # the padding is exported as if it were text
    export_model(ours, None, workplace / "theirs")
    asked: list[Path] = []

    def gpt2_encoding(directory: Path) -> tiktoken.Encoding:
        asked.append(directory)
        print("fetching")
        return BYTES  # the real one would need its file

    monkeypatch.setattr(terminal, "gpt2_encoding", gpt2_encoding)
    arguments = ("Once", "--max-new-tokens", "300", "--seed", "3", "--dtype", "float32", "--temperature", "5")
    text = write(monkeypatch, capsys, *arguments, "--model", "theirs")  # what is said goes to the other stream
    assert text == write(monkeypatch, capsys, *arguments)
    assert asked == [Path("theirs")]


def test_a_hugging_face_directory_with_fewer_ids_than_gpt2_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(load_model(workplace / "data/model"), None, workplace / "theirs")
    larger = tiktoken.Encoding("gpt2", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<|endoftext|>": 50256})
    monkeypatch.setattr(terminal, "gpt2_encoding", lambda _: larger)
    monkeypatch.setattr(sys, "argv", ["generation", "--model", "theirs"])
    with pytest.raises(ValueError, match=r"theirs: encoding gpt2 \(50257 ids\) exceeds the model's vocabulary \(257\)"):
        terminal.main()


def test_a_hugging_face_directory_with_more_ids_than_gpt2_s_and_padding_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(load_model(workplace / "data/model"), None, workplace / "theirs")
    smaller = tiktoken.Encoding("gpt2", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<|endoftext|>": 1})
    monkeypatch.setattr(terminal, "gpt2_encoding", lambda _: smaller)
    monkeypatch.setattr(sys, "argv", ["generation", "--model", "theirs"])
    with pytest.raises(ValueError, match=r"theirs: the model's vocabulary \(257\) is more than the 2 ids of encoding"):
        terminal.main()


def test_imported_weights_without_an_encoding_are_refused(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(workplace / "weights", load_model(workplace / "data/model"), None)
    monkeypatch.setattr(terminal, "gpt2_encoding", lambda _: BYTES)
    monkeypatch.setattr(sys, "argv", ["generation", "--model", "weights"])
    with pytest.raises(ValueError, match="weights/encoding not found: what the model's ids mean is not known"):
        terminal.main()


@pytest.mark.parametrize(("samples", "wrong"), [("0", "0 must be at least 1"), ("few", "invalid count value: 'few'")])
def test_a_number_of_samples_that_is_none_is_refused(
    samples: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        write(monkeypatch, capsys, "--samples", samples)
    assert f"argument --samples: {wrong}" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_it_quietly(workplace: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pipeline.generation",
        "xxxxx",
        "--samples=50",
        f"--model={workplace / 'data/model'}",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert writer.stdout.read(5) == "xxxxx"
        writer.stdout.close()
        assert writer.stderr.read() == ""
    assert writer.returncode == 141


def test_a_directory_without_a_model_is_named(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generation", "--model", str(workplace / "nowhere")])
    with pytest.raises(FileNotFoundError, match="nowhere is no model directory"):
        terminal.main()
