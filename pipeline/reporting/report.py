"""Writes the report of a run: report.md with SVGs and report.html with interactive charts, from report.md.jinja."""

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline import markdown as md
from pipeline.artifacts import TrackedRun
from pipeline.charts import pages
from pipeline.charts.specs import Chart, curve
from pipeline.files import write_text
from pipeline.formatting import DASH, exact, fixed, percent, power_of_ten, significant
from pipeline.reporting.figures import GPT2_HELLASWAG, GPT2_ITEMS, loss_limit, run_charts
from pipeline.reporting.run import Run, commands, commit_link, differences, read_run, uncommitted

TEMPLATE = Path(__file__).with_name("report.md.jinja")

RULES = {
    "acc": "highest log-probability",
    "acc_norm": "highest log-probability per character",
    "acc_norm_token": "lowest loss per token after the raw context, as in build-nanogpt",
}
"""Metric -> which answer it counts."""

SIGNIFICANT = 2.0
"""Standard errors from chance below which an accuracy does not differ from it: about 95 % confidence."""

MAX_FILES = 8
"""Most files to name in a sentence."""

MAX_TRAINING_SAMPLES = 12
"""Of those drawn during training, evenly spread."""

MAX_TOKENS = 600
"""Most tokens in the text coloured by surprisal."""

MAX_NATS = 10
"""Nats of the strongest colour: a probability of 1 in 22,000. The same in every report, so that two can be compared."""


def write_report(root: Path, title: str, smoothing: float) -> Path:
    """Writes reports/report.md, reports/report.html and reports/figures/ under `root`; returns the path of report.md
    relative to it. Raises as read_run does.
    """
    run = read_run(root)
    charts = run_charts(run, smoothing)
    pages.write_svgs(root / "reports/figures", charts)
    pictures = {chart.name: pages.picture(chart, "figures") for chart in charts}
    values = context(run, title, smoothing)
    write_text(root / "reports/report.md", md.render(TEMPLATE, {**values, "html": False, "charts": pictures}))
    _write_html(root, charts, values)
    return Path("reports/report.md")


def write_html(root: Path, title: str, smoothing: float) -> None:
    """Writes reports/report.html alone."""
    run = read_run(root)
    _write_html(root, run_charts(run, smoothing), context(run, title, smoothing))


def _write_html(root: Path, charts: list[Chart], values: dict[str, Any]) -> None:
    figures = {chart.name: pages.html_figure(chart) for chart in charts}
    body = md.render(TEMPLATE, {**values, "html": True, "charts": figures})
    write_text(root / "reports/report.html", pages.html_page(values["title"], body, charts, SURPRISAL_STYLE))


def context(run: Run, title: str, smoothing: float) -> dict[str, Any]:
    """What the template uses besides the records in `run`."""
    loss = curve(run.curves, "train/loss")["y"].tolist()
    tokens = run.samples.surprisal.tokens
    hellaswag = run.metrics.benchmarks.get("hellaswag")
    ranked = [result for task, result in run.metrics.benchmarks.items() if task != "exact_match"]
    inputs, others = uncommitted(run)
    shown = np.linspace(0, len(run.training_samples) - 1, min(len(run.training_samples), MAX_TRAINING_SAMPLES))
    return {
        "title": title,
        "run": run,
        "train": run.train,
        "model": defaultdict(lambda: DASH, run.train.params.get("model", {})),
        "settings": defaultdict(lambda: DASH, run.train.params.get("train", {})),
        "val": run.metrics.val,
        "benchmarks": run.metrics.benchmarks,
        "versus_chance": versus_chance,
        "rules": {metric: rule for metric, rule in RULES.items() if any(metric in result.metrics for result in ranked)},
        "gpt2_hellaswag": GPT2_HELLASWAG if hellaswag and hellaswag.items == GPT2_ITEMS else None,
        "loss_points": len(loss),
        "cut_off": loss[0] if loss_limit(run, smoothing) is not None else None,
        "has_validation_curve": not curve(run.curves, "val/loss").empty,
        "training_samples": [run.training_samples[round(index)] for index in shown],
        "mean_surprisal": sum(nats for _, nats in tokens) / len(tokens) if tokens else None,
        "hardest": hardest(tokens),
        "surprisal_tokens": len(tokens),
        "surprisal_shown": min(len(tokens), MAX_TOKENS),
        "surprisal_html": surprisal_html(tokens),
        "differences": differences(run),
        "uncommitted_inputs": inputs,
        "uncommitted_others": others,
        "wandb": tracked(run.train.wandb),
        "outputs": [part for part in run.lock.outputs if part.stage != "report"] if run.lock else [],
        "commands": commands(run),
        "commit_link": commit_link,
        "file_list": file_list,
    }


