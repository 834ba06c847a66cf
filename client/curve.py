"""Curve: a picture of what each study and the lifetime spent, charge by charge."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..study.errors import UsageError
from ..study.files import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = (".png", ".svg")


def check_ending(path: Path) -> None:
    """Raise UsageError unless the picture can be written in the format that its name asks for."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(
            "a plot of this kind cannot be written",
            got=path.name,
            expected=f"a name that ends in {' or '.join(ENDINGS)}",
        )


def draw_curves(document: dict[str, Any], path: Path) -> None:
    """Write the curves of an overview as PNG or SVG, whole or not at all.

    Left, each study's epsilon over its charges against what it reserved (dashed); right, the
    lifetime's over all charges against the cap (dashed).

    Args:
        document: what `accounts.add_curves` returned.
        path: the picture; an existing one is replaced.

    Raises:
        UsageError: the name ends in neither .png nor .svg.
        DiskError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_ending(path)
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_studies(left, document["studies"])
    _draw_lifetime(right, document)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower()[1:])
    write(path, picture.getvalue())


def _draw_studies(axes: Axes, studies: list[dict[str, Any]]) -> None:
    from ..models.pictures import COLOURS

    for place, study in enumerate(studies):
        colour = COLOURS[place % len(COLOURS)]
        spent = [0.0, *(point["epsilon"] for point in study["curve"])]
        name = study["study"] if study["bounded"] else f"{study['study']} (NO BOUND)"
        axes.plot(range(len(spent)), spent, marker="o", markersize=3, color=colour, label=name)
        axes.axhline(study["reserved"], linestyle="--", linewidth=1, color=colour)
    axes.set_title("spent by each study, and what it reserved (dashed)", fontsize=10)
    axes.set_ylabel("epsilon at the plan's delta")
    _finish(axes, "charges of the study: rounds and audits")


def _draw_lifetime(axes: Axes, document: dict[str, Any]) -> None:
    lifetime = document["lifetime"]
    points = [point for study in document["studies"] for point in study["curve"]]
    spent = [0.0, *(p["lifetime"] for p in sorted(points, key=lambda point: point["row"]))]
    if lifetime["spent"] > spent[-1]:  # a recovery charged what no row can say
        spent.append(lifetime["spent"])
    axes.plot(range(len(spent)), spent, marker="o", markersize=3, color="black", label="lifetime")
    axes.axhline(lifetime["limit"], linestyle="--", linewidth=1, color="red", label="cap")
    bound = "" if lifetime["bounded"] else "\nNO BOUND: a study trained without privacy"
    axes.set_title(f"spent in all, and the site's cap (dashed){bound}", fontsize=10)
    axes.set_ylabel(f"lifetime epsilon at delta {lifetime['delta']:g}")
    _finish(axes, "charges of all studies, in order")


def _finish(axes: Axes, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, fontsize=8)
