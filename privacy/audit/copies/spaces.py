"""Spaces in which a synthetic volume may turn out to be like a patient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Likeness = npt.NDArray[np.float32]

VOXELS, OCTANTS, EMBEDDING, LATENT = "voxels", "octants", "embedding", "latent"

BACKGROUND = -0.95  # of intensities in [-1, 1]; voxels whose mean is darker hold no anatomy
FEWEST_VOXELS = 8
FINE, COARSE = 32, 12
"""Most voxels of a side on which patients are moved, and on which they are then compared."""
SHARED = 8
"""Directions in which patients differ most, left out: two patients far out on one are no copies."""
SHIFTS, FEW_SHIFTS = (0, -1, 1, -2, 2, -3, 3), (0, -2, 2)
NUDGES = ((0, 0, 0), (2, 0, 0), (-2, 0, 0), (0, 2, 0), (0, -2, 0), (0, 0, 2), (0, 0, -2))
"""Voxels along each axis; of a mirrored volume only these."""
TURNS = (-10.0, -5.0, 5.0, 10.0)
"""Degrees about each axis."""
NOISES = (0.1, 0.2)  # standard deviations, where features are compared
FLAT = 0.01
"""Deviation of intensities under which a volume shows nothing of its own."""
LEAST_SIDE, MOST_SIDE = 16, 24
"""Voxels of a side that the contrastive encoder passes best."""
CHUNK = 256


@dataclass(frozen=True)
class Alike:
    """Similarities in one space.

    Attributes:
        samples: (M, N), of each sample to each patient's volume, at most 1.
        patients: (N, N), of each patient's volume, taken as a sample, to each other.
    """

    samples: Likeness
    patients: Likeness


def voxels(samples: Tensor, patients: Tensor) -> Alike:
    """Compare by the best masked correlation over shifts, mirrorings and small turns.

    The correlation is over the foreground, after what patients share is taken out of both: the
    mean, a scale of brightness and the `SHARED` main directions in which these patients differ.

    Args:
        samples: (M, 1, D, H, W) in [-1, 1].
        patients: (N, 1, D, H, W), N 2 or more; no group is told apart, so that members and
            non-members are treated alike.
    """
    place = _Place(patients)
    return place.compare(samples, [torch.ones(place.shape)], _views())


def octants(samples: Tensor, patients: Tensor) -> Alike:
    """Compare by the best of the eight octants and of the block in the middle; else as `voxels`.

    The middle block of half the sides lies within any part that keeps three quarters of them.
    Turns are left out, and mirrored volumes are not shifted: a small part is looked for.
    """
    place = _Place(patients)
    return place.compare(samples, _parts(place.shape), _few_views())


def embedding(
    samples: Tensor, patients: Tensor, extract: Callable[[Tensor], npt.NDArray[np.float64]]
) -> Alike:
    """Compare by the cosine of the features that a network has of volumes.

    Patients are also seen mirrored, turned and noisy: to a network that takes noise and blur for
    faults, a patient turned by 5 degrees or with noise of 0.2 is somebody else.

    Args:
        samples: (M, 1, D, H, W) in [-1, 1].
        patients: (N, 1, D, H, W).
        extract: from (B, 1, D, H, W) to (B, F), such as `Extractor.features`.
    """
    size = [min(max(side, LEAST_SIDE), MOST_SIDE) for side in patients.shape[2:]]

    def rows(volumes: Tensor) -> Tensor:
        return torch.from_numpy(np.concatenate([extract(x) for x in volumes.split(CHUNK)])).float()

    guises = _guises(_whole(patients, size))
    return _cosines(rows(_whole(samples, size)), [rows(guise) for guise in guises])


def _guises(patients: Tensor) -> Iterator[Tensor]:
    """Yield patients as they are, then mirrored, turned (dark beyond the grid) or noisy."""
    for axes in _mirrorings():
        yield patients.flip([axis + 2 for axis in axes])
    for view in _turns():
        yield (view.seen(patients + 1, patients.shape[2:]) - 1).reshape(patients.shape)
    # one noise for all, so that nothing depends on how many patients there are, in which order
    noise = torch.randn(patients.shape[1:], generator=torch.Generator().manual_seed(0))
    for sigma in NOISES:
        yield (patients + sigma * noise).clamp(-1, 1)


def latent(samples: Tensor, patients: Tensor) -> Alike:
    """Compare by the cosine of rows that the family itself makes of volumes, (M, F) and (N, F)."""
    return _cosines(samples.float(), [patients.float()])


def _cosines(samples: Tensor, patients: Sequence[Tensor]) -> Alike:
    """Compare rows with the best of several rows of each patient; the mean patient is no one."""
    basis = _shared(patients[0])
    middle = patients[0].mean(0)

    def units(rows: Tensor) -> Tensor:
        rows = rows - middle
        return functional.normalize(rows - rows @ basis @ basis.T, dim=1)

    def best(rows: Tensor) -> Likeness:
        found = torch.full((len(rows), len(patients[0])), -1.0)
        for seen in patients:
            torch.maximum(found, units(rows) @ units(seen).T, out=found)
        return np.asarray(found.numpy())

    return Alike(best(samples), best(patients[0]))


class _Place:
    """The grid on which patients are compared, and what they share there."""

    def __init__(self, patients: Tensor) -> None:
        self.patients = _reduced(patients, FINE)
        self.shape = tuple(self.patients.shape[2:])
        mean = self.patients.mean(0)
        body = (mean > BACKGROUND).float()
        self.body = body if body.sum() >= FEWEST_VOXELS else torch.ones_like(body)
        self.residuals = self.patients - mean
        self.means = torch.cat([torch.ones_like(mean), mean]).unsqueeze(1)

    def compare(self, samples: Tensor, parts: Sequence[Tensor], views: Sequence[View]) -> Alike:
        """Return the best correlation over parts and views; memory is bounded by one view's."""
        n, size = len(self.patients), _coarse(self.shape)
        pieces = [*samples.split(CHUNK), *self.patients.split(CHUNK)]
        rows = torch.cat([_resized(_reduced(one, FINE), size).flatten(1) for one in pieces])
        found = torch.full((len(rows), n), -1.0)
        masks = self.body * torch.stack(list(parts)).unsqueeze(1)
        mains = [_shared((self.residuals * mask).flatten(1)).T for mask in masks]
        mains = [main.reshape(-1, 1, *self.shape) for main in mains]
        # 0 is what comes in from beyond the grid
        moving = torch.cat([self.residuals, self.means, *mains])
        for view in views:
            moved = view.seen(moving, size)
            within = moved[n] > 1 - 1e-3  # nothing came in from beyond the grid
            covered = view.seen(masks, size) > 0.5
            for number, inside in enumerate(within & covered):
                first = n + 2 + number * len(mains[0])
                shared = torch.cat([moved[n : n + 2], moved[first : first + len(mains[0])]])
                if inside.sum() < max(FEWEST_VOXELS, 2 * len(shared)):
                    continue  # nothing is left beside what all share
                basis = torch.linalg.qr(shared[:, inside].T).Q
                patterns = _units(moved[:n, inside], basis).T
                for part, best in zip(rows.split(CHUNK), found.split(CHUNK), strict=True):
                    seen = part[:, inside]
                    torch.maximum(best, seen @ patterns / _lengths(seen, basis), out=best)
        return Alike(found[: len(samples)].numpy(), found[len(samples) :].numpy())


