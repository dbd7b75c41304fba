"""Configurations and statistics, against numbers computed by hand, from tables and by scipy."""

import math
from typing import Any

import pytest

from pipeline.comparison import statistics
from pipeline.comparison.configurations import (
    BITS_PER_BYTE,
    LOSS,
    ONLY,
    Configuration,
    configurations,
    incomparable_metrics,
    mean,
    measurement_differences,
    metric_of,
)
from pipeline.comparison.experiments import Experiment, Run, differing_keys
from pipeline.comparison.statistics import Difference, Significance, effects, significance, t_test

from .builders import run, seeds, unfinished


def ranked(experiments: list[Any]) -> list[Configuration]:
    return configurations(experiments, LOSS)


def difference_of(a: list[float], b: list[float], *, paired: bool) -> Difference:
    """The test of the values of seeds 1, 2, ...; `paired`: of the same seeds."""
    test = t_test(dict(zip("abcd", a, strict=False)), dict(zip("abcd" if paired else "wxyz", b, strict=False)))
    assert test is not None
    assert test.paired == paired
    return test


def test_holm_correction() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_a_paired_test_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 2 sqrt(3), p = 1 - t / sqrt(2 + t^2)."""
    test = difference_of([11, 5, 23], [10, 3, 20], paired=True)
    assert (test.value, test.error, test.df, test.n) == pytest.approx((2, 1 / math.sqrt(3), 2, 3))
    assert test.t == pytest.approx(2 * math.sqrt(3))
    assert test.p == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-9)


def test_welch_s_test_by_hand() -> None:
    """Means 2 and 4, variances 1 and 4, three values each; p lies between the closed forms for df 2 and 3."""
    test = difference_of([1, 2, 3], [2, 4, 6], paired=False)
    assert test.value == -2
    assert test.error == pytest.approx(math.sqrt(5 / 3))
    assert test.df == pytest.approx((5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2))
    t = 2 / math.sqrt(5 / 3)
    p_df_2 = 1 - t / math.sqrt(2 + t * t)
    p_df_3 = 1 - 2 / math.pi * (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (3 + t * t))
    assert p_df_3 < test.p < p_df_2


def test_both_tests_on_measured_losses() -> None:
    """Computed once with scipy 1.17."""
    a, b = [4.6176, 4.6282, 4.6432], [4.5878, 4.5896, 4.6041]
    paired, welch = difference_of(a, b, paired=True), difference_of(a, b, paired=False)
    assert (paired.t, paired.df, paired.p) == pytest.approx((11.8648796243, 2, 0.0070287106), rel=1e-8)
    assert (welch.t, welch.df, welch.p) == pytest.approx((3.9626371744, 3.5659255581, 0.0207624630), rel=1e-8)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"1": 3.60, "2": 3.61, "3": 3.62}, {"1": 3.50, "2": 3.51, "3": 3.52}),
        ({"1": 0.1, "2": 0.1, "3": 0.1}, {"4": 0.3, "5": 0.3}),  # 0.1 three times has a spread of 1e-17 in float64
        ({"1": 3.5, "2": 3.6}, {"1": 3.5}),
        ({"1": 3.5}, {"1": 3.6}),
        ({}, {"1": 3.6, "2": 3.5}),
    ],
)
def test_single_values_and_values_without_variance_are_not_tested(a: dict[str, float], b: dict[str, float]) -> None:
    assert t_test(a, b) is None


def test_means_over_seeds() -> None:
    assert (mean([1, 2, 3]).value, mean([1, 2, 3]).error) == pytest.approx((2, 1 / math.sqrt(3)))
    assert math.isnan(mean([3.5]).error)
    assert math.isnan(mean([]).value)


def test_runs_that_differ_in_seed_and_runtime_are_one_configuration() -> None:
    runs = [*seeds("rope", [3.5, 3.6]), *seeds("learned", [3.3, 3.4], runtime__workers=3)]
    best, worst = ranked(runs)
    assert (best.label, worst.label) == ("position=learned", "position=rope")
    assert best.by_seed(LOSS) == {"1": 3.3, "2": 3.4}
    assert [group.label for group in ranked(runs[:2])] == [ONLY]


def test_a_label_has_whole_keys_if_their_last_parts_are_the_same() -> None:
    (only,) = ranked([run("a", train__eval_interval=7)])
    assert only.label == ONLY
    runs = [run("a", train__steps=1, evaluate__steps=2), run("b", train__steps=3, evaluate__steps=4)]
    assert {group.label for group in ranked(runs)} == {
        "train.steps=1, evaluate.steps=2",
        "train.steps=3, evaluate.steps=4",
    }


def test_a_seed_that_was_run_twice_counts_once() -> None:
    (group,) = ranked([*seeds("rope", [3.5]), *seeds("rope", [3.5])])
    assert group.mean(LOSS).n == 1


def test_settings_that_change_no_metric_do_not_tell_runs_apart() -> None:
    assert differing_keys([run("a"), run("b", sample__temperature=0.5, train__max_lr=1.0)]) == ["train.max_lr"]


@pytest.mark.parametrize(
    ("failed", "seed_count", "failed_seeds"),
    [
        (unfinished("rope-3", "failed", model__position="rope", train__seed=3), 3, {"3"}),
        (unfinished("rope-3", "unreadable", model__position="rope", train__seed=3), 3, {"3"}),
        (unfinished("rope-2", "failed", model__position="rope", train__seed=2), 2, set()),  # run again
        (unfinished("wild", "failed", model__position="rope", train__seed=3, train__max_lr=9.0), 2, set()),
        (unfinished("later", "queued", model__position="rope", train__seed=3), 2, set()),
    ],
)
def test_failed_seeds_of_a_configuration(failed: Experiment, seed_count: int, failed_seeds: set[str]) -> None:
    rope = ranked([*seeds("rope", [3.5, 3.52]), failed, *seeds("learned", [3.6, 3.61])])[0]
    assert rope.label == "position=rope"
    assert len(rope.seeds) == seed_count
    assert rope.failed_seeds.keys() == failed_seeds
    assert rope.mean(LOSS).value == pytest.approx(3.51)


@pytest.mark.parametrize(
    ("changed", "differences", "incomparable"),
    [
        ({"train__max_lr": 0.1}, {}, set()),
        ({"evaluate__stride": 64}, {"stride": ["evaluate.stride"]}, {"loss", "bpb"}),
        ({"benchmarks__items": 7}, {"items": ["benchmarks.items"]}, {"next_lines"}),
        ({"evaluate__dtype": "float32"}, {"precision": ["evaluate.dtype"]}, set()),
        ({"model__block_size": 256}, {"context": ["model.block_size"]}, set()),
        ({"tokenizer__vocab_size": 512}, {"tokens": ["tokenizer.vocab_size"]}, {"loss"}),
        ({"tokenizer__shard_tokens": 512}, {}, set()),
        (
            {"data__source": "files"},
            {"tokens": ["data.source"], "data": ["data.source"]},
            {"loss", "bpb", "next_lines"},
        ),
        ({"metrics": {"task": "hellaswag"}}, {}, set()),
    ],
)
def test_settings_that_change_how_a_metric_is_measured(
    changed: dict[str, Any], differences: dict[str, list[str]], incomparable: set[str]
) -> None:
    runs = [run("a", 3.6), run("b", 3.5, **changed)]
    assert measurement_differences(runs) == differences
    assert {metric.key for metric in incomparable_metrics(runs)} == incomparable
    assert metric_of(runs) == (BITS_PER_BYTE if "tokens" in differences else LOSS)


def test_a_fixed_tokenizer_gives_the_same_tokens_for_other_data() -> None:
    runs = [run("a", tokenizer__encoding="gpt2"), run("b", data__max_bytes=10**6, tokenizer__encoding="gpt2")]
    assert measurement_differences(runs) == {"data": ["data.max_bytes"]}


def significance_of(experiments: list[Run]) -> Significance:
    result = significance(ranked(experiments), LOSS)
    assert result is not None
    return result


def test_configurations_with_the_same_seeds_are_tested_in_pairs() -> None:
    """Differences 0.09, 0.10, 0.11: standard error 0.0058, though each configuration spreads by 0.05."""
    result = significance_of(seeds("rope", [3.50, 3.55, 3.60]) + seeds("learned", [3.59, 3.65, 3.71]))
    assert result.reference.label == "position=rope"
    ((group, difference, test),) = result.rows
    assert group.label == "position=learned"
    assert difference == pytest.approx(0.1)
    assert test is not None
    assert test.paired
    assert test.significant
    assert (test.error, test.t, test.p) == pytest.approx((0.00577, 17.32, 0.00332), rel=1e-3)


@pytest.mark.parametrize(
    ("rope", "learned"), [([3.50, 3.51, 3.52], [3.60, 3.61, 3.62, 3.61]), ([3.50, 3.51], [3.60, 3.62])]
)
def test_configurations_with_other_or_fewer_seeds_are_tested_by_welch_s_test(
    rope: list[float], learned: list[float]
) -> None:
    ((_, _, test),) = significance_of(seeds("rope", rope) + seeds("learned", learned)).rows
    assert test is not None
    assert not test.paired
    assert test.n == len(rope)


def test_a_difference_within_the_noise_is_not_significant() -> None:
    ((_, _, test),) = significance_of(seeds("rope", [3.50, 3.54, 3.58]) + seeds("learned", [3.58, 3.50, 3.60])).rows
    assert test is not None
    assert not test.significant
    assert test.n == 3


def test_a_configuration_with_one_result_is_not_tested() -> None:
    result = significance_of([*seeds("rope", [3.50, 3.51]), *seeds("alibi", [3.4])])
    assert result.reference.label == "position=rope", "the best with several seeds"
    ((group, difference, test),) = result.rows
    assert group.label == "position=alibi"
    assert difference == pytest.approx(-0.105)
    assert test is None


def test_without_repeated_seeds_or_other_configurations_there_is_no_significance() -> None:
    assert significance(ranked([*seeds("rope", [3.5]), *seeds("alibi", [3.4])]), LOSS) is None
    assert significance(ranked(seeds("rope", [3.5, 3.6])), LOSS) is None


def test_the_committed_configuration_is_the_reference_if_it_has_several_seeds() -> None:
    rope, learned = seeds("rope", [3.50, 3.52, 3.51]), seeds("learned", [3.60, 3.61, 3.62])
    assert significance_of(rope + learned).reference.label == "position=rope"
    main = run("main", 3.60, committed=True, model__position="learned", train__seed=1)
    assert significance_of([main, *learned[1:], *rope]).reference.label == "position=learned"
    assert significance_of([main, *rope]).reference.label == "position=rope"


def test_p_values_are_corrected_for_the_number_of_configurations() -> None:
    rope, learned = [3.50, 3.52, 3.51], [3.60, 3.61, 3.63]
    alone = difference_of(learned, rope, paired=True)
    runs = seeds("rope", rope) + seeds("learned", learned) + seeds("alibi", [3.51, 3.52, 3.55])
    test = significance_of(runs).rows[1][2]
    assert test is not None
    assert test.p == pytest.approx(2 * alone.p)


def grid(**positions: tuple[list[float], list[float]]) -> list[Run]:
    """Losses of seeds 1, 2, ... for each position, with pre-norm and with post-norm."""
    return [
        run(f"{position}-{norm}-{seed}", loss, model__position=position, model__norm_placement=norm, train__seed=seed)
        for position, both in positions.items()
        for norm, losses in zip(("pre", "post"), both, strict=True)
        for seed, loss in enumerate(losses, 1)
    ]


GRID = grid(
    rope=([3.50, 3.52, 3.51], [3.40, 3.43, 3.42]),
    learned=([3.70, 3.73, 3.70], [3.61, 3.62, 3.62]),
)


def test_the_effect_of_each_setting_by_hand() -> None:
    """learned - rope is .20 .21 .19 with pre-norm and .21 .19 .20 with post-norm, so .205 .200 .195 on average."""
    assert [
        (e.value, e.baseline, e.where, e.combinations, round(e.test.value, 4), round(e.test.error, 4))
        for e in effects(ranked(GRID), LOSS)
    ] == [
        ("position=learned", "rope", None, 2, 0.2, 0.0029),
        ("position=learned", "rope", "norm_placement=post", 1, 0.2, 0.0058),
        ("position=learned", "rope", "norm_placement=pre", 1, 0.2, 0.0058),
        ("norm_placement=pre", "post", None, 2, 0.0933, 0.0044),
        ("norm_placement=pre", "post", "position=rope", 1, 0.0933, 0.0033),
        ("norm_placement=pre", "post", "position=learned", 1, 0.0933, 0.0088),
    ]


def test_the_effects_are_corrected_together() -> None:
    smallest = difference_of([0.205, 0.200, 0.195], [0.0, 0.0, 0.0], paired=True)
    assert effects(ranked(GRID), LOSS)[0].test.p == pytest.approx(6 * smallest.p)


def test_a_single_setting_or_settings_that_change_together_have_no_effects() -> None:
    assert effects(ranked(seeds("rope", [3.5, 3.6, 3.7]) + seeds("learned", [3.6, 3.8, 3.7])), LOSS) == []
    together = [
        run(f"{n}-{seed}", 3 + n / 1e3 + seed**2 / 100, model__n_embd=n, model__n_head=n // 64, train__seed=seed)
        for n in (128, 256)
        for seed in (1, 2, 3)
    ]
    assert effects(ranked(together), LOSS) == []


def test_a_mean_effect_needs_the_same_seeds_everywhere() -> None:
    found = effects(ranked(GRID[:-1]), LOSS)
    assert {effect.where for effect in found} >= {"position=rope", "norm_placement=pre"}
    assert None not in {effect.where for effect in found}
