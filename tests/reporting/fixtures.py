"""A finished run, made up: its records, curves, params and dvc.lock, and a directory with all of them."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from pipeline.artifacts import (
    BenchmarkMetrics,
    CodeRevision,
    EvaluationMetrics,
    Hardware,
    Manifest,
    ParameterCounts,
    PromptSamples,
    RunSummary,
    Samples,
    SampleSettings,
    Split,
    Surprisal,
    TokenizerInfo,
    TrackedRun,
    TrainingSamples,
    ValidationMetrics,
)

STEPS = 1200
TOKENS_PER_STEP = 8192

PARAMS: dict[str, dict[str, Any]] = {
    "data": {"source": "shakespeare", "hub_path": "HuggingFaceFW/fineweb-edu"},
    "tokenizer": {"encoding": "bpe", "vocab_size": 4096},
    "model": {
        "init_from": "scratch",
        "block_size": 128,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 256,
        "position": "learned",
        "norm": "layernorm",
        "norm_placement": "pre",
        "mlp": "gelu_tanh",
    },
    "train": {
        "seed": 1,
        "total_batch_size": TOKENS_PER_STEP,
        "max_steps": STEPS,
        "optimizer": "adamw",
        "schedule": "cosine",
        "max_lr": 1e-3,
        "betas": [0.9, 0.95],
        "eval_interval": 200,
        "eval_tokens": 32_768,
        "benchmark_items": 100,
    },
    "benchmarks": {"tasks": ["next_lines"], "items": 400},
    "evaluate": {"stride": None},
    "sample": {"prompts": [None, "ROMEO\n", "To be, or not to be"], "temperature": 0.8, "seed": 1},
    "report": {"title": "GPT on Shakespeare's plays", "smoothing": 0.9},
}

PLAY = """ROMEO
But soft, what light through yonder window breaks?
It is the east, and Juliet is the sun.

JULIET
Ay me.
"""


def curves(steps: int = STEPS, seed: int = 1, floor: float = 3.4, accuracy: str = "next_lines") -> pd.DataFrame:
    """Curves of a run without problems: one row per step, validation every sixth of it."""
    random = np.random.default_rng(seed)
    step = np.arange(steps)
    loss = floor + 4.9 * np.exp(-step / (steps * 0.07 + 1)) + 0.5 * np.exp(-step / (steps * 0.5 + 1))
    loss = loss + random.normal(0, 0.06, steps)
    frame = pd.DataFrame(
        {
            "step": step,
            "tokens": (step + 1) * TOKENS_PER_STEP,
            "time_s": np.cumsum(np.full(steps, 0.135)),
            "train/loss": loss,
            "train/lr": 1e-3 * np.minimum((step + 1) / 60, 0.55 + 0.45 * np.cos(np.pi * step / max(steps, 1))),
            "train/grad_norm": 0.5 + 2 * np.exp(-step / 80) + np.abs(random.normal(0, 0.05, steps)),
            "train/tokens_per_sec": 61_000 + random.normal(0, 900, steps),
            "train/mfu": 0.41,
            "val/loss": np.nan,
            "val/bpb": np.nan,
            f"{accuracy}/acc": np.nan,
            f"{accuracy}/acc_norm": np.nan,
            f"{accuracy}/acc_norm_token": np.nan,
            "event": "",
        }
    )
    probes = sorted({*range(0, steps, max(steps // 6, 1)), steps - 1})
    frame.loc[probes, "val/loss"] = loss[probes] + 0.12
    frame.loc[probes, "val/bpb"] = (loss[probes] + 0.12) / 1.55
    return frame


def run_summary(**changes: Any) -> RunSummary:
    """summary.json; `changes` replace fields."""
    fields: dict[str, Any] = {
        "tokens": STEPS * TOKENS_PER_STEP,
        "flops": 262_000_000_000_000,
        "train_time_s": 161.3,
        "tokens_per_sec": 60_950.0,
        "mfu": 0.412,
        "params": {"model": PARAMS["model"], "train": PARAMS["train"]},
        "parameters": ParameterCounts(total=4_242_432, without_embeddings=3_161_088),
        "steps": STEPS,
        "wall_time_s": 173.9,
        "resumes": [],
        "skipped_steps": 0,
        "spikes": 0,
        "hardware": hardware(),
        "tokenizer": TokenizerInfo(name="bpe-4096", vocab_size=4096),
        "data": {name: split.size for name, split in manifest().splits.items()},
        "git": CodeRevision(revision=None, dirty=False),
        "wandb": TrackedRun(id="a1b2c3d4", name="brave-otter", mode="offline"),
    }
    return RunSummary(**fields | changes)


def hardware(**changes: Any) -> Hardware:
    """Where the run was computed."""
    fields: dict[str, Any] = {
        "device": "cpu",
        "device_name": "Intel Xeon Platinum 8481C",
        "world_size": 1,
        "cores": 2,
        "dtype": "bfloat16",
        "compile": True,
        "micro_batch_size": 64,
        "torch": "2.13.0",
        "python": "3.11.9",
    }
    return Hardware(**fields | changes)


def evaluation_metrics(task: str = "next_lines", **changes: Any) -> EvaluationMetrics:
    """evaluate's metrics.json; `changes` replace fields of the benchmark, or `val`."""
    val = ValidationMetrics(loss=3.587, perplexity=36.13, bpb=2.3142, tokens=61_299)
    is_hellaswag = task == "hellaswag"
    fields: dict[str, Any] = {
        "name": "HellaSwag" if is_hellaswag else "Next lines",
        "items": 10_042 if is_hellaswag else 400,
        "truncated": 0,
        "chance": 0.25,
        "acc": 0.2861,
        "acc_stderr": 0.0045 if is_hellaswag else 0.0226,
        "acc_norm": 0.3021 if is_hellaswag else 0.3425,
        "acc_norm_stderr": 0.0046 if is_hellaswag else 0.0238,
        "acc_norm_token": 0.2944 if is_hellaswag else 0.3350,
        "acc_norm_token_stderr": 0.0046 if is_hellaswag else 0.0236,
    }
    val = changes.pop("val", val)
    return EvaluationMetrics(val=val, benchmarks={task: BenchmarkMetrics(**fields | changes)})


