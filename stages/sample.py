"""Generates text with the trained model: `python -m stages.sample`.

Reads data/model. Writes reports/sample/samples.json (settings, every prompt with its continuations, and the surprisal
of each token of `sample.surprisal_text`) and samples.md, the same for reading. The same params give the same texts.
"""

from pathlib import Path

import tiktoken
import torch

from pipeline import distributed, generation
from pipeline.artifacts import PromptSamples, Samples, SampleSettings, Surprisal
from pipeline.config import read_sections
from pipeline.corpus.chat import Chat, load_chat, prompt_ids, prompt_text
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, encode_text, load_tokenizer
from pipeline.evaluation.surprisal import surprisal
from pipeline.files import write_text
from pipeline.generation.params import SampleParams
from pipeline.generation.sampling import generate
from pipeline.log import cli_errors, logger
from pipeline.markdown import render
from pipeline.model.gpt import GPT
from pipeline.model_directory import load_model, match_vocabulary
from pipeline.runtime import RuntimeParams

MODEL = Path("data/model")
PAGE, DATA = Path("reports/sample/samples.md"), Path("reports/sample/samples.json")
TEMPLATE = Path(generation.__path__[0]) / "samples.md.jinja"


def main() -> None:
    """Generates samples and writes both files."""
    params, runtime = read_sections(SampleParams, RuntimeParams)
    with distributed.start(runtime.collective_timeout) as group:
        model = load_model(MODEL, group.device)
        tokenizer = load_tokenizer(MODEL / TOKENIZER_DIRECTORY)
        match_vocabulary(model, tokenizer, MODEL)
        chat = load_chat(MODEL / TOKENIZER_DIRECTORY, tokenizer)
        samples = sample(model, tokenizer, params, distributed.autocast_dtype(runtime.dtype, group.device), chat)
    samples.write(DATA)
    write_text(PAGE, render(TEMPLATE, {"samples": samples}))
    logger.info("%d samples in %s", len(params.prompts) * params.samples_per_prompt, PAGE)


def sample(
    model: GPT, tokenizer: tiktoken.Encoding, params: SampleParams, dtype: torch.dtype, chat: Chat | None = None
) -> Samples:
    """The content of samples.json. With `chat`, the prompts are messages, and the samples answers."""
    prompts = [prompt_ids(tokenizer, chat, prompt) for prompt in params.prompts]
    settings = SampleSettings(**params.model_dump(include=set(SampleSettings.model_fields)))
    tokens = generate(
        model,
        prompts,
        settings,
        eot_id=chat.end_id if chat else tokenizer.eot_token,
        dtype=dtype,
        samples_per_prompt=params.samples_per_prompt,
    )
    texts = [[tokenizer.decode(sample, errors="replace") for sample in samples] for samples in tokens]
    if params.surprisal_text:
        ids = encode_text(tokenizer, params.surprisal_text).tolist()
    elif chat:
        ids = (prompts[0] + tokens[0][0])[1:]  # without the end-of-text token at the start
    else:
        ids = encode_text(tokenizer, (params.prompts[0] or "") + texts[0][0]).tolist()
    return Samples(
        settings=settings,
        prompts=[
            PromptSamples(prompt=prompt_text(chat, prompt), continuations=continuations)
            for prompt, continuations in zip(params.prompts, texts, strict=True)
        ],
        surprisal=Surprisal(
            text=tokenizer.decode(ids, errors="replace"),
            tokens=[(token, round(nats, 4)) for token, nats in surprisal(model, tokenizer, ids, dtype)],
        ),
    )


if __name__ == "__main__":
    with cli_errors("sample", __doc__):
        main()
