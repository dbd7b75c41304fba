"""The report of a run: its charts, the values of its template, and the pages, also of a run by hand."""

import copy
import itertools
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pipeline.artifacts import (
    BenchmarkMetrics,
    CodeRevision,
    EvaluationMetrics,
    PromptSamples,
    Resume,
    Samples,
    Surprisal,
    TokenizerInfo,
    TrackedRun,
    TrainingSample,
    TrainingSamples,
)
from pipeline.charts.specs import Chart
from pipeline.log import UserError
from pipeline.reporting.figures import accuracy_curve, loss_chart, run_charts
from pipeline.reporting.report import context, tracked, versus_chance, write_report
from pipeline.reporting.run import Run, commands, commit_link, differences, read_run, uncommitted

from . import fixtures
from .test_charts import layers

ROOT = Path(__file__).parents[2]


def report(root: Path, title: str = "A model") -> str:
    return (root / write_report(root, title, 0.9)).read_text(encoding="utf-8")


def rows(chart: Chart | None, mark: str) -> list[dict[str, Any]]:
    """The data of a chart's layers with this kind of mark."""
    assert chart is not None
    units = layers(chart.to_dict())
    return list(itertools.chain(*(unit["values"] for unit in units if unit["mark"]["type"] == mark)))


def with_settings(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"model": fixtures.PARAMS["model"], "train": fixtures.PARAMS["train"] | settings}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(fixtures.write_run(tmp_path))


# charts


def test_the_loss_chart_has_training_raw_and_smoothed_and_validation(run: Run) -> None:
    chart = loss_chart(run, 0.9)
    assert chart is not None
    raw, smooth, val = (unit for unit in layers(chart.to_dict()) if unit["mark"]["type"] == "line")
    assert raw["mark"]["opacity"] < 1
    assert np.std([row["y"] for row in smooth["values"]][-300:]) < 0.05
    assert [row["x"] for row in val["values"]][-1] == fixtures.STEPS * fixtures.TOKENS_PER_STEP
    assert chart.series == ["training", "validation (first 32,768 tokens)"]
    assert {row["label"] for row in rows(chart, "text")} == {
        f"{smooth['values'][-1]['y']:.3f}",
        f"{val['values'][-1]['y']:.3f}",
    }
    assert layers(loss_chart(run, 0.0).to_dict())[0]["mark"].get("opacity") is None  # type: ignore[union-attr]


def test_spikes_skipped_steps_resumes_and_the_kept_step_are_marked_inside_the_chart(tmp_path: Path) -> None:
    frame = fixtures.curves()
    frame.loc[0, "train/loss"] = np.nan  # the loss before the first step is measured on validation text alone
    frame.loc[500, ["train/loss", "event"]] = [60.0, "spike"]
    frame.loc[700, ["train/loss", "event"]] = [np.nan, "skipped"]
    resumes = [Resume(step=300, changed_files=[]), Resume(step=900, changed_files=[])]
    summary = fixtures.run_summary(resumes=resumes, kept_step=600)
    chart = loss_chart(read_run(fixtures.write_run(tmp_path, frame, summary)), 0.9)
    assert chart is not None
    (marks,) = (unit for unit in layers(chart.to_dict()) if unit["mark"].get("shape") == "triangle-up")
    assert [(row["series"], row["x"]) for row in marks["values"]] == [
        ("spikes", pytest.approx(501 * 8192, rel=1e-5)),
        ("skipped steps", pytest.approx(701 * 8192, rel=1e-5)),
    ]
    limits = marks["encoding"]["y"]["scale"]
    assert limits["domainMax"] < 10
    assert all(limits["domainMin"] < row["y"] < limits["domainMax"] for row in marks["values"])
    assert [(row["at"], row["label"]) for row in rows(chart, "rule")] == [
        (pytest.approx(301 * 8192, rel=1e-5), "resumed"),
        (pytest.approx(601 * 8192, rel=1e-5), "kept weights"),
        (pytest.approx(901 * 8192, rel=1e-5), "resumed"),
    ]


@pytest.mark.parametrize(
    ("tokens", "part"), [(32_768, 32_768), (61_299, None), (100_000, None)], ids=["part", "all", "more"]
)
def test_a_validation_curve_over_part_of_the_split_says_so(tmp_path: Path, tokens: int, part: int | None) -> None:
    summary = fixtures.run_summary(params=with_settings(eval_tokens=tokens))
    run = read_run(fixtures.write_run(tmp_path, summary=summary))
    assert run.validation_in_training == part
    chart = loss_chart(run, 0.9)
    assert chart is not None
    assert chart.series[1] == ("validation" if part is None else "validation (first 32,768 tokens)")


