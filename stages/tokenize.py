"""Stage 2: turns the documents into shards of token ids.

Reads the section tokenizer of params.yaml (and runtime.workers, which only changes the speed) and data/raw/. Writes
data/shards/: shards, manifest.json and the tokenizer's files. The finished work of a killed run is used by the next.

    python -m stages.tokenize

Several machines that share .runs/ (or copy it together) can each encode a part before one of them runs the stage:

    python -m stages.tokenize --part 1/4
"""

import argparse
import re
from pathlib import Path

from pipeline.config import read_sections
from pipeline.corpus.params import TokenizerParams
from pipeline.corpus.tokenization import tokenize, tokenize_part
from pipeline.files import RUNS, main_root
from pipeline.log import cli_errors, logger
from pipeline.runtime import RuntimeParams, cores

RAW = Path("data/raw")
SHARDS = Path("data/shards")


def main() -> None:
    parser = argparse.ArgumentParser(prog="stages.tokenize", description="Turns documents into shards of tokens.")
    parser.add_argument("--part", type=_part, metavar="I/N", help="only encode the I-th of N parts; write no shards")
    part = parser.parse_args().part
    tokenizer, runtime = read_sections(TokenizerParams, RuntimeParams)
    runs, workers = main_root() / RUNS, runtime.workers or cores()
    if part:
        row_groups = tokenize_part(tokenizer, RAW, runs, workers, *part)
        logger.info("part %d of %d: %d row groups encoded in %s", *part, row_groups, runs)
        return
    manifest = tokenize(tokenizer, RAW, SHARDS, runs, workers)
    for name, split in manifest.splits.items():
        logger.info(
            "%s: %s: %s tokens of %s in %d shard(s), %.2f bytes per token",
            SHARDS,
            name,
            f"{split.tokens:,}",
            manifest.tokenizer_name,
            len(split.shards),
            split.utf8_bytes / split.tokens,
        )


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 1 to N")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    with cli_errors("tokenize"):
        main()
