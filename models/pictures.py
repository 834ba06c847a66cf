"""Pictures of volumes in three planes, and of curves, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..study.files import write

Volumes = npt.NDArray[np.float32]
Row = tuple[str, Volumes]

GAP = 2  # voxels between planes and between volumes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito 2008


def planes(volume: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the middle axial, coronal and sagittal planes of a volume side by side.

    The display is radiological: the patient's right is on the viewer's left, anterior (axial) or
    superior (coronal, sagittal) is up, and the sagittal face looks to the left.

    Args:
        volume: (D, H, W) along right, anterior, superior, in [-1, 1].

    Returns:
        (rows, columns), the planes centred on black.
    """
    right, front, up = (side // 2 for side in volume.shape)
    turned = volume[::-1, ::-1, ::-1]
    axial = turned[:, :, volume.shape[2] - 1 - up].T
    coronal = turned[:, volume.shape[1] - 1 - front, :].T
    sagittal = turned[volume.shape[0] - 1 - right, :, :].T
    return _beside([axial, coronal, sagittal])


def contact_sheet_png(rows: Sequence[Row]) -> bytes:
    """Return a PNG with a line for each row: its title, then its volumes in three planes.

    Args:
        rows: title and float32 (n, 1, D, H, W) in [-1, 1], RAS axes, D, H, W = R, A, S.
    """
    lines = [(title, _beside([planes(volume[0]) for volume in volumes])) for title, volumes in rows]
    width = max(line.shape[1] for _, line in lines)
    heights = [line.shape[0] for _, line in lines]
    inches = 12.0
    figure = Figure(figsize=(inches, sum(inches * h / width + 0.28 for h in heights)), dpi=110)
    figure.set_facecolor("black")
    grid = figure.add_gridspec(
        len(lines), 1, height_ratios=heights, left=0.005, right=0.995, top=0.97, bottom=0.005
    )
    for place, (title, line) in enumerate(lines):
        axes = figure.add_subplot(grid[place, 0])
        full = np.full((line.shape[0], width), -1.0, dtype=np.float32)
        full[:, : line.shape[1]] = line
        axes.imshow(full, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(title, color="white", loc="left", fontsize=10, pad=3)
        axes.set_axis_off()
    return _png(figure)


def contact_sheet(rows: Sequence[Row], path: Path) -> None:
    """Write `contact_sheet_png` to `path`.

    Raises:
        ProcessError: the file cannot be written.
    """
    write(path, contact_sheet_png(rows))


def curve_png(
    series: Mapping[str, Sequence[float]], *, across: str, up: str, limit: float | None = None
) -> bytes:
    """Return a PNG of one line per name over the rounds 1, 2, ...

    Args:
        series: name and one value a round, such as a hospital's epsilon.
        across: what the horizontal axis is.
        up: what the vertical axis is.
        limit: a value to mark with a dashed line, such as the agreed epsilon.
    """
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for place, (name, values) in enumerate(series.items()):
        colour, style = COLOURS[place % len(COLOURS)], ("-", "--", ":")[place % 3]
        rounds = range(1, len(values) + 1)
        axes.plot(rounds, values, style, marker="o", markersize=3, color=colour, label=name)
    if limit is not None:
        axes.axhline(limit, color="0.4", linestyle=(0, (6, 3)), linewidth=1, label="agreed")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _png(figure)


def curve(
    series: Mapping[str, Sequence[float]],
    path: Path,
    *,
    across: str,
    up: str,
    limit: float | None = None,
) -> None:
    """Write `curve_png` to `path`.

    Raises:
        ProcessError: the file cannot be written.
    """
    write(path, curve_png(series, across=across, up=up, limit=limit))


def _beside(images: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return the images from left to right with gaps, each centred on black."""
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] + GAP for image in images)
    joined = np.full((height, width), -1.0, dtype=np.float32)
    left = 0
    for image in images:
        top = (height - image.shape[0]) // 2
        joined[top : top + image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + GAP
    return joined


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # without the software's name, equal pictures are equal bytes
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()
