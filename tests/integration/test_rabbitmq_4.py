"""What RabbitMQ 4 refuses, said by a scripted server: the error names what to do about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from amqp import spec

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import InternalError, NotAllowed, OperationalError, PublishTimeout
from greenconn.publishing import publish
from greenconn.transport.amqp import Transport
from greenconn.transport.amqp.handshake import with_remedy
from greenconn.worker import spawn_consumer
from tests.fix_amqp import AmqpPeer, AmqpPeers, BrokerEnd, Method
from tests.fix_wires import until

CAME = 20.0
DENIED = (
    "INTERNAL_ERROR - Feature `{}` is deprecated.\n"
    "By default, this feature is not permitted anymore."
)


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


@pytest.mark.parametrize(
    ("frame_max", "password", "words"),
    [
        (4096, "secret-word", "frame_max is 4096, and RabbitMQ 4.1 and later need at least 8192"),
        (0, "secret-word" * 900, "the login of"),
        (0, "secret-word", "does it exist, and may the user access it"),
    ],
    ids=["frame_max", "password", "virtual host"],
)
def test_who_ends_without_a_word_may_mean(
    amqp_peers: AmqpPeers, frame_max: int, password: str, words: str
) -> None:
    """A broker that resets the connection instead of an answer."""
    peer = amqp_peers(tune=(2047, 131072, 0))
    last = spec.Connection.StartOk if len(password) > 4096 else spec.Connection.Open

    def prepare(end: BrokerEnd) -> None:
        end.ignored.add(last)
        end.vanishes_at = last

    peer.prepare = prepare
    options = {"frame_max": frame_max} if frame_max else {}
    host, port = peer.peer.host, peer.peer.port
    made = Connection(
        hostname=host, port=port, userid="u", password=password, transport_options=options
    )
    with made as connection, pytest.raises(OSError, match=words):
        connection.connect()


AWAY = "NOT_FOUND - queue 'orders' in vhost '/' process is stopped by supervisor"


def with_a_queue_that_is_away(peer: AmqpPeer) -> None:
    peer.prepare = lambda end: end.answers.update(
        {
            spec.Confirm.Select: (spec.Confirm.SelectOk,),
            spec.Basic.Qos: (spec.Basic.QosOk,),
            spec.Queue.Declare: (spec.Channel.Close, "BsBB", 404, AWAY, 50, 10),
        }
    )


def is_back(end: BrokerEnd) -> None:
    end.answers[spec.Queue.Declare] = (spec.Queue.DeclareOk, "sll", "orders", 0, 0)


def test_a_publish_waits_for_a_classic_queue_whose_node_is_away(amqp_peer: AmqpPeer) -> None:
    with_a_queue_that_is_away(amqp_peer)
    with Connection(amqp_peer.url) as connection:
        publishing = gevent.spawn(
            publish, "orders", 1, connection=connection, timeout=CAME, declare=True
        )
        until(lambda: amqp_peer.ends)
        end = amqp_peer.end
        for _ in range(3):
            end.expect(spec.Queue.Declare)
        is_back(end)
        channel = end.expect(spec.Basic.Publish)[0]
        end.method(channel, spec.Basic.Ack, "Lb", 1, False)
        publishing.get(timeout=CAME)


def test_a_publish_waits_no_longer_than_it_may(amqp_peer: AmqpPeer) -> None:
    with_a_queue_that_is_away(amqp_peer)
    with Connection(amqp_peer.url) as connection:
        connection.connect()
        with pytest.raises(PublishTimeout, match="stopped by supervisor"):
            publish("orders", 1, connection=connection, timeout=1, declare=True)


def test_a_consumer_waits_for_a_classic_queue_whose_node_is_away(amqp_peer: AmqpPeer) -> None:
    with_a_queue_that_is_away(amqp_peer)
    with Connection(amqp_peer.url) as connection:
        connection.connect()
        end = amqp_peer.end
        consumer = spawn_consumer("orders", lambda body, message: None, connection=connection)
        for _ in range(4):
            end.expect(spec.Queue.Declare)
        is_back(end)
        channel, _, arguments, _ = end.expect(spec.Basic.Consume)
        tag = arguments[10 : 10 + arguments[9]].decode()
        end.method(channel, spec.Basic.ConsumeOk, "s", tag)
        assert consumer.wait_ready(CAME)
        end.answers[spec.Basic.Cancel] = (spec.Basic.CancelOk, "s", tag)


def test_a_consumer_waits_for_the_replica_of_a_stream(
    amqp_peer: AmqpPeer, caplog: pytest.LogCaptureFixture
) -> None:
    words = "stream queue 'orders' in vhost '/' does not have a running replica on the local node"
    closed = (spec.Channel.Close, "BsBB", 406, f"PRECONDITION_FAILED - {words}", 60, 20)
    declared = (spec.Queue.DeclareOk, "sll", "orders", 0, 0)
    amqp_peer.prepare = lambda end: end.answers.update(
        {
            spec.Basic.Qos: (spec.Basic.QosOk,),
            spec.Queue.Declare: declared,
            spec.Basic.Consume: closed,
        }
    )
    with Connection(amqp_peer.url) as connection:
        connection.connect()
        end = amqp_peer.end
        consumer = spawn_consumer("orders", print, connection=connection, offset="first")
        for _ in range(4):
            end.expect(spec.Basic.Consume)
        del end.answers[spec.Basic.Consume]
        channel, _, arguments, _ = end.expect(spec.Basic.Consume)
        tag = arguments[10 : 10 + arguments[9]].decode()
        end.method(channel, spec.Basic.ConsumeOk, "s", tag)
        assert consumer.wait_ready(CAME)
        end.answers[spec.Basic.Cancel] = (spec.Basic.CancelOk, "s", tag)
    assert words in caplog.text


@pytest.mark.parametrize(
    ("product", "version", "matches"),
    [
        ("RabbitMQ", "3.2.4", True),
        ("RabbitMQ", "3.3.0", False),
        ("RabbitMQ", "3.13.7", False),
        ("RabbitMQ", "4.0.5", True),
        ("RabbitMQ", "4.3.6-rc.1", True),
        ("RabbitMQ", "", True),
        ("LavinMQ", "2.0", True),
    ],
)
def test_which_prefetch_kombu_asks_for(product: str, version: str, matches: bool) -> None:
    link: Any = SimpleNamespace(server_properties={"product": product, "version": version})
    assert Transport(None).qos_semantics_matches_spec(link) is matches


def test_a_prefetch_for_the_channel_becomes_one_for_each_consumer(
    amqp_peer: AmqpPeer, caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(end: BrokerEnd) -> None:
        end.product, end.version = "RabbitMQ", "4.3.6"
        end.answers[spec.Basic.Qos] = (spec.Basic.QosOk,)

    amqp_peer.prepare = prepare
    with Connection(amqp_peer.url) as connection:
        channel = connection.default_channel
        for _ in range(2):
            channel.basic_qos(0, 5, True)
            assert amqp_peer.end.expect(spec.Basic.Qos)[2] == b"\0\0\0\0\0\5\0"
        assert caplog.text.count("does not support a prefetch for a whole channel") == 1
        channel.basic_qos(0, 5, False)
        channel.basic_qos(0, 0, True)  # no limit is none
    assert caplog.text.count("does not support a prefetch for a whole channel") == 1


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
        (
            "PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/' of queue "
            "type rabbit_quorum_queue",
            "leave out max_priority",
        ),
        ("PRECONDITION_FAILED - delivery acknowledgement on channel 3 timed out", "ack sooner"),
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
