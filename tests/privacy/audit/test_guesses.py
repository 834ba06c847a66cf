"""Guesses at coins: counted by hand, blind to membership, and no proof of what is not there."""

from functools import cache

import numpy as np
import pytest
from voxfed.privacy.audit.binning import quantile_bins
from voxfed.privacy.audit.guesses import Bounds, Guesses, bounds, cap, guess
from voxfed.privacy.audit.membership import histogram
from voxfed.privacy.audit.statistics import BinnedScores
from voxfed.study.errors import UsageError

bounded = cache(bounds)


def site(draw: np.random.Generator, n: int, leak: float = 0.0, scale: float = 1.0) -> BinnedScores:
    """A site's n patients, each with a fair coin; members score `leak` deviations higher."""
    coins = draw.random(n) < 0.5
    scores = scale * (draw.normal(size=n) + leak * coins)
    edges = quantile_bins(scores[coins], scores[~coins])
    return BinnedScores(histogram(scores[coins], edges), histogram(scores[~coins], edges))


def test_guesses_are_whole_bins_from_both_ends() -> None:
    """Counted by hand: of 40 patients at most 10 at each end, of 20 at most 5."""
    first = BinnedScores((1, 2, 3, 8, 6), (5, 3, 10, 1, 1))
    # top: the last bin holds 7, the next 9 would make 16; bottom: 6, the next 5 would make 11
    assert guess([first]) == Guesses(right=6 + 5, made=7 + 6, patients=40)
    second = BinnedScores((0, 7, 4), (4, 5, 0))
    assert guess([second]) == Guesses(right=4 + 4, made=8, patients=20)
    assert guess([first, second]) == Guesses(right=19, made=21, patients=60)
    assert guess([first], share=0.5) == Guesses(right=6 + 8 + 5 + 3, made=27, patients=40)


def test_every_patient_in_one_bin_is_no_guess() -> None:
    """Where scores do not differ nothing is guessed, and nothing proven."""
    found = guess([BinnedScores((9.0,), (11.0,))])
    assert found == Guesses(0, 0, 20)
    assert bounds(found, 1e-5) == Bounds(0.0, 0.0)


def test_who_is_guessed_at_does_not_depend_on_who_is_a_member() -> None:
    """Other coins for the same scores change which guesses are right, and nothing else."""
    draw = np.random.default_rng(2)
    scores = draw.normal(size=60)
    made = set()
    right = set()
    for _ in range(20):
        coins = draw.random(60) < 0.5
        edges = quantile_bins(scores[coins], scores[~coins])
        found = guess(
            [BinnedScores(histogram(scores[coins], edges), histogram(scores[~coins], edges))]
        )
        made.add((found.made, found.patients))
        right.add(found.right)
    assert len(made) == 1
    assert len(right) > 3


def test_nothing_is_proven_where_nothing_leaks() -> None:
    """2,000 audits of three sites without a leak: either bound is above 0 in at most 5 %."""
    draw = np.random.default_rng(3)
    found = []
    for _ in range(2000):
        sites = [site(draw, 60, scale=scale) for scale in (1.0, 0.01, 30.0)]
        found.append(bounded(guess(sites), 1e-5))
    # 5 % of 2,000 are 100; 133 is 3.4 standard deviations above
    assert 10 <= sum(b.general > 0 for b in found) <= 133
    assert 10 <= sum(b.gaussian > 0 for b in found) <= 133


def test_a_planted_leak_is_proven_within_what_it_is() -> None:
    """Members two deviations away: both bounds are well above 0, and below the cap."""
    draw = np.random.default_rng(4)
    found = [bounded(guess([site(draw, 60, leak=2.0) for _ in range(3)]), 1e-5) for _ in range(40)]
    limits = cap(180, 1e-5)
    assert np.median([b.general for b in found]) > 1.5
    assert np.median([b.gaussian for b in found]) > 2.5
    assert all(b.general <= limits.general and b.gaussian <= limits.gaussian for b in found)
    assert all(b.gaussian > b.general for b in found)


def test_looking_at_eight_scores_is_paid_for() -> None:
    """At the corrected level the best of eight scores without a leak proves nothing either."""
    draw = np.random.default_rng(5)
    level = 1 - 0.05 / 8
    false = 0
    for _ in range(400):
        best = [bounded(guess([site(draw, 60)]), 1e-5, level=level) for _ in range(8)]
        false += any(b.gaussian > 0 for b in best)
    # 5 % of 400 are 20; 35 is 3.4 standard deviations above
    assert false <= 35


def test_the_cap_is_every_guess_right() -> None:
    """Half of the patients, all guessed right; as many at a share of a half as published (3.49)."""
    assert cap(100, 1e-300, share=0.5).general == pytest.approx(3.49, abs=0.005)
    assert cap(200, 1e-5) == bounds(Guesses(100, 100, 200), 1e-5)
    assert cap(3, 1e-5) == Bounds(0.0, 0.0)
    caps = [cap(m, 1e-5) for m in (20, 60, 180, 600)]
    assert sorted(caps, key=lambda c: c.general) == sorted(caps, key=lambda c: c.gaussian) == caps
    assert cap(60, 1e-5, level=0.999).general < caps[1].general


def test_a_cap_cannot_be_passed_by_fewer_guesses() -> None:
    """More right guesses never prove less, so that the cap is the most."""
    for delta in (1e-5, 1e-3):
        found = [bounds(Guesses(r, r, 100), delta) for r in range(2, 51, 4)]
        assert [b.general for b in found] == sorted(b.general for b in found)
        assert [b.gaussian for b in found] == sorted(b.gaussian for b in found)
        assert found[-1].general <= cap(100, delta).general


def test_counts_that_prove_too_much_are_refused() -> None:
    """Noised counts, scores fitted to coins and shares out of range make no guesses."""
    halves = (3.0, 7.0), (6.0, 4.0)
    for scores in (BinnedScores(*halves, noise=1.0), BinnedScores(*halves, fitted=True)):
        with pytest.raises(UsageError, match="not fitted"):
            guess([scores])
    for share in (0.0, 0.6, float("nan")):
        with pytest.raises(UsageError, match="share"):
            guess([BinnedScores(*halves)], share=share)
