"""Whatever a text in the pages' inputs is, the pages have the same elements: it stays text in its place."""

from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from pipeline import markdown as md
from pipeline.artifacts import (
    CodeRevision,
    EvaluationMetrics,
    Resume,
    RunSummary,
    Samples,
    TrackedRun,
    TrainingSample,
    TrainingSamples,
)
from pipeline.charts import pages
from pipeline.comparison.page import page_context, render_page
from pipeline.reporting.report import write_report
from tests.comparison.builders import run, unfinished

from . import fixtures

HOSTILE = (
    "<script>alert(1)</script>",
    "</code></td></table></details></main><img src=x onerror=alert(1)>",
    "\\<b onclick='x'>\\</b> --> <!-- <![CDATA[",
    "javascript:alert(1)",
    "[a](javascript:alert(1)) ![b](https://e.org/c) <https://e.org>",
    "a|b \\| c\\\\|d",
    "`` ` ``` ~~~",
    "one\n\n# two\n\n    three\r\n- four\n\n---\n\n```\n> five",
    "**a** _b_ ~~c~~ $d$ &lt;script&gt; &#60;i>",
    "\x1b[31m\x00\x07\u202eabc\u2028\x85",
    "$(touch x) `touch x`; 'a\" && b",
    "{{ 7 * 7 }} {% raw %}",
)

OPTIONAL = ("a", "i", "br")
"""Links of http and https only; the newlines of coloured texts and of samples."""


class Page(HTMLParser):
    """The elements of a page, their attributes, and what else is no text: comments and declarations."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.others: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in OPTIONAL:
            self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPTIONAL:
            self.elements.append(f"/{tag}")

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def unknown_decl(self, data: str) -> None:
        self.others.append(data)


def sound(html: str, plain: str) -> None:
    """Asserts that a page has the elements of one with plain values, and nothing that runs or loads."""
    page = Page(html)
    assert page.elements == Page(plain).elements
    assert page.others == Page(plain).others
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src", "srcset")]
    assert not [link for link in links if not link.startswith(("https://", "figures/", "data:,"))]
    html.encode()


def filled(value: Any, text: str, numbers: bool = False) -> Any:
    """JSON with `text` in place of every text, and of every number of a setting that is only shown."""
    if isinstance(value, Mapping):
        fixed = {"id", "url"}
        return {
            key: inner if key in fixed else filled(inner, text, numbers or key == "model")
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [filled(inner, text, numbers) for inner in value]
    return text if isinstance(value, str) or (numbers and value is not None) else value


def html_of(markdown: str) -> str:
    html: str = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    return html


def report_of(root: Path, text: str) -> list[str]:
    """Both pages of a run whose records, settings and paths are `text`, as HTML."""
    tracked = TrackedRun(
        id="a1", name="n", mode="online", url=text if text in HOSTILE[::2] else f"https://e.org/{text}"
    )
    summary = fixtures.run_summary(
        wandb=tracked,
        git=CodeRevision(revision="x", dirty=True),
        resumes=[Resume(step=1, changed_files=["x"])],
    )
    fixtures.write_run(
        root,
        summary=RunSummary.model_validate(filled(summary.model_dump(), text)),
        metrics=EvaluationMetrics.model_validate(filled(fixtures.evaluation_metrics("hellaswag").model_dump(), text)),
        drawn=Samples.model_validate(filled(fixtures.samples().model_dump(mode="json"), text) | {}, strict=False),
        training_samples=TrainingSamples(samples=[TrainingSample(step=1, tokens=1, text=text)]),
    )
    fixtures.commit(root)
    lock = fixtures.lock(fixtures.PARAMS)
    stage = lock["stages"]["train"]
    stage["params"]["params.yaml"] = {"model": {"key" + text: text, "n_layer": [text]}}
    stage["outs"] = stage["deps"] = [{"path": text, "md5": text, "size": 1}]
    lock["stages"][text] = lock["stages"].pop("sample")
    fixtures.write_yaml(root / "dvc.lock", lock)
    (root / f"new {text}".replace("/", "").replace("\0", "")).write_text("")
    write_report(root, text, 0.9)
    page, html = (root / "reports/report.md").read_text(), (root / "reports/report.html").read_text()
    return [html_of(page), html]


@pytest.fixture
def without_svgs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "write_svgs", lambda folder, charts: None)


@pytest.fixture(scope="module")
def plain_report(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pages, "write_svgs", lambda folder, charts: None)
        return report_of(tmp_path_factory.mktemp("plain"), "plain")


@pytest.mark.usefixtures("without_svgs")
@pytest.mark.parametrize("text", HOSTILE)
def test_a_report_with_any_text_has_the_elements_of_a_plain_one(
    tmp_path: Path, text: str, plain_report: list[str]
) -> None:
    for html, plain in zip(report_of(tmp_path, text), plain_report, strict=True):
        sound(html, plain)


def comparison_of(text: str, kept: bool) -> str:
    tracked = TrackedRun(id="a1", name=text, mode="online", url=text)
    drawn = Samples.model_validate(filled(fixtures.samples().model_dump(mode="json"), text), strict=False)
    experiments = [
        run(
            f"{text}{name}",
            3.5 + seed / 100 + len(name) / 10,
            samples=drawn,
            summary={"wandb": tracked, "hardware": fixtures.hardware(device_name=text, dtype=text, torch=text)},
            changed={"key" + text: text},
            date=text[:3],
            **{"key" + text: text + name, "model__position": name, "train__seed": seed},
        )
        for name in ("a", "bb")
        for seed in (1, 2, 3)
    ]
    broken = [unfinished(text, "failed", note=text), unfinished(text, "unreadable", note=text)]
    return html_of(render_page(text, page_context([*experiments, *broken], kept), {}))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("text", [*HOSTILE, "\ud800"])
def test_a_comparison_with_any_text_has_the_elements_of_a_plain_one(text: str, kept: bool) -> None:
    sound(comparison_of(text, kept), comparison_of("plain", kept))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("escaped", [md.text, md.code])
def test_escaped_text_is_shown_as_it_is_in_a_table_and_outside(text: str, escaped: Callable[[str], str]) -> None:
    shown = " ".join(md.one_line(text).split())
    for html in (html_of(f"x {escaped(text)}"), html_of(md.table([escaped(text)], [[escaped(text)]]))):
        content: list[str] = []
        page = Page("")
        page.handle_data = content.append  # type: ignore[method-assign]
        page.feed(html)
        assert set(page.elements) <= {"p", "/p", "code", "/code"} | {
            f"{end}{tag}" for tag in ("table", "thead", "tbody", "tr", "td", "th") for end in ("", "/")
        }
        assert " ".join("".join(content).split()) in (f"x {shown}", f"{shown} {shown}")
