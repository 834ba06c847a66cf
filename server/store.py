"""Store: one study at the coordinator: plan, rounds, audits, progress."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..study.errors import UsageError, VerificationError
from ..study.files import write
from ..study.identity import PublicKey, canonical
from ..study.messages import hash_of
from ..study.plan import StudyPlan
from ..study.record import RoundRecord
from ..study.schedule import Schedule


@dataclass(frozen=True)
class Round:
    """One finished round on disk: its weights and its signed record."""

    folder: Path

    @property
    def weights(self) -> bytes:
        """The global tensors after the round, as safetensors."""
        return (self.folder / "weights.safetensors").read_bytes()

    @property
    def envelope(self) -> bytes:
        """The signed record."""
        return (self.folder / "round.json").read_bytes()

    @property
    def facts(self) -> dict[str, Any]:
        """Who took part, what was spent and how long it took."""
        facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_bytes())
        return facts

    def record(self, key: PublicKey) -> RoundRecord:
        """Return the record after checking signature and weights; raise VerificationError."""
        record = RoundRecord.open(self.envelope, key)
        if hash_of(self.weights) != record.weights_digest:
            raise VerificationError(
                f"{self.folder / 'weights.safetensors'} was truncated or altered",
                got=hash_of(self.weights)[:12],
                expected=record.weights_digest[:12],
                hint="remove the folder of this round; the study goes on from the one before",
            )
        return record


@dataclass(frozen=True)
class Store:
    """The folder of one study; every write is whole or not at all."""

    folder: Path

    @property
    def plan(self) -> StudyPlan:
        """The plan of the study; raise UsageError where there is none."""
        if not (self.folder / "plan.toml").exists():
            raise UsageError(
                f"there is no study named {self.folder.name}", hint="make it: voxfed study new"
            )
        return StudyPlan.read(self.folder / "plan.toml")

    @property
    def schedule(self) -> Schedule:
        """The stages of a study that has started."""
        return Schedule.read(self.rounds()[0].facts["schedule"])

    def rounds(self) -> list[Round]:
        """Return the finished rounds in their order, the start (round 0) first."""
        found = (self.folder / "rounds").glob("[0-9]*")
        return [Round(path) for path in sorted(found) if (path / "round.json").exists()]

    def latest(self, key: PublicKey) -> Round:
        """Return the last finished round after checking it; raise UsageError before the start."""
        rounds = self.rounds()
        if not rounds:
            raise UsageError(f"study {self.folder.name} has not started")
        rounds[-1].record(key)
        return rounds[-1]

    def keep(self, number: int, weights: bytes, envelope: bytes, facts: dict[str, Any]) -> Round:
        """Write one round into a temporary folder and rename it into place."""
        parent = self.folder / "rounds"
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=".round-"))
        write(temporary / "weights.safetensors", weights)
        write(temporary / "facts.json", canonical(facts))
        write(temporary / "round.json", envelope)
        target = parent / f"{number:06d}"
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        return Round(target)

    def show(self, **progress: Any) -> None:
        """Write what the running study is doing, for `study run` and `study status` to read."""
        write(self.folder / "progress.json", canonical(progress))

    def progress(self) -> dict[str, Any]:
        """Return what the study is doing, or nothing before it ran."""
        path = self.folder / "progress.json"
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return found

    def decisions(self) -> dict[str, dict[str, Any]]:
        """Return what each site last answered to the plan."""
        path = self.folder / "decisions.json"
        try:
            found: dict[str, dict[str, Any]] = (
                json.loads(path.read_bytes()) if path.exists() else {}
            )
        except ValueError:
            raise VerificationError(
                f"{path} is garbled", hint="remove it: sites are asked again"
            ) from None
        return found

    def keep_decisions(self, decisions: dict[str, dict[str, Any]]) -> None:
        """Write what each site answered to the plan."""
        write(self.folder / "decisions.json", canonical(decisions))

    def keep_audit(
        self, requests: dict[str, bytes], replies: dict[str, bytes], facts: dict[str, Any]
    ) -> Path:
        """Write the signed requests and replies of one audit into a new folder, and return it."""
        parent = self.folder / "audits"
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=".audit-"))
        _write_answers(temporary, requests, replies, facts)
        target = parent / f"{len(list(parent.glob('[0-9]*'))) + 1:03d}"
        temporary.rename(target)
        return target

    def keep_evaluation(
        self,
        subject: str,
        requests: dict[str, bytes],
        replies: dict[str, bytes],
        facts: dict[str, Any],
    ) -> Path:
        """Write signed requests and replies beside those of sites that answered before."""
        folder = self.folder / "evaluations" / subject
        _write_answers(folder, requests, replies, facts)
        return folder

    def spent(self) -> dict[str, float | None]:
        """Return epsilon in each site's last signed reply, to a round or an audit."""
        spent: dict[str, float | None] = {}
        for finished in self.rounds():
            spent |= finished.facts.get("epsilon", {})
        for path in sorted((self.folder / "audits").glob("[0-9]*/facts.json")):
            spent |= json.loads(path.read_bytes()).get("epsilon", {})
        return spent

    def audits(self) -> list[Path]:
        """Return the folders of finished audits, oldest first."""
        return sorted(p.parent for p in (self.folder / "audits").glob("*/audit.json"))


def _write_answers(
    folder: Path, requests: dict[str, bytes], replies: dict[str, bytes], facts: dict[str, Any]
) -> None:
    for site, reply in replies.items():
        write(folder / f"{site}.request", requests[site])
        write(folder / f"{site}.reply", reply)
    write(folder / "facts.json", canonical(facts))
