"""The page: what its template is given, and that whatever a user or a model wrote stays inside its place."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from pipeline.artifacts import PromptSamples, Samples, SampleSettings, SplitSize, Surprisal, TrackedRun
from pipeline.comparison.experiments import Experiment
from pipeline.comparison.page import page_context, render_page, write_comparison
from pipeline.comparison.samples import MAX_CHARACTERS, MAX_LINES, MAX_SAMPLES, SampleTable, SurprisalRow
from pipeline.comparison.scaling import ScalingFit
from tests.reporting import fixtures

from .builders import run, scaling_runs, seeds, unfinished


def rows(experiments: list[Any], kept: bool = False, times: bool = True) -> dict[str, dict[str, str]]:
    """The table of runs: name to heading to cell."""
    table = page_context(experiments, kept, times)["runs_table"]
    return {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}


def commands(experiments: list[Any], kept: bool = False) -> list[str]:
    lines: list[str] = page_context(experiments, kept)["commands"].split("\n")
    return [" ".join(line.split()) for line in lines]


def page_of(experiments: list[Any], title: str = "A question") -> str:
    return render_page(title, page_context(experiments), {})


def html_of(page: str) -> str:
    html: str = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    return html


def test_the_best_run_is_first_and_bold_and_only_differing_settings_are_columns() -> None:
    runs = [run("a", 3.61, train__max_lr=1e-3), run("b", 3.52, train__max_lr=2e-3, sample__temperature=0.5)]
    table = rows(runs)
    assert list(table) == ["`b`", "`a`"]
    assert table["`b`"]["`max_lr`"] == "`0.002`"
    assert (table["`b`"]["Loss"], table["`a`"]["Loss"]) == ("**3.5200**", "3.6100")
    assert list(table["`a`"]) == ["Loss", "Tokens", "Time", "Bits/byte", "Next lines `acc_norm`", "`max_lr`", "W&B"]
    assert page_context(runs)["runs_table"].numbers == range(1, 6)
    probed = run("c", 3.7, train__max_lr=2e-3, train__eval_interval=7, train__sample_interval=7)
    assert list(rows([runs[1], probed])["`b`"]) == [
        "Loss",
        "Tokens",
        "Time",
        "Bits/byte",
        "Next lines `acc_norm`",
        "W&B",
    ]


def test_the_best_time_is_marked_among_runs_of_one_length_on_one_machine() -> None:
    slow, fast = run("slow"), run("fast", summary={"train_time_s": 60.0}, train__seed=2)
    assert [row["Time"] for row in rows([slow, fast]).values()] == ["2\xa0min\xa041\xa0s", "**1\xa0min\xa00\xa0s**"]
    short = run("short", summary={"train_time_s": 9.0, "tokens": 7}, train__max_steps=7)
    other = run("other", summary={"train_time_s": 9.0, "hardware": fixtures.hardware(device="cuda")}, train__seed=3)
    for odd in (short, other):
        assert not any("**" in row["Time"] for row in rows([slow, fast, odd]).values())


def test_every_benchmark_has_a_column() -> None:
    both = fixtures.evaluation_metrics("hellaswag").benchmarks | fixtures.evaluation_metrics().benchmarks
    one, two = run("one", 3.4), run("two", train__seed=2)
    two = replace(two, evaluation=two.evaluation.model_copy(update={"benchmarks": both}))
    table = rows([one, two])
    assert (table["`one`"]["HellaSwag `acc_norm`"], table["`two`"]["HellaSwag `acc_norm`"]) == ("–", "30.21\xa0%")
    assert {row["Next lines `acc_norm`"] for row in table.values()} == {"34.25\xa0%"}


def test_runs_on_conversations_show_the_share_of_tokens_that_count() -> None:
    size = SplitSize(tokens=1000, documents=10, utf8_bytes=900, counted=250)
    chats = run("b", summary={"data": {"train": size, "val": size}}, train__seed=2)
    table = rows([run("a"), chats])
    assert (table["`a`"]["Loss tokens"], table["`b`"]["Loss tokens"]) == ("100\xa0%", "25\xa0%")


def test_a_fine_tuned_run_shows_the_run_that_it_started_from() -> None:
    base, other = (
        replace(run("pretrained"), model_md5="1a2b.dir"),
        replace(run("other", 3.7, train__seed=3), base_md5="9f.dir"),
    )
    tuned = replace(run("tuned", 3.5, train__seed=2), base_md5="1a2b.dir", model_md5="3c.dir")
    started_from = {name: row["Initial weights"] for name, row in rows([base, tuned, other]).items()}
    assert started_from == {"`pretrained`": "random", "`tuned`": "model of `pretrained`", "`other`": "MD5 `9f.dir`"}
    assert "Initial weights" not in next(iter(rows([base]).values()))


def test_columns_of_cost_are_those_that_differ() -> None:
    big = run("b", parameters=8_000_000, summary={"tokens": 7, "tokens_per_sec": 500.0}, model__n_layer=8)
    assert {"Parameters", "FLOPs", "Time", "Tokens/s"} <= rows([run("a"), big])["`a`"].keys()
    assert {"Time", "Tokens/s"}.isdisjoint(rows([run("a"), big], times=False)["`a`"])
    assert rows([run("a"), big])["`a`"]["Tokens/s"] == "60,950"


def test_an_experiment_that_differs_in_sampling_only_does_not_hide_the_committed_run() -> None:
    drawn = fixtures.samples()
    experiments = [
        run("main", 3.5, committed=True, samples=drawn),
        run("warm", 3.5, samples=drawn, sample__temperature=1.2),
        run("deep", 3.4, samples=drawn, model__n_layer=6),
    ]
    assert list(rows(experiments)) == ["`deep`", "`main` (committed)", "`warm` (same model as `main`)"]
    assert [name for name, _ in samples_of(experiments).prompts[0][1]] == ["deep", "main", "warm"]


def test_a_failed_or_queued_experiment_has_a_row_without_numbers() -> None:
    experiments = [
        unfinished("bad", "failed", train__max_lr=9.0),
        unfinished("later", "queued", train__max_lr=8.0),
        run("good"),
    ]
    table = rows(experiments)
    assert list(table) == ["`good`", "`bad` (failed)", "`later` (queued)"]
    assert table["`bad` (failed)"].pop("`max_lr`") == "`9.0`"
    assert set(table["`bad` (failed)"].values()) == {"–"}
    context = page_context(experiments)
    assert context["states"] == {"failed": 1, "queued": 1}
    assert "bad" not in context["commands"]


def test_no_value_is_the_best_where_a_metric_is_not_comparable() -> None:
    table = rows([run("a", 3.6), run("b", 3.5, evaluate__stride=64)])
    assert table["`b`"]["Loss"] == "3.5000"
    assert table["`b`"]["Bits/byte"] == f"{3.5 / 1.55:.4f}"


def test_runs_with_different_tokens_are_ranked_by_bits_per_byte() -> None:
    table = rows([run("bytes", 1.5, bpb=2.45, tokenizer__encoding="bytes"), run("bpe", 3.6, bpb=2.31)])
    assert list(table) == ["`bpe`", "`bytes`"]
    assert (table["`bpe`"]["Loss"], table["`bpe`"]["Bits/byte"]) == ("3.6000", "**2.3100**")


def test_a_w_and_b_run_is_a_link_or_an_id_that_a_kept_page_leaves_out() -> None:
    online = TrackedRun(mode="online", id="x", name="it", url="https://wandb.example/it")
    disabled = TrackedRun(mode="disabled", id="y", name="none")
    runs = [run("a", summary={"wandb": online}), run("b"), run("c", summary={"wandb": disabled})]
    assert [row["W&B"] for row in rows(runs).values()] == ["[it](https://wandb.example/it)", "`a1b2c3d4`", "–"]
    assert [row["W&B"] for row in rows(runs, kept=True).values()] == ["[it](https://wandb.example/it)", "–", "–"]
    assert "W&B" not in rows(runs[1:], kept=True)["`b`"]


def test_commands_restore_a_run_or_repeat_it_in_another_clone() -> None:
    changed = {"train.seed": 2, "data.files": ["it's a|b"], "tracking.group": "seeds"}
    experiments = [
        run("main", 3.4, committed=True),
        run("a", train__seed=2, changed=changed),
        unfinished("x", "failed"),
    ]
    assert commands(experiments) == ["git checkout 0123456789 # as committed", "dvc exp apply a # seed=2"]
    assert commands(experiments, kept=True) == [
        "git checkout base",
        "dvc repro # as committed",
        """dvc exp run -S train.seed=2 -S 'data.files=['"'"'it\\'"'"'s a|b'"'"']' # a""",
    ]