def test_gpt2s_loss_is_drawn_only_on_its_own_text_and_tokenizer(tmp_path: Path) -> None:
    params = copy.deepcopy(fixtures.PARAMS)
    params["data"]["source"] = "hub"
    for tokenizer, references in (("bpe", []), ("gpt2", [3.2924])):
        params["tokenizer"]["encoding"] = tokenizer
        root = fixtures.write_run(tmp_path / tokenizer)
        lock = fixtures.lock(params)
        lock["stages"]["tokenize"]["params"]["params.yaml"]["data"] = params["data"]
        fixtures.write_yaml(root / "dvc.lock", lock)
        assert [row["at"] for row in rows(loss_chart(read_run(root), 0.9), "rule")] == references


def test_benchmarks_have_errors_and_hellaswag_has_gpt2(tmp_path: Path) -> None:
    ours = fixtures.evaluation_metrics()
    page = report(fixtures.write_run(tmp_path / "ours"))
    assert (
        "| Next lines | 400 | `acc` | 28.61 % ± 2.26 % | 25 % |\n|  |  | `acc_norm` | 34.25 % ± 2.38 % | 25 % |\n"
        in page
    )
    both = ours.model_copy(update={"benchmarks": ours.benchmarks | fixtures.evaluation_metrics("hellaswag").benchmarks})
    page = report(fixtures.write_run(tmp_path / "both", metrics=both))
    assert "| Next lines `acc_norm` | **34.2 %** ± 2.4 %, 3.9 standard errors above chance (25 %) |\n" in page
    assert "| HellaSwag `acc_norm` | **30.2 %** ± 0.5 %, 11 standard errors above chance (25 %) |\n" in page
    assert "\n|  |  | `acc_norm` | 34.25 % ± 2.38 % | 25 % |  |  |\n" in page
    assert "\n|  |  | `acc_norm` | 30.21 % ± 0.46 % | 25 % | 31.14 % | 50.89 % |\n" in page
    some = report(fixtures.write_run(tmp_path / "some", metrics=fixtures.evaluation_metrics("hellaswag", items=400)))
    assert "\n|  |  | `acc_norm` | 30.21 % ± 0.46 % | 25 % |\n" in some  # GPT-2's accuracies are those on all items
    none = report(fixtures.write_run(tmp_path / "none", metrics=EvaluationMetrics(val=ours.val)))
    assert "Benchmarks" not in none


@pytest.mark.parametrize(("asked", "evaluated"), [(100, 400), (5_000, 400), (1_000, 10_042)])
def test_accuracy_during_training_has_the_error_of_its_items(tmp_path: Path, asked: int, evaluated: int) -> None:
    frame = fixtures.curves()
    frame.loc[[0, 600, 1199], "next_lines/acc_norm"] = [0.21, 0.32, 0.39]
    summary = fixtures.run_summary(params=with_settings(benchmark_items=asked))
    root = fixtures.write_run(tmp_path, frame, summary, fixtures.evaluation_metrics(items=evaluated))
    bars = [row for row in rows(accuracy_curve(read_run(root)), "rule") if "low" in row]
    items = min(asked, evaluated)
    expected = [100 * math.sqrt(share * (1 - share) / (items - 1)) for share in (0.21, 0.32, 0.39)]
    assert [row["y"] - row["low"] for row in bars] == pytest.approx(expected, rel=1e-4)


def test_benchmarks_have_their_own_chance_and_metrics(tmp_path: Path) -> None:
    record = BenchmarkMetrics(name="PIQA", items=50, truncated=3, chance=0.5, acc=0.6, acc_stderr=0.07)
    lambada = {"name": "LAMBADA", "chance": 0.0, "perplexity": 12.34, "perplexity_stderr": 0.4}
    tasks = {"piqa": record, "lambada": record.model_copy(update=lambada)}
    metrics = EvaluationMetrics(val=fixtures.evaluation_metrics().val, benchmarks=tasks)
    page = report(fixtures.write_run(tmp_path, metrics=metrics))
    assert "| PIQA `acc` | **60.0 %** ± 7.0 %, not significantly different from chance (50 %) |\n" in page
    assert "| LAMBADA `acc` | **60.0 %** ± 7.0 % |\n" in page
    assert "| PIQA | 50 | `acc` | 60.00 % ± 7.00 % | 50 % |\n| LAMBADA | 50 | `acc` | 60.00 % ± 7.00 % |  |\n" in page
    assert "\n|  |  | `perplexity` | 12.34 ± 0.40 | |\n" in page
    assert "3 items of PIQA did not fit the context." in page


