"""Does the model hand out copies of the patients it learned from?

The recipe of Dar et al. (Nature Biomedical Engineering, 2025): a sample is a copy if it is nearer
to a patient than real patients are to each other; a patient with a copy is memorised. What counts
is the excess of memorised members over memorised non-members, in equal numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ...study.errors import VolumeError
from ..sampling import choose

Volume = npt.NDArray[np.float32]
Similarities = npt.NDArray[np.float32]
BACKGROUND = -0.95  # of intensities in [-1, 1]; voxels whose mean is darker hold no anatomy
FEWEST_VOXELS = 8
USUAL, STRICT = 0.95, 0.999


def find_copies(
    samples: Volume,
    members: Mapping[str, Sequence[Volume]],
    non_members: Mapping[str, Sequence[Volume]],
    *,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> dict[str, float]:
    """Counts copies of members and of non-members among synthetic volumes.

    Similarity is the normalised cross-correlation over the foreground, after the mean of the
    compared patients is taken from every volume: what all patients share is no sign of a copy.
    The thresholds are the 95th and the strict 99.9th percentile of a real patient's nearest
    neighbour in the other group, looked at from both groups, so that members and non-members
    are treated alike and only the model can make them differ. A sample can be a copy only of the
    one patient it is nearest to.

    Args:
        samples: synthetic volumes (M, 1, D, H, W) in [-1, 1].
        members: patients who trained, each with volumes (1, D, H, W).
        non_members: held-out patients; of the larger group, as many as the smaller has are drawn.
        random_bytes: for tests only.

    Returns:
        samples (M), compared (patients in each group), threshold and strict_threshold
        (correlations), copies_of_members and copies_of_non_members (samples),
        memorised_members and memorised_non_members (patients), and strict_ forms of these four.
        Empty where a group has no patient or there is no sample.

    Guarantee: none; these counts are exact and no epsilon covers them.
    Assumes: the coin flips were fair, so that without copying both groups are alike.

    Raises:
        VolumeError: volumes differ in shape.
    """
    compared = min(len(members), len(non_members))
    if not compared or not len(samples):
        return {}
    groups = [_drawn(group, compared, random_bytes) for group in (members, non_members)]
    real = [np.stack([scan for scans in group for scan in scans]) for group in groups]
    if any(volumes.shape[1:] != samples.shape[1:] for volumes in real):
        raise VolumeError(
            "samples and patients differ in shape",
            got=samples.shape[1:],
            expected=real[0].shape[1:],
        )
    mean = (real[0].mean(axis=0) + real[1].mean(axis=0)) / 2
    foreground = mean > BACKGROUND
    if foreground.sum() < FEWEST_VOXELS:
        foreground = np.ones_like(foreground)
    patterns = [_patterns(volumes, mean, foreground) for volumes in real]
    similarity = _patterns(samples, mean, foreground) @ np.concatenate(patterns).T
    likeness, owners = similarity.max(axis=1), np.concatenate([_owners(g) for g in groups])
    owners[len(real[0]) :] += compared  # members are numbered from 0, non-members after them
    models = owners[similarity.argmax(axis=1)]
    across = patterns[0] @ patterns[1].T
    nearest = np.concatenate([across.max(axis=1), across.max(axis=0)])
    found = {"samples": float(len(samples)), "compared": float(compared)}
    for prefix, share in (("", USUAL), ("strict_", STRICT)):
        threshold = float(np.quantile(nearest, share, method="higher"))
        found[f"{prefix}threshold"] = round(threshold, 6)
        copied = models[likeness > threshold]
        member = copied < compared
        for name, patients in (("members", copied[member]), ("non_members", copied[~member])):
            found[f"{prefix}copies_of_{name}"] = float(len(patients))
            found[f"{prefix}memorised_{name}"] = float(len(np.unique(patients)))
    return found


def _drawn(
    group: Mapping[str, Sequence[Volume]], n: int, random_bytes: Callable[[int], bytes]
) -> list[Sequence[Volume]]:
    patients = list(group.values())
    return [patients[i] for i in choose(len(patients), n, random_bytes=random_bytes)]


def _owners(group: Sequence[Sequence[Volume]]) -> npt.NDArray[np.intp]:
    """Returns the patient's number for each volume."""
    return np.repeat(np.arange(len(group)), [len(scans) for scans in group])


def _patterns(volumes: Volume, mean: Volume, foreground: npt.NDArray[np.bool_]) -> Similarities:
    """Returns (n, voxels): each volume's difference from the mean, centred, with norm 1."""
    patterns = (volumes - mean)[:, foreground].astype(np.float32)
    patterns -= patterns.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(patterns, axis=1, keepdims=True)
    patterns /= np.where(norms > 0, norms, 1)
    return patterns
