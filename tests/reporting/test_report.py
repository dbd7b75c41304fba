"""The report of a run: what it says, that it says no more than the numbers, and that nothing missing stops it."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.reporting.figures import accuracy_curve, loss_figure
from pipeline.reporting.report import write_report
from pipeline.reporting.run import read_run
from pipeline.reporting.summary import summary

from . import fixtures

ROOT = Path(__file__).parents[2]


def report(root: Path, title: str = "A model", smoothing: float = 0.9) -> str:
    return (root / write_report(root, title, smoothing)).read_text(encoding="utf-8")


def edit(path: Path, **changes: object) -> None:
    fixtures.write_json(path, json.loads(path.read_text()) | changes)


def test_the_summary_is_three_sentences_with_the_numbers(tmp_path: Path) -> None:
    text = summary(read_run(fixtures.write_run(tmp_path)))
    assert len(re.findall(r"[.](?: |$)", text)) == 3
    for words in ("4.24 M parameters", "9.83 M tokens", "7.2 passes", "2 min 41 s", "3.587", "2.314 bits per byte"):
        assert words in text
    assert "34.2 % ± 2.4 %" in text
    assert "3.9 standard errors above chance (25 %)" in text


def test_the_items_are_said_to_be_cut_from_the_validation_text_not_from_what_the_model_wrote(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    assert 'On 400 four-way items cut from the validation text ("Next lines", not HellaSwag)' in summary(read_run(root))
    assert "\n\n400 items, each a passage of the validation text with four continuations" in report(root)


def test_an_accuracy_within_two_standard_errors_is_not_told_from_chance(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    scores = fixtures.metrics()["next_lines"] | {"acc_norm": 0.28}
    edit(root / "reports/evaluate/metrics.json", next_lines=scores)
    assert "which cannot be told from chance (25 %)" in summary(read_run(root))


def test_items_cut_from_the_documents_are_never_called_hellaswag(tmp_path: Path) -> None:
    text = report(fixtures.write_run(tmp_path))
    told = [line for line in text.splitlines() if "HellaSwag" in line]
    assert told, "the page says that its items are not HellaSwag's"
    assert all("not HellaSwag" in line for line in told)
    assert "GPT-2" not in text
    figure = json.dumps(text)
    assert "1558M" not in figure


def test_hellaswag_stands_beside_its_references_each_under_its_protocol(tmp_path: Path) -> None:
    text = report(fixtures.write_run(tmp_path, fixtures.curves(accuracy="hellaswag"), is_hellaswag=True))
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `acc")}
    assert "GPT-2 124M 28.92 %" in rows["acc"]
    assert "GPT-2 124M 31.14 %" in rows["acc_norm"]
    assert "GPT-2 124M 29.55 %" in rows["acc_norm_token"]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    written = []
    for _ in range(2):
        report(root)
        files = sorted(path for path in (root / "reports").rglob("*") if path.is_file())
        written.append({path: path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert sum(path.suffix == ".svg" for path in written[0]) >= 6


def test_every_picture_of_the_page_is_there_in_both_colour_schemes(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    named = set(re.findall(r'"(figures/[^"]+\.svg)"', report(root)))
    assert len(named) >= 6
    assert named == {f"figures/{path.name}" for path in (root / "reports/figures").iterdir()}
    assert sum(1 for name in named if name.endswith("-dark.svg")) * 2 == len(named)
    assert all((root / "reports" / name).stat().st_size < 150_000 for name in named)


def test_the_report_of_a_long_run_is_no_larger_than_that_of_a_short_one(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path, fixtures.curves(steps=19_073))
    report(root)
    assert (root / "reports/figures/loss.svg").stat().st_size < 150_000
    assert (root / "reports/report.html").stat().st_size < 5_300_000


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("reports/evaluate/metrics.json", "This run has not been evaluated"),
        ("reports/sample/samples.json", "No samples were drawn."),
        ("data/shards/manifest.json", "9.83 M tokens in 2 min 41 s"),
        ("dvc.lock", "There is no `dvc.lock`"),
    ],
)
def test_a_missing_file_becomes_a_sentence(tmp_path: Path, missing: str, says: str) -> None:
    root = fixtures.write_run(tmp_path)
    (root / missing).unlink()
    assert says in report(root)


def test_a_run_with_nothing_but_its_training_loss_still_has_a_report(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path, fixtures.curves(steps=300)[["step", "tokens", "train/loss"]])
    fixtures.write_json(root / "reports/train/summary.json", {})
    fixtures.write_json(root / "reports/evaluate/metrics.json", {})
    fixtures.write_json(root / "reports/sample/samples.json", {})
    text = report(root)
    assert "It has not been evaluated on validation text. No multiple-choice items were scored." in text
    assert "Validation loss was not measured during training" in text
    assert "unknown hardware" in text


def test_a_run_of_one_step_has_a_report(tmp_path: Path) -> None:
    frame = fixtures.curves(steps=2)
    frame.loc[0, "train/loss"] = np.nan  # before the step, only the validation loss is measured
    text = report(fixtures.write_run(tmp_path, frame))
    assert "A run of one step has no curve" in text


def test_losses_that_are_no_numbers_leave_a_gap_and_a_sentence(tmp_path: Path) -> None:
    frame = fixtures.curves()
    frame.loc[[400, 401, 402], "train/loss"] = [np.nan, np.inf, np.nan]
    frame.loc[[400, 401, 402], "event"] = "skipped"
    root = fixtures.write_run(tmp_path, frame)
    edit(root / "reports/train/summary.json", skipped_steps=3, resumes=2, resumed_at=[300, 600])
    metrics = fixtures.metrics()
    metrics["val"] = {"loss": float("nan"), "perplexity": None, "bpb": None, "tokens": 61_234}
    metrics["next_lines"] |= {"acc_norm_stderr": None}
    fixtures.write_json(root / "reports/evaluate/metrics.json", metrics)
    text = report(root)
    assert "not a finite number" in text
    assert "3 step(s) with a loss or gradient that was no finite number were skipped" in text
    assert "interrupted and resumed twice" in text
    assert "nan" not in re.sub(r"[\w-]*nanogpt", "", text.lower())


def test_spikes_skipped_steps_and_restarts_are_marked_inside_the_picture(tmp_path: Path) -> None:
    frame = fixtures.curves()
    frame.loc[0, "train/loss"] = np.nan  # the loss before the first step is measured on validation text alone
    frame.loc[500, ["train/loss", "event"]] = [60.0, "spike"]
    frame.loc[700, ["train/loss", "event"]] = [np.nan, "skipped"]
    frame.loc[900, "event"] = "resumed"
    root = fixtures.write_run(tmp_path, frame)
    edit(root / "reports/train/summary.json", resumed_at=[300])
    figure = loss_figure(read_run(root), 0.9)
    assert figure is not None
    (panel,) = figure.panels
    assert panel.y.high is not None
    assert panel.y.low is not None
    room = 0.02 * (panel.y.high - panel.y.low)  # for half a mark, so that all of it is seen
    marks = {series.name: series for series in panel.series if series.style == "spikes"}
    assert set(marks) == {"spikes", "skipped steps"}
    assert marks["spikes"].x.tolist() == [501 * 8192 / 1e6]
    assert all((series.y <= panel.y.high - room).all() for series in marks.values())
    assert [rule.at for rule in panel.rules] == [301 * 8192 / 1e6, 901 * 8192 / 1e6]


@pytest.mark.parametrize(("tokens", "told"), [(32_768, True), (61_299, False), (100_000, False)])
def test_a_validation_curve_over_part_of_the_split_is_told_from_the_result(
    tmp_path: Path, tokens: int, told: bool
) -> None:
    root = fixtures.write_run(tmp_path)
    train = fixtures.PARAMS["train"] | {"eval_tokens": tokens}
    edit(root / "reports/train/summary.json", params={"train": train})
    text = report(root)
    sentences = (
        "Validation during training is over the first 32,768 tokens of the validation split; "
        "the result below is over all 61,299. The two are not the same number. The first steps, from a loss of"
    )
    assert (sentences in text) == told
    figure = loss_figure(read_run(root), 0.9)
    assert figure is not None
    name = "validation (first 32,768 tokens)" if told else "validation"
    assert name in [series.name for series in figure.panels[0].series]
    assert f"{name.capitalize()} ends at" in figure.alt
    (root / "reports/evaluate/metrics.json").unlink()
    assert ("first 32,768 tokens of the validation split." in report(root)) == told


@pytest.mark.parametrize(
    ("asked", "whole", "told"),
    [
        (100, 400, "During training, on 100 of the items (± 4 to 5 points, one standard error):"),
        (5_000, 400, "During training, on the same items (± 2 points, one standard error):"),
        (1_000, 10_042, "During training, on 1,000 of the items (± 1.3 to 1.5 points, one standard error):"),
        (None, 400, "During training:"),
    ],
)
def test_the_accuracy_during_training_has_the_error_of_its_few_items(
    tmp_path: Path, asked: int | None, whole: int, told: str
) -> None:
    frame = fixtures.curves()
    frame.loc[[0, 600, 1199], "next_lines/acc_norm"] = [0.21, 0.32, 0.39]
    root = fixtures.write_run(tmp_path, frame)
    train = fixtures.PARAMS["train"] | {"hellaswag_items": asked}
    edit(root / "reports/train/summary.json", params={"train": train})
    edit(root / "reports/evaluate/metrics.json", next_lines=fixtures.metrics()["next_lines"] | {"items": whole})
    assert told in report(root)
    figure = accuracy_curve(read_run(root))
    assert figure is not None
    (points,) = figure.panels[0].series
    if asked is None:
        assert points.error is None
    else:
        items = min(asked, whole)
        expected = [100 * math.sqrt(share * (1 - share) / (items - 1)) for share in (0.21, 0.32, 0.39)]
        assert points.error == pytest.approx(expected)


def test_no_items_scored_is_said(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    edit(root / "reports/evaluate/metrics.json", next_lines=fixtures.metrics()["next_lines"] | {"items": 0})
    assert "No multiple-choice items were scored." in report(root)


def test_the_page_is_safe_from_what_a_model_or_a_title_says(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    wild = "```\n<script>alert(1)</script> | a | b |\n````\n\x00\x1b[31m"
    fixtures.write_json(
        root / "reports/sample/samples.json", {"prompts": [{"prompt": "`a` | <b>", "continuations": [wild]}]}
    )
    text = report(root, title="A <script>alert(2)</script> | *title*")
    html = (root / "reports/report.html").read_text(encoding="utf-8")
    assert "\x00" not in text
    assert "`````text" in text
    body = html[html.index("<body>") :]
    assert "<script>alert" not in body
    assert "&lt;script&gt;alert(1)" in body


def test_settings_that_differ_from_the_last_committed_run_are_a_table(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    fixtures.commit(root)
    assert "Nothing: settings and code are the same." in report(root)

    params = copy.deepcopy(fixtures.PARAMS)
    params["train"] |= {"max_lr": 2e-3, "betas": [0.9, 0.99], "seed": 1}
    params["sample"]["prompts"] = ["Two\nlines"]
    fixtures.write_yaml(root / "dvc.lock", fixtures.lock(params, code="9" * 32))
    text = report(root)
    assert "| `train.max_lr` | `0.001` | `0.002` |" in text
    assert "`train.seed`" not in text
    assert "<summary>One code file differs</summary>\n\n`pipeline/model/gpt.py`\n" in text
    assert "-S train.max_lr=0.002 \\\n  -S 'train.betas=[0.9,0.99]'" in text
    assert 'sample.prompts: ["Two\\nlines"]' in text, "what -S cannot say is said in words"


def test_of_many_code_files_that_differ_from_the_last_committed_run_a_few_are_named_and_folded(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    fixtures.commit(root)
    lock = fixtures.lock(fixtures.PARAMS)
    lock["stages"]["train"]["deps"] += [{"path": f"code_{number}.py", "md5": "5" * 32} for number in range(31)]
    fixtures.write_yaml(root / "dvc.lock", lock)
    text = report(root)
    told = text[text.index("## What differs from the run committed before") : text.index("## Where it comes from")]
    assert "The settings are the same.\n\n<details>\n<summary>31 code files differ</summary>" in told
    assert "`code_7.py` and 23 more\n\n</details>" in told
    assert "code_8" not in text


def test_without_a_commit_or_a_committed_run_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    assert "Nothing is committed yet" in report(root)
    fixtures.commit(root, "params.yaml")
    text = report(root)
    assert "this is the first" in text
    assert f"git checkout {fixtures.git(root, 'rev-parse', 'HEAD').strip()}" in text


def test_changed_inputs_are_named_and_what_the_pipeline_writes_is_not(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    code = root / "pipeline/model/gpt.py"
    fixtures.commit(root)
    assert "| Working tree | as committed |" in report(root)
    code.parent.mkdir(parents=True)
    code.write_text("a = 1\n")
    assert "| Working tree | inputs changed or new: `pipeline/` |" in report(root), "as Git names a new folder"
    fixtures.commit(root)
    code.write_text("a = 2\n")
    text = report(root)
    assert "| Working tree | inputs changed or new: `pipeline/model/gpt.py` |" in text
    assert "the revision alone does not repeat the run: `pipeline/model/gpt.py`." in text


def test_changed_files_that_no_stage_reads_leave_the_revision_enough(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    fixtures.commit(root)
    (root / "notes.md").write_text("Think of it.\n")
    text = report(root)
    assert "| Working tree | changed or new, but read by no stage: `notes.md` |" in text
    assert "does not repeat" not in text
    (root / "dvc.lock").unlink()
    assert "does not repeat the run: `notes.md`." in report(root), "which files stages run by hand read is not known"


@pytest.mark.parametrize(
    ("remote", "told"),
    [
        ("https://user:secret@github.com/a/b.git", "git clone https://github.com/a/b.git && cd b"),
        ("git@github.com:a/b.git", "git clone git@github.com:a/b.git && cd b"),
        ("/home/someone/folder", None),
        ("file:///home/someone/folder", None),
    ],
)
def test_the_commands_begin_at_a_remote_that_others_can_reach(tmp_path: Path, remote: str, told: str | None) -> None:
    root = fixtures.write_run(tmp_path)
    fixtures.commit(root)
    fixtures.git(root, "remote", "add", "origin", remote)
    text = report(root)
    assert "secret" not in text
    assert "/home/someone" not in text
    assert (told in text) if told else ("git clone" not in text)


def test_a_file_of_another_form_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    edit(root / "reports/evaluate/metrics.json", val={"loss": "low"})
    with pytest.raises(ValueError, match=r"metrics\.json.*val\.loss"):
        report(root)
    (root / "reports/train/curves.csv").write_text("step\n1\n")
    with pytest.raises(ValueError, match=r"curves\.csv lacks the column"):
        report(root)
    (root / "reports/train/summary.json").unlink()
    with pytest.raises(FileNotFoundError, match="run the train stage"):
        report(root)


def test_the_report_needs_no_torch_and_matplotlib_waits_until_something_is_drawn() -> None:
    code = (
        "import sys, stages.report; print([m for m in ('torch', 'matplotlib', 'plotly', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_matplotlib_and_plotly_are_each_named_in_one_module() -> None:
    modules = sorted((ROOT / "pipeline").rglob("*.py"))
    assert len(modules) > 10
    importing = [path.name for path in modules if re.search(r"^\s*(import|from) matplotlib", path.read_text(), re.M)]
    assert importing == ["svg.py"]
    assert [path.name for path in modules if 'files("plotly")' in path.read_text()] == ["interactive.py"]
