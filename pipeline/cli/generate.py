"""Generates text from a prompt in the terminal, token by token.

    python -m pipeline generate "Once upon a time" --model data/model
    python -m pipeline generate --chat

The model is a model directory, or a Hugging Face GPT-2 (with GPT-2's tokenizer, unless the directory has another).
Without a prompt, the model starts a document. With --logprobs, prints each token on a line with its log-probability.
With --chat, a model that was trained on conversations answers messages, one a line, until the end of the input.
Standard output has only the text.
"""

import argparse
import secrets
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

import tiktoken
import torch
from pydantic import ValidationError

from pipeline.artifacts import SampleSettings
from pipeline.corpus.chat import load_chat
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, encode_text, load_tokenizer, token_texts
from pipeline.corpus.vocabularies import gpt2_tokenizer, huggingface_tokenizer
from pipeline.distributed import autocast_dtype, start
from pipeline.files import read_json
from pipeline.generation.chat_session import ChatSession
from pipeline.generation.params import SampleParams
from pipeline.generation.sampling import stream
from pipeline.huggingface.convert import CONFIG, is_huggingface
from pipeline.inference import for_inference
from pipeline.log import UserError
from pipeline.model.gpt import GPT
from pipeline.model_directory import load_model, match_vocabulary


def main(arguments: list[str]) -> None:
    """Parses the arguments, loads the model and prints the samples."""
    parser = argparse.ArgumentParser(prog="python -m pipeline generate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("prompt", nargs="?", default="", help="the text to continue")
    parser.add_argument("--model", type=Path, default=Path("data/model"), help="model directory (data/model)")
    parser.add_argument("--samples", type=int, default=1, help="number of texts (1)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="maximum tokens of each text (256)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: greedy (0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="0: off (50)")
    parser.add_argument("--top-p", type=float, default=1.0, help="1: off (1)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text (default: random)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="(auto)")
    parser.add_argument("--logprobs", action="store_true", help="print each token with its log-probability")
    parser.add_argument("--chat", action="store_true", help="talk to the model; the prompt is the first message")
    options = parser.parse_args(arguments)
    if options.chat and (options.logprobs or options.samples != 1):
        parser.error("--chat: not with --samples or --logprobs")

    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    try:
        settings = SampleSettings(**{key: getattr(options, key) for key in SampleSettings.model_fields})
        SampleParams(  # the same rules as in params.yaml
            prompts=(options.prompt,),
            samples_per_prompt=options.samples,
            surprisal_text=None,
            **settings.model_dump(),
        )
    except ValidationError as error:
        mistakes = [f"{mistake['loc'][0]} ({mistake['input']}): {mistake['msg']}" for mistake in error.errors()]
        raise UserError("; ".join(mistakes)) from None
    with start(timeout_s=60) as group:
        with redirect_stdout(sys.stderr):  # log lines are not part of the text
            model, tokenizer = load(options.model, group.device)
        fast = for_inference(model, autocast_dtype(options.dtype, group.device))
        if options.chat:
            path = options.model / TOKENIZER_DIRECTORY
            if (chat := load_chat(path, tokenizer) if path.is_dir() else None) is None:
                raise UserError(f"--chat: {options.model} was not trained on conversations: it has no chat template")
            converse(ChatSession(fast, chat, settings), options.prompt)
            return
        prompt = encode_text(tokenizer, options.prompt).tolist()
        for sample in range(options.samples):
            if sample:
                print("\n" + "-" * 40)
            tokens = stream(fast, [prompt], settings, eot_id=tokenizer.eot_token, first_sample=sample)
            if options.logprobs:
                for new in tokens:
                    print(f"{new.logprob:9.4f}  {tokenizer.decode([new.token], errors='replace')!r}", flush=True)
                continue
            print(options.prompt, end="", flush=True)
            for text in token_texts(tokenizer, (new.token for new in tokens if new.token != tokenizer.eot_token)):
                print(text, end="", flush=True)
            print()


def converse(session: ChatSession, message: str) -> None:
    """Answers a message, if there is one, and then those from standard input, until its end or Ctrl-C."""
    ask = "> " if sys.stdin.isatty() else ""
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            if message := message or input(ask):
                for text in token_texts(session.chat.tokenizer, session.reply(message)):
                    print(text, end="", flush=True)
                print()
            message = ""


def load(directory: Path, device: torch.device) -> tuple[GPT, tiktoken.Encoding]:
    """The model in a directory with its tokenizer; for a Hugging Face directory without one, GPT-2's.

    Raises UserError where the tokenizer is unknown or does not fit the model's vocabulary.
    """
    model = load_model(directory, device)
    path = directory / TOKENIZER_DIRECTORY
    if path.is_dir():
        tokenizer = load_tokenizer(path)
    elif is_huggingface(read_json(directory / CONFIG)):
        tokenizer = huggingface_tokenizer(directory) or gpt2_tokenizer()
    else:  # imported weights only
        raise UserError(f"{path} not found: the model's tokenizer is unknown")
    match_vocabulary(model, tokenizer, directory)
    return model, tokenizer