@dataclass(frozen=True)
class View:
    """A patient lying a little differently.

    Attributes:
        mirrored: axes, of D, H, W as 0, 1, 2.
        shift: voxels along each axis.
        turn: axis and degrees, if any.
    """

    mirrored: tuple[int, ...] = ()
    shift: tuple[int, int, int] = (0, 0, 0)
    turn: tuple[int, float] | None = None

    def seen(self, volumes: Tensor, size: Sequence[int]) -> Tensor:
        """Return volumes (n, 1, D, H, W) as this view sees them, on a coarser grid, (n, V)."""
        if self.turn:
            shape = [1, len(volumes), *volumes.shape[2:]]
            grid = functional.affine_grid(_turned(*self.turn)[None], shape, align_corners=False)
            # the volumes as channels of one image, so that the grid is walked once
            turned = functional.grid_sample(volumes.transpose(0, 1), grid, align_corners=False)
            volumes = turned.transpose(0, 1)
        means = [_means(old, new) for old, new in zip(volumes.shape[2:], size, strict=True)]
        for axis, step in enumerate(self.shift):
            whole = functional.pad(means[axis], (max(-step, 0), max(step, 0)))
            side = volumes.shape[2 + axis]
            means[axis] = whole[:, max(step, 0) :][:, :side] if step > 0 else whole[:, :side]
        for axis in self.mirrored:
            means[axis] = means[axis].flip(1)
        return _averaged(volumes, means).flatten(1)


