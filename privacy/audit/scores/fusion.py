"""Several scores of a patient joined into one, fitted by a site on its own patients.

A rule that is fitted on patients and tried on the same patients finds a leak where there is none,
so every patient is scored by a rule that was fitted without that patient (Dubinski et al., CDI,
2025, for fusion). Two traps stay, and both were simulated. Folds have rules of their own, so that
pooled scores are not comparable: the AUC without leak falls to 0.48 with 20 patients a group.
Scores in standard deviations of the fold's training patients, who are alike in all folds, mend it.
And each pair of folds teaches each other, so that the AUC without leak varies by twice the
variance of a fixed score: an interval that ignores it starts above 0.5 in 8 % of the audits of a
model without leak, not in 2.5 % (`fitted` in ../statistics.py). The permutation test is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri
from scipy.stats import rankdata

from ....study.errors import UsageError

FOLDS = 5
PERMUTATIONS = 999
PENALTY = 1.0  # on the squared weights of standardised features
TURNS = 50  # of Newton's method, which ends after 5 to 8
AT_ONCE = 100  # permutations fitted together: 100 x 400 patients x 25 features are 8 MB

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fused:
    """What a rule fitted on other patients says of each patient.

    Attributes:
        scores: (n,), higher where the patient is more like a member.
        area: their AUC.
        p_value: how often patients without any leak give an AUC as high.
    """

    scores: Values
    area: float
    p_value: float


def fuse(features: Values, members: Flags, seed: int, *, permutations: int = PERMUTATIONS) -> Fused:
    """Returns each patient's cross-validated score, and how sure it is that they tell.

    The p-value is that of a permutation test, which fits all rules anew for each permutation of
    the patients over the two groups: exact where the groups were drawn by coin flips (Ojala and
    Garriga, JMLR 11, 2010).

    Args:
        features: (n, F), one row a patient, in an order that membership did not set.
        members: (n,), who trained.
        seed: of the folds and the permutations.
        permutations: the p-value is at least 1 / (permutations + 1).

    Raises:
        UsageError: as `check`.
    """
    check(features, members)
    generator = np.random.default_rng(seed)
    folds, features = stratified_folds(members, generator), normal_ranks(features)
    scores = cross_validated(features, members, folds)
    area = float(areas(scores, members))
    orders = [generator.permutation(len(members)) for _ in range(permutations)]
    higher = 0
    for first in range(0, permutations, AT_ONCE):
        shuffled = features[np.stack(orders[first : first + AT_ONCE])]
        found = areas(cross_validated(shuffled, members, folds), members)
        higher += int(np.sum(found >= area - 1e-12))
    return Fused(scores, area, (higher + 1) / (permutations + 1))


def check(features: Values, members: Flags) -> None:
    """Accepts a table of finite features with enough patients in both groups.

    Raises:
        UsageError: a feature is not finite, the shapes differ, or a group has fewer patients than
            there are folds.
    """
    if features.ndim != 2 or len(features) != len(members) or not features.shape[1]:
        raise UsageError(
            "features and membership do not fit",
            got=f"{features.shape} and {members.shape}",
            expected="(patients, features) and (patients,)",
        )
    if not np.isfinite(features).all():
        raise UsageError("a patient's score is not finite", hint="the weights are damaged")
    fewest = min(int(members.sum()), int((~members).sum()))
    if fewest < FOLDS:
        raise UsageError(
            "too few patients for a cross-validation",
            got=f"{fewest} in the smaller group",
            expected=f"at least {FOLDS} members and {FOLDS} non-members",
        )


def normal_ranks(features: Values) -> Values:
    """Returns each feature's ranks as normal quantiles, (n, F), equal values with equal ranks.

    Who trained is not asked. Likelihoods have tails: with lognormal scores a rule on the scores
    themselves was simulated to reach an AUC of 0.53 where one on ranks reaches 0.72, and a single
    strange patient must not be able to blind an audit.
    """
    found: Values = ndtri((rankdata(features, axis=0) - 0.5) / len(features))
    return found


def stratified_folds(members: Flags, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Returns each patient's fold, (n,); folds have equally many of each group, but for one."""
    folds = np.zeros(len(members), dtype=np.int64)
    first = 0
    for group in (True, False):
        rows = generator.permutation(np.flatnonzero(members == group))
        folds[rows] = (first + np.arange(len(rows))) % FOLDS
        first += len(rows)  # goes on where the other group ended, so that folds are of one size
    return folds


def cross_validated(features: Values, members: Flags, folds: npt.NDArray[np.int64]) -> Values:
    """Returns each patient's score by the rule of the other folds, (..., n).

    In standard deviations of the score over that rule's own patients, from their mean.

    Args:
        features: (..., n, F), any number of tables for the same patients.
        members: (n,), who trained.
        folds: (n,), from 0 to FOLDS - 1.
    """
    scores = np.zeros(features.shape[:-1])
    for fold in range(FOLDS):
        others = folds != fold
        known = features[..., others, :]
        centre, spread = known.mean(-2, keepdims=True), known.std(-2, keepdims=True)
        spread = np.where(spread > 1e-12 * (1 + np.abs(centre)), spread, np.inf)  # a constant
        weights = logistic_weights((known - centre) / spread, members[others])[..., :-1, None]
        usual = (((known - centre) / spread) @ weights).std(-2, keepdims=True)
        asked = ((features[..., ~others, :] - centre) / spread) @ weights
        scores[..., ~others] = (asked / np.maximum(usual, 1e-12))[..., 0]
    return np.round(scores, 9)  # equal patients stay equal whatever the order of additions


def logistic_weights(features: Values, members: Flags) -> Values:
    """Returns the weights of a logistic regression by Newton's method, (..., F + 1).

    The least of the sum of the patients' cross-entropies in nats and PENALTY / 2 times the sum of
    the squared weights; the last weight is the constant, which is not penalised.

    Args:
        features: (..., n, F), standardised.
        members: (n,), who trained.
    """
    table = np.concatenate([features, np.ones((*features.shape[:-1], 1))], axis=-1)
    penalty = np.full(table.shape[-1], PENALTY)
    penalty[-1] = 0.0
    weights = np.zeros((*table.shape[:-2], table.shape[-1]))
    across = np.swapaxes(table, -1, -2)
    for _ in range(TURNS):
        chance = expit(table @ weights[..., None])
        slope = (across @ (members[:, None] - chance))[..., 0] - penalty * weights
        curve = across @ (table * chance * (1 - chance)) + np.diag(penalty)
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def areas(scores: Values, members: Flags) -> Values:
    """Returns the AUC of each row of scores, (..., n) to (...), ties as half (Mann-Whitney)."""
    trained, held = int(members.sum()), int((~members).sum())
    ranks = rankdata(scores, axis=-1)[..., members].sum(-1)
    found: Values = (ranks - trained * (trained + 1) / 2) / (trained * held)
    return found
