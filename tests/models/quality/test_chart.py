"""The chart: a PNG that holds every panel, the same for the same figures."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
from voxfed.models.quality.chart import Mark, Panel, figures_png, histograms_png

MARKS = [Mark("north", 0.5, 0.25, 0.75, 0.4), Mark("valley", 0.7, 0.6, 0.9, None)]


def test_equal_figures_are_equal_bytes_and_others_are_not() -> None:
    """The page of one evaluation can be built again and compared."""
    panels = [Panel(name, MARKS) for name in ("KID", "FID", "MMD", "recall", "density")]
    first = figures_png(panels)
    assert first == figures_png(panels)
    assert first != figures_png([*panels[:4], Panel("density", MARKS[:1])])
    image = matplotlib.image.imread(io.BytesIO(first))
    assert image.shape[1] == 1320
    rows = np.flatnonzero((image[..., :3] < 0.99).any(axis=(1, 2)))
    assert rows.max() > image.shape[0] * 0.6, "the second line of panels is empty"


def test_histograms_have_a_panel_for_each_site() -> None:
    """Five sites take two lines; another share is another picture."""
    shares = (0.5, 0.25, 0.25), (0.25, 0.5, 0.25)
    sites = {name: shares for name in ("a", "b", "c", "d", "e")}
    first = histograms_png(sites)
    assert first == histograms_png(sites)
    assert first != histograms_png({**sites, "e": shares[::-1]})
    one, two = (
        matplotlib.image.imread(io.BytesIO(histograms_png(dict(list(sites.items())[:n]))))
        for n in (4, 5)
    )
    assert two.shape[0] == 2 * one.shape[0]