def test_a_kept_page_checks_out_every_commit() -> None:
    runs = [run("a", 3.1, base="one"), run("b", 3.2, base="two"), run("c", 3.3, base="one")]
    assert commands(runs, kept=True) == [
        "git checkout one",
        "dvc exp run # a",
        "dvc exp run # c",
        "",
        "git checkout two",
        "dvc exp run # b",
    ]


def test_commits_days_and_machines() -> None:
    gpus = fixtures.hardware(device="cuda", device_name="NVIDIA H100", world_size=8)
    context = page_context(
        [
            run("a", date="2026-11-21T07:03:47"),
            run("b", 3.5, date="2026-11-20T23:59:59", train__seed=2),
            run("c", 3.7, summary={"hardware": gpus}, base="other"),
        ]
    )
    assert context["commits"] == ["base", "other"]
    assert context["days"] == ["2026-11-20", "2026-11-21"]
    assert context["machines"] == [
        "2 cores (Intel Xeon Platinum 8481C), bfloat16, torch 2.13.0",
        "8 × NVIDIA H100, bfloat16, torch 2.13.0",
    ]


def test_validation_curves_over_a_part_of_the_split() -> None:
    assert page_context([run("a", train__eval_tokens=32_768)])["eval_tokens"] == [32_768]
    assert page_context([run("a", train__eval_tokens=61_299)])["eval_tokens"] == []
    assert page_context([run("a", train__eval_tokens=None)])["eval_tokens"] == []
    conversations = run("a", val_tokens=20_000, train__eval_tokens=32_768)  # that count; read are all of the split
    assert page_context([conversations])["eval_tokens"] == [32_768]