def test_charts_without_data_are_left_out(tmp_path: Path) -> None:
    metrics = EvaluationMetrics(val=fixtures.evaluation_metrics().val)
    frame = fixtures.curves(steps=300)[["step", "tokens", "train/loss"]]
    root = fixtures.write_run(tmp_path, frame, metrics=metrics)
    assert [chart.name for chart in run_charts(read_run(root), 0.9)] == ["loss"]
    frame = fixtures.curves(steps=300)[["step", "tokens"]]
    assert run_charts(read_run(fixtures.write_run(tmp_path / "empty", frame)), 0.9) == []


# the values of the template


def test_the_values_of_the_page(run: Run) -> None:
    values = context(run, "A model", 0.9)
    assert values["mean_surprisal"] == pytest.approx((6.0 + 3.5 + 2.25 + 11.2) / 4)
    assert values["hardest"][:2] == [("telephone", 11.2), ("KING", 6.0)]
    assert values["cut_off"] == pytest.approx(8.8, abs=0.3)
    assert run.epochs == pytest.approx(fixtures.STEPS * fixtures.TOKENS_PER_STEP / 1_362_511)
    packed = run.train.model_copy(update={"epochs": 1.25})  # with padding
    assert replace(run, train=packed).epochs == 1.25
    assert run.validation_tokens == 61_299


@pytest.mark.parametrize(
    ("share", "error", "words"),
    [(0.28, 0.02, "not significantly"), (0.2, 0.02, "2.5 standard errors below"), (0.3, 0.0, "chance is 25 %")],
)
def test_an_accuracy_is_compared_with_chance(share: float, error: float, words: str) -> None:
    assert words in versus_chance(share, error, 0.25)


def test_hardware_in_words() -> None:
    assert fixtures.hardware().describe() == "2 cores (Intel Xeon Platinum 8481C)"
    assert fixtures.hardware(cores=1, device_name="cpu").describe() == "1 core of a CPU"
    gpus = fixtures.hardware(device="cuda", device_name="NVIDIA H100", world_size=8)
    assert gpus.describe() == "8 × NVIDIA H100"


def test_the_tracked_run_is_linked() -> None:
    run = TrackedRun(id="a1", name="a [name]", mode="online", url="https://wandb.ai/a/b c)<script>")
    assert tracked(run) == r"[a \[name\]](https://wandb.ai/a/b%20c%29%3Cscript%3E)"
    assert "`a1`" in tracked(TrackedRun(id="a1", name="a", mode="offline"))
    assert "off" in tracked(TrackedRun(id="a1", name="a", mode="disabled"))


# changes, provenance, reproduction


