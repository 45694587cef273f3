"""What the transports can do: the rows and the columns of the table in docs/transports.rst.

A contract test that not every transport can pass names what it needs, ``@needs(Can.EXPIRY)``.  Each kind
of transport names what it lacks, and why; tests that need that are skipped with these words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import pytest

from greenconn.connection import Connection
from tests.integration.contract import (
    Side,
    beanstalk_side,
    couchdb_side,
    folder_side,
    hosted_side,
    memory_side,
    mongodb_side,
    polled_side,
    postgresql_side,
    rabbitmq_side,
    redis_cluster_side,
    redis_side,
    sqlite_side,
    sqs_side,
)


class Can(Enum):
    """What some have and others have not."""

    PRIORITIES = "higher priorities first"
    EXPIRY = "messages expire without a request"
    EXPIRATION = "time to live of a single message"
    IMMEDIATE = "a time to live of 0 delivers only to a ready consumer"
    QUEUE_EXPIRY = "unused queues expire"
    BOUNDS = "maximum length of queues"
    SINGLE_ACTIVE = "single active consumer"
    UNCOUNTED = "``x-delivery-limit`` counts started handlers only"
    COUNT = "``get`` returns the number of remaining messages"
    CROWD = "consumers of all processes are counted"
    DURABLE = "messages survive a restart of the server"
    PROCESSES = "shared by processes; kill -9 loses no message"
    SHARED = "exchanges and bindings shared by processes"
    NAMES = "queues of any name"
    SERVER = "reconnects after its server was killed"


def needs(*capabilities: Can) -> pytest.MarkDecorator:
    """Mark a contract test: it is for transports that have all *capabilities*."""
    return pytest.mark.needs(*capabilities)


#: What all of them have: the row of the table -> contract tests that show it.
EVERYWHERE: Final[Mapping[str, tuple[str, ...]]] = {
    "declare, delete, purge": ("test_purge_and_delete_count", "test_delete_only_if"),
    "passive declare of a missing queue": ("test_queue_that_is_not_there",),
    "publish, get": ("test_message_arrives_as_it_was_sent", "test_get_takes_one_message"),
    "consume, ack, reject, requeue": (
        "test_unacked_messages_are_requeued_in_order_when_the_channel_closes",
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
        otherwise: capability that it has not by design -> the contract tests that ask for it.
    """

    title: str
    url: str | None
    side: Callable[[str, str], Side]
    server: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    is_slow: bool = False
    lacks: Mapping[Can, str] = field(default_factory=dict)
    otherwise: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _memory(url: str, prefix: str) -> Side:
    return memory_side(prefix)


def _polled(url: str, prefix: str) -> Side:
    return polled_side(prefix)


def _hosted(url: str, prefix: str) -> Side:
    return hosted_side(prefix)


NO_SERVER: Final = "there is no server"
#: What a reason begins with where the test cannot tell.
UNTESTED: Final = "not tested: "
_ALONE: Final = (
    "only consumers of the same process are known: to ``exclusive``, to the count of consumers, and to "
    "the deletion of auto-delete queues"
)
#: A short one.
_LEASE: Final = {"lease": 1.0}
#: The same, with fan-out that waits in queues.
_LISTS: Final = {**_LEASE, "fanout_lists": True}

#: Features that lists in Redis lack.
_LISTS_LACK: Final = {
    Can.PRIORITIES: "the lowest number is served first, as with kombu",
    Can.EXPIRATION: "messages of a list expire in their order; ``expiration`` is ignored, and logged",
    Can.IMMEDIATE: "a message is stored before it is delivered",
    Can.BOUNDS: "lists in Redis have no maximum length, as with kombu",
}