def texts(*pairs: tuple[str | None, str], temperature: float = 0.8) -> Samples:
    """One continuation of each prompt."""
    return fixtures.samples(
        settings=SampleSettings(temperature=temperature, top_k=50, top_p=1.0, seed=1, max_new_tokens=200),
        prompts=[PromptSamples(prompt=prompt, continuations=[text]) for prompt, text in pairs],
    )


def samples_of(experiments: list[Any]) -> SampleTable:
    table = page_context(experiments)["samples"]
    assert isinstance(table, SampleTable)
    return table


def test_prompts_that_several_runs_have_are_side_by_side_the_best_run_first() -> None:
    worse = run("worse", 3.7, samples=texts((None, "Act I"), ("To\nbe", " or not")), train__seed=2)
    better = run("better", 3.5, samples=texts(("To\nbe", " and\n  not\n"), ("alone", "x")))
    table = samples_of([worse, better])
    assert table.prompts == [("To be", [("better", "&nbsp;and<br>&nbsp;&nbsp;not"), ("worse", "&nbsp;or not")])]
    assert len(table.settings) == 1
    assert table.seed is None
    assert page_context([better, run("bare", train__seed=3)])["samples"] is None


def test_different_sampling_settings_are_listed_by_run() -> None:
    runs = [run(name, samples=texts(("a", "b"), temperature=warmth)) for name, warmth in (("cold", 0.5), ("warm", 1.0))]
    settings = dict(samples_of(runs).settings)
    assert settings.keys() == {"cold", "warm"}
    assert "`temperature` 0.5" in settings["cold"]


def test_long_samples_and_many_runs_are_cut() -> None:
    long = texts(("p", "\n" * 3 + "word " * 300), ("q", "a\n" * 50), ("r", "b"))
    table = samples_of([run(f"run-{n}", samples=long) for n in range(40)])
    assert table.available == 40
    characters, lines, short = (cells for _, cells in table.prompts)
    assert len(characters) == len(lines) == len(short) == MAX_SAMPLES
    assert characters[0][1].endswith(" …")
    assert len(characters[0][1]) <= MAX_CHARACTERS + 2
    assert lines[0][1].count("<br>") == MAX_LINES - 1
    assert short[0][1] == "b"


def surprisal(text: str, *nats: float) -> Surprisal:
    """A text in tokens of one letter."""
    return Surprisal(text=text, tokens=list(zip(text, nats, strict=True)))


