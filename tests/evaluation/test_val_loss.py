"""Validation loss: every token once, the same for every batch and world size."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.corpus.shards import TokenStream
from pipeline.distributed import Group
from pipeline.evaluation.val_loss import ValLoss, validation_loss
from pipeline.log import UserError
from pipeline.model.gpt import GPT
from pipeline.progress import Progress
from tests.evaluation.small import ALONE, BYTES, documents, tiny_model, write_val_split
from tests.ranks import on_ranks


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    return write_val_split(tmp_path, documents())


def measure(
    model: GPT,
    stream: TokenStream,
    tokens: int | None = None,
    stride: int | None = None,
    batch_size: int = 4,
    group: Group = ALONE,
    progress: Progress | None = None,
) -> ValLoss:
    return validation_loss(
        model,
        stream,
        BYTES,
        tokens=tokens,
        stride=stride,
        batch_size=batch_size,
        dtype=torch.float32,
        group=group,
        progress=progress,
    )


def token_by_token(model: GPT, tokens: np.ndarray, block_size: int, stride: int) -> list[float]:
    """The definition: each token but the first, given the tokens before it in its window."""
    nats = []
    for index in range(1, len(tokens)):
        start = -(-max(0, index - block_size) // stride) * stride  # the first window that reaches this token
        idx = torch.from_numpy(tokens[start:index].astype(np.int64))[None]
        logits = model(idx)[0, -1].double()
        nats.append(float(F.cross_entropy(logits, torch.tensor(int(tokens[index])))))
    return nats


@pytest.mark.parametrize("stride", [None, 16, 5])
@torch.no_grad()
def test_the_loss_matches_its_definition_token_by_token(tmp_path: Path, stride: int | None) -> None:
    tokens = documents(1)[:75]
    model = tiny_model().eval()
    loss = measure(model, write_val_split(tmp_path, tokens), stride=stride)
    expected = token_by_token(model, tokens, 16, stride or 16)
    assert loss.tokens == len(expected) == 74
    assert loss.nats == pytest.approx(math.fsum(expected), rel=1e-6)


def test_batch_size_does_not_change_the_loss(stream: TokenStream) -> None:
    losses = [measure(tiny_model(), stream, batch_size=batch_size).nats for batch_size in (1, 3, 4, 64)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-7)


def _same_on_each_rank(group: Group, directory: Path, expected: ValLoss) -> None:
    stream = write_val_split(directory / str(group.rank), documents())
    progress = Progress("loss", total=len(stream) - 1, unit="tok")
    assert measure(tiny_model(), stream, group=group, progress=progress) == expected  # to the last bit
    assert not group.is_main or progress.done == progress.total


def test_two_ranks_give_the_same_loss_as_one_and_count_the_progress_of_both(tmp_path: Path) -> None:
    expected = measure(tiny_model(), write_val_split(tmp_path, documents()))
    on_ranks(2, _same_on_each_rank, tmp_path, expected)


def test_bytes_are_those_of_the_scored_text(stream: TokenStream) -> None:
    assert measure(tiny_model(), stream).utf8_bytes == stream.manifest.splits["val"].utf8_bytes
    prefix = measure(tiny_model(), stream, tokens=50)
    assert prefix.tokens == 50
    assert prefix.utf8_bytes == len(BYTES.decode_bytes(stream.read(1, 50).tolist()))  # no document ends in it


def test_end_of_text_is_scored_and_has_no_bytes(tmp_path: Path) -> None:
    tokens = np.array([256, 65, 256, 66, 256], np.uint16)
    loss = measure(tiny_model(), write_val_split(tmp_path, tokens))
    assert (loss.tokens, loss.utf8_bytes) == (4, 2)


def test_a_prefix_is_the_beginning_of_the_split(tmp_path: Path) -> None:
    whole, prefix = (write_val_split(tmp_path / str(n), documents()[:n]) for n in (len(documents()), 100))
    assert measure(tiny_model(), whole, tokens=99) == measure(tiny_model(), prefix)
    assert measure(tiny_model(), whole, tokens=10**9).tokens == len(whole) - 1


def test_an_untrained_model_is_uniform(stream: TokenStream) -> None:
    loss = measure(GPT(tiny_model().config), stream)
    assert loss.nats_per_token == pytest.approx(math.log(257), rel=0.01)
    assert loss.perplexity == pytest.approx(257, rel=0.05)
    assert loss.bits_per_byte == pytest.approx(loss.nats / math.log(2) / loss.utf8_bytes)


def test_padding_of_the_vocabulary_takes_no_probability(stream: TokenStream) -> None:
    model = tiny_model(tie_embeddings=False)
    before = measure(model, stream)
    with torch.no_grad():
        model.lm_head.weight[BYTES.n_vocab :] = 100.0
    assert measure(model, stream) == before


def test_measuring_leaves_the_model_and_the_random_state_alone(stream: TokenStream) -> None:
    model = tiny_model(dropout=0.5).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first = measure(model, stream)
    assert measure(model, stream) == first  # no dropout
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("count", [1, 0])
def test_a_split_with_nothing_to_score_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(UserError, match=f"val split of {count} tokens"):
        measure(tiny_model(), write_val_split(tmp_path, documents()[:count]))


def test_an_id_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    tokens = documents()
    tokens[150] = 300
    with pytest.raises(ValueError, match=r"val_000001\.npy.*300"):
        measure(tiny_model(), write_val_split(tmp_path, tokens))


def test_a_stride_beyond_the_context_is_refused(stream: TokenStream) -> None:
    with pytest.raises(UserError, match=r"evaluate\.stride \(17\).*16"):
        measure(tiny_model(), stream, stride=17)
