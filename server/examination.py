"""Examination: an audit or an evaluation of a study's last weights, at the sites."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ..study import messages
from ..study.errors import Refusal, UsageError
from ..study.messages import hash_of
from .coordinator import Coordinator
from .exchange import Exchange
from .inquiry import Charged, Inquiry, Request
from .store import Store


class Examination:
    """Asks about the weights of a study's last round, and keeps the signed replies.

    Args:
        coordinator: the folder with keys and enrolled sites.
        exchange: how messages reach the sites.
        store: the folder of the study.
        deadline: seconds to wait for the sites and their operators.
    """

    def __init__(
        self, coordinator: Coordinator, exchange: Exchange, store: Store, deadline: float
    ) -> None:
        self._coordinator, self._store, self._deadline = coordinator, store, deadline
        self._inquiry = Inquiry(coordinator, exchange)
        self._plan = store.plan
        last = store.latest(coordinator.key.public)
        self._weights, self._lineage = last.weights, last.envelope.decode()
        self._sites = [
            site
            for site, facts in store.decisions().items()
            if facts["decision"] == "approved"
        ]  # fmt: skip

    def audit(self, samples: int, drawn: Path | None, extractor: Path | None) -> None:
        """Ask every site to audit the weights on its own patients, and keep the signed replies.

        Args:
            samples: synthetic volumes that are searched for copies.
            drawn: the file of those volumes; None where sites draw their own, or search none.
            extractor: the file of the extractor that likeness is judged by, if one is.

        Raises:
            UsageError: a file cannot be read.
            Refusal: no site answered before the deadline.
        """
        volumes, judge = (_content(path) if path else b"" for path in (drawn, extractor))
        request = self._request(
            messages.AuditRequest,
            weights_digest=hash_of(self._weights),
            weights_size=len(self._weights),
            samples_digest=hash_of(volumes),
            samples_size=len(volumes),
            extractor_digest=hash_of(judge),
            samples=samples,
        )
        payload = self._weights + volumes + judge
        answered, refused = self._ask("audit", request, payload, messages.Audited)
        spent = {site: reply.header.epsilon for site, reply in answered.items()}
        folder = self._store.keep_audit(
            self._requests(request, payload, answered),
            {site: reply.committed for site, reply in answered.items()},
            {"weights": hash_of(self._weights), "refused": refused, "epsilon": spent},
        )
        self._finish("audited", folder, answered, refused)

    def evaluate(self, samples: int, extractor: Path) -> None:
        """Ask every site how good the weights' samples are, and keep the signed replies.

        Raises:
            UsageError: there is no such extractor.
            Refusal: no site answered before the deadline.
        """
        judge = _content(extractor)
        request = self._request(
            messages.EvaluationRequest,
            weights_digest=hash_of(self._weights),
            weights_size=len(self._weights),
            extractor_digest=hash_of(judge),
            samples=samples,
        )
        payload = self._weights + judge
        answered, refused = self._ask("evaluation", request, payload, messages.Evaluated)
        subject = next(request(site).subject for site in answered)
        folder = self._store.keep_evaluation(
            subject,
            self._requests(request, payload, answered),
            {site: reply.committed for site, reply in answered.items()},
            {"weights": hash_of(self._weights), "refused": refused},
        )
        self._finish("evaluated", folder, answered, refused)

    def _request(self, kind: Callable[..., Any], **facts: Any) -> Callable[[str], Any]:
        """Return what makes a site's request; only its name and its ledger's head differ."""
        return lambda site: kind(
            site=site,
            study=self._plan.name,
            plan_digest=self._plan.digest,
            lineage=self._lineage,
            echo=self._coordinator.head(site),
            **facts,
        )

    def _ask(
        self, what: str, request: Request, payload: bytes, kind: type[Any]
    ) -> tuple[dict[str, Charged], dict[str, str]]:
        """Return the sites' charged replies, and the codes of those that refused."""
        answered: dict[str, Charged] = {}
        refused: dict[str, str] = {}
        self._show(what, waiting=self._sites)
        for site, reply in self._inquiry.ask(
            self._sites, request, payload, self._deadline, refused
        ):
            charged = self._inquiry.receipt(site, reply, kind)
            if charged is None:
                refused[site] = "unreadable"
                continue
            answered[site] = charged
            self._show(what, waiting=[s for s in self._sites if s not in answered])
        if not answered:
            raise Refusal(
                f"no site answered the {what}", got=refused or "silence", hint="see server status"
            )
        return answered, refused

    def _requests(
        self, request: Request, payload: bytes, answered: dict[str, Charged]
    ) -> dict[str, bytes]:
        """Return the signed requests without their payload."""
        from ..privacy.audit.answer import without_payload

        # Signatures are deterministic, and the digest of a request leaves out the echo.
        return {s: without_payload(self._inquiry.signed(request(s), payload)) for s in answered}

    def _finish(
        self,
        state: Literal["audited", "evaluated"],
        folder: Path,
        answered: dict[str, Charged],
        refused: dict[str, str],
    ) -> None:
        facts = {"study": self._plan.name, "weights": hash_of(self._weights)}
        self._coordinator.journal.append(state, **facts, sites=sorted(answered))
        self._show(state, folder=str(folder), refused=refused)

    def _show(self, state: str, **facts: Any) -> None:
        self._store.show(state=state, time=time.time(), rounds=self._store.schedule.rounds, **facts)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise UsageError(f"{path} cannot be read: {fault.strerror}") from None
