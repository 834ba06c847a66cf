"""The officer's commands, as the officer types them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from voxfed.privacy.audit_commands import audit_app
from voxfed.privacy.bundle import CONTENT, add_decision
from voxfed.privacy.officer_commands import officer_app
from voxfed.privacy.release_commands import release_app
from voxfed.study.card import Card
from voxfed.study.errors import Refusal, UsageError, VerificationError, VoxfedError

PASSPHRASE = {"VOXFED_PASSPHRASE": "correct horse"}
REASON = (
    *("--reason", "enough patients=a pilot"),
    *("--reason", "surely found members=a pilot"),
)
REASONS = {"enough patients": "a pilot", "surely found members": "a pilot"}


def call(app: Any, *words: object, **settings: Any) -> str:
    """Runs a command; its VoxfedError comes through, as the command line prints it."""
    result = CliRunner().invoke(app, [str(word) for word in words], env=PASSPHRASE, **settings)
    if isinstance(result.exception, VoxfedError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def office(scene: Any, plan: Any, tmp_path: Path) -> tuple[Any, Path, Path, list[object]]:
    """A scene, its bundle, an officer's folder, and the options that name all cards."""
    people = scene()
    folder = tmp_path / "office"
    call(officer_app, "init", "--folder", folder, "--name", "officer")
    cards: list[object] = ["--card", folder / "officer.card.json"]
    for name, role in [("coordinator", "coordinator")] + [(s, "site") for s in people.site_keys]:
        path = tmp_path / f"{name}.card.json"
        Card(role, name, people.keys[name].public).write(path)
        cards += ["--card", path]
    return people, people.bundle(plan()), folder, cards


def test_init_makes_a_protected_key_and_a_card(tmp_path: Path) -> None:
    told = json.loads(call(officer_app, "init", "--folder", tmp_path, "--name", "dr-roe", "--json"))
    card = Card.read(tmp_path / "officer.card.json")
    assert (card.role, card.name, card.key.identifier) == ("officer", "dr-roe", told["key"])
    key = tmp_path / "keys" / "officer.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in key.read_bytes()
    with pytest.raises(UsageError, match="holds a key already"):
        call(officer_app, "init", "--folder", tmp_path, "--name", "dr-roe")


def test_init_asks_twice_for_the_passphrase(tmp_path: Path) -> None:
    words = ["init", "--folder", str(tmp_path), "--name", "dr-roe"]
    bare = {"VOXFED_PASSPHRASE": None}
    wrong = CliRunner().invoke(officer_app, words, input="one\ntwo\n", env=bare)
    assert wrong.exit_code != 0
    assert not (tmp_path / "keys").exists()
    right = CliRunner().invoke(officer_app, words, input="one\none\n", env=bare)
    assert right.exit_code == 0, right.output


@pytest.mark.parametrize("name", ["Dr Roe", "", "../roe", "a" * 41])
def test_init_refuses_a_name_that_cannot_be_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be used as a name"):
        call(officer_app, "init", "--folder", tmp_path / "f", "--name", name)
    assert not (tmp_path / "f").exists()


def test_show_names_verdict_and_worst_site(office: Any) -> None:
    _, bundle, _, _ = office
    text = call(audit_app, "show", bundle)
    assert "WARN" in text
    assert "not enough patients" in text
    told = json.loads(call(audit_app, "show", bundle, "--json"))
    assert told["verdict"] == "WARN"
    assert len(told["sites"]) == 3
    assert "reply" not in told["sites"][0]


def test_show_refuses_a_changed_bundle(office: Any) -> None:
    _, bundle, _, _ = office
    (bundle / "audit.json").write_bytes((bundle / "audit.json").read_bytes() + b" ")
    with pytest.raises(VerificationError, match=r"audit\.json was changed"):
        call(audit_app, "show", bundle)


