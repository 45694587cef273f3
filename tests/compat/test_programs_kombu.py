"""The same little programs on kombu and on greenconn.

What kombu does on RabbitMQ is the measure: greenconn does the same there, over memory and on Redis.
Where kombu's own memory transport does the same as its RabbitMQ one, greenconn's is compared with
that too.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.transport import memory
from tests.compat.programs import connecting, consuming, conveniences, corners, publishing, topology
from tests.compat.programs.library import GREENCONN, KOMBU, Library, Names, Raised

pytest.importorskip("kombu")

Program = Callable[[Library, Any, Names], Any]

PROGRAMS: Final = [
    *publishing.PROGRAMS,
    *consuming.PROGRAMS,
    *topology.PROGRAMS,
    *connecting.PROGRAMS,
    *conveniences.PROGRAMS,
    *corners.PROGRAMS,
]
MEMORY: Final = "memory:///compat"

#: Programs that mean nothing without a broker elsewhere.
ONLY_AMQP: Final[Mapping[Program, str]] = {
    consuming.prefetch_by_amqps_name: "kombu's memory transport does not know that name either",
    topology.messages_and_transactions_of_amqp: "it is about AMQP's own",
    connecting.login_refused: "memory has no logins and no virtual hosts that are missing",
    connecting.connecting_to_nobody: "it has an AMQP address of its own",
    connecting.failing_over: "one URL of memory is as good as another",
    connecting.what_it_says_of_itself: "it tells the transport's own names and errors",
}

#: Programs for which kombu's memory transport is no measure.
NOT_KOMBUS_MEMORY: Final[Mapping[Program, str]] = {
    publishing.own_serializer: "kombu's gives bytes to decoders of text",
    publishing.returned_messages: "kombu's has no mandatory messages",
    publishing.accepted_content: "kombu's loses what a closed channel had not answered",
    publishing.expired_messages: "kombu's has no expiry",
    publishing.bounded_queue: "kombu's has no limits",
    publishing.priorities: "kombu's turns priorities upside down",
    consuming.settlements_and_their_states: "kombu's puts a requeued message behind the others",
    consuming.prefetch: "kombu's loses what a closed channel had not answered",
    consuming.no_ack: "kombu's takes an ack of a message that needs none",
    consuming.purge_recover_flow: "kombu's has no flow",
    consuming.cancelled_by_the_broker: "kombu's never cancels",
    consuming.closed_with_messages: "kombu's loses what a closed channel had not answered",
    consuming.simple_queue: "kombu's counts what was prefetched as still there",
    topology.direct_routing: "kombu's has bytes for an empty text",
    topology.fanout_routing: "kombu's has bytes for an empty text",
    topology.topic_routing: "kombu's patterns are not AMQP's",
    topology.topic_that_ends_in_any: "kombu's patterns are not AMQP's",
    topology.headers_routing: "kombu's has no headers exchange",
    topology.queue_arguments: "kombu's does not look at arguments",
    topology.what_the_broker_refuses: "kombu's refuses less",
    topology.binding_and_unbinding: "kombu's does not count what it deletes",
    topology.exchange_to_exchange: "kombu's cannot",
    topology.deleting_and_purging: "kombu's raises KeyError the second time",
    topology.channels_alone: "kombu's deliveries do not tell whose they are",
    topology.closed_channels: "kombu's channels do not say whether they are open",
    corners.bodies_of_all_kinds: "kombu's has bytes for text",
    corners.returned_bodies: "kombu's has no mandatory messages",
    corners.consumers_in_detail: "kombu's deliveries do not tell whose they are",
    connecting.repeating: "kombu's knows no channel errors that may be recovered from",
    connecting.pool_of_connections: "kombu's connections differ from their clones",
    connecting.pool_of_producers: "kombu's connections differ from their clones",
}

#: Programs that ask for what Redis has otherwise; see docs/redis.rst.
NOT_REDIS: Final[Mapping[Program, str]] = {
    publishing.properties_and_headers: "priority 0 is served first",
    publishing.priorities: "priority 0 is served first",
    publishing.expired_messages: "messages do not expire",
    publishing.bounded_queue: "queues have no bounds",
    consuming.simple_queue: "priority 0 is served first",
    topology.fanout_routing: "a fan-out reaches who listens",
    topology.server_named_queues: "a fan-out reaches who listens",
    topology.exchange_to_exchange: "a fan-out reaches who listens",
}


def run(program: Program, lib: Library, url: str) -> Any:
    """Run *program*, and return what it returns without the names that it made up."""
    prefix = f"{lib.root}-{uuid.uuid4().hex[:8]}-"
    used: dict[str, str] = {}

    def names(letter: str) -> str:
        return used.setdefault(letter, prefix + letter)

    try:
        with lib.connection.Connection(url) as connection, warnings.catch_warnings():
            if lib is KOMBU:
                warnings.simplefilter("ignore")
            return plain(program(lib, connection, names), prefix)
    finally:
        if url == MEMORY:
            memory.reset("compat")
        else:
            clean(url, list(used.values()))


def clean(url: str, names: list[str]) -> None:
    """Delete the queues and exchanges of those names."""
    with Connection(url) as connection:
        for name in names:
            channel = connection.default_channel
            channel.queue_delete(name)
            channel.exchange_delete(name)


def plain(value: Any, prefix: str) -> Any:
    """*value* without *prefix* in its texts; what is a named tuple becomes a plain one."""
    if isinstance(value, str):
        return value.replace(prefix, "")
    if isinstance(value, dict):
        return {plain(name, prefix): plain(each, prefix) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each, prefix) for each in value]
    if isinstance(value, tuple):
        return tuple(plain(each, prefix) for each in value)
    return value


@cache
def kombus(program: Program, url: str) -> Any:
    """What *program* returns on kombu.

    Where a short wait ends within the begin of a frame it is lost, and kombu waits for ever: then it
    is asked once more.
    """
    hangs = gevent.Timeout(25)
    try:
        with hangs:
            return run(program, KOMBU, url)
    except gevent.Timeout as exc:
        if exc is not hangs:
            raise
        return run(program, KOMBU, url)


def as_memory(value: Any) -> Any:
    """*value* as both memory transports have it: without what only one of them or a wire has.

    AMQP has all properties among the properties; kombu's memory transport adds its bookkeeping to
    them, knows less of a delivery, and gives bodies as bytes.
    """
    if isinstance(value, dict) and "properties" in value and "info" in value:
        body = value["body"]
        properties = value["properties"]
        return {
            **value,
            "body": body.encode() if isinstance(body, str) else body,
            "properties": {
                name: each
                for name, each in properties.items()
                if name not in _BOOKKEEPING and each is not None and (name, each) != ("priority", 0)
            },
            "info": {name: value["info"][name] for name in ("exchange", "routing_key")},
        }
    if isinstance(value, dict):
        return {name: as_memory(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_memory(each) for each in value]
    return value


_BOOKKEEPING: Final = frozenset(
    {
        *("content_type", "content_encoding", "application_headers"),
        *("delivery_info", "delivery_tag", "body_encoding"),
    }
)


def name_of(program: Program) -> str:
    return program.__name__


@pytest.mark.parametrize("program", PROGRAMS, ids=name_of)
@pytest.mark.sampled(2)
def test_on_rabbitmq(program: Program, amqp_url: str) -> None:
    assert run(program, GREENCONN, amqp_url) == kombus(program, amqp_url)


@pytest.mark.full
@pytest.mark.parametrize(
    "program", [each for each in PROGRAMS if each not in ONLY_AMQP], ids=name_of
)
def test_over_memory_as_on_rabbitmq(program: Program, amqp_url: str) -> None:
    ours = run(program, GREENCONN, MEMORY)
    assert as_memory(ours) == as_memory(kombus(program, amqp_url))


@pytest.mark.full
@pytest.mark.parametrize(
    "program",
    [each for each in PROGRAMS if each not in ONLY_AMQP and each not in NOT_REDIS],
    ids=name_of,
)
def test_on_redis_as_on_rabbitmq(program: Program, redis_url: str, amqp_url: str) -> None:
    ours = run(program, GREENCONN, redis_url)
    assert as_memory(ours) == as_memory(kombus(program, amqp_url))


@pytest.mark.full
@pytest.mark.parametrize(
    "program",
    [each for each in PROGRAMS if each not in ONLY_AMQP and each not in NOT_KOMBUS_MEMORY],
    ids=name_of,
)
def test_over_memory_as_kombus_memory(program: Program) -> None:
    assert as_memory(run(program, GREENCONN, MEMORY)) == as_memory(kombus(program, MEMORY))


@pytest.mark.long
@pytest.mark.parametrize("program", NOT_KOMBUS_MEMORY, ids=name_of)
def test_kombus_memory_is_still_no_measure(program: Program) -> None:
    try:
        theirs = kombus(program, MEMORY)
    except Exception:
        return
    assert as_memory(run(program, GREENCONN, MEMORY)) != as_memory(theirs)


@pytest.mark.parametrize("reader", [KOMBU, GREENCONN], ids=repr)
@pytest.mark.parametrize("sender", [KOMBU, GREENCONN], ids=repr)
def test_messages_between_the_libraries(
    sender: Library, reader: Library, amqp_url: str, unique: str
) -> None:
    with Connection(amqp_url) as connection:
        connection.default_channel.queue_declare(unique, durable=True, auto_delete=False)
        with sender.connection.Connection(amqp_url) as theirs:
            count = publishing.send_letters(sender, theirs, unique)
        with reader.connection.Connection(amqp_url) as theirs:
            queue = reader.entity.Queue(unique)
            read = publishing.receive(reader, theirs, queue, count, accept=publishing.ALL_CONTENT)
        connection.default_channel.queue_delete(unique)
    assert plain(read, unique) == dead_letters_of_kombu(amqp_url)


@cache
def dead_letters_of_kombu(url: str) -> Any:
    """How kombu reads its own letters."""

    def program(lib: Library, connection: Any, names: Names) -> Any:
        queue = lib.entity.Queue(names("q"))
        queue(connection).declare()
        count = publishing.send_letters(lib, connection, names("q"))
        found = publishing.receive(lib, connection, queue, count, accept=publishing.ALL_CONTENT)
        for each in found:
            each["info"]["routing_key"] = ""
        return found

    return run(program, KOMBU, url)


def test_an_error_equals_one_that_the_same_clause_catches() -> None:
    assert Raised(ConnectionRefusedError()) == Raised(OSError())
    assert Raised(KeyError()) != Raised(ValueError())
