"""The condition of a study: what is read of a patient beside each volume."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from .tables import Table

Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] < pair[1]:
        raise ValueError("the first must be below the second")
    return pair


def _in_percent(pair: tuple[float, float]) -> tuple[float, float]:
    if not (pair[0] >= 0 and pair[1] <= 100):
        raise ValueError("outside 0 to 100")
    return pair


Rising = Annotated[tuple[float, float], AfterValidator(_rising)]
Percentiles = Annotated[Rising, AfterValidator(_in_percent)]

# of each kind of condition: keys that it needs, and those that it may have
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "class": (("column", "values"), ("weights",)),
    "attributes": (("columns", "ranges"), ()),
    "mask": (("structures",), ("suffix",)),
    "source": ((), ("suffix", "intensity", "percentiles", "window")),
}


class ConditionSettings(Table):
    """What a site reads of a patient beside each volume, and tells the family.

    A class or attributes come from the cohort's participants.tsv; a mask or a source is an image
    beside each image.
    """

    kind: Literal["class", "attributes", "mask", "source"] = Field(
        description='"class", "attributes", "mask" or "source"'
    )
    column: Text = Field("", description="class: a column of participants.tsv")
    values: tuple[Text, ...] = Field(
        (), max_length=1024, description="class: the column's values in the order of the classes"
    )
    weights: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = Field(
        (), description="class: how often each is drawn in samples; left out, all alike"
    )
    columns: tuple[Text, ...] = Field(
        (), max_length=1024, description="attributes: columns of participants.tsv"
    )
    ranges: tuple[Rising, ...] = Field(
        (), description="attributes: two rising numbers a column, mapped to -1 and 1"
    )
    suffix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.+-]{0,64}$",
        description="mask, source: the end of the file's name after the last underscore of the"
        ' image\'s, e.g. "oar"; "" takes the column of manifest.csv',
    )
    structures: int = Field(
        2, ge=2, le=1024, description="mask: labels with the background, 2 to 1024"
    )
    intensity: Literal["percentiles", "window"] = Field(
        "percentiles", description='source: "percentiles" (MRI) or "window" (CT in HU, dose in Gy)'
    )
    percentiles: Percentiles = Field(
        (0.5, 99.5), description="source: two rising percentiles from 0 to 100"
    )
    window: Rising = Field(
        (-1000.0, 1000.0), description="source: two rising values, e.g. in HU or Gy"
    )

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> Self:
        needed, allowed = _KEYS[self.kind]
        missing = [key for key in needed if key not in self.model_fields_set]
        strange = sorted(self.model_fields_set - {"kind", *needed, *allowed})
        faults = [f"needs {', '.join(missing)}"] if missing else []
        faults += [f"has no {', '.join(strange)}"] if strange else []
        if faults:
            raise ValueError(f'kind "{self.kind}" {" and ".join(faults)}')
        return self

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        for name in ("values", "columns"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must all be different")
        if self.kind == "class" and len(self.values) < 2:
            raise ValueError("values must be 2 or more")
        if self.kind == "attributes" and not self.columns:
            raise ValueError("columns must be 1 or more")
        if len(self.ranges) != len(self.columns):
            raise ValueError("ranges must be one pair a column")
        if self.weights and len(self.weights) != len(self.values):
            raise ValueError("weights must be one a value")
        if self.weights and not sum(self.weights) >= 1e-6:
            raise ValueError("weights must not all be 0")
        return self

    @property
    def classes(self) -> int:
        """Classes, or structures of a mask with the background; 2 where there are none."""
        return len(self.values) if self.kind == "class" else self.structures

    @property
    def attributes(self) -> int:
        """Numbers that a volume is told; 1 where it is told none."""
        return len(self.columns) or 1

    @property
    def summary(self) -> str:
        """What is read, in one line for the operator."""
        if self.kind == "class":
            return f"class: {self.column} ({', '.join(self.values)}) of participants.tsv"
        if self.kind == "attributes":
            return f"attributes: {', '.join(self.columns)} of participants.tsv"
        named = f"images that end in _{self.suffix}" if self.suffix else "a column of manifest.csv"
        return f"{self.kind}: {named}"
