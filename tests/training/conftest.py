"""Small shards, params and runs for the tests of training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.artifacts import MANIFEST_FILE, Manifest, Shard, Split
from pipeline.corpus.shards import TokenStream, mask_file, open_split
from pipeline.corpus.tokenizer import bytes_tokenizer, fingerprint, save_tokenizer
from pipeline.distributed import Group
from pipeline.files import sha256_of
from pipeline.model.config import OFF, GPTConfig
from pipeline.model.gpt import GPT
from pipeline.runtime import RuntimeParams
from pipeline.training import trainer as trainer_module
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.metrics import Row
from pipeline.training.optim import learning_rate
from pipeline.training.parallel import is_sharded, to_local
from pipeline.training.params import TrainParams
from pipeline.training.trainer import Probe, Trainer

TRAIN = {
    "seed": 1,
    "shuffle": True,
    "document_mask": False,
    "total_batch_size": 128,
    "max_steps": 12,
    "optimizer": "adamw",
    "max_lr": 3e-3,
    "embedding_lr": None,
    "head_lr": None,
    "vector_lr": None,
    "momentum_warmup_steps": 0,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "cautious_decay": False,
    "grad_clip": 1.0,
    "max_skipped_steps": 2,
    "schedule": "cosine",
    "warmup_steps": 2,
    "min_lr_ratio": 0.1,
    "decay_fraction": 0.2,
    "eval_interval": 0,
    "eval_tokens": 64,
    "benchmark_interval": 0,
    "benchmark_items": 1,
    "sample_interval": 0,
    "keep": "last",
    "patience": None,
}
RUNTIME = {
    "attention": "sdpa",
    "micro_batch_size": 4,
    "dtype": "float32",
    "compile": "off",
    "deterministic": True,
    "resume": "auto",
    "sharding": "ddp",
    "activation_checkpointing": False,
    "checkpoint_interval": 5,
    "checkpoints_kept": 2,
    "milestone_interval": 0,
    "collective_timeout": 60.0,
    "workers": 1,
}
CONFIG = {
    "block_size": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_kv_head": None,
    "n_embd": 32,
    "dropout": 0.1,
    "bias": True,
    "position": "learned",
    "norm": "layernorm",
    "norm_placement": "pre",
    **OFF,
    "mlp": "gelu_tanh",
    "mlp_expansion": 4.0,
    "tie_embeddings": True,
    "init": "scaled",
    "vocab_size": 320,
    "text_vocab_size": 257,
}
ONE_RANK = Group(rank=0, world_size=1, device=torch.device("cpu"))


def write_shards(
    directory: Path,
    tokens: int = 2000,
    shard_tokens: int = 700,
    mask: Callable[[int], npt.NDArray[np.uint8]] | None = None,
) -> Path:
    """Shards of the bytes tokenizer with a learnable stream: each token mostly follows from the one before.

    `mask`: that of a stream with this many tokens; None: no masks.
    """
    tokenizer = bytes_tokenizer()
    save_tokenizer(tokenizer, directory / "tokenizer")
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, 257)
    splits = {}
    for split, length in (("train", tokens), ("val", tokens // 4)):
        stream = np.empty(length, dtype=np.uint16)
        stream[0] = tokenizer.eot_token
        for i in range(1, length):
            stream[i] = table[stream[i - 1]] if rng.random() < 0.8 else rng.integers(0, 256)
        shards = []
        for number, start in enumerate(range(0, length, shard_tokens)):
            file = directory / f"{split}_{number:06d}.npy"
            ids = stream[start : start + shard_tokens]
            np.save(file, ids)
            if mask is not None:
                np.save(mask_file(file), mask(length)[start : start + shard_tokens])
            mask_sha256 = None if mask is None else sha256_of(mask_file(file))
            shards.append(Shard(file=file.name, tokens=len(ids), sha256=sha256_of(file), mask_sha256=mask_sha256))
        splits[split] = Split(tokens=length, documents=1, utf8_bytes=length - 1, shards=shards)
    Manifest(
        format_version=Manifest.version,
        tokenizer_name=tokenizer.name,
        tokenizer_sha256=fingerprint(tokenizer),
        vocab_size=tokenizer.n_vocab,
        eot_id=tokenizer.eot_token,
        dtype="uint16",
        shard_tokens=shard_tokens,
        splits=splits,
    ).write(directory / MANIFEST_FILE)
    return directory


class MemoryLogger:
    """Keeps the rows that a trainer logs, as curves.csv would."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def rewind(self, step: int) -> None:
        self.rows = [row for row in self.rows if step and row["step"] <= step]

    def record(self, rows: list[Row]) -> None:
        self.rows += rows

    def flush(self) -> None:
        pass

    def curve(self) -> list[tuple[Any, ...]]:
        """What must be the same in two runs: all but the times."""
        return [(r["step"], r.get("train/loss"), r.get("train/lr"), r.get("train/grad_norm")) for r in self.rows]


def trainer(
    shards: Path,
    state: Path,
    log: MemoryLogger | None = None,
    group: Group = ONE_RANK,
    train: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    probes: tuple[Probe, ...] = (),
    code: dict[str, str] | None = None,
) -> Trainer:
    """A trainer of the small model, with some params changed."""
    params = TrainParams.model_validate({**TRAIN, **(train or {})})
    execution = RuntimeParams.model_validate({**RUNTIME, **(runtime or {})})
    torch.manual_seed(params.seed)
    sharded = is_sharded(execution.sharding, group) and not group.is_main
    with torch.device("meta" if sharded else "cpu"):
        model = GPT(GPTConfig.model_validate({**CONFIG, **(config or {})}))
    store = CheckpointStore(state, execution.checkpoints_kept, code or {})
    loggers = [log] if log is not None else []
    return Trainer(model, open_split(shards, "train"), params, execution, group, store, loggers, probes)


@contextmanager
def before_each_step(hook: Callable[[int], None]) -> Iterator[None]:
    """Calls `hook(step)` at the start of every training step, in this process."""

    def hooked(step: int, train: TrainParams) -> float:
        hook(step)
        return learning_rate(step, train)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "learning_rate", hooked)
        yield


def weights_of(trained: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


def state_of(trained: Trainer) -> list[torch.Tensor]:
    """Copies of this rank's weights and moments."""
    moments = [state["state"].values() for state in trained.optimizer.state_dict()]
    tensors = [*trained.model.state_dict().values(), *(t for states in moments for s in states for t in s.values())]
    return [to_local(tensor).clone() for tensor in tensors]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def stream(shards: Path) -> TokenStream:
    return open_split(shards, "train")