def surprisal_of(experiments: list[Any]) -> dict[str, SurprisalRow]:
    return {row.name: row for row in page_context(experiments)["surprisal"]}


def test_surprisal_of_the_same_text_by_run() -> None:
    def reader(name: str, *nats: float, **params: Any) -> Experiment:
        return run(name, samples=fixtures.samples(surprisal=surprisal("é", *nats)), **params)

    by_run = surprisal_of([reader("a", 2 * math.log(2)), reader("b", 1.0, train__seed=2)])
    assert by_run["a"].tokens == [1]
    assert by_run["a"].nats_per_token.value == pytest.approx(1.386, abs=1e-3)
    assert by_run["a"].bits_per_byte.value == pytest.approx(1.0), "two bits for two bytes"


def test_different_or_single_texts_are_not_compared() -> None:
    one = run("a", samples=fixtures.samples(surprisal=surprisal("ab", 1.0, 1.0)))
    other = run("b", samples=fixtures.samples(surprisal=surprisal("cd", 1.0, 1.0)))
    empty = run("c", samples=fixtures.samples(surprisal=surprisal("")))
    assert surprisal_of([one, other]) == {}
    assert surprisal_of([one, empty]) == {}


def sweep() -> list[Any]:
    """Two configurations of three seeds; each writes its name, and has `seed` bits of surprisal at each letter."""
    return [
        run(
            f"{position}-{seed}",
            3.5 + seed / 100 + (position == "learned"),
            samples=Samples(
                settings=fixtures.samples().settings,
                prompts=[PromptSamples(prompt="To be", continuations=[f"{position}-{seed}"])],
                surprisal=surprisal("ab", *[seed * math.log(2)] * 2),
            ),
            model__position=position,
            train__seed=seed,
        )
        for position in ("rope", "learned")
        for seed in (3, 1, 2)
    ]


def test_where_seeds_repeat_one_run_of_each_configuration_is_shown_with_the_same_seed() -> None:
    table = samples_of(sweep())
    assert table.seed == "1"
    assert table.prompts == [("To be", [("position=rope", "rope-1"), ("position=learned", "learned-1")])]


def test_a_configuration_without_the_shared_seed_shows_another() -> None:
    runs = [one for one in sweep() if one.name not in ("rope-1", "rope-2", "learned-3")]
    (_, cells) = samples_of(runs).prompts[0]
    assert [text for _, text in cells] == ["rope-3", "learned-1"]


def test_where_seeds_repeat_surprisal_is_a_mean_over_seeds() -> None:
    """1, 2 and 3 bits a byte: mean 2, standard error 1/sqrt(3)."""
    by_configuration = surprisal_of(sweep())
    assert list(by_configuration) == ["position=rope", "position=learned"]
    bits = by_configuration["position=rope"].bits_per_byte
    assert (bits.value, bits.error, bits.n) == pytest.approx((2.0, 1 / math.sqrt(3), 3))


HEADINGS = [
    "Runs",
    "Configurations",
    "Effect of each setting",
    "Significance",
    "Tokens and time to the same loss",
    "Curves",
    "Scaling",
    "Samples",
    "Surprisal of the same text",
    "Reproduce",
]


def headings(page: str) -> list[str]:
    return [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]


def everything() -> list[Any]:
    """Two settings with two values each, three seeds; sizes that differ; curves, samples and failures."""
    grid = [
        run(
            f"{position}-{layers}-{seed}",
            3.5 + 0.1 * (position == "alibi") - 0.02 * layers + 0.001 * (seed * 7919 * len(position) * layers % 13),
            parameters=layers * 10**6,
            curves=fixtures.curves(30, seed),
            samples=fixtures.samples(),
            model__position=position,
            model__n_layer=layers,
            train__seed=seed,
            train__eval_tokens=1024,
        )
        for position in ("rope", "alibi")
        for layers in (1, 2, 4, 8)
        for seed in (1, 2, 3)
    ]
    return [*grid, unfinished("bad", "failed", model__position="rope"), unfinished("odd", "unreadable")]


