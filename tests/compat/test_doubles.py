"""What the tests of programs replace, or hand over in place of the real thing, as with kombu."""

from __future__ import annotations

import builtins
import sys
from types import ModuleType
from typing import Any
from unittest.mock import Mock, PropertyMock, patch

import pytest
from gevent.exceptions import ConcurrentObjectUseError

from greenconn import Connection, Exchange, Producer, Queue, pools, serialization
from greenconn.common import Broadcast, collect_replies, ignore_errors, maybe_declare
from greenconn.connection import _check_url_transport
from greenconn.exceptions import ChannelError, InconsistencyError, SerializerNotInstalled
from greenconn.pidbox import Mailbox
from greenconn.transport import TRANSPORT_ALIASES, memory
from greenconn.utils.compat import get_gevent_concurrent_error


@pytest.fixture
def connection(unique: str) -> Any:
    """A connection to a memory broker of the test's own."""
    with Connection(f"memory:///{unique}") as connection:
        yield connection
    memory.reset(unique)


def test_a_hook_replaced_on_one_pool(connection: Connection) -> None:
    pool = connection.Pool(1)
    pool.prepare = Mock(side_effect=OSError)  # type: ignore[method-assign]
    with pytest.raises(OSError):
        pool.acquire(block=True)
    pool.prepare = Mock(side_effect=lambda resource: resource)  # type: ignore[method-assign]
    pool.release_resource = Mock()  # type: ignore[method-assign]
    borrowed = pool.acquire(block=True)
    borrowed.release()
    assert pool.release_resource.call_count == 1
    assert pool.prepare.call_count == 1
    pool.force_close_all()


def test_a_connection_is_said_to_be_closed(connection: Connection) -> None:
    connection.connect()
    connection._closed = True
    assert connection.connection is None
    connection._closed = False
    assert not connection._closed
    assert connection.connection is not None


def test_a_default_channel_in_place_of_the_real_one(connection: Connection) -> None:
    connection.connect()
    former = connection._default_channel = Mock()
    connection.revive(Mock())
    former.close.assert_called_once_with()
    assert connection._default_channel is None
    assert connection.default_channel.is_open


def test_a_channel_gets_the_timeout_as_it_was_given() -> None:
    channel = Mock()
    channel.connection.client.declared_entities = set()
    Producer(channel).publish("x", exchange=Exchange("e"), timeout=1)
    assert channel.basic_publish.call_args.kwargs["timeout"] == 1
    Producer(channel).publish("x", declare=[Exchange("e")], timeout=1)
    assert 0 < channel.basic_publish.call_args.kwargs["timeout"] < 1


