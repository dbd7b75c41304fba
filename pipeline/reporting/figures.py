"""The figures of one run: what is drawn, not how. A figure that would be empty is None."""

import math

import numpy as np

from pipeline.reporting import curves
from pipeline.reporting.accuracy import probed, protocols_measured
from pipeline.reporting.figure import Axis, Figure, Floats, Panel, Rule, Series, Style, axis_of, floats
from pipeline.reporting.numbers import exact, fixed, percent, ten_to
from pipeline.reporting.references import CHANCE, FINEWEB_EDU_LOSS, PROTOCOLS
from pipeline.reporting.run import Run

MOST_SMALL_POINTS = 500
"""Of a curve in one of three panels."""

START = 0.05
"""Share of a run whose fall from the untrained loss may stand above the picture, so that the rest can be told apart."""

MARK = 0.03
"""Share of the height that half a mark needs."""

TRAIN, VALIDATION, ACCURACY, SPIKE, SKIPPED = 0, 1, 2, 4, 7  # slots of the palette, the same in every figure


def run_figures(run: Run, smoothing: float) -> list[Figure]:
    """Every figure that this run has the numbers for, in the order of the page."""
    figures = (
        loss_figure(run, smoothing),
        training_figure(run, smoothing),
        accuracy_curve(run),
        accuracy_figure(run),
    )
    return [figure for figure in figures if figure is not None]


def loss_figure(run: Run, smoothing: float) -> Figure | None:
    """Training loss, raw behind and smoothed in front; validation loss; spikes and restarts."""
    tokens, loss = curves.column(run.curves, "train/loss")
    val_tokens, val_loss = curves.column(run.curves, "val/loss")
    if not len(loss) and not len(val_loss):
        return None
    x, factor = axis_of("tokens", _last(tokens, val_tokens))
    series = []
    if len(loss):
        raw_x, raw = curves.thinned(tokens, loss)
        front_x, front = curves.thinned(tokens, curves.smoothed(loss, smoothing))
        series = [Series("training", raw_x / factor, raw, "faint", TRAIN)] if smoothing else []
        name = "training, smoothed" if smoothing else "training"
        series.append(Series(name, front_x / factor, front, "line", TRAIN))
    if len(val_loss):
        part = validated_in_training(run)
        name = "validation" if part is None else f"validation (first {exact(part)} tokens)"
        series.append(Series(name, val_tokens / factor, val_loss, "joined points", VALIDATION))
    high = top_of_picture(tokens, loss, smoothing)
    y = Axis("loss (nats per token)", low=None if high is None else _bottom(loss, val_loss), high=high)
    series += _marks(run, factor, y)
    rules = [*_restarts(run, factor), *_reference_loss(run)]
    alt = "Loss in nats per token over tokens seen. "
    if len(loss):
        alt += f"Training goes from {fixed(float(loss[0]), 2)} to {fixed(float(loss[-1]), 2)}. "
    if len(val_loss):
        alt += f"{name.capitalize()} ends at {fixed(float(val_loss[-1]), 3)}."
    panel = Panel(x, y, tuple(series), tuple(rules))
    return Figure("loss", alt.strip(), (panel,), height=3.8)


def training_figure(run: Run, smoothing: float) -> Figure | None:
    """Learning rate, gradient norm and throughput, side by side; what was not measured is left out."""
    panels = []
    for name, title, unit in (
        ("train/lr", "Learning rate", ""),
        ("train/grad_norm", "Gradient norm", ""),
        ("train/tokens_per_sec", "Throughput", "tokens / s"),
    ):
        tokens, values = curves.column(run.curves, name)
        if not len(values):
            continue
        x, factor = axis_of("tokens", _last(tokens))
        y, y_factor = axis_of(unit, float(np.max(values)))
        if name == "train/lr":
            exponent = math.floor(math.log10(max(1.01 * float(np.max(values)), 1e-12)))
            y, y_factor = Axis(f"× {ten_to(exponent)}"), 10.0**exponent
        y = Axis(y.label, low=None if name == "train/grad_norm" else 0.0)
        drawn: list[tuple[Style, Floats]] = [("line", values)]
        if smoothing and name != "train/lr":  # a schedule has no noise
            drawn = [("faint", values), ("line", curves.smoothed(values, smoothing))]
        series = []
        for style, shown in drawn:
            short_x, short = curves.thinned(tokens, shown / y_factor, MOST_SMALL_POINTS)
            series.append(Series("", short_x / factor, short, style, TRAIN))
        panels.append(Panel(x, y, tuple(series), title=title))
    if not panels:
        return None
    words = ", ".join(panel.title.lower() for panel in panels)
    return Figure("training", f"Over tokens seen: {words}.", tuple(panels), height=2.5)


