"""Each rule with a fact on either side of its limit, and the verdict over all."""

import dataclasses
import itertools

import pytest
from voxfed.privacy.audit.statistics import Interval
from voxfed.privacy.evidence import (
    TOGETHER,
    Copied,
    Evidence,
    LowerBound,
    Membership,
    Rate,
    SiteEvidence,
)
from voxfed.privacy.finding import Finding, Verdict
from voxfed.privacy.release import RULES, decide

HARMLESS = Membership("north", "reconstruction", Interval(0.5, 0.44, 0.56),
                      Interval(0.5, 0.42, 0.58), 0.7)  # fmt: skip
SITE = SiteEvidence(
    name="north",
    epsilon=7.9,
    copied={"voxels": Copied(2000, 100, 3, 3, 0, 0)},
    confirmed=0,
    confirmed_held_out=0,
    samples=2000,
    trained=100,
    pseudo_patients=False,
)
CLEAN = Evidence(
    private=True,
    allowed_without_privacy=False,
    epsilon_limit=8.0,
    delta=1e-5,
    auc_block=0.6,
    auc_half_width=0.08,
    rate_block=0.03,
    sites=(
        SITE,
        dataclasses.replace(
            SITE, name="valley", epsilon=7.0, copied={"voxels": Copied(2000, 100, 2, 3, 0, 0)}
        ),
    ),
    memberships=(
        HARMLESS,
        dataclasses.replace(HARMLESS, site="valley"),
        dataclasses.replace(HARMLESS, site=TOGETHER),
    ),
    blind=(
        dataclasses.replace(HARMLESS, score="blind baseline"),
        dataclasses.replace(HARMLESS, score="blind baseline", site="valley"),
    ),
    rates=(Rate("north", "reconstruction", Interval(0.01, 0.0, 0.03)),),
    bounds=(LowerBound("north", "reconstruction", 1.0, 1.5, 2.8, 5.5),),
    absent={},
)


def of_rule(evidence: Evidence, rule: str) -> Finding:
    return next(finding for finding in decide(evidence)[1] if finding.rule == rule)


def site(**facts: object) -> tuple[SiteEvidence, ...]:
    return (dataclasses.replace(CLEAN.sites[0], **facts), CLEAN.sites[1])


def membership(low: float, where: str = "north") -> tuple[Membership, ...]:
    found = dataclasses.replace(HARMLESS, site=where, corrected=Interval(low + 0.1, low, low + 0.2))
    return (found, *CLEAN.memberships)


def bound(epsilon: float) -> tuple[LowerBound, ...]:
    return (dataclasses.replace(CLEAN.bounds[0], general=epsilon), *CLEAN.bounds)


def test_a_clean_audit_passes_every_rule() -> None:
    verdict, findings = decide(CLEAN)
    assert verdict is Verdict.PASS
    assert len(findings) == len(RULES)
    assert all(finding.detail for finding in findings)


