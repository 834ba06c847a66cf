"""One message to each site, and the replies as they come: all a round asks of Flower's Grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from ..study.errors import WireError
from ..study.wire import pack, unpack

POLL_SECONDS = 0.3
LEAST_LIFE = 30.0
"""Seconds that a message lives at least: Flower fails the whole run over one that expired."""
_LOG = logging.getLogger(__name__)


class Exchange:
    """Asks enrolled sites by name over a Flower `Grid`.

    Args:
        grid: the Grid of the running ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> dict[str, int]:
        """Return the Flower node id of each enrolled site that is online now, by its name."""
        return {node.name: node.node_id for node in self._grid.get_nodes() if node.name}

    def ask(
        self,
        requests: Iterable[tuple[str, bytes]],
        *,
        deadline: float,
        optional: Collection[str] = (),
    ) -> Iterator[tuple[str, bytes]]:
        """Send each named site its request and yield (site, reply) in the order of arrival.

        A reply is fetched only when the one before has been dealt with, so memory holds one at a
        time. A site that is offline, is lost or answers with a Flower error yields nothing, and
        its error code is logged; the caller sees who is missing.

        Args:
            requests: site and bytes; each is sent before the next is asked for.
            deadline: seconds from now until the iteration ends, complete or not; the messages
                themselves expire about then too, so that no late reply is kept.
            optional: once only these are waited for, they get as long again as the others took.
        """
        began = time.monotonic()
        ends, shortened = began + deadline, False
        waiting = self._push(requests, deadline)
        while waiting and time.monotonic() < ends:
            if not shortened and set(waiting.values()) <= set(optional):
                shortened = True
                ends = min(ends, 2 * time.monotonic() - began)
            arrived = False
            for message_id in list(waiting):
                for message in self._grid.pull_messages([message_id]):
                    arrived = True
                    site = waiting.pop(message_id)
                    reply = _read(site, message)
                    del message
                    if reply is not None:
                        yield site, reply
                    del reply
            if not arrived:
                time.sleep(min(POLL_SECONDS, max(0.0, ends - time.monotonic())))
        for site in waiting.values():
            _LOG.warning("no reply from %s within %.0f s", site, deadline)

    def _push(self, requests: Iterable[tuple[str, bytes]], deadline: float) -> dict[str, str]:
        nodes, waiting = self.nodes(), {}
        for site, request in requests:
            if site not in nodes:
                _LOG.warning("%s is not online", site)
                continue
            message = Message(pack(request), nodes[site], "train", ttl=max(deadline, LEAST_LIFE))
            for message_id in self._grid.push_messages([message]):
                if message_id:
                    waiting[message_id] = site
        return waiting


def _read(site: str, message: Message) -> bytes | None:
    if message.has_error():
        _LOG.warning("%s answered with Flower's error code %d", site, message.error.code)
        return None
    try:
        return unpack(message.content)
    except WireError as error:
        _LOG.warning("%s sent an unreadable reply: %s", site, error.message)
        return None
