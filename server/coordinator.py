"""Coordinator: the folder of who launches rounds, its settings, and whom it enrolled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tomli_w
from pydantic import Field

from ..study.card import Card
from ..study.errors import SettingsError, UsageError
from ..study.files import write
from ..study.identity import SigningKey
from ..study.journal import Journal
from ..study.messages import Description, Head
from ..study.plan import safe_name
from ..study.tables import Table


class CoordinatorSettings(Table):
    """coordinator.toml."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="lower-case letters, digits and hyphens"
    )
    host: str = Field("0.0.0.0", description="the address to listen at")  # noqa: S104 hospitals reach it
    public_host: str = Field(
        pattern=r"^[A-Za-z0-9.:-]+$", description="the name or address that sites connect to"
    )
    port: int = Field(8000, ge=1, le=65535, description="the one TCP port, 1 to 65535")


@dataclass(frozen=True)
class Coordinator:
    """A coordinator folder."""

    folder: Path

    @cached_property
    def settings(self) -> CoordinatorSettings:
        """The settings in coordinator.toml; raise SettingsError naming every wrong key."""
        path = self.folder / "coordinator.toml"
        try:
            text = path.read_bytes()
        except OSError as fault:
            raise SettingsError(
                f"{path} cannot be read: {fault.strerror}",
                hint="make it with `voxfed server init`, or name its folder with --folder",
            ) from None
        return CoordinatorSettings.parse(text, file=str(path), error=SettingsError)

    @cached_property
    def key(self) -> SigningKey:
        """The key that signs requests, rounds and releases."""
        return SigningKey.read(self.folder / "keys" / "coordinator.pem")

    @property
    def card(self) -> Card:
        """The coordinator's public card."""
        return Card("coordinator", self.settings.name, self.key.public)

    @cached_property
    def journal(self) -> Journal:
        """What the coordinator did."""
        return Journal(self.folder / "journal.jsonl")

    @property
    def studies(self) -> Path:
        """One folder a study."""
        return self.folder / "studies"

    def sites(self) -> dict[str, Card]:
        """Return the enrolled sites by name."""
        cards = sorted((self.folder / "sites").glob("*/card.json"))
        return {path.parent.name: Card.read(path) for path in cards}

    def officers(self) -> dict[str, Card]:
        """Return the enrolled officers by name."""
        cards = sorted((self.folder / "officers").glob("*.card.json"))
        return {card.name: card for card in map(Card.read, cards)}

    def enrol_site(self, enrolment: Path) -> Card:
        """Keep a site's enrolment file: its card and the public key of its node.

        Raises:
            UsageError: the file is no enrolment, or the name or a key is taken.
        """
        from .control import node_key_pem

        try:
            facts = json.loads(enrolment.read_bytes())
            node_key = str(facts["node_key"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"{enrolment} is no enrolment file", hint="ask the site for enrolment.json"
            ) from None
        card = Card.read(enrolment)
        folder = self.folder / "sites" / safe_name(card.name, what="the site's name")
        node_key_pem(node_key.encode())
        known = self.sites().get(card.name)
        if card.role != "site" or (known is not None and known != card):
            raise UsageError(
                f"{card.name} cannot be enrolled",
                got=f"{card.role} with key {card.key.identifier}",
                expected=f"key {known.key.identifier}" if known else "a site",
            )
        for name, key in self.node_keys().items():
            if (name == card.name) != (key.decode() == node_key):
                raise UsageError(
                    f"the node key of {card.name} cannot be enrolled",
                    got=f"{name} is enrolled with {'it' if name != card.name else 'another'}",
                    hint="make the site anew with `voxfed site init`, under another name",
                )
        write(folder / "node.pub", node_key.encode())
        card.write(folder / "card.json")
        self.journal.append("site enrolled", site=card.name, key=card.key.identifier)
        return card

    def enrol_officer(self, path: Path) -> Card:
        """Keep an officer's card; raise UsageError where it is another's."""
        card = Card.read(path)
        if card.role != "officer":
            raise UsageError(f"{path} is no officer's card", got=card.role, expected="officer")
        target = self.folder / "officers" / f"{safe_name(card.name, what='the name')}.card.json"
        if target.exists() and Card.read(target) != card:
            raise UsageError(f"the officer {card.name} is enrolled with another key")
        card.write(target)
        self.journal.append("officer enrolled", officer=card.name, key=card.key.identifier)
        return card

    def node_keys(self) -> dict[str, bytes]:
        """Return the node key of each enrolled site, in OpenSSH format."""
        files = sorted((self.folder / "sites").glob("*/node.pub"))
        return {path.parent.name: path.read_bytes() for path in files}

    def keep_description(self, site: str, description: Description) -> None:
        """Keep what a site last said of itself."""
        path = self.folder / "sites" / site / "description.json"
        write(path, description.model_dump_json().encode())

    def descriptions(self) -> dict[str, Description]:
        """Return what each site last said of itself."""
        files = sorted((self.folder / "sites").glob("*/description.json"))
        return {p.parent.name: Description.model_validate_json(p.read_bytes()) for p in files}

    def keep_head(self, site: str, head: Head) -> None:
        """Keep the last head of a site's ledger, to be echoed in the next request."""
        write(self.folder / "sites" / site / "head.json", head.model_dump_json().encode())

    def head(self, site: str) -> Head | None:
        """Return the last head that a site gave, if any."""
        path = self.folder / "sites" / site / "head.json"
        return Head.model_validate_json(path.read_bytes()) if path.exists() else None


def create(folder: Path, settings: CoordinatorSettings) -> Coordinator:
    """Make a coordinator folder with keys and certificates; refuse to overwrite one.

    Raises:
        SettingsError: a coordinator is there already.
    """
    from .certificates import create_certificates

    coordinator = Coordinator(folder.resolve())
    if (folder / "coordinator.toml").exists():
        raise SettingsError(f"{folder} holds a coordinator already", hint="choose another folder")
    for part in ("sites", "officers", "studies", "keys"):
        (coordinator.folder / part).mkdir(parents=True, exist_ok=True)
    coordinator.folder.chmod(0o700)
    SigningKey.create(coordinator.folder / "keys" / "coordinator.pem")
    names = dict.fromkeys([settings.public_host, "127.0.0.1", "localhost"])
    create_certificates(coordinator.folder / "certificates", list(names))
    write(coordinator.folder / "coordinator.toml", tomli_w.dumps(settings.model_dump()).encode())
    coordinator.card.write(coordinator.folder / "coordinator.card.json")
    return coordinator
