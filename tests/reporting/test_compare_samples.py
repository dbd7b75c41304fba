"""What the runs of a comparison wrote: the same prompts side by side, the same text read, whatever a run lacks."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from pipeline.reporting.comparison.experiments import Experiment, listed, with_results
from pipeline.reporting.comparison.groups import configurations
from pipeline.reporting.comparison.samples import MOST_CHARACTERS, MOST_LINES, MOST_RUNS, same_prompts, same_text
from pipeline.reporting.run import Samples

from . import fixtures
from .test_compare import compared, experiment
from .test_compare_reading import entry, shown


def wrote(name: str, samples: Mapping[str, Any] | None = None, **changed: Any) -> Experiment:
    """An experiment with samples, those of the fixtures if none are given."""
    one = experiment(name, **changed)
    return replace(one, samples=Samples.model_validate(fixtures.samples() if samples is None else samples))


def texts(*pairs: tuple[str | None, str], **settings: Any) -> dict[str, Any]:
    """samples.json with one continuation of each prompt."""
    return {"settings": settings, "prompts": [{"prompt": prompt, "continuations": [text]} for prompt, text in pairs]}


def cells(page: str) -> list[str]:
    """The cells of the tables of continuations, as HTML."""
    return [part.split("</td>")[0] for part in page.split('<td valign="top" width="')[1:]]


def test_the_same_prompts_stand_side_by_side_the_best_run_first(tmp_path: Path) -> None:
    page = compared(
        tmp_path,
        [
            wrote("worse", texts((None, "Act I"), ("To be", " or not"), seed=1), loss=3.7, train__seed=2),
            wrote("better", texts(("To be", " and\n  not"), ("alone", "x"), seed=1), loss=3.5),
        ],
    )
    assert "The first continuation of each, drawn with `seed` 1." in page
    assert page.count("<details>") == 1
    assert "<summary>After <code>To be</code></summary>" in page
    better, worse = "<code>better</code><br>&nbsp;and<br>&nbsp;&nbsp;not", "<code>worse</code><br>&nbsp;or not"
    assert cells(page) == [f'50%">{better}', f'50%">{worse}']


def test_different_settings_are_said(tmp_path: Path) -> None:
    runs = [wrote(name, texts(("a", "b"), temperature=warmth)) for name, warmth in (("cold", 0.5), ("warm", 1.0))]
    page = compared(tmp_path, runs)
    assert "**They were drawn with different settings**: `cold`: `temperature` 0.5; `warm`: `temperature` 1.0." in page


def test_runs_that_failed_or_have_no_samples_are_passed_over(tmp_path: Path) -> None:
    runs = [experiment("bad", state="failed", train__seed=3), experiment("bare", train__seed=4), wrote("one")]
    assert "The same prompts" not in compared(tmp_path, runs)
    page = compared(tmp_path, [*runs, wrote("two", train__seed=5)])
    assert page.count("<details>") == 3
    assert "From the start of a document" in page
    assert not any("bad" in cell or "bare" in cell for cell in cells(page))


def test_only_the_beginning_of_each_text_and_the_first_runs_are_shown() -> None:
    long = [wrote(f"run-{n}", texts(("p", "\n" * 3 + "word " * 300), ("q", "a\n" * 50), ("r", "b"))) for n in range(40)]
    page = "\n\n".join(same_prompts(long, configurations(long)))
    assert f"The first {MOST_RUNS} of 40 are shown." in page
    found = cells(page)
    assert len(found) == 3 * MOST_RUNS
    assert all(cell.endswith(" …") for cell in found[: 2 * MOST_RUNS])
    assert max(map(len, found)) < MOST_CHARACTERS + 60
    assert found[MOST_RUNS].count("<br>") == MOST_LINES
    assert found[-1].endswith("<br>b")


def test_whatever_a_model_wrote_stays_inside_its_cell() -> None:
    wild = "</td></table>\n\n# no title <script>alert(1)</script> `|` \x00\ud800"
    runs = [wrote(name, texts((wild, wild))) for name in "ab"]
    page = "\n\n".join(same_prompts(runs, configurations(runs)))
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(page + "\n\nend")
    assert html.count("<td") == html.count("</td>") == 2
    assert "<h1>" not in html
    assert "<script>" not in html
    assert html.endswith("</details>\n<p>end</p>\n")
    page.encode()


def read(text: str, *nats: float | None) -> dict[str, Any]:
    """samples.json of a run that read a text in tokens of one letter."""
    return {"surprise": {"text": text, "tokens": [[letter, value] for letter, value in zip(text, nats, strict=True)]}}


def test_the_same_text_has_its_nats_and_bits_per_byte_by_run(tmp_path: Path) -> None:
    runs = [wrote("a", read("é", 2 * math.log(2))), wrote("b", read("é", None), train__seed=2), experiment("none")]
    page = compared(tmp_path, runs)
    assert "| `a` | 1 | 1.386 | 1.000 |" in page, "two bits for two bytes"
    assert "| `b` | 1 | – | – |" in page
    assert "| `none`" not in page.split("## The same text")[1]


@pytest.mark.parametrize("others", [[], [wrote("b", read("other", *[1.0] * 5))]])
def test_texts_of_which_there_are_two_or_none_are_not_compared(others: list[Experiment]) -> None:
    runs = [wrote("a", read("text", *[1.0] * 4)), *others]
    assert same_text(runs, configurations(runs)) == []


def test_samples_are_read_from_git_with_the_other_results() -> None:
    files = {"reports/sample/samples.json": json.dumps(fixtures.samples())}
    _, own = listed(shown([entry("own")]))
    one = with_results(own, lambda rev, path: files.get(path))
    assert one is not None
    assert [prompt.prompt for prompt in one.samples.prompts] == [None, "ROMEO\n", "To be, or not to be"]
    assert one.samples.surprise.tokens[0] == ("KING", 6.0)
    bare = with_results(own, lambda rev, path: None)
    assert bare is not None
    assert bare.samples == Samples()
    broken = with_results(own, lambda rev, path: '{"prompts": 3}' if path.endswith("samples.json") else None)
    assert broken is not None
    assert broken.problem.startswith("samples.json: prompts ")


def sweep() -> list[Experiment]:
    """Two configurations of three seeds; what each wrote is its name, what it read took `seed` nats a letter."""
    return [
        wrote(
            f"{position}-{seed}",
            texts(("To be", f"{position}-{seed}")) | read("ab", *[seed * math.log(2)] * 2),
            loss=3.5 + seed / 100,
            model__position=position,
            train__seed=seed,
        )
        for position in ("rope", "learned")
        for seed in (3, 1, 2)
    ]


def test_where_seeds_repeat_one_run_of_each_configuration_is_shown_of_the_same_seed(tmp_path: Path) -> None:
    page = compared(tmp_path, sweep())
    assert [cell.partition(">")[2] for cell in cells(page)] == [
        "<code>position=rope</code><br>rope-1",
        "<code>position=learned</code><br>learned-1",
    ]
    assert "Of each configuration one run is shown, of seed 1 where there is one." in page


def test_a_configuration_without_the_shared_seed_shows_another(tmp_path: Path) -> None:
    runs = [one for one in sweep() if one.name != "rope-1"]
    assert [cell.rpartition("<br>")[2] for cell in cells(compared(tmp_path, runs))] == ["learned-2", "rope-2"]
    runs = [one for one in runs if one.name not in ("rope-2", "learned-3")]
    assert [cell.rpartition("<br>")[2] for cell in cells(compared(tmp_path, runs))] == ["learned-1", "rope-3"]


def test_where_seeds_repeat_the_same_text_is_told_by_configuration(tmp_path: Path) -> None:
    """Per byte 1, 2 and 3 bits: their mean is 2, its standard error 1/sqrt(3)."""
    page = compared(tmp_path, sweep()).split("## The same text")[1]
    assert "| `position=rope` | 2 | 1.386 ± 0.400 | 2.000 ± 0.577 |" in page
    assert "rope-1" not in page.split("## Take")[0]
