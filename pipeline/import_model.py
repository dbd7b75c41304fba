"""Makes a model directory from GPT-2's released weights or from a Hugging Face directory.

    python -m pipeline.import_model gpt2 data/gpt2          # or gpt2-medium, gpt2-large, gpt2-xl
    python -m pipeline.import_model path/to/hf models/mine

The result is one for `evaluate`, `sample` and `model.init_from`, like data/model. It holds the encoding too: the one in
the directory's encoding/ where there is one; else GPT-2's where the vocabulary has 50,257 ids or, padded, 50,304, and
no file of a tokenizer there says otherwise; else none. Ids that the encoding has not are padding from then on.
"""

import argparse
import tempfile
from pathlib import Path

import tiktoken

from pipeline.corpus import encodings
from pipeline.corpus.vocabularies import gpt2_encoding
from pipeline.files import check_replaceable
from pipeline.log import clear_errors, logger
from pipeline.model.accounting import describe
from pipeline.model.config import GPT2_SIZES, GPT2_VOCAB_SIZE
from pipeline.model.files import ENCODING, load_model, match_vocabulary, padded_sizes, save_model
from pipeline.model.huggingface import fetch


def import_model(source: str, directory: Path) -> None:
    """Writes a model directory with the weights of `source`: a released name, or a directory.

    Raises FileExistsError where `directory` is there and not empty.
    """
    check_replaceable(directory)
    found = fetch(source) if source in GPT2_SIZES else Path(source)
    model = load_model(found)
    encoding = encoding_of(found, model.config.text_vocab_size)
    if encoding is not None:
        match_vocabulary(model, encoding, found)
    logger.info("%s", describe(model.config))
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / ENCODING
        if encoding is not None:
            encodings.save(encoding, files)
        save_model(directory, model, files if encoding is not None else None)
    logger.info("%s: weights and config%s", directory, ", no encoding" if encoding is None else " and encoding")


def encoding_of(directory: Path, ids: int) -> tiktoken.Encoding | None:
    """The encoding of a model of `ids` ids in a directory, None where it cannot be told."""
    if (directory / ENCODING).is_dir():
        return encodings.load(directory / ENCODING)
    if ids not in padded_sizes(GPT2_VOCAB_SIZE):
        return None
    try:
        return gpt2_encoding(directory)
    except ValueError as error:
        logger.warning("%s", error)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.import_model", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", help=f"{', '.join(GPT2_SIZES)}, or a directory")
    parser.add_argument("directory", type=Path, help="where the model directory is written")
    arguments = parser.parse_args()
    with clear_errors("import_model"):
        import_model(arguments.source, arguments.directory)


if __name__ == "__main__":
    main()
