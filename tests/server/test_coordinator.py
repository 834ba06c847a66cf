"""Coordinator: its folder, and whom it enrolled under which key."""

from __future__ import annotations

import json
import stat
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from voxfed.server.coordinator import Coordinator, CoordinatorSettings, create
from voxfed.study.card import Card
from voxfed.study.errors import PlanError, SettingsError, UsageError
from voxfed.study.identity import PublicKey
from voxfed.study.messages import Head

KEY, OTHER = PublicKey(bytes(32)), PublicKey(bytes([1] * 32))


@cache
def node_key(name: str) -> str:
    """A public key as Flower takes it, one for each name."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(*form).decode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Coordinator:
    folder = tmp_path_factory.mktemp("made") / "coordinator"
    return create(folder, CoordinatorSettings(name="hub", public_host="localhost", port=9000))


def enrolment(folder: Path, name: str, key: PublicKey, role: str = "site") -> Path:
    path = folder / "enrolment.json"
    facts = {"role": role, "name": name, "key": key.text, "node_key": node_key(name)}
    path.write_text(json.dumps(facts))
    return path


def test_a_new_folder(made: Coordinator) -> None:
    """Settings and card round-trip, nobody is enrolled, and others may not look inside."""
    again = Coordinator(made.folder)
    assert again.settings == made.settings
    assert Card.read(made.folder / "coordinator.card.json") == again.card
    assert (again.sites(), again.officers(), again.descriptions()) == ({}, {}, {})
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((made.folder / "keys" / "coordinator.pem").stat().st_mode) == 0o600


def test_a_folder_is_never_overwritten(made: Coordinator) -> None:
    """A second `init` would orphan every site's trust in the first key."""
    with pytest.raises(SettingsError, match="holds a coordinator already"):
        create(made.folder, made.settings)
    assert Coordinator(made.folder).key.public == made.key.public


def test_no_folder(tmp_path: Path) -> None:
    """The hint says how to make one."""
    with pytest.raises(SettingsError, match="cannot be read") as caught:
        _ = Coordinator(tmp_path).settings
    assert "voxfed server init" in caught.value.hint


def test_wrong_settings(tmp_path: Path) -> None:
    """Every wrong key is named at once."""
    (tmp_path / "coordinator.toml").write_text('name = "hub"\nport = 0\nhots = "x"')
    with pytest.raises(SettingsError) as caught:
        _ = Coordinator(tmp_path).settings
    assert "3 wrong keys" in caught.value.message
    assert "did you mean host?" in caught.value.message


def test_a_site_is_one_key(tmp_path: Path) -> None:
    """Enrolled twice is fine; another key under the name is not, and nothing is written then."""
    hub = Coordinator(tmp_path)
    card = hub.enrol_site(enrolment(tmp_path, "north", KEY))
    assert hub.enrol_site(enrolment(tmp_path, "north", KEY)) == card
    assert hub.sites() == {"north": card}
    assert hub.node_keys() == {"north": node_key("north").encode()}
    with pytest.raises(UsageError, match="north cannot be enrolled") as caught:
        hub.enrol_site(enrolment(tmp_path, "north", OTHER))
    assert KEY.identifier in caught.value.message
    assert OTHER.identifier in caught.value.message
    assert hub.sites() == {"north": card}


def test_only_sites_enrol_as_sites(tmp_path: Path) -> None:
    """An officer's or coordinator's card is no site, and a name is no path."""
    hub = Coordinator(tmp_path)
    for role in ("officer", "coordinator"):
        with pytest.raises(UsageError, match="cannot be enrolled"):
            hub.enrol_site(enrolment(tmp_path, "north", KEY, role))
    with pytest.raises(PlanError):
        hub.enrol_site(enrolment(tmp_path, "../north", KEY))
    assert hub.sites() == {}
    assert not (tmp_path / "sites").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"node_key": "x"}', '"x"'])
def test_what_is_no_enrolment(tmp_path: Path, text: str) -> None:
    """One clear error for a file of another kind."""
    (tmp_path / "file").write_text(text)
    with pytest.raises(UsageError):
        Coordinator(tmp_path).enrol_site(tmp_path / "file")


def test_officers(tmp_path: Path) -> None:
    """An officer's name stands for one key, and only officers are officers."""
    hub = Coordinator(tmp_path)
    card = Card("officer", "ada", KEY)
    card.write(tmp_path / "ada.json")
    assert hub.enrol_officer(tmp_path / "ada.json") == card
    assert hub.officers() == {"ada": card}
    Card("officer", "ada", OTHER).write(tmp_path / "ada.json")
    with pytest.raises(UsageError, match="enrolled with another key"):
        hub.enrol_officer(tmp_path / "ada.json")
    Card("site", "bob", KEY).write(tmp_path / "bob.json")
    with pytest.raises(UsageError, match="no officer's card"):
        hub.enrol_officer(tmp_path / "bob.json")
    assert hub.officers() == {"ada": card}


def test_heads_are_kept_for_the_echo(tmp_path: Path) -> None:
    """The last head that a site gave comes back after a restart."""
    hub = Coordinator(tmp_path)
    assert hub.head("north") is None
    for length in (1, 2):
        hub.keep_head("north", Head(length=length, digest="ab" * 32))
    assert Coordinator(tmp_path).head("north") == Head(length=2, digest="ab" * 32)
