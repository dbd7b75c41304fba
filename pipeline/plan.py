"""What the current params.yaml will cost, before it runs: python -m pipeline.plan

Prints one table: parameters by component, tokens and FLOPs of the run, memory on each rank, and the time it takes at
the rate of the last run, on common GPUs, or at a rate that is given:

    python -m pipeline.plan --ranks 8 --tokens-per-sec 1_400_000
    python -m pipeline.plan --recipe gpt2-124m

Reads params.yaml and, where they exist, data/shards/manifest.json (how many tokens there are) and
reports/train/summary.json (how fast the last run was). Writes nothing; needs no torch.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import read_sections
from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.shards import Manifest
from pipeline.files import read_json
from pipeline.log import clear_errors, logger
from pipeline.model.accounting import Memory, describe, flops_per_token, memory, parameters
from pipeline.model.config import GPT2_VOCAB_SIZE, GPTConfig, ModelParams
from pipeline.progress import format_duration
from pipeline.recipe import laid_over
from pipeline.runtime import RuntimeParams
from pipeline.training.params import TrainParams

SHARDS, SUMMARY = Path("data/shards"), Path("reports/train/summary.json")

# Dense bfloat16 peaks in FLOP/s, from the data sheets, and the share of it that a GPT of this kind commonly reaches.
GPU_PEAKS = {"A100": 312e12, "H100": 989e12}
USUAL_MFU = 0.4
SHORTEST_S = 60  # a shorter run never gets a GPU to that share: nothing is said of it

Row = tuple[str, str, str]  # what, how much, remark


@dataclass(frozen=True)
class Plan:
    """What a run computes and what it needs."""

    config: GPTConfig
    tokens_per_step: int
    steps: int
    ranks: int
    micro_batch: int
    """Sequences per rank and forward pass."""
    sharded: bool
    """Whether the ranks share the model out."""
    memory_per_rank: Memory
    train_tokens: int | None
    """Tokens of the training split; None where it is not made yet."""

    @property
    def tokens(self) -> int:
        """Tokens trained on, repeated ones included."""
        return self.tokens_per_step * self.steps

    @property
    def flops(self) -> int:
        """FLOPs of training, validation and samples aside."""
        return self.tokens * flops_per_token(self.config)


def read_params(recipe: str | None) -> tuple[ModelParams, TrainParams, RuntimeParams, TokenizerParams]:
    """The sections that a plan is made from: those of params.yaml, or with a recipe laid over it."""
    if recipe is None:
        return read_sections(ModelParams, TrainParams, RuntimeParams, TokenizerParams)
    values = laid_over(recipe).values
    return (
        ModelParams(**values["model"]),
        TrainParams(**values["train"]),
        RuntimeParams(**values["runtime"]),
        TokenizerParams(**values["tokenizer"]),
    )


def make_plan(
    model: ModelParams,
    train: TrainParams,
    runtime: RuntimeParams,
    text_vocab_size: int,
    train_tokens: int | None,
    ranks: int,
) -> Plan:
    """The plan for params on `ranks` ranks. Raises ValueError where the batch cannot be shared out among them."""
    config = GPTConfig.from_params(model, text_vocab_size)
    sequences, rest = divmod(train.total_batch_size, model.block_size * ranks)
    if rest or not sequences:
        raise ValueError(
            f"train.total_batch_size ({train.total_batch_size}) must be a multiple of "
            f"model.block_size ({model.block_size}) x ranks ({ranks})"
        )
    micro_batch = max(n for n in range(1, min(runtime.micro_batch_size, sequences) + 1) if sequences % n == 0)
    bfloat16 = runtime.dtype != "float32"
    sharded = runtime.sharding == "fsdp" and ranks > 1
    need = memory(
        config,
        micro_batch,
        bfloat16,
        train.optimizer,
        recompute=runtime.activation_checkpointing,
        shards=ranks if sharded else 1,
        accumulates=micro_batch < sequences,
    )
    return Plan(config, train.total_batch_size, train.max_steps, ranks, micro_batch, sharded, need, train_tokens)


def text_vocabulary(tokenizer: TokenizerParams, shards: Path) -> tuple[int, int | None]:
    """Ids of the encoding, and tokens of the training split where shards of this encoding are there already."""
    expected = {"bpe": tokenizer.vocab_size, "gpt2": GPT2_VOCAB_SIZE, "bytes": 257}[tokenizer.encoding]
    try:
        manifest = Manifest.read(shards)
    except (FileNotFoundError, ValueError):
        return expected, None
    # A bpe encoding carries its size in its name; a text too small for all merges gives fewer ids than asked for.
    if manifest.encoding_name.partition("-")[0] != tokenizer.encoding or manifest.vocab_size > expected:
        return expected, None
    return manifest.vocab_size, manifest.splits["train"].tokens


def last_rate(summary: Path) -> float | None:
    """FLOP/s of the last training run, over all its ranks; None where there was none."""
    try:
        values = read_json(summary)
        return values["tokens_per_sec"] * values["flops"] / values["tokens"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def model_rows(config: GPTConfig) -> Iterator[Row]:
    """Parameters by component."""
    counts = parameters(config)

    def share(count: int) -> str:
        return f"{100 * count / counts.total:.1f} %"

    def per_block(count: int) -> str:
        return f"{counts.blocks} x {count:,}, {share(counts.blocks * count)}"

    padding = config.vocab_size - config.text_vocab_size
    padded = f", {padding} ids of padding" if padding else ""
    yield "token embedding", f"{counts.token_embedding:,}", share(counts.token_embedding) + padded
    position = f"{config.position}, {share(counts.position_embedding)}"
    yield "position embedding", f"{counts.position_embedding:,}", position
    for label, count in (
        ("attention", counts.attention_per_block),
        ("MLP", counts.mlp_per_block),
        ("norms", counts.norms_per_block),
    ):
        yield label, f"{counts.blocks * count:,}", per_block(count)
    yield "final norm", f"{counts.final_norm:,}", ""
    yield "head", f"{counts.head:,}", "the token embedding" if config.tie_head else share(counts.head)
    yield "parameters", f"{counts.total:,}", f"{counts.without_embeddings:,} without embeddings"


def run_rows(plan: Plan) -> Iterator[Row]:
    """What the run computes."""
    sequences = plan.tokens_per_step // plan.config.block_size
    yield "tokens per step", f"{plan.tokens_per_step:,}", f"{sequences:,} sequences of {plan.config.block_size:,}"
    yield "steps", f"{plan.steps:,}", ""
    seen = f"{plan.tokens / parameters(plan.config).total:.1f} per parameter"
    if plan.train_tokens:
        seen += f", {plan.tokens / plan.train_tokens:.2f} epochs of {plan.train_tokens:,}"
    yield "tokens", f"{plan.tokens:,}", seen
    yield "FLOPs per token", f"{flops_per_token(plan.config):.3g}", "6N + 12 n_layer n_embd block_size"
    yield "FLOPs", f"{plan.flops:.3g}", ""


def memory_rows(plan: Plan) -> Iterator[Row]:
    """Bytes on each rank."""
    need = plan.memory_per_rank
    micro_batches = plan.tokens_per_step // (plan.config.block_size * plan.ranks * plan.micro_batch)
    shared = f"1/{plan.ranks} on each rank, and what it gathers for a while" if plan.sharded else ""
    yield "weights", format_bytes(need.weights), shared
    yield "gradients", format_bytes(need.gradients), ""
    yield "optimizer", format_bytes(need.optimizer), ""
    batch = f"micro-batch of {plan.micro_batch} sequences, {micro_batches} a step"
    yield "activations", format_bytes(need.activations), batch
    yield "in all", format_bytes(need.total), "at the least; torch.compile keeps fewer activations"


def time_rows(plan: Plan, tokens_per_sec: float | None, measured: float | None) -> Iterator[Row]:
    """How long training takes, at the given rate, or else at that of the last run (FLOP/s) and of common GPUs."""
    if tokens_per_sec is not None:
        yield "at the given rate", format_duration(plan.tokens / tokens_per_sec), f"{tokens_per_sec:,.0f} tokens/s"
        return
    rates = {} if measured is None else {"as fast as the last run": (measured, "")}
    for name, peak in GPU_PEAKS.items():
        rate = plan.ranks * peak * USUAL_MFU
        if plan.flops / rate >= SHORTEST_S:
            rates[f"{plan.ranks} x {name}"] = (rate, f", {USUAL_MFU:.0%} of peak")
    for label, (rate, remark) in rates.items():
        tokens = rate / flops_per_token(plan.config)
        yield label, format_duration(plan.flops / rate), f"{tokens:,.0f} tokens/s at {rate / 1e12:,.3g} TFLOP/s{remark}"
    if not rates:
        yield "not known", "", "before the first run: give --tokens-per-sec"


def format_bytes(count: int) -> str:
    """`3221225472` as `3.00 GiB`."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def table(sections: dict[str, list[Row]]) -> str:
    """Sections of rows as aligned text."""
    rows = [row for section in sections.values() for row in section]
    label, amount = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = []
    for title, section in sections.items():
        lines += ["", title]
        lines += [f"  {what:<{label}}  {much:>{amount}}  {remark}".rstrip() for what, much, remark in section]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.plan", description="What params.yaml will cost.")
    parser.add_argument("--recipe", metavar="NAME", help="plan recipes/NAME.yaml laid over params.yaml")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share each step (default: 1)")
    parser.add_argument("--tokens-per-sec", type=float, help="rate over all ranks, to tell the time by")
    arguments = parser.parse_args()
    with clear_errors("plan"):
        model, train, runtime, tokenizer = read_params(arguments.recipe)
        vocabulary, train_tokens = text_vocabulary(tokenizer, SHARDS)
        plan = make_plan(model, train, runtime, vocabulary, train_tokens, arguments.ranks)
        sections = {
            "Model": list(model_rows(plan.config)),
            "Run": list(run_rows(plan)),
            f"Memory on each of {plan.ranks} rank(s)": list(memory_rows(plan)),
            "Time": list(time_rows(plan, arguments.tokens_per_sec, last_rate(SUMMARY))),
        }
        logger.info("%s\n%s", describe(plan.config), table(sections))


if __name__ == "__main__":
    main()
