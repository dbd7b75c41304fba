"""Makes a model directory from GPT-2's released weights or from a Hugging Face directory.

    python -m pipeline.import_model gpt2 data/gpt2          # or gpt2-medium, gpt2-large, gpt2-xl
    python -m pipeline.import_model path/to/hf models/mine

The result is one for `evaluate`, `sample` and `model.init_from`, like data/model. It holds the encoding too: the one in
the directory's encoding/ where there is one, else GPT-2's where the vocabulary has its size, else none.
"""

import argparse
import tempfile
from pathlib import Path

from pipeline.corpus import encodings
from pipeline.corpus.vocabularies import gpt2_encoding
from pipeline.log import clear_errors, logger
from pipeline.model.accounting import describe
from pipeline.model.config import GPT2_SIZES, GPT2_VOCAB_SIZE
from pipeline.model.files import ENCODING, load_model, save_model
from pipeline.model.huggingface import fetch


def import_model(source: str, directory: Path) -> None:
    """Writes a model directory with the weights of `source`: a released name, or a directory."""
    found = fetch(source) if source in GPT2_SIZES else Path(source)
    model = load_model(found)
    logger.info("%s", describe(model.config))
    with tempfile.TemporaryDirectory() as temporary:
        encoding: Path | None = found / ENCODING
        if not (found / ENCODING).is_dir():
            encoding = None
            if model.config.text_vocab_size == GPT2_VOCAB_SIZE:
                encoding = Path(temporary) / ENCODING
                encodings.save(gpt2_encoding(), encoding)
        save_model(directory, model, encoding)
    logger.info("%s: weights and config%s", directory, ", no encoding" if encoding is None else " and encoding")


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
