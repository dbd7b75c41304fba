"""Kills one training at random times, again and again, and compares its end with that of one never killed.

    python -m tests.faults.kills --kills 50 --seed 1

A quarter of the processes are killed at a random time from their start on, the others at one after their first sign of
progress, so that kills fall into imports, resuming, steps, probes and saves. The run is long enough to outlast them;
after the last one it is left to end. Exits with 1 where the two ends differ in a bit of the weights, the optimizer or
the curves.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.small import Process, SmallRun, same, write_data

INTERVAL = 10  # steps between checkpoints
LIFE = 0.75  # longest life, over the time to the first step


@dataclass
class Tally:
    """What the kills have hit."""

    kills: int = 0
    without_progress: int = 0
    """No row or checkpoint has come to the disk."""
    in_a_save: int = 0
    """A checkpoint was half written."""
    steps_again: list[int] = field(default_factory=list)
    """For each kill, the steps whose rows the next process takes back."""


def step_on_disk(run: SmallRun) -> tuple[int, int]:
    """The steps of the newest checkpoint and of the newest row of the curves; 0 where there is none."""
    checkpoints = [int(path.name[5:]) for path in run.path.glob(".runs/train-*/checkpoints/step_*")]
    rows = [len(file.read_text().splitlines()) - 2 for file in run.path.glob(".runs/train-*/curves.csv")]  # header, 0
    return max(checkpoints, default=0), max([*rows, 0])


def live(run: SmallRun, process: Process, start_s: float, rng: random.Random) -> None:
    """Lets a process live for a random time; `start_s`: how long it takes to get to its first step."""
    before = step_on_disk(run)
    if rng.random() < 0.75:
        while step_on_disk(run) == before and process.poll() is None:
            time.sleep(0.01)
    time.sleep(rng.uniform(0, LIFE * start_s))


def kill_over_and_over(run: SmallRun, kills: int, start_s: float, rng: random.Random) -> Tally:
    """Starts the run and kills it, `kills` times or until it has ended."""
    tally = Tally()
    while tally.kills < kills:
        before, began = step_on_disk(run), time.monotonic()
        process = run.start()
        live(run, process, start_s, rng)
        if process.poll() is not None:
            break  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        checkpoint, row = after = step_on_disk(run)
        tally.kills += 1
        tally.without_progress += after == before
        tally.in_a_save += bool(list(run.path.glob(".runs/train-*/checkpoints/.step_*.tmp/weights.pt")))
        tally.steps_again.append(max(row - checkpoint, 0))
        lived = time.monotonic() - began
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
    took, summary = time.monotonic() - began, run.summary()
    return took - summary.wall_time_s, summary.steps / summary.wall_time_s


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data")

        def begin(name: str, steps: int) -> SmallRun:
            train = {"max_steps": steps, "eval_interval": 50, "benchmark_interval": 200}
            runtime = {"checkpoint_interval": INTERVAL}
            return SmallRun(Path(folder) / name, data, model={"n_embd": 64}, train=train, runtime=runtime)

        start_s, rate = time_to_first_step_and_rate(begin("measured", 200))
        print(f"{start_s:.1f} s to the first step, {rate:.0f} steps/s")
        steps = round(args.kills * rate * 0.4 * LIFE * start_s)  # more than the lives will do
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
        print(f"| of a process that had brought nothing to the disk | {tally.without_progress} |")
        print(f"| in the middle of writing a checkpoint | {tally.in_a_save} |")
        print(f"| steps done again, in all; at most for a kill | {sum(tally.steps_again)}; {max(tally.steps_again)} |")
        for part, is_equal in equal.items():
            print(f"| {part} | {'equal, bit for bit' if is_equal else 'DIFFERENT'} |")
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
