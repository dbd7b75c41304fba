"""Stage 2: turns the documents into shards of token ids.

Reads the section tokenizer of params.yaml (and runtime.workers, which changes nothing but the speed) and data/raw/.
Writes data/shards/: shards, manifest.json and the encoding's files. What a killed run had finished is used by the next.

    python -m stages.tokenize

Several machines that share .runs/ (or copy it together) can each take a part before one of them runs the stage:

    python -m stages.tokenize --part 1/4
"""

import argparse
import re
from pathlib import Path

from pipeline.config import read_sections
from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.tokenization import tokenize, tokenize_part
from pipeline.log import clear_errors, logger
from pipeline.machine import cores
from pipeline.runs import RUNS, main_root
from pipeline.runtime import RuntimeParams

RAW = Path("data/raw")
SHARDS = Path("data/shards")


def main() -> None:
    parser = argparse.ArgumentParser(prog="stages.tokenize", description="Documents to shards of tokens.")
    parser.add_argument("--part", type=_part, metavar="I/N", help="encode only the I-th of N parts, and cut no shards")
    part = parser.parse_args().part
    tokenizer, runtime = read_sections(TokenizerParams, RuntimeParams)
    runs, workers = main_root() / RUNS, runtime.workers or cores()
    if part:
        units = tokenize_part(tokenizer, RAW, runs, workers, *part)
        logger.info("part %d of %d: its %d units are encoded under %s", *part, units, runs)
        return
    manifest = tokenize(tokenizer, RAW, SHARDS, runs, workers)
    for name, split in manifest.splits.items():
        logger.info(
            "%s: %s: %s tokens of %s in %d shard(s), %.2f bytes per token",
            SHARDS,
            name,
            f"{split.tokens:,}",
            manifest.encoding_name,
            len(split.shards),
            split.utf8_bytes / split.tokens,
        )


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 1 to N")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    with clear_errors("tokenize"):
        main()
