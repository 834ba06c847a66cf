"""`voxfed site ledger` and `voxfed site ledger recover`, as an operator runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result
from voxfed.client.commands import site_app
from voxfed.privacy.ledger import RoundKey
from voxfed.study.errors import UsageError, VerificationError


def run(hospital: Any, *arguments: str) -> Result:
    folder = str(hospital.folder / "site")
    result = CliRunner().invoke(site_app, ["ledger", *arguments, "--folder", folder])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def restored(hospital: Any, tmp_path: Path) -> Any:
    """A worker folder put back to before the round that the coordinator saw."""
    worker = hospital.site.worker
    shutil.copytree(worker, tmp_path / "old")
    key = RoundKey("trunks", "0", "autoencoder", 1)
    head = hospital.site.ledger.commit(
        key, "request", "reply", hospital.approval.terms.per_round["autoencoder"]
    )
    shutil.copy(worker / "ledger.sqlite", tmp_path / "newer.sqlite")
    shutil.rmtree(worker)
    shutil.copytree(tmp_path / "old", worker)
    with pytest.raises(VerificationError):
        hospital.site.ledger.check_echo(head)
    return hospital


def test_the_ledger_is_shown(hospital: Any) -> None:
    """As a table without curves, and as one document with them."""
    assert "chain intact" in run(hospital).stdout
    found = json.loads(run(hospital, "--json").stdout)
    assert [(s["study"], s["rounds"], s["curve"]) for s in found["studies"]] == [("trunks", 0, [])]
    assert found["lifetime"]["limit"] == 40.0


def test_the_curve_is_drawn(hospital: Any, tmp_path: Path) -> None:
    """Beside either output; a name of another format draws and prints nothing."""
    path = tmp_path / "curve.png"
    document = json.loads(run(hospital, "--json", "--plot", str(path)).stdout)
    assert document["studies"]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "drew" in run(hospital, "--plot", str(tmp_path / "curve.svg")).stdout
    with pytest.raises(UsageError):
        run(hospital, "--plot", str(tmp_path / "curve.gif"))
    assert not (tmp_path / "curve.gif").exists()


def test_recovery_shows_before_it_writes(restored: Any) -> None:
    """Without --yes nothing is written, and the price is named; with it, it is paid."""
    shown = json.loads(run(restored, "recover", "--json").stdout)
    assert shown["exhausted"]
    assert not shown["written"]
    assert restored.site.ledger.head().length == 1
    text = run(restored, "recover").stdout
    assert "whole lifetime budget" in text
    assert "add --yes" in text
    vouched = json.loads(run(restored, "recover", "--all-known", "--yes", "--json").stdout)
    assert (vouched["exhausted"], vouched["written"]) == (False, True)
    (study,) = vouched["studies"]
    assert (study["spent_before"], study["spent_after"]) == (
        0.0,
        restored.site.ledger.spent("trunks"),
    )
    assert "nothing is missing" in run(restored, "recover").stdout
    assert [entry["event"] for entry in restored.site.journal.entries()][-1] == "recovered"


def test_recovery_from_a_copy(restored: Any, tmp_path: Path) -> None:
    """The rows come back and nothing else is charged."""
    text = run(restored, "recover", "--from", str(tmp_path / "newer.sqlite"), "--yes").stdout
    assert "1 rows taken over" in text
    assert [row.kind for row in restored.site.ledger.rows()] == ["reserve", "charge"]
    assert "nothing is missing" in run(restored, "recover").stdout


def test_a_study_without_a_bound_is_said_so(small_hospital: Any, plan_text: bytes) -> None:
    """The table never shows an epsilon that holds for nothing."""
    text = plan_text.replace(b"epsilon = 8.0", b"enabled = false")
    hospital = small_hospital(text, without_privacy=True)
    hospital.site.ledger.reserve("trunks", hospital.plan.digest, [], delta=1e-3)
    key = RoundKey("trunks", "0", "autoencoder", 1)
    hospital.site.ledger.commit(key, "request", "reply", [])
    text = run(hospital).stdout
    assert "NO BOUND" in text
    assert "no lifetime bound" in text
