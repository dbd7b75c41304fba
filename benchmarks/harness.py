"""Compares HellaSwag answers with those of lm-evaluation-harness, item by item, without a network.

    python -m benchmarks.harness hellaswag_val.jsonl --model data/model --items 1000

Needs the development dependencies lm-eval, transformers and accelerate. The model directory is exported as a Hugging
Face GPT-2, and the harness's own task reads that and the same items. Prints how many answers differ for each metric.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.corpus.benchmarks import Item, read_items, subset
from pipeline.corpus.tokenizer import load_tokenizer
from pipeline.distributed import start
from pipeline.evaluation.benchmarks import Answers, answer, build_questions
from pipeline.huggingface.export import export_model
from pipeline.model_directory import TOKENIZER_DIRECTORY, load_model

METRICS = ("acc", "acc_norm")


def harness_is_right(exported: Path, items: Sequence[Item], batch_size: int = 8) -> dict[str, Answers]:
    """Metric -> (n,): 1 where the harness counts the item as correct, else 0.

    `exported`: a Hugging Face model directory with its tokenizer.
    """
    # Set before datasets and transformers are imported: nothing here needs a network.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.hellaswag.utils import process_docs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "items.jsonl"
        file.write_text("".join(json.dumps(item.model_dump()) + "\n" for item in items), encoding="utf-8")
        task = {  # lm_eval/tasks/hellaswag/hellaswag.yaml, reading a local file
            "task": "hellaswag_local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(file)}, "cache_dir": folder},
            "output_type": "multiple_choice",
            "validation_split": "validation",
            "process_docs": process_docs,
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{label}}",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in METRICS],
        }
        model = HFLM(pretrained=str(exported), dtype="float32", device="cpu", batch_size=batch_size)
        results = simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=True)
    samples = sorted(results["samples"]["hellaswag_local"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(items)
    return {metric: np.array([int(sample[metric]) for sample in samples]) for metric in METRICS}


def main() -> None:
    """Exports the model, scores with both, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items_file", type=Path)
    parser.add_argument("--model", type=Path, default=Path("data/model"))
    parser.add_argument("--items", type=int, help="size of a fixed subset (default: all)")
    args = parser.parse_args()

    items = subset(read_items(args.items_file, "hellaswag"), args.items)
    model = load_model(args.model)
    tokenizer = load_tokenizer(args.model / TOKENIZER_DIRECTORY)
    with start(timeout_s=600) as group, tempfile.TemporaryDirectory() as folder:
        here = answer(
            model, build_questions("hellaswag", items, tokenizer), batch_size=16, dtype=torch.float32, group=group
        )
        exported = Path(folder) / "model"
        export_model(model, args.model / TOKENIZER_DIRECTORY, exported)
        harness = harness_is_right(exported, items)
    for metric in METRICS:
        correct = here.answers[metric] == here.labels
        print(
            f"{metric}: here {correct.mean():.4f}, harness {harness[metric].mean():.4f}; "
            f"{int((correct != harness[metric]).sum())} of {len(items)} items differ"
        )


if __name__ == "__main__":
    main()
