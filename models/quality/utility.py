"""Utility: what synthetic volumes are worth to somebody who trains on them, tested on real ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Tensor

from ...study.errors import UsageError
from ..base import Batch
from .downstream import segment, train_classifier, train_segmenter
from .intervals import FEWEST, LEVEL, Figure, Measure, averaged
from .segmentation import dice

STEPS = 150
REPEATS = 3
DRAWS = 400
LEAST_DRAWS = 40
"""Of these, with every class: fewer have no percentiles of 2.5."""

Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Trial:
    """What is trained on and tested: volumes (n, 1, D, H, W) with what is to be read from them."""

    ways: dict[str, tuple[Tensor, Tensor]]
    volumes: Tensor
    truth: Tensor
    patients: Sequence[str]
    kinds: int
    steps: int
    repeats: int
    generator: torch.Generator


def utility(
    real: Batch,
    synthetic: Batch,
    test: Batch,
    patients: Sequence[str],
    *,
    steps: int = STEPS,
    repeats: int = REPEATS,
    generator: torch.Generator,
) -> tuple[Measure, ...]:
    """Return how well real volumes are read after training on real, synthetic and both.

    With labels a classifier is trained, and its balanced accuracy and AUC are told; with masks a
    segmenter, and its Dice over the structures. Each is trained for as many steps on each of the
    three, from `repeats` first weights, and the mean is told. Intervals of 95 % are over the
    patients of the test: the chance in whom was trained on is not in them.

    Args:
        real: volumes of patients who are not in `test`.
        synthetic: volumes with the conditions that they were drawn for.
        test: real volumes of other patients.
        patients: whose each volume of `test` is.
        steps: of training, each time.
        repeats: first weights.
        generator: on the CPU; all that is random follows from it.

    Returns:
        Six measures for labels, three for masks, in the order real, synthetic, both. None where
        the volumes have neither, or all of the test has one label or no structure: then there is
        nothing to read, and no utility. None either where the test has fewer than `FEWEST`
        patients. Of patients whose classes are so rare that a bootstrap hardly ever draws them
        all, or who lack a class of the test, a measure has no figure.

    Raises:
        UsageError: a set is empty, one lacks the labels or masks that another has, or `patients`
            is not as long as `test`.
    """
    sets = (real, synthetic, test)
    if min(len(batch.volumes) for batch in sets) == 0 or len(patients) != len(test.volumes):
        raise UsageError(
            "utility needs real, synthetic and test volumes, and a patient for each of the test",
            got=f"{[len(batch.volumes) for batch in sets]} volumes, {len(patients)} patients",
        )
    labels, masks = _told("label", sets), _told("mask", sets)
    told = labels or masks
    if not told or len(told[2].unique()) < 2 or len(set(patients)) < FEWEST:
        return ()
    ways = {
        "real only": (real.volumes, told[0]),
        "synthetic only": (synthetic.volumes, told[1]),
        "both": (torch.cat([real.volumes, synthetic.volumes]), torch.cat(told[:2])),
    }
    kinds = 1 + max(int(each.max()) for each in told)
    trial = _Trial(ways, test.volumes, told[2], patients, kinds, steps, repeats, generator)
    return _of_classes(trial) if labels else _of_masks(trial)


def balanced_accuracy(scores: Scores, labels: Labels) -> float:
    """Return the mean, over the classes that occur, of the share of each that is recognised.

    Args:
        scores: (n, classes), the highest is the guess.
        labels: (n,).
    """
    right = scores.argmax(1) == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def area_under_curve(scores: Scores, labels: Labels) -> float:
    """Return the mean, over the classes that occur, of the ROC's area of each against the rest.

    The area is the share of pairs in the right order, a tie counting half (Mann and Whitney 1947).

    Args:
        scores: (n, classes).
        labels: (n,), of two classes or more.
    """
    areas = []
    for label in np.unique(labels):
        inside = labels == label
        n, others = int(inside.sum()), int((~inside).sum())
        ranks = rankdata(scores[:, label])
        areas.append((ranks[inside].sum() - n * (n + 1) / 2) / (n * others))
    return float(np.mean(areas))


def _told(kind: Literal["label", "mask"], sets: Sequence[Batch]) -> list[Tensor]:
    """Return the labels or masks of all sets, or nothing where no set has them."""
    found = [getattr(batch.condition, kind) for batch in sets]
    present = [each for each in found if each is not None]
    if 0 < len(present) < len(found):
        raise UsageError(
            f"a {kind} is known of some of the real, synthetic and test volumes",
            expected="of all or of none",
        )
    return present


def _of_classes(trial: _Trial) -> tuple[Measure, ...]:
    scores: dict[str, list[Scores]] = {way: [] for way in trial.ways}
    for way, (volumes, labels) in trial.ways.items():
        for _ in range(trial.repeats):
            network = train_classifier(
                volumes, labels, trial.kinds, steps=trial.steps, generator=trial.generator
            )
            with torch.no_grad():
                logits = torch.cat([network(one[None]) for one in trial.volumes])
            scores[way].append(logits.softmax(1).double().cpu().numpy())
    draws = _draws_of(trial.generator)
    patients = sorted(set(trial.patients))
    return tuple(
        Measure(patients, partial(_figure, f"{name}, {way}", statistic, scores[way], trial, draws))
        for name, statistic in (("balanced accuracy", balanced_accuracy), ("AUC", area_under_curve))
        for way in trial.ways
    )


def _of_masks(trial: _Trial) -> tuple[Measure, ...]:
    expected = trial.truth.cpu().numpy()
    overlaps: dict[str, dict[str, list[float]]] = {}
    for way, (volumes, masks) in trial.ways.items():
        overlaps[way] = {patient: [] for patient in trial.patients}
        for _ in range(trial.repeats):
            network = train_segmenter(
                volumes, masks, trial.kinds, steps=trial.steps, generator=trial.generator
            )
            found = segment(network, trial.volumes).cpu().numpy()
            for patient, mask, own in zip(trial.patients, found, expected, strict=True):
                each = [x for x in dice(mask[0], own[0], trial.kinds) if x is not None]
                overlaps[way][patient] += [float(np.mean(each))] if each else []
    draws = _draws_of(trial.generator)
    return tuple(
        averaged(f"Dice, {way}", each, better="higher", generator=draws)
        for way, each in overlaps.items()
    )


def _figure(
    name: str,
    statistic: Callable[[Scores, Labels], float],
    scores: Sequence[Scores],
    trial: _Trial,
    draws: np.random.Generator,
    chosen: Collection[str],
) -> Figure | None:
    """Return the mean over repeats, with the percentile bootstrap over patients (Efron 1979).

    A draw that misses a class says nothing of it, and is left out; None where fewer than
    `LEAST_DRAWS` are left.
    """
    labels = trial.truth.cpu().numpy()
    classes = len(np.unique(labels))
    names = sorted(chosen)
    owned = [[i for i, owner in enumerate(trial.patients) if owner == name] for name in names]
    values = []
    for _ in range(DRAWS):
        rows = [i for drawn in draws.integers(len(names), size=len(names)) for i in owned[drawn]]
        if len(np.unique(labels[rows])) == classes:
            values.append(np.mean([statistic(each[rows], labels[rows]) for each in scores]))
    if len(values) < LEAST_DRAWS:
        return None
    own = sorted(i for rows in owned for i in rows)
    value = float(np.mean([statistic(each[own], labels[own]) for each in scores]))
    low, high = np.percentile(values, LEVEL).tolist()
    return Figure(name, value, low, high, len(names), None, "higher")


def _draws_of(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