TABLE = [
    ({"private": False}, "trained with privacy", "BLOCK"),
    ({"private": False, "allowed_without_privacy": True}, "trained with privacy", "WARN"),
    ({"sites": site(epsilon=8.0)}, "budget", "PASS"),
    ({"sites": site(epsilon=8.000001)}, "budget", "BLOCK"),
    ({"sites": site(epsilon=None)}, "budget", "BLOCK"),
    ({"absent": {"harbour": 8.1}}, "budget", "BLOCK"),
    ({"memberships": membership(0.60)}, "membership, worst site", "PASS"),
    ({"memberships": membership(0.601)}, "membership, worst site", "BLOCK"),
    ({"memberships": membership(0.7, TOGETHER)}, "membership, worst site", "BLOCK"),
    ({"memberships": ()}, "membership, worst site", "WARN"),
    ({"memberships": ()}, "enough patients", "WARN"),
    ({"auc_half_width": 0.05}, "enough patients", "WARN"),
    ({"sites": site(copied={})}, "copies of patients", "WARN"),
    (
        {"sites": site(copied={"octants": Copied(200, 100, 9, 3, 0, 0)})},
        "copies of patients",
        "PASS",
    ),
    (
        {"sites": site(copied={"octants": Copied(200, 100, 30, 3, 0, 0)})},
        "copies of patients",
        "BLOCK",
    ),
    (
        {"sites": site(copied={"octants": Copied(200, 100, 3, 3, 15, 0)})},
        "copies of patients",
        "BLOCK",
    ),
    (
        {"sites": site(copied={"octants": Copied(200, 100, 3, 30, 0, 0)})},
        "copies of patients",
        "PASS",
    ),
    ({"sites": site(confirmed=1)}, "copies of patients", "BLOCK"),
    ({"sites": site(confirmed=1, confirmed_held_out=1)}, "copies of patients", "WARN"),
    ({"sites": site(confirmed=20, confirmed_held_out=1)}, "copies of patients", "BLOCK"),
    ({"sites": site(trained=None)}, "enough samples", "WARN"),
    ({"blind": CLEAN.blind[:1]}, "blind baseline", "WARN"),
    ({"memberships": CLEAN.memberships[:1]}, "membership, worst site", "WARN"),
    (
        {
            "memberships": (
                HARMLESS,
                dataclasses.replace(HARMLESS, site="valley", smallest_leak=None),
            )
        },
        "membership, worst site",
        "WARN",
    ),
    ({"sites": site(trained=100)}, "enough samples", "PASS"),
    ({"sites": site(trained=101)}, "enough samples", "WARN"),
    ({"blind": ()}, "blind baseline", "WARN"),
    ({"blind": (*membership(0.5)[:1], CLEAN.blind[1])}, "blind baseline", "PASS"),
    ({"blind": membership(0.501)[:1]}, "blind baseline", "INVALID"),
    ({"rates": (Rate("north", "PIA", Interval(0.05, 0.03, 0.1)),)}, "surely found members", "PASS"),
    (
        {"rates": (Rate("north", "PIA", Interval(0.05, 0.031, 0.1)),)},
        "surely found members",
        "BLOCK",
    ),
    ({"rates": ()}, "surely found members", "WARN"),
    ({"bounds": ()}, "below the claimed epsilon", "PASS"),
    ({"bounds": bound(7.9)}, "below the claimed epsilon", "PASS"),
    ({"bounds": bound(7.91)}, "below the claimed epsilon", "BLOCK"),
    ({"sites": site(epsilon=0.2)}, "below the claimed epsilon", "BLOCK"),
    ({"memberships": membership(0.9997)}, "below the claimed epsilon", "BLOCK"),
    ({"absent": {"harbour": 7.0}}, "audit complete", "WARN"),
    ({"absent": {"harbour": None}, "private": False}, "audit complete", "BLOCK"),
    ({"sites": (), "memberships": (), "absent": {"a": 1.0}}, "audit complete", "BLOCK"),
    ({"sites": site(pseudo_patients=True)}, "unit is the patient", "WARN"),
]


@pytest.mark.parametrize(("facts", "rule", "expected"), TABLE)
def test_each_rule_on_either_side_of_its_limit(
    facts: dict[str, object], rule: str, expected: str
) -> None:
    finding = of_rule(dataclasses.replace(CLEAN, **facts), rule)
    assert finding.verdict.value == expected, finding
    if expected == "BLOCK" and finding.value is not None:
        assert "(" in finding.detail


def test_small_sites_that_each_copy_are_blocked_together() -> None:
    """Three of five at one site may be chance; at three sites it is not."""
    copied = {"voxels": Copied(50, 5, 3, 0, 0, 0)}
    three = tuple(dataclasses.replace(SITE, name=name, copied=copied) for name in "abc")
    one = dataclasses.replace(CLEAN, sites=three[:1])
    assert of_rule(one, "copies of patients").verdict is Verdict.PASS
    found = of_rule(dataclasses.replace(CLEAN, sites=three), "copies of patients")
    assert found.verdict is Verdict.BLOCK
    assert TOGETHER in found.detail


def test_a_pass_says_what_it_could_not_have_seen() -> None:
    leak = dataclasses.replace(HARMLESS, smallest_leak=None)
    blind = dataclasses.replace(CLEAN, memberships=(leak,))
    assert "0.70" in of_rule(CLEAN, "membership, worst site").smallest_leak
    assert of_rule(blind, "membership, worst site").smallest_leak.startswith("none")
    assert "memorised members of 200" in of_rule(CLEAN, "copies of patients").smallest_leak


def test_the_gravest_finding_decides_and_comes_first() -> None:
    evidence = dataclasses.replace(
        CLEAN, private=False, auc_half_width=0.01, allowed_without_privacy=False
    )
    verdict, findings = decide(evidence)
    severities = [finding.verdict.severity for finding in findings]
    assert verdict is Verdict.BLOCK
    assert severities == sorted(severities, reverse=True)
    assert [v.severity for v in Verdict] == [0, 1, 2, 3]


def test_no_combination_of_faults_weakens_a_verdict() -> None:
    """Adding a fault never makes the verdict better."""
    for (first, _, _), (second, _, _) in itertools.combinations(TABLE, 2):
        if first.keys() & second.keys() or "private" in {*first, *second}:
            continue
        both = decide(dataclasses.replace(CLEAN, **first, **second))[0].severity
        assert both >= decide(dataclasses.replace(CLEAN, **first))[0].severity
