"""The sample stage and `python -m pipeline generate`."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import torch

from pipeline import markdown
from pipeline.artifacts import PromptSamples, Samples, SampleSettings, Surprisal
from pipeline.cli import generate
from pipeline.corpus.tokenizer import bytes_tokenizer, save_tokenizer
from pipeline.generation import sampling
from pipeline.huggingface.export import export_model
from pipeline.inference import for_inference
from pipeline.log import UserError
from pipeline.model.gpt import GPT
from pipeline.model_directory import load_model, save_model
from stages import sample
from tests.model.configs import TINY

ROOT = Path(__file__).parents[2]
BYTES = bytes_tokenizer()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a model and the default params for fewer tokens."""
    params = (ROOT / "params.yaml").read_text()
    assert "max_new_tokens: 200" in params
    (tmp_path / "params.yaml").write_text(params.replace("max_new_tokens: 200", "max_new_tokens: 20"))
    save_tokenizer(BYTES, tmp_path / "tokenizer")
    torch.manual_seed(1)
    model = GPT(TINY.changed(vocab_size=320, text_vocab_size=257))
    save_model(tmp_path / "data/model", model, tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The stage.


@pytest.mark.usefixtures("workspace")
def test_samples_have_every_prompt_and_the_same_texts_again() -> None:
    sample.main()
    samples = Samples.read(sample.DATA)
    assert [prompt.prompt for prompt in samples.prompts] == [None, "ROMEO\n", "To be, or not to be"]
    assert all(len(prompt.continuations) == 2 for prompt in samples.prompts)
    assert samples.settings.max_new_tokens == 20
    assert "".join(token for token, _ in samples.surprisal.tokens) == samples.surprisal.text
    first = sample.DATA.read_bytes(), sample.PAGE.read_bytes()
    sample.main()
    assert (sample.DATA.read_bytes(), sample.PAGE.read_bytes()) == first


def test_a_padded_model_samples_only_ids_with_a_text(workspace: Path) -> None:
    model = GPT(TINY.changed(vocab_size=384, text_vocab_size=384))  # random: a third of the ids would have none
    save_model(workspace / "data/model", model, workspace / "tokenizer")
    sample.main()
    assert all(text for prompt in Samples.read(sample.DATA).prompts for text in prompt.continuations)


def test_the_page_shows_texts_literally() -> None:
    samples = Samples(
        settings=SampleSettings(temperature=0.8, top_k=5, top_p=1.0, max_new_tokens=9, seed=1),
        prompts=[
            PromptSamples(prompt=None, continuations=["one\n```\n# no title"]),
            PromptSamples(prompt="KING\n", continuations=["two", "three"]),
            PromptSamples(prompt="```python", continuations=["four"]),
            PromptSamples(prompt=" \n", continuations=["five"]),
            PromptSamples(prompt="a" * 99, continuations=["six"]),
        ],
        surprisal=Surprisal(text="a**|", tokens=[("a", 1.0), ("**", 5.0), ("|", 3.0), ("\n", 2.0)]),
    )
    page = markdown.render(sample.TEMPLATE, {"samples": samples})
    assert "temperature 0.8, top_k 5, top_p 1.0, max_new_tokens 9, seed 1." in page
    assert "````text\none\n```\n# no title\n````" in page
    assert "```text\nKING\ntwo\n```" in page
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert titles[1:5] == ["## `KING`", "## ```` ```python ````", "## (white space)", f"## `{'a' * 59}…`"]
    assert "2.75 nats" in page
    assert page.endswith("`**` (5.0),\n<code>&#124;</code> (3.0),\n`'\\n'` (2.0),\n`a` (1.0).\n")


# The command.


def write(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints on standard output."""
    generate.main(list(arguments))
    return capsys.readouterr().out


@pytest.mark.usefixtures("workspace")
def test_generate_prints_prompt_and_continuation(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("Once upon", "--max-new-tokens", "12", "--seed", "3", "--samples", "2")
    text = write(capsys, *arguments)
    assert text.startswith("Once upon")
    assert text.count("Once upon") == 2
    assert write(capsys, *arguments) == text


@pytest.mark.usefixtures("workspace")
def test_generate_prepares_the_model_once_for_all_samples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared: list[torch.dtype] = []

    def spy(model: GPT, dtype: torch.dtype) -> GPT:
        prepared.append(dtype)
        return for_inference(model, dtype)

    monkeypatch.setattr(generate, "for_inference", spy)
    monkeypatch.setattr(sampling, "for_inference", spy)
    write(capsys, "--max-new-tokens", "2", "--samples", "3", "--dtype", "float32")
    assert prepared == [torch.float32]


@pytest.mark.usefixtures("workspace")
def test_generate_prints_log_probabilities(capsys: pytest.CaptureFixture[str]) -> None:
    lines = write(capsys, "--max-new-tokens", "5", "--seed", "3", "--logprobs").splitlines()
    assert len(lines) == 5
    assert all(float(line.split()[0]) < 0 for line in lines)


def test_a_padded_hugging_face_model_is_read_with_gpt2_s_tokenizer(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(workspace / "data/model")
    model.config = model.config.changed(text_vocab_size=320)  # the padding is exported as if it were text
    export_model(model, None, workspace / "exported")

    def gpt2_tokenizer() -> tiktoken.Encoding:
        print("fetching")  # belongs on standard error
        return BYTES  # GPT-2's would need its file

    monkeypatch.setattr(generate, "gpt2_tokenizer", gpt2_tokenizer)
    arguments = ("Once", "--max-new-tokens", "300", "--seed", "3", "--dtype", "float32", "--temperature", "5")
    assert write(capsys, *arguments, "--model", "exported") == write(capsys, *arguments)


@pytest.mark.parametrize(("eot_id", "sizes"), [(50256, r"50257 ids.*\(257\)"), (1, r"\(257\).*2 ids")])
def test_a_hugging_face_model_whose_vocabulary_does_not_fit_gpt2_s_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, eot_id: int, sizes: str
) -> None:
    export_model(load_model(workspace / "data/model"), None, workspace / "exported")
    gpt2 = tiktoken.Encoding("gpt2", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<|endoftext|>": eot_id})
    monkeypatch.setattr(generate, "gpt2_tokenizer", lambda: gpt2)
    with pytest.raises(ValueError, match=f"exported: .*{sizes}"):
        generate.main(["--model", "exported"])


def test_weights_without_a_tokenizer_are_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(workspace / "weights", load_model(workspace / "data/model"), None)
    monkeypatch.setattr(generate, "gpt2_tokenizer", lambda: BYTES)
    with pytest.raises(ValueError, match="weights/tokenizer"):
        generate.main(["--model", "weights"])


def test_a_directory_without_a_model_is_named(workspace: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        generate.main(["--model", str(workspace / "nowhere")])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "-1.0"),
        ("temperature", "inf"),
        ("temperature", "nan"),
        ("seed", "-1"),
        ("top_k", "-1"),
        ("top_p", "0.0"),
        ("max_new_tokens", "0"),
    ],
)
def test_settings_out_of_range_are_refused(key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"{key} \({value}\)"):
        generate.main([f"--{key.replace('_', '-')}={value}"])


def test_no_samples_are_refused() -> None:
    with pytest.raises(UserError, match=r"samples_per_prompt \(0\)"):
        generate.main(["--samples=0"])


def test_a_closed_pipe_ends_generation_quietly(workspace: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "generate", "xxxxx", "--samples=5000"]
    with subprocess.Popen(
        [*command, f"--model={workspace / 'data/model'}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == "xxxxx"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
