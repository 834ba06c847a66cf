"""Inquiry: one request to several sites, asked again until each has answered for good."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from ..study import messages
from ..study.errors import VerificationError, WireError
from ..study.identity import PublicKey
from ..study.messages import RefusalCode
from .coordinator import Coordinator
from .exchange import Exchange

PAUSE = 1.0
"""Seconds between two questions to sites that did not answer, or whose operator has not decided."""

WAITING = frozenset(
    {
        RefusalCode.PENDING,
        RefusalCode.AUDIT_NOT_APPROVED,
        RefusalCode.EVALUATION_NOT_APPROVED,
    }
)
Request = Callable[[str], messages.Request]


@dataclass(frozen=True)
class Charged:
    """A site's charged reply: its header, its payload, and the very bytes that it committed."""

    header: Any
    payload: bytes
    committed: bytes


class Inquiry:
    """Asks enrolled sites in the coordinator's name, and opens what they signed.

    Args:
        coordinator: the folder with keys and enrolled sites.
        exchange: how messages reach the sites.
    """

    def __init__(self, coordinator: Coordinator, exchange: Exchange) -> None:
        self._coordinator, self._exchange = coordinator, exchange
        self.sites = coordinator.sites()

    def once(
        self, sites: Collection[str], request: Request, payload: bytes, deadline: float
    ) -> Iterator[tuple[str, bytes]]:
        """Yield the replies of the sites that answer before the deadline, in seconds."""
        requests = ((s, self.signed(request(s), payload)) for s in sites)
        yield from self._exchange.ask(requests, deadline=deadline)

    def ask(
        self,
        sites: Collection[str],
        request: Request,
        payload: bytes,
        deadline: float,
        refused: dict[str, str],
        lost: Collection[str] = (),
    ) -> Iterator[tuple[str, bytes]]:
        """Yield each site's reply once; ask again who is silent or waits for its operator.

        Args:
            sites: who is asked.
            request: from a site to its request.
            payload: what each request carries.
            deadline: seconds until the iteration ends.
            refused: filled with the code of each site that refuses for good.
            lost: sites that did not answer before: they are asked, and waited for only as long
                again as the others took.
        """
        ends = time.monotonic() + deadline
        open_sites = set(sites)
        while open_sites - set(lost) and time.monotonic() < ends:
            asked = ((s, self.signed(request(s), payload)) for s in sorted(open_sites))
            left = ends - time.monotonic()
            for site, reply in self._exchange.ask(asked, deadline=left, optional=lost):
                code = self._refusal(site, reply)
                if code is None:
                    open_sites.discard(site)
                    yield site, reply
                elif code not in WAITING:
                    open_sites.discard(site)
                    refused[site] = code.value
                del reply
            if open_sites:
                time.sleep(PAUSE)

    def receipt(self, site: str, reply: bytes, kind: type[Any]) -> Charged | None:
        """Open a receipt and the committed reply in it; keep the ledger's head for the echo."""
        key = self.sites[site].key
        try:
            receipt, committed = messages.decode(reply, key)
            if not isinstance(receipt, messages.Receipt):
                return None
            header, payload = messages.decode(committed, key)
        except (WireError, VerificationError) as fault:
            self._coordinator.journal.append("unreadable", site=site, error=fault.message)
            return None
        if not isinstance(header, kind):
            return None
        self._coordinator.keep_head(site, receipt.head)
        return Charged(header, payload, committed)

    def opened(self, site: str, reply: bytes, kind: type[Any]) -> Any:
        """Return the header of a reply if its site signed it and it is of `kind`, or None."""
        return opened(reply, self.sites[site].key, kind)

    def signed(self, header: messages.Request, payload: bytes) -> bytes:
        """Return a request as bytes, signed by the coordinator."""
        return messages.encode(header, self._coordinator.key, payload)

    def _refusal(self, site: str, reply: bytes) -> RefusalCode | None:
        """Return the code of a refusal, or None; a courier's failure is worth another try."""
        if reply[:4] == messages.COURIER_MAGIC:
            return RefusalCode.PENDING
        refusal = self.opened(site, reply, messages.Refused)
        return refusal.code if refusal is not None else None


def opened(reply: bytes, key: PublicKey, kind: type[Any]) -> Any:
    """Return the header of a reply if it is signed by `key` and of `kind`, or None."""
    try:
        header, _ = messages.decode(reply, key)
    except (WireError, VerificationError):
        return None
    return header if isinstance(header, kind) else None


def describe(coordinator: Coordinator, exchange: Exchange, deadline: float) -> None:
    """Ask every enrolled site what it agreed to say of itself, and keep the answers."""
    inquiry = Inquiry(coordinator, exchange)

    def request(site: str) -> messages.Request:
        return messages.DescribeRequest(site=site)

    for site, reply in inquiry.once(list(inquiry.sites), request, b"", deadline):
        description = inquiry.opened(site, reply, messages.Description)
        if description is not None:
            coordinator.keep_description(site, description)
