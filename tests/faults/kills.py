"""Kills one training at random times, again and again, and compares its end with that of one never killed.

    python -m tests.faults.kills --kills 50 --seed 1

Each process lives for a random time, 0.5 to 2.5 times as long as it takes to get to its first step, so that kills fall
into imports, resuming, steps, probes and saves. The run is long enough to outlast them; after the last one it is left
to end. Exits with 1 where the two ends differ in a bit of the weights, the optimizer or the curves.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.files import read_json
from tests.faults.small import SmallRun, same, write_data

INTERVAL = 10  # steps between checkpoints


@dataclass
class Tally:
    """What the kills have hit."""

    kills: int = 0
    before_the_first_step: int = 0
    in_a_save: int = 0
    """With a checkpoint half written."""
    steps_again: list[int] = field(default_factory=list)
    """For each kill, the steps whose rows the next process takes back."""


def step_on_disk(run: SmallRun) -> tuple[int, int]:
    """The steps of the newest checkpoint and of the newest row of the curves; 0 where there is none."""
    checkpoints = [int(path.name[5:]) for path in run.path.glob(".runs/train-*/checkpoints/step_*")]
    rows = [len(file.read_text().splitlines()) - 2 for file in run.path.glob(".runs/train-*/curves.csv")]  # header, 0
    return max(checkpoints, default=0), max([*rows, 0])


def kill_over_and_over(run: SmallRun, kills: int, start_s: float, rng: random.Random) -> Tally:
    """Starts the run and kills it, `kills` times or until it has ended."""
    tally = Tally()
    while tally.kills < kills:
        before = step_on_disk(run)
        process = run.start()
        lived = start_s * rng.uniform(0.5, 2.5)
        try:
            output, _ = process.communicate(timeout=lived)
            assert process.returncode == 0, output
            break  # it ended by itself
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        checkpoint, row = after = step_on_disk(run)
        tally.kills += 1
        tally.before_the_first_step += after == before
        tally.in_a_save += bool(list(run.path.glob(".runs/train-*/checkpoints/.step_*.tmp/weights.pt")))
        tally.steps_again.append(max(row - checkpoint, 0))
        print(f"kill {tally.kills} of {kills} after {lived:.2f} s: checkpoint {checkpoint}, row {row}", flush=True)
    return tally


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the times of the kills")
    return parser.parse_args(arguments)


def time_to_first_step_and_rate(run: SmallRun) -> tuple[float, float]:
    """Seconds, and steps per second with their probes and checkpoints."""
    began = time.monotonic()
    run.train()
    took, summary = time.monotonic() - began, read_json(run.path / "reports/train/summary.json")
    return took - summary["wall_time_s"], summary["steps"] / summary["wall_time_s"]


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data")

        def begin(name: str, steps: int) -> SmallRun:
            train = {"max_steps": steps, "eval_interval": 50, "hellaswag_interval": 200}
            runtime = {"checkpoint_interval": INTERVAL}
            return SmallRun(Path(folder) / name, data, model={"n_embd": 64}, train=train, runtime=runtime)

        start_s, rate = time_to_first_step_and_rate(begin("measured", 200))
        print(f"{start_s:.1f} s to the first step, {rate:.0f} steps/s")
        steps = round(1.2 * args.kills * rate * 0.56 * start_s)  # a life trains for 0.56 start_s, on average
        never, killed = begin("never", steps), begin("killed", steps)
        began = time.monotonic()
        never.train(timeout_s=3600)
        print(f"{steps} steps, never killed: {time.monotonic() - began:.0f} s", flush=True)
        tally = kill_over_and_over(killed, args.kills, start_s, random.Random(args.seed))
        killed.train(timeout_s=3600)
        ends = never.result(), killed.result()
        equal = {part: same(ends[0][part], ends[1][part]) for part in ("weights", "optimizer", "curve")}
        print(f"\n| {steps} steps, a checkpoint every {INTERVAL} | |\n|---|---|")
        print(f"| kills | {tally.kills} |")
        print(f"| before the first step of their process | {tally.before_the_first_step} |")
        print(f"| with a checkpoint half written | {tally.in_a_save} |")
        print(f"| steps done again, in all; at most for a kill | {sum(tally.steps_again)}; {max(tally.steps_again)} |")
        for part, is_equal in equal.items():
            print(f"| {part} | {'equal, bit for bit' if is_equal else 'DIFFERENT'} |")
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
