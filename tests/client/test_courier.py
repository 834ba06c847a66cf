"""The courier carries bytes both ways, and says of a failure only its code."""

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import Context, ObjectTree
from flwr.proto.run_pb2 import Run
from flwr.proto.runtime_pb2 import (
    PullAppMessagesResponse,
    PullTaskInputResponse,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from voxfed.client import courier
from voxfed.client.courier import CourierCode, Delivery, carry, courier_failure
from voxfed.client.socket import serve
from voxfed.study.wire import pack, unpack


class Answer:
    """What an object call of the Runtime API returns."""

    def __init__(self, content: bytes = b"") -> None:
        self.object_found = self.object_available = self.stored = True
        self.object_content = content


class Node:
    """A SuperNode's Runtime API that holds one message and keeps what is pushed."""

    def __init__(self, content: RecordDict, ttl: float = 100.0) -> None:
        facts = Metadata(5, "", 1, 7, "", "", time.time(), ttl, "train")
        message = make_message(facts, content=content)
        message.metadata.__dict__["_message_id"] = message.object_id
        self.header, self.tree = message_to_proto(message), get_object_tree(message)
        self.objects = {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
        self.pushed: dict[str, bytes] = {}
        self.pushed_tree = ObjectTree()
        self.outputs: list[object] = []

    def PullTaskInput(self, request: object) -> PullTaskInputResponse:
        """The task, with a bundle."""
        context = Context(run_id=5, node_id=7)
        return PullTaskInputResponse(
            context=context, run=Run(run_id=5), fab=Fab(content=b"import evil"), task_id=3
        )

    def PullMessages(self, request: object) -> PullAppMessagesResponse:
        """The message's head."""
        return PullAppMessagesResponse(
            messages_list=[self.header], message_object_trees=[self.tree]
        )

    def PullObject(self, request: object) -> Answer:
        """One part of the message."""
        return Answer(self.objects[request.object_id])

    def ConfirmMessageReceived(self, request: object) -> Answer:
        """Nothing to do."""
        return Answer()

    def PushMessages(self, request: object) -> PushAppMessagesResponse:
        """Take the reply's head and ask for all parts."""
        self.pushed_tree = request.message_object_trees[0]
        ids, waiting = [], [self.pushed_tree]
        while waiting:
            tree = waiting.pop()
            ids.append(tree.object_id)
            waiting.extend(tree.children)
        return PushAppMessagesResponse(objects_to_push=ids, session_id="s")

    def PushObject(self, request: object) -> Answer:
        """Take one part of the reply."""
        self.pushed[request.object_id] = request.object_content
        return Answer()

    def PushTaskOutput(self, request: object) -> None:
        """Take the outcome."""
        self.outputs.append(request)

    def reply(self) -> bytes:
        """Return the bytes that were pushed back, as the server would read them."""
        message = inflate_object_from_contents(self.pushed_tree.object_id, dict(self.pushed))
        assert isinstance(message, Message)
        assert not message.has_error()
        return unpack(message.content)


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket path short enough, in a 0700 directory."""
    with tempfile.TemporaryDirectory(prefix="vx-") as folder:
        yield Path(folder) / "worker.sock"


def test_a_message_goes_to_the_worker_and_its_reply_back() -> None:
    node, delivery = Node(pack(b"request")), Delivery()
    carry(node, delivery, lambda request, timeout: request + b" answered")
    assert node.reply() == b"request answered"
    assert (delivery.request_bytes, delivery.reply_bytes) == (7, 16)
    assert delivery.outcome == "delivered"
    assert delivery.bundle == hashlib.sha256(b"import evil").hexdigest()
    assert [output.details for output in node.outputs] == [""]


def test_the_worker_gets_less_time_than_the_message_lives() -> None:
    """Otherwise the code of a timeout would come after the message has expired."""
    given: list[float] = []
    carry(Node(pack(b"x"), ttl=1000), Delivery(), lambda r, timeout: given.append(timeout) or r)
    assert 800 < given[0] <= 900  # a tenth is kept; the rest is for a machine that was slow here


def test_an_unreadable_message_never_reaches_the_worker() -> None:
    node, delivery = Node(RecordDict({"text": ConfigRecord({"a": 1})})), Delivery()
    carry(node, delivery, lambda request, timeout: pytest.fail("the worker was asked"))
    assert node.reply() == b"VXFCmessage-unreadable"
    assert delivery.outcome == "message-unreadable"


def test_codes_are_all_that_a_failure_says(path: Path) -> None:
    assert courier._ask(path, b"x", 60) == courier_failure(CourierCode.WORKER_UNREACHABLE)
    release = threading.Event()
    server = serve(path, lambda m: b"%d" % release.wait(60), allowed_uids=frozenset({os.getuid()}))
    assert courier._ask(path, b"x", 0.3) == courier_failure(CourierCode.WORKER_TIMEOUT)
    release.set()
    server.stop()
    assert courier_failure(CourierCode.WORKER_TIMEOUT) == b"VXFCworker-timeout"


def test_it_starts_fast_and_without_torch() -> None:
    """Flower starts it for every message; importing torch and MONAI would cost 7 s each time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = "import sys, voxfed.client.courier; print({'torch', 'monai'} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, check=True, text=True
    )
    assert ended.stdout.strip() == "set()"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 4  # of the processor's own time; 0.6 s where idle


def test_without_its_settings_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VOXFED_WORKER_SOCKET", raising=False)
    status = courier.main(["--runtime-api-address", "127.0.0.1:1", "--token", "t", "--insecure"])
    assert status == 1
    assert "VOXFED_WORKER_SOCKET" in capsys.readouterr().err
