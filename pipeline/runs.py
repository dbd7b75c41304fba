"""Where work in progress is kept between runs: `.runs/` under the root of the main repository.

DVC removes a stage's outputs before it runs the stage, and `dvc exp run --temp` and `--queue` run in a copy of the
repository that is deleted afterwards. What must outlive a killed run therefore lives outside both.
"""

from pathlib import Path

RUNS = ".runs"


def main_root(here: Path | None = None) -> Path:
    """The root of the main repository, seen from it or from one of DVC's temporary copies of it.

    DVC keeps those copies under `<root>/.dvc/tmp/exps/`.
    """
    here = (here or Path.cwd()).resolve()
    for parent in (here, *here.parents):
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return here


def run_directory(name: str) -> Path:
    """The directory for the work in progress called `name`; not created here."""
    return main_root() / RUNS / name
