"""Stage 1: fetches the documents, and the items for HellaSwag.

Reads the sections data and hellaswag of params.yaml. Writes data/raw/ (pipeline.corpus.raw) and data/hellaswag/
(pipeline.corpus.hellaswag_items). An interrupted download goes on where it stopped.

    python -m stages.download
"""

import hashlib
from pathlib import Path

from pipeline.config import read_sections
from pipeline.corpus.hellaswag_items import HellaswagParams
from pipeline.corpus.hellaswag_sources import fetch_items
from pipeline.corpus.raw import RawCorpus
from pipeline.corpus.records import SplitName
from pipeline.corpus.sources import DataParams, fetch
from pipeline.log import clear_errors, logger
from pipeline.runs import main_root, run_directory

RAW = Path("data/raw")
HELLASWAG = Path("data/hellaswag")


def main() -> None:
    data, hellaswag = read_sections(DataParams, HellaswagParams)
    fingerprint = hashlib.sha256(data.model_dump_json().encode()).hexdigest()[:12]
    corpus = fetch(data, main_root(), RAW, run_directory(f"download-{fingerprint}"))
    logger.info("%s: train %s; validation %s", RAW, _size(corpus, "train"), _size(corpus, "val"))
    items = fetch_items(hellaswag, main_root(), RAW, HELLASWAG)
    logger.info("%s: %d items, %s", HELLASWAG, items.items, items.name)


def _size(corpus: RawCorpus, split: SplitName) -> str:
    if not (documents := corpus.documents(split)):
        return "none (tokenize takes the first shard)"
    return f"{documents:,} documents, {corpus.utf8_bytes(split) / 1e6:,.1f} MB"


if __name__ == "__main__":
    with clear_errors("download"):
        main()
