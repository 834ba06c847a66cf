"""The self-test: the engine passes, each planted fault is caught, and blindness is a failure."""

import json
from contextlib import nullcontext

import pytest
import streams
import typer
from typer.testing import CliRunner
from voxfed.privacy import clipping, engine, noise, sampling
from voxfed.privacy.audit import replay, selftest, witness
from voxfed.privacy.audit.selftest import FAULTS, INSTRUMENTS, SHIPPED, Finding, Reading
from voxfed.privacy.audit_commands import audit_app
from voxfed.privacy.gradients.recorder import Recorder
from voxfed.study.errors import VerificationError

ENGINE = {name: read for name, read in INSTRUMENTS.items() if name not in witness.INSTRUMENTS}
PLANTED = {key: plant for key, plant in FAULTS.items() if key[0] in ENGINE}
EVERYTHING = [*((name, SHIPPED) for name in ENGINE), *PLANTED]


@pytest.fixture(scope="module")
def findings() -> dict[tuple[str, str], Finding]:
    """One run on the engine, on fixed streams: chance alone would fail three of a million."""
    with pytest.MonkeyPatch.context() as patch:
        streams.fix(patch)
        patch.setattr(selftest, "INSTRUMENTS", ENGINE)
        patch.setattr(selftest, "FAULTS", PLANTED)
        return {(finding.instrument, finding.engine): finding for finding in selftest.run()}


@pytest.mark.parametrize(("instrument", "name"), EVERYTHING, ids=lambda text: text)
def test_it_is_as_it_must_be(
    findings: dict[tuple[str, str], Finding], instrument: str, name: str
) -> None:
    """No alarm for the engine as shipped; an alarm for each fault, from its instrument."""
    finding = findings[instrument, name]
    assert finding.holds, finding.verdict
    assert finding.reading.alarm == (name != SHIPPED)


def test_the_bound_is_reached() -> None:
    """The replay's worst patient moves the release by all of C: the limit is really tested."""
    assert replay.read().measured > 1 - 2e-4


def test_all_known_faults_are_planted() -> None:
    """What the instruments are there for stays in the table."""
    names = {
        instrument: [name for owner, name in FAULTS if owner == instrument]
        for instrument in INSTRUMENTS
    }
    assert {name: len(faults) for name, faults in names.items()} == {
        "neighbour replay": 5,
        "noise residual": 3,
        "canaries": 2,
        "search for copies": 1,
        "membership scores": 1,
        "blind baseline": 1,
    }


@pytest.mark.usefixtures("findings")
def test_no_fault_stays_behind() -> None:
    """After a run the engine is whole again."""
    assert engine.clip_weights is clipping.clip_weights
    assert engine.add_noise is noise.add_noise
    assert engine.sampling.poisson is sampling.poisson
    assert engine.private_gradient.__module__ == engine.__name__
    assert engine.PatientGradients.weighted_sum.__qualname__ == "PatientGradients.weighted_sum"


def test_each_kind_of_passes_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that quietly takes others is not said to be right."""
    monkeypatch.setattr(Recorder, "agrees", lambda recorder, step, batch: False)
    with pytest.raises(VerificationError, match="does not take the passes"):
        replay.read()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Two cheap instruments: `told` says whether each sees the planted fault or a sound engine."""
    seen = {"fault": True, SHIPPED: False}
    at = [SHIPPED]

    class Planted(nullcontext[None]):
        def __enter__(self) -> None:
            at[0] = "fault"

        def __exit__(self, *_: object) -> None:
            at[0] = SHIPPED

    def read() -> Reading:
        return Reading(2.0, 1.0, seen[at[0]], "two of one")

    monkeypatch.setattr(selftest, "INSTRUMENTS", {"eye": read})
    monkeypatch.setattr(selftest, "FAULTS", {("eye", "fault"): Planted})
    return seen


def _call(*words: str) -> tuple[str, BaseException | None]:
    app = typer.Typer()
    app.add_typer(audit_app, name="audit")
    done = CliRunner().invoke(app, ["audit", "selftest", *words])
    return done.stdout, done.exception


def test_the_command_shows_and_counts(told: dict[str, bool]) -> None:
    """A sound engine and seeing instruments: a table, and success."""
    text, fault = _call()
    assert fault is None
    assert "PASS" in text
    assert "FAIL" not in text
    assert "2 of 2 hold" in text
    document = json.loads(_call("--json")[0])
    assert document["holds"] is True
    assert [finding["engine"] for finding in document["findings"]] == [SHIPPED, "fault"]
    assert {finding["part"] for finding in document["findings"]} == {"engine"}


def test_the_command_shows_engine_and_audit_apart(
    told: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader sees which half failed."""
    monkeypatch.setattr(witness, "INSTRUMENTS", {"eye": None})
    told["fault"] = False
    text, _ = _call()
    engine, audit = text.split("self-test of the privacy audit")
    assert "eye" not in engine
    assert "FAIL" in audit
    assert "1 of 2 hold" in audit


@pytest.mark.parametrize(
    ("who", "sees", "reason"),
    [
        ("fault", False, "eye is blind: it does not see fault"),
        (SHIPPED, True, "eye finds the engine faulty: two of one"),
    ],
)
def test_the_command_fails_with_exit_4(
    told: dict[str, bool], who: str, sees: bool, reason: str
) -> None:
    """A blind instrument is as bad as a faulty engine; what was measured is still shown."""
    told[who] = sees
    for words in ((), ("--json",)):
        text, fault = _call(*words)
        assert isinstance(fault, VerificationError)
        assert fault.exit_code == 4
        assert reason in fault.message
        assert "FAIL" in text or json.loads(text)["holds"] is False
