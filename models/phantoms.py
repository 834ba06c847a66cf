"""Generated phantoms that look like a trunk, seen by scanners that look different.

No scan was used: a body of soft ellipsoids (lungs, heart, liver, stomach, spleen, kidneys, bowel,
aorta, spine, sometimes lesions) in mm, drawn anew for each patient, then put on a scanner's grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

FIELD = 144.0  # mm along each axis


@dataclass(frozen=True)
class Scanner:
    """The look of one hospital's images.

    Attributes:
        name: the hospital.
        spacing: mm between voxels along right, anterior, superior.
        orientation: axis codes of the stored array, such as "LPS".
        gamma: exponent on tissue contrast; 1 is neutral.
        noise: standard deviation of the noise, as a share of the brightest tissue.
        bias: strength of the slow shading across the field of view, as a share.
        scale: stored value of the brightest tissue.
    """

    name: str
    spacing: tuple[float, float, float]
    orientation: str
    gamma: float
    noise: float
    bias: float
    scale: float


HOSPITALS = (
    Scanner("north", (5.0, 5.0, 5.0), "LPS", 1.0, 0.015, 0.10, 1000.0),
    Scanner("harbour", (4.5, 4.5, 6.0), "RAS", 1.25, 0.03, 0.25, 255.0),
    Scanner("valley", (6.0, 4.8, 4.8), "PSR", 0.8, 0.02, 0.18, 4000.0),
)
PUBLIC = Scanner("public", (5.5, 5.5, 5.5), "LAI", 2.5, 0.05, 0.45, 600.0)


@dataclass(frozen=True)
class Organ:
    """A soft superellipsoid: centre and radii in mm, a pose, and the brightness inside it.

    Attributes:
        centre: (3,) mm from the middle of the trunk.
        radii: (3,) mm along its own axes.
        turn: (3, 3) rotation from the trunk's axes to its own.
        brightness: 0 (air) to 1 (brightest tissue).
        power: 2 for an ellipsoid, more for a body with flatter ends.
    """

    centre: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]
    turn: npt.NDArray[np.float64]
    brightness: float
    power: int = 2


# name: centre (mm), radii (mm), brightness, and the share of patients who have it
_ATLAS: tuple[tuple[tuple[float, ...], tuple[float, ...], float, float], ...] = (
    ((-23, 2, 34), (16, 24, 27), 0.07, 1.0),  # left lung
    ((24, 2, 34), (18, 25, 28), 0.07, 1.0),  # right lung
    ((-5, 12, 26), (15, 14, 17), 0.72, 1.0),  # heart
    ((19, 8, -8), (27, 24, 19), 0.62, 1.0),  # liver
    ((-25, 16, -6), (15, 13, 13), 0.30, 0.9),  # stomach
    ((-36, -12, -8), (9, 13, 12), 0.85, 0.9),  # spleen
    ((-26, -20, -32), (9, 9, 15), 0.95, 0.95),  # left kidney
    ((26, -20, -34), (9, 9, 15), 0.95, 0.95),  # right kidney
    ((0, 15, -40), (24, 14, 13), 0.36, 0.9),  # bowel
    ((-4, -12, -10), (4.5, 4.5, 56), 0.80, 1.0),  # aorta
)


def draw_anatomy(generator: np.random.Generator) -> tuple[Organ, ...]:
    """Draws the organs of a new patient, in the order in which they are painted."""
    build = generator.uniform(0.82, 1.12, size=3)
    upright = np.eye(3)
    body = build * np.array([56.0, 41.0, 66.0])
    fat = generator.uniform(2.5, 9.0)
    organs = [
        Organ(np.zeros(3), body, upright, generator.uniform(0.75, 0.95), 4),
        Organ(np.zeros(3), body - fat, upright, generator.uniform(0.42, 0.55), 4),
    ]
    for centre, radii, brightness, share in _ATLAS:
        if generator.random() < share:
            place = build * np.array(centre) + generator.normal(0.0, 2.5, size=3)
            size = build * np.array(radii) * generator.uniform(0.72, 1.22, size=3)
            shade = float(np.clip(brightness + generator.normal(0.0, 0.07), 0.04, 1.0))
            organs.append(Organ(place, size, _turn(generator, 18.0), shade))
    organs += _spine(generator, build)
    for _ in range(generator.integers(0, 4)):  # lesions
        place = body * generator.uniform(-0.5, 0.5, size=3)
        size = generator.uniform(4.0, 9.0, size=3)
        organs.append(Organ(place, size, upright, generator.uniform(0.1, 1.0)))
    return tuple(organs)


def paint(
    anatomy: tuple[Organ, ...], scanner: Scanner, generator: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Scans a patient once: returns the stored array and its affine (voxel index to mm, RAS).

    Each call is a visit: the patient lies a little differently, and shading and noise are new.
    """
    shape = np.round(FIELD / np.array(scanner.spacing)).astype(int)
    axes = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, scanner.spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)
    lying = _turn(generator, 5.0)
    points = (grid + generator.normal(0.0, 2.5, size=3)) @ lying
    image = np.zeros(len(points), dtype=np.float32)
    for organ in anatomy:
        local = np.abs((points - organ.centre) @ organ.turn / organ.radii).astype(np.float32)
        distance = local[:, 0] ** 2 + local[:, 1] ** 2 + local[:, 2] ** organ.power
        softness = 2.0 / float(organ.radii.min())  # an edge of about 2 mm at every size
        inside = np.clip((1.0 + softness - np.sqrt(distance)) / (2 * softness), 0.0, 1.0)
        image += inside * inside * (3 - 2 * inside) * (organ.brightness - image)
    image = image.reshape(shape) ** scanner.gamma
    image *= 1.0 + scanner.bias * _shading(grid, generator).reshape(shape)
    # magnitude of a complex signal: the background is noise above zero, as in MR
    noise = generator.normal(0.0, scanner.noise, size=(2, *shape)).astype(np.float32)
    image = np.hypot(image + noise[0], noise[1]) * scanner.scale
    return _stored(image.astype(np.float32), scanner)


