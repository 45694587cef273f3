"""What the transports can do: the rows and the columns of the table in docs/transports.rst.

A contract test that not every transport can pass names what it needs, ``@needs(Can.EXPIRY)``.  Each kind
of transport names what it lacks, and why; tests that need that are skipped with these words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import pytest

from tests.integration.contract import (
    Side,
    beanstalk_side,
    couchdb_side,
    memory_side,
    mongodb_side,
    rabbitmq_side,
    redis_side,
    sqlite_side,
    sqs_side,
)

__all__ = ["EVERYWHERE", "KINDS", "NO_SERVER", "UNTESTED", "Can", "Kind", "needs"]


class Can(Enum):
    """What some have and others have not."""

    PRIORITIES = "higher priorities first"
    EXPIRY = "messages expire by themselves"
    IMMEDIATE = "a time to live of 0 needs a free consumer"
    QUEUE_EXPIRY = "unused queues expire"
    BOUNDS = "queues have bounds"
    SINGLE_ACTIVE = "single active consumer"
    COUNT = "``get`` says how many are left"
    CROWD = "consumers of all processes count"
    DURABLE = "messages outlive the server"
    PROCESSES = "shared by processes; kill -9 of one loses nothing"
    NAMES = "queues with any names"
    SERVER = "reconnects when its server was killed"


def needs(*capabilities: Can) -> pytest.MarkDecorator:
    """Mark a contract test: it is for transports that have all *capabilities*."""
    return pytest.mark.needs(*capabilities)


#: What all of them have: the row of the table -> contract tests that show it.
EVERYWHERE: Final[Mapping[str, tuple[str, ...]]] = {
    "declare, delete, purge": ("test_purge_and_delete_count", "test_delete_only_if"),
    "passive declare of a missing queue": ("test_queue_that_is_not_there",),
    "publish, get": ("test_message_arrives_as_it_was_sent", "test_get_takes_one_message"),
    "consume, ack, reject, requeue": (
        "test_unanswered_messages_go_back_in_order_when_the_channel_closes",
        "test_rejected_message_is_gone",
        "test_requeue_returns_to_the_place",
    ),
    "prefetch": ("test_prefetch_bounds_each_consumer", "test_global_prefetch_bounds_the_channel"),
    "direct, topic, fan-out, headers": (
        "test_direct",
        "test_topic",
        "test_fanout_ignores_keys",
        "test_headers",
    ),
    "dead letters": ("test_rejected_message_becomes_a_dead_letter",),
    "text, bytes, JSON; Unicode": ("test_bodies_of_all_kinds", "test_unicode_everywhere"),
    "body of 256 KiB": ("test_large_body",),
    "close and reopen": ("test_messages_wait_for_the_next_connection",),
    "100 consumers on one connection": ("test_hundred_consumers",),
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One transport.

    Attributes:
        title: of its column.
        url: the fixture that gives the address of a shared broker; None: it is in this process.
        side: makes a side, of that address and a prefix for names.
        server: the fixture that gives a broker that may be killed and started again.
        is_slow: the stand-in for its server is no quick program.
        options: of connections to it, for a short lease and fan-out that waits for its consumers.
        lacks: what it has not -> why.
    """

    title: str
    url: str | None
    side: Callable[[str, str], Side]
    server: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    is_slow: bool = False
    lacks: Mapping[Can, str] = field(default_factory=dict)


def _memory(url: str, prefix: str) -> Side:
    return memory_side(prefix)


NO_SERVER: Final = "there is no server"
#: What a reason begins with where the test cannot tell.
UNTESTED: Final = "not tested: "
_ALONE: Final = (
    "the connections of one process know of each other's consumers only: so far goes ``exclusive``, the "
    "count of consumers, and who is the last one of an auto-delete queue"
)
#: A short one.
_LEASE: Final = {"lease": 1.0}
#: The same, with fan-out that waits in queues.
_LISTS: Final = {**_LEASE, "fanout_lists": True}

