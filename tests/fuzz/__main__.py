"""Damages every kind of file that the product reads, again and again, and prints what came of it.

    python -m tests.fuzz --cases 10000
    python -m tests.fuzz --kind weights.pt --cases 100 --seed 2

Each failure is printed once per cause, with a file that reproduces it. Exits with 1 if there are any.
"""

import argparse
import faulthandler
import multiprocessing
import random
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.fuzz.cases import Failure, run_case, workspace
from tests.fuzz.kinds import KINDS

HARD_LIMIT_S = 60  # after it, code that no signal interrupts is killed


def run(space: Path, name: str, cases: int, seed: int) -> tuple[Counter[str], dict[str, tuple[str, bytes]]]:
    """What came of the cases; and of each cause of failures the first case's details and content."""
    counts, causes = Counter[str](), dict[str, tuple[str, bytes]]()
    run_case(space, name, None)
    for number in range(cases):
        faulthandler.dump_traceback_later(HARD_LIMIT_S, exit=True)
        try:
            counts[run_case(space, name, random.Random(f"{seed} {name} {number}"))] += 1
        except Failure as failure:
            counts["failures"] += 1
            cause, _, details = str(failure).partition(": ")
            counts[cause] += 1
            causes.setdefault(cause, (f"case {number}: {details}", (space / "damaged").read_bytes()))
    faulthandler.cancel_dump_traceback_later()
    return counts, causes


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--kind", default="", help="only kinds whose name contains this")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
    rows, failures = [], 0
    with workspace() as space:
        for name in (name for name in KINDS if options.kind in name):
            # A process of its own, which may crash; forked, so that nothing is imported again.
            with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                try:
                    counts, causes = pool.submit(run, space, name, options.cases, options.seed).result()
                except BrokenProcessPool:
                    died = "the process died"
                    counts, causes = Counter({"failures": 1, died: 1}), {died: ("", (space / "damaged").read_bytes())}
            for cause, (details, content) in causes.items():
                file = Path(tempfile.mkdtemp(dir=kept), Path(name).name)
                file.write_bytes(content)
                print(f"{name}: {counts[cause]} x {cause}\n    {details}\n    {file}", flush=True)
            failures += counts["failures"]
            rows.append((name, options.cases, counts["worked"], counts["refused"], counts["failures"]))
    print("\n| kind | cases | worked | refused | failures |\n|---|---:|---:|---:|---:|")
    for name, *numbers in rows:
        print(f"| `{name}` | {' | '.join(f'{number:,}' for number in numbers)} |")
    if not failures:
        shutil.rmtree(kept)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
