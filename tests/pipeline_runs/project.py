"""A clone of this repository in a folder of its own, with params so small that the whole pipeline takes seconds."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]

SMALL = {
    "data.source": "files",
    "data.files": ["texts/*.txt"],
    "data.val_every": 5,
    "benchmarks.items": 6,
    "tokenizer.encoding": "bytes",
    "model.block_size": 32,
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 32,
    "model.dropout": 0.1,
    "train.total_batch_size": 256,
    "train.max_steps": 30,
    "train.warmup_steps": 3,
    "train.eval_interval": 10,
    "train.eval_tokens": 256,
    "train.benchmark_interval": 15,
    "train.benchmark_items": 4,
    "train.sample_interval": 15,
    "sample.prompts": ["The "],
    "sample.samples_per_prompt": 1,
    "sample.max_new_tokens": 8,
    "runtime.micro_batch_size": 4,
    "runtime.dtype": "float32",
    "runtime.compile": "off",
    "runtime.checkpoint_interval": 5,
    "runtime.workers": 1,
    "tracking.mode": "offline",
}
VERSE = "the king and queen of night walk under a cold moon to hear what news the sea has brought them"


def stages_run(output: str) -> list[str]:
    """The stages that DVC ran, from what it printed."""
    return re.findall(r"Running stage '(\w+)'", output)


class Project:
    """A working copy with its own Git and DVC repositories."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Python's and DVC's commands as the tests themselves have them; one thread, since the models are tiny.
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DVC_NO_ANALYTICS": "1",
        }
        for name in ("RANK", "WORLD_SIZE", "DVC_EXP_NAME", "WANDB_MODE", "DVC_ROOT"):
            self.environment.pop(name, None)

    @classmethod
    def copy_of_this(cls, path: Path) -> "Project":
        """This checkout's files, as a fresh repository with one commit and nothing run."""
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file() and not name.startswith("reports/") and name != "dvc.lock":
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, path / name)
        project = cls(path)
        project.write_texts()
        project.set(**SMALL)
        project.git("init", "-q", "-b", "main")
        project.git("config", "user.name", "test")
        project.git("config", "user.email", "test@example.invalid")
        project.commit("begin")
        return project

    def copy(self, path: Path) -> "Project":
        """All of it, run and commits included, elsewhere."""
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path)

    def write_texts(self) -> None:
        """Twenty documents of a few hundred words that a tiny model can learn something from."""
        rng = random.Random(0)
        (self.path / "texts").mkdir()
        for number in range(20):
            sentences = [" ".join(rng.choices(VERSE.split(), k=9)).capitalize() + "." for _ in range(25)]
            (self.path / "texts" / f"{number:02d}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")

    def set(self, **values: Any) -> None:
        """Sets keys of params.yaml, named as `dvc exp run -S` names them."""
        yaml = YAML()
        yaml.width = 1000
        params = yaml.load(self.path / "params.yaml")
        for key, value in values.items():
            section, _, name = key.partition(".")
            params[section][name] = value
        yaml.dump(params, self.path / "params.yaml")

    def run(self, *command: str, ok: bool = True, timeout: float = 240) -> str:
        """Runs a command here; returns all that it printed. Fails the test where its exit code is not as expected."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert (done.returncode == 0) == ok, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Starts a command in a process group of its own, as a terminal does."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments)

    def dvc(self, *arguments: str, ok: bool = True) -> str:
        return self.run("dvc", *arguments, ok=ok)

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def json(self, path: str) -> Any:
        return json.loads((self.path / path).read_text(encoding="utf-8"))

    def lock(self) -> dict[str, Any]:
        """The stages of dvc.lock."""
        stages: dict[str, Any] = YAML(typ="safe").load(self.path / "dvc.lock")["stages"]
        return stages

    def hash_of(self, out: str) -> str:
        """What dvc.lock says of an output's content."""
        for stage in self.lock().values():
            for entry in stage["outs"]:
                if entry["path"] == out:
                    return str(entry["md5"])
        raise AssertionError(f"{out} is not in dvc.lock")

    def unfinished_runs(self) -> list[Path]:
        states = sorted((self.path / ".runs").glob("train-*/"))
        return [state for state in states if not (state / "finished.json").exists()]

    def wait_for_step(self, process: subprocess.Popen[str], step: int, timeout: float = 90) -> None:
        """Until an unfinished run's curves have reached a step."""
        self.wait_until(process, lambda: self._steps_done() >= step, timeout)

    def _steps_done(self) -> int:
        files = [state / "curves.csv" for state in self.unfinished_runs()]
        rows = [len(file.read_text().splitlines()) - 1 for file in files if file.exists()]
        return max(rows, default=0)

    @staticmethod
    def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert process.poll() is None, f"ended early: {process.stdout.read() if process.stdout else ''}"
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.02)
