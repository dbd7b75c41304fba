"""The report of one run as markdown, section by section. Each section copes with what is missing in a sentence."""

from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.reporting import markdown as md
from pipeline.reporting import surprise
from pipeline.reporting.accuracy import Probed, probed, protocols_measured
from pipeline.reporting.curves import column
from pipeline.reporting.figures import top_of_picture, validated_in_training
from pipeline.reporting.lock import differing
from pipeline.reporting.numbers import DASH, count, duration, exact, fixed, percent, significant
from pipeline.reporting.origin import named, provenance, reproduction
from pipeline.reporting.run import Accuracy, Prompt, Run
from pipeline.reporting.summary import NEXT_LINES, headline, summary
from pipeline.reporting.trained import trained


def page(run: Run, title: str, smoothing: float, shown: Mapping[str, str]) -> str:
    """The whole report, GitHub-flavoured markdown that ends with a newline.

    `shown`: how each figure, by its name, stands in the page: as two SVGs in markdown, as itself in HTML.
    """
    sections = (
        f"# {md.text(title)}",
        md.text(summary(run)),
        _glance(run),
        "## Learning curves",
        _curves(run, shown, smoothing),
        "## Results",
        _results(run, shown),
        "## Samples",
        _samples(run),
        *_surprise(run, shown),
        "## What was trained",
        trained(run),
        "## What differs from the run committed before",
        _differences(run),
        "## Where it comes from",
        provenance(run),
        "## Do it again",
        reproduction(run),
    )
    return "\n\n".join(sections) + "\n"


def _glance(run: Run) -> str:
    """The numbers that one looks for first, in one row."""
    val = run.metrics.val if run.metrics else None
    accuracy = run.metrics.accuracy if run.metrics else None
    chosen = headline(accuracy) if accuracy and accuracy.items else None
    cells = [
        ("Parameters", count(run.train.parameters.total)),
        ("Tokens", count(run.train.tokens)),
        ("Time", duration(run.train.train_time_s)),
        ("Validation loss", fixed(val.loss, 3) if val else DASH),
        ("Bits per byte", fixed(val.bpb, 3) if val else DASH),
    ]
    if accuracy and chosen:
        cells.append((f"{_short_name(accuracy)} {md.code(chosen[0])}", percent(chosen[1])))
    return md.table([name for name, _ in cells], [[f"**{value}**" for _, value in cells]], numbers_from=0)


def _curves(run: Run, shown: Mapping[str, str], smoothing: float) -> str:
    parts = [shown.get("loss", "No loss was recorded."), " ".join(_remarks(run, smoothing)), shown.get("training", "")]
    return "\n\n".join(part for part in parts if part)


def _remarks(run: Run, smoothing: float) -> Iterator[str]:
    """What one has to know to read the loss curves, in sentences."""
    tokens, loss = column(run.curves, "train/loss")
    if len(loss) == 1:
        yield "A run of one step has no curve: the points stand where it was measured."
    if "val/loss" not in run.curves or run.curves["val/loss"].isna().all():
        yield "Validation loss was not measured during training (`train.eval_interval`)."
    elif part := validated_in_training(run):
        told = f"Validation during training is over the first {exact(part)} tokens of the validation split"
        if run.validation_tokens and run.metrics and run.metrics.val:
            told += f"; the result below is over all {exact(run.validation_tokens)}. The two are not the same number"
        yield f"{told}."
    if top_of_picture(tokens, loss, smoothing) is not None:
        yield f"The first steps, from a loss of {fixed(float(loss[0]), 2)}, are above the picture."
    if run.train.resumes:
        yield f"Training was interrupted and resumed {_times(run.train.resumes)}."
    if skipped := run.train.skipped_steps:
        yield f"{exact(skipped)} step(s) with a loss or gradient that was no finite number were skipped."


