"""The errors of a broker's refusals: amqp's classes, with RabbitMQ's texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

from greenconn.exceptions import (
    AccessRefused,
    AMQPNotImplementedError,
    NotFound,
    PreconditionFailed,
    ResourceLocked,
)


class Method(Enum):
    """The AMQP methods that a broker refuses (class id, method id)."""

    EXCHANGE_DECLARE = (40, 10)
    EXCHANGE_DELETE = (40, 20)
    EXCHANGE_BIND = (40, 30)
    EXCHANGE_UNBIND = (40, 40)
    QUEUE_DECLARE = (50, 10)
    QUEUE_BIND = (50, 20)
    QUEUE_PURGE = (50, 30)
    QUEUE_DELETE = (50, 40)
    QUEUE_UNBIND = (50, 50)
    BASIC_CONSUME = (60, 20)
    BASIC_PUBLISH = (60, 40)
    BASIC_GET = (60, 70)
    BASIC_ACK = (60, 80)
    BASIC_REJECT = (60, 90)
    BASIC_RECOVER = (60, 110)


class NotEquivalentError(PreconditionFailed):  # type: ignore[misc]
    """A second declaration asks for something else than what there is (kombu's name)."""


class NotSupported(AMQPNotImplementedError, NotImplementedError):  # type: ignore[misc]
    """No broker does what was asked for; kombu's virtual channels raise NotImplementedError."""


def no_exchange(name: str, vhost: str, method: Method) -> NotFound:
    """There is no such exchange."""
    return NotFound(f"NOT_FOUND - no exchange '{name}' in vhost '{vhost}'", method.value)


def no_queue(name: str, vhost: str, method: Method) -> NotFound:
    """There is no such queue."""
    return NotFound(f"NOT_FOUND - no queue '{name}' in vhost '{vhost}'", method.value)


def locked(queue: str, vhost: str, method: Method) -> ResourceLocked:
    """Return the error for a queue that is another connection's, or not exclusive as it should be."""
    return ResourceLocked(
        f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{queue}' in vhost "
        f"'{vhost}': it belongs to another connection, or was not declared exclusive",
        method.value,
    )


def refused(text: str, method: Method) -> AccessRefused:
    """Return the error for an operation that is not permitted."""
    return AccessRefused(f"ACCESS_REFUSED - {text}", method.value)


def in_exclusive_use(queue: str, vhost: str) -> AccessRefused:
    """Return the error for who may not consume beside another consumer."""
    text = f"queue '{queue}' in vhost '{vhost}' in exclusive use"
    return refused(text, Method.BASIC_CONSUME)


def reserved_name(kind: str, name: str, method: Method) -> AccessRefused:
    """Return the error for a name that begins with ``amq.``."""
    return refused(f"{kind} name '{name}' contains reserved prefix 'amq.*'", method)


def in_use(kind: str, name: str, vhost: str, method: Method) -> PreconditionFailed:
    """Return the error for one in use that was to be deleted only if unused."""
    return PreconditionFailed(
        f"PRECONDITION_FAILED - {kind} '{name}' in vhost '{vhost}' in use", method.value
    )


def not_empty(queue: str, vhost: str, method: Method) -> PreconditionFailed:
    """Return the error for a queue with messages that was to be deleted only if empty."""
    return PreconditionFailed(
        f"PRECONDITION_FAILED - queue '{queue}' in vhost '{vhost}' is not empty", method.value
    )


def invalid_argument(text: str, method: Method) -> PreconditionFailed:
    """Return the error for an argument with a value that is not allowed."""
    return PreconditionFailed(f"PRECONDITION_FAILED - {text}", method.value)


def unknown_delivery_tag(tag: Any, method: Method) -> PreconditionFailed:
    """Return the error for a tag that was settled before, or never given."""
    return PreconditionFailed(f"PRECONDITION_FAILED - unknown delivery tag {tag}", method.value)


def no_recover_in_place() -> NotSupported:
    """Deliveries are given to the same consumers again by no broker; RabbitMQ ends the connection."""
    return NotSupported(
        "NOT_IMPLEMENTED - basic.recover with requeue=False: call recover(requeue=True)",
        Method.BASIC_RECOVER.value,
    )


def check_equivalent(
    kind: str,
    name: str,
    vhost: str,
    method: Method,
    *,
    fields: Mapping[str, tuple[Any, Any]],
    arguments: tuple[Mapping[str, Any], Mapping[str, Any]],
    compared: Collection[str],
) -> None:
    """Raise if a second declaration asks for something else than what there is.

    Arguments:
        fields: name -> (received, current).
        arguments: received and current declare arguments.
        compared: names of the arguments that count; others are notes for people.

    Raises:
        NotEquivalentError: names the first difference.
    """
    received, current = arguments
    pairs = dict(fields)
    pairs.update((each, (received.get(each), current.get(each))) for each in sorted(compared))
    for field, (new, old) in pairs.items():
        if new != old:
            raise NotEquivalentError(
                f"PRECONDITION_FAILED - inequivalent arg '{field}' for {kind} '{name}' in vhost "
                f"'{vhost}': received {_shown(new)} but current is {_shown(old)} (it exists with "
                f"other arguments: use those, or delete it first)",
                method.value,
            )


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"'{str(value).lower() if isinstance(value, bool) else value}'"
