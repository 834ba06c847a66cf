"""Site: the hospital's folder, its settings and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import Field

from ..privacy.gradients.performance import PerformanceSettings
from ..privacy.ledger import Ledger
from ..study.card import Card
from ..study.errors import SettingsError
from ..study.files import write
from ..study.identity import PublicKey, SigningKey
from ..study.journal import Journal
from ..study.messages import Defaced
from ..study.tables import Table

Positive = Annotated[float, Field(gt=0)]


class Limits(Table):
    """What the hospital allows any study to do; a plan may only ask for stricter."""

    lifetime_epsilon: Positive = Field(10.0, description="epsilon over all studies, above 0")
    delta: float = Field(1e-5, gt=0, lt=1e-2, description="largest delta of a plan, below 0.01")
    least_noise: float = Field(0.3, ge=0, description="smallest noise multiplier, 0 or more")
    families: tuple[str, ...] = Field(("vae",), description="names that `voxfed models` lists")
    without_privacy: bool = Field(False, description="true allows training without privacy")


class SiteSettings(Table):
    """site.toml."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="lower-case letters, digits and hyphens"
    )
    cohort: str = Field(description="the folder that holds the patients")
    coordinator: str = Field(description="host:port of the coordinator")
    defaced: Defaced = Field(
        "no", description='"yes", "no" or "not-head": are faces removed from the scans?'
    )
    pseudo_patients: bool = Field(
        False, description="true where volumes stand as patients, so that no claim holds for people"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description='"auto", "cpu" or "cuda"')
    limits: Limits = Field(default_factory=Limits, description="a [limits] table")
    performance: PerformanceSettings = Field(
        default_factory=PerformanceSettings, description="a [performance] table, or none"
    )


@dataclass(frozen=True)
class Site:
    """A site folder: what the worker owns, what the courier may read, and the socket between."""

    folder: Path

    @cached_property
    def settings(self) -> SiteSettings:
        """The settings in site.toml; raise SettingsError naming every wrong key."""
        path = self.worker / "site.toml"
        try:
            text = path.read_bytes()
        except OSError as fault:
            raise SettingsError(
                f"{path} cannot be read: {fault.strerror}",
                hint="make a site with `voxfed site init`, or name its folder with --folder",
            ) from None
        return SiteSettings.parse(text, file=str(path), error=SettingsError)

    @property
    def worker(self) -> Path:
        """What only the worker reads: settings, keys, approvals, ledger, cache, outbox."""
        return self.folder / "worker"

    @property
    def courier(self) -> Path:
        """All that the courier reads: node key, certificate, address."""
        return self.folder / "courier"

    @property
    def run(self) -> Path:
        """The directory of the socket, mode 0700."""
        return self.folder / "run"

    @property
    def socket(self) -> Path:
        """Where courier and worker meet."""
        return self.run / "worker.sock"

    @property
    def approvals(self) -> Path:
        """One folder a study: the plan and what the operator decided."""
        return self.worker / "approvals"

    @property
    def cohort(self) -> Path:
        """The folder of the patients."""
        return Path(self.settings.cohort)

    @cached_property
    def key(self) -> SigningKey:
        """The key that signs the site's replies."""
        return SigningKey.read(self.worker / "keys" / "site.pem")

    @cached_property
    def coordinator_key(self) -> PublicKey:
        """The key that signs the coordinator's requests."""
        return Card.read(self.worker / "keys" / "coordinator.card.json").key

    @cached_property
    def journal(self) -> Journal:
        """What the worker did, at the site only; full texts of errors stand here."""
        return Journal(self.worker / "journal.jsonl")

    @cached_property
    def ledger(self) -> Ledger:
        """The lifetime budget; raise VerificationError where its chain does not hold."""
        limits = self.settings.limits
        return Ledger.open(
            self.worker / "ledger.sqlite",
            lifetime_epsilon=limits.lifetime_epsilon,
            delta=limits.delta,
        )


def create(folder: Path, settings: SiteSettings, coordinator: Card, certificate: bytes) -> Site:
    """Make a site folder with keys, an empty ledger and settings; refuse to overwrite one.

    Raises:
        SettingsError: a site is there already.
    """
    site = Site(folder.resolve())
    if (site.worker / "site.toml").exists():
        raise SettingsError(f"{folder} holds a site already", hint="choose another folder")
    for private in (site.folder, site.worker, site.courier, site.run, site.approvals):
        private.mkdir(parents=True, exist_ok=True)
        private.chmod(0o700)
    coordinator.write(site.worker / "keys" / "coordinator.card.json")
    write(site.courier / "ca.pem", certificate)
    write(site.courier / "address", settings.coordinator.encode())
    key = SigningKey.create(site.worker / "keys" / "site.pem")
    Card(role="site", name=settings.name, key=key.public).write(
        site.worker / "keys" / "site.card.json"
    )
    Ledger.create(
        site.worker / "ledger.sqlite",
        lifetime_epsilon=settings.limits.lifetime_epsilon,
        delta=settings.limits.delta,
    )
    values = settings.model_dump(exclude_none=True)
    write(site.worker / "site.toml", tomli_w.dumps(values).encode(), mode=0o600)
    return site


def read_address(courier: Path) -> str:
    """Return the coordinator's host:port from the courier's own folder."""
    try:
        return (courier / "address").read_text().strip()
    except OSError as fault:
        raise SettingsError(
            f"{courier / 'address'} cannot be read: {fault.strerror}", hint="run `voxfed site init`"
        ) from None