def _reduced(volumes: Tensor, most: int) -> Tensor:
    """Return volumes (n, 1, D, H, W) with sides of at most so many voxels."""
    return _whole(volumes, [min(side, most) for side in volumes.shape[2:]])


def _whole(volumes: Tensor, size: Sequence[int]) -> Tensor:
    """Return all volumes (n, 1, D, H, W) at another size; memory is bounded by a chunk's."""
    return torch.cat([_resized(part, size) for part in volumes.split(CHUNK)])


def _resized(volumes: Tensor, size: Sequence[int]) -> Tensor:
    means = [_means(old, new) for old, new in zip(volumes.shape[2:], size, strict=True)]
    return _averaged(volumes.float(), means)


def _averaged(volumes: Tensor, means: Sequence[Tensor]) -> Tensor:
    """Return volumes whose axes D, H, W are averaged by a matrix each."""
    depth, height, width = means
    planes = height @ (volumes @ width.T)
    averaged: Tensor = (depth @ planes.flatten(3)).unflatten(3, planes.shape[3:])
    return averaged


def _means(old: int, new: int) -> Tensor:
    """Return (new, old): the share of each of `old` voxels in each of `new` over as much room."""
    edges, cuts = torch.arange(old + 1.0), torch.arange(new + 1.0) * old / new
    ends = torch.minimum(edges[None, 1:], cuts[1:, None])
    starts = torch.maximum(edges[None, :-1], cuts[:-1, None])
    return (ends - starts).clamp_min(0) * new / old


def _coarse(shape: Sequence[int]) -> list[int]:
    return [min(side, COARSE) for side in shape]


def _shared(rows: Tensor) -> Tensor:
    """Return (F, k), the main directions of rows (N, F): one for eight rows, at most `SHARED`."""
    count = min(SHARED, len(rows) // 8)
    centred = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(centred.double() @ centred.double().T)
    main = centred.T @ vectors[:, len(rows) - count :].float()
    return functional.normalize(main, dim=0)


def _units(rows: Tensor, basis: Tensor) -> Tensor:
    """Return rows (n, V) without what lies along an orthonormal basis (V, k), of length 1."""
    rest = rows - (rows @ basis) @ basis.T
    return rest / _lengths(rows, basis)


def _lengths(rows: Tensor, basis: Tensor) -> Tensor:
    """Return the lengths (n, 1) of rows (n, V) without what lies along the basis."""
    squares = rows.square().sum(1) - (rows @ basis).square().sum(1)
    return squares.clamp_min(rows.shape[1] * FLAT**2).sqrt()[:, None]


def _mirrorings() -> list[tuple[int, ...]]:
    return [axes for n in range(4) for axes in itertools.combinations(range(3), n)]


def _views() -> list[View]:
    """Return shifts, mirrorings and turns; the first view changes nothing."""
    shifts = [View(shift=shift) for shift in itertools.product(SHIFTS, SHIFTS, SHIFTS)]
    mirrored = [View(mirrored=axes, shift=shift) for axes in _mirrorings()[1:] for shift in NUDGES]
    return shifts + mirrored + _turns()


def _turns() -> list[View]:
    return [View(turn=(axis, degrees)) for axis in range(3) for degrees in TURNS]


def _few_views() -> list[View]:
    shifts = itertools.product(FEW_SHIFTS, FEW_SHIFTS, FEW_SHIFTS)
    return [View(shift=shift) for shift in shifts] + [View(mirrored=x) for x in _mirrorings()[1:]]


def _turned(axis: int, degrees: float) -> Tensor:
    """Return the affine (3, 4) of a turn about one of the axes W, H, D."""
    first, second = (other for other in range(3) if other != axis)
    turn, angle = torch.eye(3, 4), math.radians(degrees)
    turn[first, first] = turn[second, second] = math.cos(angle)
    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
    return turn


def _parts(shape: tuple[int, ...]) -> list[Tensor]:
    """Return masks (D, H, W) of the eight octants and of the block in the middle."""
    found = []
    lows = list(itertools.product((0.0, 0.5), repeat=3))
    for low in [*lows, (0.25, 0.25, 0.25)]:
        part = torch.zeros(shape)
        places = zip(low, shape, strict=True)
        part[tuple(slice(round(x * n), round((x + 0.5) * n)) for x, n in places)] = 1
        found.append(part)
    return found
