"""Checks a directory of shards byte for byte: lengths, hashes, ids, counts, and the tokenizer beside them."""

import argparse
from pathlib import Path

from pipeline.corpus.shards import verify
from pipeline.log import logger


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline verify", description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("data/shards"))
    manifest = verify(parser.parse_args(arguments).directory)
    for name, split in manifest.splits.items():
        logger.info(
            "%s: %d shard(s) with %d tokens, %d documents, %d bytes of text: no defects",
            name,
            len(split.shards),
            split.tokens,
            split.documents,
            split.utf8_bytes,
        )
