"""How fast HellaSwag is scored, against the usual way: one item at a time, as four padded rows with full logits.

    python -m benchmarks.hellaswag hellaswag_val.jsonl --encoding data/shards/encoding --items 48

Both ways score the same items, under both protocols, with the same random weights of GPT-2's 124M shape (or `--model`,
a model directory), on the same machine; the answers of the two are compared.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn.functional as F

from pipeline.corpus import encodings
from pipeline.corpus.hellaswag_items import Item, read_items
from pipeline.distributed import autocast, start
from pipeline.evaluation.hellaswag import HellaswagResult, answers_of, score_items, subset
from pipeline.evaluation.protocols import PROTOCOLS, Question, ask
from pipeline.model.config import gpt2_config
from pipeline.model.files import load_model
from pipeline.model.gpt import GPT


@torch.no_grad()
def score_one_at_a_time(
    model: GPT, encoding: tiktoken.Encoding, items: Sequence[Item], dtype: torch.dtype, device: torch.device
) -> HellaswagResult:
    """The simple way, in the manner of build-nanogpt's hellaswag.py; right, and the reference of the tests too.

    No item may be longer than the context.
    """
    questions = {protocol: [ask(item, protocol, encoding) for item in items] for protocol in PROTOCOLS}
    nats = {
        protocol: torch.stack([_four_rows(model, question, dtype, device) for question in asked]).double().numpy()
        for protocol, asked in questions.items()
    }
    return HellaswagResult(np.array([item.label for item in items]), answers_of(nats, questions), truncated=0)


def _four_rows(model: GPT, question: Question, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Summed nats of each ending, (4,): context and ending as a row, padded to the longest, all logits."""
    width = len(question.context) + max(len(ending) for ending in question.endings)
    idx = torch.zeros(len(question.endings), width, dtype=torch.int64)
    counts = torch.zeros_like(idx)
    for row, ending in enumerate(question.endings):
        end = len(question.context) + len(ending)
        idx[row, :end] = torch.tensor(question.context + ending)
        counts[row, len(question.context) : end] = 1
    idx, counts = idx.to(device), counts.to(device)
    with autocast(device, dtype):
        logits = model.logits(model.hidden(idx[:, :-1]))  # (4, T, V)
    nats = F.cross_entropy(logits.flatten(0, 1).float(), idx[:, 1:].flatten(), reduction="none").view(4, -1)
    return (nats * counts[:, 1:]).sum(dim=1).cpu()


def main() -> None:
    """Times both ways on the same items."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items_file", type=Path)
    parser.add_argument("--encoding", type=Path, default=Path("data/shards/encoding"))
    parser.add_argument("--model", type=Path, help="a model directory; default: random weights of 124M's shape")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()

    with start(timeout_s=600) as group:
        torch.manual_seed(1)
        model = load_model(args.model, group.device) if args.model else GPT(gpt2_config("gpt2")).to(group.device)
        encoding = encodings.load(args.encoding)
        items = subset(read_items(args.items_file), args.items)
        # The first items warm up both ways.
        score_one_at_a_time(model, encoding, items[:2], torch.float32, group.device)
        exact, slowest = timed(lambda: score_one_at_a_time(model, encoding, items, torch.float32, group.device))
        print(f"one at a time, float32: {len(items) / slowest:.2f} items/s")
        for name in args.dtypes:
            dtype = getattr(torch, name)
            score_items(model, encoding, items[:2], batch_size=args.batch_size, dtype=dtype, group=group)
            fast, taken = timed(
                functools.partial(
                    score_items, model, encoding, items, batch_size=args.batch_size, dtype=dtype, group=group
                )
            )
            same = {metric: int((exact.answers[metric] == fast.answers[metric]).sum()) for metric in fast.answers}
            print(
                f"shared contexts, {name}: {len(items) / taken:.2f} items/s, {slowest / taken:.1f}x; "
                f"answers as in float32, of {len(items)}: {same}"
            )


def timed(work: Callable[[], HellaswagResult]) -> tuple[HellaswagResult, float]:
    """A result, and the seconds that it took."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


if __name__ == "__main__":
    main()