def test_a_producer_that_declares_in_its_own_way(connection: Connection) -> None:
    producer = connection.Producer()
    producer.maybe_declare = Mock(side_effect=RuntimeError("declaration failed"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="declaration failed"):
        producer.publish({}, declare=[Queue("q")])


class Lazy:
    """An entity by kombu's contract, which knows its queue only once it is bound."""

    can_cache_declaration = True
    is_bound = False
    name = "lazy"

    def __init__(self) -> None:
        self.channel: Any = None

    def bind(self, channel: Any) -> Lazy:
        bound = Lazy()
        bound.is_bound, bound.channel = True, channel
        return bound

    def declare(self, channel: Any) -> None:
        self.channel.queue_declare(queue=self.name)


@pytest.mark.parametrize("retry", [False, True])
def test_an_entity_of_the_programs_own_is_bound(retry: bool, connection: Connection) -> None:
    channel, entity = connection.channel(), Lazy()
    assert maybe_declare(entity, channel, retry=retry)
    assert not maybe_declare(entity, channel, retry=retry)
    assert not entity.is_bound
    assert channel.queue_declare(queue="lazy", passive=True).queue == "lazy"


def test_a_node_whose_reply_takes_what_it_needs(connection: Connection, unique: str) -> None:
    node = Mailbox(unique, connection=connection).Node("here")
    replies = []

    def reply(data: Any, **options: Any) -> None:
        replies.append((data, options))

    node.reply = reply  # type: ignore[method-assign,assignment]
    node.handler(_add)
    node.dispatch("_add", {"x": 1}, reply_to={"exchange": "e", "routing_key": "r"}, ticket="t")
    assert replies == [({"here": 2}, {"exchange": "e", "routing_key": "r", "ticket": "t"})]


def _add(state: Any, x: int) -> int:
    return x + 1


def test_names_of_the_modules_are_replaced(connection: Connection, unique: str) -> None:
    with patch("greenconn.common.uuid", return_value="x"):
        assert Broadcast("news").name == "bcast.x"
    message = Mock()
    with patch("greenconn.common.itermessages", return_value=[("body", message)]):
        assert list(collect_replies(Mock(), Mock(), Mock(), no_ack=False)) == ["body"]
    message.ack.assert_called_once_with()
    node = Mailbox(unique, connection=connection).Node("here")
    with patch("greenconn.pidbox.Consumer") as consumer:
        assert node.Consumer(channel=Mock()) is consumer.return_value
    assert consumer.call_args.kwargs["no_ack"]


@pytest.mark.parametrize(("code", "error"), [(405, InconsistencyError), (403, ChannelError)])
def test_a_transport_refuses_the_queue_of_a_node_in_its_own_way(
    code: int, error: type[Exception], connection: Connection, unique: str
) -> None:
    refused = ChannelError("no")  # of no class that says more
    refused.code = code
    node = Mailbox(unique, connection=connection).Node("here", channel=connection.channel())
    with patch("greenconn.pidbox.Consumer", side_effect=refused), pytest.raises(error):
        node.Consumer()


def test_an_error_of_a_socket_in_use_is_ignored() -> None:
    connection = Mock(connection_errors=(), channel_errors=())
    ignore_errors(connection, Mock(side_effect=ConcurrentObjectUseError))
    with pytest.raises(LookupError):
        ignore_errors(connection, Mock(side_effect=LookupError))


def test_gevents_error_is_hidden() -> None:
    connection = Mock(connection_errors=(), channel_errors=())
    with patch.dict(sys.modules, {"gevent.exceptions": ModuleType("gevent.exceptions")}):
        assert get_gevent_concurrent_error() is None
        with pytest.raises(ConcurrentObjectUseError):
            ignore_errors(connection, Mock(side_effect=ConcurrentObjectUseError))
    assert get_gevent_concurrent_error() is ConcurrentObjectUseError


def test_a_group_of_pools_of_the_programs_own_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Mock()
    group.__len__ = Mock(return_value=0)
    group.__bool__ = Mock(return_value=False)
    monkeypatch.setattr(pools, "_groups", [group])
    pools.reset()
    group.clear.assert_called_once_with()


@pytest.mark.parametrize("name", ["yaml", "msgpack"])
def test_a_library_is_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def hiding(module: str, *args: Any, **kwargs: Any) -> Any:
        if module == name:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", hiding)
    with pytest.raises(SerializerNotInstalled):
        serialization.loads(b"x", f"application/x-{name}", "utf-8")


def test_the_memory_broker_is_emptied_by_kombus_names(connection: Connection) -> None:
    channel = connection.channel()
    queue = Queue("q", Exchange("e"), "k")(channel)
    queue.declare()
    assert "q" in channel.queues
    assert len(channel.queues) == 1
    channel.queues.clear()
    assert list(channel.queues) == []
    Producer(channel, queue.exchange).publish("x", routing_key="k")  # to no queue
    assert "e" in connection.connection.state.exchanges
    connection.connection.state.clear()
    assert "e" not in channel.state.exchanges


def test_errors_of_a_transport_are_replaced(connection: Connection) -> None:
    fun = Mock(side_effect=[KeyError("lost"), "done"])
    assert KeyError not in connection.recoverable_connection_errors
    connection.recoverable_connection_errors = (KeyError,)
    connection.recoverable_channel_errors = ()
    assert connection.recoverable_connection_errors == (KeyError,)
    assert connection.recoverable_channel_errors == ()
    assert connection.ensure(connection, fun, max_retries=3)() == "done"
    with patch.object(
        Connection, "channel_errors", new_callable=PropertyMock, return_value=(OSError,)
    ):
        assert connection.channel_errors == (OSError,)
    assert OSError not in connection.channel_errors


def test_the_opening_of_a_connection_is_replaced(connection: Connection) -> None:
    with patch.object(Connection, "_connection_factory") as factory:
        assert connection.connect() is factory.return_value
    connection.close()
    with patch.object(Connection, "_establish_connection") as establish:
        assert connection.connect() is establish.return_value


def test_a_queue_is_made_by_kombus_private_name(connection: Connection, unique: str) -> None:
    channel = connection.channel()
    channel._new_queue(unique)
    channel._new_queue(unique)
    channel.basic_publish(channel.prepare_message(b"kept"), routing_key=unique)
    assert channel.basic_get(unique, no_ack=True).body == b"kept"


def test_no_host_is_no_host_on_sqs() -> None:
    connection = Connection("sqs://")
    assert connection.info()["hostname"] is None
    assert connection.as_uri() == "sqs://localhost//"
    assert connection.clone().info() == connection.info()


def test_kombus_check_of_a_scheme() -> None:
    for alias in TRANSPORT_ALIASES:
        assert _check_url_transport(alias) == alias
    for name in ("a.b", "a:b"):
        with pytest.raises(ValueError, match=rf"Invalid transport scheme.*'{name}://'"):
            _check_url_transport(name)
