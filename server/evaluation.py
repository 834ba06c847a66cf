"""EvaluationReport: what the coordinator makes of the sites' signed figures of quality."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..models.quality.evaluation import EVERYBODY, LEAST_OF_A_GROUP
from ..models.quality.intervals import FEWEST
from ..study.errors import VerificationError, VoxfedError
from ..study.figures import FigureRow, Intensities
from ..study.identity import PublicKey
from ..study.messages import Evaluated, decode, request_digest

NOTES = (
    "Figures are exact and epsilon does not cover them. They are about held-out patients, who"
    " never trained, and about members whose coin was flipped.",
    "Where two sets are compared, the same figure for real patients against real ones, at the same"
    " n, stands beside: a model that draws as the hospital does reaches it, and none should do"
    " better. PSNR, SSIM and MAE of translations and utility have none.",
    "FID, precision, recall, density and coverage depend on n: compare them with real against"
    " real, and not between hospitals of different n. None compares across extractors.",
    "All hospitals together is the mean of their figures, weighted by n, not the figure of the"
    " patients taken together.",
    "By sex and age a figure is given where 20 held-out patients have it. MS-SSIM between samples"
    " is not: samples have no sex and no age. Nor are balanced accuracy and AUC of a group that"
    " lacks one of the classes.",
    "Intervals hold 95 %: half-samples of patients and samples, or a bootstrap over patients for"
    " means over them.",
)
WITHOUT_UTILITY = (
    "There is no utility: the patients were told no classes and no masks, so that nothing can be"
    " learned from samples and tested on real volumes."
)
_PATIENTS = f"{FEWEST} held-out patients of whom samples were drawn"
_MEMBERS = f"{FEWEST} members whose coin was flipped"
_STRUCTURES = f"{_PATIENTS}, with a structure in their masks, and {_MEMBERS}"
NEEDS = {
    "source": {"PSNR, dB": _PATIENTS},
    "mask": {"Dice": _STRUCTURES, "Dice, synthetic only": _STRUCTURES},
    "class": {
        "AUC, synthetic only": f"{_MEMBERS}, and held-out patients of two classes or more, none"
        " so rare that a bootstrap hardly ever draws them all"
    },
}
"""By what a model is told: figures that stand for all of their kind, and what each needs."""


class Frozen(BaseModel):
    """A frozen part of the report that forbids unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SiteEvaluation(Frozen):
    """What one site answered; `request` and `reply` are base64 of the signed messages."""

    site: str
    samples: int
    figures: tuple[FigureRow, ...]
    intensities: Intensities
    seconds: float
    flops: int
    memory: int | None
    pseudo_patients: bool
    request: str
    reply: str

    def figure(self, name: str, group: str = EVERYBODY) -> FigureRow | None:
        """Return one figure of a group, if it was given."""
        rows = [row for row in self.figures if (row.name, row.group) == (name, group)]
        return rows[0] if rows else None


class Gap(Frozen):
    """The largest difference of a figure between two groups of 20 patients or more.

    Attributes:
        name: the figure.
        attribute: "site", "sex" or "age".
        least: the group with the smallest value, and that value.
        most: the group with the largest.
    """

    name: str
    attribute: Literal["site", "sex", "age"]
    least: tuple[str, float]
    most: tuple[str, float]


