"""Probes of the training loop besides the validation loss: benchmark accuracy and samples.

Probes only read the model, and leave its mode and the random state as they were. So the train stage does not list this
module, or what it imports, among its deps; a test compares the weights with and without them.
"""

import textwrap
from pathlib import Path

import tiktoken

from pipeline.artifacts import SOURCE_FILE, BenchmarkSource, SampleSettings
from pipeline.config import read_sections
from pipeline.corpus.benchmarks import TASKS, items_file, read_items, subset
from pipeline.corpus.chat import load_chat, prompt_ids, prompt_text
from pipeline.distributed import Group, autocast_dtype
from pipeline.evaluation.benchmarks import answer, build_questions
from pipeline.generation.params import SampleParams
from pipeline.generation.sampling import generate
from pipeline.log import logger
from pipeline.model.gpt import GPT
from pipeline.runtime import RuntimeParams
from pipeline.training.metrics import Row
from pipeline.training.params import TrainParams
from pipeline.training.trainer import Probe

SAMPLE_TOKENS = 60  # at most, of a sample during training


def training_probes(
    train: TrainParams,
    runtime: RuntimeParams,
    group: Group,
    tokenizer: tiktoken.Encoding,
    tokenizer_directory: Path,
    benchmarks: Path,
) -> list[Probe]:
    """The probes that the `train` section asks for, the same on every rank. Each uses the code of a later stage."""
    (sample,) = read_sections(SampleParams)
    chat = load_chat(tokenizer_directory, tokenizer)
    dtype, batch_size = autocast_dtype(runtime.dtype, group.device), runtime.micro_batch_size

    def draw_sample(model: GPT, step: int) -> Row:
        """The beginning of a continuation of the first non-empty prompt, on rank 0."""
        if not group.is_main:
            return {}
        prompt = next((prompt for prompt in sample.prompts if prompt), None)
        fields = sample.model_dump(include=set(SampleSettings.model_fields))
        fields["max_new_tokens"] = min(sample.max_new_tokens, SAMPLE_TOKENS)
        settings = SampleSettings(**fields)
        prompts, eot_id = [prompt_ids(tokenizer, chat, prompt)], chat.end_id if chat else tokenizer.eot_token
        ((tokens,),) = generate(model, prompts, settings, eot_id=eot_id, dtype=dtype, samples_per_prompt=1)
        text = (prompt_text(chat, prompt) or "") + tokenizer.decode(tokens)
        logger.info("step %d: sample\n%s", step, textwrap.indent(text.rstrip(), "  | ", lambda _: True))
        return {"sample": text}

    probes = [Probe(train.sample_interval, draw_sample)]
    if not train.benchmark_interval:
        return probes
    if (task := first_task(benchmarks)) is None:
        logger.info("%s has no items: no benchmark is measured during training", benchmarks)
        return probes
    items = subset(read_items(items_file(benchmarks, task), task), train.benchmark_items)
    questions = build_questions(task, items, tokenizer)
    name = TASKS[task].name

    def benchmark(model: GPT, step: int) -> Row:
        """Accuracy on a fixed subset of the first benchmark's items."""
        result = answer(model, questions, batch_size=batch_size, dtype=dtype, group=group).metrics(task)
        accuracy, error = result.value(result.main)
        logger.info("step %d: %s %s %.3f ± %.3f on %d items", step, name, result.main, accuracy, error, result.items)
        return {f"{task}/{metric}": result.value(metric)[0] for metric in result.metrics}

    return [*probes, Probe(train.benchmark_interval, benchmark)]


def first_task(benchmarks: Path) -> str | None:
    """The first task of data/benchmarks, which is measured during training; None without items."""
    if not (benchmarks / SOURCE_FILE).is_file():
        return None
    return next(iter(BenchmarkSource.read(benchmarks / SOURCE_FILE).tasks), None)


def benchmark_columns(benchmarks: Path) -> tuple[str, ...]:
    """The columns of curves.csv that the benchmark's probe fills; none without its items."""
    task = first_task(benchmarks)
    return () if task is None else tuple(f"{task}/{metric}" for metric in TASKS[task].metrics)
