"""The loss of conversations: the mean over the positions of a step that count, for any ranks and micro-batches; and how
conversations are packed into blocks."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import COUNTS, STARTS
from pipeline.corpus.shards import open_split
from pipeline.model.gpt import GPT, IGNORE_INDEX
from pipeline.runtime import RuntimeParams
from pipeline.training.data_loader import Loader, pack
from pipeline.training.params import TrainParams
from tests.ranks import on_ranks
from tests.training.conftest import ONE_RANK, RUNTIME, TRAIN, MemoryLogger, same, trainer, weights_of, write_shards
from tests.training.test_loader import loader_of
from tests.training.test_ranks import on_one_rank, train_and_save
from tests.training.test_trainer import stop_after_step_7

BLOCK = 16
ONE_STEP: dict[str, Any] = {"max_steps": 1, "document_mask": True}


def ragged(tokens: int) -> npt.NDArray[np.uint8]:
    """Documents of 3 to 25 tokens, of which few, none or all count."""
    mask, rng = np.zeros(tokens, np.uint8), np.random.default_rng(3)
    start = 0
    while start < tokens:
        length = int(rng.integers(3, 26))
        mask[start : start + length] = rng.random(len(mask[start : start + length])) < rng.choice([0.0, 0.1, 1.0])
        mask[start] = STARTS
        start += length
    return mask


def all_ones(tokens: int) -> npt.NDArray[np.uint8]:
    """One document, all of which counts."""
    mask = np.full(tokens, COUNTS, np.uint8)
    mask[0] |= STARTS
    return mask


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("masked"), mask=ragged)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=40), st.integers(2, 30))
def test_blocks_hold_whole_documents_where_they_fit(lengths: list[int], block_size: int) -> None:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    blocks = pack(starts, int(ends[-1]), block_size)
    assert all(2 <= end - begin <= block_size + 1 for begin, end in blocks)
    for start, end in zip(starts, ends, strict=True):
        inside = [block for block in blocks if block[0] < end and start < block[1]]
        if end - start <= block_size + 1:  # whole, in one block
            assert len(inside) == 1
        else:  # every token but the first is once a target
            targets = [token for begin, stop in inside for token in range(max(begin, start) + 1, min(stop, end))]
            assert targets == list(range(start + 1, end))
    cut = {int(end) for end in blocks[:, 1]} - {int(end) for end in ends}
    assert all(any(s < c < e and e - s > block_size + 1 for s, e in zip(starts, ends, strict=True)) for c in cut)


def by_hand(model: GPT, shards: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the first step, document by document, from logits and log-softmax; and the mean of row means."""
    loader = loader_of(open_split(shards, "train"), 8, 8)
    stream, blocks = open_split(shards, "train"), loader.blocks
    assert blocks is not None
    inputs = next(iter(loader.micro_batches(0))).inputs
    loader.close()
    nats, means = [], []
    for row in inputs:
        (block,) = [b for b in blocks if stream.read(b[0], b[1] - b[0])[:BLOCK].tolist() == row[: b[1] - b[0]].tolist()]
        tokens = torch.from_numpy(stream.read(block[0], block[1] - block[0]).astype(np.int64))
        mask = stream.mask(block[0], block[1] - block[0])
        bounds = [0, *(np.flatnonzero(mask[1:] & STARTS) + 1).tolist(), len(tokens)]
        of_row = []
        for begin, end in pairwise(bounds):
            if (length := min(end, BLOCK) - begin) < 1:
                continue
            logits = model.logits(model.hidden(tokens[None, begin : begin + length]))[0, :, :257]
            for index in range(begin, begin + length):
                if index + 1 < len(tokens) and mask[index + 1] & COUNTS:
                    of_row.append(-F.log_softmax(logits[index - begin], dim=-1)[tokens[index + 1]])
        nats += of_row
        if of_row:
            means.append(torch.stack(of_row).mean())
    return torch.stack(nats).mean(), torch.stack(means).mean()


