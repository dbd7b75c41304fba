"""Writes on from a prompt, to the terminal, as the tokens come.

    python -m pipeline.generation "Once upon a time" --model data/model

The model is a directory of this pipeline's or a Hugging Face GPT-2 (whose encoding is GPT-2's own). Without a prompt,
it starts a document. With --logprobs, one token a line with its log-probability. Standard output has the text alone.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path

import tiktoken
import torch

from pipeline.corpus import encodings
from pipeline.corpus.vocabularies import gpt2_encoding
from pipeline.distributed import autocast_dtype, start
from pipeline.files import read_json
from pipeline.generation.sampler import NewToken, Settings, stream
from pipeline.generation.text import pieces
from pipeline.log import clear_errors
from pipeline.model.files import CONFIG, ENCODING, load_model, match_vocabulary
from pipeline.model.gpt import GPT
from pipeline.model.huggingface import is_huggingface
from pipeline.model.inference import for_inference


def main() -> None:
    """Parses, loads, prints."""
    arguments = parser().parse_args()
    seed = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
    settings = Settings(arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.top_p, seed)
    with start(timeout_s=60) as group:
        with redirect_stdout(sys.stderr):  # of what is said on the way: it is no part of the text
            model, encoding = load(arguments.model, group.device)
        prompt = encoding.encode_ordinary(arguments.prompt)
        fast = for_inference(model, autocast_dtype(arguments.dtype, group.device))
        for sample in range(arguments.samples):
            if sample:
                print("\n" + "-" * 40)
            tokens = stream(fast, [prompt], settings, eot_id=encoding.eot_token, first_sample=sample)
            if arguments.logprobs:
                print_logprobs(encoding, tokens)
            else:
                print(arguments.prompt, end="", flush=True)
                for piece in pieces(encoding, (new.token for new in tokens if new.token != encoding.eot_token)):
                    print(piece, end="", flush=True)
                print()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m pipeline.generation", description=(__doc__ or "").split("\n")[0])
    found.add_argument("prompt", nargs="?", default="", help="the text to go on from")
    found.add_argument("--model", type=Path, default=Path("data/model"), help="a model directory (data/model)")
    found.add_argument("--samples", type=count, default=1, help="texts, one after the other (1)")
    found.add_argument("--max-new-tokens", type=int, default=256, help="tokens of each, at most (256)")
    found.add_argument("--temperature", type=float, default=0.8, help="0: greedy (0.8)")
    found.add_argument("--top-k", type=int, default=50, help="0: off (50)")
    found.add_argument("--top-p", type=float, default=1.0, help="1: off (1)")
    found.add_argument("--seed", type=int, help="the same seed gives the same text; default: another one each time")
    found.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="(auto)")
    found.add_argument("--logprobs", action="store_true", help="print each token with its log-probability")
    return found


def count(text: str) -> int:
    """A whole number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def load(directory: Path, device: torch.device) -> tuple[GPT, tiktoken.Encoding]:
    """The model in a directory and its encoding: the one beside it; of a Hugging Face directory, GPT-2's.

    Raises ValueError where the encoding is not known, or is not that of the model's vocabulary.
    """
    model = load_model(directory, device)
    ours = directory / ENCODING
    if not ours.is_dir() and not is_huggingface(read_json(directory / CONFIG)):
        raise ValueError(f"{ours} not found: what the model's ids mean is not known")  # imported weights alone
    encoding = encodings.load(ours) if ours.is_dir() else gpt2_encoding(directory)
    match_vocabulary(model, encoding, directory)
    return model, encoding


def print_logprobs(encoding: tiktoken.Encoding, tokens: Iterable[NewToken]) -> None:
    """One token a line: its log-probability, and its bytes as text."""
    for new in tokens:
        text = encoding.decode([new.token], errors="replace")
        print(f"{new.logprob:9.4f}  {text!r}", flush=True)


if __name__ == "__main__":
    with clear_errors("generation"):
        try:
            main()
        except KeyboardInterrupt:
            print()
            sys.exit(130)
        except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # for what the interpreter flushes at its end
            sys.exit(141)  # as a shell counts the signal that ends other programs here
