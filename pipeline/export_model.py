"""Writes a model as a Hugging Face directory, which transformers and lm-evaluation-harness load.

    python -m pipeline.export_model data/model out/my-gpt

What GPT-2's architecture in transformers cannot express is refused by name: see `pipeline/model/export.py`.
"""

import argparse
from pathlib import Path

from pipeline.log import clear_errors, logger
from pipeline.model.export import export_model
from pipeline.model.files import ENCODING, load_model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.export_model", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", type=Path, help="a model directory, e.g. data/model")
    parser.add_argument("directory", type=Path, help="where the Hugging Face directory is written")
    arguments = parser.parse_args()
    with clear_errors("export_model"):
        encoding = arguments.model / ENCODING
        export_model(load_model(arguments.model), encoding if encoding.is_dir() else None, arguments.directory)
        logger.info(
            '%s: load it with transformers.AutoModelForCausalLM.from_pretrained("%s")', *[arguments.directory] * 2
        )


if __name__ == "__main__":
    main()
