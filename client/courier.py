"""The program that runs as `flwr-clientapp`: carries one message between SuperNode and worker.

Flower starts it anew for every message, by that name from PATH (`supernode.py` puts ours first),
and would have it unpack and import the bundle that the server delivered. This one never does: it
notes the bundle's digest in its journal and hands the message, as bytes, to the worker that belongs
to the hospital. It imports no torch and holds no scan, and no text of an error leaves it: a failure
travels as one of `CourierCode`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.args import add_args_flwr_app_common, try_obtain_flwr_app_token
from flwr.common.constant import SubStatus
from flwr.common.serde import message_to_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.tls import validate_and_resolve_root_certificates

from ..study.errors import ProcessError, WireError
from ..study.wire import pack, unpack
from .socket import exchange

SOCKET_VARIABLE = "VOXFED_WORKER_SOCKET"
FOLDER_VARIABLE = "VOXFED_COURIER_FOLDER"
SUPERNODE_PATIENCE_SECONDS = 30.0
FAILURE_MARK = b"VXFC"


class CourierCode(StrEnum):
    """All that the coordinator learns about a message that did not reach the worker and return."""

    WORKER_UNREACHABLE = "worker-unreachable"
    WORKER_TIMEOUT = "worker-timeout"
    MESSAGE_UNREADABLE = "message-unreadable"


def courier_failure(code: CourierCode) -> bytes:
    """Return the reply bytes that say `code` and nothing else: b"VXFC" and the code in ASCII."""
    return FAILURE_MARK + code.value.encode("ascii")


@dataclass
class Delivery:
    """What one message was, for the journal: sizes in bytes, times in seconds."""

    bundle: str = ""
    message_id: str = ""
    request_bytes: int = 0
    reply_bytes: int = 0
    seconds: float = 0.0
    outcome: str = "stopped"


def main(arguments: list[str] | None = None) -> int:
    """Carry one message with the arguments that Flower's executor passes; return the exit status.

    Reads the worker's socket from VOXFED_WORKER_SOCKET and the courier's folder, where
    `journal.jsonl` lies, from VOXFED_COURIER_FOLDER.
    """
    parser = argparse.ArgumentParser(prog="flwr-clientapp", description="the courier of voxfed")
    parser.add_argument("--runtime-api-address", required=True)
    add_args_flwr_app_common(parser)
    chosen = parser.parse_args(arguments)
    socket, folder = os.environ.get(SOCKET_VARIABLE), os.environ.get(FOLDER_VARIABLE)
    if not socket or not folder:
        print(f"voxfed: error: {SOCKET_VARIABLE} or {FOLDER_VARIABLE} is not set", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if chosen.parent_pid is not None:
        start_parent_process_monitor(chosen.parent_pid)
    retries = make_simple_http_retry_invoker()
    retries.max_time = SUPERNODE_PATIENCE_SECONDS
    client = RuntimeHttpClient.from_server_address(
        server_address=chosen.runtime_api_address,
        insecure=chosen.insecure,
        root_certificates=validate_and_resolve_root_certificates(
            chosen.root_certificates, chosen.insecure
        ),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(try_obtain_flwr_app_token(chosen)),
        ],
        retry_invoker=retries,
    )
    delivery = Delivery()
    with client, _heartbeat(client), _journaled(delivery, Path(folder) / "journal.jsonl"):
        carry(client, delivery, lambda request, timeout: _ask(Path(socket), request, timeout))
    return 0


def carry(
    client: RuntimeHttpClient, delivery: Delivery, ask: Callable[[bytes, float], bytes]
) -> None:
    """Pull the waiting message from the SuperNode, `ask` the worker, and push the reply.

    Args:
        client: connection to the SuperNode's Runtime API that holds this task's token.
        delivery: filled in as it happens.
        ask: request bytes and seconds left, to reply bytes.

    Raises:
        ProcessError: the SuperNode holds no message for this task.
    """
    task = client.PullTaskInput(PullTaskInputRequest())
    delivery.bundle = hashlib.sha256(task.fab.content).hexdigest()
    node, run_id = Node(node_id=task.context.node_id), task.run.run_id
    message = _pull(client, node, run_id)
    delivery.message_id = message.metadata.message_id
    try:
        request = unpack(message.content)
    except WireError:
        reply = courier_failure(CourierCode.MESSAGE_UNREADABLE)
    else:
        delivery.request_bytes = len(request)
        message.content = RecordDict()
        reply = ask(request, _seconds_left(message))
    delivery.reply_bytes = len(reply)
    delivery.outcome = "delivered"
    if reply.startswith(FAILURE_MARK):
        delivery.outcome = reply[len(FAILURE_MARK) :].decode("ascii", "replace")
    _push(client, node, run_id, Message(pack(reply), reply_to=message))
    client.PushTaskOutput(
        PushTaskOutputRequest(context=task.context, sub_status=SubStatus.COMPLETED, details="")
    )


def _seconds_left(message: Message) -> float:
    """Return the time until the message expires, less a tenth, so that a timeout can be told."""
    expires = message.metadata.created_at + message.metadata.ttl
    return max(1.0, 0.9 * min(message.metadata.ttl, expires - time.time()))


def _ask(socket: Path, request: bytes, timeout: float) -> bytes:
    try:
        return exchange(socket, request, timeout=timeout)
    except TimeoutError:
        return courier_failure(CourierCode.WORKER_TIMEOUT)
    except (ProcessError, WireError):
        return courier_failure(CourierCode.WORKER_UNREACHABLE)


def _pull(client: RuntimeHttpClient, node: Node, run_id: int) -> Message:
    pulled = client.PullMessages(PullAppMessagesRequest())
    if not pulled.messages_list:
        raise ProcessError("the SuperNode holds no message for this task")
    tree = pulled.message_object_trees[0]
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(client.PullObject, node, run_id),
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run_id),
        return_type=Message,
    )
    # Flower has no setter for the id, and the reply must name it.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _push(client: RuntimeHttpClient, node: Node, run_id: int, message: Message) -> None:
    message.metadata.__dict__["_message_id"] = message.object_id
    header = message_to_proto(remove_content_from_message(message))
    with no_object_id_recompute():
        tree = get_object_tree(message)
        pushed = client.PushMessages(
            PushAppMessagesRequest(messages_list=[header], message_object_trees=[tree])
        )
        push_objects(
            get_all_nested_objects(message),
            make_push_object_fn_protobuf(
                client.PushObject, node, run_id=run_id, session_id=pushed.session_id
            ),
            object_ids_to_push=set(pushed.objects_to_push),
        )


@contextmanager
def _heartbeat(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the SuperNode that this task lives; Flower declares it crashed without."""
    sender = HeartbeatSender(make_task_heartbeat_fn_http(client))
    sender.start()
    try:
        yield
    finally:
        if sender.is_running:
            sender.stop()


@contextmanager
def _journaled(delivery: Delivery, journal: Path) -> Iterator[None]:
    """Append the delivery to the journal however it ended, as one line written at once."""
    started = time.time()
    try:
        yield
    finally:
        delivery.seconds = round(time.time() - started, 3)
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))
        line = json.dumps({"time": moment, **vars(delivery)}) + "\n"
        with journal.open("a", encoding="utf-8") as file:
            file.write(line)


if __name__ == "__main__":
    sys.exit(main())
