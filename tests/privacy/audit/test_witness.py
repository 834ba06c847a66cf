"""The audit's half of the self-test: planted leaks are found, and an honest generator is let go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from voxfed.privacy.audit import selftest, witness
from voxfed.privacy.audit.attack import Attacked
from voxfed.privacy.audit.copies.search import Copies, Search
from voxfed.privacy.audit.scores.score import BLIND
from voxfed.privacy.evidence import TOGETHER
from voxfed.privacy.finding import Verdict
from voxfed.privacy.release import decide
from voxfed.study.messages import ScoreCounts

N = witness.PATIENTS
EDGES = (0.0, 1.0, 2.0)
ALIKE = ScoreCounts(edges=EDGES, members=(10, 10), non_members=(10, 10))
APART = ScoreCounts(edges=EDGES, members=(0, 20), non_members=(20, 0))
FAULTS = {key: plant for key, plant in selftest.FAULTS.items() if key[0] in witness.INSTRUMENTS}
BLAMED = {
    "search for copies": "copies of patients",
    "membership scores": "membership, worst site",
    "blind baseline": "blind baseline",
}


def found(membership: ScoreCounts = ALIKE, blind: ScoreCounts = ALIKE, copied: int = 0) -> Attacked:
    """What an attack on 20 members and 20 others would say that found as much as this."""
    copies = Copies(40, N, 0.5, 0.6, copied, 0, copied, 0, copied, 0, copied, 0)
    scores = {"reconstruction": membership, BLIND: blind}
    return Attacked(scores, Search({"voxels": copies}, 0, 0, ()), {})


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Attacks are kept within a run; these tests leave none behind."""
    witness._attacked.cache_clear()
    yield
    witness._attacked.cache_clear()


@pytest.fixture
def attacked(monkeypatch: pytest.MonkeyPatch) -> dict[object, Attacked]:
    """What is found, by the part of the generator that was replaced."""
    table: dict[object, Attacked] = {}

    def look(*parts: object) -> Attacked:
        return next((table[part] for part in parts if part in table), found())

    monkeypatch.setattr(witness, "_attacked", look)
    monkeypatch.setattr(selftest, "INSTRUMENTS", witness.INSTRUMENTS)
    monkeypatch.setattr(selftest, "FAULTS", FAULTS)
    return table


def leaky() -> dict[object, Attacked]:
    return {
        witness.memorising: found(membership=APART),
        witness.replaying: found(copied=N),
        witness.shifted: found(blind=APART),
    }


def test_each_rule_judges_its_own_leak(attacked: dict[object, Attacked]) -> None:
    """Findings hold where each leak is found by its instrument, and nothing is found without."""
    attacked.update(leaky())
    findings = selftest.run()
    assert all(finding.holds for finding in findings)
    assert [finding.engine for finding in findings[:3]] == [witness.HONEST] * 3
    assert {finding.part for finding in findings} == {"audit"}


@pytest.mark.parametrize(("instrument", "name"), FAULTS)
def test_an_audit_that_misses_a_leak_is_blind(
    attacked: dict[object, Attacked], instrument: str, name: str
) -> None:
    """One leak that is not seen fails the test, and is named."""
    attacked.update(leaky())
    missed = {"search for copies": witness.replaying, "membership scores": witness.memorising}
    del attacked[missed.get(instrument, witness.shifted)]
    wrong = [finding.verdict for finding in selftest.run() if not finding.holds]
    assert wrong == [f"{instrument} is blind: it does not see {name}"]


def test_an_audit_that_accuses_the_honest_fails(attacked: dict[object, Attacked]) -> None:
    attacked.update(leaky())
    attacked[witness.lessons] = found(membership=APART)
    wrong = [finding for finding in selftest.run() if not finding.holds]
    assert "membership scores accuses an honest generator" in wrong[0].verdict
    assert wrong[0].reading.measured > wrong[0].reading.limit


@pytest.mark.parametrize(
    ("leak", "verdict", "rule"),
    [
        ({}, Verdict.WARN, "trained with privacy"),
        ({"membership": APART}, Verdict.BLOCK, BLAMED["membership scores"]),
        ({"copied": N}, Verdict.BLOCK, BLAMED["search for copies"]),
        ({"blind": APART}, Verdict.INVALID, BLAMED["blind baseline"]),
    ],
    ids=["nothing", "membership", "copies", "blind"],
)
def test_the_gate_decides_from_this_evidence(
    leak: dict[str, object], verdict: Verdict, rule: str
) -> None:
    """The whole gate comes to the verdict of the rule that judges the leak."""
    decided, findings = decide(witness.evidence({"one": found(**leak), "two": found(**leak)}, N))
    assert decided == verdict
    assert rule in [finding.rule for finding in findings if finding.verdict == verdict]


def test_evidence_keeps_the_blind_baseline_apart() -> None:
    """Else its comparisons would be judged by the limit of the model's scores."""
    evidence = witness.evidence({"one": found()}, 12, epsilon=3.0)
    assert evidence.private
    assert {m.score for m in evidence.memberships} == {"reconstruction"}
    assert {(m.score, m.site) for m in evidence.blind} == {(BLIND, "one"), (BLIND, TOGETHER)}
    (site,) = evidence.sites
    assert (site.name, site.epsilon, site.samples, site.trained) == ("one", 3.0, 40, 12)


def test_planted_parts_are_what_they_are_called() -> None:
    """Half of a replay is the members under noise; a shift moves everybody; lessons are members."""
    members, others = (torch.rand((n, 1, 4, 4, 4)) - 0.5 for n in (N, 2 * N))
    made = witness.replaying(members, others)
    assert made.shape == others.shape
    assert torch.equal(made[N:], others[N:])
    assert 0.09 < float((made[:N] - members).std()) < 0.11
    assert torch.allclose(witness.shifted(members), members + witness.SHIFT)
    assert witness.memorising(members, others) is members
    assert witness.lessons(members, others) is others
    assert witness.samples(members, others) is others
    assert witness.held_out(others) is others


@pytest.mark.slow
@pytest.mark.usefixtures("forgotten")
def test_real_attacks_find_real_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memorising autoencoder, a replay and another scanner are found; an honest model is not."""
    monkeypatch.setattr(selftest, "INSTRUMENTS", witness.INSTRUMENTS)
    monkeypatch.setattr(selftest, "FAULTS", FAULTS)
    findings = selftest.run()
    assert len(findings) == 6
    assert all(finding.holds for finding in findings), [finding.verdict for finding in findings]


@pytest.mark.slow
@pytest.mark.usefixtures("forgotten")
def test_a_search_without_eyes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test would fail if the search went blind: it is not the plant that is tested."""
    monkeypatch.setattr("voxfed.privacy.audit.attack.search", lambda *_, **__: Search({}, 0, 0, ()))
    with selftest.FAULTS["search for copies", "members replayed with noise"]():
        reading = witness.judge("search for copies")
    assert not reading.alarm
