"""Draws of patients, coins and choices."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from voxfed.privacy.sampling import choose, flip, poisson
from voxfed.study.errors import UsageError

PATIENTS = [f"patient-{i}" for i in range(40)]


def seeded(seed):
    generator = np.random.default_rng(seed)
    return generator.bytes


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.375, 3 / 256])
def test_the_probability_is_exactly_the_rate(rate):
    """All byte strings of the width that a rate needs draw a patient in exactly that share."""
    _, denominator = rate.as_integer_ratio()
    width = (denominator.bit_length() - 1 + 7) // 8
    drawn = sum(
        len(poisson(["p"], rate, random_bytes=lambda n, b=bytes(b): b))
        for b in itertools.product(range(256), repeat=width)
    )
    assert Fraction(drawn, 256**width) == Fraction(rate)


def test_the_threshold_of_an_odd_rate_lies_where_the_fraction_says():
    """0.1 is m / 2^55: the integer m - 1 is drawn and m is not."""
    numerator, denominator = (0.1).as_integer_ratio()
    for value, expected in ((numerator - 1, ["p"]), (numerator, [])):
        word = (value << (56 - denominator.bit_length() + 1)).to_bytes(7)
        assert poisson(["p"], 0.1, random_bytes=lambda n, w=word: w) == expected


def test_a_rate_far_below_two_to_the_minus_64_is_not_rounded_to_zero():
    assert poisson(["p"], 2.0**-200, random_bytes=bytes) == ["p"]
    assert poisson(["p"], 2.0**-200, random_bytes=lambda n: bytes(n - 1) + b"\1") == []


def test_rate_one_draws_everybody_and_an_empty_cohort_draws_nobody():
    assert poisson(PATIENTS, 1.0) == PATIENTS
    assert poisson(PATIENTS, 1) == PATIENTS
    assert poisson([], 0.5) == []


def test_patients_are_drawn_independently_at_the_rate():
    """Frequency of each patient and of each pair over 4000 draws fits the binomial law."""
    source = seeded(7)
    drawn = [set(poisson(PATIENTS[:6], 0.3, random_bytes=source)) for _ in range(4000)]
    for patient in PATIENTS[:6]:
        assert stats.binomtest(sum(patient in d for d in drawn), 4000, 0.3).pvalue > 1e-5
    for pair in itertools.combinations(PATIENTS[:6], 2):
        assert stats.binomtest(sum(set(pair) <= d for d in drawn), 4000, 0.09).pvalue > 1e-5


def test_the_system_is_asked_afresh_each_time():
    """Two draws from the operating system agree with probability 2^-400 only."""
    many = [str(i) for i in range(400)]
    assert poisson(many, 0.5) != poisson(many, 0.5)


@pytest.mark.parametrize("rate", [0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(UsageError, match="sampling rate"):
        poisson(PATIENTS, rate)


def test_a_patient_listed_twice_is_refused():
    with pytest.raises(UsageError, match="twice"):
        poisson(["a", "b", "a"], 0.5)


def test_coins_are_the_bits_of_the_source():
    assert flip(8, random_bytes=lambda n: b"\xa5") == [bool(0xA5 >> i & 1) for i in range(8)]
    assert flip(0) == []
    assert len(flip(13)) == 13


def test_coins_are_fair():
    heads = sum(flip(20_000, random_bytes=seeded(3)))
    assert stats.binomtest(heads, 20_000, 0.5).pvalue > 1e-5


def test_every_choice_is_as_likely():
    """All 10 sets of 2 out of 5 come with the same frequency (a remainder would be biased)."""
    source = seeded(11)
    counts = Counter(tuple(choose(5, 2, random_bytes=source)) for _ in range(5000))
    assert len(counts) == 10
    assert stats.chisquare(list(counts.values())).pvalue > 1e-5


def test_choices_are_distinct_sorted_and_of_the_size_asked():
    for k in range(8):
        chosen = choose(7, min(k, 7))
        assert chosen == sorted(set(chosen))
        assert len(chosen) == min(k, 7)
    with pytest.raises(UsageError, match="more patients"):
        choose(3, 4)
