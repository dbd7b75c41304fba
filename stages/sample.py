"""Lets the trained model write: `python -m stages.sample`.

Reads data/model. Writes reports/sample/samples.md, a page to read, and samples.json: the settings, every prompt with
its continuations, and how hard the model found each token of `sample.surprise_text`. The same params give the same
texts.
"""

from pathlib import Path
from typing import Any

import tiktoken
import torch

from pipeline import distributed
from pipeline.config import read_sections
from pipeline.corpus import encodings
from pipeline.files import write_json, write_text
from pipeline.generation.page import page
from pipeline.generation.params import SampleParams
from pipeline.generation.sampler import Settings, generate
from pipeline.generation.text import surprise
from pipeline.log import clear_errors, logger
from pipeline.model.files import ENCODING, load_model, match_vocabulary
from pipeline.model.gpt import GPT
from pipeline.runtime import RuntimeParams

MODEL = Path("data/model")
PAGE, DATA = Path("reports/sample/samples.md"), Path("reports/sample/samples.json")


def main() -> None:
    """Generates, and writes both files."""
    params, runtime = read_sections(SampleParams, RuntimeParams)
    with distributed.start(runtime.collective_timeout) as group:
        model = load_model(MODEL, group.device)
        encoding = encodings.load(MODEL / ENCODING)
        match_vocabulary(model, encoding, MODEL)
        samples = sample(model, encoding, params, distributed.autocast_dtype(runtime.dtype, group.device))
    write_json(DATA, samples)
    write_text(PAGE, page(samples))
    logger.info("%d samples in %s", len(params.prompts) * params.samples_per_prompt, PAGE)


def sample(model: GPT, encoding: tiktoken.Encoding, params: SampleParams, dtype: torch.dtype) -> dict[str, Any]:
    """What samples.json holds."""
    settings = Settings(params.max_new_tokens, params.temperature, params.top_k, params.top_p, params.seed)
    found = generate(
        model,
        [encoding.encode_ordinary(prompt or "") for prompt in params.prompts],
        settings,
        eot_id=encoding.eot_token,
        dtype=dtype,
        samples_per_prompt=params.samples_per_prompt,
    )
    texts = [[encoding.decode(tokens, errors="replace") for tokens in samples] for samples in found]
    text = params.surprise_text or (params.prompts[0] or "") + texts[0][0]
    return {
        "settings": {
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "max_new_tokens": params.max_new_tokens,
            "seed": params.seed,
        },
        "prompts": [
            {"prompt": prompt, "continuations": samples} for prompt, samples in zip(params.prompts, texts, strict=True)
        ],
        "surprise": {
            "text": text,
            "tokens": [[piece, round(nats, 4)] for piece, nats in surprise(model, encoding, text, dtype)],
        },
    }


if __name__ == "__main__":
    with clear_errors("sample"):
        main()