KINDS: Final[Mapping[str, Kind]] = {
    "memory": Kind(
        title="memory",
        url=None,
        side=_memory,
        lacks={
            Can.UNCOUNTED: "deliveries are neither counted nor limited",
            Can.CROWD: "the broker is in the process",
            Can.DURABLE: "the broker ends with the process",
            Can.PROCESSES: "the broker is in the process",
            Can.SHARED: "the broker is in the process",
            Can.SERVER: NO_SERVER,
        },
    ),
    "amqp": Kind(
        title="AMQP",
        url="amqp_url",
        side=rabbitmq_side,
        server="own_rabbitmq",
        lacks={
            Can.UNCOUNTED: "RabbitMQ counts each delivery; 4.3 and later do not count messages that are "
            "returned before their channel is closed"
        },
    ),
    "redis": Kind(
        title="Redis",
        url="redis_url",
        side=redis_side,
        server="durable_redis",
        options=_LISTS,
        lacks=_LISTS_LACK,
    ),
    "redis+cluster": Kind(
        title="Redis Cluster",
        url="redis_cluster_url",
        side=redis_cluster_side,
        server="durable_redis_cluster",
        options=_LISTS,
        lacks=_LISTS_LACK,
    ),
    "sqlite": Kind(
        title="SQLite",
        url="sqlite_url",
        side=sqlite_side,
        options=_LEASE,
        lacks={Can.IMMEDIATE: "a message is stored before it is delivered", Can.SERVER: NO_SERVER},
    ),
    "postgresql": Kind(
        title="PostgreSQL",
        url="postgresql_url",
        side=postgresql_side,
        server="own_postgresql",
        options=_LEASE,
        lacks={Can.IMMEDIATE: "a message is stored before it is delivered"},
    ),
    "mongodb": Kind(
        title="MongoDB",
        url="mongodb_url",
        side=mongodb_side,
        server="own_mongodb",
        options=_LISTS,
        lacks={
            Can.IMMEDIATE: "a message is stored before it is delivered",
            Can.BOUNDS: "collections in MongoDB have no limit for a queue, as with kombu",
            Can.SINGLE_ACTIVE: "there is no election among processes",
            Can.COUNT: "counting takes another request: ``queue_declare(passive=True)``",
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
            Can.EXPIRY: "an expired message is dropped or dead-lettered when a consumer asks for "
            "messages of its queue, not before",
            Can.EXPIRATION: "an expired message is dropped or dead-lettered when a consumer asks for "
            "messages of its queue, not before",
            Can.IMMEDIATE: "a message is stored before it is delivered",
            Can.QUEUE_EXPIRY: "a tube without jobs costs nothing and remains",
            Can.BOUNDS: "tubes have no maximum length",
            Can.SINGLE_ACTIVE: "there is no election among processes",
            Can.UNCOUNTED: "the server counts reservations",
            Can.COUNT: "counting takes another request: ``queue_declare(passive=True)``",
            Can.SHARED: "a process knows the exchanges and bindings that it declared, as with kombu",
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
            Can.QUEUE_EXPIRY: "the last use of a queue is not recorded",
            Can.BOUNDS: "the messages of a queue are not counted",
            Can.SINGLE_ACTIVE: "there is no election among processes",
            Can.COUNT: "counting takes another request: ``queue_declare(passive=True)``",
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
            Can.PRIORITIES: "SQS has no priorities",
            Can.NAMES: "SQS allows letters, digits, ``-`` and ``_``; others are replaced as in kombu",
            Can.EXPIRY: "an expired message is dropped or dead-lettered when a consumer asks for "
            "messages of its queue, not before",
            Can.EXPIRATION: "an expired message is dropped or dead-lettered when a consumer asks for "
            "messages of its queue, not before",
            Can.IMMEDIATE: "a message is stored before it is delivered",
            Can.QUEUE_EXPIRY: "SQS does not delete unused queues",
            Can.BOUNDS: "queues of SQS have no maximum length",
            Can.SINGLE_ACTIVE: "there is no election among processes",
            Can.UNCOUNTED: "SQS counts how often a message was received",
            Can.COUNT: "counting takes another request: ``queue_declare(passive=True)``",
            Can.CROWD: _ALONE,
            Can.DURABLE: f"{UNTESTED}AWS keeps them, but the stand-in of the tests does not",
            Can.SHARED: "a process knows the exchanges and bindings that it declared, as with kombu; "
            "fan-out exchanges are shared, as topics of SNS",
        },
    ),
}

#: Stores of others, as docs/transports.rst teaches to write them: no column of the table.
EXAMPLES: Final[Mapping[str, Kind]] = {
    "folder": Kind(
        title="examples/own_store",
        url="folder_url",
        side=folder_side,
        options=_LEASE,
        lacks={
            Can.EXPIRY: "an expired message is found when a consumer asks for messages of its queue",
            Can.EXPIRATION: "an expired message is found when a consumer asks for messages of its queue",
            Can.IMMEDIATE: "a message is stored before it is delivered",
            Can.QUEUE_EXPIRY: "the last use of a queue is not recorded",
            Can.BOUNDS: "the messages of a queue are not counted",
            Can.SINGLE_ACTIVE: "there is no election among processes",
            Can.UNCOUNTED: "the name of a file has one number for both",
            Can.COUNT: "counting takes another request: ``queue_declare(passive=True)``",
            Can.CROWD: _ALONE,
            Can.SHARED: "a process knows the exchanges and bindings that it declared, as with kombu",
            Can.SERVER: NO_SERVER,
        },
    )
}