def test_what_differs_from_the_committed_run(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    assert differences(read_run(root)) is None
    fixtures.commit(root, "params.yaml")
    assert differences(read_run(root)) is None, "no committed dvc.lock"
    fixtures.commit(root)
    assert differences(read_run(root)) == {"settings": [], "code": []}
    params = copy.deepcopy(fixtures.PARAMS)
    params["train"] |= {"max_lr": 2e-3, "betas": [0.9, 0.99], "seed": 1}
    fixtures.write_yaml(root / "dvc.lock", fixtures.lock(params, code="9" * 32))
    assert differences(read_run(root)) == {
        "settings": [("train.max_lr", 1e-3, 2e-3), ("train.betas", [0.9, 0.95], [0.9, 0.99])],
        "code": ["pipeline/model/gpt.py"],
    }
    assert "| `train.max_lr` | `0.001` | `0.002` |" in report(root)


def test_the_commands_set_what_differs_from_the_committed_params(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    assert commands(read_run(root))[-1] == "dvc repro"
    fixtures.commit(root)
    params = copy.deepcopy(fixtures.PARAMS)
    new = {"max_lr": 1e-8, "betas": [0.9, 0.99], "schedule": "it's é", "optimizer": "NULL", "seed": True}
    params["train"] |= new
    params["sample"]["prompts"] = [None, "Two\nlines", "$HOME 'q' \"q\""]
    fixtures.write_yaml(root / "dvc.lock", fixtures.lock(params))
    checkout, _, run = commands(read_run(root))
    assert checkout == f"git checkout {fixtures.git(root, 'rev-parse', 'HEAD').strip()}"
    words = shlex.split(run.replace("\\\n", ""))
    assert words[:3] == ["dvc", "exp", "run"]
    parser = OverridesParser.create()
    overrides = {(parsed := parser.parse_override(word)).key_or_group: parsed.value() for word in words[4::2]}
    expected = {f"train.{key}": value for key, value in new.items()} | {"sample.prompts": params["sample"]["prompts"]}
    assert overrides == expected


@pytest.mark.parametrize(
    ("remote", "clone"),
    [
        ("https://user:secret@github.com/a/b.git", "git clone https://github.com/a/b.git && cd b"),
        ("git@github.com:a/b.git", "git clone git@github.com:a/b.git && cd b"),
        ("/home/someone/folder", None),
        ("file:///home/someone/folder", None),
    ],
)
def test_the_commands_clone_a_remote_that_others_can_reach(tmp_path: Path, remote: str, clone: str | None) -> None:
    root = fixtures.write_run(tmp_path)
    fixtures.commit(root)
    fixtures.git(root, "remote", "add", "origin", remote)
    run = read_run(root)
    assert (commands(run)[0] == clone) if clone else not commands(run)[0].startswith("git clone")
    link = commit_link(run, "0123456789abcdef")
    expected = "[`0123456789`](https://github.com/a/b/commit/0123456789abcdef)"
    assert link == (expected if clone else "`0123456789abcdef`")


def test_uncommitted_files_are_inputs_or_not(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    code = root / "pipeline/model/gpt.py"
    fixtures.commit(root)
    assert uncommitted(read_run(root)) == ([], [])
    code.parent.mkdir(parents=True)
    code.write_text("a = 1\n")
    assert uncommitted(read_run(root)) == (["pipeline/"], []), "as Git names a new directory"
    fixtures.commit(root)
    code.write_text("a = 2\n")
    (root / "notes.md").write_text("Think of it.\n")
    assert uncommitted(read_run(root)) == (["pipeline/model/gpt.py"], ["notes.md"])
    (root / "dvc.lock").unlink()
    inputs, others = uncommitted(read_run(root))
    assert "notes.md" in inputs, "without dvc.lock, any file may be an input"
    assert others == []


# the pages


def test_the_same_run_gives_the_same_bytes_with_every_picture_in_both_schemes(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path, fixtures.curves(steps=19_073))
    written = []
    for _ in range(2):
        page = report(root)
        files = sorted(path for path in (root / "reports").rglob("*") if path.is_file())
        written.append({path: path.read_bytes() for path in files})
    assert written[0] == written[1]
    named = set(re.findall(r'"(figures/[^"]+\.svg)"', page))
    assert named == {f"figures/{path.name}" for path in (root / "reports/figures").iterdir()}
    assert {name for name in named if "-dark" not in name} == {
        "figures/loss.svg",
        "figures/training.svg",
    }
    assert all((root / "reports" / name).stat().st_size < 150_000 for name in named)
    assert (root / "reports/report.html").stat().st_size < 2_000_000


def test_items_cut_from_the_documents_are_not_compared_with_hellaswag(tmp_path: Path) -> None:
    assert "GPT-2" not in report(fixtures.write_run(tmp_path))


def test_a_report_of_the_shortest_run_by_hand_without_items_and_surprisal(tmp_path: Path) -> None:
    frame = fixtures.curves(steps=2)
    frame.loc[0, "train/loss"] = np.nan  # before the step, only the validation loss is measured
    metrics = EvaluationMetrics(val=fixtures.evaluation_metrics().val)
    drawn = fixtures.samples(surprisal=Surprisal(text="", tokens=[]))
    root = fixtures.write_run(tmp_path, frame, metrics=metrics, drawn=drawn)
    (root / "dvc.lock").unlink()
    page = report(root)
    assert page.startswith("# A model\n")
    assert "None" not in page
    assert page.count("\n## ") == 6
    assert [len(rows(loss_chart(read_run(root), 0.9), mark)) > 0 for mark in ("line", "point")] == [True, True]


@pytest.mark.parametrize(("number", "steps"), [(0, []), (1, [0]), (3, [0, 1, 2]), (23, [*range(0, 23, 2)])])
def test_samples_drawn_during_training_are_spread_over_it(tmp_path: Path, number: int, steps: list[int]) -> None:
    drawn = [TrainingSample(step=step, tokens=step, text=f"ROMEO {step}\n") for step in range(number)]
    page = report(fixtures.write_run(tmp_path, training_samples=TrainingSamples(samples=drawn)))
    assert re.findall(r"\nStep (\d+), \d+ tokens:\n\n```text\nROMEO \1\n```\n", page) == [str(step) for step in steps]
    assert page.count("<summary>During training") == (number > 0)


def test_a_small_learning_rate_is_written_with_an_exponent(tmp_path: Path) -> None:
    frame = fixtures.curves(20).assign(**{"train/lr": np.linspace(0, 6e-5, 20)})
    write_report(fixtures.write_run(tmp_path, frame), "A model", 0.9)
    texts = re.findall(r">([\d.e-]+)</text>", (tmp_path / "reports/figures/training.svg").read_text())
    assert {"0", "1e-5", "6e-5"} <= set(texts)


def test_a_run_that_stopped_early_says_so_and_which_weights_it_kept(tmp_path: Path) -> None:
    page = report(fixtures.write_run(tmp_path, summary=fixtures.run_summary(steps=7, kept_step=5)))
    assert "after 7 of " in page
    assert "weights of step 5" in page


def test_resumes_are_listed_with_changed_code_and_the_run_that_is_continued(tmp_path: Path) -> None:
    changed = [f"a_{number}.py" for number in range(31)]
    resumes = [Resume(step=300, changed_files=[], run="abc-300"), Resume(step=1_600, changed_files=changed)]
    page = report(fixtures.write_run(tmp_path, summary=fixtures.run_summary(resumes=resumes)))
    lines = [line for line in page.splitlines() if line.startswith("- at step")]
    assert [line.split(",")[0] for line in lines] == ["- at step 300", "- at step 1"]
    assert "`abc-300`" in lines[0]
    assert "`a_7.py` and 23 more" in lines[1]


WILD = (
    "`<script>alert(1)</script>` | *a* [b](javascript:c) ``` \x00\x1b[31m </details> {{ 7 * 7 }}\n\n# h\n<b onclick=''>"
)


def test_no_text_from_elsewhere_becomes_markup(tmp_path: Path) -> None:
    samples = Samples(
        settings=fixtures.samples().settings,
        prompts=[PromptSamples(prompt=WILD, continuations=[WILD, "```\n" + WILD])],
        surprisal=Surprisal(text=WILD, tokens=[(WILD, 3.0), ("\n\n<i>", 4.0)]),
    )
    metrics = fixtures.evaluation_metrics("hellaswag", name=WILD)
    settings = {"init_from": WILD, "position": WILD, "mlp": WILD, "norm": WILD, "norm_placement": WILD}
    summary = fixtures.run_summary(
        params={
            "model": fixtures.PARAMS["model"] | settings,
            "train": with_settings(optimizer=WILD, schedule=WILD)["train"],
        },
        hardware=fixtures.hardware(device_name=WILD, dtype=WILD, torch=WILD, python=WILD),
        tokenizer=TokenizerInfo(name=WILD, vocab_size=1),
        wandb=TrackedRun(id="a1", name=WILD, mode="online", url=f"https://wandb.ai/{WILD}"),
        git=CodeRevision(revision="0" * 40, dirty=True),
        resumes=[Resume(step=1, changed_files=[WILD])],
    )
    root = fixtures.write_run(tmp_path, None, summary, metrics, samples)
    fixtures.commit(root)
    params = copy.deepcopy(fixtures.PARAMS)
    params["train"]["optimizer"] = WILD
    fixtures.write_yaml(root / "dvc.lock", fixtures.lock(params, code="9" * 32))
    (root / "<script>`|.py").write_text("")
    page = report(root, title=WILD.replace("\n", " "))
    assert "\x00" not in page
    assert "49" not in [word for line in page.splitlines() for word in line.split()]
    html = (root / "reports/report.html").read_text(encoding="utf-8")
    body = html[html.index("<main>") : html.index("</main>")]
    for markup in ("<script", "<b onclick", 'href="javascript', "<h1>h"):
        assert markup not in body
    assert body.count("<details>") == body.count("</details>") == 2, "a prompt and the hashes"
    assert body.count("<h2>") == 8


@pytest.mark.parametrize(
    "name", ["train/summary.json", "evaluate/metrics.json", "sample/samples.json", "train/curves.csv"]
)
@pytest.mark.parametrize("content", [b"", b"\0\0", b"\xff\xfe", b"[" * 100_000, b"null", b'{"settings": "\\ud800"}'])
def test_whatever_is_in_a_damaged_file_it_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    root = fixtures.write_run(tmp_path, fixtures.curves(2))
    (root / "reports" / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(name)):
        read_run(root)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"tokens": 10**400}, "tokens"),
        ({"data": {}}, "data.train.tokens"),
        ({"params": with_settings(eval_tokens="<b>")}, "train.eval_tokens"),
    ],
)
def test_a_summary_that_no_run_can_have_is_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    root = fixtures.write_run(tmp_path, summary=fixtures.run_summary(**changes))
    with pytest.raises(UserError, match=rf"summary\.json: {key} "):
        report(root)


