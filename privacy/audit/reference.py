"""Attacks with reference models: is a patient known better than models without the patient know?

Some patients are plain and every model knows them well. Models that were trained in the same way on
other patients tell how well a patient is known by those who never met them. They train, so they
are only run where the plan asks for them; here are the sums, from scores that exist.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from ...study.errors import UsageError

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SHRINKAGE = 0.3
"""RMIA's a, from 0 to 1: how much the references that never met a patient are believed."""


def rmia(
    target: Values,
    references: Values,
    trained: Flags,
    population: Flags,
    *,
    shrinkage: float = SHRINKAGE,
    gamma: float = 1.0,
) -> Values:
    """Returns each patient's offline RMIA score, (n,), from 0 to 1, higher for members.

    The share of the population z with P(x | target) / P(x) >= gamma P(z | target) / P(z), where
    P(x) = ((1 + a) mean of P(x | reference without x) + 1 - a) / 2 (Zarifzadeh et al., ICML 2024).
    The paper's P is a probability; the unit of a log-likelihood is arbitrary, so all
    are first taken from the references' mean in their standard deviations: P = 1 is a patient whom
    references know as well as most, and a draws P(x) there, since it rests on few references. A tie
    counts half: a patient of the population must not beat itself.

    Args:
        target: how well the audited model knows each patient, (n,), log-likelihoods or any score
            that is higher for members.
        references: the same of R reference models, (R, n).
        trained: which patients each reference trained on, (R, n).
        population: whom patients are compared with, (n,), one at least; the paper takes those that
            the audited model did not train on. The order of patients does not depend on it.
        shrinkage: a, from 0 to 1.
        gamma: how much better than z the patient must be known, from 1 on.

    Raises:
        UsageError: shapes that do not fit, a value that is not finite, a patient without a
            reference that did not train on them, an empty population, or a setting out of range.
    """
    _check(target, references, trained)
    if not (0 <= shrinkage <= 1 and gamma >= 1 and population.shape == target.shape):
        raise UsageError(
            "wrong settings of RMIA",
            got=f"a {shrinkage}, gamma {gamma}, population {population.shape}",
            expected=f"a from 0 to 1, gamma from 1 on, population {target.shape}",
        )
    if not population.any():
        raise UsageError("RMIA has no population", hint="keep patients out of the training")
    outside = references[~trained]
    centre, spread = outside.mean(), max(float(outside.std()), 1e-12)
    target, references = (target - centre) / spread, (references - centre) / spread
    shares = np.where(trained, -np.inf, references)
    without = logsumexp(shares, axis=0) - np.log((~trained).sum(0))
    with np.errstate(divide="ignore"):  # a = 1 leaves nothing of the constant
        known = np.logaddexp(
            np.log((1 + shrinkage) / 2) + without, np.log(np.float64((1 - shrinkage) / 2))
        )
    ratio = target - known
    needed = math.log(gamma) + ratio[population]
    found: Values = np.mean(np.sign(ratio[:, None] - needed[None]) / 2 + 0.5, axis=1)
    return found


def offline_lira(target: Values, references: Values, trained: Flags) -> Values:
    """Returns each patient's offline LiRA score, (n,), higher for members.

    How far the target's score lies above the mean of the references without the patient, in
    standard deviations of such a difference (Carlini et al., S&P 2022). Their variance is pooled
    over patients, as the paper advises for few references. The paper's score is the normal
    distribution's value at it, which orders patients alike but is 1 for all who stand far out.

    Args:
        target: how well the audited model knows each patient, (n,), higher for members.
        references: the same of R reference models, (R, n).
        trained: which patients each reference trained on, (R, n).

    Raises:
        UsageError: as `rmia`, or no patient has two references that did not train on them.
    """
    _check(target, references, trained)
    count = (~trained).sum(0)
    mean = np.where(trained, 0.0, references).sum(0) / count
    squares = np.where(trained, 0.0, np.square(references - mean)).sum()
    freedom = int((count - 1).sum())
    if not freedom:
        raise UsageError(
            "the spread of reference models cannot be told",
            expected="two references that did not train on the same patient",
        )
    spread = max(math.sqrt(float(squares) / freedom), 1e-12)
    found: Values = (target - mean) / (spread * np.sqrt(1 + 1 / count))
    return found


def _check(target: Values, references: Values, trained: Flags) -> None:
    fits = target.ndim == 1 and references.shape == trained.shape == (len(references), len(target))
    if not fits or not len(target):
        raise UsageError(
            "scores of the target and of the references do not fit",
            got=f"{target.shape}, {references.shape} and {trained.shape}",
            expected="(n,), (R, n) and (R, n)",
        )
    if not (np.isfinite(target).all() and np.isfinite(references).all()):
        raise UsageError("a reference model's score is not finite", hint="its weights are damaged")
    if not (~trained).any(0).all():
        raise UsageError(
            "a patient was trained on by every reference model",
            expected="at least one reference that did not",
        )