KINDS: Final[Mapping[str, Kind]] = {
    "memory": Kind(
        title="memory",
        url=None,
        side=_memory,
        lacks={
            Can.CROWD: "the broker is in the process",
            Can.DURABLE: "the broker is in the process, and ends with it",
            Can.PROCESSES: "the broker is in the process",
            Can.SERVER: NO_SERVER,
        },
    ),
    "amqp": Kind(title="AMQP", url="amqp_url", side=rabbitmq_side, server="own_rabbitmq"),
    "redis": Kind(
        title="Redis",
        url="redis_url",
        side=redis_side,
        server="durable_redis",
        options=_LISTS,
        lacks={
            Can.PRIORITIES: "the lowest comes first, as with kombu",
            Can.EXPIRY: "messages in a list of Redis do not expire, as with kombu",
            Can.IMMEDIATE: "messages in a list of Redis do not expire, as with kombu",
            Can.BOUNDS: "lists of Redis have no bounds, as with kombu",
            Can.SINGLE_ACTIVE: "nobody elects one of several processes",
        },
    ),
    "sqlite": Kind(
        title="SQLite",
        url="sqlite_url",
        side=sqlite_side,
        options=_LEASE,
        lacks={
            Can.IMMEDIATE: "a message is stored before it is delivered",
            Can.SERVER: NO_SERVER,
        },
    ),
    "mongodb": Kind(
        title="MongoDB",
        url="mongodb_url",
        side=mongodb_side,
        server="own_mongodb",
        options=_LISTS,
        lacks={
            Can.IMMEDIATE: "a message is stored before it is delivered",
            Can.BOUNDS: "queues in MongoDB have no bounds, as with kombu",
            Can.SINGLE_ACTIVE: "nobody elects one of several processes",
            Can.COUNT: "counting is a question of its own: ``queue_declare(passive=True)``",
            Can.CROWD: _ALONE,
        },
    ),
    "beanstalk": Kind(
        title="beanstalk",
        url="beanstalk_url",
        side=beanstalk_side,
        server="own_beanstalk",
        options=_LEASE,
        lacks={
            Can.EXPIRY: "an expired message is dropped, or becomes a dead letter, when somebody asks "
            "for messages of its queue, not before",
            Can.IMMEDIATE: "a message is stored before it is delivered",
            Can.QUEUE_EXPIRY: "a tube without jobs costs nothing, and stays",
            Can.BOUNDS: "tubes have no bounds",
            Can.SINGLE_ACTIVE: "nobody elects one of several processes",
            Can.COUNT: "counting is a question of its own: ``queue_declare(passive=True)``",
        },
    ),
    "couchdb": Kind(
        title="CouchDB",
        url="couchdb_url",
        side=couchdb_side,
        server="own_couchdb",
        is_slow=True,
        options=_LEASE,
        lacks={
            Can.IMMEDIATE: "a message is stored before it is delivered",
            Can.QUEUE_EXPIRY: "nobody notes when a queue was used last",
            Can.BOUNDS: "nobody counts what waits in a queue",
            Can.SINGLE_ACTIVE: "nobody elects one of several processes",
            Can.COUNT: "counting is a question of its own: ``queue_declare(passive=True)``",
            Can.CROWD: _ALONE,
        },
    ),
    "sqs": Kind(
        title="SQS",
        url="quick_sqs_url",
        side=sqs_side,
        server="own_moto",
        is_slow=True,
        options=_LEASE,
        lacks={
            Can.PRIORITIES: "SQS has none",
            Can.NAMES: "SQS has letters, digits, ``-`` and ``_`` only; others that kombu knows how to "
            "replace are replaced",
            Can.EXPIRY: "SQS has no such thing: an expired message is dropped, or becomes a dead "
            "letter, when somebody asks for messages of its queue, not before",
            Can.IMMEDIATE: "a message is stored before it is delivered",
            Can.QUEUE_EXPIRY: "queues of SQS stay",
            Can.BOUNDS: "queues of SQS have no bounds",
            Can.SINGLE_ACTIVE: "nobody elects one of several processes",
            Can.COUNT: "counting is a question of its own: ``queue_declare(passive=True)``",
            Can.CROWD: _ALONE,
            Can.DURABLE: f"{UNTESTED}at AWS they do, but the stand-in that the tests have forgets all",
        },
    ),
}