class EvaluationReport(Frozen):
    """The evaluation of one set of weights."""

    format: Literal["voxfed.evaluation.v1"] = "voxfed.evaluation.v1"
    created: str
    versions: dict[str, str]
    study: str
    family: str
    round: int
    plan_digest: str
    weights_digest: str
    extractor: str
    extractor_digest: str
    sites: tuple[SiteEvaluation, ...] = Field(min_length=1)
    refused: dict[str, str]
    together: tuple[FigureRow, ...]
    worst: dict[str, str]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]

    @property
    def text(self) -> bytes:
        """The report as JSON."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @property
    def names(self) -> tuple[str, ...]:
        """The figures in their order."""
        return tuple(row.name for row in self.together if row.group == EVERYBODY)

    @property
    def gaps_by_name(self) -> dict[str, dict[str, Gap]]:
        """The gaps of each figure, by attribute."""
        found: dict[str, dict[str, Gap]] = {}
        for gap in self.gaps:
            found.setdefault(gap.name, {})[gap.attribute] = gap
        return found


def read_answers(
    folder: Path, keys: Mapping[str, PublicKey], weights_digest: str, extractor_digest: str
) -> tuple[SiteEvaluation, ...]:
    """Return what each site answered, in the order of their names.

    Raises:
        VerificationError: a reply is not signed by its site, or is about another request, other
            weights or another extractor.
    """
    wanted = weights_digest, extractor_digest
    found = []
    for path in sorted(folder.glob("*.reply")):
        site, request, reply = path.stem, path.with_suffix(".request"), path.read_bytes()
        what = f"the reply of {site}"
        try:
            header, _ = decode(reply, keys[site])
            asked = request_digest(request.read_bytes())
        except (KeyError, OSError, struct.error, ValidationError, VoxfedError) as fault:
            got = fault.message if isinstance(fault, VoxfedError) else type(fault).__name__
            raise VerificationError(f"{what} cannot be trusted", got=got) from None
        if not isinstance(header, Evaluated) or header.request_digest != asked:
            raise VerificationError(f"{what} is about another request")
        if (header.weights_digest, header.extractor_digest) != wanted:
            raise VerificationError(f"{what} is about other weights or another extractor")
        found.append(
            SiteEvaluation(
                site=site,
                samples=header.samples,
                figures=header.figures,
                intensities=header.intensities,
                seconds=header.seconds,
                flops=header.flops,
                memory=header.memory,
                pseudo_patients=header.pseudo_patients,
                request=base64.b64encode(request.read_bytes()).decode(),
                reply=base64.b64encode(reply).decode(),
            )
        )
    return tuple(found)


def build_report(
    sites: Sequence[SiteEvaluation],
    *,
    told: str,
    refused: Mapping[str, str],
    facts: Mapping[str, object],
) -> EvaluationReport:
    """Join the sites' figures.

    Args:
        sites: what each answered, at least one.
        told: the kind of the plan's condition, or "none".
        refused: sites that did not, with the code they gave.
        facts: the report's other fields.
    """
    pooled = together(sites)
    values: dict[str, object] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sites": tuple(sites),
        "refused": dict(sorted(refused.items())),
        "together": pooled,
        "worst": {row.name: worst(row.name, sites) for row in pooled if row.group == EVERYBODY},
        "gaps": gaps(sites, pooled),
        "notes": (*NOTES, *unmeasured(sites, told)),
    }
    return EvaluationReport.model_validate({**values, **facts})


def unmeasured(sites: Sequence[SiteEvaluation], told: str) -> tuple[str, ...]:
    """Return which figures of conditions are not given, where, and what they need.

    How many patients there are instead is not said: fewer than `FEWEST` never leave a site.
    """
    missing = tuple(
        f"{name} was not measured at {site.site}: it needs {needed}."
        for name, needed in NEEDS.get(told, {}).items()
        for site in sites
        if site.figure(name) is None
    )
    return missing if told in ("class", "mask") else (*missing, WITHOUT_UTILITY)


def together(sites: Sequence[SiteEvaluation]) -> tuple[FigureRow, ...]:
    """Return the mean of the sites' figures, weighted by n, for each figure and group.

    The interval assumes that sites err independently: half-widths add in quadrature.
    """
    keys = dict.fromkeys((row.name, row.group) for site in sites for row in site.figures)
    found = []
    for name, group in keys:
        rows = [row for site in sites if (row := site.figure(name, group)) is not None]
        n = sum(row.n for row in rows)
        shares = [row.n / n for row in rows]
        pairs = list(zip(shares, rows, strict=True))
        value = sum(share * row.value for share, row in pairs)
        below = math.hypot(*(share * (row.value - row.low) for share, row in pairs))
        above = math.hypot(*(share * (row.high - row.value) for share, row in pairs))
        reals = [share * row.real for share, row in pairs if row.real is not None]
        found.append(
            FigureRow(
                name=name,
                group=group,
                value=value,
                low=value - below,
                high=value + above,
                n=n,
                real=sum(reals) if len(reals) == len(rows) else None,
                better=rows[0].better,
            )
        )
    return tuple(found)


def worst(name: str, sites: Sequence[SiteEvaluation]) -> str:
    """Return the site whose figure is the worst; the farthest from real against real, if so."""
    rows = {site.site: row for site in sites if (row := site.figure(name)) is not None}

    def badness(row: FigureRow) -> float:
        if row.better == "as real":
            return abs(row.value - row.real) if row.real is not None else 0.0
        return row.value if row.better == "lower" else -row.value

    return max(rows, key=lambda site: badness(rows[site]))


def gaps(sites: Sequence[SiteEvaluation], pooled: Sequence[FigureRow]) -> tuple[Gap, ...]:
    """Return the largest difference of each figure between sites, sexes and bands of age."""
    found = []
    for name in dict.fromkeys(row.name for row in pooled):
        groups: dict[str, dict[str, float]] = {"site": {}, "sex": {}, "age": {}}
        for site in sites:
            row = site.figure(name)
            if row is not None and row.n >= LEAST_OF_A_GROUP:
                groups["site"][site.site] = row.value
        for row in pooled:
            if row.name == name and row.group != EVERYBODY:
                groups[row.group.split()[0]][row.group] = row.value
        for attribute, values in groups.items():
            if len(values) > 1:
                least, most = (
                    min(values, key=values.__getitem__),
                    max(values, key=values.__getitem__),
                )
                facts = {"name": name, "attribute": attribute}
                ends = {"least": (least, values[least]), "most": (most, values[most])}
                found.append(Gap.model_validate({**facts, **ends}))
    return tuple(found)