def test_a_page_with_all_sections_is_sound_markdown(tmp_path: Path) -> None:
    path = write_comparison(tmp_path, everything(), "Everything", 0.5, html=True, reference="rope-1-1")
    page = path.read_text(encoding="utf-8")
    assert headings(page) == HEADINGS
    assert "\n\n\n" not in page
    assert page.endswith("```\n")
    assert not [line for line in page.splitlines() if line != line.rstrip()]
    html = html_of(page)
    assert "<p>|" not in html, "every table is one"
    assert html.count("<h2>") == len(HEADINGS)
    for name in ("validation", "training", "compute"):
        assert (tmp_path / f"compare/{name}-dark.svg").exists()
        assert f'srcset="compare/{name}-dark.svg"' in page
        assert f'id="chart-{name}"' in (tmp_path / "compare.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("experiments", "sections"),
    [
        ([], []),
        ([run("main", committed=True)], []),
        ([run("only")], ["Runs", "Reproduce"]),
        ([run("a"), run("b", train__max_lr=1.0)], ["Runs", "Significance", "Surprisal of the same text", "Reproduce"]),
        ([unfinished("bad", "failed"), unfinished("worse", "failed", train__seed=2)], ["Runs", "Reproduce"]),
        (
            seeds("rope", [3.5] * 3) + seeds("learned", [3.6] * 3),
            ["Runs", "Configurations", "Significance", "Surprisal of the same text", "Reproduce"],
        ),
    ],
)
def test_sections_without_content_are_left_out(experiments: list[Any], sections: list[str]) -> None:
    page = page_of(experiments)
    assert headings(page) == sections
    assert "\n\n\n" not in page
    assert page.endswith("\n")


def test_every_warning_is_rendered() -> None:
    changed: dict[str, Any] = {
        "evaluate__stride": 64,
        "evaluate__dtype": "float32",
        "benchmarks__items": 7,
        "model__block_size": 256,
        "data__source": "files",
    }
    experiments = [
        *seeds("rope", [3.5, 3.52]),
        unfinished("rope-3", "failed", model__position="rope", train__seed=3),
        unfinished("odd", "unreadable"),
        run("other", 3.4, base="older", **changed),
    ]
    page = page_of(experiments)
    warnings = page.split("**Warnings**\n\n")[1].split("\n\n")[0].splitlines()
    assert len(warnings) == 6 + 1 + 1 + 2
    assert all(warning.startswith("- ") for warning in warnings)


def test_names_and_titles_with_markup_stay_text() -> None:
    wild = "a|b <script>x</script> `c`\n# d"
    runs = [run(wild, 3.5, train__note=wild, changed={"train.note": wild}), run("b", 3.6, train__note="x")]
    html = html_of(page_of(runs, title=wild))
    assert "<script>" not in html
    assert html.count("<h1>") == 1
    assert html.count("<tr>") == 3 + 3, "two rows under each of two headers"
    kept = html_of(render_page("A", page_context(runs, kept=True), {}))
    assert "<script>" not in kept
    assert kept.rstrip().endswith("</code></pre>")


def test_whatever_a_model_wrote_stays_inside_its_cell() -> None:
    wild = "</td></table>\n\n# no title <script>alert(1)</script> `|` \x00\ud800"
    page = page_of([run(name, samples=texts((wild, wild))) for name in ("a", "b<i>")])
    html = html_of(page)
    assert html.count('<td valign="top"') == 2
    assert html.count("<table>") == html.count("</table>")
    assert "<script>" not in html
    assert html.count("<h1>") == 1
    assert "<i>" not in html
    page.encode()


def test_a_scaling_fit_has_tables_a_chart_and_a_file(tmp_path: Path) -> None:
    path = write_comparison(tmp_path, scaling_runs(), "Sizes", 0.5)
    page = path.read_text(encoding="utf-8")
    section = page.split("## Scaling\n")[1].split("## ")[0]
    assert section.count("compare/residuals.svg") == section.count("compare/compute.svg") == 1
    assert "| fit | 2.50 | 60.0 | 0.340 | 200 | 0.400 |" in section
    assert "1.8 epochs" in section
    assert html_of(page).count("<p>|") == 0
    assert "\n\n\n" not in page
    fit = ScalingFit.parse((tmp_path / "scaling.json").read_bytes(), "scaling.json")
    assert pytest.approx(2.5, rel=1e-3) == fit.law.E
