"""Import and export of models: between model directories and Hugging Face's GPT-2.

    python -m pipeline import gpt2 models/my-gpt2       # or another hub entry of models/
    python -m pipeline import path/to/hf models/mine
    python -m pipeline export data/model out/my-gpt

An imported model can be evaluated, sampled and named by `model.init_from`. It contains the tokenizer too, if that is
known: the one in the source's tokenizer/, else in its tokenizer.json (or vocab.json and merges.txt), if it is a
byte-level BPE; else GPT-2's, if the source has no file of a tokenizer and 50,257 ids (or 50,304, padded). Ids that the
tokenizer does not have become padding.

An exported model can be loaded by transformers and lm-evaluation-harness. A model that GPT-2's architecture in
transformers cannot express is refused: see pipeline/huggingface/export.py.
"""

import argparse
import tempfile
from pathlib import Path

import tiktoken

from pipeline.config import MODELS
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, load_tokenizer, save_tokenizer
from pipeline.corpus.vocabularies import gpt2_tokenizer, huggingface_tokenizer
from pipeline.files import check_replaceable
from pipeline.huggingface.export import export_model
from pipeline.log import UserError, logger
from pipeline.model.accounting import describe
from pipeline.model.config import GPT2_VOCAB_SIZE
from pipeline.model_directory import load_model, match_vocabulary, padded_sizes, save_model, weights_directory


def import_main(arguments: list[str]) -> None:
    """Writes a model directory."""
    parser = argparse.ArgumentParser(prog="python -m pipeline import", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a directory")
    parser.add_argument("directory", type=Path, help="where the model directory is written")
    options = parser.parse_args(arguments)
    import_model(options.source, options.directory)


def export_main(arguments: list[str]) -> None:
    """Writes a Hugging Face directory."""
    parser = argparse.ArgumentParser(prog="python -m pipeline export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", type=Path, help="a model directory, e.g. data/model")
    parser.add_argument("directory", type=Path, help="where the Hugging Face directory is written")
    options = parser.parse_args(arguments)
    tokenizer = options.model / TOKENIZER_DIRECTORY
    export_model(load_model(options.model), tokenizer if tokenizer.is_dir() else None, options.directory)
    logger.info('%s: load it with transformers.AutoModelForCausalLM.from_pretrained("%s")', *[options.directory] * 2)


def import_model(source: str, directory: Path) -> None:
    """Writes a model directory with the weights of `source`: a hub entry of models/, or a directory.

    Raises UserError if the source cannot be read, and FileExistsError if `directory` exists and is not empty.
    """
    check_replaceable(directory)
    entry = MODELS / source
    source_directory = weights_directory(entry) if entry.is_file() else Path(source)
    model = load_model(source_directory)
    tokenizer = find_tokenizer(source_directory, model.config.text_vocab_size)
    if tokenizer is not None:
        match_vocabulary(model, tokenizer, source_directory)
    logger.info("%s", describe(model.config))
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer_directory = None if tokenizer is None else source_directory / TOKENIZER_DIRECTORY
        if tokenizer is not None and not (source_directory / TOKENIZER_DIRECTORY).is_dir():
            tokenizer_directory = Path(temporary, TOKENIZER_DIRECTORY)
            save_tokenizer(tokenizer, tokenizer_directory)
        save_model(directory, model, tokenizer_directory)
    logger.info("%s: weights, config%s", directory, ", no tokenizer" if tokenizer is None else ", tokenizer")


def find_tokenizer(directory: Path, ids: int) -> tiktoken.Encoding | None:
    """The tokenizer of a model of `ids` ids in a directory; None if it is unknown."""
    if (directory / TOKENIZER_DIRECTORY).is_dir():
        return load_tokenizer(directory / TOKENIZER_DIRECTORY)
    try:
        tokenizer = huggingface_tokenizer(directory)
        if tokenizer is None and ids in padded_sizes(GPT2_VOCAB_SIZE):
            tokenizer = gpt2_tokenizer()
        return tokenizer
    except UserError as error:
        logger.warning("%s", error)
        return None
