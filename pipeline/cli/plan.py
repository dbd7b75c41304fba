"""Prints what a run will cost: time, memory per rank, tokens and FLOPs, parameters by component. Needs no torch.

    python -m pipeline plan
    python -m pipeline plan --ranks 8 --tokens-per-sec 1_400_000
    python -m pipeline plan --recipe gpt2-124m
    python -m pipeline plan --scaling reports/scaling.json       # and the loss, by the fit of `compare`

Reads params.yaml and, if they exist, data/shards/manifest.json (number of tokens) and reports/train/summary.json (speed
of the last run). Writes nothing.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import MANIFEST_FILE, Manifest, RunSummary, SplitSize
from pipeline.cli.arguments import positive_float, positive_int
from pipeline.config import PARAMS_FILE, load_yaml, validate
from pipeline.corpus.params import BenchmarkParams, TokenizerParams
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, TOKENIZER_FILE, TokenizerConfig, fingerprint
from pipeline.dvc_lock import differing, flat
from pipeline.formatting import format_bytes, format_duration, significant
from pipeline.log import UserError, logger
from pipeline.model.accounting import GPU_PEAKS, Memory, describe, flops_per_token, memory, parameters
from pipeline.model.config import GPT2_VOCAB_SIZE, GPTConfig, ModelParams
from pipeline.recipes import apply_recipe
from pipeline.runtime import RuntimeParams
from pipeline.training.params import TrainParams

if TYPE_CHECKING:
    from pipeline.comparison.scaling import ScalingFit

SHARDS, SUMMARY = Path("data/shards"), Path("reports/train/summary.json")
ITEM_TOKENS = 330  # of a HellaSwag item with GPT-2's tokenizer, mean: two protocols, context once and four endings
GPUS = ("A100", "H100")
USUAL_MFU = 0.4  # share of its peak that a GPU usually reaches with models of this kind
MIN_GPU_TIME_S = 60  # shorter runs are too small to reach that share: no estimate for them

Row = tuple[str, str, str]  # label, amount, remark


@dataclass(frozen=True)
class Plan:
    """What a run computes and what it needs."""

    config: GPTConfig
    train: TrainParams
    ranks: int
    micro_batch: int
    """Sequences per rank and forward pass."""
    sharded: bool
    """Whether the model is sharded over the ranks (FSDP)."""
    memory_per_rank: Memory
    split: SplitSize | None
    """The training split; None before it is tokenized."""

    @property
    def tokens(self) -> int:
        """Trained tokens, repetitions included."""
        return self.train.total_batch_size * self.train.max_steps

    @property
    def epochs(self) -> float | None:
        """How often training reads its split; of conversations, which are packed with padding, at most so often."""
        return self.tokens / self.split.tokens if self.split else None

    @property
    def flops(self) -> int:
        """FLOPs of training, without validation and samples."""
        return self.tokens * flops_per_token(self.config)


def read_params(
    values: Mapping[str, Any],
) -> tuple[ModelParams, TrainParams, RuntimeParams, TokenizerParams, BenchmarkParams]:
    """The sections that a plan needs, of all params. Raises ConfigError for invalid ones."""
    validate(values)
    return (
        ModelParams(**values["model"]),
        TrainParams(**values["train"]),
        RuntimeParams(**values["runtime"]),
        TokenizerParams(**values["tokenizer"]),
        BenchmarkParams(**values["benchmarks"]),
    )


def make_plan(
    model: ModelParams,
    train: TrainParams,
    runtime: RuntimeParams,
    text_vocab_size: int,
    split: SplitSize | None,
    ranks: int,
) -> Plan:
    """The plan on `ranks` ranks. Raises UserError if the batch cannot be divided among them."""
    config = GPTConfig.from_params(model, text_vocab_size)
    sequences, rest = divmod(train.total_batch_size, model.block_size * ranks)
    if rest:
        raise UserError(
            f"train.total_batch_size ({train.total_batch_size}) must be a multiple of "
            f"model.block_size ({model.block_size}) x ranks ({ranks})"
        )
    micro_batch = max(n for n in range(1, min(runtime.micro_batch_size, sequences) + 1) if sequences % n == 0)
    sharded = runtime.sharding == "fsdp" and ranks > 1
    memory_per_rank = memory(
        config,
        micro_batch,
        bfloat16=runtime.dtype != "float32",
        optimizer=train.optimizer,
        recompute=runtime.activation_checkpointing,
        shards=ranks if sharded else 1,
        accumulates=micro_batch < sequences,
    )
    return Plan(config, train, ranks, micro_batch, sharded, memory_per_rank, split)


def text_vocabulary(tokenizer: TokenizerParams, shards: Path) -> tuple[int, SplitSize | None]:
    """Ids of the tokenizer, and the size of the training split if there are shards of this tokenizer.

    Shards of conversations may have added the special tokens of a chat template to it.
    """
    sizes = {"bpe": tokenizer.vocab_size, "gpt2": GPT2_VOCAB_SIZE, "bytes": 257}
    sha256 = None
    if tokenizer.encoding in sizes:
        expected = sizes[tokenizer.encoding]
    else:
        from pipeline.corpus.vocabularies import stored_tokenizer

        stored = stored_tokenizer(tokenizer.encoding)
        expected, sha256 = stored.n_vocab, fingerprint(stored)
    try:
        manifest = Manifest.read(shards / MANIFEST_FILE)
        config = TokenizerConfig.read(shards / TOKENIZER_DIRECTORY / TOKENIZER_FILE)
    except (FileNotFoundError, UserError):
        return expected, None
    if sha256:
        same = sha256 in (manifest.tokenizer_sha256, config.extends)
    else:  # the name of a bpe tokenizer begins with bpe-
        ids = manifest.vocab_size - (len(config.special_tokens) - 1)
        same = manifest.tokenizer_name.partition("-")[0] == tokenizer.encoding and ids == expected
    if not same:
        return expected, None
    train = manifest.splits.get("train")
    return manifest.vocab_size, train.size if train else None


def last_run(summary: Path) -> RunSummary | None:
    """The last training run; None if there was none, or its summary cannot be read."""
    try:
        return RunSummary.read(summary)
    except (FileNotFoundError, UserError):
        return None


def flops_per_sec(run: RunSummary) -> float | None:
    """FLOP/s of a training run, over all its ranks; None if it did not measure its speed."""
    speed = run.tokens_per_sec * run.flops / max(run.tokens, 1)
    return speed if speed > 0 and math.isfinite(speed) else None


def model_rows(config: GPTConfig) -> Iterator[Row]:
    """Parameters by component."""
    counts = parameters(config)

    def share(count: int) -> str:
        return f"{100 * count / counts.total:.1f} %"

    padding = config.vocab_size - config.text_vocab_size
    padded = f", {padding} ids of padding" if padding else ""
    yield "token embedding", f"{counts.token_embedding:,}", share(counts.token_embedding) + padded
    yield (
        "position embedding",
        f"{counts.position_embedding:,}",
        f"{config.position}, {share(counts.position_embedding)}",
    )
    for label, per_block in (
        ("attention", counts.attention_per_block),
        ("MLP", counts.mlp_per_block),
        ("norms", counts.norms_per_block),
        *([("skips", counts.skips_per_block)] if counts.skips_per_block else []),
    ):
        count = counts.blocks * per_block
        yield label, f"{count:,}", f"{counts.blocks} x {per_block:,}, {share(count)}"
    yield "norms outside", f"{counts.outer_norms:,}", "of the embeddings, final" if config.embedding_norm else "final"
    yield "head", f"{counts.head:,}", "tied to the token embedding" if config.tie_embeddings else share(counts.head)
    yield "parameters", f"{counts.total:,}", f"{counts.without_embeddings:,} without embeddings"


def run_rows(plan: Plan) -> Iterator[Row]:
    """Steps, tokens and FLOPs."""
    tokens_per_step, block_size = plan.train.total_batch_size, plan.config.block_size
    yield "tokens per step", f"{tokens_per_step:,}", f"{tokens_per_step // block_size:,} sequences of {block_size:,}"
    yield "steps", f"{plan.train.max_steps:,}", f"{plan.train.warmup_steps:,} of warmup"
    remark = f"{plan.tokens / parameters(plan.config).total:.1f} per parameter"
    if plan.split:
        most = "" if plan.split.counted is None else "at most "
        remark += f", {most}{plan.epochs:.2f} epochs of {plan.split.tokens:,}"
    yield "tokens", f"{plan.tokens:,}", remark
    yield "FLOPs per token", f"{flops_per_token(plan.config):.3g}", "6N + 12 n_layer n_embd block_size"
    yield "FLOPs", f"{plan.flops:.3g}", ""


def memory_rows(plan: Plan) -> Iterator[Row]:
    """Bytes on each rank."""
    need = plan.memory_per_rank
    micro_batches = plan.train.total_batch_size // (plan.config.block_size * plan.ranks * plan.micro_batch)
    yield "weights", format_bytes(need.weights), f"1/{plan.ranks}, and the gathered blocks" if plan.sharded else ""
    yield "gradients", format_bytes(need.gradients), ""
    yield "optimizer", format_bytes(need.optimizer), ""
    micro_batch = f"micro-batch of {plan.micro_batch} sequences, {micro_batches} per step"
    yield "activations", format_bytes(need.activations), micro_batch
    yield "total", format_bytes(need.total), "at least; torch.compile keeps fewer activations"


def time_rows(plan: Plan, tokens_per_sec: float | None, last_run: RunSummary | None) -> Iterator[Row]:
    """Training time at the given tokens/s; if None, on common GPUs, and as the last run if it had as many ranks."""
    if tokens_per_sec is not None:
        yield "at the given speed", format_duration(plan.tokens / tokens_per_sec), f"{tokens_per_sec:,.0f} tokens/s"
        return
    speeds = {}
    for name in GPUS:
        speed = plan.ranks * GPU_PEAKS[name] * USUAL_MFU
        if plan.flops / speed >= MIN_GPU_TIME_S:
            speeds[f"{plan.ranks} x {name}"] = (speed, f"if it reaches {USUAL_MFU:.0%} of its peak: ")
    if last_run and last_run.hardware.world_size == plan.ranks and (measured := flops_per_sec(last_run)):
        speeds["as the last run"] = (measured, f"on {last_run.hardware.describe()}: ")
    for label, (speed, remark) in speeds.items():
        rate = (
            f"{significant(speed / flops_per_token(plan.config), 3)} tokens/s, {significant(speed / 1e12, 3)} TFLOP/s"
        )
        yield label, format_duration(plan.flops / speed), remark + rate
    if not speeds:
        yield "unknown", "", "no run yet: give --tokens-per-sec"


def probe_row(plan: Plan, benchmarks: BenchmarkParams) -> Row:
    """FLOPs of the probes, forward passes only and without rescoring, as a share of training's. Samples: next to none.

    Items count as HellaSwag's: those of other tasks have fewer tokens.
    """
    train = plan.train
    items = min(train.benchmark_items, benchmarks.items or train.benchmark_items) if benchmarks.tasks else 0

    def share(interval: int, tokens: int) -> float:
        times = 1 + math.ceil(train.max_steps / interval) if interval else 0  # at step 0, and at the end
        return times * tokens / (3 * plan.tokens)  # a forward pass is a third of a training step

    val, choice = share(train.eval_interval, train.eval_tokens), share(train.benchmark_interval, items * ITEM_TOKENS)
    remark = f"validation loss {val:.1%}"
    if items:
        remark += f", {benchmarks.tasks[0]} {choice:.1%} ({items:,} items)"
    return "probes add", f"{val + choice:.1%}", remark


def loss_rows(plan: Plan, fit: "ScalingFit", params: Mapping[str, Any]) -> Iterator[Row]:
    """The validation loss that a scaling law predicts, or why it cannot, and in what the run differs from the fit's.

    `params`: all settings as dotted keys.
    """
    from pipeline.comparison.scaling import EXTRAPOLATION, recipe

    known = {key: value for key, value in recipe(params).items() if key in fit.recipe}  # new keys are off by default
    differences = differing(fit.recipe, known)
    other_text = [key for key, _, _ in differences if key.startswith(("data.", "tokenizer."))]
    size = parameters(plan.config).total
    if other_text:
        yield "validation loss", "unknown", f"the fit is for other data or another tokenizer: {', '.join(other_text)}"
    elif beyond := fit.beyond(size, plan.tokens):
        yield (
            "validation loss",
            "unknown",
            f"{beyond}: more than {EXTRAPOLATION} times outside the range of the fitted runs",
        )
    else:
        loss, low, high = fit.predict(size, plan.tokens)
        yield "validation loss", f"{loss:.3f}", f"{low:.3f} to {high:.3f} (95 % interval)"
        for key, before, after in differences:
            yield "warning", "", f"{key} is {after}; the fitted runs have {before}"
        epochs = max(point.epochs for point in fit.points)
        if plan.epochs and plan.epochs > max(epochs, 1):
            yield "warning", "", f"more repetition of the text than in the fitted runs ({epochs:.2f} epochs)"


def table(sections: dict[str, list[Row]]) -> str:
    """Sections of rows as aligned text."""
    rows = [row for section in sections.values() for row in section]
    label_width, amount_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = []
    for title, section in sections.items():
        lines += ["", title]
        for label, amount, remark in section:
            lines.append(f"  {label:<{label_width}}  {amount:>{amount_width}}  {remark}".rstrip())
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline plan", description="What a run of params.yaml costs.")
    parser.add_argument("--recipe", metavar="NAME", help="plan recipes/NAME.yaml applied over params.yaml")
    parser.add_argument("--ranks", type=positive_int, default=1, help="processes, one per GPU (default: 1)")
    parser.add_argument("--tokens-per-sec", type=positive_float, help="speed over all ranks, for the time estimate")
    parser.add_argument(
        "--scaling", type=Path, metavar="FILE", help="predict the loss from a scaling.json of `compare`"
    )
    options = parser.parse_args(arguments)
    values = apply_recipe(options.recipe).values if options.recipe else load_yaml(PARAMS_FILE)
    model, train, runtime, tokenizer, benchmarks = read_params(values)
    vocabulary, split = text_vocabulary(tokenizer, SHARDS)
    plan = make_plan(model, train, runtime, vocabulary, split, options.ranks)
    sections = {
        "Training time": [
            *time_rows(plan, options.tokens_per_sec, last_run(SUMMARY)),
            probe_row(plan, benchmarks),
        ],
        "Memory" if plan.ranks == 1 else f"Memory of each of {plan.ranks} ranks": list(memory_rows(plan)),
        "Run": list(run_rows(plan)),
        "Model": list(model_rows(plan.config)),
    }
    if options.scaling:
        from pipeline.comparison.scaling import ScalingFit

        fit = ScalingFit.parse(options.scaling.read_bytes(), str(options.scaling))
        sections["Loss"] = list(loss_rows(plan, fit, flat(values)))
    params = f"recipe {options.recipe}" if options.recipe else "params.yaml"
    ranks = f"{plan.ranks} rank{'s' * (plan.ranks != 1)}"
    logger.info("%s on %s: %s\n%s", params, ranks, describe(plan.config), table(sections))
