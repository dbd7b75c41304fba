"""What is said of a difference: how it was tested, whether it is larger than its noise, and what a setting does."""

from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.groups import LOSS, configurations
from pipeline.reporting.comparison.page import ranked_configurations
from pipeline.reporting.comparison.verdicts import verdicts

from .test_compare import experiment, seeds


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