def test_absent_settings_and_numbers_out_of_range_are_dashes(tmp_path: Path) -> None:
    params = {"model": {}, "train": fixtures.PARAMS["train"] | {"total_batch_size": "x"}}
    page = report(fixtures.write_run(tmp_path, summary=fixtures.run_summary(params=params, flops=10**400)))
    assert "| Architecture | – layers, – heads" in page
    assert "– tokens per step" in page
    assert "| Compute | – FLOPs |" in page


@pytest.mark.parametrize("content", [b"", b"\xff", b"stages: [", b"a: 2020-99-99", b"a: !!int x", b"[" * 100_000])
def test_a_damaged_dvc_lock_is_mentioned(tmp_path: Path, content: bytes) -> None:
    root = fixtures.write_run(tmp_path)
    (root / "dvc.lock").write_bytes(content)
    assert read_run(root).lock is None
    assert "There is no readable `dvc.lock`" in report(root)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    (root / "reports/evaluate/metrics.json").write_text('{"val": {"loss": "low"}}')
    with pytest.raises(UserError, match=r"metrics\.json.*val\.loss"):
        report(root)
    (root / "reports/evaluate/metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"metrics\.json.*dvc repro evaluate"):
        report(root)


def test_the_stage_starts_without_torch_and_draws_with_lazily_imported_libraries() -> None:
    code = "import sys, stages.report; print({'torch', 'altair', 'vl_convert', 'wandb'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_fine_tuned_run_names_what_counted_and_the_run_that_made_its_base(tmp_path: Path) -> None:
    """The base is a copy of the data/model of an earlier commit, so DVC has recorded the same hash for both."""
    root = fixtures.write_run(tmp_path)
    fixtures.commit(root)
    base_md5 = fixtures.lock(fixtures.PARAMS)["stages"]["train"]["outs"][0]["md5"]
    base_commit = fixtures.git(root, "rev-parse", "HEAD").strip()
    params = copy.deepcopy(fixtures.PARAMS)
    params["model"]["init_from"], params["evaluate"]["checker"] = "mine", "last_number"
    lock = fixtures.lock(params)
    train = lock["stages"]["train"]
    train["deps"].append({"path": "models/mine", "hash": "md5", "md5": base_md5, "size": 10})
    train["outs"][0]["md5"] = "5" * 32
    fixtures.write_yaml(root / "dvc.lock", lock)
    sizes = fixtures.run_summary().data
    data = {name: size.model_copy(update={"counted": size.tokens // 4}) for name, size in sizes.items()}
    summary = fixtures.run_summary(data=data, params={"model": params["model"], "train": params["train"]})
    summary.write(root / "reports/train/summary.json")
    accuracy = BenchmarkMetrics(name="Exact match", items=500, truncated=0, chance=0.0, acc=0.95, acc_stderr=0.01)
    val = fixtures.evaluation_metrics().val
    EvaluationMetrics(val=val, benchmarks={"exact_match": accuracy}).write(root / "reports/evaluate/metrics.json")
    fixtures.commit(root)
    run = read_run(root)
    assert run.base is not None
    assert (run.base.path, run.base.md5, run.base.commit) == ("models/mine", base_md5, base_commit)
    text = report(root)
    assert "340,627 count in the loss (25 %)" in text.replace("\u00a0", " ")
    assert base_commit[:10] in text
    assert "95.00 % ± 1.00 %" in text.replace("\u00a0", " ")
    assert "highest log-probability" not in text
    summary.model_copy(update={"params": {"model": {"init_from": "scratch"}, "train": {}}}).write(
        root / "reports/train/summary.json"
    )
    assert read_run(root).base is None
