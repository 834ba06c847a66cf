"""Exchange: who is asked, who is waited for, and for how long, over a Grid that stands in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from flwr.app.error import Error
from flwr.supercore.task_identity import TaskIdentity
from voxfed.server import exchange as module
from voxfed.server.exchange import Exchange
from voxfed.study.wire import pack


class Clock:
    """Time that passes only by waiting, so that no slow machine decides who was late."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-6)


class Grid:
    """Answers each node's message with its own bytes after so many seconds; None is never."""

    def __init__(self, seconds: dict[str, float | None], failing: Iterable[str] = ()) -> None:
        self.names, self.seconds, self.failing = list(seconds), seconds, set(failing)
        self.due: dict[str, tuple[float, Message, str]] = {}
        self.pushed: list[str] = []

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(name=n, node_id=i + 1) for i, n in enumerate(self.names)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        name = self.names[message.metadata.dst_node_id - 1]
        self.pushed.append(name)
        wait = self.seconds[name]
        ready = module.time.monotonic() + (1e9 if wait is None else wait)
        self.due[f"message-{name}"] = (ready, message, name)
        return [f"message-{name}"]

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        found = []
        for message_id in ids:
            ready, message, name = self.due[message_id]
            if module.time.monotonic() >= ready:
                if name in self.failing:
                    found.append(Message(Error(8, "a text"), reply_to=message))
                else:
                    found.append(Message(pack(name.encode()), reply_to=message))
        return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", Clock())
    # a Message asks whose task it belongs to, which only a running ServerApp knows
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1, raising=False)


def ask(grid: Grid, deadline: float, **more: Any) -> tuple[dict[str, bytes], float]:
    """Who answered what, and the seconds that it took."""
    began = module.time.monotonic()
    requests = ((name, b"request") for name in [*grid.names, "offline"])
    found = dict(Exchange(grid).ask(requests, deadline=deadline, **more))  # type: ignore[arg-type]
    return found, module.time.monotonic() - began


def test_each_answer_comes_under_its_own_name() -> None:
    """A reply taken for another site's would be added with the wrong weight."""
    found, seconds = ask(Grid({"a": 2.0, "b": 0.0, "c": 1.0}), 10)
    assert list(found.items()) == [("b", b"b"), ("c", b"c"), ("a", b"a")]
    assert 2.0 <= seconds < 2.0 + 2 * module.POLL_SECONDS


def test_a_silent_site_costs_its_deadline() -> None:
    """Nobody waits without end, as stock Flower does."""
    found, seconds = ask(Grid({"a": 0.0, "b": None}), 10.0)
    assert found == {"a": b"a"}
    assert seconds == pytest.approx(10.0)


def test_a_lost_site_does_not_hold_up_the_others() -> None:
    """A site that missed the round before gets as long again as the others took, and no more."""
    found, seconds = ask(Grid({"a": 3.0, "b": None}), 60.0, optional={"b"})
    assert found == {"a": b"a"}
    assert 6.0 <= seconds < 6.0 + 4 * module.POLL_SECONDS


def test_a_lost_site_that_is_back_counts_again() -> None:
    """Slower than the others, it is still heard."""
    found, _ = ask(Grid({"a": 5.0, "b": 7.0}), 60.0, optional={"b"})
    assert found == {"a": b"a", "b": b"b"}


def test_an_error_of_flower_is_no_answer() -> None:
    """Flower's error may carry a text; neither it nor the site blocks the round."""
    found, seconds = ask(Grid({"a": 0.0, "b": 0.0}, failing={"b"}), 10)
    assert found == {"a": b"a"}
    assert seconds == 0


def test_requests_are_made_one_at_a_time() -> None:
    """Each holds a copy of the weights: memory must not grow with the number of sites."""
    grid = Grid({"a": 0.0, "b": 0.0, "c": 0.0})

    def requests() -> Iterator[tuple[str, bytes]]:
        for number, name in enumerate(grid.names):
            assert len(grid.pushed) == number
            yield name, b"request"

    assert len(dict(Exchange(grid).ask(requests(), deadline=10))) == 3  # type: ignore[arg-type]
