"""Stage 1: downloads the documents and the HellaSwag items.

Reads the sections data and hellaswag of params.yaml. Writes data/raw/ (pipeline.corpus.documents) and data/hellaswag/
(pipeline.corpus.hellaswag). An interrupted download resumes where it stopped.

    python -m stages.download
"""

import hashlib
from pathlib import Path

from pipeline.config import read_sections
from pipeline.corpus.hellaswag_source import fetch_items
from pipeline.corpus.params import DataParams, HellaswagParams
from pipeline.corpus.sources import fetch
from pipeline.files import main_root, run_directory
from pipeline.log import cli_errors, logger

RAW = Path("data/raw")
HELLASWAG = Path("data/hellaswag")


def main() -> None:
    data, hellaswag = read_sections(DataParams, HellaswagParams)
    fingerprint = hashlib.sha256(data.model_dump_json().encode()).hexdigest()[:12]
    corpus = fetch(data, main_root(), RAW, run_directory(f"download-{fingerprint}"))
    for split in corpus.splits:
        documents, megabytes = corpus.documents(split), corpus.utf8_bytes(split) / 1e6
        logger.info("%s: %s: %s documents, %s MB", RAW, split, f"{documents:,}", f"{megabytes:,.1f}")
    items = fetch_items(hellaswag, main_root(), RAW, HELLASWAG)
    logger.info("%s: %d items, %s", HELLASWAG, items.items, items.name)


if __name__ == "__main__":
    with cli_errors("download", __doc__):
        main()