@pytest.mark.parametrize(
    ("world", "micro", "sharding"), [(1, 1, "ddp"), (1, 8, "ddp"), (2, 1, "ddp"), (2, 4, "ddp"), (2, 2, "fsdp")]
)
def test_the_loss_is_the_mean_over_the_counted_positions_of_the_step(
    masked: Path, tmp_path: Path, world: int, micro: int, sharding: str
) -> None:
    """Against a computation by hand on ragged batches: the loss and the norm of its gradient."""
    model = trainer(masked, tmp_path / "reference", config={"dropout": 0.0}).model
    loss, mean_of_means = by_hand(model, masked)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert abs((loss - mean_of_means).item()) > 1e-3  # averaging the means of rows would be wrong
    options = {"runtime": {"micro_batch_size": micro, "sharding": sharding}, "train": ONE_STEP}
    on_ranks(world, train_and_save, masked, tmp_path, tmp_path / "state", options)
    ((step, logged, _, logged_norm),) = torch.load(tmp_path / "curve.pt")
    assert (step, logged) == (1, pytest.approx(loss.item(), rel=1e-5))
    assert logged_norm == pytest.approx(float(norm), rel=1e-4)


def test_micro_batches_without_counted_positions_do_not_count(tmp_path: Path) -> None:
    """Nor do they make the loss NaN."""
    shards = write_shards(tmp_path / "s", mask=lambda tokens: COUNTS * (np.arange(tokens) % 300 == 1).astype(np.uint8))
    loader = loader_of(open_split(shards, "train"), 8, 1)
    batches = list(loader.micro_batches(0))
    loader.close()
    empty = [batch for batch in batches if batch.divisor == np.inf]
    assert len(empty) > 0
    assert all(bool((batch.targets != IGNORE_INDEX).all()) for batch in empty)
    log = MemoryLogger()
    trainer(shards, tmp_path / "state", log, runtime={"micro_batch_size": 1}).run()
    assert all(np.isfinite(row["train/loss"]) and row["event"] == "" for row in log.rows)


def test_a_document_mask_tells_the_documents_of_a_text_apart(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, tokens=BLOCK * 8 + 1)
    tokens = np.load(shards / "train_000000.npy")
    tokens[[3, 9, BLOCK + 5]] = tokens[0]  # end of text
    np.save(shards / "train_000000.npy", tokens)
    stream = open_split(shards, "train")
    train = TrainParams.model_validate({**TRAIN, "shuffle": False, "document_mask": True})
    loader = Loader(stream, BLOCK, train, RuntimeParams.model_validate({**RUNTIME, "micro_batch_size": 8}), ONE_RANK)
    (batch,) = loader.micro_batches(0)
    loader.close()
    assert batch.divisor == 1
    assert (batch.targets >= 0).all()
    assert batch.documents is not None
    starts = batch.inputs == stream.manifest.eot_id
    assert starts[0].nonzero().flatten().tolist() == [0, 3, 9]
    assert torch.equal(batch.documents, starts.cumsum(dim=1))


@pytest.mark.parametrize("micro", [1, 3])
def test_a_mask_of_ones_changes_no_bit(tmp_path: Path, micro: int) -> None:
    options: dict[str, Any] = {"runtime": {"micro_batch_size": micro}, "train": {"total_batch_size": BLOCK * 6}}
    runs = []
    for name, mask in (("without", None), ("with", all_ones)):
        shards = write_shards(tmp_path / name, tokens=BLOCK * 100 + 1, mask=mask)
        runs.append(on_one_rank(shards, tmp_path / f"{name}-state", **options))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_a_run_on_conversations_resumes_bit_for_bit(masked: Path, tmp_path: Path) -> None:
    train = {"document_mask": True}
    whole = trainer(masked, tmp_path / "whole", train=train)
    whole.run()
    stop_after_step_7(masked, tmp_path / "stopped", train=train)
    resumed = trainer(masked, tmp_path / "stopped", train=train)
    resumed.run()
    assert [resume.step for resume in resumed.metrics.stats.resumes] == [5]
    assert same(weights_of(whole), weights_of(resumed))