#: What kombu's virtual channels do otherwise than a broker, by their design: they know lists to put into
#: and to get from, and bindings in this process.  Capability -> the contract tests that ask for it.
_BEYOND_HOOKS: Final[Mapping[str, tuple[str, ...]]] = {
    "dead letters": (
        *("test_deaths_are_counted", "test_dead_letter_keeps_its_key_by_default"),
        *("test_rejected_message_becomes_a_dead_letter", "test_retry_by_expiry_goes_round"),
        *("test_old_messages_expire", "test_message_that_dies_in_a_circle_is_dropped"),
        "test_message_may_expire_by_itself",
        "test_dead_letter_that_cannot_be_stored_leaves_the_original",
        "test_who_is_killed_while_he_rejects_leaves_nothing_half_done",
    ),
    "bounds, expiry and priorities of queues": (
        *("test_bytes_count_too", "test_full_queue_drops_its_head", "test_full_queue_may_refuse"),
        *("test_what_a_full_queue_refuses_may_become_a_dead_letter", "test_unused_queue_expires"),
        *("test_message_without_time_needs_a_free_consumer", "test_higher_priorities_come_first"),
        "test_a_full_queue_knows_what_waits_in_it",
    ),
    "what queues were declared with": (
        *("test_arguments_that_cannot_be", "test_queue_cannot_be_declared_otherwise"),
        *("test_reserved_names", "test_server_named_queue", "test_delete_only_if"),
    ),
    "consumers of other connections": (
        "test_next_active_consumer_begins_with_what_the_former_one_held",
        "test_no_consumer_of_a_queue_with_a_single_active_one_is_exclusive",
        *("test_consumers_of_other_processes_count", "test_single_active_consumer"),
        *("test_exclusive_consumer_stays_alone", "test_exclusive_queue_is_for_its_link"),
        *(
            "test_exclusive_consumer_of_a_lost_link_is_in_the_way_of_nobody",
            "test_queue_that_is_not_there",
        ),
        *("test_exclusive_queue_of_a_lost_link_is_free_at_once",),
        *("test_auto_delete_queue_goes_with_its_last_consumer",),
        *("test_messages_go_with_a_queue_that_deletes_itself",),
        *("test_links_share_what_comes_one_by_one",),
        "test_queue_deleted_over_another_link_cancels_its_consumers",
    ),
    "arguments in AMQP's order": (
        *("test_consumer_tag_is_used_once", "test_deleted_queue_cancels_its_consumers"),
    ),
    "the place of a message that comes back": (
        *("test_requeue_returns_to_the_place",),
        *("test_unacked_messages_are_requeued_in_order_when_the_channel_closes",),
    ),
    "what a broker tells of a delivery": (
        *("test_get_says_how_many_are_left", "test_message_arrives_as_it_was_sent"),
    ),
    "limits of deliveries": ("test_what_no_handler_had_is_redelivered_and_does_not_count",),
    "a copy for each queue": ("test_copies_by_header", "test_copies_of_a_fan_out_are_apart"),
}

#: Channels over kombu's hooks: what they lack is the matter of whoever writes the hooks.
HOOKED: Final[Mapping[str, Kind]] = {
    "polled": Kind(title="virtual.Channel", url=None, side=_polled, otherwise=_BEYOND_HOOKS),
    "hosted": Kind(
        title="hosted",
        url=None,
        side=_hosted,
        otherwise={
            **_BEYOND_HOOKS,
            "headers exchanges, ready-made exchanges, bindings of exchanges": (
                *("test_arguments_distinguish_bindings", "test_headers", "test_headers_with_x"),
                *("test_unknown_match", "test_exchanges_bound_to_exchanges"),
                "test_alternate_exchange_gets_what_has_no_binding",
            ),
            "fan-out without a hook for it": ("test_fanout_ignores_keys",),
            "topics as of AMQP": ("test_topic",),
            "returned messages": (
                *(
                    "test_mandatory_message_without_a_queue",
                    "test_returned_message_becomes_an_event",
                ),
            ),
            "channels that end with a refusal": (
                *("test_plain_publish_to_no_exchange_closes_the_channel",),
                *("test_exchange_that_is_not_there", "test_exchange_cannot_be_declared_otherwise"),
                *("test_consumers_learn_that_their_channel_is_closed",),
            ),
            "exchanges that delete themselves": (
                "test_auto_delete_exchange_goes_with_its_last_binding",
            ),
            "the order of messages that come back": ("test_recover_delivers_again",),
            "how many messages went with a queue": ("test_purge_and_delete_count",),
            "redelivered": ("test_unacked_messages_are_requeued_when_the_link_closes",),
        },
    ),
}


@pytest.fixture(name="connection")
def connection_of_kind(broker_kind: Kind, kind_url: str) -> Iterator[Connection]:
    """A connection to each kind in turn, for modules that import this fixture."""
    options = {name: each for name, each in broker_kind.options.items() if name != "fanout_lists"}
    with Connection(kind_url, transport_options=options) as connection:
        yield connection