def versus_chance(share: float, error: float, chance: float) -> str:
    """How an accuracy compares with guessing, in words."""
    if not error or not chance:
        return f"chance is {percent(chance, 0)}"
    distance = (share - chance) / error
    if abs(distance) < SIGNIFICANT:
        return f"not significantly different from chance ({percent(chance, 0)})"
    side = "above" if distance > 0 else "below"
    return f"{significant(abs(distance), 2)} standard errors {side} chance ({percent(chance, 0)})"


def tracked(run: TrackedRun) -> Markup:
    """The W&B run in markdown, with its link where there is one."""
    if run.url:
        return md.link(run.name or run.id, run.url)
    if run.mode == "offline":
        return Markup(f"{md.text(run.name)} (id {md.code(run.id)}), offline: `wandb sync` uploads it")
    return Markup("none: tracking was off")


def file_list(paths: Sequence[str]) -> Markup:
    """Files in a sentence, the first few by name: `a`, `b` and 3 more."""
    words: list[str] = [md.code(path) for path in paths[:MAX_FILES]]
    if len(paths) > MAX_FILES:
        words.append(f"{exact(len(paths) - MAX_FILES)} more")
    return md.listing(words)


# Surprisal: the negative log-likelihood of each token of a text, in nats (-ln of its probability)

Tokens = Sequence[tuple[str, float]]
"""The tokens of a text with their nats."""


def hardest(tokens: Tokens, number: int = 5) -> list[tuple[str, float]]:
    """The tokens of the highest surprisal, as they are named in a sentence."""
    return [(_token_name(token), nats) for token, nats in sorted(tokens, key=lambda token: -token[1])[:number]]


def surprisal_html(tokens: Tokens) -> Markup:
    """The coloured text as one line of HTML, as an empty line would end the block in markdown."""
    spans = []
    for token, nats in tokens[:MAX_TOKENS]:
        text = escape(md.printable(token)).replace("\n", "<i></i>&#10;")
        share = round(100 * min(max(nats, 0) / MAX_NATS, 1))
        spans.append(f'<span style="--share:{share}%" title="{escape(_token_title(token, nats))}">{text}</span>')
    legend = f'<div class="legend">0 nats <span></span> {MAX_NATS} nats or more</div>'
    return Markup(f'<div class="surprisal">{legend}<div class="text">{"".join(spans)}</div></div>')


def _token_title(token: str, nats: float) -> str:
    """What the mouse shows on a token: `lord: 2.26 nats, probability 10.4 %`."""
    probability = math.exp(-max(nats, 0.0))
    if probability >= 0.01:
        share = percent(probability)
    else:
        share = f"{significant(100 * probability, 2)} %" if probability > 1e-6 else power_of_ten(probability)
    return f"{_token_name(token)}: {fixed(nats, 2)} nats, probability {share}"


def _token_name(token: str) -> str:
    """A token in a sentence: without spaces around it, unless it is all spaces; newlines as ↵."""
    return md.printable(token).strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣" * len(token)


# A newline is marked by CSS, so that a copy of the text does not have the mark.
SURPRISAL_STYLE = """\
.surprisal { --hot: #f0883e; margin: 1em 0; }
@media (prefers-color-scheme: dark) { .surprisal { --hot: #9b4a04; } }
.surprisal .text { font: 14px/1.8 ui-monospace, Menlo, Consolas, monospace; }
.surprisal .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.surprisal .text span {
  background: color-mix(in oklab, var(--hot) var(--share), transparent);
  border-right: 1px solid var(--background); border-radius: 2px; padding: 0.15em 0; box-decoration-break: clone;
}
.surprisal i::after { content: "↵"; font-style: normal; }
.surprisal .legend { color: var(--muted); font-size: 12px; margin-bottom: 1em; }
.surprisal .legend span {
  display: inline-block; width: 10em; height: 0.8em; vertical-align: middle;
  background: linear-gradient(to right, var(--background), var(--hot));
}
"""
