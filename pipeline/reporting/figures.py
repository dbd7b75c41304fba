"""The charts of one run as Vega-Lite specs. A chart without data is left out."""

import math
from dataclasses import replace
from functools import reduce
from operator import add, or_
from typing import Any

import numpy as np
import pandas as pd

from pipeline.charts import specs
from pipeline.charts.specs import Axis, Chart, curve, smoothed, thinned
from pipeline.formatting import exact, fixed, percent
from pipeline.reporting.run import Run

SMALL = 500
"""Most points of a curve in one of three panels."""

START = 0.05
"""Share of a run whose fall from the untrained loss may be cut off, so that the rest can be read."""

# Published results of GPT-2, shown only where the comparison is fair: same items, same text, same tokenizer.

FINEWEB_EDU_LOSS = ("GPT-2 124M", 3.2924)
"""OpenAI's weights on FineWeb-Edu's validation shard, nats per GPT-2 token.
https://github.com/karpathy/build-nanogpt/blob/master/play.ipynb"""


GPT2_HELLASWAG = {
    "acc": {"GPT-2 124M": 0.2892, "GPT-2 1558M": 0.4004},
    "acc_norm": {"GPT-2 124M": 0.3114, "GPT-2 1558M": 0.5089},
    "acc_norm_token": {"GPT-2 124M": 0.2955, "GPT-2 1558M": 0.4893},
}
"""Metric -> OpenAI's weights on HellaSwag's GPT2_ITEMS validation items. From the head of
https://github.com/karpathy/build-nanogpt/blob/master/hellaswag.py, which cites the first two metrics from
lm-evaluation-harness."""

GPT2_ITEMS = 10_042


def run_charts(run: Run, smoothing: float) -> list[Chart]:
    """Every chart that this run has the numbers for, in the order of the page."""
    drawn = (loss_chart(run, smoothing), training_chart(run, smoothing), accuracy_curve(run))
    return [chart for chart in drawn if chart is not None]


def loss_chart(run: Run, smoothing: float) -> Chart | None:
    """Training loss, raw and smoothed; validation loss; spikes, skipped steps, resumes and the weights kept."""
    raw, val = curve(run.curves, "train/loss"), curve(run.curves, "val/loss")
    if raw.empty and val.empty:
        return None
    tokens = run.validation_in_training
    validation = "validation" if tokens is None else f"validation (first {exact(tokens)} tokens)"
    raw, val = raw.assign(series="training"), val.assign(series=validation)
    smooth = raw.assign(y=smoothed(raw["y"].to_numpy(), smoothing))
    high = loss_limit(run, smoothing)
    low = min(raw["y"].min() if len(raw) else math.inf, val["y"].min() if len(val) else math.inf)
    y = Axis("loss (nats per token)", None if high is None else (low - 0.03 * (high - low), high))
    x = _tokens(raw, val)
    marks = _marks(run, high)
    notes = {resume.step: "resumed" for resume in run.train.resumes}
    if run.train.kept_step not in (None, run.train.steps):
        notes |= {run.train.kept_step: "kept weights"}
    steps = zip(run.curves["step"], run.curves["tokens"], strict=True)
    noted = [(float(tokens), notes[step]) for step, tokens in steps if step in notes]
    names = [str(name) for frame in (raw, val, marks) for name in frame["series"].unique()]
    ends = pd.concat([frame.tail(1) for frame in (smooth, val)])
    layers = [
        *([specs.lines(thinned(raw), x, y, names, "faint")] if smoothing and len(raw) else []),
        *([specs.lines(thinned(smooth), x, y, names)] if len(raw) else []),
        *([specs.lines(val, x, y, names, dots=True)] if len(val) else []),
        *([specs.points(marks, x, y, names, "triangle-up")] if len(marks) else []),
        *_reference_loss(run, y),
        *([specs.rules(noted, x, "x")] if noted else []),
        specs.end_labels(ends.assign(label=[fixed(value, 3) for value in ends["y"]]), x, y, names),
        specs.hover(pd.concat([thinned(smooth), val]), x, y, names, ("series", "tokens", "loss")),
    ]
    alt_text = "Loss in nats per token over tokens."
    if len(raw):
        alt_text += f" Training goes from {fixed(raw['y'].iloc[0], 2)} to {fixed(raw['y'].iloc[-1], 2)}."
    if len(val):
        alt_text += f" {validation.capitalize()} ends at {fixed(val['y'].iloc[-1], 3)}."
    return Chart("loss", alt_text, reduce(add, layers).properties(height=300), names)


