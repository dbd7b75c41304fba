"""HellaSwag speed, against the usual way: one item at a time, as four padded rows with all logits.

    python -m benchmarks.hellaswag hellaswag_val.jsonl --tokenizer data/shards/tokenizer --items 48

Both ways score the same items under both protocols, with the same random weights of GPT-2's 124M shape (or `--model`, a
model directory), and their answers are compared.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import tiktoken
import torch
import torch.nn.functional as F

from pipeline.corpus.benchmarks import Item, read_items, subset
from pipeline.corpus.tokenizer import load_tokenizer
from pipeline.distributed import autocast, start
from pipeline.evaluation.benchmarks import Answers, answer, answers_of, build_questions
from pipeline.evaluation.scoring import Request
from pipeline.model.config import gpt2_config
from pipeline.model.gpt import GPT
from pipeline.model_directory import load_model


@torch.no_grad()
def score_one_at_a_time(
    model: GPT, tokenizer: tiktoken.Encoding, items: Sequence[Item], dtype: torch.dtype, device: torch.device
) -> dict[str, Answers]:
    """The simple way, as in build-nanogpt's hellaswag.py; also the tests' reference. Items must fit the context.

    Returns the chosen endings by metric.
    """
    questions = build_questions("hellaswag", items, tokenizer)
    nats = [_four_rows(model, question.request, dtype, device).double() for question in questions]
    return answers_of([torch.stack((four, torch.zeros(4)), dim=1).numpy() for four in nats], questions)


def _four_rows(model: GPT, request: Request, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Summed nats of each ending, (4,): context and ending as a row, padded to the longest, all logits."""
    (context,) = request.contexts
    width = len(context) + max(len(ending) for ending in request.endings)
    idx = torch.zeros(len(request.endings), width, dtype=torch.int64)
    mask = torch.zeros_like(idx)
    for row, ending in enumerate(request.endings):
        end = len(context) + len(ending)
        idx[row, :end] = torch.tensor(context + ending)
        mask[row, len(context) : end] = 1
    idx, mask = idx.to(device), mask.to(device)
    with autocast(device, dtype):
        logits = model.logits(model.hidden(idx[:, :-1]))  # (4, T, V)
    nats = F.cross_entropy(logits.flatten(0, 1).float(), idx[:, 1:].flatten(), reduction="none").view(4, -1)
    return (nats * mask[:, 1:]).sum(dim=1).cpu()


def main() -> None:
    """Times both ways on the same items."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items_file", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("data/shards/tokenizer"))
    parser.add_argument("--model", type=Path, help="a model directory; default: random weights of 124M's shape")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()

    with start(timeout_s=600) as group:
        torch.manual_seed(1)
        model = load_model(args.model, group.device) if args.model else GPT(gpt2_config("gpt2")).to(group.device)
        tokenizer = load_tokenizer(args.tokenizer)
        items = subset(read_items(args.items_file, "hellaswag"), args.items)
        score_one_at_a_time(model, tokenizer, items[:2], torch.float32, group.device)  # warmup
        began = time.perf_counter()
        reference = score_one_at_a_time(model, tokenizer, items, torch.float32, group.device)
        slow = time.perf_counter() - began
        print(f"one at a time, float32: {len(items) / slow:.2f} items/s")
        for name in args.dtypes:
            dtype = getattr(torch, name)
            warmup, questions = (build_questions("hellaswag", some, tokenizer) for some in (items[:2], items))
            answer(model, warmup, batch_size=args.batch_size, dtype=dtype, group=group)
            began = time.perf_counter()
            result = answer(model, questions, batch_size=args.batch_size, dtype=dtype, group=group)
            fast = time.perf_counter() - began
            same = {metric: int((reference[metric] == chosen).sum()) for metric, chosen in result.answers.items()}
            print(
                f"shared contexts, {name}: {len(items) / fast:.2f} items/s, {slow / fast:.1f}x; "
                f"answers as in float32, of {len(items)}: {same}"
            )


if __name__ == "__main__":
    main()