def test_approve_add_and_verify(office: Any, tmp_path: Path) -> None:
    people, bundle, folder, cards = office
    decision = tmp_path / "decision.dsse.json"
    words = [
        "approve",
        bundle,
        "--folder",
        folder,
        "-o",
        decision,
        *REASON,
    ]
    told = json.loads(call(release_app, *words, *cards, "--json"))
    assert (told["decision"], told["signatures_checked"]) == ("approve", True)
    key = Card.read(folder / "officer.card.json").key
    add_decision(bundle, decision.read_bytes(), {"officer": key})
    found = json.loads(call(release_app, "verify", bundle, *cards, "--json"))
    assert found["verified"] is True
    assert found["approvals"] == {"officer": REASONS}
    shown = call(release_app, "verify", bundle, *cards)
    assert "approved by officer\n  enough patients: a pilot" in shown
    for name in CONTENT:
        content = (bundle / name).read_bytes()
        (bundle / name).write_bytes(b"?" + content[1:])
        with pytest.raises(VerificationError, match=name):
            call(release_app, "verify", bundle, *cards)
        (bundle / name).write_bytes(content)
    del people


def test_a_rejection_is_signed_and_refuses_the_bundle(office: Any, tmp_path: Path) -> None:
    _, bundle, folder, cards = office
    decision = tmp_path / "decision.dsse.json"
    call(release_app, "reject", bundle, "--folder", folder, "-o", decision, "--reason", "too few")
    key = Card.read(folder / "officer.card.json").key
    add_decision(bundle, decision.read_bytes(), {"officer": key})
    with pytest.raises(VerificationError, match="officer rejected this release: too few"):
        call(release_app, "verify", bundle, *cards)


def test_nothing_is_written_where_approval_is_refused(
    office: Any, plan: Any, copies: Any, tmp_path: Path
) -> None:
    people, bundle, folder, _ = office
    decision = tmp_path / "decision.dsse.json"
    words = ["--folder", folder, "-o", decision]
    with pytest.raises(Refusal, match=r"each WARN needs your reason: .*enough patients"):
        call(release_app, "approve", bundle, *words)
    bundle.rename(tmp_path / "old")
    people.copies = copies(10, 0)
    with pytest.raises(Refusal, match="blocked by the rule"):
        call(
            release_app,
            "approve",
            people.bundle(plan()),
            *words,
            "--reason",
            "copies of patients=please",
        )
    assert not decision.exists()


def test_a_wrong_passphrase_signs_nothing(
    office: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bundle, folder, _ = office
    monkeypatch.setitem(PASSPHRASE, "VOXFED_PASSPHRASE", "wrong")
    output = tmp_path / "d.json"
    with pytest.raises(UsageError, match="does not open"):
        call(release_app, "approve", bundle, "--folder", folder, "-o", output, *REASON)
    monkeypatch.setitem(PASSPHRASE, "VOXFED_PASSPHRASE", "")
    with pytest.raises(UsageError, match="passphrase is empty"):
        call(release_app, "approve", bundle, "--folder", folder, "-o", output, *REASON)
    assert not output.exists()


def test_a_decision_is_never_overwritten(office: Any, tmp_path: Path) -> None:
    _, bundle, folder, _ = office
    output = tmp_path / "d.json"
    words = ["reject", bundle, "--folder", folder, "-o", output, "--reason", "x"]
    call(release_app, *words)
    before = output.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        call(release_app, *words)
    assert output.read_bytes() == before


def test_cards_that_do_not_fit_are_refused(office: Any, tmp_path: Path) -> None:
    people, bundle, folder, _ = office
    with pytest.raises(UsageError, match="coordinator's card is needed"):
        call(release_app, "verify", bundle, "--card", folder / "officer.card.json")
    twice = []
    for number, name in enumerate(("north", "valley")):
        path = tmp_path / f"{number}.card.json"
        Card("site", "north", people.keys[name].public).write(path)
        twice += ["--card", path]
    with pytest.raises(UsageError, match="different keys"):
        call(release_app, "verify", bundle, *twice)


def test_help_imports_nothing_heavy() -> None:
    """Importing torch costs seconds at every --help."""
    code = (
        "import sys, voxfed.privacy.release_commands, voxfed.privacy.audit_commands;"
        "print({'torch', 'monai', 'matplotlib', 'flwr', 'scipy', 'jinja2'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
