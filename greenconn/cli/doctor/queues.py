"""Checks of a queue that exists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from greenconn.cli.doctor.finding import Finding, failed, note, ok, warning
from greenconn.cli.errors import error_text
from greenconn.connection import Connection
from greenconn.exceptions import ManagementError, OperationalError

__all__ = ["check_queue"]

#: Where there is no dead-letter exchange.
REMEDY: Final = "declare it with dead_letter=True, or set a policy with dead-letter-exchange"
#: The delivery limit of a quorum queue that has none set, from RabbitMQ 4.0 on.
DELIVERY_LIMIT: Final = 20


def check_queue(connection: Connection, name: str) -> Iterator[Finding]:
    """Check queue *name*: it exists, is consumed, and keeps what fails.  May switch."""
    check = f"queue {name}"
    try:
        with connection.channel() as channel:
            found = channel.queue_declare(name, passive=True)
    except Exception as exc:
        yield failed(check, error_text(exc)[0])
        return
    waiting, consumers = found.message_count, found.consumer_count
    text = f"{waiting:,} messages wait, {consumers} consumers"
    if waiting and consumers == 0 and connection.transport.driver_type == "amqp":
        yield warning(check, text, "start a consumer")
    else:
        yield ok(check, text)
    if connection.transport.driver_type == "amqp":
        yield from _check_arguments(connection, name, check)


def _check_arguments(connection: Connection, name: str, check: str) -> Iterator[Finding]:
    try:
        found = connection.get_manager().get_queue(connection.virtual_host or "/", name)
    except (ManagementError, OperationalError):
        return  # what is known of the management API was said
    arguments: Mapping[str, Any] = found.get("arguments") or {}
    policy: Mapping[str, Any] = found.get("effective_policy_definition") or {}

    def value(argument: str) -> Any:
        given = arguments.get(f"x-{argument}")
        return policy.get(argument) if given is None else given

    kind = found.get("type", "classic")
    has_dead_letters = value("dead-letter-exchange") is not None
    if kind == "stream":
        yield ok(check, "a stream: messages stay until its limits")
        return
    if not found.get("durable", True):
        yield warning(check, "not durable: gone after a restart", "declare it durable")
    elif kind == "classic":
        yield note(check, "classic: on one node", "a quorum queue survives the loss of its node")
    else:
        yield ok(check, f"{kind}, on {len(found.get('members') or ()) or 1} nodes")
    limit = value("delivery-limit")
    if has_dead_letters:
        yield ok(check, f"failed messages go to exchange {value('dead-letter-exchange')!r}")
        return
    version = getattr(connection.connection, "server_version", None) or (0, 0)
    if limit is None and kind == "quorum" and version >= (4, 0):
        limit = DELIVERY_LIMIT
    if limit is not None and int(limit) >= 0:
        yield warning(
            check,
            f"a message is dropped after {limit} failed deliveries: there is no dead-letter exchange",
            REMEDY,
        )
    else:
        yield note(
            check,
            "rejected messages are dropped: there is no dead-letter exchange",
            REMEDY,
        )
