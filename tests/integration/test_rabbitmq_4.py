"""What RabbitMQ 4 refuses, said by a scripted server: the error names what to do about it."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from amqp import spec

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import InternalError, NotAllowed, OperationalError
from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.remedies import with_remedy
from greenconn.worker import spawn_consumer
from tests.fix_amqp import AmqpPeer, AmqpPeers, BrokerEnd, Method

CAME = 20.0
DENIED = (
    "INTERNAL_ERROR - Feature `{}` is deprecated.\n"
    "By default, this feature is not permitted anymore."
)


def until(condition: Callable[[], object]) -> None:
    deadline = Deadline(CAME)
    while not condition():
        assert not deadline.has_ended, "it did not come"
        gevent.sleep(0.01)


def refusing(peer: AmqpPeer, method: Method, text: str) -> None:
    """Have the server end its connections at *method*, as RabbitMQ does."""
    peer.prepare = lambda end: end.refused.update({method: (541, text)})


def test_a_transient_queue_that_is_not_exclusive(amqp_peer: AmqpPeer) -> None:
    refusing(amqp_peer, spec.Queue.Declare, DENIED.format("transient_nonexcl_queues"))
    with Connection(amqp_peer.url) as connection:
        queue = Queue("brief", durable=False)
        with pytest.raises(InternalError, match=r"durable=True.*or with exclusive=True"):
            queue(connection.default_channel).declare()
        # The next use connects again.
        connection.default_channel  # noqa: B018
        assert connection.session.generation == 2


def test_a_consumer_of_one_ends_with_the_remedy(amqp_peer: AmqpPeer) -> None:
    refusing(amqp_peer, spec.Queue.Declare, DENIED.format("transient_nonexcl_queues"))
    with Connection(amqp_peer.url) as connection:
        consumer = spawn_consumer(
            Queue("brief", durable=False), lambda body, message: None, connection=connection
        )
        with pytest.raises(InternalError, match="exclusive=True"):
            consumer.wait_ready(CAME)
        with pytest.raises(InternalError):
            consumer.get(timeout=CAME)
        assert len(amqp_peer.ends) <= 3  # it does not go on for ever


def test_a_prefetch_for_the_channel(amqp_peer: AmqpPeer) -> None:
    refusing(amqp_peer, spec.Basic.Qos, DENIED.format("global_qos"))
    with (
        Connection(amqp_peer.url) as connection,
        pytest.raises(InternalError, match="without apply_global"),
    ):
        connection.default_channel.basic_qos(0, 10, True)


def test_frames_that_are_too_small(amqp_peers: AmqpPeers) -> None:
    peer = amqp_peers(tune=(2047, 131072, 0))

    text = (
        "NOT_ALLOWED - negotiated frame_max = 4096 is lower than the minimum allowed value (8192)"
    )

    def prepare(end: BrokerEnd) -> None:
        end.ignored.add(spec.Connection.Open)
        end.refused[spec.Connection.TuneOk] = (530, text)

    peer.prepare = prepare
    with Connection(peer.url, transport_options={"frame_max": 4096}) as connection:
        with pytest.raises(NotAllowed, match="raise the option frame_max"):
            connection.connect()
        with pytest.raises((NotAllowed, OperationalError), match="frame_max"):
            connection.default_channel  # noqa: B018


def test_larger_frames_are_agreed_on_by_default(amqp_peers: AmqpPeers) -> None:
    peer = amqp_peers(tune=(2047, 8192, 0))
    with Connection(peer.url) as connection:
        assert connection.connection.frame_max == 8192


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DENIED.format("transient_nonexcl_queues"), "exclusive=True"),
        (DENIED.format("global_qos"), "apply_global"),
        (DENIED.format("queue_master_locator"), "x-queue-master-locator"),
        ("queue 'q' in vhost '/' does not support global qos", "apply_global"),
        ("basic.nack and basic.reject not supported by stream queues", "offset"),
        ("PRECONDITION_FAILED - delivery acknowledgement on channel 3 timed out", "answer sooner"),
        ("ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.", "password"),
        ("NOT_ALLOWED - vhost none not found", "two slashes at the end"),
        ("NOT_ALLOWED - access to vhost 'v' refused for user 'u'", "set_permissions"),
        (
            "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (1) is reached",
            "set_vhost_limits",
        ),
        (
            "ACCESS_REFUSED - access to queue 'q' in vhost 'v' refused for user 'u'",
            "list_user_permissions",
        ),
        (
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received "
            "'false' but current is 'true'",
            "use those, or delete it",
        ),
    ],
)
def test_each_has_its_remedy(text: str, words: str) -> None:
    assert with_remedy(text).startswith(text)
    assert words in with_remedy(text).removeprefix(text)


def test_others_are_left_as_they_are() -> None:
    text = "NOT_FOUND - no queue 'q' in vhost '/'"
    assert with_remedy(text) == text
