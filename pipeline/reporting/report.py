"""Writes the report of a run: report.md with SVGs and report.html with interactive charts, from report.md.jinja."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import markdown as md
from pipeline.artifacts import Hardware, TrackedRun
from pipeline.charts import pages
from pipeline.charts.specs import curve
from pipeline.files import write_text
from pipeline.formatting import percent, significant
from pipeline.reporting import provenance, surprisal
from pipeline.reporting.figures import accuracy, items_in_training, loss_limit, run_charts
from pipeline.reporting.references import CHANCE, PROTOCOLS
from pipeline.reporting.run import Run, read_run

TEMPLATE = Path(__file__).with_name("report.md.jinja")

SIGNIFICANT = 2.0
"""Standard errors from chance below which an accuracy does not differ from it: about 95 % confidence."""


def write_report(root: Path, title: str, smoothing: float) -> Path:
    """Writes reports/report.md, reports/report.html and reports/figures/ under `root`; returns the path of report.md
    relative to it. Raises as read_run does.
    """
    run = read_run(root)
    charts = run_charts(run, smoothing)
    values = context(run, title, smoothing)
    pages.write_svgs(root / "reports/figures", charts)
    figures = {chart.name: pages.html_figure(chart) for chart in charts}
    body = md.render(TEMPLATE, {**values, "html": True, "charts": figures})
    write_text(root / "reports/report.html", pages.html_page(title, body, charts, surprisal.STYLE))
    pictures = {chart.name: pages.picture(chart, "figures") for chart in charts}
    write_text(root / "reports/report.md", md.render(TEMPLATE, {**values, "html": False, "charts": pictures}))
    return Path("reports/report.md")


def context(run: Run, title: str, smoothing: float) -> dict[str, Any]:
    """What the template uses besides the records in `run`."""
    choice = run.metrics.choice if run.metrics and run.metrics.choice and run.metrics.choice.items else None
    loss = curve(run.curves, "train/loss")["y"].tolist()
    tokens = run.samples.surprisal.tokens if run.samples else []
    inputs, others = provenance.uncommitted(run)
    return {
        "title": title,
        "run": run,
        "train": run.train,
        "val": run.metrics.val if run.metrics else None,
        "choice": choice,
        "choice_name": "HellaSwag" if choice and choice.is_hellaswag else "Next lines",
        "chance": CHANCE,
        "versus_chance": versus_chance(*accuracy(choice, "acc_norm")) if choice else "",
        "protocols": [(protocol, *accuracy(choice, protocol.name)) for protocol in PROTOCOLS] if choice else [],
        "hardware": describe_hardware(run.train.hardware),
        "loss_points": len(loss),
        "cut_off": loss[0] if loss_limit(run, smoothing) is not None else None,
        "has_validation_curve": not curve(run.curves, "val/loss").empty,
        "items_in_training": items_in_training(run),
        "mean_surprisal": sum(nats for _, nats in tokens) / len(tokens) if tokens else None,
        "hardest": surprisal.hardest(tokens),
        "surprisal_tokens": len(tokens),
        "surprisal_shown": min(len(tokens), surprisal.SHOWN),
        "surprisal_html": surprisal.html(tokens),
        "differences": provenance.differences(run),
        "uncommitted_inputs": inputs,
        "uncommitted_others": others,
        "wandb": tracked(run.train.wandb),
        "versions": provenance.versions(run),
        "outputs": [part for part in run.lock.outputs if part.stage != "report"] if run.lock else [],
        "commands": provenance.commands(run),
        "commit_link": provenance.commit_link,
        "file_list": provenance.file_list,
    }


def versus_chance(share: float, error: float) -> str:
    """How an accuracy compares with guessing, in words."""
    chance = f"chance ({percent(CHANCE, 0)})"
    if not error:
        return f"chance is {percent(CHANCE, 0)}"
    distance = (share - CHANCE) / error
    if abs(distance) < SIGNIFICANT:
        return f"not significantly different from {chance}"
    return f"{significant(abs(distance), 2)} standard errors {'above' if distance > 0 else 'below'} {chance}"


def describe_hardware(hardware: Hardware) -> str:
    """Where a run was computed: `2 cores (Intel Xeon)`, `8 × NVIDIA H100`."""
    if hardware.device != "cpu":
        return f"{hardware.world_size} × {hardware.device_name or hardware.device}"
    cores = "1 core" if hardware.cores == 1 else f"{hardware.cores} cores"
    return (
        f"{cores} ({hardware.device_name})" if hardware.device_name.lower() not in ("", "cpu") else f"{cores} of a CPU"
    )


def tracked(run: TrackedRun) -> str:
    """The W&B run in markdown, with its link where there is one."""
    if run.url:
        return f"[{md.text(run.name or run.id)}]({quote(run.url, safe=':/?=&%#~')})"
    if run.mode == "offline":
        return f"{md.text(run.name)} (id {md.code(run.id)}), offline: `wandb sync` uploads it"
    return "none: tracking was off"
