"""Compares answers with those of lm-evaluation-harness, item by item, without a network.

    python -m benchmarks.harness items/hellaswag.jsonl items/piqa.jsonl --model data/model --items 1000

Each file is named after its task, as in benchmarks.directory. Needs the development dependencies lm-eval, transformers
and accelerate. The model directory is exported as a Hugging Face GPT-2, and the harness's own task reads
that and the same items. Prints how many items differ for each metric.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.corpus.benchmarks import TASKS, Item, read_items, subset
from pipeline.corpus.tokenizer import load_tokenizer
from pipeline.distributed import start
from pipeline.evaluation.benchmarks import answer, build_questions
from pipeline.huggingface.export import export_model
from pipeline.model_directory import TOKENIZER_DIRECTORY, load_model

Values = npt.NDArray[np.float64]


def harness_values(exported: Path, task: str, items: Sequence[Item], batch_size: int = 8) -> dict[str, Values]:
    """Metric -> (n,): 1 where the harness counts the item as correct, else 0; of perplexity the log-likelihood.

    `exported`: a Hugging Face model directory with its tokenizer.
    """
    # Set before datasets and transformers are imported: nothing here needs a network.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    name = {"lambada": "lambada_openai"}.get(task, task)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "items.jsonl"
        file.write_text("".join(json.dumps(item.model_dump()) + "\n" for item in items), encoding="utf-8")
        config = {  # the harness's task, reading a local file
            **load_yaml(TaskManager().task_index[name].yaml_path),
            "task": f"{name}_local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"validation": str(file)}, "cache_dir": folder},
            "training_split": None,
            "validation_split": "validation",
            "test_split": None,
        }
        config.pop("tag", None)
        model = HFLM(pretrained=str(exported), dtype="float32", device="cpu", batch_size=batch_size)
        results = simple_evaluate(model=model, tasks=[config], bootstrap_iters=0, log_samples=True)
    samples = sorted(results["samples"][f"{name}_local"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(items)
    metrics = [metric for metric in TASKS[task].metrics if metric in samples[0]]
    return {metric: np.array([float(sample[metric]) for sample in samples]) for metric in metrics}


def main() -> None:
    """Exports the model, scores with both, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items_files", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=Path("data/model"))
    parser.add_argument("--items", type=int, help="size of a fixed subset (default: all)")
    args = parser.parse_args()

    model = load_model(args.model)
    tokenizer = load_tokenizer(args.model / TOKENIZER_DIRECTORY)
    with start(timeout_s=600) as group, tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model"
        export_model(model, args.model / TOKENIZER_DIRECTORY, exported)
        for file in args.items_files:
            task = file.stem
            items = subset(read_items(file, task), args.items)
            questions = build_questions(task, items, tokenizer)
            here = answer(model, questions, batch_size=16, dtype=torch.float32, group=group)
            for metric, values in harness_values(exported, task, items).items():
                if metric == "perplexity":
                    assert here.nats is not None
                    print(f"{task} log-likelihoods: at most {np.abs(here.nats + values).max():.1e} nats apart")
                    continue
                correct = here.answers[metric] == here.labels
                print(
                    f"{task} {metric}: here {correct.mean():.4f}, harness {values.mean():.4f}; "
                    f"{int((correct != values).sum())} of {len(items)} items differ"
                )


if __name__ == "__main__":
    main()
