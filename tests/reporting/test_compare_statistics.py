"""Means, tests and fits against worked examples, tables, and scipy's own numbers."""

import math

import pytest

from pipeline.reporting.comparison import statistics
from pipeline.reporting.figure import floats


def test_student_s_distribution_and_holm_s_correction_match_the_tables() -> None:
    for t, freedom, p in ((12.706, 1, 0.05), (2.776, 4, 0.05), (4.604, 4, 0.01), (1.960, 1e6, 0.05), (0, 3, 1.0)):
        assert statistics.two_sided_p(t, freedom) == pytest.approx(p, abs=2e-4)
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_p_values_are_scipy_s() -> None:
    """2 * scipy.stats.t.sf(t, freedom), scipy 1.17."""
    cases = ((0.5, 1, 0.7048327647), (12.7, 1.3, 0.0253842924), (3.2, 2, 0.0853408792), (1.1, 7.7, 0.3045291692))
    for t, freedom, p in cases:
        assert statistics.two_sided_p(t, freedom) == pytest.approx(p, rel=1e-8)


def test_both_t_tests_are_scipy_s() -> None:
    """scipy.stats.ttest_rel(a, b) and ttest_ind(a, b, equal_var=False), scipy 1.17."""
    a, b = [4.6176, 4.6282, 4.6432], [4.5878, 4.5896, 4.6041]
    paired = statistics.paired_difference(a, b)
    welch = statistics.difference(statistics.mean(a), statistics.mean(b))
    assert paired is not None
    assert welch is not None
    assert (paired.t, paired.freedom, paired.p) == pytest.approx((11.8648796243, 2, 0.0070287106), rel=1e-8)
    assert (welch.t, welch.freedom, welch.p) == pytest.approx((3.9626371744, 3.5659255581, 0.0207624630), rel=1e-8)
    assert (paired.paired, welch.paired) == (True, False)


def test_a_paired_test_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 2 sqrt(3), p = 1 - t / sqrt(2 + t^2)."""
    apart = statistics.paired_difference([11, 5, 23], [10, 3, 20])
    assert apart is not None
    assert (apart.value, apart.error, apart.freedom) == pytest.approx((2, 1 / math.sqrt(3), 2))
    assert apart.p == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-9)


def test_values_without_any_spread_are_no_certainty() -> None:
    same, other = statistics.mean([0.1] * 3), statistics.mean([0.3] * 3)
    assert statistics.difference(same, same) is None
    assert statistics.difference(same, other) is None, "0.1 thrice has a spread of 1e-17 in float64"
    assert statistics.difference(same, statistics.mean([0.1])) is None
    assert statistics.paired_difference([3.60, 3.61, 3.62], [3.50, 3.51, 3.52]) is None
    assert statistics.paired_difference([3.60], [3.50]) is None


def test_the_power_law_is_the_line_of_the_logarithms() -> None:
    """scipy.stats.linregress of the logarithms, scipy 1.17."""
    law = statistics.power_law(floats([1e12, 3e12, 1e13, 4e13]), floats([4.9, 4.52, 4.3, 4.01]))
    assert (law.factor, law.exponent, law.r2) == pytest.approx((20.9087913546, -0.0528467432, 0.9869077043), rel=1e-8)
    assert statistics.power_law(floats([1, 2, 3]), floats([2, 2, 2])).exponent == pytest.approx(0)


def test_welch_s_test_matches_a_worked_example() -> None:
    """Means 2 and 4, variances 1 and 4, three values each; p lies between the closed forms for 2 and 3 degrees."""
    apart = statistics.difference(statistics.mean([1, 2, 3]), statistics.mean([2, 4, 6]))
    assert apart is not None
    assert apart.value == -2
    assert apart.error == pytest.approx(math.sqrt(5 / 3))
    assert apart.freedom == pytest.approx((5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2))
    t = 2 / math.sqrt(5 / 3)
    of_two = 1 - t / math.sqrt(2 + t * t)
    of_three = 1 - 2 / math.pi * (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (3 + t * t))
    assert statistics.two_sided_p(t, 2) == pytest.approx(of_two, abs=1e-6)
    assert statistics.two_sided_p(t, 3) == pytest.approx(of_three, abs=1e-6)
    assert of_three < apart.p < of_two