def make_phantom(
    generator: np.random.Generator, scanner: Scanner
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Returns one visit of one new patient: the array as the scanner stores it, and its affine."""
    return paint(draw_anatomy(generator), scanner, generator)


def write_cohort(folder: Path, patients: int, scanner: Scanner, *, seed: int) -> None:
    """Writes a cohort with one folder a patient; a quarter of the patients came two or three times.

    Args:
        folder: made if it is not there.
        patients: how many.
        scanner: the look of this hospital.
        seed: the same seed writes the same voxels.
    """
    generator = np.random.default_rng(seed)
    for number in range(1, patients + 1):
        patient = f"{scanner.name}-{number:03d}"
        (folder / patient).mkdir(parents=True, exist_ok=True)
        anatomy = draw_anatomy(generator)
        visits = int(generator.choice([1, 2, 3], p=[0.75, 0.15, 0.10]))
        for visit in range(1, visits + 1):
            voxels, affine = paint(anatomy, scanner, generator)
            image = nib.nifti1.Nifti1Image(np.round(voxels).astype(np.int16), affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / patient / f"{patient}_visit-{visit}_phantom.nii.gz")


def _spine(generator: np.random.Generator, stretch: npt.NDArray[np.float64]) -> list[Organ]:
    """Returns a slightly bent column of vertebrae with discs between them."""
    bend, count = generator.normal(0.0, 4.0), int(generator.integers(6, 9))
    shade = float(generator.uniform(0.85, 1.0))
    heights = np.linspace(-58.0, 58.0, count)
    step = heights[1] - heights[0]
    size = stretch * np.array([8.0, 7.5, 0.42 * step]) * generator.uniform(0.85, 1.2)
    column = [
        Organ(stretch * np.array([bend * np.cos(h / 40.0), -25.0, h]), size, np.eye(3), shade, 4)
        for h in heights
    ]
    canal = Organ(
        stretch * np.array([bend, -34.0, 0.0]), np.array([4.0, 3.5, 60.0]), np.eye(3), 0.25
    )
    return [*column, canal]


def _turn(generator: np.random.Generator, degrees: float) -> npt.NDArray[np.float64]:
    angles = generator.normal(0.0, degrees / 2, size=3)
    return np.asarray(Rotation.from_euler("xyz", angles, degrees=True).as_matrix())


def _shading(
    grid: npt.NDArray[np.float32], generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Returns a smooth field in [-1, 1] at (n, 3) points: the coil's uneven sensitivity."""
    direction = generator.normal(size=3)
    direction /= np.linalg.norm(direction)
    wave = np.sin(grid @ (direction * np.pi / FIELD) + generator.uniform(0.0, 2 * np.pi))
    return wave.astype(np.float32)


def _stored(
    ras: npt.NDArray[np.float32], scanner: Scanner
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Turns a RAS array into the scanner's own axis order, with the affine that says so."""
    affine = np.diag([*scanner.spacing, 1.0])
    affine[:3, 3] = -(np.array(ras.shape) - 1) / 2 * scanner.spacing
    wanted = nib.orientations.axcodes2ornt(tuple(scanner.orientation))
    change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(("R", "A", "S")), wanted)
    stored = np.ascontiguousarray(nib.orientations.apply_orientation(ras, change))
    return stored, affine @ nib.orientations.inv_ornt_aff(change, ras.shape)
