"""What is said of a difference: how it was tested, whether it is larger than its noise, and what a setting does."""

from pathlib import Path

from pipeline.reporting.comparison.effects import effects
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.groups import LOSS, Configuration, configurations
from pipeline.reporting.comparison.page import ranked_configurations
from pipeline.reporting.comparison.statistics import paired_difference
from pipeline.reporting.comparison.verdicts import verdicts

from .test_compare import compared, experiment, rows, seeds


def told(experiments: list[Experiment]) -> str:
    return "\n".join(verdicts(ranked_configurations(experiments, LOSS), LOSS))


def test_runs_of_the_same_seeds_are_held_against_each_other_seed_by_seed() -> None:
    """Differences 0.09, 0.10, 0.11: 0.0058 apart from noise, though each configuration spreads by 0.05."""
    text = told(seeds("rope", [3.50, 3.55, 3.60]) + seeds("learned", [3.59, 3.65, 3.71]))
    assert "`position=learned` is above `position=rope` in validation loss by 0.1000 ± 0.0058: **larger than" in text
    assert "(paired by seed: t = 17.3, 2 degrees of freedom, p = 0.0033)" in text
    assert "paired by seed" in text.splitlines()[-1]
    assert "Welch" not in text


def test_runs_of_other_or_fewer_seeds_are_held_against_each_other_by_welch_s_test() -> None:
    four = told(seeds("rope", [3.50, 3.51, 3.52]) + seeds("learned", [3.60, 3.61, 3.62, 3.61]))
    two = told(seeds("rope", [3.50, 3.51]) + seeds("learned", [3.60, 3.62]))
    for text in (four, two):
        assert "(Welch: t = " in text
        assert "paired" not in text


def test_a_difference_within_the_noise_is_called_that() -> None:
    text = told(seeds("rope", [3.50, 3.54, 3.58]) + seeds("learned", [3.58, 3.50, 3.60]))
    assert "cannot be told from noise with 3 seeds" in text
    assert "**" not in text


def test_a_configuration_with_one_result_beside_repeated_ones_cannot_be_weighed() -> None:
    diverged = experiment("alibi-2", None, model__position="alibi", train__seed=2)
    text = told([*seeds("rope", [3.50, 3.51]), *seeds("alibi", [3.4]), diverged])
    assert "`position=alibi` is below `position=rope`" in text
    assert "has one result: this cannot be held against its noise" in text


def test_equal_values_of_all_seeds_are_no_certainty() -> None:
    text = told(seeds("rope", [3.5] * 3) + seeds("learned", [3.6] * 3))
    assert "by 0.1000: every seed gave the same difference, so nothing tells of the noise." in text
    assert "larger" not in text
    level = told(seeds("rope", [3.5] * 3) + seeds("learned", [3.5] * 3))
    assert "is level with `position=" in level


def test_the_best_as_reference_is_said_to_be_flattered_and_the_committed_one_is_not() -> None:
    others = seeds("rope", [3.50, 3.52, 3.51])
    learned = seeds("learned", [3.60, 3.61, 3.62])
    assert "The reference is the best of these, so its lead is a little flattered." in told(others + learned)
    main = experiment("main", 3.60, committed=True, model__position="learned")
    text = told([main, *learned[1:], *others])
    assert "`position=rope` is below `position=learned`" in text
    assert "flattered" not in text


def test_the_same_seed_run_twice_is_no_second_seed() -> None:
    (group,) = configurations([*seeds("rope", [3.5]), *seeds("rope", [3.5])])
    mean = group.mean("val.loss")
    assert mean is not None
    assert mean.n == 1


def grid(**positions: tuple[list[float], list[float]]) -> list[Experiment]:
    """Losses of seeds 1, 2, ... under each position, with pre-norm and with post-norm."""
    return [
        experiment(
            f"{position}-{norm}-{seed}", loss, model__position=position, model__norm_placement=norm, train__seed=seed
        )
        for position, both in positions.items()
        for norm, losses in zip(("pre", "post"), both, strict=True)
        for seed, loss in enumerate(losses, 1)
    ]


FOUR = grid(
    rope=([3.50, 3.52, 3.51], [3.40, 3.43, 3.42]),
    learned=([3.70, 3.73, 3.70], [3.61, 3.62, 3.62]),
)


def test_each_setting_is_tested_alone_with_the_others_held(tmp_path: Path) -> None:
    """By hand: learned - rope is .20 .21 .19 pre-norm and .21 .19 .20 post-norm, so .205 .200 .195 on average."""
    table = compared(tmp_path, FOUR).split("## What each setting does\n")[1].split("\n## ")[0]
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [(line[0].strip("| "), line[1], line[2], line[3]) for line in lines] == [
        ("`position=learned`", "`rope`", "mean of 2 settings", "+0.2000 ± 0.0029"),
        ("`position=learned`", "`rope`", "`norm_placement=post`", "+0.2000 ± 0.0058"),
        ("`position=learned`", "`rope`", "`norm_placement=pre`", "+0.2000 ± 0.0058"),
        ("`norm_placement=pre`", "`post`", "mean of 2 settings", "+0.0933 ± 0.0044"),
        ("`norm_placement=pre`", "`post`", "`position=rope`", "+0.0933 ± 0.0033"),
        ("`norm_placement=pre`", "`post`", "`position=learned`", "+0.0933 ± 0.0088"),
    ]
    assert "corrected for 6 comparisons (Holm)" in table


def groups(experiments: list[Experiment]) -> list[Configuration]:
    return ranked_configurations(experiments, LOSS)


def test_the_effects_are_corrected_for_their_number_together() -> None:
    """The smallest of the 6, of 0.205, 0.200 and 0.195, is p = 0.000208."""
    smallest = paired_difference([0.205, 0.200, 0.195], [0.0, 0.0, 0.0])
    assert smallest is not None
    (_, table, _) = effects(groups(FOUR), LOSS)
    assert f"**larger than its noise**, p = {6 * smallest.p:.4f} |" in table
    assert f"{6 * smallest.p:.4f}" == "0.0012"


def test_a_single_setting_or_settings_that_change_together_have_no_effects_of_their_own() -> None:
    assert effects(groups(seeds("rope", [3.5, 3.6, 3.7]) + seeds("learned", [3.6, 3.8, 3.7])), LOSS) == []
    together = [
        experiment(
            f"{width}-{seed}",
            3.0 + width / 1e3 + seed**2 / 100,
            model__n_embd=width,
            model__n_head=width // 64,
            train__seed=seed,
        )
        for width in (128, 256)
        for seed in (1, 2, 3)
    ]
    assert effects(groups(together), LOSS) == []


def test_seeds_that_the_cells_do_not_share_give_no_mean_over_them(tmp_path: Path) -> None:
    table = rows(compared(tmp_path, FOUR[:-1]), "Configurations")
    assert table["`position=learned, norm_placement=post`"][0] == "2"
    text = "\n".join(effects(groups(FOUR[:-1]), LOSS))
    assert "mean of" not in text
    assert "`position=rope`" in text
