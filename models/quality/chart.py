"""Charts of an evaluation: figures with their intervals, and histograms, beside real, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ACROSS = 4
SYNTHETIC, REAL = "#0072B2", "#D55E00"  # Okabe and Ito 2008


@dataclass(frozen=True)
class Mark:
    """One line of a panel: where it comes from, the figure, its interval, and real against real."""

    label: str
    value: float
    low: float
    high: float
    real: float | None


@dataclass(frozen=True)
class Panel:
    """One figure at several sites.

    Attributes:
        title: the figure, and which way is better.
        marks: from top to bottom.
    """

    title: str
    marks: Sequence[Mark]


def figures_png(panels: Sequence[Panel]) -> bytes:
    """Return a PNG with a panel for each figure: a dot with its interval, a diamond for real.

    Equal figures give equal bytes.
    """
    down = math.ceil(len(panels) / ACROSS)
    lines = max(len(panel.marks) for panel in panels)
    figure = Figure(figsize=(12.0, down * (0.95 + 0.24 * lines)), dpi=110, layout="constrained")
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(down, ACROSS, place + 1)
        heights = range(len(panel.marks), 0, -1)
        for mark, height in zip(panel.marks, heights, strict=True):
            axes.plot([mark.low, mark.high], [height] * 2, color=SYNTHETIC, linewidth=1.6)
            axes.plot(mark.value, height, "o", color=SYNTHETIC, markersize=5)
            if mark.real is not None:
                axes.plot(mark.real, height, "D", markersize=6, markerfacecolor="none", color=REAL)
        axes.set_yticks(list(heights), [mark.label for mark in panel.marks])
        axes.set_ylim(0.4, len(panel.marks) + 0.6)
        axes.set_title(panel.title, loc="left", fontsize=10)
        axes.tick_params(labelsize=8, length=2)
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def histograms_png(sites: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """Return a PNG with a panel for each site: the shares of samples, and of real volumes.

    Args:
        sites: from a site to the shares of voxels in equal bins from -1 to 1, samples first.
    """
    down = math.ceil(len(sites) / ACROSS)
    figure = Figure(figsize=(12.0, 1.9 * down), dpi=110, layout="constrained")
    for place, (site, (samples, real)) in enumerate(sites.items()):
        axes = figure.add_subplot(down, ACROSS, place + 1)
        edges = [-1 + 2 * step / len(samples) for step in range(len(samples) + 1)]
        axes.stairs(samples, edges, color=SYNTHETIC, linewidth=1.4)
        axes.stairs(real, edges, color=REAL, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.set_yscale("log")
        axes.set_title(site, loc="left", fontsize=10)
        axes.tick_params(labelsize=8, length=2)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()
