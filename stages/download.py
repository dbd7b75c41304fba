"""Downloads the documents and the benchmark items.

Reads the sections data and benchmarks of params.yaml. Writes data/raw/ (pipeline.corpus.documents) and data/benchmarks/
(pipeline.corpus.benchmarks). An interrupted download resumes where it stopped. If only the section benchmarks has
changed, data/raw is kept.

    python -m stages.download
"""

import hashlib
from pathlib import Path

from pipeline.artifacts import SOURCE_FILE, RawCorpus
from pipeline.config import load_yaml, read_sections
from pipeline.corpus.benchmark_source import fetch_benchmarks
from pipeline.corpus.params import BenchmarkParams, DataParams
from pipeline.corpus.sources import fetch
from pipeline.files import main_root, remove_directory, run_directory, sha256_of
from pipeline.log import UserError, cli_errors, logger

RAW = Path("data/raw")
BENCHMARKS = Path("data/benchmarks")


def main() -> None:
    data, benchmarks = read_sections(DataParams, BenchmarkParams)
    work = run_directory(f"download-{hashlib.sha256(data.model_dump_json().encode()).hexdigest()[:12]}")
    if only_benchmarks_changed(data, benchmarks):
        logger.info("%s: kept, only the section benchmarks of params.yaml has changed", RAW)
    else:
        corpus = fetch(data, main_root(), RAW, work)
        for split in corpus.splits:
            documents, megabytes = corpus.documents(split), corpus.utf8_bytes(split) / 1e6
            logger.info("%s: %s: %s documents, %s MB", RAW, split, f"{documents:,}", f"{megabytes:,.1f}")
    source = fetch_benchmarks(benchmarks, main_root(), RAW, BENCHMARKS)
    for task, part in source.tasks.items():
        logger.info("%s: %s: %s items from %s", BENCHMARKS, task, f"{part.items:,}", part.origin)
    remove_directory(work)  # not before: a mistake in `benchmarks` must not cost the download


def only_benchmarks_changed(data: DataParams, benchmarks: BenchmarkParams) -> bool:
    """Whether data/raw is intact and dvc.lock records it for this code and these params, except those of benchmarks.

    With nothing changed the stage was forced to run (dvc repro --force), to download again.
    """
    try:
        recorded = load_yaml(Path("dvc.lock"))["stages"]["download"]
        params = recorded["params"]["params.yaml"]
        if params["data"] != data.model_dump(mode="json") or params["benchmarks"] == benchmarks.model_dump(mode="json"):
            return False
        for dep in recorded["deps"]:
            if hashlib.md5(Path(dep["path"]).read_bytes(), usedforsecurity=False).hexdigest() != dep["md5"]:
                return False
        files = [file for split in RawCorpus.read(RAW / SOURCE_FILE).splits.values() for file in split]
        return all(sha256_of(RAW / file.file) == file.sha256 for file in files)
    except (UserError, OSError, KeyError, TypeError):  # never run before, or damaged
        return False


if __name__ == "__main__":
    with cli_errors("download", __doc__):
        main()
