"""What an account that may only send can do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import pytest

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import PublishRefused
from tests.fix_peer import PeerFactory
from tests.integration.contract import SOON
from tests.integration.sqs_peer import URL, Asked, Scripted, error, stored

#: SendMessageBatch needs the right to SendMessage.
SEND: Final = "SendMessageBatch"
PREDEFINED: Final = {"predefined_queues": {"q": {"url": URL["QueueUrl"]}}}


def publish(connection: Connection, **options: Any) -> None:
    greenconn.publish("q", "x", connection=connection, timeout=SOON, **options)


WAYS: Final[dict[str, Callable[[Connection], object]]] = {
    "publish": publish,
    "declare": lambda connection: publish(connection, declare=True),
    "many": lambda connection: greenconn.publish_many("q", ["x"], connection=connection),
    "a Queue": lambda connection: greenconn.publish(Queue("q"), "x", connection=connection),
    "a producer": lambda connection: connection.Producer().publish("x", routing_key="q"),
    "that declares": lambda connection: connection.Producer().publish(
        "x", routing_key="q", declare=[Queue("q")]
    ),
    "SimpleQueue": lambda connection: connection.SimpleQueue("q").put("x"),
}


def scripted(peer: PeerFactory, *granted: str) -> Scripted:
    """An SQS whose account may do what is granted."""

    def answer(asked: Asked) -> Any:
        if asked.action not in granted:
            return error("AccessDeniedException", 403)
        return URL if asked.action == "GetQueueUrl" else stored(asked)

    return Scripted(peer, answer)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("is_predefined", [True, False], ids=["predefined", "looked up"])
def test_publishing_needs_the_right_to_send_alone(
    peer: PeerFactory, how: str, is_predefined: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greenconn.transport.SQS")
    server = scripted(peer, SEND) if is_predefined else scripted(peer, SEND, "GetQueueUrl")
    options = PREDEFINED if is_predefined else {}
    with Connection(server.url, transport_options=options) as connection:
        WAYS[how](connection)
    assert len(server.actions(SEND)) == 1
    assert caplog.text.count("the number of messages in queue 'q' is not known") <= 1


def test_queue_that_cannot_be_looked_up_must_be_predefined(peer: PeerFactory) -> None:
    with (
        Connection(scripted(peer, SEND).url) as connection,
        pytest.raises(PublishRefused, match="or the transport option predefined_queues must name"),
    ):
        publish(connection)