def accuracy_figure(run: Run) -> Figure | None:
    """Accuracy under each protocol with its standard error, chance, and GPT-2 where the items are HellaSwag's."""
    accuracy = run.metrics.accuracy if run.metrics else None
    measured = [] if accuracy is None else protocols_measured(accuracy)
    if accuracy is None or not measured:
        return None
    shares = floats([100 * share for _, share, _ in measured])
    errors = floats([100 * (error or 0.0) for _, _, error in measured])
    rows = np.arange(len(measured), dtype=np.float64)
    rules = [Rule("chance", 100 * CHANCE, "x")]
    if accuracy.is_hellaswag:
        for row, (protocol, _, _) in enumerate(measured):
            rules += [
                Rule(name, 100 * share, "x", between=(row + 0.38, row - 0.38)) for name, share in protocol.references
            ]
    points = Series("", shares, rows, "points", ACCURACY, error=errors, error_along="x")
    high = max([float(np.max(shares + errors)), *(rule.at for rule in rules)])
    low = min(float(np.min(shares - errors)), 100 * CHANCE)
    margin = 0.12 * max(high - low, 1.0)
    x = Axis("accuracy (%), with one standard error", low=low - margin, high=high + 2 * margin)
    y = Axis("", categories=tuple(protocol.title for protocol, _, _ in measured))
    words = "; ".join(f"{protocol.title} {percent(share)}" for protocol, share, _ in measured)
    alt = f"Accuracy on {accuracy.items:,} items of {accuracy.name}: {words}. Chance is {percent(CHANCE, 0)}."
    return Figure("accuracy", alt, (Panel(x, y, (points,), tuple(rules)),), height=0.9 + 0.5 * len(measured))


def accuracy_curve(run: Run) -> Figure | None:
    """Accuracy during training with its standard error, on the items that were scored then; needs two points."""
    if (found := probed(run)) is None:
        return None
    name = "HellaSwag" if found.is_hellaswag else "next lines"
    x, factor = axis_of("tokens", _last(found.tokens))
    rules = [Rule("chance", 100 * CHANCE)]
    if found.is_hellaswag:
        rules += [Rule(f"{model}, acc_norm", 100 * share) for model, share in PROTOCOLS[1].references]
    error = None if found.errors is None else 100 * found.errors
    points = Series("", found.tokens / factor, 100 * found.shares, "joined points", ACCURACY, error=error)
    alt = f"Accuracy (acc_norm) on {name} during training{f', {exact(found.items)} items' if found.items else ''}: "
    first, last = (percent(float(found.shares[place])) for place in (0, -1))
    alt += f"from {first} to {last}. Chance is {percent(CHANCE, 0)}."
    panel = Panel(x, Axis(f"{name}, acc_norm (%)"), (points,), tuple(rules))
    return Figure("accuracy-curve", alt, (panel,), height=2.6)


def validated_in_training(run: Run) -> int | None:
    """How many tokens, at the start of the validation split, the curve is over; None where it is over all of them."""
    part, whole = run.setting("train.eval_tokens"), run.validation_tokens
    return None if part is None or (whole is not None and part >= whole) else part


def top_of_picture(tokens: Floats, loss: Floats, smoothing: float) -> float | None:
    """Where the loss axis ends, if that cuts off the first steps; None where nothing needs to be cut off.

    The loss falls within a few steps from ln(vocabulary) to where it then spends the run. Drawn whole, that fall takes
    most of the height.
    """
    front = curves.smoothed(loss, smoothing)
    late = tokens >= START * _last(tokens)
    if len(loss) < 100 or not late.any():
        return None
    low, high = float(np.min(loss)), float(front[late][0])
    top = high + 0.15 * (high - low)
    return top if top < low + 0.8 * (float(np.max(loss)) - low) else None


def _bottom(*columns: Floats) -> float:
    values = np.concatenate(columns)
    return float(np.min(values) - 0.03 * np.ptp(values))


def _marks(run: Run, factor: float, y: Axis) -> list[Series]:
    """Triangles at spikes and skipped steps, inside the picture; a loss that was no number is shown as the last one."""
    if "train/loss" not in run.curves:
        return []
    loss = floats(run.curves["train/loss"].ffill())
    if y.high is not None and y.low is not None:
        loss = np.fmin(loss, y.high - MARK * (y.high - y.low))
    tokens = floats(run.curves["tokens"]) / factor
    marked = (
        ("spikes", curves.spikes(run.curves), SPIKE),
        ("skipped steps", curves.events(run.curves, "skipped"), SKIPPED),
    )
    return [Series(name, tokens[rows], loss[rows], "spikes", slot) for name, rows, slot in marked if rows]


def _restarts(run: Run, factor: float) -> list[Rule]:
    """A line at each step that a restarted run began with."""
    steps = floats(run.curves["step"])
    rows = {int(np.argmin(np.abs(steps - step))) for step in run.train.resumed_at if len(steps)}
    rows |= set(curves.events(run.curves, "resumed"))
    return [Rule("restart", float(run.curves["tokens"].iloc[row]) / factor, "x") for row in sorted(rows)]


def _reference_loss(run: Run) -> list[Rule]:
    """GPT-2's loss, where the text and the tokens are those that it was measured on."""
    same_text = run.setting("data.source") == "hub" and str(run.setting("data.hub_path")).endswith("/fineweb-edu")
    if not same_text or run.setting("tokenizer.encoding") != "gpt2":
        return []
    name, loss = FINEWEB_EDU_LOSS
    return [Rule(f"{name} ({loss:.2f})", loss)]


def _last(*columns: Floats) -> float:
    return max((float(np.max(values)) for values in columns if len(values)), default=0.0)