def _results(run: Run, shown: Mapping[str, str]) -> str:
    if run.metrics is None:
        return "This run has not been evaluated: `dvc repro evaluate`."
    parts = []
    if (val := run.metrics.val) is None:
        parts.append("Validation loss was not measured.")
    else:
        row = [fixed(val.loss, 4), significant(val.perplexity, 4), fixed(val.bpb, 4), exact(val.tokens)]
        header = ["Validation loss (nats per token)", "Perplexity", "Bits per byte", "Tokens scored"]
        parts.append(md.table(header, [row], numbers_from=0))
    accuracy = run.metrics.accuracy
    measured = protocols_measured(accuracy) if accuracy else []
    if accuracy is None or not measured:
        parts.append("No multiple-choice items were scored.")
        return "\n\n".join(parts)
    parts += [f"### {_short_name(accuracy)}", _about_items(accuracy)]
    rows = [
        [f"{md.code(protocol.title)}: {protocol.rule}", percent(share, 2), percent(error, 2), "25 %"]
        + (["<br>".join(f"{name} {percent(value, 2)}" for name, value in protocol.references)] * accuracy.is_hellaswag)
        for protocol, share, error in measured
    ]
    header = ["Protocol", "Accuracy", "Standard error", "Chance"] + ["References"] * accuracy.is_hellaswag
    parts += [md.table(header, rows), shown.get("accuracy", "")]
    if (curve := probed(run)) and "accuracy-curve" in shown:
        parts += [_during_training(curve, accuracy.items), shown["accuracy-curve"]]
    return "\n\n".join(part for part in parts if part)


def _during_training(curve: Probed, items: int) -> str:
    if curve.items is None or curve.errors is None:
        return "During training:"
    part = "the same" if curve.items == items else f"{exact(curve.items)} of the"
    ends = [100 * float(np.min(curve.errors)), 100 * float(np.max(curve.errors))]
    low, high = (fixed(end, 0 if ends[0] >= 2 else 1) for end in ends)
    within = low if low == high else f"{low} to {high}"
    return f"During training, on {part} items (± {within} points, one standard error):"


def _about_items(accuracy: Accuracy) -> str:
    many = f"{exact(accuracy.items)} items"
    if accuracy.is_hellaswag:
        return f"{many} of {md.text(accuracy.name)}'s validation set, four endings each, one true."
    return (
        f"{many}, each a passage of the validation text with four continuations of like length, its own and three "
        "from elsewhere. They are not HellaSwag's items, and the numbers cannot be compared with HellaSwag's."
    )


def _samples(run: Run) -> str:
    if run.samples is None or not run.samples.prompts:
        return "No samples were drawn."
    settings = run.samples.settings
    words = {"temperature": "temperature", "top_k": "top-k", "top_p": "top-p", "seed": "seed"}
    drawn = ", ".join(f"{word} {settings[key]}" for key, word in words.items() if key in settings)
    parts = [f"Drawn with {drawn}."] if drawn else []
    return "\n\n".join(parts + [_sample(prompt) for prompt in run.samples.prompts])


def _sample(prompt: Prompt) -> str:
    begins = prompt.prompt or ""
    name = f"**After** {md.code(begins)}" if begins.strip() else "**From the start of a document**"
    texts = [md.fence((begins + text).strip("\n"), "text") for text in prompt.continuations]
    if not texts:
        return f"{name}\n\nNothing was drawn."
    first, rest = texts[0], texts[1:]
    more = [md.folded("One more" if len(rest) == 1 else f"{len(rest)} more", "\n\n".join(rest))] if rest else []
    return "\n\n".join([name, first, *more])


def _surprise(run: Run, shown: Mapping[str, str]) -> list[str]:
    if run.samples is None or "surprise" not in shown:
        return []
    return ["### What it found hard", surprise.caption(run.samples.surprise.tokens), shown["surprise"]]


def _differences(run: Run) -> str:
    if run.lock is None:
        return "There is no `dvc.lock`: the stages were run by hand, and what they ran with is in `params.yaml`."
    if run.revision.commit is None:
        return "Nothing is committed yet, so there is no run to compare with."
    if run.committed is None:
        return "No run is committed yet (`dvc.lock` is not in the last commit): this is the first."
    old, new = (
        {key: value for key, value in lock.params.items() if not key.startswith("report.")}
        for lock in (run.committed, run.lock)
    )
    rows = [[md.code(key), md.setting(was), md.setting(now)] for key, was, now in differing(old, new)]
    code = [path for path, _, _ in differing(run.committed.inputs, run.lock.inputs)]
    if not rows and not code:
        return "Nothing: settings and code are the same."
    parts = [md.table(["Setting", "Was", "Now"], rows, numbers_from=3) if rows else "The settings are the same."]
    if code:
        title = "One code file differs" if len(code) == 1 else f"{exact(len(code))} code files differ"
        parts.append(md.folded(title, named(code)))
    return "\n\n".join(parts)


def _short_name(accuracy: Accuracy) -> str:
    return "HellaSwag" if accuracy.is_hellaswag else NEXT_LINES


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
