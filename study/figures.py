"""Figures of quality as they leave a site: exact, of groups, and of nobody alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class FigureRow(BaseModel):
    """One figure of quality of one group of held-out patients, with its 95 % interval.

    Attributes:
        name: the figure, e.g. "KID".
        group: "all", a sex or a band of ages in years.
        value: the figure.
        low: the interval's lower end.
        high: its upper end.
        n: patients or samples that it rests on.
        real: the same figure for real volumes against real ones at that n, if there is one.
        better: which way is better.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9 ,.:()/-]{0,59}$")
    group: str = Field("all", pattern=r"^(all|sex [FMO]|age [0-9]{1,3} to [0-9]{1,3})$")
    value: float
    low: float
    high: float
    n: int = Field(ge=5)
    real: float | None
    better: Literal["higher", "lower", "as real"]


Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(max_length=64)]


class Intensities(BaseModel):
    """Shares of voxels in equal bins from -1 to 1: of the samples, and of held-out patients."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    samples: Shares
    held_out: Shares
