"""Writes a model as a Hugging Face directory, which transformers and lm-evaluation-harness load.

    python -m pipeline export data/model out/my-gpt

A model that GPT-2's architecture in transformers cannot express is refused: see pipeline/huggingface/export.py.
"""

import argparse
from pathlib import Path

from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY
from pipeline.huggingface.export import export_model
from pipeline.log import logger
from pipeline.model_directory import load_model


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", type=Path, help="a model directory, e.g. data/model")
    parser.add_argument("directory", type=Path, help="where the Hugging Face directory is written")
    options = parser.parse_args(arguments)
    tokenizer = options.model / TOKENIZER_DIRECTORY
    export_model(load_model(options.model), tokenizer if tokenizer.is_dir() else None, options.directory)
    logger.info('%s: load it with transformers.AutoModelForCausalLM.from_pretrained("%s")', *[options.directory] * 2)
