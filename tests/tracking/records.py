"""What the stages leave for the tracking to publish, as records."""

from pathlib import Path

from pipeline.artifacts import (
    BenchmarkMetrics,
    CodeRevision,
    EvaluationMetrics,
    Hardware,
    ParameterCounts,
    PromptSamples,
    RunSummary,
    Samples,
    SampleSettings,
    Surprisal,
    TokenizerInfo,
    TrackedRun,
    ValidationMetrics,
)

REVISION = "80a69db0707bdfc3e714daf8a403eb946098c12c"

METRICS = EvaluationMetrics(
    val=ValidationMetrics(loss=2.5, perplexity=12.2, bpb=1.6, tokens=1000),
    benchmarks={
        "next_lines": BenchmarkMetrics(
            name="lines",
            items=4,
            truncated=0,
            chance=0.25,
            acc=0.5,
            acc_stderr=0.25,
            acc_norm=0.5,
            acc_norm_stderr=0.25,
        )
    },
)
SAMPLES = Samples(
    settings=SampleSettings(temperature=0.8, top_k=50, top_p=1.0, max_new_tokens=8, seed=1),
    prompts=[
        PromptSamples(prompt=None, continuations=["a", "b"]),
        PromptSamples(prompt="To be", continuations=["c"]),
    ],
    surprisal=Surprisal(text="a", tokens=[("a", 1.0)]),
)


def summary(wandb: TrackedRun, steps: int) -> RunSummary:
    """Of a training with 8 tokens per step."""
    return RunSummary(
        tokens=8 * steps,
        flops=10**9,
        train_time_s=1.5,
        tokens_per_sec=100.0,
        mfu=None,
        params={"model": {"n_layer": 6}, "train": {"seed": 1}},
        parameters=ParameterCounts(total=1000, without_embeddings=800),
        steps=steps,
        wall_time_s=2.0,
        resumes=[],
        skipped_steps=0,
        spikes=1,
        hardware=Hardware(
            device="cpu",
            device_name="a CPU",
            world_size=1,
            cores=2,
            dtype="float32",
            compile=False,
            micro_batch_size=4,
            torch="2.13.0",
            python="3.11.9",
        ),
        tokenizer=TokenizerInfo(name="bytes", vocab_size=257),
        data={},
        git=CodeRevision(revision=REVISION, dirty=False),
        wandb=wandb,
    )


def write_outputs(root: Path) -> None:
    """What the stages between training and report leave under `root`, with a report."""
    METRICS.write(root / "reports/evaluate/metrics.json")
    SAMPLES.write(root / "reports/sample/samples.json")
    (root / "reports/figures").mkdir()
    (root / "reports/figures/loss.svg").write_text("<svg/>")
    (root / "reports/report.md").write_text("# A report\n")