def training_chart(run: Run, smoothing: float) -> Chart | None:
    """Learning rate, gradient norm and throughput side by side; what was not measured is left out."""
    panels, titles = [], []
    for column, title in (
        ("train/lr", "learning rate"),
        ("train/grad_norm", "gradient norm"),
        ("train/tokens_per_sec", "tokens per second"),
    ):
        raw = curve(run.curves, column).assign(series=title)
        if raw.empty:
            continue
        smooth = raw.assign(y=smoothed(raw["y"].to_numpy(), 0 if column == "train/lr" else smoothing))
        # From 0 on, except for the norm, whose first values are far above the rest.
        domain = None if column == "train/grad_norm" else (0.0, math.nan)
        x, y = _tokens(raw), Axis(title, domain, numbers="short" if column == "train/tokens_per_sec" else "plain")
        if column == "train/lr" and raw["y"].max() < 1e-3:
            y = replace(y, numbers="power")
        layers = [
            specs.lines(thinned(smooth, SMALL), x, y, [title]),
            specs.hover(thinned(smooth, SMALL), x, y, [title], ("", "tokens", title)),
        ]
        if column != "train/lr" and smoothing:
            layers.insert(0, specs.lines(thinned(raw, SMALL), x, y, [title], "faint"))
        panels.append(reduce(add, layers).properties(height=150))
        titles.append(title)
    if not panels:
        return None
    spec = reduce(or_, panels).resolve_scale(color="independent")
    return Chart("training", f"Over tokens: {', '.join(titles)}.", spec)


def accuracy_curve(run: Run) -> Chart | None:
    """Accuracy on the first benchmark during training with its standard error; None if measured less than twice."""
    if (benchmark := run.metrics.benchmark) is None:
        return None
    task, metric = next(iter(run.metrics.benchmarks)), benchmark.main
    frame = curve(run.curves, f"{task}/{metric}")
    if len(frame) < 2:
        return None
    items = min(run.number("train.benchmark_items"), benchmark.items)
    share = frame["y"]
    error = 100 * np.sqrt(share * (1 - share) / max(items - 1, 1))
    frame = frame.assign(y=100 * share, low=100 * share - error, high=100 * share + error, series=metric)
    x, y = _tokens(frame), Axis(f"{benchmark.name}, {metric} (%), {exact(items)} items")
    labels = [(100 * benchmark.chance, "chance")]
    if task == "hellaswag" and items == GPT2_ITEMS:
        labels += [(100 * value, model) for model, value in GPT2_HELLASWAG[metric].items()]
    layers = [
        specs.rules(labels, y, "y"),
        specs.lines(frame, x, y, [metric]),
        specs.points(frame, x, y, [metric]),
        specs.hover(frame, x, y, [metric], ("", "tokens", "accuracy (%)")),
    ]
    alt_text = (
        f"Accuracy ({metric}) on {benchmark.name} during training, {exact(items)} items: "
        f"from {percent(share.iloc[0])} to {percent(share.iloc[-1])}. Chance is {percent(benchmark.chance, 0)}."
    )
    return Chart("accuracy-curve", alt_text, reduce(add, layers).properties(height=170))


def loss_limit(run: Run, smoothing: float) -> float | None:
    """Where the loss axis ends so that the first steps, which fall from ln(vocabulary), are cut off; None: it does not.

    Drawn whole, that fall would take most of the height.
    """
    raw = curve(run.curves, "train/loss")
    late = raw["x"] >= START * raw["x"].max()
    if len(raw) < 100 or not late.any():
        return None
    low = float(raw["y"].min())
    high = low + 1.15 * (float(smoothed(raw["y"].to_numpy(), smoothing)[late.to_numpy()][0]) - low)
    return high if high < low + 0.8 * (float(raw["y"].max()) - low) else None


def _tokens(*frames: pd.DataFrame) -> Axis:
    return Axis("tokens", (0.0, max(float(frame["x"].max()) for frame in frames if len(frame))), numbers="short")


def _marks(run: Run, high: float | None) -> pd.DataFrame:
    """Steps with an event at their loss, inside the picture; a loss that is not finite is drawn as the last one."""
    columns = pd.DataFrame({"x": run.curves["tokens"], "y": run.curves.get("train/loss", math.nan)})
    columns["y"] = columns["y"].replace([math.inf, -math.inf], math.nan).ffill()
    if high is not None:
        columns["y"] = columns["y"].clip(upper=high - 0.03 * (high - columns["y"].min()))
    frames = [
        columns[run.curves["event"].str.contains(event)].assign(series=name)
        for event, name in (("spike", "spikes"), ("skipped", "skipped steps"))
    ]
    return pd.concat(frames).dropna()


def _reference_loss(run: Run, y: Axis) -> list[Any]:
    """GPT-2's loss, where the text and the tokenizer are those that it was measured with."""
    same_text = run.setting("data.source") == "hub" and str(run.setting("data.hub_path")).endswith("/fineweb-edu")
    if not same_text or run.setting("tokenizer.encoding") != "gpt2":
        return []
    name, loss = FINEWEB_EDU_LOSS
    return [specs.rules([(loss, f"{name} ({loss:.2f})")], y, "y", end="left")]
