"""EvaluationReport: figures of sites joined, the worst found, gaps told, and signatures checked."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from voxfed.server.evaluation import (
    NEEDS,
    NOTES,
    EvaluationReport,
    SiteEvaluation,
    build_report,
    gaps,
    read_answers,
    together,
    worst,
)
from voxfed.server.evaluation_page import write_page
from voxfed.study import messages
from voxfed.study.errors import VerificationError
from voxfed.study.figures import FigureRow, Intensities
from voxfed.study.identity import SigningKey

DIGEST, OTHER = "ab" * 32, "cd" * 32
SHARES = Intensities(samples=(0.25, 0.75), held_out=(0.5, 0.5))
FACTS = {
    "versions": {"voxfed": "0.1.0"},
    "study": "trunks",
    "family": "vae",
    "round": 2,
    "plan_digest": DIGEST,
    "weights_digest": DIGEST,
    "extractor": "contrastive encoder, trained on phantoms",
    "extractor_digest": DIGEST,
}


def row(value: float, n: int = 20, name: str = "KID", **more: Any) -> FigureRow:
    facts: dict[str, Any] = {"group": "all", "low": value - 1, "high": value + 2}
    facts |= {"real": 0.5, "better": "lower"}
    return FigureRow.model_validate({"name": name, "value": value, "n": n, **facts, **more})


def site(name: str, *figures: FigureRow) -> SiteEvaluation:
    return SiteEvaluation(
        site=name,
        samples=12,
        figures=figures,
        intensities=SHARES,
        seconds=0.5,
        flops=10**9,
        memory=2**20,
        pseudo_patients=False,
        request="",
        reply="",
    )


def test_sites_are_joined_by_n() -> None:
    """The mean weighs each patient alike, and independent errors add in quadrature."""
    found = together([site("north", row(1.0, 30)), site("valley", row(5.0, 10, real=None))])
    assert [(one.name, one.group, one.n, one.real) for one in found] == [("KID", "all", 40, None)]
    (joined,) = found
    assert joined.value == pytest.approx(0.75 * 1 + 0.25 * 5)
    assert joined.value - joined.low == pytest.approx(math.hypot(0.75, 0.25))
    assert joined.high - joined.value == pytest.approx(math.hypot(1.5, 0.5))
    alone = row(3.0)
    assert together([site("north", alone)]) == (alone,)


@pytest.mark.parametrize(
    ("better", "values", "expected"),
    [
        ("lower", (1.0, 2.0), "valley"),
        ("higher", (1.0, 2.0), "north"),
        ("as real", (0.6, 0.1), "valley"),
        ("as real", (0.9, 0.2), "north"),
    ],
)
def test_the_worst_site(better: str, values: tuple[float, float], expected: str) -> None:
    """Which way is worse depends on the figure; "as real" is worst farthest from real."""
    sites = [
        site(name, row(value, better=better, real=0.5))
        for name, value in zip(("north", "valley"), values, strict=True)
    ]
    assert worst("KID", sites) == expected


def test_gaps_are_between_groups_of_twenty() -> None:
    """Sites under 20 patients are noise; sexes and ages are compared over all sites."""
    figures = [row(value, group=group) for group, value in GROUPS.items()]
    sites = [
        site("north", row(1.0), *figures),
        site("valley", row(4.0)),
        site("harbour", row(9.0, n=19)),
    ]
    found = {gap.attribute: gap for gap in gaps(sites, together(sites))}
    assert set(found) == {"site", "sex", "age"}
    assert (found["site"].least, found["site"].most) == (("north", 1.0), ("valley", 4.0))
    assert (found["sex"].least, found["sex"].most) == (("sex M", 1.0), ("sex F", 3.0))
    assert found["age"].most == ("age 40 to 49", 7.0)
    assert gaps(sites[1:], together(sites[1:])) == ()


GROUPS = {"sex F": 3.0, "sex M": 1.0, "age 40 to 49": 7.0, "age 50 to 59": 2.0, "age 60 to 69": 5.0}


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "north.pem")


def answer(folder: Path, key: SigningKey, **more: Any) -> None:
    """Write the request and the reply of `north`."""
    request = messages.EvaluationRequest(
        site="north",
        study="trunks",
        plan_digest=DIGEST,
        lineage="{}",
        weights_digest=DIGEST,
        weights_size=3,
        extractor_digest=OTHER,
        samples=12,
    )
    asked = messages.encode(request, key)
    facts: dict[str, Any] = {
        "study": "trunks",
        "request_digest": messages.request_digest(asked),
        "weights_digest": DIGEST,
        "extractor_digest": OTHER,
        "samples": 12,
        "figures": (row(1.0),),
        "intensities": SHARES,
        "seconds": 0.5,
        "flops": 7,
        "memory": None,
        "pseudo_patients": True,
    }
    (folder / "north.request").write_bytes(asked)
    (folder / "north.reply").write_bytes(messages.encode(messages.Evaluated(**(facts | more)), key))


def test_answers_are_read_with_their_signatures(tmp_path: Path, key: SigningKey) -> None:
    """What a site signed is what the report shows, and the very bytes stand in it."""
    answer(tmp_path, key)
    (found,) = read_answers(tmp_path, {"north": key.public}, DIGEST, OTHER)
    assert (found.site, found.figures, found.flops) == ("north", (row(1.0),), 7)
    assert found.pseudo_patients


@pytest.mark.parametrize(
    "more", [{"request_digest": OTHER}, {"weights_digest": OTHER}, {"extractor_digest": DIGEST}]
)
def test_an_answer_about_something_else(
    tmp_path: Path, key: SigningKey, more: dict[str, Any]
) -> None:
    """Old figures cannot be handed out as those of new weights."""
    answer(tmp_path, key, **more)
    with pytest.raises(VerificationError, match="the reply of north is about"):
        read_answers(tmp_path, {"north": key.public}, DIGEST, OTHER)


def test_an_answer_of_somebody_else(tmp_path: Path, key: SigningKey) -> None:
    """A reply that its site did not sign, of a site that nobody enrolled, or garbled, is none."""
    answer(tmp_path, key)
    other = SigningKey.create(tmp_path / "other.pem").public
    for keys in ({"north": other}, {}):
        with pytest.raises(VerificationError, match="cannot be trusted"):
            read_answers(tmp_path, keys, DIGEST, OTHER)
    (tmp_path / "north.request").write_bytes(b"?")
    with pytest.raises(VerificationError, match="cannot be trusted"):
        read_answers(tmp_path, {"north": key.public}, DIGEST, OTHER)


def report(*sites: SiteEvaluation, told: str = "none") -> EvaluationReport:
    return build_report(sites, told=told, refused={"harbour": "too-few"}, facts=FACTS)


def test_a_report_comes_back_from_its_file() -> None:
    """What is written is what was meant."""
    made = report(site("north", row(1.0)))
    assert EvaluationReport.model_validate_json(made.text) == made


@pytest.mark.parametrize(
    ("told", "names", "missing"),
    [
        ("none", (), ["There is no utility"]),
        ("source", ("PSNR, dB",), ["There is no utility"]),
        ("source", (), ["PSNR, dB was not measured at north: it needs 5 held-out", "There is no"]),
        ("class", ("AUC, synthetic only",), []),
        ("class", (), ["AUC, synthetic only was not measured at north: it needs 5 members"]),
        ("mask", ("Dice", "Dice, synthetic only"), []),
        ("mask", ("Dice",), ["Dice, synthetic only was not measured at north: it needs 5 held"]),
    ],
)
def test_what_was_not_measured_is_said(
    told: str, names: tuple[str, ...], missing: list[str]
) -> None:
    """A figure that is left out without a word passes for one that nobody thought of."""
    full = [row(0.5, name=name) for name in NEEDS.get(told, {})]
    sites = (
        site("north", row(1.0), *(row(0.5, name=name) for name in names)),
        site("valley", row(1.0), *full),
    )
    found = report(*sites, told=told).notes[len(NOTES) :]
    assert len(found) == len(missing)
    assert all(line.startswith(start) for line, start in zip(found, missing, strict=True))


def test_the_page_holds_everything_and_fetches_nothing() -> None:
    """Every figure, the refusal and the limits are in one file that needs no network."""
    groups = [row(value, group=group) for group, value in GROUPS.items()]
    made = report(site("north", row(1.25), *groups), site("valley", row(4.5)))
    page = write_page(made, picture=b"png", withheld="")
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    for text in ("1.25", "4.5", "north", "valley", "too-few", "age 40 to 49", "epsilon does not"):
        assert text in page
    assert "MS-SSIM between samples is not: samples have no sex and no age" in page
    assert page.count("data:image/png") == 3
    withheld = write_page(made, picture=None, withheld="the <audit> blocked")
    assert withheld.count("data:image/png") == 2
    assert "the &lt;audit&gt; blocked" in withheld