def samples(**changes: Any) -> Samples:
    """samples.json; `changes` replace fields."""
    fields: dict[str, Any] = {
        "settings": SampleSettings(temperature=0.8, top_k=50, top_p=1.0, seed=1, max_new_tokens=200),
        "prompts": [
            PromptSamples(prompt=None, continuations=[PLAY, "Act II, Scene 2\n" + PLAY]),
            PromptSamples(prompt="ROMEO\n", continuations=["What, ho!\nApothecary!\n", "I dreamt a dream to-night.\n"]),
            PromptSamples(
                prompt="To be, or not to be", continuations=[", that is the question:\nWhether 'tis nobler\n"]
            ),
        ],
        "surprisal": Surprisal(
            text="KING\nThe telephone", tokens=[("KING", 6.0), ("\n", 3.5), ("The", 2.25), (" telephone", 11.2)]
        ),
    }
    return Samples(**fields | changes)


def manifest() -> Manifest:
    """data/shards/manifest.json."""
    return Manifest(
        format_version=2,
        tokenizer_name="bpe-4096",
        tokenizer_sha256="0" * 64,
        vocab_size=4096,
        eot_id=4095,
        dtype="uint16",
        shard_tokens=100_000_000,
        splits={
            "train": Split(tokens=1_362_511, documents=742, utf8_bytes=4_600_000, shards=[]),
            "val": Split(tokens=61_300, documents=33, utf8_bytes=205_000, shards=[]),
        },
    )


def lock(params: dict[str, Any], code: str = "1" * 32) -> dict[str, Any]:
    """The content of a dvc.lock; `code` is the hash of the model's code."""

    def stage(sections: list[str], deps: dict[str, str], outs: dict[str, int]) -> dict[str, Any]:
        return {
            "cmd": "python -m stages.x",
            "deps": [{"path": path, "hash": "md5", "md5": md5, "size": 10} for path, md5 in deps.items()],
            "params": {"params.yaml": {section: params[section] for section in sections}},
            "outs": [{"path": path, "hash": "md5", "md5": f"{size:032x}", "size": size} for path, size in outs.items()],
        }

    return {
        "schema": "2.0",
        "stages": {
            "tokenize": stage(["tokenizer"], {"stages/tokenize.py": "2" * 32}, {"data/shards": 2_848_000}),
            "train": stage(
                ["model", "train"],
                {"data/shards": "3" * 32, "pipeline/model/gpt.py": code},
                {"data/model": 17_100_000, "reports/train/curves.csv": 150_000},
            ),
            "evaluate": stage(["evaluate"], {"data/model": "4" * 32}, {"reports/evaluate/metrics.json": 420}),
            "sample": stage(["sample"], {"data/model": "4" * 32}, {"reports/sample/samples.json": 2_400}),
        },
    }


def write_yaml(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(value, file)


def write_run(
    root: Path,
    frame: pd.DataFrame | None = None,
    summary: RunSummary | None = None,
    metrics: EvaluationMetrics | None = None,
    drawn: Samples | None = None,
    training_samples: TrainingSamples | None = None,
) -> Path:
    """A whole run under `root`, outside Git; returns `root`. What is None is this module's."""
    frame = curves() if frame is None else frame
    (root / "reports/train").mkdir(parents=True)
    frame.to_csv(root / "reports/train/curves.csv", index=False, float_format="%.8g")
    (summary or run_summary()).write(root / "reports/train/summary.json")
    (metrics or evaluation_metrics()).write(root / "reports/evaluate/metrics.json")
    (drawn or samples()).write(root / "reports/sample/samples.json")
    (training_samples or TrainingSamples(samples=[])).write(root / "reports/train/samples.json")
    write_yaml(root / "params.yaml", PARAMS)
    write_yaml(root / "dvc.lock", lock(PARAMS))
    return root


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path, *paths: str) -> None:
    """Commits `paths` (all files without any); makes the repository first where there is none."""
    if not (root / ".git").exists():
        git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", *(paths or (".",)))
    git(root, "commit", "--quiet", "--message", "A run")
