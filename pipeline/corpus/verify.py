"""Checks a directory of shards byte for byte: lengths, hashes, ids, counts, and the encoding beside them.

python -m pipeline.corpus.verify data/shards
"""

import argparse
from pathlib import Path

from pipeline.corpus import encodings
from pipeline.corpus.shards import ENCODING_DIRECTORY, open_split, verify
from pipeline.log import clear_errors, logger

READ_TOKENS = 2**20


def verify_directory(directory: Path) -> None:
    """Prints what is sound. Raises ValueError or FileNotFoundError that lists file and offset of all that is not."""
    manifest = verify(directory)
    encoding = encodings.load(directory / ENCODING_DIRECTORY)
    lengths = encodings.token_byte_lengths(encoding)
    for name, split in manifest.splits.items():
        stream = open_split(directory, name)
        starts = range(0, len(stream), READ_TOKENS)
        utf8_bytes = sum(
            int(lengths[stream.read(start, min(READ_TOKENS, len(stream) - start))].sum()) for start in starts
        )
        if utf8_bytes != split.utf8_bytes:
            raise ValueError(
                f"{directory}: splits.{name}.utf8_bytes ({split.utf8_bytes}), but its tokens decode to {utf8_bytes}"
            )
        logger.info(
            "%s: %d tokens, %d documents, %d bytes of text in %d shard(s): sound",
            name,
            split.tokens,
            split.documents,
            split.utf8_bytes,
            len(split.shards),
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="pipeline.corpus.verify", description="Checks shards byte for byte.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("data/shards"))
    verify_directory(parser.parse_args().directory)


if __name__ == "__main__":
    with clear_errors("verify"):
        main()
